"""The Kafka record: what a producer writes and a consumer reads.

value = the frame's bytes, untouched; key = ticker; record timestamp = receive time; the rest is in headers.
A heartbeat is a record of its own kind whose value says what its connection covered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import orjson

from ingest_services.upbit.markets import market_of, ticker_of

BOOK = "book"
HEARTBEAT = "heartbeat"

# A book cannot be stamped after it was received; clocks may differ by this much before it is called garbage.
# Five seconds is the default lateness: with a larger skew no minute could be called complete anyway.
CLOCK_TOLERANCE_MS = 5_000

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
class Span:
    """A span of time, [from_us, to_us), and the tickers that something is said about."""

    from_us: int
    to_us: int
    tickers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What one connection is subscribed to, and what it covered since its last heartbeat.

    Spans never cross the end of a minute, and end at a moment at which the connection was known to be alive,
    never at a guess.

    Attributes:
        section: Producer section.
        connection: The connection's name.
        subscribed: Tickers that it is subscribed to.
        covered: Over which every change of a book was received.
        holes: Spans that this connection's heartbeats claimed before, and that it was found out later to have
            missed something in: they take the claim back, for this connection alone. All holes of one
            heartbeat lie in one minute.
    """

    section: str
    connection: str
    subscribed: tuple[str, ...]
    covered: tuple[Span, ...]
    holes: tuple[Span, ...] = ()

    @property
    def to_us(self) -> int | None:
        """The end of the newest span that it speaks of, µs since the epoch; None if it speaks of none."""
        return max((span.to_us for span in (*self.covered, *self.holes)), default=None)

    @property
    def only_takes_back(self) -> bool:
        """Whether it speaks of holes alone: then it does not say what its section is subscribed to now."""
        return bool(self.holes) and not self.covered

    def encode(self) -> bytes:
        """Return the record's value."""
        return orjson.dumps(
            {
                "section": self.section,
                "connection": self.connection,
                "subscribed": self.subscribed,
                "covered": [_span_json(span) for span in self.covered],
                **({"holes": [_span_json(span) for span in self.holes]} if self.holes else {}),
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
        fields = _Fields(message)
        return cls(
            fields.name("section"),
            fields.name("connection"),
            fields.tickers("subscribed"),
            fields.spans("covered"),
            fields.spans("holes") if "holes" in fields.content else (),
        )


def _span_json(span: Span) -> dict[str, object]:
    return {"from_us": span.from_us, "to_us": span.to_us, "tickers": span.tickers}


class _Fields:
    """Reads a JSON object's fields by name and type; messages never quote a value, which may be anything.

    What passes goes into paths and into Postgres: a name that could not be stored must not get that far.
    """

    def __init__(self, content: object) -> None:
        self.content: dict[str, object] = content if isinstance(content, dict) else {}

    def name(self, field: str) -> str:
        value = self.content.get(field)
        if isinstance(value, str) and value.isprintable():
            return value
        raise ValueError(f"not a heartbeat: {field} is no name")

    def tickers(self, field: str) -> tuple[str, ...]:
        return tuple(_require_ticker(value, field) for value in self._list(field))

    def spans(self, field: str) -> tuple[Span, ...]:
        spans = map(_Fields, self._list(field))
        return tuple(Span(s._number("from_us"), s._number("to_us"), s.tickers("tickers")) for s in spans)

    def _number(self, field: str) -> int:
        value = self.content.get(field)
        if type(value) is int:
            return value
        raise ValueError(f"not a heartbeat: {field} is no whole number")

    def _list(self, field: str) -> list[object]:
        value = self.content.get(field)
        if isinstance(value, list):
            return value
        raise ValueError(f"not a heartbeat: {field} is no list")


def _require_ticker(value: object, field: str) -> str:
    try:
        if isinstance(value, str) and ticker_of(market_of(value)) == value:
            return value
    except ValueError:
        pass
    raise ValueError(f"not a heartbeat: {field} holds what is no ticker")


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
