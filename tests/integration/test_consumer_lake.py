"""Promise 1 on real parts: what Kafka acknowledged is in the lake exactly once, byte for byte."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import pytest
from kafka import KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition

from ingest_services import kafka
from ingest_services.lake import chain as chains
from ingest_services.lake import layout
from ingest_services.lake.store import FolderStore
from ingest_services.record import BOOK, HEARTBEAT, Envelope, Heartbeat, Span, headers_of
from tests.broker import Broker, running_broker
from tests.lake_oracle import Oracle, read_partition

MINUTE_MS = 60_000


@dataclass
class Pipe:
    """A topic, a lake, and consumers as processes of their own."""

    broker: Broker
    root: Path
    topic: str
    partitions: int
    sent: dict[tuple[int, int], bytes | None] = field(default_factory=dict)
    consumers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def lake(self) -> Path:
        return self.root / "raw"

    def environment(self) -> dict[str, str]:
        conf = self.root / "consumer.conf"
        conf.write_text(
            "".join(
                f"[gcs_consumer{n}]\ntopic_name={self.topic}\npartition_number={n}\ngroup_name=g\n"
                for n in range(self.partitions)
            )
        )
        return {
            **os.environ,
            "KAFKA_BOOTSTRAP": self.broker.bootstrap,
            "RAW_URL": self.lake.as_uri(),
            "CONSUMER_CONF": str(conf),
            "SOURCE": "simulator",
            "LATENESS_S": "0",
        }

    def consume(self) -> subprocess.Popen[bytes]:
        consumer = subprocess.Popen(
            [sys.executable, "-m", "ingest_services", "consume", "--all"],
            env=self.environment(),
            cwd=self.root,
            stderr=(self.root / "consumer.log").open("ab"),
        )
        self.consumers.append(consumer)
        return consumer

    def send(self, records: list[tuple[int, bytes | None, list[tuple[str, bytes]]]]) -> None:
        producer = KafkaProducer(**kafka.client_config(self.broker.bootstrap), acks="all", linger_ms=5)
        pending = [
            (partition, value, producer.send(self.topic, value, b"BTC", headers, partition))
            for partition, value, headers in records
        ]
        for partition, value, future in pending:
            self.sent[partition, future.get(timeout=20).offset] = value
        producer.close()

    def read(self, chain: int = 1) -> list[Oracle]:
        return [read_partition(self.lake, chain, number) for number in range(self.partitions)]

    def stop(self, consumer: subprocess.Popen[bytes]) -> int:
        consumer.send_signal(signal.SIGTERM)
        return consumer.wait(15)

    def log(self) -> str:
        path = self.root / "consumer.log"
        return path.read_text() if path.exists() else ""

    def begun(self) -> int:
        """How many partitions consumers have begun to carry; from then on they heed a signal."""
        return self.log().count('"carrying"')


@pytest.fixture
def pipe(broker: Broker, tmp_path: Path) -> Iterator[Pipe]:
    running = Pipe(broker, tmp_path, broker.topic(2), 2)
    yield running
    for consumer in running.consumers:
        if consumer.poll() is None:
            consumer.kill()
            consumer.wait()


def book(number: int, tms: int, ticker: str = "BTC") -> bytes:
    return orjson.dumps(
        {
            "ty": "orderbook",
            "cd": f"KRW-{ticker}",
            "tms": tms,
            "tas": 1.5,
            "tbs": number,
            "obu": [{"ap": 101.0, "bp": 100.0, "as": 1.0, "bs": 7.9276e-4}],
            "st": "REALTIME",
        }
    )


def book_records(count: int, partitions: int = 2, at_ms: int | None = None, tickers: int = 3) -> list[tuple]:
    """Books of some tickers over the last three minutes."""
    now_ms = at_ms or time.time_ns() // 1_000_000
    records = []
    for number in range(count):
        tms = now_ms - 3 * MINUTE_MS + number * 3 * MINUTE_MS // count
        headers = headers_of(Envelope(BOOK, now_ms * 1000, "c-1", tms, "REALTIME"))
        value = book(number, tms, f"T{number % tickers}")
        records.append((number % partitions, value, headers))
    return records


def wait_for(condition, what: str, seconds: float = 60) -> None:
    """Wait until something is so; the bound is for what hangs, not for what takes its time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)


def assert_exactly_once(pipe: Pipe, chain: int = 1) -> None:
    found = pipe.read(chain)
    for number, oracle in enumerate(found):
        expected = {offset: value for (p, offset), value in pipe.sent.items() if p == number}
        assert oracle.records == expected
        assert oracle.missing == []


