"""Pytest plugin: the embedded broker; the real Kafka protocol on a free loopback port."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from cryptostream_dagster.local.broker import start_broker, stop_broker
from cryptostream_dagster.local.ports import LOOPBACK, free_port
from ingest_services.kafka import create_topics


@dataclass
class Broker:
    """A running broker."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def bootstrap(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    def topic(self, partitions: int = 1, name: str = "orderbook") -> str:
        """Create a topic of a name that no other test has."""
        topic = f"{name}-{uuid.uuid4().hex[:8]}"
        create_topics(self.bootstrap, {topic: partitions})
        return topic

    def kill(self) -> None:
        """Take the broker away at once, with everything it held."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """Start another one, empty, on the same port."""
        self.process = start_broker(self.port)


@contextmanager
def running_broker(port: int | None = None) -> Iterator[Broker]:
    """Run a broker for the length of a `with` block; a test that kills it runs one of its own."""
    number = port or free_port()
    broker = Broker(number, start_broker(number))
    try:
        yield broker
    finally:
        stop_broker(broker.process)


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """One broker for the whole session: give each test a topic of its own (`broker.topic()`)."""
    with running_broker() as running:
        yield running
