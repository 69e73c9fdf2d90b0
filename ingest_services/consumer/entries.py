"""What becomes of one Kafka record: a book, a heartbeat, or quarantine with the reason.

The frame is the truth. Headers say when and by whom it was received; a key or header that contradicts the
frame changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ingest_services.lake import lines
from ingest_services.lake.chain import FileKind
from ingest_services.lake.layout import MINUTE_MS
from ingest_services.record import CLOCK_TOLERANCE_MS, HEARTBEAT, Envelope, Heartbeat, read_headers
from ingest_services.upbit.frames import SNAPSHOT, Book, read_frame

# Year 2001 to 2286 in ms. Outside of it a stamp is damage, and would scatter objects over absurd paths.
STAMPS_MS = range(10**12, 10**13)


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
    """

    offset: int
    kind: FileKind
    ticker: str
    minute_ms: int
    tms: int | None
    received_us: int
    line: bytes


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
    head = (partition, offset, envelope.received_us, envelope.connection)
    received_minute_ms = _minute(envelope.received_us // 1000)

    if value is None:
        reason = "no value"
    elif b"\n" in value or b"\r" in value:
        reason = "line break in the value"
    elif envelope.kind == HEARTBEAT:
        try:
            to_us = _covered_until(Heartbeat.decode(value), envelope.received_us)
        except ValueError:
            reason = "not a heartbeat"
        else:
            minute_ms = received_minute_ms if to_us is None else _minute((to_us - 1) // 1000)
            line = lines.heartbeat_line(*head, value)
            return Entry(offset, "heartbeat", "", minute_ms, None, envelope.received_us, line)
    else:
        frame = read_frame(value)
        if not isinstance(frame, Book):
            reason = getattr(frame, "reason", "not a book")
        elif frame.tms not in STAMPS_MS:
            reason = "timestamp out of range"
        elif frame.tms > envelope.received_us // 1000 + CLOCK_TOLERANCE_MS:
            reason = "timestamp after it was received"
        else:
            # A snapshot is state, not an event: it may be minutes old and must not reopen an old window.
            snapshot = frame.stream_type == SNAPSHOT
            minute_ms = received_minute_ms if snapshot else _minute(frame.tms)
            line = lines.book_line(*head, value)
            return Entry(offset, "book", frame.ticker, minute_ms, frame.tms, envelope.received_us, line)
    line = lines.quarantine_line(*head, reason, key, value)
    return Entry(offset, "quarantine", "", received_minute_ms, None, envelope.received_us, line)


def _covered_until(heartbeat: Heartbeat, received_us: int) -> int | None:
    """Return the end of what a heartbeat covers, µs.

    Raises:
        ValueError: If it speaks of a time that has not been, or that no clock of ours can have shown.
    """
    for covered in heartbeat.covered:
        if (
            covered.from_us // 1000 not in STAMPS_MS
            or covered.to_us > received_us + CLOCK_TOLERANCE_MS * 1000
        ):
            raise ValueError(f"covers {covered.from_us} to {covered.to_us}, received at {received_us}")
        if covered.from_us > covered.to_us:
            raise ValueError(f"covers {covered.from_us} to {covered.to_us}")
    return heartbeat.to_us


def _minute(moment_ms: int) -> int:
    return moment_ms - moment_ms % MINUTE_MS
