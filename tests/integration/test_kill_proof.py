"""Promise 1 on real processes, at length: consumers are killed and frozen while they carry many records.

Two consumers carry the same partitions all the time. Again and again one of them gets SIGKILL, at a random
moment of its work, and is started anew; now and then one is frozen for longer than its timeouts, and comes
back as a zombie after the other took over. Then three SHA-256 over (partition, offset, value), in order, must
be equal: of what was acknowledged, of what the broker holds, of what the lake's commits name.

Consumers assign their partitions themselves and join no group, so no session of a group ends; the longest of
their timeouts is that of a request, 10 s, and Kafka's usual session timeout is 45 s.

`make test` runs a short version on the embedded broker. `make soak` carries a million records through three
Kafka brokers: theirs is the log that the promise speaks of, it is on disk and not in memory, and they want
the processor at the same time. KILL_PROOF_RECORDS, KILL_PROOF_BROKER (`embedded` or `kafka`) and
KILL_PROOF_SEED choose another run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from ingest_services import kafka
from ingest_services.record import BOOK, HEARTBEAT, Envelope, Heartbeat, Span, headers_of
from tests.broker import Broker
from tests.kafka_cluster import Cluster
from tests.lake_oracle import read_commits

RECORDS = int(os.environ.get("KILL_PROOF_RECORDS", "60000"))
BROKER = os.environ.get("KILL_PROOF_BROKER", "embedded")
SEED = int(os.environ.get("KILL_PROOF_SEED", "0")) or random.randrange(1, 2**32)
KILLS = max(5, RECORDS // 40_000)
STOPS = max(2, RECORDS // 200_000)
# Longer than a request's timeout; the last one of a long run longer than a session's, too.
STOP_S = 11.0
LONGEST_STOP_S = 50.0
PARTITIONS = 4
# The smallest: many commits, so many moments at which a kill can hurt.
MEMORY_BUDGET_MB = 16
TICKERS = 8
LEVELS = 18
LONG_RUN = 200_000
# What may wait for the end of a minute: two batches of each partition.
WAITING = (MEMORY_BUDGET_MB << 20) // 1000
# A short run is not produced faster than this, so that zombies come back to a log that goes on.
RECORDS_PER_S = 3_000

FENCED = b"another writer was first"

log = logging.getLogger(__name__)


class Digest:
    """SHA-256 over (partition, offset, value), partition by partition, each in order."""

    def __init__(self) -> None:
        self._hashes = [hashlib.sha256() for _ in range(PARTITIONS)]
        self.counts = [0] * PARTITIONS

    def add(self, partition: int, offset: int, value: bytes | None) -> None:
        assert offset == self.counts[partition], (
            f"partition {partition}: {offset} after {self.counts[partition]}"
        )
        length = -1 if value is None else len(value)
        self._hashes[partition].update(struct.pack(">iqi", partition, offset, length))
        self._hashes[partition].update(value or b"")
        self.counts[partition] += 1

    def whole(self) -> str:
        return hashlib.sha256(b"".join(own.digest() for own in self._hashes)).hexdigest()


class Load(threading.Thread):
    """Produces the records, up to `ceiling` for now, and notes what was acknowledged."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        super().__init__(name="load", daemon=True)
        self.acknowledged = Digest()
        self.bytes = 0
        self.ceiling = 0
        self.error: BaseException | None = None
        self.giving_up = threading.Event()
        self._servers = bootstrap
        self._topic = topic
        dice = random.Random(SEED)
        self._levels = [
            ",".join(
                f'{{"ap":{dice.randrange(10**8)}.0,"bp":{dice.randrange(10**8)}.0,'
                f'"as":{dice.random():.8f},"bs":{dice.random():.8f}}}'
                for _ in range(LEVELS)
            )
            for _ in range(97)
        ]

    def run(self) -> None:
        try:
            self._produce()
        except BaseException as error:  # noqa: BLE001 - told by the test
            self.error = error

    def _produce(self) -> None:
        producer = KafkaProducer(
            **kafka.client_config(self._servers),
            acks="all",
            compression_type="zstd",
            linger_ms=20,
            batch_size=1 << 18,
        )
        pending: deque[tuple[int, bytes | None, Any]] = deque()
        began_s = time.monotonic()
        for number in range(RECORDS):
            ahead_s = number / RECORDS_PER_S - (time.monotonic() - began_s) if RECORDS < LONG_RUN else 0.0
            if ahead_s > 0.1:
                self.giving_up.wait(ahead_s)
            while number >= self.ceiling and not self.giving_up.wait(0.05):
                pass
            if self.giving_up.is_set():
                break
            value, headers = self._record(number)
            partition = number % PARTITIONS
            pending.append((partition, value, producer.send(self._topic, value, b"T", headers, partition)))
            while pending and (len(pending) > 20_000 or pending[0][2].is_done):
                self._acknowledge(*pending.popleft())
        producer.flush(60)
        for each in pending:
            self._acknowledge(*each)
        producer.close()

    def _acknowledge(self, partition: int, value: bytes | None, future: Any) -> None:
        self.acknowledged.add(partition, future.get(timeout=60).offset, value)
        self.bytes += len(value or b"")

    def _record(self, number: int) -> tuple[bytes | None, list[tuple[str, bytes]]]:
        now_us = time.time_ns() // 1000
        if number % 1009 == 0:
            return None, []
        if number % 997 == 0:
            return b"\x00 no frame %d" % number, []
        if number % 503 == 0:
            beat = Heartbeat("s", "c-1", ("T0",), (Span(now_us - 1000, now_us, ("T0",)),))
            return beat.encode(), headers_of(Envelope(HEARTBEAT, now_us, "c-1"))
        tms = now_us // 1000
        levels = self._levels[number % len(self._levels)]
        frame = (
            f'{{"ty":"orderbook","cd":"KRW-T{number % TICKERS}","tms":{tms},"tas":{number}.5,"tbs":{number},'
            f'"obu":[{levels}],"st":"REALTIME"}}'
        )
        return frame.encode(), headers_of(Envelope(BOOK, now_us, "c-1", tms, "REALTIME"))


