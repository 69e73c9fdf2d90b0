"""A machine's start-up script: what Terraform told it becomes files, secrets and a running compose file.

Google's metadata server, `gcloud` and Docker are stand-ins that write down what they are asked; the data disk
has tests of its own (`test_data_disk.py`).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.compose import DOCKER, ROOT

NODE = ROOT / "infra_terraform" / "modules" / "node"
TOLD = {
    "compose_file": "compose.pipeline.yaml",
    "files": {
        "docker/services.yaml": "services: {}\n",
        "docker/postgres/create-databases.sh": "#!/bin/sh\n",
        "producer.conf": "[upbit_producer1]\n",
    },
    "environment": {"REGISTRY_HOST": "region-docker.pkg.dev", "RAW_URL": "gs://raw/orderbook"},
    "folders": {"spool": os.getuid(), "postgres": os.getuid()},
    "secrets": {
        "postgres_password": {"id": "cryptostream-postgres-password", "make": True},
        "grafana_password": {"id": "cryptostream-grafana-password", "make": False},
    },
}
STAND_IN = """#!/bin/bash
echo "$(basename "$0") $*" >> "$WORLD/calls"
case "$(basename "$0") $*" in
    curl*) cp "$WORLD/told.json" "${@: -1}" ;;
    "gcloud secrets versions access"*)
        id=$(sed 's/.*--secret=//' <<<"$*")
        if [ -f "$WORLD/secrets/$id" ]; then cat "$WORLD/secrets/$id"; else echo NOT_FOUND >&2; exit 1; fi ;;
    "gcloud secrets versions add"*) cat > "$WORLD/secrets/$4" ;;
    "sleep"*) echo "made elsewhere" > "$WORLD/secrets/cryptostream-grafana-password" ;;
esac
"""


class Machine:
    """A folder that stands for a machine's root."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        (folder / "secrets").mkdir()
        (folder / "run").mkdir()
        for name in ("curl", "gcloud", "docker", "sleep"):
            program = folder / "bin" / name
            program.write_text(STAND_IN)
            program.chmod(0o755)
        (folder / "told.json").write_text(json.dumps(TOLD))
        disk = 'mount_data() { mkdir -p "$2"; echo "mount_data $*" >> "$WORLD/calls"; }\n'
        script = "set -euo pipefail\n" + disk + (NODE / "startup.sh").read_text()
        for old in ("/var/lib/cryptostream-data", "/etc/cryptostream", "/run/"):
            script = script.replace(old, f"{folder}{old}")
        (folder / "script").write_text(script)

    def boot(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(self.folder / "script")],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "WORLD": str(self.folder)},
        )

    def calls(self) -> str:
        return (self.folder / "calls").read_text()

    def read(self, name: str) -> str:
        return (self.folder / "etc/cryptostream" / name).read_text()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_boot_writes_files_makes_its_secret_waits_for_another_s_and_starts_compose(
    machine: Machine,
) -> None:
    said = machine.boot()
    assert said.returncode == 0, said.stderr
    assert "mount_data /dev/disk/by-id/google-data" in machine.calls()
    assert machine.read("docker/.env") == "RAW_URL=gs://raw/orderbook\nREGISTRY_HOST=region-docker.pkg.dev\n"
    assert machine.read("producer.conf") == "[upbit_producer1]\n"
    made = machine.read("docker/secrets/postgres_password")
    assert re.fullmatch(r"[A-Za-z0-9]{30,44}", made)
    assert machine.read("docker/secrets/grafana_password") == "made elsewhere\n"
    assert "auth configure-docker region-docker.pkg.dev" in machine.calls()
    assert re.search(r"docker compose .*-f \S+/docker/compose.pipeline.yaml up -d", machine.calls())
    assert (machine.folder / "var/lib/cryptostream-data/spool").is_dir()
    assert os.access(machine.folder / "etc/cryptostream/docker/postgres/create-databases.sh", os.X_OK)


def test_another_boot_keeps_the_password(machine: Machine) -> None:
    machine.boot()
    first = machine.read("docker/secrets/postgres_password")
    (machine.folder / "calls").unlink()
    assert machine.boot().returncode == 0
    assert machine.read("docker/secrets/postgres_password") == first
    assert "versions add" not in machine.calls()


def test_a_machine_is_told_nothing_that_its_compose_files_do_not_read() -> None:
    told = set()
    for name in ("compute.tf", "kafka.tf"):
        told |= set(
            re.findall(r"^\s+([A-Z][A-Z_]+)\s+=", (ROOT / "infra_terraform" / name).read_text(), re.MULTILINE)
        )
    files = "".join(path.read_text() for path in DOCKER.glob("*.yaml"))
    read = set(re.findall(r"\$\{([A-Z_]+)", files)) | set(re.findall(r"^\s+([A-Z_]+):$", files, re.MULTILINE))
    # One is the start-up script's own, the other Compose's.
    assert told - read == {"REGISTRY_HOST", "COMPOSE_PROFILES"}, "Terraform tells what no compose file reads"
    assert len(told) > 15


def test_the_chart_s_values_name_what_the_code_location_needs() -> None:
    values = yaml.safe_load((ROOT / "infra_terraform" / "gke" / "values.yaml").read_text())
    (deployment,) = values["dagster-user-deployments"]["deployments"]
    given = {entry["name"] for entry in deployment["env"]}
    assert given >= {"RAW_URL", "PARQUET_URL", "POSTGRES_HOST", "POSTGRES_USER", "POSTGRES_DB", "SOURCE"}
    assert values["runLauncher"]["type"] == "K8sRunLauncher"
    assert values["global"]["postgresqlSecretName"] == "cryptostream-postgres"
