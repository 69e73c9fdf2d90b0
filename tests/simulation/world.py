"""One schedule: a topic, a lake, writers that die and come back, and everything that can happen to them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from types import SimpleNamespace
from unittest.mock import patch

from kafka.errors import KafkaError

from ingest_services.config import ConsumerSection
from ingest_services.consumer import carrier
from ingest_services.consumer.carrier import Carrier
from ingest_services.consumer.clock import Clock
from ingest_services.consumer.sink import Sink, Stopped
from ingest_services.errors import UserError
from ingest_services.record import BOOK, HEARTBEAT, Envelope, Heartbeat, Span, headers_of
from tests.simulation.broker import TOPIC, Broker, MemoryLog, Sent
from tests.simulation.oracle import SEOUL, Oracle
from tests.simulation.scheduler import Event, Killed, Process, Scheduler, Violation, Workers
from tests.simulation.store import Client, Faults, MemoryStore

MINUTE_MS = 60_000
BEGIN_MS = 1_738_480_560_000
LATENESS_S = 5.0
CARRIER_LATENESS_S = LATENESS_S  # a mutation changes it
# A writer's clock may be ahead of the exchange's by less than the lateness; that is what a claim rests on.
MAX_SKEW_MS = 2_000
GIVE_UP_MS, END_MS = 5_000, 9_000
MINUTES = 3
TRACE_LINES = 60
REPLAY = "python -m tests.simulation {} replays it"


@dataclass
class Writer:
    """A process with one carrier, and what can be done to it."""

    process: Process
    stopping: Event
    gave_up: Event
    carrier: Carrier | None = None
    ended: bool = False


@dataclass
class Simulation:
    """One seed's world.

    Attributes:
        seed: Decides everything.
        error: What a writer died of that no world may bring about.
    """

    seed: int
    error: BaseException | None = None

    def __post_init__(self) -> None:
        self.dice = dice = Random(self.seed)
        self.scheduler = Scheduler(dice, BEGIN_MS)
        self.scheduler.now += dice.random() * MINUTE_MS
        self.horizon = BEGIN_MS + MINUTES * MINUTE_MS + dice.random() * MINUTE_MS
        self.broker = Broker(silent_beyond_end=dice.random() < 0.3)
        self.store = MemoryStore()
        self.oracle = Oracle(self.broker, self.store, LATENESS_S * 1000 - MAX_SKEW_MS)
        self.names = itertools.count(1)
        self.serial = itertools.count()
        self.writers: list[Writer] = []
        self.readers: list[Process] = []
        self.healing = False

        # How rough this world is; a third of all worlds has no store faults, a third nobody killed.
        def trouble(most: float) -> float:
            return dice.choice((0.0, most / 4, most)) * dice.random()

        self.faults = Faults(trouble(0.15), trouble(0.15), trouble(0.05))
        self.broker.failing = trouble(0.15)
        self.kill_chance, self.freeze_chance = trouble(0.01), trouble(0.01)
        self.budget = dice.choice((3_000, 20_000, 1 << 20))
        self.skewed = dice.random() < 0.5
        self.restless = dice.random() < 0.4
        # In some there is one writer whom nobody disturbs: what it has read, it must commit.
        self.lonely = not self.restless and dice.random() < 0.15
        self.max_files = dice.choice((3, 2_000))
        if self.lonely:
            self.kill_chance = self.freeze_chance = self.broker.failing = 0.0

    # --- what happens

    def run(self) -> None:
        """Let the schedule happen.

        Raises:
            Violation: If a promise was broken.
        """
        self.broker.create(1 + self.dice.randrange(2))
        self._plan()
        for _ in range(self._how_many_writers()):
            self.scheduler.after(self.dice.random() * 20_000, self._start_if_few)
        self._go(lambda: self.scheduler.now > self.horizon)
        self._heal()
        for writer in self.writers:
            self.scheduler.kill(writer.process)
        self.oracle.check_end()
        if self.lonely:
            forgotten = self.oracle.forgotten()
            if forgotten:
                raise Violation(f"read by a writer whom nobody disturbed, and not committed: {forgotten}")

    def _how_many_writers(self) -> int:
        if self.lonely:
            return 1
        return 3 if self.restless else self.dice.choice((1, 2, 2, 3))

    def _go(self, until: Callable[[], bool]) -> None:
        self.scheduler.run(lambda: self.error is not None or until())
        if self.error is not None:
            raise self.error

    def _plan(self) -> None:
        dice, scheduler = self.dice, self.scheduler
        span = self.horizon - scheduler.now
        for _ in range(4):
            scheduler.after(span * (1 - dice.random() ** 2), self._start_reader)
        scheduler.at(self.horizon, lambda: None)
        for _ in range(20 + dice.randrange(20)):
            scheduler.after(dice.random() * span, self._append)
        for minute in range(1, MINUTES + 2):
            for _ in range(3):
                at = BEGIN_MS + minute * MINUTE_MS + dice.gauss(0, 4_000)
                if scheduler.now < at < self.horizon:
                    scheduler.at(at, self._append)
        # In some worlds the topic hardly stays the same for a minute.
        restless = self.restless
        happenings: list[tuple[float, int, Callable[[], None]]] = [
            (0.25, 2, self._truncate),
            (0.6 if restless else 0.15, 2, self._roll_back),
            (0.9 if restless else 0.1, 4, self._re_create),
            (0.9 if restless else 0.1, 2, self._add_partition),
            (0.3, 2, self._terminate),
            (0.3, 2, self._kill_somebody),
            (0.3, 3, self._set_clock),
            (0.3, 2, self._start_writer),
        ]
        if self.lonely:
            happenings = [(1.0, 4, self._truncate), (0.3, 3, self._set_clock)]
        for chance, most, happen in happenings:
            if dice.random() < chance:
                for _ in range(1 + dice.randrange(most)):
                    scheduler.after(dice.random() * span, happen)

    def _append(self) -> None:
        topic = self.broker.topic
        if topic is None:
            return
        partition = self.dice.randrange(len(topic.partitions))
        log = topic.partitions[partition]
        batch = [self._make_record() for _ in range(1 + self.dice.randrange(5))]
        for sent in batch:
            sent.partition, sent.topic_id, sent.appended_ms = partition, topic.id, self.scheduler.now
        log.append(batch, hole=self.dice.choice((0, 0, 0, 0, 2)))
        self.scheduler.note("log", f"append {partition}: [{batch[0].offset}, {log.end})")
        self.oracle.appended(batch)

    def _make_record(self) -> Sent:
        dice = self.dice
        received_ms = int(self.scheduler.now) - dice.randrange(300)
        number = next(self.serial)
        ticker = dice.choice(("BTC", "ETH"))
        luck = dice.random()
        tms = received_ms - dice.randrange(1_500)
        if luck < 0.15:
            tms -= dice.randrange(3 * MINUTE_MS)
        elif luck < 0.2:
            tms += dice.randrange(5_000)
        stream_type = dice.choice(("REALTIME", "REALTIME", "REALTIME", "SNAPSHOT"))
        value: bytes | None = (
            b'{"ty":"orderbook", "cd":"KRW-%s","tms":%d,"obu":[{"ap":%d,"bp":7.9276E-4}],"st":"%s"}'
            % (ticker.encode(), tms, number, stream_type.encode())
        )
        kind, envelope = "book", Envelope(BOOK, received_ms * 1000, "s-1", tms, stream_type)
        minute_ms = received_ms if stream_type == "SNAPSHOT" else tms
        if luck > 0.95:
            kind, minute_ms = "quarantine", received_ms
            value = dice.choice((None, b"", b"poison %d" % number, b"%s\n" % (value or b"")))
        elif luck > 0.85:
            end_us = (received_ms - dice.randrange(20_000)) * 1000
            span = Span(end_us - 1_000_000, end_us, (ticker,))
            value = Heartbeat("s", "s-1", (ticker,), (span,)).encode()
            kind, envelope = "heartbeat", Envelope(HEARTBEAT, received_ms * 1000, "s-1")
            minute_ms = (end_us - 1) // 1000
        tail = b'"%s":%s}' % (kind.encode(), value or b"")
        return Sent(
            timestamp=received_ms,
            key=dice.choice((ticker.encode(), b"lie", None)),
            value=value,
            headers=headers_of(envelope),
            kind=kind,
            ticker=ticker if kind == "book" else "",
            minute_ms=minute_ms - minute_ms % MINUTE_MS,
            tail=tail,
        )

    def _some_log(self) -> tuple[int, object]:
        topic = self.broker.topic
        if topic is None:
            return 0, None
        number = self.dice.randrange(len(topic.partitions))
        return number, topic.partitions[number]

    def _truncate(self) -> None:
        number, log = self._some_log()
        if log is not None:
            lost = log.truncate(log.start + self.dice.randrange(log.end - log.start + 1))
            self.scheduler.note("log", f"truncated {number}: starts at {log.start}")
            self.oracle.lost(lost)

    def _roll_back(self) -> None:
        number, log = self._some_log()
        if log is not None:
            lost = log.roll_back(log.end - self.dice.randrange(log.end - log.start + 1))
            self.scheduler.note("log", f"rolled back {number}: ends at {log.end}")
            self.oracle.lost(lost)

    def _re_create(self) -> None:
        topic = self.broker.topic
        if topic is None:
            return
        for log in topic.partitions:
            self.oracle.lost(log.live.values())
        self.broker.topic = None
        self.scheduler.note("log", "topic deleted")
        if self.dice.random() < 0.5:
            self._create()
        else:
            self.scheduler.after(self.dice.random() * 20_000, self._create)

    def _create(self) -> None:
        if self.broker.topic is None:
            topic = self.broker.create(1 + self.dice.randrange(3))
            self.scheduler.note("log", f"topic created: {topic.id} with {len(topic.partitions)} partitions")

    def _add_partition(self) -> None:
        topic = self.broker.topic
        if topic is not None and len(topic.partitions) < 3:
            topic.partitions.append(type(topic.partitions[0])())
            self.scheduler.note("log", f"partition {len(topic.partitions) - 1} added")

    # --- writers

    def _living(self) -> list[Writer]:
        return [writer for writer in self.writers if writer.process.alive and not writer.ended]

    def _start_writer(self) -> Writer | None:
        if len(self._living()) >= 3 or (self.broker.topic is None and not self.healing):
            return None
        scheduler = self.scheduler
        process = Process(f"w{next(self.names)}")
        if not self.healing:
            process.kill_chance, process.freeze_chance = self.kill_chance, self.freeze_chance
            process.on_death = self._start_later
        writer = Writer(process, Event(scheduler, process), Event(scheduler, process))
        self.writers.append(writer)
        self._skew(writer)
        sink = Sink(
            store=Client(scheduler, process, self.store, self.faults),
            zone=SEOUL,
            suffix=self.dice.choice((".jsonl", ".jsonl.zst")),
            uploads=Workers(scheduler, process),
            on_retry=lambda what: None,
            gave_up=writer.gave_up,
            clock=Clock(lambda: int(scheduler.now) + process.skew_ms, lambda: scheduler.now / 1000),
        )
        count = len(self.broker.topic.partitions) if self.broker.topic else 1
        sections = [ConsumerSection(f"gcs_consumer{n}", TOPIC, n, "g") for n in range(count)]
        settings = SimpleNamespace(
            kafka_bootstrap="", lateness_s=CARRIER_LATENESS_S, consumer_conf="consumer.conf"
        )
        writer.carrier = Carrier(
            sections,
            settings,
            sink,
            writer.stopping,
            self.budget,
            lambda bootstrap, group: MemoryLog(scheduler, process, self.broker),
            lambda count, name: Workers(scheduler, process),
        )
        scheduler.note(process.name, f"starts with {count} partitions")
        scheduler.spawn(process, lambda: self._run(writer))
        return writer

    def _run(self, writer: Writer) -> None:
        try:
            writer.carrier.run()
        except Killed:
            raise
        except Stopped:
            if not writer.gave_up.is_set():
                self.error = Violation(f"{writer.process.name} gave up by itself")
        except (UserError, KafkaError) as error:
            # A person sees it, and starts the service anew.
            self.scheduler.note(writer.process.name, f"cannot start: {error}")
        except BaseException as error:  # noqa: BLE001 - anything else is a fault of the code
            if self.error is None:
                self.error = error
        else:
            if not writer.stopping.is_set():
                self.error = Violation(f"{writer.process.name} ended by itself")
        writer.ended = True
        self.scheduler.note(writer.process.name, "ended")
        self._start_later()

    def _start_later(self) -> None:
        if not self.healing:
            self.scheduler.after(500 + self.dice.random() * 20_000, self._start_if_few)

    def _start_if_few(self) -> None:
        if self.healing or len(self._living()) >= 3:
            return
        if self.broker.topic is None:
            self._start_later()
        else:
            self._start_writer()

    def _skew(self, writer: Writer) -> None:
        if self.skewed:
            writer.process.skew_ms = self.dice.randrange(-30_000, MAX_SKEW_MS)

    def _start_reader(self) -> None:
        process = Process(f"r{next(self.names)}")
        store = Client(self.scheduler, process, self.store, Faults())

        def read() -> None:
            try:
                self.oracle.check_reader(store)
            except Violation as violation:
                self.error = violation

        self.readers.append(process)
        self.scheduler.spawn(process, read)

    def _set_clock(self) -> None:
        for writer in self._living():
            self._skew(writer)
            self.scheduler.note(writer.process.name, f"clock is off by {writer.process.skew_ms} ms")

    def _kill_somebody(self) -> None:
        if living := self._living():
            writer = self.dice.choice(living)
            self.scheduler.note(writer.process.name, "KILLED")
            self.scheduler.kill(writer.process)

    def _terminate(self, writer: Writer | None = None) -> None:
        if writer is None and not (living := self._living()):
            return
        writer = writer or self.dice.choice(living)
        self.scheduler.note(writer.process.name, "SIGTERM")
        writer.stopping.set()
        self.scheduler.after(GIVE_UP_MS, writer.gave_up.set)
        self.scheduler.after(END_MS, lambda: self.scheduler.kill(writer.process))

    # --- the end

    def _heal(self) -> None:
        """Everything works again, and one healthy writer has time enough."""
        self.healing = self.scheduler.calm = True
        self.scheduler.note("", "healing")
        self.faults.refused = self.faults.lost = self.faults.delayed = 0.0
        self.broker.failing = 0.0
        self.skewed = False
        self._create()
        for writer in self._living():
            if self.lonely:
                break
            if writer.stopping.is_set() or len(self._living()) == 3 or self.dice.random() < 0.5:
                self.scheduler.kill(writer.process)
            writer.process.kill_chance = writer.process.freeze_chance = 0.0
            writer.process.frozen_until = self.scheduler.now
        last = self._living()[0] if self.lonely else self._start_writer()
        assert last is not None
        now = self.scheduler.now
        goal_ms = now - now % MINUTE_MS + MINUTE_MS
        deadline = now + 8 * MINUTE_MS
        self._go(lambda: self.oracle.through_ms >= goal_ms or self.scheduler.now > deadline)
        if self.oracle.through_ms < goal_ms:
            raise Violation("no claim although everything works: an endless wait")
        for writer in self._living():
            self._terminate(writer)
        self._go(lambda: not self._living())
        if not last.ended:
            raise Violation(f"{last.process.name} did not end when told to")


def run_seed(seed: int) -> Simulation:
    """Run one schedule.

    Raises:
        Violation: With the seed and the end of the trace in its message.
    """
    simulation = Simulation(seed)
    try:
        with patch.object(carrier, "MAX_FILES_PER_COMMIT", simulation.max_files):
            simulation.run()
    except Exception as error:
        trace = "\n".join(simulation.scheduler.trace[-TRACE_LINES:])
        told = f"seed {seed} ({REPLAY.format(seed)}): {type(error).__name__}: {error}"
        raise Violation(f"{trace}\n{told}") from error
    finally:
        for process in (*(writer.process for writer in simulation.writers), *simulation.readers):
            simulation.scheduler.kill(process)
    return simulation
