"""Three real Apache Kafka brokers: killed, rolled, and what only they show. See `tests/kafka_cluster.py`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import InvalidTimestampError

from cryptostream_dagster.local.ports import LOOPBACK, answers, free_port
from ingest_services import kafka
from ingest_services.consumer.watermark import log_ends
from ingest_services.lake import chain as chains
from ingest_services.lake.store import FolderStore
from ingest_services.record import BOOK, Envelope, headers_of
from ingest_services.simulator.journal import read_journal
from tests.integration.test_chaos import frames_are_kept_once
from tests.integration.test_consumer_lake import (
    MINUTE_MS,
    Pipe,
    assert_exactly_once,
    book,
    book_records,
    wait_for,
)
from tests.integration.test_producer_service import Record, read_all
from tests.kafka_cluster import NODES, Cluster
from tests.lake_oracle import read_partition

pytestmark = pytest.mark.soak

TICKERS = ("BTC", "ETH", "XRP", "SOL", "ADA", "DOGE")
PARTITIONS = 3
# Together 240 books of 15 levels a second: a quarter of the whole exchange.
RATE = 40


@pytest.fixture
def pipe(cluster: Cluster, tmp_path: Path) -> Iterator[Pipe]:
    with piping(cluster, tmp_path, 2) as running:
        yield running


@contextmanager
def piping(cluster: Cluster, root: Path, partitions: int, **configs: str) -> Iterator[Pipe]:
    """A topic on the real cluster, and consumers that end with the block."""
    topic = cluster.topic(partitions, {name.replace("_", "."): value for name, value in configs.items()})
    running = Pipe(cluster, root, topic, partitions)
    try:
        yield running
    finally:
        for consumer in running.consumers:
            if consumer.poll() is None:
                consumer.kill()
                consumer.wait()


# ---- the storm


@dataclass
class Storm:
    """Simulator, producer and consumer as processes, between an oracle and a lake."""

    root: Path
    cluster: Cluster
    topic: str
    port: int
    metrics_port: int

    @property
    def lake(self) -> Path:
        return self.root / "raw"

    @property
    def journal(self) -> Path:
        return self.root / "journal.jsonl"

    def configure(self) -> None:
        producers, consumers = [], []
        for n in range(PARTITIONS):
            head = f"topic_name={self.topic}\npartition_number={n}\n"
            tickers = ",".join(TICKERS[n::PARTITIONS])
            producers.append(f"[upbit_producer{n}]\n{head}tickers={tickers}\n")
            consumers.append(f"[gcs_consumer{n}]\n{head}group_name=g\n")
        (self.root / "producer.conf").write_text("".join(producers))
        (self.root / "consumer.conf").write_text("".join(consumers))

    @contextmanager
    def running(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run one command of ours; SIGTERM must end it with status 0."""
        log = self.root / f"{arguments[0]}.log"
        process = subprocess.Popen(
            [sys.executable, "-m", "ingest_services", *arguments],
            cwd=self.root,
            stderr=log.open("wb"),
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).parents[2]),
                "SOURCE": "simulator",
                "KAFKA_BOOTSTRAP": self.cluster.bootstrap,
                "UPBIT_WS_URL": f"ws://{LOOPBACK}:{self.port}/websocket/v1",
                "UPBIT_REST_URL": f"http://{LOOPBACK}:{self.port}",
                "RAW_URL": self.lake.as_uri(),
                "SPOOL_DIR": str(self.root / "spool"),
                "PRODUCER_CONF": str(self.root / "producer.conf"),
                "CONSUMER_CONF": str(self.root / "consumer.conf"),
                "LATENESS_S": "0",
            },
        )
        try:
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0, log.read_text()[-3000:]
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    def clients(self) -> int:
        try:
            with urllib.request.urlopen(
                f"http://{LOOPBACK}:{self.port}/simulator/health", timeout=10
            ) as answer:
                return int(json.loads(answer.read())["clients"])
        except OSError:
            return -1

    def carried(self) -> list[float]:
        """What the consumer holds and has committed of each partition; grows or shrinks with each record."""
        with urllib.request.urlopen(f"http://{LOOPBACK}:{self.metrics_port}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        held, committed = (
            "cryptostream_consumer_buffered_bytes{",
            "cryptostream_consumer_records_committed_total{",
        )
        numbers = [0.0] * PARTITIONS
        for line in lines:
            name, _, number = line.rpartition(" ")
            if name.startswith(held):
                numbers[int(name.split('partition="')[1].split('"')[0])] += float(number)
            elif name.startswith(committed):
                numbers[int(name.split("gcs_consumer")[1].split('"')[0])] += float(number)
        return numbers

    def claimed_ms(self) -> int:
        """Up to where every partition is claimed to be complete, ms since the epoch."""
        store = FolderStore(self.lake)
        claims = [chains.read_progress(store, 1, n) for n in range(PARTITIONS)]
        return min(claim.minutes_through_ms if claim else 0 for claim in claims)

    def goes_on(self, after: str) -> None:
        """Wait until every partition is read on, and claimed through the last minute that ended."""
        before = self.carried()
        now_ms = time.time_ns() // 1_000_000
        wait_for(
            lambda: all(new != old for new, old in zip(self.carried(), before, strict=True)),
            f"records of every partition after {after}",
            120,
        )
        wait_for(lambda: self.claimed_ms() >= now_ms - now_ms % MINUTE_MS, f"claims after {after}", 120)