@dataclass
class Consumer:
    """One of the two."""

    process: subprocess.Popen[bytes]
    log: Path
    continue_s: float = 0.0
    frozen_at: int = 0

    @property
    def began(self) -> bool:
        # More, if the broker did not answer for a while and it began anew.
        return self.log.read_bytes().count(b'"carrying"') >= PARTITIONS

    def rss_mb(self) -> float:
        with suppress(psutil.Error):
            return float(psutil.Process(self.process.pid).memory_info().rss / 2**20)
        return 0.0


@dataclass
class Proof:
    """A lake, and two consumers that fill it."""

    root: Path
    bootstrap: str
    topic: str
    load: Load
    consumers: list[Consumer] = field(default_factory=list)
    logs: list[Path] = field(default_factory=list)
    zombies: list[tuple[Path, int]] = field(default_factory=list)
    rss_mb: float = 0.0

    @property
    def lake(self) -> Path:
        return self.root / "raw"

    def consume(self) -> Consumer:
        conf = self.root / "consumer.conf"
        section = "[gcs_consumer{n}]\ntopic_name={topic}\npartition_number={n}\ngroup_name=g\n"
        conf.write_text("".join(section.format(n=n, topic=self.topic) for n in range(PARTITIONS)))
        self.logs.append(self.root / f"consumer-{len(self.logs)}.log")
        with self.logs[-1].open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "ingest_services", "consume", "--all"],
                cwd=self.root,
                stderr=stderr,
                env={
                    **os.environ,
                    "PYTHONPATH": str(Path(__file__).parents[2]),
                    "SOURCE": "simulator",
                    "KAFKA_BOOTSTRAP": self.bootstrap,
                    "RAW_URL": self.lake.as_uri(),
                    "CONSUMER_CONF": str(conf),
                    "LATENESS_S": "0",
                    "MEMORY_BUDGET_MB": str(MEMORY_BUDGET_MB),
                },
            )
        return Consumer(process, self.logs[-1])

    def tails(self) -> list[int]:
        """Where each partition's chain ends."""
        tails = []
        for number in range(PARTITIONS):
            folder = self.lake / "_commits" / "00000001" / f"{number:04d}"
            newest = max(folder.glob("*.json"), default=None)
            tails.append(json.loads(newest.read_bytes())["next"] if newest else 0)
        return tails

    def look(self) -> None:
        """What has to be seen to all the time: nobody ended by himself, and the frozen wake up in time."""
        if self.load.error is not None:
            raise self.load.error
        for consumer in self.consumers:
            assert consumer.process.poll() is None, consumer.log.read_text()[-3000:]
            self.rss_mb = max(self.rss_mb, consumer.rss_mb())
            taken_over = sum(self.tails()) > consumer.frozen_at
            if consumer.continue_s and time.monotonic() > consumer.continue_s and taken_over:
                self.zombies.append((consumer.log, consumer.log.stat().st_size))
                consumer.process.send_signal(signal.SIGCONT)
                consumer.continue_s = 0.0

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            self.look()
            assert time.monotonic() < deadline, f"waited {seconds} s for {what}; tails {self.tails()}"
            time.sleep(0.05)

    def awake(self) -> list[Consumer]:
        """Those that are at work."""
        return [consumer for consumer in self.consumers if not consumer.continue_s and consumer.began]

    def kill(self, dice: random.Random) -> None:
        self.wait(lambda: bool(self.awake()), "a consumer at work")
        victim = dice.choice(self.awake())
        victim.process.kill()
        victim.process.wait()
        self.consumers[self.consumers.index(victim)] = self.consume()

    def freeze(self, dice: random.Random, seconds: float) -> None:
        # One goes on, or nobody would take over.
        self.wait(lambda: len(self.awake()) == len(self.consumers), "both consumers at work")
        victim = dice.choice(self.consumers)
        victim.process.send_signal(signal.SIGSTOP)
        victim.frozen_at = sum(self.tails())
        victim.continue_s = time.monotonic() + seconds

    def finish(self) -> None:
        """Let both end in order, and a last one carry what they left."""
        for consumer in self.consumers:
            consumer.process.send_signal(signal.SIGTERM)
        for _ in range(5):
            for consumer in self.consumers:
                assert consumer.process.wait(30) == 0, consumer.log.read_text()[-3000:]
            self.consumers.clear()
            if self.tails() == self.load.acknowledged.counts:
                return
            # What is left is less than a cut's size, or could not be read in the time that a signal leaves.
            last = self.consume()
            self.consumers.append(last)
            self.wait(lambda: last.began, "the last consumer")  # noqa: B023
            time.sleep(1)
            last.process.send_signal(signal.SIGTERM)

    def fenced(self) -> int:
        return sum(path.read_bytes().count(FENCED) for path in self.logs)

    def zombies_fenced(self) -> int:
        """How many of the frozen found, when they woke up, that another had been first."""
        return sum(FENCED in path.read_bytes()[size:] for path, size in self.zombies)

    def orphans(self) -> int:
        """Objects that no commit names: what a torn attempt or a lost race leaves behind."""
        named = {
            file["path"]
            for commit in (self.lake / "_commits").rglob("*.json")
            for file in json.loads(commit.read_bytes())["files"]
        }
        return sum(str(path.relative_to(self.lake)) not in named for path in self.lake.rglob("*.jsonl.zst"))


