"""Who is let in: the exchange's limits, and refusals that were ordered.

Counters over time, without sockets: the clock is handed in. The limit of REST requests a second is `rest`'s
own; what becomes of a client that ignores it is decided here.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass

from ingest_services.simulator.faults import Fault

CONNECTIONS_PER_S = 5
MESSAGES_PER_S = 5
MESSAGES_PER_MINUTE = 100
ORIGIN_EVERY_S = 10.0
# So many requests that are refused with 429 within the time below, and an address is blocked.
PATIENCE = 5
_PATIENCE_S = 10.0
_FIRST_BLOCK_S = 1.0
_LONGEST_BLOCK_S = 300.0

TOO_MANY = "Too many API requests."
DOWN = "<html><head><title>503 Service Temporarily Unavailable</title></head></html>"


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer instead of the one that was wanted."""

    status: int
    text: str


class SlidingLimit:
    """At most so many events within any span of so many seconds."""

    def __init__(self, count: int, seconds: float) -> None:
        """Begin with none.

        Args:
            count: Events that pass.
            seconds: Length of the span.
        """
        self._seconds = seconds
        self._passed: deque[float] = deque(maxlen=count)

    def take(self, now: float) -> bool:
        """Let an event pass, or not; one that does not pass is not counted.

        Args:
            now: A time in seconds that only goes forward.
        """
        passed = self._passed
        if len(passed) == passed.maxlen and now - passed[0] < self._seconds:
            return False
        passed.append(now)
        return True


class MessageLimit:
    """The limits of one connection's messages."""

    def __init__(self) -> None:
        """Begin with none."""
        self._limits = (SlidingLimit(MESSAGES_PER_S, 1.0), SlidingLimit(MESSAGES_PER_MINUTE, 60.0))

    def take(self, now: float) -> bool:
        """Tell whether a message is within the limits; `now` in seconds."""
        return all(limit.take(now) for limit in self._limits)


class _Block:
    """One address: how often it ignored a 429, and how long it is blocked."""

    def __init__(self) -> None:
        self._refused: deque[float] = deque(maxlen=PATIENCE)
        self._length_s = _FIRST_BLOCK_S
        self._until = -math.inf

    def left(self, now: float) -> float:
        return self._until - now

    def refused(self, now: float) -> None:
        self._refused.append(now)
        if len(self._refused) == PATIENCE and now - self._refused[0] < _PATIENCE_S:
            self._refused.clear()
            self._until = now + self._length_s
            self._length_s = min(2 * self._length_s, _LONGEST_BLOCK_S)


@dataclass(slots=True)
class _Ordered:
    """A refusal that was ordered, until its time or its number is over."""

    where: str
    refusal: Refusal
    until: float
    left: float


class Gate:
    """What stands before the WebSocket and the REST API."""

    def __init__(self, clock: Callable[[], float], *, limits: bool) -> None:
        """Open.

        Args:
            clock: Returns a time in seconds that only goes forward.
            limits: Keep the exchange's limits of connections, of requests with an `Origin`, and of patience.
        """
        self._clock = clock
        self._limits = limits
        self._connections: dict[str, SlidingLimit] = defaultdict(lambda: SlidingLimit(CONNECTIONS_PER_S, 1.0))
        self._origins: dict[str, SlidingLimit] = defaultdict(lambda: SlidingLimit(1, ORIGIN_EVERY_S))
        self._blocks: dict[str, _Block] = defaultdict(_Block)
        self._ordered: list[_Ordered] = []

    def order(self, fault: Fault) -> None:
        """Take on `refuse` or `rest-down`."""
        for_s = fault.number("for_s")
        count = fault.number("count")
        if fault.name == "rest-down":
            where, refusal = "rest", Refusal(503, DOWN)
        else:
            status = fault.whole("status")
            where = fault.text("where")
            refusal = Refusal(status, TOO_MANY if status == 429 else _blocked(for_s or 1.0))
        self._ordered.append(
            _Ordered(
                where,
                refusal,
                math.inf if for_s is None else self._clock() + for_s,
                math.inf if count is None else count,
            )
        )

    def refuse(self, where: str, address: str, origin: str | None) -> Refusal | None:
        """Decide on a request; None lets it pass.

        Args:
            where: `ws` for a handshake, `rest` for a REST request.
            address: The client's.
            origin: Its `Origin` header.
        """
        now = self._clock()
        self._ordered = [o for o in self._ordered if o.left > 0 and now < o.until]
        for ordered in self._ordered:
            if ordered.where in (where, "both"):
                ordered.left -= 1
                return ordered.refusal
        if not self._limits:
            return None
        if origin is not None and not self._origins[address].take(now):
            return Refusal(429, TOO_MANY)
        if where == "rest":
            left = self._blocks[address].left(now)
            return Refusal(418, _blocked(left)) if left > 0 else None
        return None if self._connections[address].take(now) else Refusal(429, TOO_MANY)

    def refused(self, address: str) -> None:
        """Hear that a REST request was answered with 429."""
        if self._limits:
            self._blocks[address].refused(self._clock())


def _blocked(seconds: float) -> str:
    return f"Your address is blocked for {math.ceil(seconds)} seconds: too many API requests."
