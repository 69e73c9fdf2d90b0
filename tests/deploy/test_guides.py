"""The commands of the guides for Docker: each names what exists, and what can be done here is done."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import subprocess
from functools import cache
from pathlib import Path

import pytest
import yaml

from tests.deploy.compose import DOCKER, FILES, NODE_SETTINGS, ROOT, compose, resolve

PAGES = ("deploy-docker.md", "operations.md")


def text(page: str) -> str:
    return (ROOT / "docs" / page).read_text()


def compose_commands(page: str) -> list[list[str]]:
    """Return what a page tells Compose to do, in blocks and within sentences: words after the files."""
    said = re.findall(r"`(?:[A-Z_]+=\S+ )*(?:docker compose|dc)\s([^`]*)`", text(page).replace("; ", "` `"))
    for block in re.findall(r"^```sh\n(.*?)^```$", text(page), re.DOTALL | re.MULTILINE):
        said += re.findall(
            r"^\s*(?:sudo )?(?:docker compose|dc) (.*)$", block.replace("\\\n", " "), re.MULTILINE
        )
    commands = []
    for line in said:
        words = shlex.split(line.split("#")[0].split("&&")[0])
        while words[:1] == ["-f"]:
            assert (ROOT / words[1]).exists(), line
            words = words[2:]
        commands.append(words)
    return [words for words in commands if words and not words[0].startswith("-")]


@cache
def help_of(subcommand: str) -> str:
    answer = compose(subcommand, "--help")
    assert answer.returncode == 0, f"docker compose {subcommand}: {answer.stderr}"
    return answer.stdout


@cache
def known_services() -> frozenset[str]:
    settings = {**NODE_SETTINGS, "COMPOSE_PROFILES": "dagster,fake-gcs,monitoring"}
    return frozenset().union(*(resolve(name, None, settings)["services"] for name in FILES))


@pytest.mark.parametrize("page", PAGES)
def test_every_compose_command_of_a_guide_has_its_options_and_services(page: str) -> None:
    commands = compose_commands(page)
    assert len(commands) >= 4
    for subcommand, *words in commands:
        usage = help_of(subcommand)
        takes_value = False
        for word in words:
            if subcommand == "exec" and word in known_services():
                break  # what follows is the container's
            if word.startswith("-"):
                assert re.search(rf"(?<![\w-]){re.escape(word)}\b", usage), f"{subcommand} {word}"
                takes_value = word in {"--name", "-e"}
            elif not takes_value:
                assert word in known_services(), f"{subcommand}: no service {word}"
            else:
                takes_value = False


def test_the_first_commands_of_the_guide_make_what_the_files_want(tmp_path: Path) -> None:
    block = re.search(r"^```sh\n(.*?)^```$", text("deploy-docker.md"), re.DOTALL | re.MULTILINE)
    assert block
    done_here = block[1].split("docker compose", 1)[0]
    shutil.copytree(DOCKER, tmp_path / "docker", ignore=shutil.ignore_patterns(".env", "*_password"))
    subprocess.run(["sh", "-euc", done_here], cwd=tmp_path, check=True, stdin=subprocess.DEVNULL)
    assert (tmp_path / "docker" / ".env").read_text() == (DOCKER / "env.example").read_text()
    meant = resolve("compose.yaml", tmp_path / "docker" / ".env")
    for name, secret in meant["secrets"].items():
        assert Path(secret["file"]).relative_to(DOCKER) == Path("secrets") / name
        made = tmp_path / "docker" / "secrets" / name
        assert len(made.read_text().strip()) >= 32
        assert stat.S_IMODE(made.stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "docker" / "secrets").stat().st_mode) == 0o700


def test_the_guide_s_override_gives_credentials_to_all_that_open_the_store(tmp_path: Path) -> None:
    block = re.search(r"^```yaml\n(.*?)^```$", text("deploy-docker.md"), re.DOTALL | re.MULTILINE)
    assert block
    override = tmp_path / "override.yaml"
    override.write_text(block[1])
    answer = compose(
        *("--env-file", os.devnull, "-f", "compose.yaml", "-f", str(override), "config"),
        settings={"RAW_URL": "gs://raw/orderbook", "PARQUET_URL": "gs://parquet/orderbook"},
    )
    assert answer.returncode == 0, answer.stderr
    mounted = {
        name
        for name, service in yaml.safe_load(answer.stdout)["services"].items()
        if any(v["target"] == "/home/cryptostream/.config/gcloud" for v in service.get("volumes", ()))
    }
    # The webserver and the daemon ask the code location; producers know nothing of the lake.
    assert mounted == {"buckets", "consumer", "dagster-code"}
