"""The records of one partition that were read and not yet committed, and where to cut them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import islice

from ingest_services.consumer.entries import Entry

# What an entry takes in memory beside the bytes of its line: the tuple, its numbers, its place in the queue.
# A flood of tiny records would otherwise take several times the budget.
ENTRY_BYTES = 270


@dataclass(frozen=True, slots=True)
class Batch:
    """What one commit will cover: offsets [base, next), its records, and the offsets that never came."""

    base: int
    next: int
    entries: tuple[Entry, ...]
    missing: tuple[tuple[int, int], ...]

    @property
    def bytes(self) -> int:
        """What its entries take in memory."""
        return sum(len(entry.line) for entry in self.entries) + ENTRY_BYTES * len(self.entries)


class Buffer:
    """Entries in offset order.

    Attributes:
        base: First offset that is in no batch yet.
        next: Everything below this offset was read.
        bytes: What the buffered entries take in memory.
    """

    def __init__(self, base: int) -> None:
        self.base = base
        self.next = base
        self.bytes = 0
        self._entries: deque[Entry] = deque()

    @property
    def oldest_us(self) -> int | None:
        """When the first entry was received, µs since the epoch; None if there is none."""
        return self._entries[0].received_us if self._entries else None

    def __len__(self) -> int:
        return len(self._entries)

    def append(self, entry: Entry) -> None:
        """Take the next record.

        Raises:
            ValueError: If its offset was read before: the reader is not where it should be.
        """
        if entry.offset < self.next:
            raise ValueError(f"offset {entry.offset} read again; expected {self.next} or later")
        self._entries.append(entry)
        self.next = entry.offset + 1
        self.bytes += len(entry.line) + ENTRY_BYTES

    def advance(self, position: int) -> None:
        """Note that everything below `position` was read, also where the log has no record at an offset."""
        self.next = max(self.next, position)

    def count_through(self, end_ms: int) -> int:
        """Return how many entries there are up to the last one that belongs to a minute before `end_ms`."""
        for behind, entry in enumerate(reversed(self._entries)):
            if entry.minute_ms < end_ms:
                return len(self._entries) - behind
        return 0

    def take(self, count: int, max_files: int, max_bytes: int) -> Batch | None:
        """Cut the next batch.

        Args:
            count: Take the first `count` entries; taking all of them takes the offsets behind them, too, that
                were read and hold no record.
            max_files: Stop before the entries need more objects than this.
            max_bytes: Stop before they take more memory than this, but for one that does so alone.

        Returns:
            The batch, or None if there is nothing to commit.
        """
        names: set[tuple[str, str, int]] = set()
        size = 0
        for index, entry in enumerate(islice(self._entries, count)):
            names.add((entry.kind, entry.ticker, entry.minute_ms))
            size += len(entry.line) + ENTRY_BYTES
            if len(names) > max_files or (size > max_bytes and index):
                count = index
                break
        entries = tuple(self._entries.popleft() for _ in range(count))
        end = entries[-1].offset + 1 if entries else self.base
        if not self._entries:
            end = self.next
        if end == self.base:
            return None
        missing = []
        expected = self.base
        for entry in entries:
            if entry.offset > expected:
                missing.append((expected, entry.offset))
            expected = entry.offset + 1
        if end > expected:
            missing.append((expected, end))
        batch = Batch(self.base, end, entries, tuple(missing))
        self.base = end
        self.bytes -= batch.bytes
        return batch