def test_sigterm_commits_everything_that_was_read_and_exits_0(pipe: Pipe) -> None:
    pipe.send(book_records(500))
    consumer = pipe.consume()
    wait_for((pipe.lake / "_chains").exists, "the consumer to begin")
    assert pipe.stop(consumer) == 0, pipe.log()
    assert_exactly_once(pipe)


def test_minutes_are_cut_and_claimed_while_the_consumer_runs(pipe: Pipe) -> None:
    pipe.send(book_records(600))
    pipe.consume()
    store = FolderStore(pipe.lake)

    def through() -> list[int]:
        claims = [chains.read_progress(store, 1, number) for number in range(2)]
        return [claim.minutes_through_ms if claim else 0 for claim in claims]

    now_ms = time.time_ns() // 1_000_000
    wait_for(
        lambda: min(through()) >= now_ms - now_ms % MINUTE_MS, "both partitions to be through the last minute"
    )
    for oracle, claim in zip(pipe.read(), (chains.read_progress(store, 1, n) for n in range(2)), strict=True):
        assert claim is not None
        assert claim.next == oracle.next
        past = {
            o
            for (p, o), v in pipe.sent.items()
            if p == claim.partition and b'"tms":%d' % now_ms not in (v or b"")
        }
        committed = set(oracle.records)
        # What the claim covers is committed: every book of a minute that is over.
        for offset in past - committed:
            value = pipe.sent[claim.partition, offset]
            assert value is not None
            assert orjson.loads(value)["tms"] >= claim.minutes_through_ms
    # One object per ticker and minute: the three tickers of four minutes at most, on two partitions.
    assert sum(oracle.objects for oracle in pipe.read()) <= 3 * 4 * 2


def test_kill_9_at_any_moment_loses_nothing_and_repeats_nothing(pipe: Pipe) -> None:
    seed = random.randrange(2**32)
    dice = random.Random(seed)
    torn = 0
    for _ in range(25):
        pipe.send(book_records(600, tickers=60))
        # Behind a claim, late records wait for the next minute's cut; without one they are cut at once.
        shutil.rmtree(pipe.lake / "_progress", ignore_errors=True)
        log_size = len(pipe.log())
        consumer = pipe.consume()
        wait_for(lambda: pipe.log().count("carrying", log_size) == 2, "the consumer to begin")  # noqa: B023
        before, objects = len(orphans(pipe)), count_objects(pipe)
        # Into the uploads when they begin, or somewhere around the commit.
        wait_for(lambda: count_objects(pipe) > objects, "an upload")  # noqa: B023
        time.sleep(dice.choice([0.0, dice.uniform(0.0, 0.3)]))
        consumer.kill()
        consumer.wait()
        torn += len(orphans(pipe)) > before
        if torn == 3:
            break
    assert torn == 3, f"seed {seed}: the kills missed every upload; the test proved nothing"
    begun = pipe.begun()
    last = pipe.consume()
    wait_for(lambda: pipe.begun() == begun + 2, "the last consumer to begin")
    assert pipe.stop(last) == 0, f"seed {seed}: {pipe.log()}"
    try:
        assert_exactly_once(pipe)
    except AssertionError as error:
        raise AssertionError(f"seed {seed}") from error


def count_objects(pipe: Pipe) -> int:
    return sum(1 for _ in pipe.lake.rglob("ticker=*/**/*.jsonl.zst"))


def orphans(pipe: Pipe) -> set[str]:
    """Objects that no commit names: what a torn attempt leaves behind."""
    named = {
        file["path"]
        for commit in (pipe.lake / "_commits").rglob("*.json")
        for file in orjson.loads(commit.read_bytes())["files"]
    }
    there = {str(path.relative_to(pipe.lake)) for path in pipe.lake.rglob("ticker=*/**/*.jsonl.zst")}
    return there - named


