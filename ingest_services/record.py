"""The Kafka record: what a producer writes and a consumer reads.

value = the frame's bytes, untouched; key = ticker; record timestamp = receive time; the rest is in headers.
A heartbeat is a record of its own kind whose value says what its connection covered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import orjson

BOOK = "book"
HEARTBEAT = "heartbeat"

Headers = list[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Envelope:
    """What the headers of a record say.

    Attributes:
        kind: `book` (any frame that is kept, garbage included) or `heartbeat`.
        received_us: When the frame was received, µs since the epoch.
        connection: Names one connection of one process: `<section>-<random>-<n>`.
        tms: The book's exchange stamp in ms, if the producer could read one.
        stream_type: `SNAPSHOT` or `REALTIME`, if the producer could read one.
    """

    kind: str
    received_us: int
    connection: str
    tms: int | None = None
    stream_type: str | None = None


@dataclass(frozen=True, slots=True)
class Covered:
    """A span of time, [from_us, to_us), over which every change of some books was received."""

    from_us: int
    to_us: int
    tickers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What one connection is subscribed to, and what it covered since its last heartbeat.

    Intervals never cross the end of a minute, and end at a moment at which the connection was known to be
    alive, never at a guess.
    """

    section: str
    connection: str
    subscribed: tuple[str, ...]
    covered: tuple[Covered, ...]

    @property
    def to_us(self) -> int | None:
        """The end of the newest covered interval, µs since the epoch."""
        return max((interval.to_us for interval in self.covered), default=None)

    def encode(self) -> bytes:
        """Return the record's value."""
        return orjson.dumps(
            {
                "section": self.section,
                "connection": self.connection,
                "subscribed": self.subscribed,
                "covered": [
                    {"from_us": c.from_us, "to_us": c.to_us, "tickers": c.tickers} for c in self.covered
                ],
            }
        )

    @classmethod
    def decode(cls, value: bytes) -> Heartbeat:
        """Read a record's value.

        Raises:
            ValueError: If it is no heartbeat.
        """
        try:
            return cls.from_json(orjson.loads(value))
        except orjson.JSONDecodeError as error:
            raise ValueError(f"not a heartbeat: {error}") from error

    @classmethod
    def from_json(cls, message: object) -> Heartbeat:
        """Read a heartbeat that was parsed already, as in a line of a coverage object.

        Raises:
            ValueError: If it is no heartbeat.
        """
        try:
            assert isinstance(message, dict)
            return cls(
                str(message["section"]),
                str(message["connection"]),
                tuple(map(str, message["subscribed"])),
                tuple(
                    Covered(int(c["from_us"]), int(c["to_us"]), tuple(map(str, c["tickers"])))
                    for c in message["covered"]
                ),
            )
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a heartbeat: {error!r}") from error


def headers_of(envelope: Envelope) -> Headers:
    """Return an envelope as Kafka headers."""
    headers = [
        ("kind", envelope.kind.encode()),
        ("received_us", str(envelope.received_us).encode()),
        ("connection", envelope.connection.encode()),
    ]
    if envelope.tms is not None:
        headers.append(("tms", str(envelope.tms).encode()))
    if envelope.stream_type is not None:
        headers.append(("stream_type", envelope.stream_type.encode()))
    return headers


def read_headers(headers: Iterable[tuple[str, bytes | None]], timestamp_ms: int) -> Envelope:
    """Read a record's headers; foreign or missing ones are replaced by what the record itself knows.

    Args:
        headers: The record's headers.
        timestamp_ms: The record's own timestamp, used where `received_us` is missing or no number.
    """
    found = {name: value or b"" for name, value in headers}
    connection = found.get("connection", b"").decode("utf-8", "replace")
    kind = HEARTBEAT if found.get("kind") == HEARTBEAT.encode() else BOOK
    received_us = _number(found.get("received_us"))
    return Envelope(
        kind,
        timestamp_ms * 1000 if received_us is None else received_us,
        connection,
        _number(found.get("tms")),
        found["stream_type"].decode("utf-8", "replace") if "stream_type" in found else None,
    )


def _number(value: bytes | None) -> int | None:
    # 20 digits bound the work on a hostile header; a µs stamp has 16.
    return int(value) if value and len(value) < 20 and value.isdigit() else None


def split_at_minutes(from_us: int, to_us: int) -> Sequence[tuple[int, int]]:
    """Cut an interval at every full minute that it crosses.

    Args:
        from_us: Start, µs since the epoch.
        to_us: End, µs since the epoch.

    Returns:
        Adjacent intervals, in order; none if the interval is empty.
    """
    minute_us = 60_000_000
    pieces = []
    while from_us < to_us:
        end = min(to_us, from_us - from_us % minute_us + minute_us)
        pieces.append((from_us, end))
        from_us = end
    return pieces
