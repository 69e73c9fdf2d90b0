"""The guides for Google Cloud: each command names what is there, and the table of costs adds up.

What `gcloud`, `kubectl` and `helm` themselves take, nothing here can say.
"""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.deploy.compose import DOCKER, NODE_SETTINGS, ROOT, resolve

SOURCE = ROOT / "infra_terraform"
TIMES = "\N{MULTIPLICATION SIGN}"
PAGES = ("deploy-gcp.md", "deploy-gke.md", "operations.md")
CODE = "\n".join(path.read_text() for path in sorted(SOURCE.rglob("*.tf")))
VARIABLES = set(re.findall(r'^variable "(\w+)"', "".join(p.read_text() for p in SOURCE.glob("*.tf")), re.M))


def said(page: str) -> str:
    """Return a page's commands, in blocks and within sentences, one a line."""
    text = (ROOT / "docs" / page).read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.M | re.S)
    rest = re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.M | re.S)
    return "\n".join([*(b.replace("\\\n", " ") for b in blocks), *re.findall(r"`([^`]+)`", rest)])


ALL = "\n".join(said(page) for page in PAGES)


def test_machines_disks_and_secrets_are_called_what_terraform_calls_them() -> None:
    machines = {f"cryptostream-kafka-{number}" for number in (1, 2, 3)}
    machines |= set(re.findall(r'name += "(cryptostream-(?:pipeline|dagster))"', CODE))
    assert len(machines) == 5
    secrets = re.findall(r"^    ([a-z-]+) += \{ maker", (SOURCE / "secrets.tf").read_text(), re.M)
    buckets = ("cryptostream-state", "cryptostream-raw", "cryptostream-parquet")
    known = machines | {f"cryptostream-{secret}" for secret in secrets} | set(buckets)
    # A namespace's secret, made by hand.
    known |= {"cryptostream-postgres"}
    named = set(re.findall(r"(?<![\w/.])(?:\$PROJECT-)?(cryptostream-[a-z0-9-]+)", ALL))
    assert len(named) > 6
    assert named <= known, named - known
    assert all(bucket in CODE for bucket in buckets)


def test_addresses_variables_and_outputs_are_there() -> None:
    resources = set(re.findall(r'^resource "(\w+)" "(\w+)"', CODE, re.M))
    modules = set(re.findall(r'^module "(\w+)"', CODE, re.M))
    addresses = re.findall(r"(?:-target=|-replace=|VM=)'?((?:module|google)[\w.\[\]]+)", ALL)
    assert len(addresses) >= 3
    for address in addresses:
        parts = address.split(".")
        if parts[0] == "module":
            assert re.sub(r"\[\d\]", "", parts[1]) in modules, address
            parts = parts[2:]
        assert not parts or tuple(parts) in resources, address
    chosen = set(re.findall(r"-var (\w+)=", ALL)) | set(re.findall(r"^(\w+) += [\"\[]", ALL, re.M))
    chosen |= set(re.findall(r"echo '(\w+) = ", ALL)) | set(re.findall(r"^(\w+) = \S", ALL, re.M))
    assert {"project", "image_tag", "gke", "raw_days", "alert_webhook", "producer_conf"} <= chosen
    assert chosen <= VARIABLES, chosen - VARIABLES
    outputs = set(re.findall(r'^output "(\w+)"', (SOURCE / "outputs.tf").read_text(), re.M))
    assert set(re.findall(r"terraform output (?:-raw )?(\w+)", ALL)) == {"tunnels", "gke_values"}
    assert {"tunnels", "gke_values"} <= outputs


def test_places_are_the_defaults() -> None:
    zones = re.findall(r"--zone[= ](\S+)|ZONE=(\S+)", ALL)
    assert {one or other for one, other in zones} <= {"asia-northeast3-a", "$ZONE", "ZONE"}
    regions = set(re.findall(r"--region=(\S+)", ALL)) | set(re.findall(r"(\S+)-docker\.pkg\.dev", ALL))
    assert regions == {"asia-northeast3"}
    assert 'default     = "asia-northeast3"' in CODE
    assert 'DATA_DIR      = "/var/lib/cryptostream-data"' in CODE


