"""What the compose files say: start order, health, limits, secrets, and what the network sees of them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.deploy.compose import DOCKER, NODE_SETTINGS, ROOT, compose, image, published, resolve

FILES = ("compose.yaml", "compose.kafka.yaml", "compose.pipeline.yaml", "compose.dagster.yaml")
EXAMPLE = DOCKER / "env.example"
JOBS = {"buckets", "topic", "migrate"}


def meaning(name: str) -> dict[str, dict[str, object]]:
    if name == "compose.yaml":
        return resolve(name, EXAMPLE)  # type: ignore[return-value]
    return resolve(name, None, NODE_SETTINGS)  # type: ignore[return-value]


@pytest.mark.parametrize("name", FILES)
def test_every_service_has_limits_rotated_logs_and_a_health_check(name: str) -> None:
    services = meaning(name)["services"]
    for service, given in services.items():
        said = f"{name}: {service}"
        assert given["logging"]["options"]["max-size"], said
        assert "no-new-privileges:true" in given["security_opt"], said
        assert "privileged" not in given, said
        if service in JOBS:
            assert given["restart"] == "on-failure:5", said
            continue
        assert given["restart"] == "unless-stopped", said
        assert service in {"kafka-ui", "dagster-code"} or given["healthcheck"]["test"], said
        if service != "gcs":
            assert given["deploy"]["resources"]["limits"]["memory"], said
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


def test_without_profiles_there_is_no_fake_store_and_no_monitoring(tmp_path: Path) -> None:
    own = tmp_path / "env"
    own.write_text("RAW_URL=gs://r/o\nPARQUET_URL=gs://p/o\n")
    services = resolve("compose.yaml", own)["services"]
    assert not {"gcs", "prometheus", "grafana"} & services.keys()
    assert services["consumer"]["environment"]["STORAGE_EMULATOR_HOST"] == ""


def test_replicas_instead_of_numbered_services(tmp_path: Path) -> None:
    own = tmp_path / "env"
    own.write_text("RAW_URL=gs://r/o\nPARQUET_URL=gs://p/o\nPRODUCERS=2\nCONSUMERS=3\n")
    services = resolve("compose.yaml", own)["services"]
    assert services["producer"]["deploy"]["replicas"] == 2
    assert services["consumer"]["deploy"]["replicas"] == 3
    # Two producers may share the volume of the spool: each has a folder of its own in it.
    assert not any(published(services[name]) for name in ("producer", "consumer"))


def test_a_broker_of_three_replicates_to_all_and_acknowledges_with_two() -> None:
    environment = meaning("compose.kafka.yaml")["services"]["kafka"]["environment"]
    assert environment["KAFKA_DEFAULT_REPLICATION_FACTOR"] == "3"
    assert environment["KAFKA_MIN_INSYNC_REPLICAS"] == "2"
    assert environment["KAFKA_BROKER_RACK"] == "asia-northeast3-b"
    assert environment["KAFKA_ADVERTISED_LISTENERS"] == "PLAINTEXT://kafka-2:9092"
    assert environment["KAFKA_UNCLEAN_LEADER_ELECTION_ENABLE"] == "false"
    assert environment["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"
    assert environment["KAFKA_LOG_DIRS"] == "/var/lib/kafka/data"


@pytest.mark.parametrize("missing", ["KAFKA_NODE_ID", "KAFKA_HOST", "KAFKA_RACK", "KAFKA_CLUSTER_ID"])
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


def test_both_images_run_as_nobody_special_and_without_a_compiler() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    for target in ("ingest", "dagster"):
        own = text[text.index(f"FROM runtime AS {target}") :]
        assert "USER 1000:1000" in own.split("FROM", 2)[1]
    runtime = text[text.index("AS runtime") :]
    assert "apt-get" not in runtime
    assert "pip install" not in runtime
    assert shutil.which("sh")
