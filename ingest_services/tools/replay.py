"""What was committed, once more: to a topic, or into a file that the simulator plays.

A record is selected by when it was received, because that is when it went into Kafka; its bytes and headers
are the original ones. The order is that of the log in each partition, and of receipt between partitions.
"""

from __future__ import annotations

import heapq
import time
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from crc32c import crc32c
from kafka import KafkaProducer
from kafka.errors import KafkaError

from ingest_services import kafka
from ingest_services.errors import UserError
from ingest_services.lake import chain as chains
from ingest_services.lake import layout, lines
from ingest_services.lake.chain import Chain, Commit, CommitFile
from ingest_services.lake.lines import Line
from ingest_services.lake.slots import in_order
from ingest_services.lake.store import ObjectMissing, ObjectStore
from ingest_services.record import BOOK, HEARTBEAT, Envelope, Headers, Heartbeat, headers_of
from ingest_services.upbit.frames import Book, read_frame

READERS = 8
# Records that the broker has not acknowledged yet.
MAX_UNACKNOWLEDGED = 5_000
ACKNOWLEDGED_S = 60.0
# Clocks of the machines that received and committed may differ by so much.
SKEW_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Range:
    """What to replay.

    Attributes:
        from_us: Received at or after this, µs since the epoch.
        to_us: Received before this, µs.
        tickers: Books of these alone, and nothing else; empty: everything.
    """

    from_us: int
    to_us: int
    tickers: frozenset[str] = frozenset()


@dataclass
class Replayed:
    """What went out.

    Attributes:
        records: How many records.
        skipped: Records of the range that the destination cannot take: a file takes books alone.
    """

    records: int = 0
    skipped: int = 0


def read_range(store: ObjectStore, wanted: Range) -> Iterator[Line]:
    """Yield the committed records of a range.

    Memory holds one commit's objects for each partition of each chain.

    Args:
        store: The lake.
        wanted: What to read.

    Raises:
        UserError: If an object is gone or is not what its commit says.
    """
    known = chains.read_chains(store)
    ends = chains.ends_of(known)
    with ThreadPoolExecutor(READERS, "replay") as readers:
        streams = [
            _read_partition(
                store, readers, chain, partition, ends.get(chain.number, {}).get(partition), wanted
            )
            for chain in known
            for partition in chain.partitions
        ]
        # Each stream is in the order of its log; receipt only says whose turn it is.
        yield from heapq.merge(*streams, key=lambda line: line.received_us)


def record_of(line: Line) -> tuple[bytes | None, Headers]:
    """Return the key and the headers that the producer gave a record."""
    value = line.value or b""
    if line.kind == "heartbeat":
        heartbeat = Heartbeat.decode(value)
        return heartbeat.section.encode(), headers_of(Envelope(HEARTBEAT, line.received_us, line.connection))
    if line.kind == "quarantine":
        kind = HEARTBEAT if line.reason in _HEARTBEAT_REASONS else BOOK
        return line.key, headers_of(Envelope(kind, line.received_us, line.connection))
    book = read_frame(value)
    assert isinstance(book, Book)
    envelope = Envelope(BOOK, line.received_us, line.connection, book.tms, book.stream_type)
    return book.ticker.encode(), headers_of(envelope)


_HEARTBEAT_REASONS = ("not a heartbeat", "nested too deep")


def require_other_topic(store: ObjectStore, topic: str, double: str | None) -> None:
    """Check that records are not published into the topic that they came from, unless that is wanted.

    Args:
        store: The lake.
        topic: Where to publish.
        double: The topic's name once more, if everything is to be in it twice.

    Raises:
        UserError: If the lake is fed from the topic and `double` does not name it.
    """
    if topic in {chain.topic for chain in chains.read_chains(store)} and double != topic:
        raise UserError(
            f"--topic {topic}: {store.url} is fed from it, so every record would be in the lake twice; "
            f"publish into another topic, or say that you want this: --double {topic}"
        )