def test_nothing_is_lost_or_repeated_while_brokers_are_killed_and_rolled_under_load(
    cluster: Cluster, tmp_path: Path
) -> None:
    storm = Storm(tmp_path, cluster, cluster.topic(PARTITIONS), free_port(), free_port())
    storm.configure()
    with ExitStack() as processes:
        run = processes.enter_context
        consuming = run(storm.running("consume", "--all", "--metrics-port", str(storm.metrics_port)))
        simulate = ["--tickers", ",".join(TICKERS), "--rate", str(RATE), "--history-minutes", "0"]
        run(storm.running("simulate", "--port", str(storm.port), *simulate, "--journal", str(storm.journal)))
        wait_for(lambda: storm.clients() >= 0, "the simulator")
        wait_for(lambda: answers(storm.metrics_port), "the consumer")
        producing = run(storm.running("produce", "--all"))
        storm.goes_on("the start")
        victim = cluster.leader(storm.topic)
        cluster.kill(victim)
        cluster.wait_leader(storm.topic, victim)
        time.sleep(2)
        cluster.start(victim)
        cluster.wait_whole()
        storm.goes_on(f"kill -9 of node {victim}")
        for number in NODES:
            cluster.terminate(number)
            cluster.start(number)
            cluster.wait_whole()
            storm.goes_on(f"the restart of node {number}")
        assert (consuming.poll(), producing.poll()) == (None, None)
    records = {n: read_all(cluster.bootstrap, storm.topic, n) for n in range(PARTITIONS)}
    kafka_has_what_was_sent(storm, [record for own in records.values() for record in own])
    assert [chain.reason for chain in chains.read_chains(FolderStore(storm.lake))] == [
        "first chain of the topic"
    ]
    for number, own in records.items():
        oracle = read_partition(storm.lake, 1, number)
        assert oracle.records == {record.offset: record.value for record in own}
        assert (oracle.missing, oracle.reasons) == ([], {})


def kafka_has_what_was_sent(storm: Storm, records: list[Record]) -> None:
    """Hold Kafka's records against the simulator's journal: each frame once, for each connection."""
    sent: dict[str, list[dict[str, Any]]] = defaultdict(list)
    ended: dict[str, dict[str, Any]] = {}
    for line in read_journal(storm.journal):
        if line["kind"] == "sent" and line["what"] != "status":
            sent[str(line["ticket"])].append(line)
        elif line["kind"] == "ended":
            ended[str(line["ticket"])] = line
    kept: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.envelope.kind == BOOK:
            kept[record.envelope.connection].append(record)
    assert len(sent) >= PARTITIONS
    assert set(kept) == set(sent)
    for ticket, lines in sent.items():
        frames_are_kept_once(ticket, lines, kept[ticket], ended[ticket], f"files in {storm.root}")


