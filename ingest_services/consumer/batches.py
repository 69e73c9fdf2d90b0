"""Record batches that the Kafka client refuses, read all the same: nobody can stop a partition.

kafka-python (3.0.12) raises where a record has a header whose name is not UTF-8, where a batch cannot be
unpacked or does not fit its own counts, or fails its checksum: at the same offset, again and again, and for
all partitions that are read with it. Here such a record is read by rules of our own, and what cannot be read
is handed on as a **stand-in**: one record at the batch's last offset, with the bytes and the reason, for the
quarantine (`docs/commit-chain.md`, "Poison"). The offsets before it that were not read are missing.

Belongs here: the client's two classes, made tolerant. Does not belong here: what becomes of a record
(`entries.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import structlog
from crc32c import crc32c
from kafka.consumer import fetcher
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecord, DefaultRecordBatch
from kafka.record.memory_records import MemoryRecords
from kafka.record.util import decode_varint

from ingest_services.consumer.entries import Unreadable

# A checksum that fails once may have been damaged on the way; three times alike, and it is stored so.
LOOKS_AT_DAMAGE = 3
# More than any batch holds; a batch that claims more does not know where it ends.
MAX_OFFSETS = 1 << 24

log = structlog.get_logger()


class Batch(DefaultRecordBatch):  # type: ignore[misc]
    """A batch of format v2 that can be iterated whatever is in it.

    Raises:
        CorruptRecordError: If it does not even say which offsets it covers. (A checksum that fails for the
            first times, fewer than `LOOKS_AT_DAMAGE`, is told by `validate_crc`.)
    """

    def __init__(self, buffer: memoryview, seen: dict[tuple[int, int, int], int]) -> None:
        super().__init__(buffer)
        self._whole = bytes(buffer)
        self._pos: int = self.HEADER_STRUCT.size
        self._seen = seen
        self._intact = True

    def validate_crc(self) -> bool:
        """Return true if there is something to iterate."""
        found = crc32c(memoryview(self._whole)[self.ATTRIBUTES_OFFSET :])
        if found == self.crc:
            return True
        damage = (self.base_offset, self.crc, found)
        if len(self._seen) > 1000:
            self._seen.clear()
        self._seen[damage] = self._seen.get(damage, 0) + 1
        if self._seen[damage] < LOOKS_AT_DAMAGE:
            return False
        self._intact = False
        return True

    def __iter__(self) -> Iterator[DefaultRecord]:
        """Yield the records in the order of their offsets, and a stand-in for what cannot be read."""
        if not 0 <= self.last_offset_delta < MAX_OFFSETS:
            raise CorruptRecordError(f"the batch at offset {self.base_offset} does not say where it ends")
        if not self._intact:
            yield self._stand_in("the batch fails its checksum", self._whole)
            return
        try:
            self._maybe_uncompress()
        except Exception as error:  # noqa: BLE001 (each codec's library has errors of its own)
            yield self._stand_in(f"the batch cannot be unpacked ({type(error).__name__})", self._whole)
            return
        expected = self.base_offset
        for _ in range(self.records_count):
            begin = self._pos
            try:
                record = self._read_record(expected)
            except (CorruptRecordError, ValueError, IndexError):
                if expected <= self.last_offset:
                    yield self._stand_in("the record is malformed", bytes(self._buffer[begin:]))
                return
            expected = record.offset + 1
            yield record
        if self._pos != len(self._buffer) and expected <= self.last_offset:
            yield self._stand_in("bytes behind the last record", bytes(self._buffer[self._pos :]))

    def _read_record(self, expected: int) -> DefaultRecord:
        try:
            record = self._read_msg()
        except (CorruptRecordError, ValueError, IndexError):
            record = self._read_foreign()
        if not expected <= record.offset <= self.last_offset:
            raise CorruptRecordError("offsets out of order")
        return record

    def _read_foreign(self) -> DefaultRecord:
        """Read a record as `_read_msg` does, but for names of headers that are not UTF-8."""
        buffer, at = self._buffer, self._pos
        length, at = decode_varint(buffer, at)
        end = at + length
        if not at < end <= len(buffer):
            raise CorruptRecordError("a record that is longer than its batch")
        _, at = decode_varint(buffer, at)
        later_ms, at = decode_varint(buffer, at)
        delta, at = decode_varint(buffer, at)
        key, at = _read_bytes(buffer, at)
        value, at = _read_bytes(buffer, at)
        count, at = decode_varint(buffer, at)
        headers = []
        for _ in range(count):
            name, at = _read_bytes(buffer, at)
            content, at = _read_bytes(buffer, at)
            headers.append(((name or b"").decode("utf-8", "backslashreplace"), content))
        if at != end:
            raise CorruptRecordError("a record that does not end where it says")
        self._pos = at
        appended = self.timestamp_type == self.LOG_APPEND_TIME
        timestamp_ms = self.max_timestamp if appended else self.first_timestamp + later_ms
        offset = self.base_offset + delta
        return DefaultRecord(length, offset, timestamp_ms, self.timestamp_type, key, value, headers)

    def _stand_in(self, reason: str, content: bytes) -> DefaultRecord:
        log.error("records that cannot be read", reason=reason, offsets=[self.base_offset, self.last_offset])
        return DefaultRecord(
            len(content),
            self.last_offset,
            self.max_timestamp,
            self.timestamp_type,
            None,
            content,
            Unreadable(reason),
        )


class Batches(MemoryRecords):  # type: ignore[misc]
    """The answer to a fetch, batch by batch."""

    __slots__ = ()
    # By base offset, stored and computed checksum: how often this damage was seen. The process's.
    seen: dict[tuple[int, int, int], int] = {}  # noqa: RUF012

    def next_batch(self, *arguments: Any) -> Any:
        """Return the next batch; None if there is none."""
        slice_ = self._next_slice
        batch = super().next_batch(*arguments)
        return Batch(slice_, self.seen) if isinstance(batch, DefaultRecordBatch) else batch


def install() -> None:
    """Make every consumer of this process read batches this way; doing it again changes nothing."""
    # The client offers no hook. `tests/integration/test_poison.py` fails if a new version goes another way.
    fetcher.MemoryRecords = Batches


def _read_bytes(buffer: bytearray, at: int) -> tuple[bytes | None, int]:
    length, at = decode_varint(buffer, at)
    if length < 0:
        return None, at
    if at + length > len(buffer):
        raise CorruptRecordError("a field that is longer than its batch")
    return bytes(buffer[at : at + length]), at + length
