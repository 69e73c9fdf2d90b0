"""The processes that a benchmark of the producer runs, and what it reads of them."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from kafka import KafkaConsumer, TopicPartition
from rich.console import Console

from cryptostream_dagster.local.broker import start_broker, stop_broker
from cryptostream_dagster.local.ports import LOOPBACK, answers, free_port
from ingest_services import kafka
from ingest_services.record import BOOK, Heartbeat
from load.frames import DEPTH, MARKETS, Frames

SOURCE = Path(__file__).with_name("source.py")
PREFIX = "cryptostream_producer_"
TICKS = os.sysconf("SC_CLK_TCK")


def machine() -> str:
    """Say how busy the machine was before the run: absolute figures hold for an idle one, ratios for any."""
    return f"{os.cpu_count()} cores, load average before the run {os.getloadavg()[0]:.1f}"


def console() -> Console:
    """Return where tables go: as wide as they are when nobody watches, who could widen a terminal."""
    return Console(width=None if sys.stdout.isatty() else 150)


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """End a process with the `with` block, in good order if it lets us."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@dataclass
class Broker:
    bootstrap: str
    process: subprocess.Popen[bytes]

    def topic(self, name: str) -> str:
        kafka.create_topics(self.bootstrap, {name: 1})
        return name


@contextmanager
def broker() -> Iterator[Broker]:
    port = free_port()
    process = start_broker(port)
    try:
        yield Broker(f"{LOOPBACK}:{port}", process)
    finally:
        process.send_signal(signal.SIGCONT)
        stop_broker(process)


class Source:
    """The running frame source."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self.process = process
        self._lines = process.stdout
        self.url = f"ws://{LOOPBACK}:{json.loads(self._lines.readline())['port']}/websocket/v1"

    def sent(self) -> int:
        """Wait for the end of the connection; return how many frames were sent over it."""
        return int(json.loads(self._lines.readline())["sent"])


@contextmanager
def source(count: int, pace: float = 0.0) -> Iterator[Source]:
    options = ["--count", str(count), "--pace", str(pace)]
    with ended(subprocess.Popen([sys.executable, str(SOURCE), *options], stdout=subprocess.PIPE)) as process:
        yield Source(process)


class Producer:
    """A producer process and the numbers that it tells."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self._url = f"http://{LOOPBACK}:{port}/metrics"

    def metrics(self) -> dict[str, float]:
        """Return its metrics by name, without the section's label; {} if it is not up yet."""
        try:
            with urllib.request.urlopen(self._url, timeout=10) as answer:
                text = answer.read().decode()
        except OSError:
            if self.process.poll() is not None:
                raise SystemExit(f"the producer ended with status {self.process.returncode}") from None
            return {}
        found: dict[str, float] = {}
        for line in text.splitlines():
            if line.startswith(PREFIX):
                name, value = line.removeprefix(PREFIX).rsplit(" ", 1)
                found[name.replace('section="bench"', "").replace(",}", "}").replace("{}", "")] = float(value)
        return found

    def wait(self, name: str, least: float, timeout_s: float = 600.0) -> dict[str, float]:
        """Wait until a metric is at least a number; return all of them."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            metrics = self.metrics()
            if metrics.get(name, 0) >= least:
                return metrics
            if time.monotonic() > deadline_s:
                raise SystemExit(f"waited {timeout_s:.0f} s for {name} >= {least:.0f}: {metrics}")
            time.sleep(0.1)

    def memory_mib(self, field: str = "VmRSS") -> float:
        """Return its resident memory now, or its peak (`VmHWM`)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field)) / 1024

    def cpu_s(self) -> float:
        """Return the processor time that it took so far."""
        return cpu_s(self.process.pid)


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@contextmanager
def producer(
    bootstrap: str, topic: str, ws_url: str, rest_url: str, markets: list[str], folder: Path
) -> Iterator[Producer]:
    """Run `cryptostream produce` with one section, the way it is deployed."""
    folder.mkdir(parents=True, exist_ok=True)
    conf = folder / "producer.conf"
    conf.write_text(f"[bench]\ntopic_name={topic}\npartition_number=0\ntickers={','.join(markets)}\n")
    port = free_port()
    env = {
        **os.environ,
        "KAFKA_BOOTSTRAP": bootstrap,
        "UPBIT_WS_URL": ws_url,
        "UPBIT_REST_URL": rest_url,
        "PRODUCER_CONF": str(conf),
        "SPOOL_DIR": str(folder / "spool"),
        "DEPTH": "30",
        "SOURCE": "simulator",
    }
    command = [sys.executable, "-m", "ingest_services", "produce", "--all", "--metrics-port", str(port)]
    with (folder / "producer.log").open("ab") as log:
        process = subprocess.Popen(command, env=env, cwd=folder, stderr=log)
    with ended(process):
        yield Producer(process, port)


@contextmanager
def simulator(pace: float, folder: Path, *options: str) -> Iterator[Simulator]:
    """Run `cryptostream simulate` with the whole exchange's markets and a journal."""
    folder.mkdir(parents=True, exist_ok=True)
    port, journal = free_port(), folder / "journal.jsonl"
    command = [sys.executable, "-m", "ingest_services", "simulate", "--port", str(port)]
    command += ["--markets", str(MARKETS), "--total-rate", str(pace), "--history-minutes", "0"]
    command += ["--depth", str(DEPTH), "--journal", str(journal), *options]
    with ended(subprocess.Popen(command, stderr=subprocess.DEVNULL)) as process:
        running = Simulator(process, f"{LOOPBACK}:{port}", journal)
        while not answers(port):
            if process.poll() is not None:
                raise SystemExit(f"the simulator ended with status {process.returncode}")
            time.sleep(0.05)
        with urllib.request.urlopen(f"{running.rest_url}/v1/market/all") as answer:
            running.markets = [entry["market"] for entry in json.load(answer)]
        yield running


