"""One consumer group's partitions, carried from Kafka into the lake (`docs/commit-chain.md`).

The poll loop only reads, cuts and looks after what runs elsewhere: uploads, commits and questions to the
broker happen in other threads, so a slow store never starves it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

import structlog
from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError, KafkaTimeoutError, OffsetOutOfRangeError

from ingest_services import kafka
from ingest_services.config import ConsumerSection
from ingest_services.consumer import metrics
from ingest_services.consumer.buffer import Batch, Buffer
from ingest_services.consumer.entries import read_record
from ingest_services.consumer.sink import MAX_BACKOFF_S, Sink, Stopped
from ingest_services.consumer.watermark import log_ends
from ingest_services.errors import UserError
from ingest_services.lake import chain as chains
from ingest_services.lake.chain import Chain, Commit, Fenced, Progress
from ingest_services.lake.layout import MINUTE_MS
from ingest_services.settings import IngestSettings

POLL_MS = 100
# kafka-python's own default is 500; larger polls make better use of a big fetch.
MAX_POLL_RECORDS = 2_000
# One object per ticker and minute: 855 markets of the exchange over a few minutes of catching up.
MAX_FILES_PER_COMMIT = 2_000
MAX_BATCH_BYTES = 16 << 20
BROKER_TIMEOUT_S = 5.0
# The committed offset only saves a listing: it is not worth waiting for.
HINT_TIMEOUT_S = 1.0
DRAIN_S = 3.0
MIN_REOPEN_S = 1.0
CHECK_CHAIN_S = 5.0

log = structlog.get_logger()


class LogChanged(Exception):  # noqa: N818 - an answer, not a failure
    """The topic is another one than the chain was opened for: forget what is buffered and look again."""


@dataclass
class Partition:
    """One partition's state.

    Attributes:
        section: The section that owns it.
        chain: The chain it is carried into.
        buffer: What was read and is in no batch.
        committed: Its chain's tail.
        through_ms: The last claim: end of a minute, ms since the epoch.
        proven: The end of a minute and the log's end learned after that minute and lateness had passed.
        job: The commit that is running, at most one.
        job_bytes: Size of its lines.
        paused: Whether reading is paused because the buffer is full.
    """

    section: ConsumerSection
    chain: Chain
    buffer: Buffer
    committed: int
    through_ms: int = 0
    proven: tuple[int, int] | None = None
    job: Future[Commit | None] | None = None
    job_bytes: int = 0
    paused: bool = False

    @property
    def tp(self) -> TopicPartition:
        """Topic and partition, as the Kafka client names them."""
        return TopicPartition(self.section.topic, self.section.partition)


@dataclass
class Carrier:
    """Carries the partitions of some sections of one group until `stopping` is set.

    Attributes:
        sections: The sections; all of one group.
        settings: The process's settings.
        sink: Where batches go.
        stopping: Ends the work: read to the end (bounded), commit everything, return.
        partition_budget: Bytes that one partition may hold in memory.
        polled_s: When the broker was last asked for records, monotonic clock; 0 if never.
    """

    sections: Sequence[ConsumerSection]
    settings: IngestSettings
    sink: Sink
    stopping: threading.Event
    partition_budget: int
    polled_s: float = field(default=0.0, init=False)
    _partitions: list[Partition] = field(default_factory=list)
    _admin_lock: threading.Lock = field(default_factory=threading.Lock)
    _began: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The sections' names."""
        return tuple(section.name for section in self.sections)

    def run(self) -> None:
        """Carry until told to stop; begin anew whenever a topic turns out to be another one.

        Raises:
            UserError: If the broker cannot be reached or a section names a partition that is not there.
            Stopped: If the store failed until the process had to end.
        """
        pause_s = MIN_REOPEN_S
        while not self.stopping.is_set():
            try:
                self._carry()
            except (LogChanged, OffsetOutOfRangeError) as change:
                log.warning("topic changed, looking again", cause=str(change))
                pause_s = MIN_REOPEN_S
            except (UserError, KafkaError) as error:
                # At the start it is a mistake that a person should see; later the broker or the topic went
                # away under us, and comes back.
                if not self._began:
                    raise
                log.error("cannot carry, trying again", cause=str(error), again_in_s=pause_s)
                pause_s = min(2 * pause_s, MAX_BACKOFF_S)
            self.stopping.wait(pause_s)

    def _carry(self) -> None:
        group = self.sections[0].group
        config = kafka.client_config(self.settings.kafka_bootstrap)
        consumer = kafka.connect(
            KafkaConsumer,
            **config,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="none",
            enable_incremental_fetch_sessions=False,
            max_poll_records=MAX_POLL_RECORDS,
            fetch_max_bytes=16 << 20,
        )
        # One thread a partition: a job mostly waits for its uploads. One more asks the broker for log ends.
        jobs = ThreadPoolExecutor(len(self.sections), "commit")
        questions = ThreadPoolExecutor(2, "questions")
        with ExitStack() as closing:
            closing.callback(consumer.close, timeout_ms=1000)
            admin = kafka.connect_admin(self.settings.kafka_bootstrap)
            closing.callback(admin.close)
            closing.callback(self._partitions.clear)
            closing.callback(jobs.shutdown, wait=True, cancel_futures=True)
            closing.callback(questions.shutdown, wait=False, cancel_futures=True)
            self._open(consumer, admin)
            self._began = True
            question: Future[dict[TopicPartition, int]] | None = None
            committed: dict[TopicPartition, int] = {}
            check: Future[None] | None = None
            check_at = time.monotonic() + CHECK_CHAIN_S
            due_ms = 0
            drain_until = float("inf")
            while True:
                if self.stopping.is_set() and drain_until == float("inf"):
                    drain_until = time.monotonic() + DRAIN_S
                    # What was learned before the signal says nothing about the end now: ask once more.
                    question, due_ms = None, 0
                    for partition in self._partitions:
                        partition.proven = None
                self._read(consumer)
                for partition in self._partitions:
                    self._settle(consumer, partition)
                if question is not None and question.done():
                    self._learn(question, due_ms, committed)
                    question = None
                if check is not None and check.done():
                    check.result()
                    check = None
                if check is None and time.monotonic() >= check_at:
                    # Between commits, too: a topic without records would go unnoticed until the next minute.
                    check = questions.submit(self._require_chains, admin)
                    check_at = time.monotonic() + CHECK_CHAIN_S
                now_ms = time.time_ns() // 1_000_000
                newly_due_ms = int(now_ms - self.settings.lateness_s * 1000) // MINUTE_MS * MINUTE_MS
                if question is None and (newly_due_ms > due_ms or self._unproven(due_ms)):
                    due_ms = newly_due_ms
                    positions = {p.tp: p.buffer.next for p in self._partitions}
                    committed = {p.tp: p.committed for p in self._partitions}
                    question = questions.submit(log_ends, config, positions, BROKER_TIMEOUT_S)
                for partition in self._partitions:
                    self._advance(jobs, admin, partition)
                if drain_until < float("inf") and (self._drained() or time.monotonic() > drain_until):
                    break
            self._finish(consumer, jobs, admin)

    def _open(self, consumer: KafkaConsumer, admin: KafkaAdminClient) -> None:
        """Find the chain of every topic, and begin each partition at its chain's tail."""
        for topic in dict.fromkeys(section.topic for section in self.sections):
            self._open_topic(consumer, admin, topic)
        consumer.assign([partition.tp for partition in self._partitions])
        for partition in self._partitions:
            consumer.seek(partition.tp, partition.buffer.next)

    def _open_topic(self, consumer: KafkaConsumer, admin: KafkaAdminClient, topic: str) -> None:
        topic_id, numbers = kafka.topic_id(admin, topic)
        sections = [section for section in self.sections if section.topic == topic]
        for section in sections:
            if section.partition not in numbers:
                raise UserError(
                    f"{self.settings.consumer_conf} [{section.name}] "
                    f"partition_number={section.partition}: "
                    f"topic {topic} has partitions {numbers[0]} to {numbers[-1]}"
                )
        tps = [TopicPartition(topic, number) for number in numbers]
        starts = consumer.beginning_offsets(tps, timeout_ms=BROKER_TIMEOUT_S * 1000)
        log_start = {tp.partition: offset for tp, offset in starts.items()}
        config = kafka.client_config(self.settings.kafka_bootstrap)
        store = self.sink.store

        def log_end() -> dict[int, int]:
            ends = log_ends(config, starts, BROKER_TIMEOUT_S)
            return {tp.partition: offset for tp, offset in ends.items()}

        def open_chain() -> Chain:
            now_ms = time.time_ns() // 1_000_000
            return chains.open_chain(store, topic, topic_id, log_start, log_end, now_ms)

        chain = self.sink.persist("chain", open_chain)
        for section in sections:
            tp = TopicPartition(topic, section.partition)
            self._partitions.append(self._begin(consumer, section, chain, starts[tp]))

    def _begin(
        self, consumer: KafkaConsumer, section: ConsumerSection, chain: Chain, log_start: int
    ) -> Partition:
        tp = TopicPartition(section.topic, section.partition)
        try:
            hint = consumer.committed(tp, timeout_ms=HINT_TIMEOUT_S * 1000)
        except KafkaTimeoutError:
            hint = None
        store = self.sink.store
        tail = self.sink.persist("tail", lambda: chains.find_tail(store, chain, section.partition, hint))
        buffer = Buffer(tail)
        if log_start > tail:
            log.error(
                "the broker no longer has what comes next", section=section.name, lost=[tail, log_start]
            )
            buffer.advance(log_start)
        claimed = self.sink.persist(
            "progress", lambda: chains.read_progress(store, chain.number, section.partition)
        )
        log.info(
            "carrying", section=section.name, chain=chain.number, partition=section.partition, offset=tail
        )
        return Partition(section, chain, buffer, tail, claimed.minutes_through_ms if claimed else 0)

    def _read(self, consumer: KafkaConsumer) -> None:
        polled = consumer.poll(timeout_ms=POLL_MS)
        self.polled_s = time.monotonic()
        for partition in self._partitions:
            tp = partition.tp
            for record in polled.get(tp, ()):
                partition.buffer.append(
                    read_record(
                        tp.partition,
                        record.offset,
                        record.timestamp,
                        record.key,
                        record.value,
                        record.headers,
                    )
                )
            position = consumer.position(tp)
            if position is not None:
                partition.buffer.advance(position)
            held = partition.buffer.bytes + partition.job_bytes
            high = consumer.highwater(tp)
            metrics.LAG.labels(tp.topic, tp.partition).set(max(0, (high or 0) - partition.buffer.next))
            metrics.BUFFERED.labels(tp.topic, tp.partition).set(held)
            if not partition.paused and held >= 2 * self._batch_bytes:
                consumer.pause(tp)
                partition.paused = True
            elif partition.paused and held < self._batch_bytes:
                consumer.resume(tp)
                partition.paused = False

    @property
    def _batch_bytes(self) -> int:
        # A partition holds at most two batches, one being read and one being committed, and one poll more.
        return min(MAX_BATCH_BYTES, self.partition_budget // 2)

    def _settle(self, consumer: KafkaConsumer, partition: Partition) -> None:
        """Look after a job that ended."""
        job = partition.job
        if job is None or not job.done():
            return
        partition.job = None
        partition.job_bytes = 0
        try:
            commit = job.result()
        except Fenced as fence:
            self._start_over(consumer, partition, fence)
            return
        if commit is not None:
            self._count(consumer, partition, commit)

    def _count(self, consumer: KafkaConsumer, partition: Partition, commit: Commit) -> None:
        name = partition.section.name
        partition.committed = commit.next
        metrics.COMMITS.labels(name).inc()
        metrics.COMMITTED.labels(name, "book").inc(commit.books)
        metrics.COMMITTED.labels(name, "heartbeat").inc(commit.heartbeats)
        metrics.COMMITTED.labels(name, "quarantine").inc(commit.quarantined)
        metrics.MISSING.labels(name).inc(sum(end - start for start, end in commit.missing))
        if commit.quarantined or commit.missing:
            log.warning(
                "not everything is a book",
                section=name,
                offsets=[commit.base, commit.next],
                quarantined=commit.quarantined,
                missing=commit.missing,
            )
        # A hint for people's tools and for our next start; the lake alone says where we are.
        consumer.commit_async({partition.tp: OffsetAndMetadata(commit.next, "", -1)})

    def _start_over(self, consumer: KafkaConsumer, partition: Partition, fence: Fenced) -> None:
        """Another writer is at work: forget the buffer and go on at the tail."""
        store, number = self.sink.store, partition.section.partition
        tail = self.sink.persist(
            "tail", lambda: chains.find_tail(store, partition.chain, number, partition.committed)
        )
        log.warning("another writer was first", section=partition.section.name, at=str(fence), tail=tail)
        metrics.FENCED.labels(partition.section.name).inc()
        partition.buffer = Buffer(tail)
        partition.committed = tail
        partition.proven = None
        consumer.seek(partition.tp, tail)

    def _unproven(self, due_ms: int) -> bool:
        return any(
            p.through_ms < due_ms and (p.proven is None or p.proven[0] < due_ms) for p in self._partitions
        )

    def _learn(
        self,
        question: Future[dict[TopicPartition, int]],
        due_ms: int,
        committed: Mapping[TopicPartition, int],
    ) -> None:
        try:
            ends = question.result()
        except OffsetOutOfRangeError:
            raise
        except KafkaError as error:
            log.warning("the broker does not say where its log ends", cause=str(error))
            return
        for partition in self._partitions:
            end = ends[partition.tp]
            # Against what was committed when we asked: a later commit may lie beyond the answer.
            if end < committed[partition.tp]:
                raise LogChanged(f"{partition.tp} ends at {end}, committed is {committed[partition.tp]}")
            partition.proven = (due_ms, end)

    def _advance(self, jobs: ThreadPoolExecutor, admin: KafkaAdminClient, partition: Partition) -> None:
        """Start the next job if there is something to commit or to claim."""
        if partition.job is not None:
            return
        buffer = partition.buffer
        if buffer.bytes >= self._batch_bytes:
            self._start(jobs, admin, partition, buffer.take(len(buffer), MAX_FILES_PER_COMMIT), None)
            return
        if partition.proven is None or buffer.next < partition.proven[1]:
            return
        end_ms = partition.proven[0]
        if end_ms <= partition.through_ms:
            return
        batch = buffer.take(buffer.count_through(end_ms), MAX_FILES_PER_COMMIT)
        claim_ms = None if buffer.count_through(end_ms) else end_ms
        self._start(jobs, admin, partition, batch, claim_ms)

    def _start(
        self,
        jobs: ThreadPoolExecutor,
        admin: KafkaAdminClient,
        partition: Partition,
        batch: Batch | None,
        claim_ms: int | None,
    ) -> None:
        if batch is None and claim_ms is None:
            return
        partition.job_bytes = batch.bytes if batch else 0
        partition.job = jobs.submit(self._commit, admin, partition, batch, claim_ms)

    def _commit(
        self, admin: KafkaAdminClient, partition: Partition, batch: Batch | None, claim_ms: int | None
    ) -> Commit | None:
        chain, number = partition.chain, partition.section.partition
        commit = None
        if batch is not None:
            with metrics.COMMIT_SECONDS.time():
                commit = self.sink.commit(
                    chain.number, number, batch, lambda: self._require_chain(admin, chain)
                )
        else:
            # A claim speaks of this topic's log, too: what the broker answered may have been another's.
            self._require_chain(admin, chain)
        if claim_ms is not None:
            reached = batch.next if batch else partition.committed
            self.sink.claim(Progress(chain.number, number, reached, claim_ms, time.time_ns() // 1_000_000))
            partition.through_ms = claim_ms
            metrics.THROUGH.labels(chain.topic, number).set(claim_ms / 1000)
        return commit

    def _require_chains(self, admin: KafkaAdminClient) -> None:
        for chain in {partition.chain.number: partition.chain for partition in self._partitions}.values():
            self._require_chain(admin, chain)

    def _require_chain(self, admin: KafkaAdminClient, chain: Chain) -> None:
        """Wait for the broker to say that the topic is still the one whose records are in the buffers.

        Raises:
            LogChanged: If it is not, or if another writer saw a change that we did not, and closed the chain.
            Stopped: If the broker does not answer until the process has to end.
        """
        backoff_s = 0.1
        while True:
            try:
                with self._admin_lock:
                    topic_id, numbers = kafka.topic_id(admin, chain.topic)
                break
            except kafka.TopicMissing as error:
                raise LogChanged(str(error)) from error
            except KafkaError as error:
                log.warning("the broker does not name the topic's id, trying again", cause=str(error))
                if self.sink.gave_up.wait(backoff_s):
                    raise Stopped(f"topic id of {chain.topic}: {error}") from error
                backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)
        if (topic_id, numbers) != (chain.topic_id, chain.partitions):
            raise LogChanged(
                f"topic {chain.topic} has id {topic_id} and partitions {list(numbers)}, "
                f"chain {chain.number} is of {chain.topic_id} and {list(chain.partitions)}"
            )
        if self.sink.persist("chain", lambda: chains.is_closed(self.sink.store, chain.number)):
            raise LogChanged(f"chain {chain.number} is closed")

    def _drained(self) -> bool:
        return all(p.proven is not None and p.buffer.next >= p.proven[1] for p in self._partitions)

    def _finish(self, consumer: KafkaConsumer, jobs: ThreadPoolExecutor, admin: KafkaAdminClient) -> None:
        """Commit everything that was read."""
        for partition in self._partitions:
            while partition.job is not None or len(partition.buffer):
                if partition.job is None:
                    buffer = partition.buffer
                    self._start(jobs, admin, partition, buffer.take(len(buffer), MAX_FILES_PER_COMMIT), None)
                if partition.job is not None:
                    partition.job.exception()
                self._settle(consumer, partition)
