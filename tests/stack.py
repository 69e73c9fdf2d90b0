"""Pytest plugin: one local stack for the session, `cryptostream dev` as a person would start it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

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
TICKERS = ("BTC", "ETH", "USDT-XRP")


class LocalStack:
    """`cryptostream dev` on a state folder of the tests; started, stopped and killed at will."""

    def __init__(self, root: Path) -> None:
        self.state = root / "state"
        self.output = root / "output.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.state.mkdir()
        (self.state / "producer.conf").write_text(PRODUCER_CONF)

    def command(self, *options: str) -> list[str]:
        return [sys.executable, "-m", "ingest_services", "dev", "--state", str(self.state), *options]

    def start(self) -> None:
        if self.process is not None:
            return
        self.output.unlink(missing_ok=True)
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                self.command(), stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )
        until(lambda: "Dagster is at" in self.said() or self.ended(), 60, self.said)
        assert not self.ended(), self.said()

    def ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def stop(self, number: signal.Signals = signal.SIGINT) -> tuple[int, float]:
        """Send a signal; return the exit status and the seconds it took."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(number)
        return self.wait(20), time.monotonic() - began

    def wait(self, timeout_s: float) -> int:
        assert self.process is not None
        status = self.process.wait(timeout_s)
        self.process = None
        return status

    def said(self) -> str:
        return self.output.read_text()

    def pids(self) -> dict[str, int]:
        return {entry["name"]: entry["pid"] for entry in json.loads((self.state / "pids.json").read_text())}

    def url(self) -> str:
        url: str = json.loads((self.state / "lock").read_text())["url"]
        return url

    def family(self) -> list[psutil.Process]:
        """The stack's own process and everything that it started, at any depth."""
        assert self.process is not None
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]


def until(condition: Callable[[], object], timeout_s: float, explain: Callable[[], str] = lambda: "") -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s; {explain()}"
        time.sleep(0.1)


@pytest.fixture(scope="session")
def _stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    stack = LocalStack(tmp_path_factory.mktemp("stack"))
    yield stack
    if stack.process is not None:
        status, _ = stack.stop()
        assert status == 0, stack.said()


@pytest.fixture
def local_stack(_stack: LocalStack) -> LocalStack:
    """The session's stack, running; a test that stops it leaves the next one to start it again."""
    _stack.start()
    return _stack


def clean_environment() -> dict[str, str]:
    """The environment without settings that would reach a stack's clients."""
    ours = (
        *("POSTGRES_", "KAFKA_", "UPBIT_", "RAW_URL", "PARQUET_URL", "DAILY_URL", "SOURCE", "PRODUCER_"),
        "CONSUMER_",
    )
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}
