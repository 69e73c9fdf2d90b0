"""A session on a log in memory and a folder, with real threads: its memory, and what happens at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from kafka import TopicPartition

from ingest_services.config import ConsumerSection
from ingest_services.consumer.buffer import ENTRY_BYTES, Buffer
from ingest_services.consumer.carrier import LogChanged, Session
from ingest_services.consumer.clock import Clock
from ingest_services.consumer.log import Read
from ingest_services.consumer.metrics import REGISTRY
from ingest_services.consumer.sink import Sink
from ingest_services.lake import chain as chains
from ingest_services.lake import layout
from ingest_services.lake.layout import MINUTE_MS
from ingest_services.lake.store import FolderStore

PARTITIONS = 6
BUDGET = 1 << 20
NOW_MS = 1_738_480_590_000
AGE_S = 7
# Quarantine: 750 bytes become 1,000 in base64.
VALUE = b"?" * 750
RECORD_BYTES = 1_150 + ENTRY_BYTES
POLL_RECORDS = 10


@dataclass
class ScriptedLog:
    """A log that holds some records of each partition, all of this minute, and gives ten of each a poll."""

    held: dict[int, int]
    now_ms: int = NOW_MS
    value: bytes = VALUE
    positions: dict[TopicPartition, int] = field(default_factory=dict)
    paused: set[TopicPartition] = field(default_factory=set)

    def describe(self, topic: str) -> tuple[str, tuple[int, ...]]:
        return "a", tuple(range(PARTITIONS))

    def starts(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 0)

    def ends(self, positions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return {tp: self.held.get(tp.partition, 0) for tp in positions}

    def hint(self, partition: TopicPartition) -> int | None:
        return None

    def publish(self, partition: TopicPartition, offset: int) -> None:
        pass

    def begin(self, positions: Mapping[TopicPartition, int]) -> None:
        self.positions = dict(positions)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.positions[partition] = offset

    def pause(self, partition: TopicPartition) -> None:
        self.paused.add(partition)

    def resume(self, partition: TopicPartition) -> None:
        self.paused.remove(partition)

    def poll(self) -> Mapping[TopicPartition, Read]:
        found = {}
        time.sleep(0.001)
        for tp, at in self.positions.items():
            end = min(at + POLL_RECORDS, self.held.get(tp.partition, 0))
            end = at if tp in self.paused else max(at, end)
            records: list[Any] = [
                SimpleNamespace(
                    offset=n, timestamp=NOW_MS - 1000 * AGE_S, key=None, value=self.value, headers=[]
                )
                for n in range(at, end)
            ]
            self.positions[tp] = end
            found[tp] = Read(records, end, self.held.get(tp.partition, 0))
        return found

    def at_end(self) -> bool:
        return all(at == self.held.get(tp.partition, 0) for tp, at in self.positions.items())


class MeetingStore(FolderStore):
    """No commit is made before all partitions' are about to be."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.meeting = threading.Barrier(PARTITIONS)

    def create(self, path: str, data: bytes) -> None:
        if path.startswith(layout.COMMITS):
            self.meeting.wait(30)
        super().create(path, data)


