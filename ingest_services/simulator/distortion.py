"""What becomes of the books on their way to one connection that a fault is on: silence, or other bytes.

Pure but for the clock that is handed in. Faults of the connection as such (a reset, a close) are `session`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ingest_services.simulator.books import Publication, restamped
from ingest_services.simulator.faults import Fault

# What gateways and broken machines say, and bytes that are no text at all.
_SPECIMENS = (
    b"<html><head><title>502 Bad Gateway</title></head></html>",
    b"\xff\xfe\x00\x80 not even text",
    b"upstream connect error or disconnect/reset before headers",
    b'{"ty":"orderbook","cd":"KRW-BTC","tms":NaN,}',
    b"",
    b"{'ty': 'orderbook'}",
    b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
    b'"}]}',
)

DURATIONS = ("microseconds", "default-format")
COUNTS = ("truncate", "duplicate", "reorder", "future")


class Message(NamedTuple):
    """A data message on its way to a client.

    Attributes:
        data: The bytes.
        what: As in `Journal.sent`.
        market: Market code; empty if it is no book.
        tms: The book's own stamp, ms since the epoch; 0 if it is no book.
    """

    data: bytes
    what: str
    market: str = ""
    tms: int = 0


def garbage(count: int, start: int = 0) -> Iterator[Message]:
    """Yield messages that are no JSON, never the same two in a row.

    Args:
        count: How many.
        start: Where in the row of specimens to begin.
    """
    for number in range(start, start + count):
        yield Message(_SPECIMENS[number % len(_SPECIMENS)], "garbage")


def microsecond_stamp(stamp: int) -> int:
    """Return a stamp of ms in µs, with digits where a mere factor would have zeros."""
    return stamp * 1000 + stamp % 997


class Distortion:
    """The faults that lie on one connection's books."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Begin with none.

        Args:
            clock: Returns a time in seconds that only goes forward.
        """
        self._clock = clock
        self._stalled_until = -math.inf
        self._silent_until: dict[str, float] = {}
        self._counts = dict.fromkeys((*COUNTS, *DURATIONS), 0)
        self._until = dict.fromkeys(DURATIONS, -math.inf)
        self._by_ms = 0
        self._overtaken: dict[str, Message] = {}

    @property
    def active(self) -> bool:
        """Whether anything is left to do; if not, books may go their usual way."""
        now = self._clock()
        return bool(
            self._overtaken
            or now < self._stalled_until
            or any(self._counts.values())
            or any(now < until for until in self._until.values())
            or any(now < until for until in self._silent_until.values())
        )

    def order(self, fault: Fault) -> None:
        """Take on a fault: `stall`, `stall-code`, or one of `COUNTS` and `DURATIONS`."""
        for_s = fault.number("for_s")
        until = math.inf if for_s is None else self._clock() + for_s
        if fault.name == "stall":
            self._stalled_until = max(self._stalled_until, until)
            return
        if fault.name == "stall-code":
            self._silent_until[fault.text("market")] = until
            return
        if "count" in fault.values:
            self._counts[fault.name] += fault.whole("count")
        else:
            self._until[fault.name] = max(self._until[fault.name], until)
        if fault.name == "future":
            self._by_ms = fault.whole("by_ms")

    def subscribed(self) -> None:
        """The client has subscribed anew: no code is silent any more."""
        self._silent_until.clear()

    def silence(self, market: str = "") -> str | None:
        """Tell why a message is withheld; None if it is not.

        Args:
            market: Market code; empty if it is no book.
        """
        now = self._clock()
        if now < self._stalled_until:
            return "stall"
        if now < self._silent_until.get(market, -math.inf):
            return "stall-code"
        return None

    def overtaken(self) -> list[Message]:
        """Give up the frames that wait to be overtaken: they will never be sent."""
        waiting = list(self._overtaken.values())
        self._overtaken.clear()
        return waiting

    def messages(self, book: Publication, stream_format: str, depth: int, stream_type: str) -> list[Message]:
        """Return what is sent now in the place of a book's frame; the arguments are those of `encode`."""
        if self._strikes("default-format"):
            stream_format = "DEFAULT"
        frame = book.encode(stream_format, depth, stream_type)
        if self._strikes("future"):
            frame = restamped(frame, lambda stamp: stamp + self._by_ms)
        if self._strikes("microseconds"):
            frame = restamped(frame, microsecond_stamp)
        what = "book"
        if self._strikes("truncate"):
            frame, what = frame[: len(frame) // 2], "truncated"
        message = Message(frame, what, book.market, book.tms)
        sent = [message]
        if (earlier := self._overtaken.pop(book.market, None)) is not None:
            sent.append(earlier)
        elif self._strikes("reorder"):
            self._overtaken[book.market] = message
            return []
        if self._strikes("duplicate"):
            sent.insert(1, message._replace(what="duplicate"))
        return sent

    def _strikes(self, name: str) -> bool:
        if self._counts[name]:
            self._counts[name] -= 1
            return True
        return name in self._until and self._clock() < self._until[name]
