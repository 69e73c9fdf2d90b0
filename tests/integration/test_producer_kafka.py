"""Topics: made once, with exactly the partitions that were asked for; every failure is one clear line."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path

import pytest
from kafka import KafkaConsumer, KafkaProducer
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from cryptostream_dagster.local.broker import start_broker
from cryptostream_dagster.local.ports import free_port
from ingest_services import kafka
from ingest_services.errors import UserError
from ingest_services.kafka import TopicMissing, connect_admin, create_topics, topic_id
from tests.broker import Broker, running_broker


def test_creating_topics_twice_changes_nothing(broker: Broker) -> None:
    topic = broker.topic(3)
    before = topic_id(broker.bootstrap, topic)
    create_topics(broker.bootstrap, {topic: 3})
    assert topic_id(broker.bootstrap, topic) == before
    assert before[1] == (0, 1, 2)


def test_another_partition_count_is_refused(broker: Broker) -> None:
    topic = broker.topic(3)
    with pytest.raises(UserError, match=rf"topic {topic} has 3 partitions .* names 2"):
        create_topics(broker.bootstrap, {topic: 2})


def test_a_missing_topic_names_the_command_that_makes_it(broker: Broker) -> None:
    with pytest.raises(
        TopicMissing, match="topic nowhere does not exist; create it with: cryptostream topic"
    ):
        topic_id(broker.bootstrap, "nowhere")


def test_an_unreachable_broker_is_one_line_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka, "CONNECT_TIMEOUT_S", 0.5)
    with pytest.raises(UserError, match=r"KAFKA_BOOTSTRAP=127.0.0.1:1: no broker answers"):
        create_topics("127.0.0.1:1", {"orderbook": 1})


def test_a_client_that_found_no_broker_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    # An outage of hours is thousands of attempts.
    monkeypatch.setattr(kafka, "CONNECT_TIMEOUT_S", 0.1)

    def attempt() -> None:
        for kind in (KafkaAdminClient, KafkaProducer, KafkaConsumer):
            with pytest.raises(KafkaError):
                kafka.connect(kind, **kafka.client_config("127.0.0.1:1"))

    def held() -> tuple[int, int]:
        gc.collect()
        return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))

    attempt()
    before = held()
    for _ in range(5):
        attempt()
    assert held() <= before


@pytest.mark.parametrize("address", ["no such host:port", "", "127.0.0.1:notaport"])
def test_a_malformed_address_is_one_line(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(kafka, "CONNECT_TIMEOUT_S", 0.5)
    with pytest.raises(UserError, match="KAFKA_BOOTSTRAP="):
        topic_id(address, "orderbook")


def test_a_topic_made_again_has_another_id() -> None:
    with running_broker() as broker:
        create_topics(broker.bootstrap, {"orderbook": 2})
        admin = connect_admin(broker.bootstrap)
        try:
            first = topic_id(admin, "orderbook")
            broker.kill()
            broker.restart()
            create_topics(broker.bootstrap, {"orderbook": 2})
            deadline = time.monotonic() + 30
            while True:
                try:
                    second = topic_id(admin, "orderbook")
                    break
                except kafka.KafkaError:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
        finally:
            admin.close()
    assert first[0] != second[0]
    assert first[1] == second[1] == (0, 1)


def test_a_broker_does_not_start_on_a_taken_port(broker: Broker) -> None:
    with pytest.raises(UserError, match=f"port {broker.port} .* is in use"):
        start_broker(broker.port)


def test_a_free_port_is_free() -> None:
    with running_broker(free_port()) as broker:
        assert broker.process.poll() is None