def test_the_images_that_are_pushed_are_those_that_machines_pull() -> None:
    pushed = re.search(r"for target in ([\w ]+); do.*?docker push (\S+)", ALL, re.S)
    assert pushed
    registry = re.search(r'registry = "(.*)"', (SOURCE / "registry.tf").read_text())
    assert registry
    assert 'repository_id = "cryptostream"' in CODE
    for target in pushed[1].split():
        assert f" AS {target}\n" in (DOCKER / "Dockerfile").read_text()
        assert f"${{local.registry}}/{target}:${{var.image_tag}}" in CODE
    assert pushed[2] == "asia-northeast3-docker.pkg.dev/$PROJECT/cryptostream/$target:v1"
    assert 'default     = "v1"' in CODE


def test_services_of_the_machines_are_called_what_the_compose_files_call_them() -> None:
    services = {
        service
        for role in ("kafka", "pipeline", "dagster")
        for service in resolve(f"compose.{role}.yaml", None, NODE_SETTINGS)["services"]
    }
    commands = re.findall(r"sudo dc (exec|stop|up|logs|restart)((?: -e \S+| -d)*)((?: (?!#)[a-z-]+)*)", ALL)
    assert len(commands) >= 5
    for verb, _, words in commands:
        named = words.split()
        assert named, verb
        # What `exec` runs follows its service.
        assert set(named[:1] if verb == "exec" else named) <= services, (verb, named)


@pytest.mark.parametrize("command", sorted(set(re.findall(r"entrypoint\.sh cryptostream ([a-z ]+)", ALL))))
def test_our_own_commands_are_there(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ingest_services", *command.split(), "--help"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert f"ingest_services {command.strip()}" in done.stdout


def test_there_is_a_tunnel_to_every_user_interface() -> None:
    outputs = (SOURCE / "outputs.tf").read_text()
    assert "--tunnel-through-iap" in outputs
    tunnels = re.findall(r"module\.(\w+)\.name\)} -L (\d+):127\.0\.0\.1:(\d+)", outputs)
    there = {("pipeline", "5432")}
    for role in ("pipeline", "dagster"):
        for service in resolve(f"compose.{role}.yaml", None, NODE_SETTINGS)["services"].values():
            ports = service.get("ports", ())
            there |= {(role, port["published"]) for port in ports if port.get("host_ip") == "127.0.0.1"}
    assert {(role, remote) for role, _, remote in tunnels} == there
    assert all(local == remote for _, local, remote in tunnels)


def test_the_state_is_in_the_bucket_that_the_bootstrap_makes() -> None:
    name = re.search(r'name += "\$\{var\.project\}(.*)"', (SOURCE / "bootstrap" / "main.tf").read_text())
    assert name
    assert f"terraform init -backend-config=bucket=$PROJECT{name[1]}" in ALL
    assert 'backend "gcs"' in CODE


def test_the_start_up_script_brings_what_the_pages_use() -> None:
    script = (SOURCE / "modules" / "node" / "startup.sh").read_text()
    assert "/usr/local/bin/dc" in script
    assert "google_metadata_script_runner startup" in script
    assert 'device_name = "data"' in CODE
    assert "--device-name=data" in ALL


def test_the_table_of_costs_adds_up_and_is_of_the_machines_that_are_made() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    rows = re.findall(rf"^\| (.+?) \| ([\d{TIMES} +/().]+) \| (\d+) \|$", page, re.M)
    assert len(rows) == 11
    for what, arithmetic, dollars in rows:
        assert round(eval(arithmetic.replace(TIMES, "*"))) == int(dollars), what
    *items, total = (int(dollars) for _, _, dollars in rows)
    assert sum(items) == total
    assert f"About ${round(total, -1)} a month" in (ROOT / "docs" / "deploy-gcp.md").read_text()
    defaults = (SOURCE / "variables.tf").read_text()
    machines = re.findall(r'machine_type += optional\(string, "([\w-]+)"\)', defaults)
    assert [re.search(r"e2-\w+(?:-\d+)?", what)[0] for what, _, _ in rows[:3]] == machines  # type: ignore[index]
    kafka, pipeline, dagster = re.findall(r"disk_gb += optional\(number, (\d+)\)", defaults)
    boot = re.search(r"size  = (\d+)", CODE)
    assert boot
    assert rows[3][1].startswith(f"(3 {TIMES} {kafka} + {pipeline} + {dagster} + 5 {TIMES} {boot[1]})")