def test_two_writers_on_the_same_partitions_are_harmless(pipe: Pipe) -> None:
    first, second = pipe.consume(), pipe.consume()
    wait_for(lambda: pipe.log().count("carrying") == 4, "both to begin")
    for part in range(5):
        pipe.send(book_records(400, at_ms=time.time_ns() // 1_000_000 - part * MINUTE_MS))
        time.sleep(0.4)
    assert pipe.stop(first) == 0, pipe.log()
    assert pipe.stop(second) == 0, pipe.log()
    assert_exactly_once(pipe)


def test_a_frozen_consumer_that_wakes_after_another_took_over_changes_nothing(pipe: Pipe) -> None:
    pipe.send(book_records(300))
    zombie = pipe.consume()
    wait_for(lambda: pipe.begun() == 2, "the consumer to begin")
    zombie.send_signal(signal.SIGSTOP)
    pipe.send(book_records(300))
    successor = pipe.consume()
    wait_for(lambda: pipe.begun() == 4, "the successor to begin")
    assert pipe.stop(successor) == 0, pipe.log()
    zombie.send_signal(signal.SIGCONT)
    pipe.send(book_records(300))
    assert pipe.stop(zombie) == 0, pipe.log()
    # It may have found out at the very end, and what it had read since then is left in Kafka.
    last = pipe.consume()
    wait_for(lambda: pipe.begun() >= 6, "the last consumer to begin")
    assert pipe.stop(last) == 0, pipe.log()
    assert_exactly_once(pipe)


def test_poison_never_stops_a_partition_and_keeps_its_bytes(pipe: Pipe) -> None:
    now_ms = time.time_ns() // 1_000_000
    future = book(1, now_ms + 10 * MINUTE_MS)
    poison: list[tuple[bytes | None, str]] = [
        (b"not json", "not JSON"),
        (b"", "not JSON"),
        (None, "no value"),
        (b'{"ty":"orderbook","tms":1,"obu":[],"st":"REALTIME"}', "no market"),
        (b'{"ty":"orderbook","cd":"KRW-../..","tms":1,"obu":[],"st":"REALTIME"}', "not a market code"),
        (future, "timestamp after it was received"),
    ]
    headers = headers_of(Envelope(BOOK, now_ms * 1000, "c-1"))
    pipe.send([(0, value, headers) for value, _ in poison])
    pipe.send([(0, b"[]", headers_of(Envelope(HEARTBEAT, now_ms * 1000, "c-1")))])
    pipe.send(book_records(10))
    consumer = pipe.consume()
    wait_for((pipe.lake / "_chains").exists, "the consumer to begin")
    assert pipe.stop(consumer) == 0, pipe.log()
    assert_exactly_once(pipe)
    assert [pipe.read()[0].reasons[offset] for offset in range(7)] == [
        *(r for _, r in poison),
        "not a heartbeat",
    ]


def test_heartbeats_go_to_the_coverage_of_the_minute_they_cover(pipe: Pipe) -> None:
    end_us = 1_738_480_560_000_000
    heartbeat = Heartbeat("s", "c-1", ("BTC",), (Span(end_us - 5_000_000, end_us, ("BTC",)),))
    headers = headers_of(Envelope(HEARTBEAT, end_us + 100_000, "c-1"))
    pipe.send([(0, heartbeat.encode(), headers)])
    consumer = pipe.consume()
    wait_for((pipe.lake / "_chains").exists, "the consumer to begin")
    assert pipe.stop(consumer) == 0, pipe.log()
    assert pipe.read()[0].folders == {0: "coverage/year=2025/month=02/day=02/hour=16/minute=15"}


def test_a_re_created_topic_begins_a_new_chain_that_closes_the_old_one(tmp_path: Path) -> None:
    with running_broker() as broker:
        pipe = Pipe(broker, tmp_path, broker.topic(1), 1)
        pipe.send(book_records(50, 1))
        consumer = pipe.consume()
        wait_for((pipe.lake / "_chains").exists, "the consumer to begin")
        assert pipe.stop(consumer) == 0, pipe.log()
        first = dict(pipe.sent)
        broker.kill()
        broker.restart()
        kafka.create_topics(broker.bootstrap, {pipe.topic: 1})
        pipe.sent.clear()
        pipe.send(book_records(30, 1))
        consumer = pipe.consume()
        wait_for((pipe.lake / "_chains" / "00000002.json").exists, "a new chain")
        assert pipe.stop(consumer) == 0, pipe.log()
    assert_exactly_once(pipe, chain=2)
    old, new = chains.read_chains(FolderStore(pipe.lake))
    assert (new.predecessor, new.predecessor_end) == (old.number, {0: 50})
    assert read_partition(pipe.lake, 1, 0).records == {o: v for (_, o), v in first.items()}


def test_a_consumer_outlives_its_broker_and_goes_on_in_a_new_chain_when_it_comes_back(tmp_path: Path) -> None:
    with running_broker() as broker:
        pipe = Pipe(broker, tmp_path, broker.topic(1), 1)
        pipe.send(book_records(50, 1, at_ms=time.time_ns() // 1_000_000 - MINUTE_MS))
        consumer = pipe.consume()
        wait_for(lambda: pipe.read()[0].next == 50, "the first records to be committed")
        broker.kill()
        time.sleep(1)
        broker.restart()
        kafka.create_topics(broker.bootstrap, {pipe.topic: 1})
        pipe.sent.clear()
        pipe.send(book_records(30, 1, at_ms=time.time_ns() // 1_000_000 - MINUTE_MS))
        wait_for(lambda: pipe.read(2)[0].next == 30, "the new chain", 90)
        assert consumer.poll() is None
        assert pipe.stop(consumer) == 0, pipe.log()
    assert_exactly_once(pipe, chain=2)


def test_a_consumer_whose_broker_hangs_ends_when_told_and_loses_nothing(tmp_path: Path) -> None:
    with running_broker() as broker:
        pipe = Pipe(broker, tmp_path, broker.topic(1), 1)
        pipe.send(book_records(50, 1))
        consumer = pipe.consume()
        wait_for(lambda: pipe.read()[0].commits > 0, "the first commit")
        broker.process.send_signal(signal.SIGSTOP)
        try:
            pipe.stop(consumer)  # raises if it has not ended after 15 s
        finally:
            broker.process.send_signal(signal.SIGCONT)
        successor = pipe.consume()
        wait_for(lambda: pipe.log().count("carrying") == 2, "the next consumer to begin")
        assert pipe.stop(successor) == 0, pipe.log()
    assert_exactly_once(pipe)


def test_a_writer_on_a_chain_that_another_closed_goes_on_in_the_new_one(pipe: Pipe) -> None:
    pipe.send(book_records(100))
    consumer = pipe.consume()
    wait_for(lambda: pipe.log().count("carrying") == 2, "the consumer to begin")
    wait_for(lambda: sum(oracle.commits for oracle in pipe.read()) == 2, "the first commits")
    (first,) = chains.read_chains(FolderStore(pipe.lake))
    tails = {number: oracle.next for number, oracle in enumerate(pipe.read())}
    # Somebody else saw, say, a log rolled back on a partition that this writer does not read.
    second = dataclasses.replace(
        first, number=2, start=tails, predecessor=1, predecessor_end=tails, reason="test"
    )
    path = pipe.lake / layout.chain_path(2)
    path.write_bytes(orjson.dumps(dataclasses.asdict(second), option=orjson.OPT_NON_STR_KEYS))
    pipe.send(book_records(100, at_ms=time.time_ns() // 1_000_000 - MINUTE_MS))
    assert pipe.stop(consumer) == 0, pipe.log()
    successor = pipe.consume()
    wait_for(lambda: pipe.log().count('"chain": 2') == 2, "the writer to take the new chain")
    assert pipe.stop(successor) == 0, pipe.log()
    assert [oracle.next for oracle in pipe.read(1)] == list(tails.values())
    together = [
        {**old.records, **read_partition(pipe.lake, 2, number, tails[number]).records}
        for number, old in enumerate(pipe.read(1))
    ]
    for number, records in enumerate(together):
        assert records == {offset: value for (p, offset), value in pipe.sent.items() if p == number}


def test_kafkas_committed_offset_may_be_reset_to_anything(pipe: Pipe) -> None:
    tps = [TopicPartition(pipe.topic, number) for number in range(pipe.partitions)]
    for offset in (None, 0, 7, 100, 10**9):
        if offset is not None:
            tool = KafkaConsumer(
                **kafka.client_config(pipe.broker.bootstrap), group_id="g", enable_auto_commit=False
            )
            tool.assign(tps)
            tool.commit({tp: OffsetAndMetadata(offset, "", -1) for tp in tps})
            tool.close()
        pipe.send(book_records(40))
        begun = pipe.log().count("carrying")
        consumer = pipe.consume()
        wait_for(lambda: pipe.log().count("carrying") == begun + 2, "the consumer to begin")  # noqa: B023
        assert pipe.stop(consumer) == 0, pipe.log()
        assert_exactly_once(pipe)


def test_a_lake_of_another_source_is_refused_before_anything_is_written(pipe: Pipe) -> None:
    pipe.lake.mkdir()
    (pipe.lake / "lake.json").write_text('{"format":1,"source":"upbit","time_zone":"Asia/Seoul"}')
    assert pipe.consume().wait(60) == 2
    assert "never share a lake" in pipe.log()
    assert [path.name for path in pipe.lake.iterdir()] == ["lake.json"]