class Simulator:
    """A running simulator and what it wrote down."""

    def __init__(self, process: subprocess.Popen[bytes], address: str, journal: Path) -> None:
        self.process = process
        self.ws_url = f"ws://{address}/websocket/v1"
        self.rest_url = f"http://{address}"
        self.markets: list[str] = []
        self.journal = journal

    def sent(self) -> dict[str, list[bytes]]:
        """Return the digests of all frames that were sent, in order, by the connection's ticket."""
        frames: dict[str, list[bytes]] = {}
        with self.journal.open("rb") as lines:
            for text in lines:
                if b'"kind":"sent"' in text:
                    line = orjson.loads(text)
                    if line["what"] == "book":
                        frames.setdefault(line["ticket"], []).append(digest(line["frame"].encode()))
        return frames


def digest(frame: bytes) -> bytes:
    return hashlib.blake2b(frame, digest_size=8).digest()


@dataclass
class Delivered:
    """What stands in the topic, compared with what was sent.

    Attributes:
        books: Records that are frames.
        missing: Frames that were sent and are not there.
        wrong: Frames that are there more than once, in another order or with other bytes.
        covered: By connection and ticker, from when to when its heartbeats claim it, seconds since the epoch.
    """

    books: int
    missing: int
    wrong: int
    covered: dict[str, dict[str, tuple[float, float]]]

    @property
    def verdict(self) -> str:
        return f"{self.missing} missing, {self.wrong} wrong" if self.missing or self.wrong else "exact"


def read_topic(bootstrap: str, topic: str) -> Iterator[Any]:
    """Yield all records of partition 0, up to now."""
    consumer = KafkaConsumer(
        **kafka.client_config(bootstrap), enable_auto_commit=False, metrics_enabled=False
    )
    where = TopicPartition(topic, 0)
    try:
        consumer.assign([where])
        consumer.seek_to_beginning(where)
        silent = 0
        while silent < 3:
            records = consumer.poll(timeout_ms=300).get(where, [])
            silent = 0 if records else silent + 1
            yield from records
    finally:
        consumer.close()


def read_books(
    bootstrap: str, topic: str
) -> tuple[Iterator[tuple[str, int, bytes]], dict[str, dict[str, tuple[float, float]]]]:
    """Return each frame with its connection and when it was received (µs), and what the heartbeats claim.

    The claims are complete once all frames were taken.
    """
    covered: dict[str, dict[str, tuple[float, float]]] = {}

    def frames() -> Iterator[tuple[str, int, bytes]]:
        for record in read_topic(bootstrap, topic):
            headers = dict(record.headers)
            if headers["kind"] == BOOK.encode():
                yield headers["connection"].decode(), int(headers["received_us"]), record.value
                continue
            heartbeat = Heartbeat.decode(record.value)
            claims = covered.setdefault(heartbeat.connection, {})
            for span in heartbeat.covered:
                for ticker in span.tickers:
                    first, last = claims.get(ticker, (float("inf"), 0.0))
                    claims[ticker] = (min(first, span.from_us / 1e6), max(last, span.to_us / 1e6))

    return frames(), covered


def compare(bootstrap: str, topic: str, sent: int) -> Delivered:
    """Hold what is in the topic against what the frame source sent: each serial once, every byte as sent."""
    frames = Frames()
    seen = bytearray(sent)
    wrong = 0
    found, covered = read_books(bootstrap, topic)
    for _, _, value in found:
        serial = frames.serial_of(value)
        if serial is None or serial >= sent or seen[serial]:
            wrong += 1
        else:
            seen[serial] = 1
    return Delivered(sum(seen), sent - sum(seen), wrong, covered)


def compare_with_journal(bootstrap: str, topic: str, sent: dict[str, list[bytes]]) -> Delivered:
    """Hold what is in the topic against the simulator's journal, connection by connection, in order."""
    arrived: dict[str, list[bytes]] = {}
    found, covered = read_books(bootstrap, topic)
    # On a busy machine some go by way of the spool, beside the live ones: in order are those of each way.
    for connection, _, value in sorted(found, key=lambda frame: frame[1]):
        arrived.setdefault(connection, []).append(digest(value))
    missing = wrong = 0
    for connection in {*arrived, *sent}:
        ours, theirs = arrived.get(connection, []), sent.get(connection, [])
        missing += sum((Counter(theirs) - Counter(ours)).values())
        wrong += sum((Counter(ours) - Counter(theirs)).values())
        wrong += len(ours) == len(theirs) and ours != theirs
    return Delivered(sum(map(len, arrived.values())), missing, wrong, covered)


class Latency:
    """Received to acknowledged, of live records between two readings of the producer's histogram."""

    def __init__(self, before: dict[str, float], after: dict[str, float]) -> None:
        self._counts: dict[float, float] = {}
        for key, value in after.items():
            if key.startswith("publish_seconds_bucket"):
                bound = float(key.split('le="')[1].split('"')[0])
                self._counts[bound] = value - before.get(key, 0.0)

    @property
    def count(self) -> int:
        return int(self._counts.get(float("inf"), 0))

    def below(self, share: float) -> str:
        """Return the least bound of the histogram below which that share lies, as `< 50 ms`."""
        *bounds, _ = sorted(self._counts)
        for bound in bounds:
            if self._counts[bound] >= share * self.count:
                return f"< {bound * 1000:g} ms" if bound < 1 else f"< {bound:g} s"
        return f"> {bounds[-1]:g} s"

    def share_within(self, seconds: float) -> float:
        """Return the share within one of the histogram's bounds."""
        return self._counts[seconds] / max(1.0, self._counts[float("inf")])
