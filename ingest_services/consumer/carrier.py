"""One consumer group's partitions, carried from Kafka into the lake (`docs/commit-chain.md`).

The loop only reads, cuts and looks after what runs elsewhere: uploads, commits and questions to the broker
happen in other threads, so a slow store never starves it. What it asks of the broker is `Log`; what time it
is, how threads are made and where batches go is given to it, too, so that `tests/simulation/` runs this very
code.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

import structlog
from kafka import TopicPartition
from kafka.errors import KafkaError, OffsetOutOfRangeError

from ingest_services import kafka
from ingest_services.config import ConsumerSection
from ingest_services.consumer import metrics
from ingest_services.consumer.buffer import Batch, Buffer
from ingest_services.consumer.entries import read_record
from ingest_services.consumer.log import Log, connect_log
from ingest_services.consumer.sink import MAX_BACKOFF_S, Sink, Stopped
from ingest_services.errors import UserError
from ingest_services.lake import chain as chains
from ingest_services.lake.chain import Chain, Commit, Fenced, Progress, Retired, Sealed
from ingest_services.lake.layout import MINUTE_MS
from ingest_services.settings import IngestSettings

# One object per ticker and minute: 855 markets of the exchange over a few minutes of catching up.
MAX_FILES_PER_COMMIT = 2_000
# A batch is packed while the next one is read; what that takes beside the budget grows with the batch.
MAX_BATCH_BYTES = 32 << 20
MAX_BATCH = 1 / 4
# From this share of the budget on, batches are cut by size: so late, because the budget should hold a minute
# of everything, and what is cut within it needs an object more. And only while less than the other share is
# on its way to the lake already.
SHORT_OF_MEMORY = 7 / 8
ON_ITS_WAY = 1 / 8
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
        last: Where the newest commit that is known begins; None if none is.
        through_ms: The last claim: end of a minute, ms since the epoch.
        proven: The end of a minute and the log's end learned after that minute and lateness had passed.
        job: The commit that is running, at most one.
        job_bytes: Size of its lines.
        job_oldest_us: When the first of its records was received, µs since the epoch; None if it has none.
        paused: Whether reading is paused because the budget is spent.
    """

    section: ConsumerSection
    chain: Chain
    buffer: Buffer
    committed: int
    last: int | None = None
    through_ms: int = 0
    proven: tuple[int, int] | None = None
    job: Future[Commit | None] | None = None
    job_bytes: int = 0
    job_oldest_us: int | None = None
    paused: bool = False

    @property
    def tp(self) -> TopicPartition:
        """Topic and partition, as the Kafka client names them."""
        return TopicPartition(self.section.topic, self.section.partition)


@dataclass(frozen=True)
class Question:
    """Where the log ends, asked when a minute was over.

    Attributes:
        due_ms: The end of the newest minute that was over, with `lateness`, when it was asked, ms.
        read: Up to where everything was read then, by partition.
        answer: The ends, by partition.
    """

    due_ms: int
    read: dict[TopicPartition, int]
    answer: Future[dict[TopicPartition, int]]


