"""One carrier at work on a log in memory and a folder, with real threads: what time alone would not show."""

from __future__ import annotations

import threading
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
from ingest_services.consumer.carrier import Session
from ingest_services.consumer.log import Read
from ingest_services.consumer.sink import Sink
from ingest_services.lake import chain as chains
from ingest_services.lake import layout
from ingest_services.lake.store import FolderStore

PARTITIONS = 6
RECORDS = 20


@dataclass
class OneBatch:
    """A log that gives some records of each partition at the first poll, and nothing more."""

    begun: dict[TopicPartition, int] = field(default_factory=dict)
    given: bool = False

    def describe(self, topic: str) -> tuple[str, tuple[int, ...]]:
        return "a", tuple(range(PARTITIONS))

    def starts(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 0)

    def ends(self, positions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(positions, RECORDS)

    def hint(self, partition: TopicPartition) -> int | None:
        return None

    def publish(self, partition: TopicPartition, offset: int) -> None:
        pass

    def begin(self, positions: Mapping[TopicPartition, int]) -> None:
        self.begun = dict(positions)

    def poll(self) -> Mapping[TopicPartition, Read]:
        records: list[Any] = []
        if not self.given:
            records = [
                SimpleNamespace(offset=n, timestamp=1_738_480_560_000, key=None, value=b"?", headers=[])
                for n in range(RECORDS)
            ]
        self.given = True
        return dict.fromkeys(self.begun, Read(records, RECORDS, RECORDS))


class MeetingStore(FolderStore):
    """No commit is made before all partitions' are about to be."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.meeting = threading.Barrier(PARTITIONS)

    def create(self, path: str, data: bytes) -> None:
        if path.startswith(layout.COMMITS):
            self.meeting.wait(30)
        super().create(path, data)


@contextmanager
def session_on(store: FolderStore) -> Iterator[Session]:
    stopping = threading.Event()
    with (
        ThreadPoolExecutor(4) as uploads,
        ThreadPoolExecutor(PARTITIONS) as jobs,
        ThreadPoolExecutor(2) as questions,
    ):
        sink = Sink(store, ZoneInfo("Asia/Seoul"), ".jsonl", uploads, lambda _: None, threading.Event())
        sections = [ConsumerSection(f"gcs_consumer{n}", "t", n, "g") for n in range(PARTITIONS)]
        settings: Any = SimpleNamespace(lateness_s=5.0, consumer_conf="consumer.conf")
        log: Any = OneBatch()
        yield Session(sections, settings, sink, stopping, 1 << 20, log, jobs, questions)


def test_after_a_signal_all_partitions_are_committed_at_once(tmp_path: Path) -> None:
    store = MeetingStore(tmp_path)
    with session_on(store) as session:
        session.open()
        session._read()
        session.stopping.set()
        try:
            session.finish()
        except threading.BrokenBarrierError:
            pytest.fail("one partition waited for another's commit, and ten seconds are not enough for many")
    (chain,) = chains.read_chains(store)
    assert [chains.find_tail(store, chain, number) for number in range(PARTITIONS)] == [RECORDS] * PARTITIONS
