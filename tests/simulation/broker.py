"""A topic in memory, and the `Log` that a writer's process sees of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from kafka import TopicPartition
from kafka.errors import KafkaError, KafkaTimeoutError, OffsetOutOfRangeError

from ingest_services import kafka
from ingest_services.consumer.log import Read
from tests.simulation.scheduler import Process, Scheduler

TOPIC = "orderbook"


@dataclass(eq=False)
class Sent:
    """A record that the broker acknowledged, and what the lake must make of it.

    Attributes:
        kind: `book`, `heartbeat` or `quarantine`.
        ticker: Of a book.
        minute_ms: The minute that it belongs to.
        tail: What follows the line's head (partition, offset, received, connection): the untouched bytes.
        appended_ms: When the broker had it, true time.
        shadowed: It took, after a roll-back, an offset below what somebody had read already.
        delivered: Whether a poll ever brought it.
    """

    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]
    kind: str
    ticker: str
    minute_ms: int
    tail: bytes
    appended_ms: float = 0.0
    partition: int = 0
    offset: int = -1
    topic_id: str = ""
    shadowed: bool = False
    delivered: bool = False


@dataclass(eq=False)
class PartitionLog:
    """One partition's log.

    Attributes:
        start: First offset that is kept.
        end: Offset after the last one.
        live: What it holds, by offset, in order.
        ever: Everything that was ever acknowledged at an offset.
        read_to: How far anybody ever read.
        rolled_back: How often it was rolled back.
        last_batch: First offset of the last batch.
    """

    start: int = 0
    end: int = 0
    live: dict[int, Sent] = field(default_factory=dict)
    ever: defaultdict[int, list[Sent]] = field(default_factory=lambda: defaultdict(list))
    read_to: int = 0
    rolled_back: int = 0
    last_batch: int = 0

    def append(self, batch: list[Sent], hole: int) -> None:
        self.end += hole
        self.last_batch = self.end
        for sent in batch:
            sent.offset = self.end
            sent.shadowed = self.end < self.read_to
            self.live[self.end] = sent
            self.ever[self.end].append(sent)
            self.end += 1

    def truncate(self, start: int) -> list[Sent]:
        """Forget what is below an offset, as retention does; return what was lost."""
        self.start = max(self.start, min(start, self.end))
        return [self.live.pop(offset) for offset in [o for o in self.live if o < self.start]]

    def roll_back(self, end: int) -> list[Sent]:
        """Forget what is above an offset, as a broker does that lost acknowledged records."""
        self.end = max(self.start, end)
        self.last_batch = min(self.last_batch, self.end)
        self.rolled_back += 1
        return [self.live.pop(offset) for offset in [o for o in self.live if o >= self.end]]


@dataclass(eq=False)
class Topic:
    """A topic from its creation to its deletion."""

    id: str
    partitions: list[PartitionLog]


@dataclass(eq=False)
class Broker:
    """The one topic of this world.

    Attributes:
        topic: None while it is deleted.
        topics: All that ever were, by id, in the order of their creation.
        silent_beyond_end: Whether a read beyond the end waits in silence (the embedded broker) instead of
            being refused (Kafka).
        committed: The group's committed offsets; a hint.
        failing: How often a question is not answered.
    """

    topic: Topic | None = None
    topics: dict[str, Topic] = field(default_factory=dict)
    silent_beyond_end: bool = False
    committed: dict[TopicPartition, int] = field(default_factory=dict)
    failing: float = 0.0

    def create(self, partitions: int) -> Topic:
        self.topic = Topic(f"id-{len(self.topics)}", [PartitionLog() for _ in range(partitions)])
        self.topics[self.topic.id] = self.topic
        return self.topic

    def find(self, partition: int) -> PartitionLog | None:
        if self.topic is None or partition >= len(self.topic.partitions):
            return None
        return self.topic.partitions[partition]


def larger(listed: int, watermark: int) -> int:
    """What counts as the end, as in `watermark.log_ends`."""
    return max(listed, watermark)


class MemoryLog:
    """A process's connection: `ingest_services.consumer.log.Log`.

    It reads by name, as the Kafka client does: a re-created topic is read on silently.
    """

    #: The most that one poll brings of a partition.
    most: ClassVar[int] = 40

    def __init__(self, scheduler: Scheduler, process: Process, broker: Broker) -> None:
        self._scheduler = scheduler
        self._process = process
        self._broker = broker
        self._positions: dict[TopicPartition, int] = {}
        self._fetched: dict[TopicPartition, tuple[list[Sent], int]] = {}
        self._paused: set[TopicPartition] = set()

    def _ask(self, what: str) -> None:
        self._scheduler.io(self._process, f"before {what}", weight=2)
        if self._scheduler.dice.random() < self._broker.failing:
            self._scheduler.note(self._process.name, f"no answer: {what}")
            raise KafkaTimeoutError(what)

    def _answered(self, what: str, answer: object) -> None:
        self._scheduler.note(self._process.name, f"{what} -> {answer}")
        self._scheduler.io(self._process, f"after {what}", weight=2)

    def describe(self, topic: str) -> tuple[str, tuple[int, ...]]:
        self._ask("describe")
        found = self._broker.topic
        answer = None if found is None else (found.id, tuple(range(len(found.partitions))))
        self._answered("describe", answer)
        if answer is None:
            raise kafka.TopicMissing("deleted")
        return answer

    def starts(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        self._ask("starts")
        answer = {tp: self._find(tp).start for tp in partitions}
        self._answered("starts", list(answer.values()))
        return answer

    def ends(self, positions: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """As `watermark.log_ends`: the larger of list-offsets, which may be short, and a watermark."""
        self._ask("ends")
        embedded = self._broker.silent_beyond_end
        listed = {
            tp: found.last_batch if embedded else found.end for tp in positions for found in [self._find(tp)]
        }
        self._scheduler.io(self._process, "between list-offsets and fetch")
        answer = {}
        for tp, position in positions.items():
            found = self._find(tp)
            if position < found.start or (position > found.end and not embedded):
                self._scheduler.note(
                    self._process.name, f"ends: {position} is out of range of {tp.partition}"
                )
                raise OffsetOutOfRangeError(f"{tp}: {position}")
            answer[tp] = larger(listed[tp], found.end)
        self._answered("ends", list(answer.values()))
        return answer

    def hint(self, partition: TopicPartition) -> int | None:
        self._scheduler.io(self._process, "hint")
        if self._scheduler.dice.random() < 0.2:
            return self._scheduler.dice.randrange(200)
        return self._broker.committed.get(partition)

    def publish(self, partition: TopicPartition, offset: int) -> None:
        process = self._process

        def arrive() -> None:
            self._broker.committed[partition] = offset

        self._scheduler.require_alive(process)
        self._scheduler.after(self._scheduler.latency(), arrive, process)

    def begin(self, positions: Mapping[TopicPartition, int]) -> None:
        self._positions = dict(positions)
        self._fetched.clear()

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._positions[partition] = offset
        self._fetched.pop(partition, None)

    def pause(self, partition: TopicPartition) -> None:
        self._paused.add(partition)

    def resume(self, partition: TopicPartition) -> None:
        self._paused.discard(partition)

    def poll(self) -> dict[TopicPartition, Read]:
        scheduler, process = self._scheduler, self._process
        scheduler.io(process, "before poll", delay_ms=scheduler.dice.random() * 20)
        for tp in self._positions:
            self._fetch(tp)
        reads = {}
        for tp, position in self._positions.items():
            records: list[Sent] = []
            # What was fetched may be handed over much later, whatever became of the log meanwhile.
            if tp in self._fetched and tp not in self._paused and scheduler.dice.random() < 0.8:
                records, self._positions[tp] = self._fetched.pop(tp)
            high = max(0, self._positions[tp] - scheduler.dice.randrange(3))
            reads[tp] = Read(records, self._positions[tp], high)
            for sent in records:
                sent.delivered = True
            if records:
                scheduler.note(process.name, f"read {tp.partition}: [{position}, {self._positions[tp]})")
        if not any(read.records for read in reads.values()):
            # A poll that brings nothing takes 100 ms in truth; fewer, longer ones make a shorter schedule.
            idle_ms = 100 + scheduler.dice.random() * (900 if scheduler.calm else 3_000)
            scheduler.io(process, "idle poll", delay_ms=idle_ms)
        return reads

    def _fetch(self, tp: TopicPartition) -> None:
        if tp in self._fetched or tp in self._paused:
            return
        found = self._broker.find(tp.partition)
        if found is None:
            return
        position = self._positions[tp]
        if position < found.start or (position > found.end and not self._broker.silent_beyond_end):
            self._scheduler.note(self._process.name, f"fetch: {position} is out of range of {tp.partition}")
            raise OffsetOutOfRangeError(f"{tp}: {position}")
        if position >= found.end:
            return
        most = 1 + self._scheduler.dice.randrange(self.most)
        records = [sent for offset, sent in found.live.items() if offset >= position]
        cut = records[:most]
        next_position = found.end if len(cut) == len(records) else cut[-1].offset + 1
        self._fetched[tp] = (cut, next_position)
        found.read_to = max(found.read_to, next_position)

    def _find(self, tp: TopicPartition) -> PartitionLog:
        found = self._broker.find(tp.partition)
        if found is None:
            raise KafkaError(f"{tp} is not there")
        return found

    def close(self) -> None:
        self._scheduler.require_alive(self._process)
