"""When to connect, ping, give up on a socket and try again: the decisions, without the sockets.

Pure apart from `ConnectionLimiter.wait`: clocks and chance are handed in, so that every rule has a test.
"""

from __future__ import annotations

import enum
import threading
import time
from collections import deque
from collections.abc import Callable

from ingest_services.backoff import Backoff

# The idle timeout was measured at 60.5 s (documented as 120 s).
KEEPALIVE_S = 3.0
# Nothing at all for this long, not even a pong: the socket is dead.
STALL_S = 8.0
# No message but pongs since the subscription: snapshots came within 0.35 s, and `UP` answers our `PING`.
FIRST_MESSAGE_S = 5.0
# No message but pongs later on: three times the longest silence of the last half to one minute, within these
# bounds. `UP` comes every 10 s, so that a quiet connection's longest silence is that.
MUTE_S = (5.0, 15.0)
MUTE_FACTOR = 3.0
USUAL_SPAN_S = 30.0
UP_EVERY_S = 10.0
# Upbit takes 5 new connections a second from one address; one is left to whatever else runs there.
CONNECTIONS_PER_SECOND = 4
# Upbit takes 5 messages a second and 100 a minute on one connection; we need 25 a minute.
MESSAGES_PER_SECOND = 4
MESSAGES_PER_MINUTE = 80
# A connection that was live for this long was a good one: the next failure is the first of its kind.
GOOD_AFTER_S = 10.0
# Refused again and again (429, 418), connecting waits for up to this long: a block grows with each attempt.
PAUSE_CAP_S = 300.0
# Whoever waits for longer says at least this often that it is not stuck.
TURN_S = 5.0
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


# Whatever happens to a connection, its feed goes through these.
NEXT: dict[State, frozenset[State]] = {
    State.CONNECTING: frozenset({State.SUBSCRIBED, State.BACKING_OFF, State.STOPPED}),
    State.SUBSCRIBED: frozenset({State.LIVE, State.STALLED, State.BACKING_OFF, State.STOPPED}),
    State.LIVE: frozenset({State.STALLED, State.BACKING_OFF, State.STOPPED}),
    State.STALLED: frozenset({State.BACKING_OFF, State.STOPPED}),
    State.BACKING_OFF: frozenset({State.CONNECTING, State.STOPPED}),
    State.STOPPED: frozenset(),
}


class Action(enum.Enum):
    """What a connection needs now."""

    NOTHING = 0
    PING = 1
    ASK_UP = 2
    GIVE_UP = 3


class Watch:
    """Watches one socket from its first second on, whether or not anything ever came."""

    def __init__(self, now_s: float, wall_s: float) -> None:
        """Begin to watch a socket that has just been subscribed.

        Args:
            now_s: Monotonic clock.
            wall_s: Wall clock, seconds since the epoch.
        """
        self._heard_s = self._message_s = self._asked_s = now_s
        self._any_message = False
        # The longest silence between messages, in this span and in the one before; unknown at first.
        self._span_end_s = now_s + USUAL_SPAN_S
        self._longest_s, self._longest_before_s = 0.0, MUTE_S[1]
        self._schedule(now_s, wall_s)

    def heard(self, now_s: float) -> None:
        """Take note that something, anything, was received."""
        self._heard_s = now_s

    def message(self, now_s: float) -> None:
        """Take note of a message: a frame or `UP`, not a mere pong."""
        self._heard_s = now_s
        silence_s = now_s - self._message_s
        self._message_s = now_s
        self._any_message = True
        self._longest_s = max(self._longest_s, silence_s)
        if now_s >= self._span_end_s:
            self._longest_before_s, self._longest_s = self._longest_s, 0.0
            self._span_end_s = now_s + USUAL_SPAN_S

    @property
    def mute_s(self) -> float:
        """How long no message may come before the connection is given up, seconds."""
        if not self._any_message:
            return FIRST_MESSAGE_S
        least_s, most_s = MUTE_S
        return min(most_s, max(least_s, MUTE_FACTOR * max(self._longest_s, self._longest_before_s)))

    def due(self, now_s: float, wall_s: float) -> Action:
        """Return what to do now; what is due counts as done."""
        silence_s = now_s - self._message_s
        if now_s - self._heard_s >= STALL_S or silence_s >= self.mute_s:
            return Action.GIVE_UP
        if silence_s > UP_EVERY_S and now_s - self._asked_s > UP_EVERY_S:
            # `UP` should have come. Perhaps the exchange forgot that it was asked for.
            self._asked_s = now_s
            return Action.ASK_UP
        if now_s >= self._ping_s:
            self._schedule(now_s, wall_s)
            return Action.PING
        return Action.NOTHING

    def _schedule(self, now_s: float, wall_s: float) -> None:
        minute_s = MINUTE_S - wall_s % MINUTE_S + AFTER_MINUTE_S
        self._ping_s = now_s + min(KEEPALIVE_S, minute_s)