def publish(bootstrap: str, topic: str, records: Iterable[Line], speed: float) -> Replayed:
    """Publish records, each into the partition that it came from, and wait until all are acknowledged.

    A record's timestamp is the present: brokers expire by it, and the old one would be gone at once. When it
    was received stands in its header, which is what consumers go by.

    Args:
        bootstrap: Brokers, as in KAFKA_BOOTSTRAP.
        topic: The topic; it must have the partitions.
        records: What to publish.
        speed: Times the pace at which they were received; 0: as fast as the broker takes them.

    Raises:
        UserError: If the topic or a partition is missing, or the broker does not acknowledge a record.
    """
    _, numbers = kafka.topic_id(bootstrap, topic)
    done = Replayed()
    config: dict[str, Any] = kafka.client_config(bootstrap)
    try:
        producer = kafka.connect(
            KafkaProducer, **config, acks="all", enable_idempotence=True, linger_ms=5, max_block_ms=10_000
        )
    except KafkaError as error:
        raise kafka.unreachable(bootstrap, error) from error
    waiting: deque[Any] = deque()
    try:
        for line in paced(records, speed):
            if line.partition not in numbers:
                raise UserError(
                    f"--topic {topic} has partitions {numbers[0]} to {numbers[-1]}, the range holds records "
                    f"of partition {line.partition}; create a topic with as many"
                )
            key, headers = record_of(line)
            waiting.append(producer.send(topic, line.value, key, headers, line.partition))
            done.records += 1
            while len(waiting) > MAX_UNACKNOWLEDGED:
                waiting.popleft().get(timeout=ACKNOWLEDGED_S)
        while waiting:
            waiting.popleft().get(timeout=ACKNOWLEDGED_S)
    except KafkaError as error:
        acknowledged = done.records - len(waiting) - 1
        raise UserError(
            f"--topic {topic}: the broker did not take a record ({error}); at least {acknowledged} were "
            "published before it"
        ) from error
    finally:
        producer.close(timeout=5)
    return done


def export(path: Path, records: Iterable[Line]) -> Replayed:
    """Write books as JSON lines of `received_us` and `frame`: what `cryptostream simulate --playback` plays.

    Args:
        path: A file that is not there yet.
        records: What to write; heartbeats and what is in quarantine are left out and counted.

    Raises:
        UserError: If the file exists or cannot be written.
    """
    done = Replayed()
    partial = path.with_name(path.name + ".partial")
    try:
        if path.exists():
            raise UserError(f"--out {path}: exists; remove it or name another file")
        with partial.open("wb") as file:
            for line in records:
                if line.kind != "book" or line.value is None:
                    done.skipped += 1
                    continue
                frame = {"received_us": line.received_us, "frame": line.value.decode()}
                file.write(orjson.dumps(frame, option=orjson.OPT_APPEND_NEWLINE))
                done.records += 1
        partial.rename(path)
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written ({error.strerror or error})") from error
    finally:
        partial.unlink(missing_ok=True)
    return done


def paced(
    records: Iterable[Line],
    speed: float,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], None] = time.sleep,
) -> Iterator[Line]:
    """Yield records as fast as they were received, times `speed`; 0: at once."""
    began_s, first_us = clock(), None
    for line in records:
        if first_us is None:
            first_us = line.received_us
        if speed:
            due_s = began_s + (line.received_us - first_us) / 1e6 / speed
            if (left_s := due_s - clock()) > 0:
                wait(left_s)
        yield line


def _read_partition(
    store: ObjectStore, readers: Executor, chain: Chain, partition: int, end: int | None, wanted: Range
) -> Iterator[Line]:
    prefix = layout.commits_prefix(chain.number, partition)
    bases = array("q", (int(path[len(prefix) : len(prefix) + 20]) for path in store.list(prefix)))

    def read(at: int) -> Commit:
        return chains.read_commit(store, chain.number, partition, bases[at])

    # What was received from then on was committed later than that, and not before.
    from_ms = wanted.from_us // 1000 - SKEW_MS
    first = bisect_left(range(len(bases)), True, key=lambda at: read(at).committed_ms >= from_ms)
    expected = chain.start[partition] if first == 0 else read(first - 1).next
    for commit in in_order(readers, read, range(first, len(bases)), ahead=2 * READERS):
        if commit.base != expected or (end is not None and commit.base >= end):
            return  # No reader goes beyond a hole, or beyond the end of a closed chain.
        expected = commit.next
        yield from _read_commit(store, readers, commit, wanted)


def _read_commit(store: ObjectStore, readers: Executor, commit: Commit, wanted: Range) -> Iterator[Line]:
    files = [
        file
        for file in commit.files
        if file.min_received_us < wanted.to_us
        and file.max_received_us >= wanted.from_us
        and (not wanted.tickers or file.ticker in wanted.tickers)
    ]
    read = in_order(readers, lambda file: _read_object(store, file), files, ahead=2 * READERS)
    found = [
        line for content in read for line in content if wanted.from_us <= line.received_us < wanted.to_us
    ]
    yield from sorted(found, key=lambda line: line.offset)


def _read_object(store: ObjectStore, file: CommitFile) -> Collection[Line]:
    try:
        data = store.get(file.path)
    except ObjectMissing as error:
        raise UserError(
            f"{store.url}/{file.path}: is gone, and a commit names it; run: cryptostream audit"
        ) from (error)
    if f"{crc32c(data):08x}" != file.crc32c:
        raise UserError(f"{store.url}/{file.path}: is damaged; run: cryptostream audit")
    content = lines.decompress(file.path, data).removesuffix(b"\n")
    return [lines.read_line(line) for line in content.split(b"\n")]
