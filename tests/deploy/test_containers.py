"""The services of compose.yaml, run without Docker: what containers would start, in their order.

Kafka, Postgres and the object store are the tests' own servers; everything of ours is started from what the
file says. So neither a command, a setting, a health check nor a condition of the file can rot unseen.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from cryptostream_dagster.local.ports import LOOPBACK, answers, free_port
from cryptostream_dagster.local.status import fetch_json
from tests.broker import running_broker
from tests.deploy import dashboards
from tests.deploy.compose import DOCKER, Containers, image, resolve, running
from tests.deploy.prometheus_server import Prometheus, running_prometheus
from tests.fake_gcs import FakeGcs
from tests.postgres_fixture import TestDatabase

PRODUCER_CONF = """
[upbit_producer1]
topic_name=orderbook
partition_number=0
tickers=BTC,ETH

[upbit_producer2]
topic_name=orderbook
partition_number=1
tickers=USDT-XRP
"""
CONSUMER_CONF = """
[gcs_consumer1]
topic_name=orderbook
partition_number=0
group_name=gcs_consumer

[gcs_consumer2]
topic_name=orderbook
partition_number=1
group_name=gcs_consumer
"""
METRICS_PORTS = {"producer": "9101", "consumer": "9102"}
# What has no series before it happens, or before a claim was looked at, which is once a minute.
EVENTS = {
    "cryptostream_consumer_claim_behind_seconds",
    "cryptostream_producer_reconnects_total",
    "cryptostream_producer_spool_oldest_age_seconds",
    "cryptostream_consumer_store_retries_total",
}
OUTSIDE = frozenset({"kafka", "kafka-ui", "postgres", "gcs"})
HISTORY_MINUTES = 12


@pytest.fixture
def exchange() -> Iterator[int]:
    """A simulated exchange with some minutes of history; its port."""
    port = free_port()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "ingest_services", "simulate", "--port", str(port), "--rate", "1"),
            *("--tickers", "BTC,ETH,USDT-XRP", "--history-minutes", str(HISTORY_MINUTES)),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while not answers(port):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def containers(
    tmp_path: Path, exchange: int, gcs: FakeGcs, database: TestDatabase, dagster_database: str
) -> Iterator[Containers]:
    raw, parquet = (f"{kind}-{uuid.uuid4().hex[:8]}" for kind in ("raw", "parquet"))
    for name, text in (("producer.conf", PRODUCER_CONF), ("consumer.conf", CONSUMER_CONF)):
        (tmp_path / name).write_text(text)
    env_file = tmp_path / "env"
    start = time.strftime("%Y-%m-%dT%H:00+0900", time.gmtime(time.time() + 9 * 3600 - 3600))
    env_file.write_text(
        f"COMPOSE_PROFILES=fake-gcs\nSTORAGE_EMULATOR_HOST=http://gcs:4443\nSOURCE=simulator\n"
        f"RAW_URL=gs://{raw}/orderbook\nPARQUET_URL=gs://{parquet}/orderbook\nPARTITIONS_START={start}\n"
        f"UPBIT_WS_URL=ws://127.0.0.1:{exchange}/websocket/v1\nUPBIT_REST_URL=http://127.0.0.1:{exchange}\n"
        f"POSTGRES_USER={database.user}\nPOSTGRES_DB={database.name}\nDAGSTER_POSTGRES_DB={dagster_database}\n"
        f"PRODUCER_CONF={tmp_path / 'producer.conf'}\nCONSUMER_CONF={tmp_path / 'consumer.conf'}\n"
    )
    (tmp_path / "secret").write_text(database.password or "none")
    (tmp_path / "reader").write_text("it's only for reading\n")
    for folder in ("spool", "logs", "scratch", "dagster"):
        (tmp_path / "var" / folder).mkdir(parents=True)
    words = {old: str(free_port()) for old in ("9101", "9102", "4000", "3000")} | {
        "entrypoint.sh": str(DOCKER / "entrypoint.sh")
    }
    with running_broker() as broker:
        replace = {
            "kafka:9092": broker.bootstrap,
            "http://gcs:4443": gcs.url,
            "/etc/cryptostream/producer.conf": str(tmp_path / "producer.conf"),
            "/etc/cryptostream/consumer.conf": str(tmp_path / "consumer.conf"),
            "/run/secrets/postgres_password": str(tmp_path / "secret"),
            "/run/secrets/grafana_reader_password": str(tmp_path / "reader"),
            "/etc/cryptostream/create-databases.sh": str(DOCKER / "postgres" / "create-databases.sh"),
            "/var/lib/cryptostream": str(tmp_path / "var"),
            "0.0.0.0": LOOPBACK,
            "127.0.0.1:3000": f"{LOOPBACK}:{words['3000']}",
        }
        services = resolve("compose.yaml", env_file)["services"]
        for name in ("POSTGRES_HOST", "PGHOST", "DAGSTER_CODE_HOST"):
            for given in services.values():
                if name in (given.get("environment") or {}):
                    given["environment"][name] = LOOPBACK
        for name in ("dagster.yaml", "workspace.yaml"):
            text = (
                (DOCKER / name).read_text().replace("5432", str(database.port)).replace("4000", words["4000"])
            )
            (tmp_path / "var" / "dagster" / name).write_text(
                text.replace("/var/lib/cryptostream", str(tmp_path / "var"))
            )
        extra = {
            **dict.fromkeys(("POSTGRES_PORT", "PGPORT"), str(database.port)),
            **dict.fromkeys(("SENSOR_INTERVAL_S", "SETTLE_S"), "2"),
        }
        ours = Containers(services, replace, OUTSIDE, tmp_path, words, extra)
        with running(ours):
            yield ours


def ask_everything(prometheus: Prometheus) -> None:
    """Have Prometheus ask the processes all that dashboards and alarms ask."""
    for query in dashboards.of_prometheus():
        series = prometheus.series(query.text)
        if query.where.startswith("rules.yml"):
            continue
        assert series or set(dashboards.METRIC.findall(query.text)) <= EVENTS, f"{query.where}: no answer"
        for labels in series:
            assert query.told_labels <= labels.keys(), f"{query.where}: {labels}"
    for alarm in dashboards.alarms():
        for part in alarm["data"]:
            assert "expr" not in part["model"] or prometheus.series(part["model"]["expr"]) == []
    told = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in told} == {rule["alert"] for rule in dashboards.rules()}
    for rule in told:
        assert rule["health"] == "ok", rule
        assert rule["state"] != "firing", rule


@pytest.mark.timeout(300)
def test_what_the_containers_start_makes_candles_and_stops_in_order(
    containers: Containers, database: TestDatabase, tmp_path: Path
) -> None:
    containers.up()
    url = f"http://{LOOPBACK}:{containers.words['3000']}"
    assert fetch_json(f"{url}/server_info") is not None
    exported: set[str] = set()
    for port in METRICS_PORTS.values():
        metrics = f"http://{LOOPBACK}:{containers.words[port]}/metrics"
        with urllib.request.urlopen(metrics, timeout=10) as answer:
            exported |= dashboards.metric_names(answer.read().decode())
    for query in dashboards.of_prometheus():
        assert exported.issuperset(dashboards.METRIC.findall(query.text)), query
    if shutil.which("prometheus") or os.environ.get("CI"):
        ports = {job: int(containers.words[port]) for job, port in METRICS_PORTS.items()}
        with running_prometheus(tmp_path, ports) as prometheus:
            ask_everything(prometheus)
    deadline = time.monotonic() + 120
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        while not (
            found := connection.execute("SELECT DISTINCT ticker FROM ohlc_5m_ticker ORDER BY 1").fetchall()
        ):
            assert time.monotonic() < deadline, containers.said("dagster-daemon", "dagster-code", "consumer")
            time.sleep(0.5)
    assert [row[0] for row in found] == ["BTC", "ETH", "USDT-XRP"]
    # The root file system of a container is read-only: whatever is written is on a volume, or in memory.
    inside = Path(image("dagster")["env"]["DAGSTER_HOME"])
    mounts = {mount.partition(":")[0] for mount in containers.services["dagster-code"]["tmpfs"]}
    home = containers.folder / "var" / "dagster"
    written = {str(inside / path.name) for path in home.iterdir()} - mounts
    assert written == {str(inside / name) for name in ("dagster.yaml", "workspace.yaml")}
    assert list((containers.folder / "var" / "logs").rglob("*.err"))
    statuses = containers.down()
    assert {name: statuses[name] for name in ("producer", "consumer")} == {"producer": 0, "consumer": 0}