class Supervision:
    """The state machine of one feed: which state it is in, and how long it waits between connections."""

    def __init__(
        self, backoff: Backoff | None = None, on_change: Callable[[State, State, str], None] | None = None
    ) -> None:
        """Begin in CONNECTING.

        Args:
            backoff: Between connections.
            on_change: Called with the state before, the state now, and the cause.
        """
        self.state = State.CONNECTING
        self._backoff = backoff or Backoff()
        self._on_change = on_change
        self._subscribed_s = 0.0

    def enter(self, state: State, cause: str = "") -> None:
        """Go to a state; staying where one is changes nothing.

        Raises:
            ValueError: If no connection goes that way.
        """
        if state is self.state:
            return
        if state not in NEXT[self.state]:
            raise ValueError(f"from {self.state.value} to {state.value}")
        was, self.state = self.state, state
        if self._on_change is not None:
            self._on_change(was, state, cause)

    def subscribed(self, now_s: float) -> None:
        """The connection stands and was told what we want."""
        self._subscribed_s = now_s
        self.enter(State.SUBSCRIBED)

    def ended(self, cause: str, now_s: float, at_least_s: float = 0.0) -> float:
        """Take note of the end of a connection, a normal close included.

        Args:
            cause: Why it ended.
            now_s: Monotonic clock.
            at_least_s: Wait no less than this, seconds.

        Returns:
            How long to wait before the next one, seconds.
        """
        was_live = self.state in (State.LIVE, State.STALLED)
        if was_live and now_s - self._subscribed_s >= GOOD_AFTER_S:
            self._backoff.reset()
        self.enter(State.BACKING_OFF, cause)
        return self._backoff.next_s(at_least_s)


class ConnectionLimiter:
    """Keeps all sections of a process together inside the exchange's limit on new connections.

    The exchange counts by address: when it refuses one section, nobody asks before the pause is over.
    """

    def __init__(
        self, per_second: int = CONNECTIONS_PER_SECOND, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._taken: deque[float] = deque(maxlen=per_second)
        self._pauses = Backoff(base_s=1.0, cap_s=PAUSE_CAP_S)
        self._paused_until_s = 0.0
        self._lock = threading.Lock()

    @property
    def pause_s(self) -> float:
        """How long nobody may connect, seconds; 0 if there is no pause."""
        with self._lock:
            return max(0.0, self._paused_until_s - self._clock())

    def refused(self, at_least_s: float) -> float:
        """Take note that the exchange asked to slow down: refusals in a row make the pause longer.

        Args:
            at_least_s: Pause no less than this, seconds.

        Returns:
            The pause, seconds.
        """
        with self._lock:
            pause_s = self._pauses.next_s(at_least_s)
            self._paused_until_s = max(self._paused_until_s, self._clock() + pause_s)
            return pause_s

    def accepted(self) -> None:
        """Take note of a connection that the exchange took: the next refusal is the first of its kind."""
        with self._lock:
            self._pauses.reset()

    def reserve_s(self) -> float:
        """Take the next free slot and return how long it is away, seconds."""
        with self._lock:
            now_s = self._clock()
            slot_s = max(now_s, self._paused_until_s)
            if len(self._taken) == self._taken.maxlen:
                slot_s = max(slot_s, self._taken[0] + 1.0)
            self._taken.append(slot_s)
            return slot_s - now_s

    def wait(self, stop: threading.Event, on_turn: Callable[[], None] = lambda: None) -> float:
        """Wait for a slot, or until `stop`.

        Args:
            stop: Ends the waiting.
            on_turn: Called every few seconds: whoever waits is not stuck.

        Returns:
            The seconds it took.
        """
        waited_s = 0.0
        while True:
            delay_s = self.reserve_s()
            waited_s += delay_s
            pause(stop, delay_s, on_turn)
            # If somebody was refused meanwhile, the slot is worth nothing.
            if stop.is_set() or not self.pause_s:
                return waited_s


def pause(stop: threading.Event, delay_s: float, on_turn: Callable[[], None]) -> None:
    """Wait, or until `stop`, and call something every few seconds.

    Args:
        stop: Ends the waiting.
        delay_s: How long to wait, seconds.
        on_turn: Called before each piece of it.
    """
    while delay_s > 0 and not stop.is_set():
        on_turn()
        stop.wait(min(delay_s, TURN_S))
        delay_s -= TURN_S


class MessageLimiter:
    """Keeps one connection inside the exchange's limits on messages."""

    def __init__(self, per_second: int = MESSAGES_PER_SECOND, per_minute: int = MESSAGES_PER_MINUTE) -> None:
        self._second: deque[float] = deque(maxlen=per_second)
        self._minute: deque[float] = deque(maxlen=per_minute)

    def take(self, now_s: float) -> bool:
        """Return whether one more message may be sent now; if so, it counts as sent."""
        for taken, span_s in ((self._second, 1.0), (self._minute, MINUTE_S)):
            if len(taken) == taken.maxlen and now_s - taken[0] < span_s:
                return False
        self._second.append(now_s)
        self._minute.append(now_s)
        return True
