"""What becomes of one Kafka record: a book, a heartbeat, or quarantine with the reason.

The frame is the truth. Headers say when and by whom it was received; a key or header that contradicts the
frame changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar, cast

import orjson

from ingest_services.lake import lines
from ingest_services.lake.chain import FileKind
from ingest_services.lake.layout import MINUTE_MS
from ingest_services.record import CLOCK_TOLERANCE_MS, HEARTBEAT, Envelope, Heartbeat, read_headers
from ingest_services.upbit.frames import SNAPSHOT, Book, Frame, Garbage, read_frame

# Year 2001 to 2286 in ms. Outside of it a stamp is damage, and would scatter objects over absurd paths.
STAMPS_MS = range(10**12, 10**13)
# A book of 30 levels has 32. This bounds how deep a line can nest: parsers give up at a thousand levels or
# sooner, and a line has one more than its frame.
MOST_BRACKETS = 500


ValueT = TypeVar("ValueT", int, str)


class Unreadable(list[tuple[str, bytes | None]]):
    """The headers of a stand-in: a record made for what could not be read (`batches.py`).

    Attributes:
        reason: Why it could not be read.
    """

    def __init__(self, reason: str) -> None:
        """There are no headers; there is a reason."""
        super().__init__()
        self.reason = reason


class Entry(NamedTuple):
    """A record on its way into an object.

    Attributes:
        offset: Kafka offset.
        kind: Which kind of object it goes into.
        ticker: Canonical ticker of a book, else empty.
        minute_ms: Start of the minute that it belongs to, ms since the epoch.
        tms: Exchange stamp of a book, ms.
        received_us: Receive time, µs.
        line: The line to be written.
        reason: Why it goes into quarantine; empty if it does not.
    """

    offset: int
    kind: FileKind
    ticker: str
    minute_ms: int
    tms: int | None
    received_us: int
    line: bytes
    reason: str = ""


def read_record(
    partition: int,
    offset: int,
    timestamp_ms: int,
    key: bytes | None,
    value: bytes | None,
    headers: Sequence[tuple[str, bytes | None]],
) -> Entry:
    """Decide what a record is. Never raises: what is not understood is quarantined with its bytes.

    Args:
        partition: Kafka partition.
        offset: Kafka offset.
        timestamp_ms: The record's timestamp, used where the header with the receive time is missing.
        key: The record's key.
        value: The record's value.
        headers: The record's headers.
    """
    envelope = read_headers(headers, timestamp_ms)
    if envelope.received_us // 1000 not in STAMPS_MS:
        received_ms = min(max(timestamp_ms, STAMPS_MS.start), STAMPS_MS.stop - 1)
        envelope = Envelope(envelope.kind, received_ms * 1000, envelope.connection)
    found: Entry | str
    if isinstance(headers, Unreadable):
        found = headers.reason
    else:
        found = _understand(partition, offset, value, envelope)
    if isinstance(found, Entry):
        return found
    head = (partition, offset, envelope.received_us, envelope.connection)
    line = lines.quarantine_line(*head, found, key, value)
    minute_ms = _minute(envelope.received_us // 1000)
    return Entry(offset, "quarantine", "", minute_ms, None, envelope.received_us, line, found)


def _understand(partition: int, offset: int, value: bytes | None, envelope: Envelope) -> Entry | str:
    """Return a book's or heartbeat's entry, or why the record is neither."""
    if value is None:
        return "no value"
    if b"\n" in value or b"\r" in value:
        return "line break in the value"
    head = (partition, offset, envelope.received_us, envelope.connection)
    if envelope.kind == HEARTBEAT:
        minute_ms = _minute_of_heartbeat(value, envelope.received_us)
        if minute_ms is None:
            return "not a heartbeat"
        line = lines.heartbeat_line(*head, value)
        if not _is_json(line):
            return "nested too deep"
        entry = Entry(offset, "heartbeat", "", minute_ms, None, envelope.received_us, line)
    else:
        frame = read_frame(value)
        fault = _fault_of(frame, value, envelope.received_us // 1000)
        if not isinstance(frame, Book) or fault:
            return fault
        # A snapshot is state, not an event: it may be minutes old and must not reopen an old window.
        moment_ms = envelope.received_us // 1000 if frame.stream_type == SNAPSHOT else frame.tms
        line = lines.book_line(*head, value)
        minute_ms, ticker = _shared(_minute(moment_ms)), _shared(frame.ticker)
        entry = Entry(offset, "book", ticker, minute_ms, frame.tms, envelope.received_us, line)
    return entry


def _fault_of(frame: Frame, value: bytes, received_ms: int) -> str:
    """Return why a frame cannot be kept as a book; empty if it can."""
    if not isinstance(frame, Book):
        return frame.reason if isinstance(frame, Garbage) else "not a book"
    if frame.tms not in STAMPS_MS:
        return "timestamp out of range"
    if frame.tms > received_ms + CLOCK_TOLERANCE_MS:
        return "timestamp after it was received"
    if value.count(b"[") + value.count(b"{") > MOST_BRACKETS:
        return "more brackets than a book has"
    return ""


def _minute_of_heartbeat(value: bytes, received_us: int) -> int | None:
    """Return the start of the minute that a heartbeat speaks of, ms; None if it is none.

    All spans of one of our producer's lie in one minute. A foreign one's may lie in several, but a record is
    one line of one object, and a window reads the objects of its own minutes. What is claimed elsewhere is
    then not seen, and coverage understated; a hole that is not seen would overstate it. So the newest hole
    decides, and only where there is none the newest claim; older holes of the same record are not seen.
    """
    try:
        heartbeat = Heartbeat.decode(value)
    except ValueError:
        return None
    for span in (*heartbeat.covered, *heartbeat.holes):
        # A time that has not been, or that no clock of ours can have shown.
        if span.from_us // 1000 not in STAMPS_MS or span.to_us > received_us + CLOCK_TOLERANCE_MS * 1000:
            return None
        if span.from_us > span.to_us:
            return None
    ends = [span.to_us - 1 for span in heartbeat.holes or heartbeat.covered]
    return _minute(max(ends, default=received_us) // 1000)


def _is_json(line: bytes) -> bool:
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True


# One object of each ticker and minute, for all of the thousands of entries that have it.
_SHARED: dict[Any, Any] = {}
MAX_SHARED = 10_000


def _shared(value: ValueT) -> ValueT:
    if len(_SHARED) >= MAX_SHARED:
        _SHARED.clear()
    return cast(ValueT, _SHARED.setdefault(value, value))


def _minute(moment_ms: int) -> int:
    return moment_ms - moment_ms % MINUTE_MS