class ShutStore(FolderStore):
    """Nothing is uploaded before it is opened."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.opened = threading.Event()

    def create(self, path: str, data: bytes) -> None:
        if path.startswith("quarantine"):
            assert self.opened.wait(60)
        super().create(path, data)


@contextmanager
def session_on(store: FolderStore, **held: int) -> Iterator[tuple[Session, ScriptedLog]]:
    """A session that has found its chain; `p0=7` puts seven records into partition 0."""
    log = ScriptedLog({int(name[1:]): count for name, count in held.items()})
    with (
        ThreadPoolExecutor(4) as uploads,
        ThreadPoolExecutor(PARTITIONS) as jobs,
        ThreadPoolExecutor(2) as questions,
    ):
        clock = Clock(lambda: log.now_ms)
        sink = Sink(
            store, ZoneInfo("Asia/Seoul"), ".jsonl", uploads, lambda _: None, threading.Event(), clock
        )
        sections = [ConsumerSection(f"gcs_consumer{n}", "t", n, "g") for n in range(PARTITIONS)]
        settings: Any = SimpleNamespace(lateness_s=5.0, consumer_conf="consumer.conf")
        own: Any = log
        session = Session(sections, settings, sink, threading.Event(), BUDGET, own, jobs, questions)
        session.open()
        yield session, log


def tails(store: FolderStore) -> list[int]:
    (chain,) = chains.read_chains(store)
    return [chains.find_tail(store, chain, number) for number in range(PARTITIONS)]


def share(of_budget: float) -> int:
    """How many records take such a share of the budget."""
    return int(of_budget * BUDGET / RECORD_BYTES)


def read_all(session: Session, log: ScriptedLog) -> None:
    while not log.at_end():
        session.step()
    for partition in session._partitions:
        if partition.job is not None:
            partition.job.result()
    session.step()


def test_a_minute_that_fits_into_the_budget_is_not_cut_before_its_end_whichever_partition_it_is_of(
    tmp_path: Path,
) -> None:
    store = FolderStore(tmp_path)
    with session_on(store, p0=share(0.7), p3=share(0.1)) as (session, log):
        read_all(session, log)
        assert tails(store) == [0] * PARTITIONS
        session.finish()
    assert tails(store) == [share(0.7), 0, 0, share(0.1), 0, 0]


def test_when_memory_is_short_the_largest_is_cut_and_the_others_are_left_to_the_minutes_end(
    tmp_path: Path,
) -> None:
    store = FolderStore(tmp_path)
    with session_on(store, p0=share(0.55), p1=share(0.2), p2=share(0.2)) as (session, log):
        read_all(session, log)
        first, *others = tails(store)
        assert 0 < first < share(0.55)
        assert others == [0] * (PARTITIONS - 1)
        session.finish()


def test_a_store_that_hangs_costs_no_more_than_the_budget_and_all_is_read_on_when_it_works(
    tmp_path: Path,
) -> None:
    store = ShutStore(tmp_path)
    held = {"p0": share(2), "p1": share(0.5), "p5": share(0.5)}
    with session_on(store, **held) as (session, log):
        for _ in range(2 * share(2) // POLL_RECORDS):
            session.step()
        assert len(log.paused) == PARTITIONS
        most = BUDGET + PARTITIONS * POLL_RECORDS * RECORD_BYTES
        for _ in range(20):
            session.step()
            assert BUDGET <= session._held() <= most
        assert tails(store) == [0] * PARTITIONS
        store.opened.set()
        read_all(session, log)
        assert not log.paused
        session.finish()
    assert tails(store) == [held.get(f"p{number}", 0) for number in range(PARTITIONS)]


def test_after_a_signal_all_partitions_are_committed_at_once(tmp_path: Path) -> None:
    store = MeetingStore(tmp_path)
    with session_on(store, **{f"p{number}": 5 for number in range(PARTITIONS)}) as (session, _):
        session._read()
        session.stopping.set()
        try:
            session.finish()
        except threading.BrokenBarrierError:
            pytest.fail("one partition waited for another's commit, and ten seconds are not enough for many")
    assert tails(store) == [5] * PARTITIONS


def told(name: str, **labels: object) -> float | None:
    return REGISTRY.get_sample_value(
        f"cryptostream_consumer_{name}", {key: str(value) for key, value in labels.items()}
    )


def test_figures_say_what_is_held_how_old_it_is_how_far_it_is_to_the_end_and_what_was_done(
    tmp_path: Path,
) -> None:
    store = ShutStore(tmp_path)
    begun = {name: told(name, section="gcs_consumer2") or 0.0 for name in ("commits_total", "fenced_total")}
    read = told("quarantined_total", section="gcs_consumer2", reason="not JSON") or 0.0
    with session_on(store, p2=4 * POLL_RECORDS) as (session, log):
        session._read()
        (partition,) = (p for p in session._partitions if p.tp.partition == 2)
        # The high watermark of a log that has more than one poll brings.
        where = {"topic": "t", "partition": 2}
        assert told("lag_records", **where) == 3 * POLL_RECORDS
        assert told("buffered_bytes", **where) == partition.buffer.bytes > 0
        assert told("oldest_buffered_age_seconds", **where) == AGE_S
        store.opened.set()
        read_all(session, log)
        session.finish()
        session._read()
        assert [told(name, **where) for name in ("lag_records", "buffered_bytes")] == [0, 0]
        assert told("oldest_buffered_age_seconds", **where) == 0
    assert told("commits_total", section="gcs_consumer2") == begun["commits_total"] + 1
    assert told("quarantined_total", section="gcs_consumer2", reason="not JSON") == read + 4 * POLL_RECORDS
    # Somebody else begins where the chain began, and finds that another was first.
    with session_on(store, p2=4 * POLL_RECORDS) as (session, log):
        (partition,) = (p for p in session._partitions if p.tp.partition == 2)
        partition.buffer, partition.committed = Buffer(0), 0
        log.seek(partition.tp, 0)
        session._read()
        session.finish()
    assert told("fenced_total", section="gcs_consumer2") == begun["fenced_total"] + 1


def step_until_asked_again(session: Session) -> None:
    before = session._due_ms
    while session._due_ms == before or session._question is not None:
        session.step()


@pytest.mark.parametrize("committed", [True, False])
def test_a_log_that_ends_below_what_was_read_was_rolled_back_and_is_not_claimed(
    tmp_path: Path, committed: bool
) -> None:
    store = FolderStore(tmp_path)
    with session_on(store, p0=20) as (session, log):
        read_all(session, log)
        if committed:
            log.now_ms += MINUTE_MS
            step_until_asked_again(session)
            read_all(session, log)
            assert tails(store)[0] == 20
        # The broker says nothing of it: it brings no records for a position beyond its end.
        log.held[0] = 10
        log.now_ms += MINUTE_MS
        with pytest.raises(LogChanged, match="ends at 10, and was read up to 20"):
            step_until_asked_again(session)
    claim = chains.read_progress(store, 1, 0)
    assert claim is None or claim.minutes_through_ms < log.now_ms - MINUTE_MS


def test_books_of_a_minute_that_was_claimed_before_are_counted_as_late(tmp_path: Path) -> None:
    before = told("late_books_total", section="gcs_consumer0") or 0.0
    with session_on(FolderStore(tmp_path), p0=3) as (session, log):
        log.value = b'{"ty":"orderbook","cd":"KRW-BTC","tms":%d,"st":"REALTIME","obu":[]}' % (
            NOW_MS - 2 * MINUTE_MS
        )
        read_all(session, log)
        session.finish()
        assert told("late_books_total", section="gcs_consumer0") == before
        # All of it is older than what is claimed now.
        log.now_ms += MINUTE_MS
        step_until_asked_again(session)
        read_all(session, log)
        log.held[0] = 5
        read_all(session, log)
        session.finish()
    assert told("late_books_total", section="gcs_consumer0") == before + 2
