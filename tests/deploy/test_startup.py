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
    "environment_secrets": {},
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
        if [ -f "$WORLD/denied" ]; then echo PERMISSION_DENIED >&2; exit 1; fi
        if [ -f "$WORLD/secrets/$id" ]; then cat "$WORLD/secrets/$id"; else echo NOT_FOUND >&2; exit 1; fi ;;
    "gcloud secrets versions add"*)
        if [ -f "$WORLD/not yet" ]; then echo PERMISSION_DENIED >&2; exit 1; fi
        cat > "$WORLD/secrets/$4" ;;
    "apt-get"* | "docker compose"*" up "*)
        if [ -f "$WORLD/not yet" ]; then echo "not yet" >&2; exit 1; fi
        rm -f "$WORLD/bare" ;;
    "docker compose version") [ ! -f "$WORLD/bare" ] ;;
    "sleep"*)
        rm -f "$WORLD/not yet"
        [ -f "$WORLD/nobody" ] || echo "made elsewhere" > "$WORLD/secrets/cryptostream-grafana-password" ;;
esac
"""


class Machine:
    """A folder that stands for a machine's root."""

    def __init__(self, folder: Path, told: dict[str, object]) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        (folder / "secrets").mkdir()
        (folder / "run").mkdir()
        for own in ("usr/local/bin", "usr/local/sbin", "etc/systemd/system"):
            (folder / own).mkdir(parents=True)
        for name in ("apt-get", "curl", "gcloud", "docker", "sleep", "systemctl"):
            program = folder / "bin" / name
            program.write_text(STAND_IN)
            program.chmod(0o755)
        (folder / "told.json").write_text(json.dumps(TOLD | told))
        disk = 'mount_data() { mkdir -p "$2"; echo "mount_data $*" >> "$WORLD/calls"; }\n'
        script = "set -euo pipefail\n" + disk + (NODE / "startup.sh").read_text()
        for old in (
            "/var/lib/cryptostream-data",
            "/etc/cryptostream",
            "/etc/docker",
            "/etc/systemd",
            "/run/",
            "/usr/local/",
        ):
            script = script.replace(old, f"{folder}{old}")
        # Nothing of the machine that runs the test is touched.
        own = re.findall(rf"(?<!{re.escape(str(folder))})(?<![\w.])/(?:etc|run|usr|var)/\S+", script)
        assert own == []
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
    return Machine(tmp_path, {})


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
    up = r"docker compose --project-directory \S+/docker -f \S+/docker/compose.pipeline.yaml up -d"
    assert re.search(up, machine.calls())
    assert machine.calls().splitlines()[-1] == "docker image prune --all --force"
    assert (machine.folder / "var/lib/cryptostream-data/spool").is_dir()
    docker = json.loads((machine.folder / "etc/docker/daemon.json").read_text())
    mtu = docker["default-network-opts"]["bridge"]["com.docker.network.driver.mtu"]
    assert f"= {mtu} #" in (ROOT / "infra_terraform" / "network.tf").read_text()
    assert os.access(machine.folder / "etc/cryptostream/docker/postgres/create-databases.sh", os.X_OK)


def test_another_boot_keeps_the_password(machine: Machine) -> None:
    machine.boot()
    first = machine.read("docker/secrets/postgres_password")
    (machine.folder / "calls").unlink()
    assert machine.boot().returncode == 0
    assert machine.read("docker/secrets/postgres_password") == first
    assert "versions add" not in machine.calls()


def test_an_empty_password_is_refused_by_a_sentence_that_says_what_to_do(machine: Machine) -> None:
    (machine.folder / "secrets" / "cryptostream-grafana-password").write_text("\n")
    said = machine.boot()
    assert said.returncode != 0
    assert said.stderr.splitlines()[-1] == (
        "error: secret cryptostream-grafana-password: its latest version is empty; add one that is not: "
        "gcloud secrets versions add cryptostream-grafana-password --data-file=-"
    )
    assert " up -d" not in machine.calls()
    assert not (machine.folder / "etc/cryptostream/docker/secrets/grafana_password").exists()


