"""Virtual time, and processes whose threads run one at a time: at each I/O call others may go on.

A thread of the code under test is a greenlet here. It runs until it touches the world; then the earliest
thing in the queue goes on. A process can be killed at any such point: nothing of it runs ever again.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

MAX_STEPS = 60_000


class Killed(GreenletExit):
    """SIGKILL. Whatever still unwinds in a dead process meets it again at its next step into the world."""


class Violation(AssertionError):  # noqa: N818 (named after what it is)
    """A promise was broken."""


class Process:
    """A writer's process.

    Attributes:
        name: For the trace.
        alive: Whether it was not killed.
        frozen_until: SIGSTOP until this instant, virtual ms.
        skew_ms: Its clock minus the true time.
        kill_chance: That it dies at an I/O, before or after its effect.
        freeze_chance: That it is stopped there.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.frozen_until = 0.0
        self.skew_ms = 0
        self.kill_chance = 0.0
        self.freeze_chance = 0.0
        self.on_death: Callable[[], None] = lambda: None
        self.threads: list[greenlet] = []


class Scheduler:
    """Runs everything, in an order that only the seed decides."""

    def __init__(self, dice: Random, start_ms: int) -> None:
        self.dice = dice
        self.now = float(start_ms)
        self.trace: list[str] = []
        self.steps = 0
        self.calm = False
        self._start = start_ms
        self._queue: list[tuple[float, int, Process | None, Callable[[], object]]] = []
        self._count = 0
        self._hub: greenlet = getcurrent()

    def note(self, who: str, what: str) -> None:
        """Add a line to the trace."""
        self.trace.append(f"{(self.now - self._start) / 1000:9.3f} {who:5} {what}")

    def at(self, when: float, act: Callable[[], object], process: Process | None = None) -> None:
        """Do something at an instant; a process's own waits while it is frozen, and dies with it."""
        self._count += 1
        heapq.heappush(self._queue, (max(when, self.now), self._count, process, act))

    def after(self, delay_ms: float, act: Callable[[], object], process: Process | None = None) -> None:
        """Do something after some time."""
        self.at(self.now + delay_ms, act, process)

    def latency(self) -> float:
        """How long a step of the world takes, ms: mostly little, sometimes past others' whole commits."""
        luck = 0.0 if self.calm else self.dice.random()
        if luck < 0.85:
            return self.dice.random() * 30
        if luck < 0.98:
            return self.dice.random() * 1_000
        return self.dice.random() * 12_000

    def run(self, until: Callable[[], bool]) -> None:
        """Let things happen until a condition holds."""
        while not until():
            if not self._queue:
                raise Violation("nothing can happen any more: everybody waits")
            self.steps += 1
            if self.steps > MAX_STEPS:
                raise Violation(f"no end after {MAX_STEPS} steps")
            when, _, process, act = heapq.heappop(self._queue)
            self.now = max(self.now, when)
            if process is not None:
                if not process.alive:
                    continue
                if process.frozen_until > self.now:
                    self.at(process.frozen_until + self.dice.random(), act, process)
                    continue
            act()

    def spawn(self, process: Process, function: Callable[[], object]) -> None:
        """Start a thread of a process."""
        thread = greenlet(function, parent=self._hub)
        process.threads.append(thread)
        self.after(self.dice.random(), thread.switch, process)

    def rest(self, process: Process, delay_ms: float) -> None:
        """Let others go on for some time; called by a process's thread."""
        self.require_alive(process)
        self.after(delay_ms, getcurrent().switch, process)
        self._hub.switch()
        self.require_alive(process)

    def wait_for(self, process: Process, waiters: list[Callable[[], None]]) -> None:
        """Let others go on until somebody calls what this adds to `waiters`."""
        self.require_alive(process)
        thread = getcurrent()
        waiters.append(lambda: self.after(self.dice.random(), thread.switch, process))
        self._hub.switch()
        self.require_alive(process)

    def io(self, process: Process, what: str, *, weight: float = 1.0, delay_ms: float | None = None) -> None:
        """A point before or after an effect: others go on; the process may be killed or frozen here."""
        self.require_alive(process)
        if process.kill_chance and self.dice.random() < process.kill_chance * weight:
            self.note(process.name, f"KILLED at {what}")
            self.after(0, lambda: self.kill(process))
            self._hub.switch()
        if process.freeze_chance and self.dice.random() < process.freeze_chance * weight:
            freeze_ms = self.dice.choice((2_000, 8_000, 40_000, 90_000)) * self.dice.random()
            self.note(process.name, f"FROZEN for {freeze_ms / 1000:.1f} s at {what}")
            process.frozen_until = self.now + freeze_ms
        self.rest(process, self.latency() if delay_ms is None else delay_ms)

    def kill(self, process: Process) -> None:
        """End a process; called from outside of it."""
        if not process.alive:
            return
        process.alive = False
        for thread in process.threads:
            if thread and not thread.dead:
                thread.throw(Killed)
        process.threads.clear()
        process.on_death()

    @staticmethod
    def require_alive(process: Process) -> None:
        """Raise `Killed` in a process that is dead."""
        if not process.alive:
            raise Killed


class Event:
    """`threading.Event` in virtual time."""

    def __init__(self, scheduler: Scheduler, process: Process) -> None:
        self._scheduler = scheduler
        self._process = process
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True

    def wait(self, timeout: float) -> bool:
        if not self._set:
            self._scheduler.rest(self._process, timeout * 1000)
        return self._set


class Future:
    """`concurrent.futures.Future` in virtual time."""

    def __init__(self, scheduler: Scheduler, process: Process) -> None:
        self._scheduler = scheduler
        self._process = process
        self._waiters: list[Callable[[], None]] = []
        self._done = False
        self._value: Any = None
        self._error: BaseException | None = None
        self.started = False
        self.cancelled = False

    def done(self) -> bool:
        return self._done

    def result(self) -> Any:
        if (error := self.exception()) is not None:
            raise error
        return self._value

    def exception(self) -> BaseException | None:
        while not self._done:
            self._scheduler.wait_for(self._process, self._waiters)
        return self._error

    def finish(self, value: object, error: BaseException | None) -> None:
        self._value, self._error, self._done = value, error, True
        for wake in self._waiters:
            wake()


class Workers:
    """A thread pool in virtual time."""

    def __init__(self, scheduler: Scheduler, process: Process) -> None:
        self._scheduler = scheduler
        self._process = process
        self._futures: list[Future] = []

    def submit(self, function: Callable[..., object], *arguments: object) -> Future:
        future = Future(self._scheduler, self._process)
        self._futures = [f for f in self._futures if not f.done()]
        self._futures.append(future)

        def work() -> None:
            if future.cancelled:
                return
            future.started = True
            try:
                value = function(*arguments)
            except Killed:
                raise
            except BaseException as error:  # noqa: BLE001 - as a thread pool does
                future.finish(None, error)
            else:
                future.finish(value, None)

        self._scheduler.spawn(self._process, work)
        return future

    def shutdown(self, *, wait: bool, cancel_futures: bool) -> None:
        for future in self._futures:
            future.cancelled = cancel_futures and not future.started
        if wait:
            for future in self._futures:
                if not future.cancelled:
                    future.exception()
