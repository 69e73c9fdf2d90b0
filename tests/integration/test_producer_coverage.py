"""Coverage that can be trusted: what a killed producer did not hear is a hole, with the right edges."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

import orjson
import pytest
from kafka import KafkaConsumer, TopicPartition

from ingest_services.consumer.entries import Entry, read_record
from ingest_services.kafka import client_config
from ingest_services.lake.coverage import Interval, covered_intervals, read_heartbeats
from tests.broker import Broker
from tests.scripted_exchange import ScriptedExchange, book, scripted_exchange, wait_until

# What the producer promises: a heartbeat at least so often.
HEARTBEAT_EVERY_US = 10_000_000


@contextmanager
def streaming(exchange: ScriptedExchange) -> Iterator[None]:
    """Send a book of each market every 50 ms to whoever is subscribed, until the block ends."""
    stop = threading.Event()

    def send() -> None:
        serial = 0
        while not stop.wait(0.05):
            serial += 1
            stamp = int(time.time() * 1000)
            exchange.send(book("KRW-BTC", stamp, serial), book("KRW-ETH", stamp, serial))

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class Producer:
    """The command line's own producer, in a process of its own."""

    def __init__(self, folder: Path, topic: str, broker: Broker, exchange: ScriptedExchange) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "producer.conf").write_text(
            f"[upbit_producer1]\ntopic_name={topic}\npartition_number=0\ntickers=BTC,ETH\n"
        )
        self._log = folder / "log"
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ingest_services", "produce", "--all"],
                cwd=folder,
                env={
                    **os.environ,
                    "PRODUCER_CONF": str(folder / "producer.conf"),
                    "KAFKA_BOOTSTRAP": broker.bootstrap,
                    "UPBIT_WS_URL": exchange.ws_url,
                    "UPBIT_REST_URL": exchange.rest_url,
                    "SPOOL_DIR": str(folder / "spool"),
                },
                stderr=log,
            )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0, self._log.read_text()


@pytest.fixture
def exchange() -> Iterator[ScriptedExchange]:
    with scripted_exchange() as running:
        yield running


def entries(broker: Broker, topic: str) -> list[Entry]:
    """Read what is in the topic by now, as the consumer does."""
    asked_ms = now_us() // 1000
    consumer = KafkaConsumer(
        **client_config(broker.bootstrap),
        enable_auto_commit=False,
        consumer_timeout_ms=1000,
        metrics_enabled=False,
    )
    try:
        where = TopicPartition(topic, 0)
        consumer.assign([where])
        consumer.seek_to_beginning(where)
        records = takewhile(lambda record: record.timestamp <= asked_ms, consumer)  # more comes all the time
        return [read_record(0, r.offset, r.timestamp, r.key, r.value, r.headers) for r in records]
    finally:
        consumer.close()


def coverage(found: list[Entry]) -> dict[str, list[Interval]]:
    data = b"".join(entry.line for entry in found if entry.kind == "heartbeat")
    return covered_intervals(read_heartbeats(data))


def received(found: list[Entry], ticker: str) -> list[int]:
    return [entry.received_us for entry in found if entry.kind == "book" and entry.ticker == ticker]


def now_us() -> int:
    return time.time_ns() // 1000


def test_a_killed_producer_leaves_a_hole_from_its_last_heartbeat_to_its_successors_first_book(
    broker: Broker, exchange: ScriptedExchange, tmp_path: Path
) -> None:
    topic = broker.topic()
    with streaming(exchange):
        first = Producer(tmp_path, topic, broker, exchange)
        # Long enough for a heartbeat: whatever is told at all is told before the kill.
        wait_until(lambda: "BTC" in coverage(entries(broker, topic)), "a heartbeat", 60)
        first.kill()
        killed_us = now_us()
        wait_until(lambda: exchange.clients == 0, "the end of the socket")
        time.sleep(2)  # the exchange goes on, and nobody listens
        second = Producer(tmp_path, topic, broker, exchange)
        wait_until(lambda: exchange.clients == 1, "a second subscription", 60)
        wait_until(lambda: len(received(entries(broker, topic), "BTC")) > 0, "its books")
        time.sleep(1)
        second.end()
    found = entries(broker, topic)
    covered = coverage(found)
    assert set(covered) == {"BTC", "ETH"}
    for ticker, intervals in covered.items():
        (begun_us, hole_us), (healed_us, ended_us) = intervals
        stamps = received(found, ticker)
        # The left edge is at most a heartbeat before the kill, and never after the last frame that arrived.
        last_us = max(stamp for stamp in stamps if stamp <= killed_us)
        assert killed_us - HEARTBEAT_EVERY_US <= hole_us <= last_us
        # The right edge is the first book of the second process, the snapshot; never before it.
        next_us = min(stamp for stamp in stamps if stamp > killed_us)
        assert next_us <= healed_us <= next_us + HEARTBEAT_EVERY_US
        assert stamps[0] <= begun_us <= stamps[0] + HEARTBEAT_EVERY_US
        assert stamps[-1] - HEARTBEAT_EVERY_US <= ended_us


def test_a_killed_producer_beside_another_leaves_no_hole(
    broker: Broker, exchange: ScriptedExchange, tmp_path: Path
) -> None:
    topic = broker.topic()
    with streaming(exchange):
        killed = Producer(tmp_path / "a", topic, broker, exchange)
        other = Producer(tmp_path / "b", topic, broker, exchange)
        wait_until(lambda: exchange.clients == 2, "two subscriptions", 60)
        wait_until(lambda: "BTC" in coverage(entries(broker, topic)), "a heartbeat", 60)
        before = len(exchange.sent)
        killed.kill()
        killed_us = now_us()
        wait_until(lambda: exchange.clients == 1, "the end of one socket")
        after = len(exchange.sent)
        wait_until(lambda: len(exchange.sent) > after + 40, "a bit more")
        published = set(exchange.sent[before : len(exchange.sent)])
        other.end()
    found = entries(broker, topic)
    arrived = {entry.line.partition(b',"book":')[2][:-2] for entry in found if entry.kind == "book"}
    assert published <= arrived, "killing either loses nothing"
    for ticker, intervals in coverage(found).items():
        ((begun_us, ended_us),) = intervals
        assert begun_us <= min(received(found, ticker)) + HEARTBEAT_EVERY_US
        assert ended_us > killed_us
    assert len({orjson.loads(entry.line)["connection"] for entry in found}) == 2