def test_a_webhook_is_a_secret_that_a_person_adds_and_the_machine_does_not_wait_for_it(
    tmp_path: Path,
) -> None:
    machine = Machine(
        tmp_path, {"environment_secrets": {"ALERT_WEBHOOK_URL": "cryptostream-alert-webhook-url"}}
    )
    said = machine.boot()
    assert said.returncode == 0, said.stderr
    assert (
        "secret cryptostream-alert-webhook-url has no version yet, ALERT_WEBHOOK_URL is not set"
        in said.stdout
    )
    assert "ALERT_WEBHOOK_URL" not in machine.read("docker/.env")
    (tmp_path / "secrets" / "cryptostream-alert-webhook-url").write_text("https://hooks.example.com/T0/$a b")
    assert machine.boot().returncode == 0
    assert "ALERT_WEBHOOK_URL='https://hooks.example.com/T0/$a b'\n" in machine.read("docker/.env")
    assert (tmp_path / "etc/cryptostream/docker/.env").stat().st_mode & 0o077 == 0


def test_a_disk_that_fills_is_told_to_the_project_s_log(machine: Machine) -> None:
    machine.boot()
    assert "systemctl enable --quiet --now cryptostream-disks.timer" in machine.calls()
    units = machine.folder / "etc/systemd/system"
    watch = machine.folder / "usr/local/sbin/cryptostream-disks"
    assert f"ExecStart={watch}\n" in (units / "cryptostream-disks.service").read_text()
    assert "OnUnitActiveSec=10min\n" in (units / "cryptostream-disks.timer").read_text()
    (machine.folder / "calls").unlink()
    df = machine.folder / "bin" / "df"
    said = "Use% Mounted on\n 79% /\n 80% /data\n"
    df.write_text(f'#!/bin/sh\nprintf %s \'{said}\'\necho "df $*" >> "$WORLD/calls"\n')
    df.chmod(0o755)
    environment = {"PATH": f"{machine.folder / 'bin'}:{os.environ['PATH']}", "WORLD": str(machine.folder)}
    subprocess.run([str(watch)], check=True, env=environment)
    asked, told = machine.calls().splitlines()
    assert asked == f"df --output=pcent,target / {machine.folder}/var/lib/cryptostream-data"
    assert re.fullmatch(
        r"gcloud logging write cryptostream-disks \S+: /data is 80 % full --severity=WARNING", told
    )
    assert "/logs/cryptostream-disks" in (ROOT / "infra_terraform" / "monitoring.tf").read_text()


def test_rights_and_routes_that_come_late_are_waited_for(machine: Machine) -> None:
    """The first boot may be earlier than the right to make a secret, to pull an image, or the way out."""
    (machine.folder / "bare").touch()
    (machine.folder / "not yet").touch()
    said = machine.boot()
    assert said.returncode == 0, said.stderr
    calls = machine.calls()
    assert calls.count("apt-get update") == 2
    assert "apt-get install -qq -y --no-install-recommends docker.io docker-cli docker-compose" in calls
    (machine.folder / "secrets" / "cryptostream-postgres-password").unlink()
    (machine.folder / "calls").unlink()
    (machine.folder / "not yet").touch()
    assert machine.boot().returncode == 0
    assert machine.calls().count("versions add cryptostream-postgres-password") == 2
    assert re.fullmatch(r"[A-Za-z0-9]{30,44}", machine.read("docker/secrets/postgres_password"))
    (machine.folder / "calls").unlink()
    (machine.folder / "not yet").touch()
    assert machine.boot().returncode == 0
    assert machine.calls().count(" up -d") == 2


@pytest.mark.parametrize("what", ["nobody", "denied"])
def test_a_secret_that_cannot_be_read_is_waited_for_ten_minutes_and_then_named(
    machine: Machine, what: str
) -> None:
    (machine.folder / what).touch()
    (machine.folder / "secrets" / "cryptostream-postgres-password").write_text("there")
    said = machine.boot()
    assert said.returncode != 0
    name = "grafana-password" if what == "nobody" else "postgres-password"
    reason = "NOT_FOUND" if what == "nobody" else "PERMISSION_DENIED"
    assert said.stderr.splitlines()[-1] == f"error: secret cryptostream-{name} cannot be read: {reason}"
    assert machine.calls().count("sleep 10") == 59
    assert " up -d" not in machine.calls()


def test_a_person_has_a_command_for_the_machine_s_containers(machine: Machine) -> None:
    machine.boot()
    (machine.folder / "calls").unlink()
    command = machine.folder / "usr/local/bin/dc"
    environment = {"PATH": f"{machine.folder / 'bin'}:{os.environ['PATH']}", "WORLD": str(machine.folder)}
    subprocess.run([str(command), "logs", "a b"], check=True, env=environment)
    docker = machine.folder / "etc/cryptostream/docker"
    assert machine.calls() == (
        f"docker compose --project-directory {docker} -f {docker}/compose.pipeline.yaml logs a b\n"
    )


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
