"""What infra_terraform/ says of the lake, the files and the settings is what the code and docker/ have."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from cryptostream_dagster.expire import ROOMS
from cryptostream_dagster.transforms.schema import book_columns
from ingest_services.lake import layout
from tests.deploy.compose import DOCKER, NODE_SETTINGS, ROOT, resolve

SOURCE = ROOT / "infra_terraform"


def test_what_expires_in_the_bucket_is_what_expires_in_a_folder_and_no_commit() -> None:
    (found,) = re.findall(
        r'for kind in \[(.*?)\] : "\$\{local\.prefix\}/', (SOURCE / "storage.tf").read_text()
    )
    rooms = re.findall(r'"(.*?)"', found)
    assert rooms == list(ROOMS)
    kept = (layout.chain_path(1), layout.commit_path(1, 0, 0), layout.progress_path(1, 0), layout.LAKE_FILE)
    for path in kept:
        assert not path.startswith(tuple(rooms)), path


def test_what_may_be_replaced_is_what_the_code_replaces() -> None:
    text = (SOURCE / "iam.tf").read_text()
    assert f"/objects/${{local.prefix}}/{layout.PROGRESS}" in text
    replacing = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "ingest_services").rglob("*.py")
        if re.search(r"store\.replace\(", path.read_text())
    ]
    assert replacing == ["ingest_services/lake/chain.py"]
    assert "store.replace(layout.progress_path(" in (ROOT / replacing[0]).read_text()


def test_roles_of_the_lake_are_those_that_its_pages_name() -> None:
    pages = "".join((ROOT / "docs" / name).read_text() for name in ("commit-chain.md", "windows.md"))
    roles = set(re.findall(r"roles/storage\.\w+", (SOURCE / "iam.tf").read_text()))
    assert roles == set(re.findall(r"roles/storage\.\w+", pages))


@pytest.mark.parametrize("depth", [1, 15, 30])
def test_bigquery_s_table_has_the_columns_of_the_parquet_and_the_names_of_its_folders(depth: int) -> None:
    text = (SOURCE / "orderbook.bigquery.sql").read_text()
    loop = re.search(r"^%\{ for level in levels ~\}\n(.*?)^%\{ endfor ~\}\n", text, re.MULTILINE | re.DOTALL)
    assert loop
    levels = "".join(loop[1].replace("${level}", str(level)) for level in range(1, depth + 1))
    table, folders, _ = re.split(
        r"^WITH PARTITION COLUMNS|^OPTIONS", text.replace(loop[0], levels), flags=re.M
    )
    named = dict(re.findall(r"^  `(\w+)` (\w+),?$", table, re.MULTILINE))
    kinds = {
        "string": "STRING",
        "timestamp": "TIMESTAMP",
        "double": "FLOAT64",
        "int32": "INT64",
        "int64": "INT64",
    }
    # BigQuery refuses a column that is both in the files and in their path.
    wanted = {column.name: kinds[column.kind] for column in book_columns(depth) if column.name != "ticker"}
    assert list(named.items()) == list(wanted.items())
    example = "ticker=BTC/year=2025/month=02/day=02/hour=16/BTC-202502021605.parquet"
    assert example in (ROOT / "README.md").read_text()
    in_path = [part.partition("=")[0] for part in example.split("/")[:-1]]
    assert re.findall(r"^  `(\w+)` ", folders, re.MULTILINE) == in_path


def files_given(role: str) -> set[str]:
    """Return which files of docker/ Terraform gives a machine."""
    text = (SOURCE / ("kafka.tf" if role == "kafka" else "compute.tf")).read_text()
    if role == "dagster":  # all but Postgres'
        assert 'if !startswith(name, "postgres/")' in text
        yaml_files = {path.name for path in DOCKER.glob("*.yaml")}
        folders = {
            str(path.relative_to(DOCKER))
            for folder in ("prometheus", "grafana")
            for path in (DOCKER / folder).rglob("*")
            if path.is_file()
        }
        return yaml_files | folders
    own = next(
        found
        for found in re.findall(r"for name in \[(.*?)\] : \"docker/", text)
        if f"compose.{role}" in found
    )
    return set(re.findall(r'"(.*?)"', own))


def test_what_a_machine_is_told_fits_into_its_metadata() -> None:
    """Google takes 256 KiB a value."""
    told = sum(len(json.dumps((DOCKER / name).read_text())) for name in files_given("dagster"))
    assert told < 200 * 1024


@pytest.mark.parametrize("role", ["kafka", "pipeline", "dagster"])
def test_a_machine_has_every_file_and_folder_that_its_compose_file_mounts(role: str) -> None:
    meant = resolve(f"compose.{role}.yaml", None, {**NODE_SETTINGS, "DATA_DIR": "/data"})
    given = files_given(role)
    assert {"services.yaml", f"compose.{role}.yaml"} <= given
    for service, what in meant["services"].items():
        for volume in what.get("volumes", ()):
            if volume["type"] == "bind" and volume["source"].startswith(f"{DOCKER}/"):
                path = volume["source"].removeprefix(f"{DOCKER}/")
                assert any(file == path or file.startswith(f"{path}/") for file in given), (
                    f"{service}: {path}"
                )
    bound = {
        volume["driver_opts"]["device"].removeprefix("/data/")
        for volume in meant["volumes"].values()
        if "driver_opts" in volume
    }
    text = (SOURCE / ("kafka.tf" if role == "kafka" else "compute.tf")).read_text()
    module = text[text.index(f'module "{role}"') :]
    folders = re.search(r"folders\s+= \{(.*?)\}", module)
    assert folders
    assert bound == set(re.findall(r"([\w-]+) = \d+", folders[1]))


def test_what_terraform_says_itself_no_person_says_too() -> None:
    text = (SOURCE / "compute.tf").read_text()
    refused = set(re.findall(r'"([A-Z_]+)"', text[text.index("settable =") : text.index("secret_ids =")]))
    said = set(re.findall(r"^\s+([A-Z_]+)\s+= ", text, re.MULTILINE)) | {"RAW_RETENTION_DAYS"}
    # The start-up script's own, which no compose file reads; what begins with KAFKA_ is refused as such.
    assert said - refused == {"REGISTRY_HOST", "KAFKA_BOOTSTRAP"}
    assert "ALERT_WEBHOOK_URL" in refused


def test_every_setting_can_reach_the_machines() -> None:
    compose_files = "".join(
        (DOCKER / name).read_text() for name in files_given("pipeline") | files_given("dagster")
    )
    read = set(re.findall(r"\$\{([A-Z_]+)", compose_files))
    read |= set(re.findall(r"^ +([A-Z_]+):$", compose_files, re.MULTILINE))
    settings = re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(settings) > 25
    # The same on every machine: a container's own address and folder, a file, Postgres' own port.
    fixed = {"METRICS_HOST", "SPOOL_DIR", "POSTGRES_PASSWORD", "POSTGRES_PORT"}
    assert set(settings) - read == fixed


def test_the_cluster_s_dagster_is_the_containers_with_a_pod_for_each_run() -> None:
    values = yaml.safe_load((SOURCE / "gke" / "values.yaml").read_text())
    containers = yaml.safe_load((DOCKER / "dagster.yaml").read_text())
    assert values["runLauncher"]["type"] == "K8sRunLauncher"
    assert values["global"]["postgresqlSecretName"] == "cryptostream-postgres"
    coordinator = values["dagsterDaemon"]["runCoordinator"]["config"]["queuedRunCoordinator"]
    limits = {(limit["key"], limit.get("value")) for limit in coordinator["tagConcurrencyLimits"]}
    runs = containers["concurrency"]["runs"]
    assert limits == {(limit["key"], limit.get("value")) for limit in runs["tag_concurrency_limits"]}
    assert (
        coordinator["dequeueIntervalSeconds"]
        == containers["run_coordinator"]["config"]["dequeue_interval_seconds"]
    )
    monitoring = values["dagsterDaemon"]["runMonitoring"]
    assert monitoring["maxRuntimeSeconds"] == containers["run_monitoring"]["max_runtime_seconds"]
    assert (
        values["postgresql"]["postgresqlScheme"] == containers["storage"]["postgres"]["postgres_db"]["scheme"]
    )
    (deployment,) = values["dagster-user-deployments"]["deployments"]
    # The entry point that reads secrets' files is the image's; a pod's come as variables.
    assert deployment["envSecrets"] == [{"name": values["global"]["postgresqlSecretName"]}]
