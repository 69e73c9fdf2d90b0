"""What the compose files say: start order, health, limits, secrets, and what the network sees of them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest
import yaml

from cryptostream_dagster.settings import PipelineSettings
from ingest_services import monitor
from ingest_services.consumer import service as consumer
from ingest_services.producer import service as producer
from ingest_services.settings import IngestSettings
from tests.deploy.compose import DOCKER, FILES, NODE_SETTINGS, ROOT, compose, image, published, resolve

EXAMPLE = DOCKER / "env.example"
JOBS = {"buckets", "topic", "databases", "migrate"}


@cache
def meaning(name: str) -> dict[str, dict[str, object]]:
    if name == "compose.yaml":
        return resolve(name, EXAMPLE)  # type: ignore[return-value]
    return resolve(name, None, NODE_SETTINGS)  # type: ignore[return-value]


@pytest.mark.parametrize("name", FILES)
def test_every_service_has_limits_rotated_logs_and_a_health_check(name: str) -> None:
    services = meaning(name)["services"]
    for service, given in services.items():
        said = f"{name}: {service}"
        assert given["logging"]["options"].keys() == {"max-size", "max-file"}, said
        assert given["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}, said
        assert "no-new-privileges:true" in given["security_opt"], said
        assert "privileged" not in given, said
        if service in JOBS:
            assert given["restart"] == "on-failure:5", said
            continue
        assert given["restart"] == "unless-stopped", said
        # Dagster's code location has the image's own.
        assert service == "dagster-code" or given["healthcheck"]["test"], said
    assert image("dagster")["health"][:2] == ["dagster", "api"]


@pytest.mark.parametrize("name", FILES)
def test_images_are_pinned_to_a_version(name: str) -> None:
    for service, given in meaning(name)["services"].items():
        repository, _, tag = given["image"].rpartition(":")
        if not repository.startswith("cryptostream-"):
            assert tag[0].isdigit() or tag[0] == "v", f"{service}: {given['image']}"
            assert "." in tag, f"{service}: {given['image']}"


def test_on_one_machine_nothing_is_published_beyond_loopback() -> None:
    ports = [port for given in meaning("compose.yaml")["services"].values() for port in published(given)]
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}
    assert {port["target"] for port in ports} >= {3000, 8080, 9090, 5432}


def test_user_interfaces_of_vms_are_on_loopback_only() -> None:
    for name in FILES[1:]:
        for service, given in meaning(name)["services"].items():
            if service in {"kafka-ui", "dagster-webserver", "prometheus", "grafana"}:
                assert {port["host_ip"] for port in published(given)} == {"127.0.0.1"}, service


@pytest.mark.parametrize("name", FILES)
def test_passwords_come_as_files_and_never_as_variables(name: str) -> None:
    for service, given in meaning(name)["services"].items():
        for variable in given.get("environment") or {}:
            if "PASSWORD" in variable:
                assert variable.endswith("_FILE"), f"{service}: {variable}"


def test_services_wait_for_what_they_need() -> None:
    services = meaning("compose.yaml")["services"]
    wanted = {
        "topic": {"kafka": "service_healthy"},
        "databases": {"postgres": "service_healthy"},
        "migrate": {"databases": "service_completed_successfully"},
        "grafana": {"databases": "service_completed_successfully", "prometheus": "service_healthy"},
        "producer": {"topic": "service_completed_successfully"},
        "consumer": {
            "topic": "service_completed_successfully",
            "buckets": "service_completed_successfully",
        },
        "dagster-daemon": {"dagster-code": "service_healthy"},
        "dagster-webserver": {"dagster-code": "service_healthy"},
        "dagster-code": {
            "migrate": "service_completed_successfully",
            "buckets": "service_completed_successfully",
        },
    }
    for service, conditions in wanted.items():
        found = {name: how["condition"] for name, how in services[service]["depends_on"].items()}
        assert found == conditions, service


def test_one_service_builds_an_image_and_nobody_fetches_it() -> None:
    """Two that build one name end the first `up` of a machine: Compose builds them at the same time."""
    builders: dict[str, list[str]] = {}
    users: dict[str, set[str]] = {}
    for service, given in meaning("compose.yaml")["services"].items():
        name = given["image"].partition(":")[0]
        if not name.startswith("cryptostream-"):
            continue
        if build := given.get("build"):
            assert name == f"cryptostream-{build['target']}"
            builders.setdefault(name, []).append(service)
        else:
            assert given["pull_policy"] == "never", service
            users.setdefault(name, set()).add(service)
    assert builders == {"cryptostream-ingest": ["buckets"], "cryptostream-dagster": ["migrate"]}
    assert users.keys() == builders.keys()


@pytest.mark.parametrize("name", FILES)
def test_who_reads_a_mounted_file_at_its_start_is_made_anew_when_it_is_another(name: str) -> None:
    settings = {**NODE_SETTINGS, "COMPOSE_PROFILES": "dagster,fake-gcs,monitoring", "MOUNTED_FILES": "others"}
    for service, given in resolve(name, None, settings)["services"].items():
        # Jobs run at each `up`.
        reads = service not in JOBS and any(v["type"] == "bind" for v in given.get("volumes", ()))
        assert ("others" in given.get("labels", {}).values()) is reads, service


def test_up_waits_for_every_job_to_end_well() -> None:
    # `up --wait` takes a container that has ended for a failure, unless a service waits for its success.
    awaited = {
        name
        for given in meaning("compose.yaml")["services"].values()
        for name, how in given.get("depends_on", {}).items()
        if how["condition"] == "service_completed_successfully"
    }
    assert awaited == JOBS


def test_without_profiles_there_is_no_fake_store_and_no_monitoring(tmp_path: Path) -> None:
    own = tmp_path / "env"
    own.write_text("RAW_URL=gs://r/o\nPARQUET_URL=gs://p/o\n")
    services = resolve("compose.yaml", own)["services"]
    assert not {"gcs", "prometheus", "grafana"} & services.keys()
    assert services["consumer"]["environment"]["STORAGE_EMULATOR_HOST"] == ""


def test_a_vm_whose_dagster_is_on_a_cluster_runs_no_second_one() -> None:
    without = resolve("compose.dagster.yaml", None, {**NODE_SETTINGS, "COMPOSE_PROFILES": "monitoring"})
    assert without["services"].keys() == {"migrate", "prometheus", "grafana"}


def test_replicas_instead_of_numbered_services(tmp_path: Path) -> None:
    own = tmp_path / "env"
    own.write_text("RAW_URL=gs://r/o\nPARQUET_URL=gs://p/o\nPRODUCERS=2\nCONSUMERS=3\n")
    services = resolve("compose.yaml", own)["services"]
    assert services["producer"]["deploy"]["replicas"] == 2
    assert services["consumer"]["deploy"]["replicas"] == 3
    # Two producers may share the volume of the spool: each has a folder of its own in it.


@pytest.mark.parametrize("name", FILES)
def test_replicas_never_want_the_same_port_or_name(name: str) -> None:
    settings = {**NODE_SETTINGS, "PRODUCERS": "2", "CONSUMERS": "2"}
    for service, given in resolve(name, None, settings)["services"].items():
        assert "container_name" not in given, service
        if given["deploy"].get("replicas", 1) > 1:
            assert not published(given), service
            assert "network_mode" not in given, service


def test_a_broker_of_three_replicates_to_all_and_acknowledges_with_two() -> None:
    environment = meaning("compose.kafka.yaml")["services"]["kafka"]["environment"]
    assert environment["KAFKA_DEFAULT_REPLICATION_FACTOR"] == "3"
    assert environment["KAFKA_MIN_INSYNC_REPLICAS"] == "2"
    assert environment["KAFKA_BROKER_RACK"] == "asia-northeast3-b"
    assert environment["KAFKA_ADVERTISED_LISTENERS"] == "PLAINTEXT://kafka-2:9092"
    assert environment["KAFKA_UNCLEAN_LEADER_ELECTION_ENABLE"] == "false"
    assert environment["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"
    assert environment["KAFKA_LOG_DIRS"] == "/var/lib/kafka/data"


@pytest.mark.parametrize(
    "missing", [name for name in NODE_SETTINGS if name.startswith("KAFKA_") and name != "KAFKA_BOOTSTRAP"]
)
def test_a_broker_that_is_not_told_who_it_is_does_not_start(missing: str) -> None:
    settings = {name: value for name, value in NODE_SETTINGS.items() if name != missing}
    answer = compose("--env-file", "/dev/null", "-f", "compose.kafka.yaml", "config", settings=settings)
    assert answer.returncode != 0
    assert missing in answer.stderr


def test_an_empty_password_is_one_clear_line(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("\n")
    for path in (secret, tmp_path / "nowhere"):
        answer = subprocess.run(
            [str(DOCKER / "entrypoint.sh"), "true"],
            env={"POSTGRES_PASSWORD_FILE": str(path), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert answer.returncode == 1
        assert answer.stderr.count("\n") == 1
        assert f"POSTGRES_PASSWORD_FILE={path}: " in answer.stderr
        assert "write the password into" in answer.stderr


def test_the_containers_dagster_instance_is_the_root_s_with_postgres() -> None:
    ours = yaml.safe_load((DOCKER / "dagster.yaml").read_text())
    root = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    assert {name: ours[name] for name in root} == root
    assert set(ours) - set(root) == {"storage", "compute_logs"}


def test_dockerfile_and_scripts_are_clean() -> None:
    tools = Path(sys.executable).parent
    subprocess.run([str(tools / "hadolint"), str(DOCKER / "Dockerfile")], check=True)
    scripts = [str(path) for path in DOCKER.rglob("*.sh")]
    assert len(scripts) >= 2
    subprocess.run([str(tools / "shellcheck"), *scripts], check=True)


def test_the_build_is_sent_what_it_copies_and_no_secrets() -> None:
    ignore = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    everything, *kept = [line for line in ignore if line and not line.startswith("#")]
    assert everything == "*"
    assert kept.pop() == "**/__pycache__"
    assert all(line.startswith("!") for line in kept)

    def sent(path: str) -> bool:
        folders = [path, *map(str, Path(path).parents)]
        return any(fnmatch(folder, line[1:]) for line in kept for folder in folders)

    copies = [line for line in (DOCKER / "Dockerfile").read_text().splitlines() if line.startswith("COPY ")]
    sources = [
        word for line in copies if "--from" not in line for word in line.split()[1:-1] if word[:2] != "--"
    ]
    assert len(sources) > 8
    for source in sources:
        assert sent(source), source
        assert list(ROOT.glob(source)), source
    for secret in (
        ".env",
        "docker/.env",
        "docker/secrets/postgres_password",
        "infra_terraform/terraform.tfstate",
    ):
        assert not sent(secret), secret


@pytest.mark.parametrize("name", ["compose.yaml", "compose.pipeline.yaml", "compose.dagster.yaml"])
def test_whoever_writes_to_a_volume_may(name: str) -> None:
    # A fresh volume takes the owner of the image's folder; those of a VM's disk its start-up script makes.
    step = next(step for step in image("ingest")["steps"] if "install -d" in step)
    (folders,) = re.findall(r"for folder in ([a-z ]+);", step)
    assert "install -d -o 1000 -g 1000" in step
    owned = {f"/var/lib/cryptostream/{folder}" for folder in folders.split()}
    for service, given in meaning(name)["services"].items():
        if str(given["image"]).startswith("cryptostream-"):
            assert given["read_only"] is True, service
            written = {v["target"] for v in given["volumes"] if v["type"] == "volume"}
            assert written <= owned, service
            assert all(v.get("read_only") for v in given["volumes"] if v["type"] == "bind"), service


@pytest.mark.parametrize("name", FILES[1:])
def test_what_a_vm_keeps_is_on_its_data_disk_in_a_folder_of_its_owner(name: str) -> None:
    volumes = resolve(name, None, NODE_SETTINGS)["volumes"]
    assert volumes
    for volume, given in volumes.items():
        assert given["driver_opts"]["device"] == f"/var/lib/cryptostream-data/{volume}", volume
    terraform = "".join(path.read_text() for path in (ROOT / "infra_terraform").glob("*.tf"))
    (made,) = re.findall(rf'compose_file += "{name}"\s+folders += {{([^}}]*)}}', terraform)
    owners = {folder: int(owner) for folder, owner in re.findall(r"([\w-]+) = (\d+)", made)}
    # The users of the images; all but these are ours.
    others = {"postgres": 999, "prometheus": 65534, "grafana": 472}
    assert owners == {volume: others.get(volume, 1000) for volume in volumes}


def test_both_images_run_as_nobody_special_and_without_a_compiler() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    for target in ("ingest", "dagster"):
        own = text[text.index(f"FROM runtime AS {target}") :]
        assert "USER 1000:1000" in own.split("FROM", 2)[1]
    runtime = text[text.index("AS runtime") :]
    assert "apt-get" not in runtime
    assert "pip install" not in runtime
    assert shutil.which("sh")


def test_every_setting_of_the_table_reaches_the_containers(tmp_path: Path) -> None:
    # What a container fixes: where its files are, and that it is reached from outside.
    fixed = {
        "METRICS_HOST": "0.0.0.0",
        "SPOOL_DIR": "/var/lib/cryptostream/spool",
        "PRODUCER_CONF": "/etc/cryptostream/producer.conf",
        "CONSUMER_CONF": "/etc/cryptostream/consumer.conf",
        "POSTGRES_PASSWORD": None,  # a file
        "POSTGRES_PORT": None,  # the postgres service's
    }
    names = [name.upper() for name in PipelineSettings.model_fields]
    own = tmp_path / "env"
    own.write_text("".join(f"{name}=./said-{name}\n" for name in names))
    services = resolve("compose.yaml", own)["services"]
    ingest = {name.upper() for name in IngestSettings.model_fields}
    # Each by the service that acts on it; what both halves act on, by both.
    producers = {"UPBIT_WS_URL", "UPBIT_REST_URL", "DEPTH", "SPOOL_DIR", "SPOOL_MAX_MB"}
    consumers = {"RAW_URL", "COMPRESSION", "LATENESS_S", "MEMORY_BUDGET_MB"}
    dagster = {"UPBIT_REST_URL", "DEPTH", "RAW_URL", "LATENESS_S", "MARKET_TIME_ZONE", "SOURCE"}
    wanted = {
        "producer": ingest - consumers,
        "consumer": ingest - producers,
        "dagster-code": set(names) - ingest | dagster,
    }
    assert set().union(*wanted.values()) == set(names)
    for service, settings in wanted.items():
        given = services[service]["environment"]
        for name in settings:
            assert given.get(name) == fixed.get(name, f"./said-{name}"), f"{service}: {name}"


def test_what_is_not_said_is_left_to_the_program(tmp_path: Path) -> None:
    own = tmp_path / "env"
    own.write_text("RAW_URL=gs://r/o\nPARQUET_URL=gs://p/o\n")
    given = resolve("compose.yaml", own)["services"]["dagster-code"]["environment"]
    environment = {name: value for name, value in given.items() if value is not None}
    with pytest.MonkeyPatch.context() as patch:
        for name in PipelineSettings.model_fields:
            patch.delenv(name.upper(), raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        settings = PipelineSettings(_env_file=None)
    for name, field in PipelineSettings.model_fields.items():
        if name.upper() not in {*environment, "POSTGRES_PASSWORD"}:
            assert getattr(settings, name) == field.default, name
    assert settings.lateness_s == 5.0
    assert settings.daily_root == "gs://p/o-daily"


def test_who_drains_is_given_the_time_for_it() -> None:
    for name in ("compose.yaml", "compose.pipeline.yaml"):
        services = meaning(name)["services"]
        for service, end_s in (("producer", producer.END_S), ("consumer", consumer.END_S)):
            assert float(str(services[service]["stop_grace_period"]).removesuffix("s")) > end_s, service


def test_who_has_failed_is_ended_by_its_health_check_within_its_time() -> None:
    for service in ("producer", "consumer"):
        check = meaning("compose.yaml")["services"][service]["healthcheck"]
        assert check["test"][-1] == "--end-failed"
        # Two questions, the pause between, and the end.
        wanted_s = 2 * monitor.ASK_TIMEOUT_S + monitor.ASK_AGAIN_S + monitor.END_S
        assert float(str(check["timeout"]).removesuffix("s")) > wanted_s + 5
        assert max(producer.END_S, consumer.END_S) < monitor.END_S


def test_kafka_is_the_one_that_the_tests_run() -> None:
    pom = (ROOT / "tests" / "kafka" / "pom.xml").read_text()
    version = re.search(r"<artifactId>kafka_[\d.]+</artifactId>\s*<version>([\d.]+)</version>", pom)
    assert version
    assert meaning("compose.kafka.yaml")["services"]["kafka"]["image"] == f"apache/kafka:{version[1]}"


def test_machines_wait_for_those_that_come_up_later() -> None:
    assert "--wait" in meaning("compose.pipeline.yaml")["services"]["topic"]["command"]
    assert "--wait" in meaning("compose.dagster.yaml")["services"]["migrate"]["command"]
    # On one machine they are healthy already: what does not work is said at once.
    services = meaning("compose.yaml")["services"]
    assert not {"--wait"} & {*services["topic"]["command"], *services["migrate"]["command"]}


@pytest.mark.parametrize("empty", [0, 1, 2])
def test_grafana_does_not_start_with_an_empty_password(tmp_path: Path, empty: int) -> None:
    entrypoint = meaning("compose.yaml")["services"]["grafana"]["entrypoint"]
    script, *secrets, end, program = entrypoint[1:]
    assert script.endswith("/require-secrets.sh")
    assert end == "--"
    assert program == "/run.sh"
    own = []
    for number, secret in enumerate(secrets, start=1):
        path = tmp_path / Path(secret).name
        path.write_text("\n" if number == empty else "something\n")
        own.append(str(path))
    command = ["sh", str(DOCKER / "grafana" / "require-secrets.sh"), *own, "--", "echo", "started"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if empty:
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert f"write the password into docker/secrets/{Path(own[empty - 1]).name}" in done.stderr
        assert not done.stdout
    else:
        assert (done.returncode, done.stdout) == (0, "started\n")
