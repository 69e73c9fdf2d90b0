"""What anybody can send, through a real broker and a real consumer: each has a stated outcome.

The table is `docs/commit-chain.md`, "Poison".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from kafka import KafkaProducer

from ingest_services import kafka
from ingest_services.record import BOOK, Envelope, headers_of
from tests.integration.test_consumer_lake import (  # noqa: F401
    MINUTE_MS,
    Pipe,
    assert_exactly_once,
    book,
    book_records,
    pipe,
    wait_for,
)
from tests.unit.test_consumer_batches import RawName


def send(pipe: Pipe, records: list[dict[str, Any]], **config: Any) -> list[int]:  # noqa: F811
    """Send whatever a record may be to partition 0; return the offsets."""
    producer = KafkaProducer(**kafka.client_config(pipe.broker.bootstrap), acks="all", linger_ms=50, **config)
    futures = [(record, producer.send(pipe.topic, partition=0, **record)) for record in records]
    offsets = []
    for record, future in futures:
        offsets.append(future.get(timeout=20).offset)
        pipe.sent[0, offsets[-1]] = record.get("value")
    producer.close()
    return offsets


def carry(pipe: Pipe) -> None:  # noqa: F811
    consumer = pipe.consume()
    wait_for(lambda: pipe.log().count("carrying") == pipe.partitions, "the consumer to begin")
    assert pipe.stop(consumer) == 0, pipe.log()
    assert "cannot carry" not in pipe.log()


def headers(**changes: bytes) -> list[tuple[str, bytes]]:
    now_ms = time.time_ns() // 1_000_000
    ours = dict(headers_of(Envelope(BOOK, now_ms * 1000, "c-1", now_ms, "REALTIME")))
    return list({**ours, **changes}.items())


def frame() -> bytes:
    return book(1, time.time_ns() // 1_000_000 - MINUTE_MS)


# Made when the test runs: a time of receipt from before the whole suite would be a lie of its own.
FOREIGN_HEADERS: dict[str, Callable[[], list[tuple[str, bytes | None]]]] = {
    "none": list,
    "another program's": lambda: [("traceparent", b"00-1"), ("x", b""), ("x", b"\xff")],
    "a name that is no text": lambda: [(RawName("x"), b"1")],
    "a name that is no text beside ours": lambda: [*headers(), (RawName("x"), b"1")],
    "an empty name": lambda: [("", b"")],
    "ours without values": lambda: [("received_us", b""), ("kind", b""), ("connection", b"")],
    "lies": lambda: headers(received_us=b"-1", tms=b"9" * 30, stream_type=b"\xff", connection=b"\xff\xfe"),
    "a kind that is none": lambda: headers(kind=b"\xff"),
}


@pytest.mark.parametrize("foreign", FOREIGN_HEADERS.values(), ids=FOREIGN_HEADERS)
def test_foreign_headers_change_nothing_about_a_book(
    pipe: Pipe,  # noqa: F811
    foreign: Callable[[], list[tuple[str, bytes | None]]],
) -> None:
    send(pipe, [{"value": frame()}, {"value": frame(), "headers": foreign()}, {"value": frame()}])
    carry(pipe)
    assert_exactly_once(pipe)
    assert pipe.read()[0].reasons == {}


def test_a_key_that_lies_changes_nothing_about_a_book(pipe: Pipe) -> None:  # noqa: F811
    keys = (b"ETH", b"", None, b"\xff" * 1000, b"../..", b"BTC\x00")
    send(pipe, [{"value": frame(), "key": key, "headers": headers()} for key in keys])
    carry(pipe)
    assert_exactly_once(pipe)
    oracle = pipe.read()[0]
    assert (oracle.reasons, len(oracle.folders)) == ({}, len(keys))
    assert {folder.split("/")[0] for folder in oracle.folders.values()} == {"ticker=BTC"}


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_what_is_compressed_is_what_it_was_before(pipe: Pipe, codec: str) -> None:  # noqa: F811
    send(pipe, [{"value": frame(), "headers": headers()} for _ in range(50)], compression_type=codec)
    carry(pipe)
    assert_exactly_once(pipe)
    assert pipe.read()[0].reasons == {}


def test_values_that_are_no_books_are_kept_with_a_reason(pipe: Pipe) -> None:  # noqa: F811
    values: dict[bytes | None, str] = {
        None: "no value",
        b"": "not JSON",
        b"\x1f\x8b\x08" + frame()[:20]: "not JSON",
        b"\xff\xfe": "not JSON",
        orjson.dumps(orjson.loads(frame()), option=orjson.OPT_INDENT_2): "line break in the value",
    }
    offsets = send(pipe, [{"value": value, "headers": headers(), "key": b"BTC"} for value in values])
    pipe.send(book_records(10))
    carry(pipe)
    assert_exactly_once(pipe)
    assert [pipe.read()[0].reasons[offset] for offset in offsets] == list(values.values())


def test_an_oversized_record_passes_and_so_does_what_is_behind_it(pipe: Pipe) -> None:  # noqa: F811
    # More than a fetch of one partition asks for (1 MiB): the broker gives it all the same.
    large = orjson.loads(frame())
    large["obu"] *= 60_000
    assert len(orjson.dumps(large)) > 2 << 20
    values = [orjson.dumps(large), b"x" * (3 << 20)]
    send(
        pipe,
        [{"value": v, "headers": headers()} for v in [frame(), *values, frame()]],
        max_request_size=8 << 20,
    )
    carry(pipe)
    assert_exactly_once(pipe)
    assert pipe.read()[0].reasons == {1: "more brackets than a book has", 2: "not JSON"}
