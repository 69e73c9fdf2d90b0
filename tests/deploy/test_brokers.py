"""The brokers of compose.kafka.yaml, with Kafka itself: three nodes configured by the file's environment."""

from __future__ import annotations

from pathlib import Path

import pytest
from kafka import KafkaProducer
from kafka.errors import KafkaError

from ingest_services import kafka
from ingest_services.backoff import keep_trying
from tests.deploy.compose import NODE_SETTINGS, resolve
from tests.kafka_cluster import NODES, running_cluster

pytestmark = pytest.mark.soak

# Where a node differs from its peers: fields that `Cluster.prepare` fills in.
FIELDS = {
    "KAFKA_NODE_ID": "{node}",
    "KAFKA_QUORUM_VOTERS": "{voters}",
    "KAFKA_HOST": "{host}",
    "KAFKA_RACK": "zone-{node}",
}
# Of the image's start script, and not of the broker.
NOT_PROPERTIES = {"KAFKA_HEAP_OPTS"}


def configuration() -> str:
    """Return the broker's properties as the image makes them of the file's environment."""
    given = resolve("compose.kafka.yaml", None, {**NODE_SETTINGS, **FIELDS})["services"]["kafka"][
        "environment"
    ]
    lines = [
        f"{name.removeprefix('KAFKA_').lower().replace('_', '.')}={value}"
        for name, value in given.items()
        if name.startswith("KAFKA_") and name not in NOT_PROPERTIES
    ]
    return (
        "\n".join(lines)
        .replace("PLAINTEXT://:9092", "PLAINTEXT://{host}:{port}")
        .replace("{host}:9092", "{host}:{port}")
        .replace("CONTROLLER://:9093", "CONTROLLER://{host}:{controller_port}")
        .replace("/var/lib/kafka/data", "{data}")
    )


def send(bootstrap: str, topic: str, within_s: int = 90) -> int:
    """Return the offset at which a record was acknowledged by all that must have it."""
    producer = KafkaProducer(
        **{**kafka.client_config(bootstrap), "request_timeout_ms": 5000},
        acks="all",
        delivery_timeout_ms=within_s * 1000,
    )
    try:
        return int(producer.send(topic, b"x").get(timeout=within_s + 30).offset)
    finally:
        producer.close(timeout=1)


@pytest.mark.timeout(300)
def test_brokers_of_the_file_go_on_without_one_and_refuse_without_two(tmp_path: Path) -> None:
    with running_cluster(tmp_path, configuration(), NODES[:2]) as cluster:
        # Created as `cryptostream topic --wait` does. How often a record is kept is left to the cluster,
        # which is not whole yet: its machines come up in any order.
        said: list[str] = []

        def tell(line: str) -> None:
            said.append(line)
            if "fewer brokers than a topic has replicas" in line and NODES[2] not in started:
                cluster.start(NODES[2])
                started.add(NODES[2])

        started = set(NODES[:2])
        keep_trying(
            lambda: kafka.create_topics(cluster.bootstrap, {"orderbook": 1}), kafka.Unreachable, 120, tell
        )
        assert started == set(NODES), said
        cluster.wait_whole()
        with cluster.admin() as admin:
            (told,) = admin.describe_topics(["orderbook"])
            (partition,) = told["partitions"]
        assert sorted(partition["replica_nodes"]) == list(NODES)
        assert send(cluster.bootstrap, "orderbook") == 0
        followers = [node for node in NODES if node != partition["leader_id"]]
        cluster.kill(followers[0])
        assert send(cluster.bootstrap, "orderbook") == 1
        # One of three is left: nothing is acknowledged that only one disk has.
        cluster.kill(followers[1])
        with pytest.raises(KafkaError):
            send(cluster.bootstrap, "orderbook", within_s=15)
