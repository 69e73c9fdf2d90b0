"""Whatever a batch holds, it can be iterated: records, or a stand-in with the bytes and the reason."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from random import Random

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatchBuilder

from ingest_services.consumer import batches
from ingest_services.consumer.batches import Batches
from ingest_services.consumer.entries import Unreadable, read_record

BASE = 1000
NOW_MS = 1_738_480_560_000


class RawName(str):
    """A header's name whose bytes are no UTF-8."""

    __slots__ = ()

    def encode(self, *_: str) -> bytes:  # type: ignore[override]
        return b"\xff\xfe-name"


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    Batches.seen.clear()
    yield
    Batches.seen.clear()


def build(
    headers: dict[int, list[tuple[str, bytes | None]]] | None = None, count: int = 5, codec: int = 0
) -> bytearray:
    builder = DefaultRecordBatchBuilder(2, codec, False, -1, -1, -1, 1 << 20)
    for number in range(count):
        builder.append(number, NOW_MS + number, b"key", b"value %d" % number, (headers or {}).get(number, []))
    data = bytearray(builder.build())
    struct.pack_into(">q", data, 0, BASE)
    return data


def sign(data: bytearray) -> bytes:
    """Set the checksum to that of the bytes."""
    struct.pack_into(">I", data, 17, crc32c(bytes(data[21:])))
    return bytes(data)


def read(data: bytes) -> list[tuple[int, bytes | None, str]]:
    """Read as the client does: offset, value, and the reason if it is a stand-in."""
    found = []
    records = Batches(data)
    while (batch := records.next_batch()) is not None:
        if not batch.validate_crc():
            raise CorruptRecordError("crc")
        for record in batch:
            headers = record.headers
            found.append(
                (record.offset, record.value, headers.reason if isinstance(headers, Unreadable) else "")
            )
    return found


VALUES = [(BASE + n, b"value %d" % n, "") for n in range(5)]


@pytest.mark.parametrize("codec", [0, 1, 4])
def test_a_batch_that_is_right_is_read_as_the_client_reads_it(codec: int) -> None:
    assert read(bytes(build(codec=codec)) * 2) == VALUES * 2


def test_a_header_whose_name_is_no_text_harms_nobody() -> None:
    data = bytes(build({2: [("kind", b"book"), (RawName("x"), b"1"), ("tms", None)]}))
    assert read(data) == VALUES
    batch = Batches(data).next_batch()
    assert [r.headers for r in batch][2] == [("kind", b"book"), ("\\xff\\xfe-name", b"1"), ("tms", None)]


def test_a_checksum_that_fails_is_read_again_before_it_is_believed() -> None:
    data = build()
    data[-3] ^= 1
    for _ in range(batches.LOOKS_AT_DAMAGE - 1):
        with pytest.raises(CorruptRecordError):
            read(bytes(data))
    assert read(bytes(data)) == [(BASE + 4, bytes(data), "the batch fails its checksum")]
    # Other damage of the same batch is another matter: it was the way, not the disk.
    data[-4] ^= 1
    with pytest.raises(CorruptRecordError):
        read(bytes(data))


@pytest.mark.parametrize("codec", [1, 2, 3, 4, 5, 7])
def test_a_batch_that_cannot_be_unpacked_is_kept_as_it_is(codec: int) -> None:
    data = build()
    struct.pack_into(">h", data, 21, codec)
    ((offset, value, reason),) = read(sign(data))
    assert (offset, value) == (BASE + 4, bytes(data))
    assert reason.startswith("the batch cannot be unpacked")


def test_records_before_a_malformed_one_are_read_and_the_rest_is_kept() -> None:
    data = build()
    at = bytes(data).index(b"value 3")
    data[at - 1] = 0x7E  # the value's length
    found = read(sign(data))
    assert found[:3] == VALUES[:3]
    assert found[3][0] == BASE + 4
    assert found[3][2] == "the record is malformed"
    assert b"value 4" in (found[3][1] or b"")


def test_counts_that_lie_end_in_a_stand_in_and_never_in_the_same_offset_twice() -> None:
    more, fewer = build(), build()
    struct.pack_into(">i", more, 57, 9)
    assert read(sign(more)) == VALUES
    struct.pack_into(">i", fewer, 57, 3)
    assert [(o, r) for o, _, r in read(sign(fewer))] == [
        *((BASE + n, "") for n in range(3)),
        (BASE + 4, "bytes behind the last record"),
    ]


def test_a_batch_that_does_not_say_where_it_ends_is_refused() -> None:
    data = build()
    struct.pack_into(">i", data, 23, -5)
    with pytest.raises(CorruptRecordError, match="does not say where it ends"):
        read(sign(data))


@given(seed=st.integers(0, 2**32))
def test_random_damage_with_a_right_checksum_never_stops_the_partition(seed: int) -> None:
    dice = Random(seed)
    data = build(codec=dice.choice([0, 0, 0, 1, 4]), count=dice.randrange(1, 8))
    for _ in range(dice.randrange(1, 6)):
        data[dice.randrange(61, len(data))] = dice.randrange(256)
    offsets = [offset for offset, _, _ in read(sign(data))]
    assert offsets == sorted(set(offsets))
    assert all(BASE <= offset <= BASE + 7 for offset in offsets)


def test_a_stand_in_goes_to_quarantine_with_its_bytes() -> None:
    entry = read_record(0, 7, NOW_MS, None, b"\x00bytes", Unreadable("the record is malformed"))
    assert entry.kind == "quarantine"
    assert b'"reason":"the record is malformed"' in entry.line
