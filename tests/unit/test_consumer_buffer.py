"""Batches are contiguous, add up, and end just after a minute's last record, whatever arrives."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_services.consumer.buffer import Batch, Buffer
from ingest_services.consumer.entries import Entry, read_record

MINUTE_MS = 60_000


def entry(offset: int, minute: int, ticker: str = "BTC") -> Entry:
    return Entry(offset, "book", ticker, minute * MINUTE_MS, minute * MINUTE_MS, 0, b"x" * 10)


def test_a_cut_ends_just_after_the_minutes_last_record() -> None:
    buffer = Buffer(10)
    for offset, minute in enumerate([1, 1, 2, 1, 2, 3], start=10):
        buffer.append(entry(offset, minute))
    count = buffer.count_through(2 * MINUTE_MS)
    batch = buffer.take(count, 100, 1 << 20)
    assert batch is not None
    assert (batch.base, batch.next) == (10, 14)
    assert [e.minute_ms // MINUTE_MS for e in batch.entries] == [1, 1, 2, 1]
    assert len(buffer) == 2
    assert buffer.count_through(2 * MINUTE_MS) == 0


def test_holes_are_declared_missing_before_between_and_behind_records() -> None:
    buffer = Buffer(0)
    buffer.append(entry(2, 1))
    buffer.append(entry(5, 1))
    buffer.advance(8)
    assert buffer.take(2, 100, 1 << 20) == Batch(0, 8, (entry(2, 1), entry(5, 1)), ((0, 2), (3, 5), (6, 8)))


def test_a_hole_alone_is_a_batch_and_nothing_is_none() -> None:
    buffer = Buffer(3)
    assert buffer.take(0, 100, 1 << 20) is None
    buffer.advance(5)
    assert buffer.take(0, 100, 1 << 20) == Batch(3, 5, (), ((3, 5),))
    assert buffer.take(0, 100, 1 << 20) is None


def test_an_offset_read_again_is_refused() -> None:
    buffer = Buffer(3)
    with pytest.raises(ValueError, match="offset 2 read again; expected 3"):
        buffer.append(entry(2, 1))


def test_a_batch_never_needs_more_objects_than_allowed() -> None:
    buffer = Buffer(0)
    for offset in range(10):
        buffer.append(entry(offset, offset // 2))
    batch = buffer.take(10, 3, 1 << 20)
    assert batch is not None
    assert len({e.minute_ms for e in batch.entries}) == 3
    assert (batch.next, buffer.base) == (6, 6)


@given(
    steps=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4), st.sampled_from(["A", "B"])), max_size=60),
    cuts=st.lists(st.integers(0, 5), max_size=8),
    max_files=st.integers(1, 5),
)
def test_every_offset_is_in_exactly_one_batch_or_still_buffered(
    steps: list[tuple[int, int, str]], cuts: list[int], max_files: int
) -> None:
    buffer = Buffer(0)
    offset = 0
    batches = []
    pending = list(cuts)
    for hole, minute, ticker in steps:
        offset += hole
        buffer.append(entry(offset, minute, ticker))
        offset += 1
        if pending and offset % 7 == 0:
            batches.append(buffer.take(buffer.count_through(pending.pop() * MINUTE_MS), max_files, 1 << 20))
    while (batch := buffer.take(len(buffer), max_files, 1 << 20)) is not None:
        batches.append(batch)
    done = [b for b in batches if b is not None]
    expected = 0
    for batch in done:
        assert batch.base == expected
        lost = [o for start, end in batch.missing for o in range(start, end)]
        assert sorted([*lost, *(e.offset for e in batch.entries)]) == list(range(batch.base, batch.next))
        assert len({(e.ticker, e.minute_ms) for e in batch.entries}) <= max_files
        expected = batch.next
    assert expected == buffer.next == offset
    assert buffer.bytes == 0


BOOK = b'{"cd":"KRW-T%d","tms":%d,"st":"REALTIME","obu":[]}'


@pytest.mark.parametrize("value", [b"", b"x", b"[" + b"1," * 500 + b"1]", BOOK])
def test_the_budget_counts_what_records_take_in_memory_however_small_they_are(value: bytes) -> None:
    buffer = Buffer(1_000_000)
    tracemalloc.start()
    try:
        for offset in range(1_000_000, 1_002_000):
            stamp_ms = 1_700_000_000_000 + offset
            frame = value % (offset % 100, stamp_ms) if value == BOOK else value
            buffer.append(read_record(0, offset, stamp_ms, None, frame, []))
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 0.7 * buffer.bytes < taken < 1.1 * buffer.bytes
    batch = buffer.take(len(buffer), 2_000, 1 << 30)
    assert batch is not None
    assert (buffer.bytes, batch.bytes > 2_000 * len(value)) == (0, True)