@dataclass
class Carrier:
    """Carries the partitions of some sections of one group until `stopping` is set.

    Attributes:
        sections: The sections; all of one group.
        settings: The process's settings.
        sink: Where batches go.
        stopping: Ends the work: read to the end (bounded), commit everything, return.
        budget: Bytes that its partitions may hold in memory together.
        connect: Connects to the log; brokers and group.
        workers: Makes threads; how many and their name.
        polled_s: When the broker was last asked for records, monotonic clock; 0 if never.
        trouble: Why it cannot carry at present; empty if it can.
    """

    sections: Sequence[ConsumerSection]
    settings: IngestSettings
    sink: Sink
    stopping: threading.Event
    budget: int
    connect: Callable[[str, str], Log] = connect_log
    workers: Callable[[int, str], Executor] = ThreadPoolExecutor
    polled_s: float = field(default=0.0, init=False)
    trouble: str = field(default="", init=False)
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
                self.trouble = f"cannot carry ({error or type(error).__name__})"
                pause_s = min(2 * pause_s, MAX_BACKOFF_S)
            self.stopping.wait(pause_s)

    def _carry(self) -> None:
        with ExitStack() as closing:
            broker = self.connect(self.settings.kafka_bootstrap, self.sections[0].group)
            closing.callback(broker.close)
            # One thread a partition: a job mostly waits for its uploads.
            jobs = self.workers(len(self.sections), "commit")
            closing.callback(jobs.shutdown, wait=True, cancel_futures=True)
            # One asks where the log ends, one looks after the chains.
            questions = self.workers(2, "questions")
            closing.callback(questions.shutdown, wait=False, cancel_futures=True)
            session = Session(
                self.sections,
                self.settings,
                self.sink,
                self.stopping,
                self.budget,
                broker,
                jobs,
                questions,
            )
            # At the start a retired topic is a mistake that a person should see.
            session.open(skip_retired=self._began)
            self._began = True
            self.trouble = ""
            try:
                while session.step():
                    self.polled_s = self.sink.clock.monotonic_s()
            except OffsetOutOfRangeError:
                session.save_what_is_gone()
                raise
            session.finish()


