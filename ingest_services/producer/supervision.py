"""When to connect, ping, give up on a socket and try again: the decisions, without the sockets.

Pure apart from `ConnectionLimiter.wait`: clocks and chance are handed in, so that every rule has a test.
"""

from __future__ import annotations

import enum
import random
import threading
import time
from collections import deque
from collections.abc import Callable

# The idle timeout was measured at 60.5 s (documented as 120 s).
KEEPALIVE_S = 3.0
STALL_S = 8.0
# Upbit takes 5 new connections a second from one address; one is left to whatever else runs there.
CONNECTIONS_PER_SECOND = 4
MINUTE_S = 60.0
# A ping goes out this long after each minute's end: its pong is the proof that the minute was covered whole.
AFTER_MINUTE_S = 0.02


class State(enum.StrEnum):
    """Where a section's connection stands."""

    CONNECTING = "connecting"
    SUBSCRIBED = "subscribed"
    LIVE = "live"
    STALLED = "stalled"
    BACKING_OFF = "backing_off"
    STOPPED = "stopped"


class Action(enum.Enum):
    """What a connection needs now."""

    NOTHING = 0
    PING = 1
    GIVE_UP = 2


class Backoff:
    """Capped exponential delays with jitter, for ever: there is no last try."""

    def __init__(
        self, base_s: float = 0.25, cap_s: float = 30.0, chance: random.Random | None = None
    ) -> None:
        self._base_s = base_s
        self._cap_s = cap_s
        self._failures = 0
        self._chance = chance or random.Random()  # noqa: S311 (spreads load, guards nothing)

    def next_s(self, at_least_s: float = 0.0) -> float:
        """Return how long to wait after one more failure, seconds, between half and all of the step."""
        step_s = min(self._cap_s, self._base_s * float(1 << min(self._failures, 20)))
        self._failures += 1
        return max(at_least_s, step_s * self._chance.uniform(0.5, 1.0))

    def reset(self) -> None:
        """Begin again at the base: a connection delivered."""
        self._failures = 0


class Watch:
    """Watches one socket from its first second on, whether or not anything ever came."""

    def __init__(
        self, now_s: float, wall_s: float, keepalive_s: float = KEEPALIVE_S, stall_s: float = STALL_S
    ) -> None:
        """Begin to watch.

        Args:
            now_s: Monotonic clock.
            wall_s: Wall clock, seconds since the epoch.
            keepalive_s: A ping at least this often.
            stall_s: Nothing received for this long is a dead socket.
        """
        self._keepalive_s = keepalive_s
        self._stall_s = stall_s
        self._heard_s = now_s
        self._schedule(now_s, wall_s)

    def heard(self, now_s: float) -> None:
        """Take note that something, anything, was received."""
        self._heard_s = now_s

    def due(self, now_s: float, wall_s: float) -> Action:
        """Return what to do now; a ping that is due counts as sent."""
        if now_s - self._heard_s >= self._stall_s:
            return Action.GIVE_UP
        if now_s >= self._ping_s:
            self._schedule(now_s, wall_s)
            return Action.PING
        return Action.NOTHING

    def _schedule(self, now_s: float, wall_s: float) -> None:
        minute_s = MINUTE_S - wall_s % MINUTE_S + AFTER_MINUTE_S
        self._ping_s = now_s + min(self._keepalive_s, minute_s)


class ConnectionLimiter:
    """Keeps all sections of a process together inside the exchange's limit on new connections."""

    def __init__(
        self, per_second: int = CONNECTIONS_PER_SECOND, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._taken: deque[float] = deque(maxlen=per_second)
        self._lock = threading.Lock()

    def reserve_s(self) -> float:
        """Take the next free slot and return how long it is away, seconds."""
        with self._lock:
            now_s = self._clock()
            full = len(self._taken) == self._taken.maxlen
            slot_s = max(now_s, self._taken[0] + 1.0) if full else now_s
            self._taken.append(slot_s)
            return slot_s - now_s

    def wait(self, stop: threading.Event) -> float:
        """Wait for a slot, or until `stop`; return the seconds it took."""
        delay_s = self.reserve_s()
        if delay_s > 0:
            stop.wait(delay_s)
        return delay_s