# ---- what the log can do under a reader


def test_a_topic_that_is_re_created_while_we_read_begins_a_new_chain(
    cluster: Cluster, tmp_path: Path
) -> None:
    with piping(cluster, tmp_path, 1) as pipe:
        pipe.send(book_records(50, 1, at_ms=time.time_ns() // 1_000_000 - MINUTE_MS))
        consumer = pipe.consume()
        wait_for(lambda: pipe.read()[0].next == 50, "the first records")
        old = dict(pipe.sent)
        with cluster.admin() as admin:
            admin.delete_topics([pipe.topic])
            wait_for(lambda: pipe.topic not in admin.list_topics(), "the topic to be gone")
            admin.create_topics({pipe.topic: {"num_partitions": 1}})
            admin.wait_for_topics([pipe.topic])
        pipe.sent.clear()
        # More than before: by offsets alone the new log would look like the old one, grown.
        pipe.send(book_records(80, 1, at_ms=time.time_ns() // 1_000_000 - MINUTE_MS))
        wait_for(lambda: pipe.read(2)[0].next == 80, "the new chain", 60)
        assert pipe.stop(consumer) == 0, pipe.log()
        assert_exactly_once(pipe, chain=2)
        assert read_partition(pipe.lake, 1, 0).records == {
            offset: value for (_, offset), value in old.items()
        }
        assert "re-created" in chains.read_chains(FolderStore(pipe.lake))[1].reason


def test_partitions_that_are_added_while_we_read_are_carried_once_somebody_has_them(
    cluster: Cluster, tmp_path: Path
) -> None:
    with piping(cluster, tmp_path, 1) as pipe:
        pipe.send(book_records(40, 1, at_ms=time.time_ns() // 1_000_000 - MINUTE_MS))
        consumer = pipe.consume()
        wait_for(lambda: pipe.read()[0].next == 40, "the first records")
        with cluster.admin() as admin:
            admin.create_partitions({pipe.topic: 2})
        wait_for((pipe.lake / "_chains" / "00000002.json").exists, "a chain of two partitions")
        pipe.send(book_records(60, 2))
        assert pipe.stop(consumer) == 0, pipe.log()
        first, second = chains.read_chains(FolderStore(pipe.lake))
        assert (first.partitions, second.partitions) == ((0,), (0, 1))
        assert (second.predecessor_end, second.start) == ({0: 40}, {0: 40, 1: 0})
        # Nobody reads the new one: that is an error at the next start, until consumer.conf has it.
        refused = pipe.consume()
        assert refused.wait(60) == 2
        assert "partition" in pipe.log().splitlines()[-1]
        pipe.partitions = 2
        consumer = pipe.consume()
        wait_for(lambda: pipe.log().count('"partition": 1') == 1, "the new partition to be carried")
        assert pipe.stop(consumer) == 0, pipe.log()
        found = {
            (number, offset): value
            for chain, number, start in ((1, 0, 0), (2, 0, 40), (2, 1, 0))
            for offset, value in read_partition(pipe.lake, chain, number, start).records.items()
        }
        assert found == pipe.sent


def test_what_retention_took_before_we_read_it_is_declared_missing(cluster: Cluster, pipe: Pipe) -> None:
    pipe.send(book_records(100))
    consumer = pipe.consume()
    wait_for(lambda: pipe.log().count("carrying") == 2, "the consumer to begin")
    assert pipe.stop(consumer) == 0, pipe.log()
    pipe.send(book_records(100))
    with cluster.admin() as admin:
        admin.delete_records({TopicPartition(pipe.topic, 0): 80})
    consumer = pipe.consume()
    wait_for(lambda: pipe.log().count("carrying") == 4, "the consumer to begin again")
    assert pipe.stop(consumer) == 0, pipe.log()
    assert "the broker no longer has what comes next" in pipe.log()
    for number, oracle in enumerate(pipe.read()):
        lost = list(range(50, 80)) if number == 0 else []
        assert oracle.missing == lost
        assert oracle.records == {
            offset: value for (p, offset), value in pipe.sent.items() if p == number and offset not in lost
        }


def test_what_retention_takes_under_a_frozen_reader_is_declared_missing(cluster: Cluster, pipe: Pipe) -> None:
    pipe.send(book_records(100, at_ms=time.time_ns() // 1_000_000 - MINUTE_MS))
    consumer = pipe.consume()
    wait_for(lambda: all(oracle.next == 50 for oracle in pipe.read()), "the first records")
    consumer.send_signal(signal.SIGSTOP)
    pipe.send(book_records(400))
    with cluster.admin() as admin:
        admin.delete_records({TopicPartition(pipe.topic, 0): 240})
    consumer.send_signal(signal.SIGCONT)
    # Unless a fetch that was on its way brought everything.
    wait_for(
        lambda: pipe.log().count("carrying") >= 4 or pipe.read()[0].next == 250, "the consumer to go on", 90
    )
    assert pipe.stop(consumer) == 0, pipe.log()
    for number, oracle in enumerate(pipe.read()):
        expected = {offset: value for (p, offset), value in pipe.sent.items() if p == number}
        # What a fetch that was on its way brought along is not lost.
        lost = set(oracle.missing)
        assert lost <= (set(range(50, 240)) if number == 0 else set())
        assert oracle.records == {offset: value for offset, value in expected.items() if offset not in lost}
        assert oracle.next == 250


# ---- offsets without records


def test_transactions_leave_offsets_without_records_and_hold_nobody_up(cluster: Cluster, pipe: Pipe) -> None:
    producer = KafkaProducer(
        **kafka.client_config(cluster.bootstrap), acks="all", transactional_id=f"t-{pipe.topic}"
    )
    producer.init_transactions()
    at_ms = time.time_ns() // 1_000_000 - MINUTE_MS
    headers = headers_of(Envelope(BOOK, at_ms * 1000, "c-1"))
    for number, end in enumerate(
        (producer.commit_transaction, producer.abort_transaction, producer.commit_transaction)
    ):
        producer.begin_transaction()
        for part in range(10):
            value = book(number * 10 + part, at_ms)
            offset = producer.send(pipe.topic, value, b"BTC", headers, 0).get(timeout=20).offset
            pipe.sent[0, offset] = value
        end()
    producer.close()
    markers = [10, 21, 32]
    assert sorted(offset for _, offset in pipe.sent) == [n for n in range(33) if n not in markers]
    consumer = pipe.consume()
    # The log ends with a marker, and no record: what is claimed is claimed all the same.
    wait_for(lambda: chains.read_progress(FolderStore(pipe.lake), 1, 0) is not None, "a claim")
    claim = chains.read_progress(FolderStore(pipe.lake), 1, 0)
    assert claim is not None
    assert claim.next == 33
    assert pipe.stop(consumer) == 0, pipe.log()
    oracle = pipe.read()[0]
    # A lake keeps what was written, whatever its writer thought of it later.
    assert oracle.records == {offset: value for (_, offset), value in pipe.sent.items()}
    assert oracle.missing == markers


def test_the_log_s_end_is_answered_for_busy_idle_empty_and_marked_partitions(
    cluster: Cluster, tmp_path: Path
) -> None:
    with piping(cluster, tmp_path, 3) as pipe:
        pipe.send([(0, value, headers) for _, value, headers in book_records(500, 1)])
        producer = KafkaProducer(
            **kafka.client_config(cluster.bootstrap), acks="all", transactional_id=f"t-{pipe.topic}"
        )
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(pipe.topic, b"1", b"BTC", [], 1).get(timeout=20)
        producer.commit_transaction()
        producer.close()
        config = kafka.client_config(cluster.bootstrap)
        tps = [TopicPartition(pipe.topic, n) for n in range(3)]
        for positions in ((0, 0, 0), (500, 2, 0), (250, 1, 0)):
            ends = log_ends(config, dict(zip(tps, positions, strict=True)), 10)
            assert [ends[tp] for tp in tps] == [500, 2, 0]


@pytest.mark.parametrize("incremental", [True, False])
def test_only_a_full_fetch_says_something_of_an_idle_partition(cluster: Cluster, incremental: bool) -> None:
    """Why our readers turn sessions off: within one the answers leave out what did not change."""
    topic = cluster.topic(2, assignments={0: NODES, 1: NODES})
    producer = KafkaProducer(**kafka.client_config(cluster.bootstrap), acks="all")
    reader = KafkaConsumer(
        **kafka.client_config(cluster.bootstrap),
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="none",
        enable_incremental_fetch_sessions=incremental,
        fetch_max_wait_ms=50,
    )
    answers: list[set[int]] = []
    handle = reader._fetcher._handle_fetch_response

    def note(node: int, offsets: object, sent_s: float, response: Any) -> Any:
        answers.append({part.partition_index for t in response.responses for part in t.partitions})
        return handle(node, offsets, sent_s, response)

    reader._fetcher._handle_fetch_response = note
    try:
        tps = [TopicPartition(topic, n) for n in range(2)]
        reader.assign(tps)
        for tp in tps:
            reader.seek(tp, 0)
        for number in range(5):
            producer.send(topic, b"%d" % number, partition=0).get(timeout=20)
            wait_for(lambda: bool(reader.poll(100)), "a record")
    finally:
        producer.close()
        reader.close()
    assert all(answer == {0, 1} for answer in answers) == (not incremental), answers


# ---- what a record may look like


def test_a_stamp_ahead_of_the_broker_s_clock_is_refused_and_an_old_one_is_kept(cluster: Cluster) -> None:
    topic = cluster.topic()
    now_ms = time.time_ns() // 1_000_000

    def send(value: bytes, timestamp_ms: int) -> None:
        # A producer of its own: one that was refused a record does nothing more.
        producer = KafkaProducer(**kafka.client_config(cluster.bootstrap), acks="all")
        try:
            producer.send(topic, value, partition=0, timestamp_ms=timestamp_ms).get(timeout=20)
        finally:
            producer.close()

    # As from a spool, after an outage of a month.
    send(b"old", now_ms - 30 * 86_400_000)
    send(b"a little ahead", now_ms + 30 * MINUTE_MS)
    with pytest.raises(InvalidTimestampError):
        send(b"ahead", now_ms + 2 * 60 * MINUTE_MS)
    assert [record.value for record in read_all(cluster.bootstrap, topic)] == [b"old", b"a little ahead"]


def test_every_codec_that_a_topic_may_have_is_read(cluster: Cluster, tmp_path: Path) -> None:
    codecs = ("uncompressed", "gzip", "snappy", "lz4", "zstd")
    with ExitStack() as ending:
        pipes = []
        for codec in codecs:
            folder = tmp_path / codec
            folder.mkdir()
            # The brokers write each batch anew in the topic's codec, the Java way.
            pipes.append(ending.enter_context(piping(cluster, folder, 1, compression_type=codec)))
            pipes[-1].send(book_records(1000, 1))
        consumers = [pipe.consume() for pipe in pipes]
        for codec, pipe, consumer in zip(codecs, pipes, consumers, strict=True):
            wait_for(lambda: "carrying" in pipe.log(), f"the consumer of {codec} to begin")  # noqa: B023
            assert pipe.stop(consumer) == 0, pipe.log()
            assert_exactly_once(pipe)
