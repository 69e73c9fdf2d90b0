"""The whole pipe as processes: broker, simulator, producer, consumer; and the three steps for a window."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cryptostream_dagster.local.ports import free_port
from cryptostream_dagster.resources import Platform
from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.steps import candle_step, parquet_step, seal_step
from cryptostream_dagster.window import Window
from tests.broker import Broker
from tests.postgres_fixture import TestDatabase

PRODUCER = "[upbit_producer1]\ntopic_name={topic}\npartition_number=0\ntickers={tickers}\n"
CONSUMER = "[gcs_consumer1]\ntopic_name={topic}\npartition_number=0\ngroup_name=g\n"


@dataclass
class WholePipe:
    """Settings of one pipe, and its processes."""

    root: Path
    environment: dict[str, str]
    simulator_port: int
    processes: ExitStack = field(default_factory=ExitStack)

    @contextmanager
    def running(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run one command of ours; SIGTERM must end it with status 0."""
        log = self.root / f"{arguments[0]}.log"
        process = subprocess.Popen(
            [sys.executable, "-m", "ingest_services", *arguments],
            env=self.environment,
            cwd=self.root,
            stderr=log.open("ab"),
        )
        try:
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0, log.read_text()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    def build(self, monkeypatch: pytest.MonkeyPatch, windows: list[Window]) -> PipelineSettings:
        """Seal windows, write their Parquet and their candles; return the settings to read them with."""
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        settings = PipelineSettings(_env_file=None)
        platform = Platform(settings)
        with platform.connect() as connection:
            for window in windows:
                seal_step(connection, platform.require_lake(), window, settings)
                parquet_step(connection, window, settings)
                candle_step(connection, window, settings)
        return settings


def whole_pipe(root: Path, broker: Broker, database: TestDatabase, tickers: str) -> WholePipe:
    """Write the conf files of a pipe with one partition, and say where everything is."""
    topic = broker.topic(1)
    (root / "producer.conf").write_text(PRODUCER.format(topic=topic, tickers=tickers))
    (root / "consumer.conf").write_text(CONSUMER.format(topic=topic))
    port = free_port()
    environment = {
        **os.environ,
        **database.environment,
        "SOURCE": "simulator",
        "KAFKA_BOOTSTRAP": broker.bootstrap,
        "UPBIT_WS_URL": f"ws://127.0.0.1:{port}/websocket/v1",
        "UPBIT_REST_URL": f"http://127.0.0.1:{port}",
        "RAW_URL": (root / "raw").as_uri(),
        "PARQUET_URL": (root / "parquet").as_uri(),
        "SPOOL_DIR": str(root / "spool"),
        "PRODUCER_CONF": str(root / "producer.conf"),
        "CONSUMER_CONF": str(root / "consumer.conf"),
        "LATENESS_S": "0",
        "PARTITIONS_START": "2021-01-01T00:00+0900",
    }
    return WholePipe(root, environment, port)


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    """Wait until something is so, or fail saying what was awaited."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)