@pytest.fixture
def where(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Bootstrap and a topic on the broker that was asked for."""
    if BROKER == "kafka":
        cluster: Cluster = request.getfixturevalue("cluster")
        return cluster.bootstrap, cluster.topic(PARTITIONS)
    assert BROKER == "embedded", f"KILL_PROOF_BROKER={BROKER}: must be embedded or kafka"
    broker: Broker = request.getfixturevalue("broker")
    return broker.bootstrap, broker.topic(PARTITIONS)


@pytest.fixture
def proof(where: tuple[str, str], tmp_path: Path) -> Iterator[Proof]:
    running = Proof(tmp_path, *where, Load(*where))
    try:
        yield running
    finally:
        running.load.giving_up.set()
        for consumer in running.consumers:
            consumer.process.kill()
            consumer.process.wait()
        if running.load.is_alive():
            running.load.join(60)


@pytest.mark.timeout(3000 if RECORDS > LONG_RUN else 300)
def test_every_acknowledged_record_is_in_the_lake_once_whoever_is_killed_or_frozen(proof: Proof) -> None:
    dice = random.Random(SEED)
    began_s = time.monotonic()
    log.info("seed %d: %d records, %d kills, %d stops, %s", SEED, RECORDS, KILLS, STOPS, BROKER)
    proof.load.start()
    proof.consumers += [proof.consume(), proof.consume()]
    stops = [STOP_S] * STOPS
    if RECORDS > LONG_RUN:
        stops[STOPS // 2] = LONGEST_STOP_S
    # By how much is committed, so that the blows fall on all of the work, however fast it is.
    kills = sorted(dice.uniform(0.0, 0.9) for _ in range(KILLS))
    freezes = [0.85 * number / STOPS for number in range(STOPS)]
    blows = sorted([(at, 0.0) for at in kills] + list(zip(freezes, stops, strict=True)))
    for at, stop_s in blows:
        # However fast the consumers are, records are left for the blows to come: a zombie is woken when
        # another has committed since, and while one was frozen for long the other carried all that there was.
        proof.load.ceiling = min(RECORDS, int(at * RECORDS) + WAITING)
        proof.wait(lambda: sum(proof.tails()) >= at * RECORDS, f"{at:.0%} of the records")  # noqa: B023
        pause_s = dice.uniform(0.0, 0.5)
        time.sleep(pause_s)
        if stop_s:
            proof.freeze(dice, stop_s)
        else:
            proof.kill(dice)
    proof.load.ceiling = RECORDS
    proof.wait(lambda: not any(c.continue_s for c in proof.consumers), "the zombies to come back")
    proof.wait(lambda: not proof.load.is_alive(), "the last acknowledgement")
    # What waits for the end of a minute is cut by the signal.
    proof.wait(lambda: sum(proof.tails()) >= RECORDS - WAITING, "nearly all to be committed")
    proof.wait(lambda: len(proof.awake()) == 2, "both consumers at work")
    proof.finish()
    carried_s = time.monotonic() - began_s
    try:
        account(proof)
    except AssertionError as error:
        raise AssertionError(f"KILL_PROOF_SEED={SEED} (KILL_PROOF_RECORDS={RECORDS})") from error
    log.info(
        "%d records, %.2f GB in %.0f s (%.0f records/s); %d SIGKILLs; %d SIGSTOPs, %d then too late; "
        "%d lost races; %d objects without a commit; RSS of a consumer at most %.0f MiB; checked in %.0f s",
        RECORDS,
        proof.load.bytes / 1e9,
        carried_s,
        RECORDS / carried_s,
        KILLS,
        STOPS,
        proof.zombies_fenced(),
        proof.fenced(),
        proof.orphans(),
        proof.rss_mb,
        time.monotonic() - began_s - carried_s,
    )
    shutil.rmtree(proof.lake)


def account(proof: Proof) -> None:
    """Compare what was acknowledged, what the broker holds and what the lake holds."""
    acknowledged = proof.load.acknowledged
    assert sum(acknowledged.counts) == RECORDS
    held = broker_digest(proof.bootstrap, proof.topic, acknowledged.counts)
    assert (held.counts, held.whole()) == (acknowledged.counts, acknowledged.whole())
    assert len(list((proof.lake / "_chains").iterdir())) == 1
    carried = lake_digest(proof.lake)
    assert (carried.counts, carried.whole()) == (acknowledged.counts, acknowledged.whole())
    # And the blows did land: writers met.
    assert proof.fenced() > 0


def broker_digest(bootstrap: str, topic: str, ends: list[int]) -> Digest:
    digest = Digest()
    reader = KafkaConsumer(**kafka.client_config(bootstrap), group_id=None, enable_auto_commit=False)
    try:
        for number, end in enumerate(ends):
            tp = TopicPartition(topic, number)
            reader.assign([tp])
            reader.seek(tp, 0)
            while digest.counts[number] < end:
                for record in reader.poll(1000, max_records=5000).get(tp, ()):
                    digest.add(number, record.offset, record.value)
    finally:
        reader.close()
    return digest


def lake_digest(lake: Path) -> Digest:
    digest = Digest()
    for number in range(PARTITIONS):
        for commit in read_commits(lake, 1, number):
            for offset in sorted(commit.records):
                digest.add(number, offset, commit.records[offset])
    return digest