@dataclass
class Session:
    """One connection's life: from finding the chains to a change of the log, or to the end.

    Attributes:
        sections: What to carry.
        settings: The process's settings.
        sink: Where batches go.
        stopping: Ends the work.
        budget: Bytes that the partitions may hold in memory together, and one poll more.
        log: The connection.
        jobs: Runs commits.
        questions: Asks the broker.
    """

    sections: Sequence[ConsumerSection]
    settings: IngestSettings
    sink: Sink
    stopping: threading.Event
    budget: int
    log: Log
    jobs: Executor
    questions: Executor
    _partitions: list[Partition] = field(default_factory=list)
    _question: Question | None = None
    _due_ms: int = 0
    _check: Future[None] | None = None
    _check_at_s: float = 0.0
    _drain_until_s: float | None = None
    _retired: list[int] = field(default_factory=list)

    def open(self, *, skip_retired: bool = False) -> None:
        """Find the chain of every topic, and begin each partition at its chain's tail.

        Args:
            skip_retired: Carry the other topics if one was retired.

        Raises:
            Retired: If a topic was retired; with `skip_retired`, if all were.
        """
        for topic in dict.fromkeys(section.topic for section in self.sections):
            try:
                self._open_topic(topic)
            except (Retired, kafka.TopicMissing) as error:
                retirement = self.sink.persist("chain", lambda: self._find_retirement(topic))  # noqa: B023
                if retirement is None or not skip_retired:
                    raise
                log.error("not carried any more", topic=topic, cause=str(error))
                self._retired.append(retirement.number)
                last = error
        if not self._partitions:
            raise last
        self.log.begin({partition.tp: partition.buffer.next for partition in self._partitions})
        self._check_at_s = self.sink.clock.monotonic_s() + CHECK_CHAIN_S

    def _find_retirement(self, topic: str) -> Chain | None:
        newest = chains.current_chain(chains.read_chains(self.sink.store), topic)
        return newest if newest is not None and newest.retires else None

    def _open_topic(self, topic: str) -> None:
        topic_id, numbers = self.log.describe(topic)
        sections = [section for section in self.sections if section.topic == topic]
        for section in sections:
            if section.partition not in numbers:
                raise UserError(
                    f"{self.settings.consumer_conf} [{section.name}] "
                    f"partition_number={section.partition}: "
                    f"topic {topic} has partitions {numbers[0]} to {numbers[-1]}"
                )
        starts = self.log.starts([TopicPartition(topic, number) for number in numbers])
        log_start = {tp.partition: offset for tp, offset in starts.items()}

        def log_end() -> dict[int, int]:
            ends = self.log.ends(starts)
            # Everything that we were told is of one topic only if it is still the same after the chains were
            # read: who slept in between would close the chain of the topic that was made meanwhile.
            self._require_topic(topic, topic_id, numbers)
            return {tp.partition: offset for tp, offset in ends.items()}

        def open_chain() -> Chain:
            now_ms = self.sink.clock.now_ms()
            return chains.open_chain(self.sink.store, topic, topic_id, log_start, log_end, now_ms)

        chain = self.sink.persist("chain", open_chain)
        for section in sections:
            self._partitions.append(self._begin(section, chain, log_start[section.partition]))

    def _begin(self, section: ConsumerSection, chain: Chain, log_start: int) -> Partition:
        hint = self.log.hint(TopicPartition(section.topic, section.partition))
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
        begun = Partition(section, chain, buffer, tail)
        if claimed is not None:
            begun.last, begun.through_ms = claimed.last, claimed.minutes_through_ms
        return begun

    def step(self) -> bool:
        """Do one turn of everything; return whether there is another one."""
        self._heed_stopping()
        self._read()
        for partition in self._partitions:
            self._settle(partition)
        self._learn()
        self._look_at_chains()
        self._ask()
        for partition in self._partitions:
            self._advance(partition)
        self._cut_by_size()
        self._pause_or_resume()
        return not self._drained()

    def _heed_stopping(self) -> None:
        if self._drain_until_s is not None or not self.stopping.is_set():
            return
        self._drain_until_s = self.sink.clock.monotonic_s() + DRAIN_S
        # What was learned before the signal says nothing about the end now: ask once more.
        self._question, self._due_ms = None, 0
        for partition in self._partitions:
            partition.proven = None

    def _read(self) -> None:
        for tp, read in self.log.poll().items():
            partition = next(p for p in self._partitions if p.tp == tp)
            for record in read.records:
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
            if read.position is not None:
                partition.buffer.advance(read.position)
            held = partition.buffer.bytes + partition.job_bytes
            behind = max(0, (read.high or 0) - partition.buffer.next)
            metrics.LAG.labels(tp.topic, tp.partition).set(behind)
            metrics.BUFFERED.labels(tp.topic, tp.partition).set(held)
            oldest_us = partition.job_oldest_us or partition.buffer.oldest_us
            age_s = 0 if oldest_us is None else self.sink.clock.now_ms() / 1000 - oldest_us / 1e6
            metrics.OLDEST.labels(tp.topic, tp.partition).set(max(0, age_s))

    def _settle(self, partition: Partition) -> None:
        """Look after a job that ended."""
        job = partition.job
        if job is None or not job.done():
            return
        partition.job = None
        partition.job_bytes, partition.job_oldest_us = 0, None
        try:
            commit = job.result()
        except Sealed as seal:
            raise LogChanged(f"sealed: {seal}") from seal
        except Fenced as fence:
            self._start_over(partition, fence)
            return
        if commit is not None:
            self._count(partition, commit)

    def _count(self, partition: Partition, commit: Commit) -> None:
        name = partition.section.name
        partition.committed, partition.last = commit.next, commit.base
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
        self.log.publish(partition.tp, commit.next)

    def _start_over(self, partition: Partition, fence: Fenced) -> None:
        """Another writer is at work: forget the buffer and go on at the tail."""
        store, number = self.sink.store, partition.section.partition
        tail = self.sink.persist(
            "tail", lambda: chains.find_tail(store, partition.chain, number, partition.committed)
        )
        log.warning("another writer was first", section=partition.section.name, at=str(fence), tail=tail)
        metrics.FENCED.labels(partition.section.name).inc()
        partition.buffer = Buffer(tail)
        partition.last, partition.committed = partition.committed, tail
        partition.proven = None
        self.log.seek(partition.tp, tail)

    def _ask(self) -> None:
        """Ask where the log ends if a minute is over of which that is not known yet."""
        if self._question is not None:
            return
        late_ms = int(self.sink.clock.now_ms() - self.settings.lateness_s * 1000)
        newly_due_ms = late_ms // MINUTE_MS * MINUTE_MS
        if newly_due_ms <= self._due_ms and not self._unproven():
            return
        self._due_ms = newly_due_ms
        read = {p.tp: p.buffer.next for p in self._partitions}
        self._question = Question(newly_due_ms, read, self.questions.submit(self.log.ends, read))

    def _unproven(self) -> bool:
        due_ms = self._due_ms
        return any(
            p.through_ms < due_ms and (p.proven is None or p.proven[0] < due_ms) for p in self._partitions
        )

    def _learn(self) -> None:
        question = self._question
        if question is None or not question.answer.done():
            return
        self._question = None
        try:
            ends = question.answer.result()
        except OffsetOutOfRangeError:
            raise
        except KafkaError as error:
            log.warning("the broker does not say where its log ends", cause=str(error))
            return
        for partition in self._partitions:
            end, read = ends[partition.tp], question.read[partition.tp]
            # Against what was read when we asked: what came later may lie beyond the answer.
            if end < read:
                raise LogChanged(f"{partition.tp} ends at {end}, and was read up to {read}")
            partition.proven = (question.due_ms, end)

    def _look_at_chains(self) -> None:
        """Look for a change between commits, too: a topic without records would hide it for a minute."""
        if self._check is not None and self._check.done():
            self._check.result()
            self._check = None
        if self._check is None and self.sink.clock.monotonic_s() >= self._check_at_s:
            self._check = self.questions.submit(self._require_chains)
            self._check_at_s = self.sink.clock.monotonic_s() + CHECK_CHAIN_S

    def _advance(self, partition: Partition) -> None:
        """Start the next job if a minute is over and there is something to commit or to claim."""
        if partition.job is not None:
            return
        buffer = partition.buffer
        if partition.proven is None or buffer.next < partition.proven[1]:
            return
        end_ms = partition.proven[0]
        if end_ms <= partition.through_ms:
            return
        batch = self._take(partition, buffer.count_through(end_ms))
        claim_ms = None if buffer.count_through(end_ms) else end_ms
        self._start(partition, batch, claim_ms)

    def _take(self, partition: Partition, count: int) -> Batch | None:
        most = min(MAX_BATCH_BYTES, int(self.budget * MAX_BATCH))
        return partition.buffer.take(count, MAX_FILES_PER_COMMIT, most)

    def _cut_by_size(self) -> None:
        """Cut the largest buffers while memory is short and not enough of it is on its way to the lake."""
        if self._held() < self.budget * SHORT_OF_MEMORY:
            return
        on_its_way = sum(partition.job_bytes for partition in self._partitions)
        idle = [p for p in self._partitions if p.job is None and len(p.buffer)]
        for partition in sorted(idle, key=lambda p: p.buffer.bytes, reverse=True):
            if on_its_way >= self.budget * ON_ITS_WAY:
                return
            self._start(partition, self._take(partition, len(partition.buffer)), None)
            on_its_way += partition.job_bytes

    def _pause_or_resume(self) -> None:
        """Stop reading all partitions while the budget is spent."""
        spent = self._held() >= self.budget
        for partition in self._partitions:
            if partition.paused != spent:
                (self.log.pause if spent else self.log.resume)(partition.tp)
                partition.paused = spent

    def _held(self) -> int:
        return sum(partition.buffer.bytes + partition.job_bytes for partition in self._partitions)

    def _start(self, partition: Partition, batch: Batch | None, claim_ms: int | None) -> None:
        if batch is None and claim_ms is None:
            return
        partition.job_bytes = batch.bytes if batch else 0
        partition.job_oldest_us = batch.entries[0].received_us if batch and batch.entries else None
        partition.job = self.jobs.submit(self._commit, partition, batch, claim_ms)

    def _commit(self, partition: Partition, batch: Batch | None, claim_ms: int | None) -> Commit | None:
        chain, number = partition.chain, partition.section.partition
        commit = None
        if batch is not None:
            with metrics.COMMIT_SECONDS.time():
                commit = self.sink.commit(chain.number, number, batch, lambda: self._require_chain(chain))
            late = (f.rows for f in commit.files if f.kind == "book" and f.minute_ms < partition.through_ms)
            metrics.LATE.labels(partition.section.name).inc(sum(late))
            for entry in batch.entries:
                if entry.reason:
                    metrics.QUARANTINED.labels(partition.section.name, entry.reason).inc()
        else:
            # A claim speaks of this topic's log, too: what the broker answered may have been another's.
            self._require_chain(chain)
        if claim_ms is not None:
            reached, last = (batch.next, batch.base) if batch else (partition.committed, partition.last)
            now_ms = self.sink.clock.now_ms()
            self.sink.claim(Progress(chain.number, number, reached, claim_ms, now_ms, last))
            partition.through_ms = claim_ms
            metrics.THROUGH.labels(chain.topic, number).set(claim_ms / 1000)
        return commit

    def _require_chains(self) -> None:
        for chain in {partition.chain.number: partition.chain for partition in self._partitions}.values():
            self._require_chain(chain)
        for number in self._retired:
            if self.sink.persist("chain", lambda: chains.is_closed(self.sink.store, number)):  # noqa: B023
                raise LogChanged(f"the topic of chain {number} was taken up again")

    def _require_chain(self, chain: Chain) -> None:
        """Wait for the broker to say that the topic is still the one whose records are in the buffers.

        Raises:
            LogChanged: If it is not, or if another writer saw a change that we did not, and closed the chain.
            Stopped: If the broker does not answer until the process has to end.
        """
        self._require_topic(chain.topic, chain.topic_id, chain.partitions)
        if self.sink.persist("chain", lambda: chains.is_closed(self.sink.store, chain.number)):
            raise LogChanged(f"chain {chain.number} is closed")

    def _require_topic(self, topic: str, topic_id: str, numbers: tuple[int, ...]) -> None:
        found_id, found = self._describe(topic)
        if (found_id, found) != (topic_id, numbers):
            raise LogChanged(
                f"topic {topic} has id {found_id} and partitions {list(found)}, "
                f"we knew {topic_id} and {list(numbers)}"
            )

    def _describe(self, topic: str) -> tuple[str, tuple[int, ...]]:
        backoff_s = 0.1
        while True:
            try:
                return self.log.describe(topic)
            except kafka.TopicMissing as error:
                raise LogChanged(str(error)) from error
            except KafkaError as error:
                log.warning("the broker does not name the topic's id, trying again", cause=str(error))
                if self.sink.gave_up.wait(backoff_s):
                    raise Stopped(f"topic id of {topic}: {error}") from error
                backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)

    def _drained(self) -> bool:
        """Return whether everything up to the log's end was read, or there is no more time for it."""
        if self._drain_until_s is None:
            return False
        return self.sink.clock.monotonic_s() > self._drain_until_s or all(
            p.proven is not None and p.buffer.next >= p.proven[1] for p in self._partitions
        )

    def save_what_is_gone(self) -> None:
        """If retention overtook us, commit what was read: the log does not have it any more.

        If the log was rolled back instead, what it has now counts, and that is read again.
        """
        starts = self.log.starts([partition.tp for partition in self._partitions])
        if any(starts[partition.tp] > partition.committed for partition in self._partitions):
            log.warning("the broker no longer has what was read; committing it before anything else")
            self.finish()

    def finish(self) -> None:
        """Commit everything that was read, of all partitions at once: after a signal there is little time."""
        left = self._partitions
        while left := [p for p in left if p.job is not None or len(p.buffer)]:
            for partition in left:
                if partition.job is None:
                    self._start(partition, self._take(partition, len(partition.buffer)), None)
            for partition in left:
                if partition.job is not None:
                    partition.job.exception()
                self._settle(partition)
