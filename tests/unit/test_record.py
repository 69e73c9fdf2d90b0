"""The Kafka record: what a producer writes is what a consumer reads, and foreign records are readable too."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_services.record import (
    BOOK,
    HEARTBEAT,
    Envelope,
    Heartbeat,
    Span,
    headers_of,
    read_headers,
    split_at_minutes,
)

stamps = st.integers(0, 2**60)


@given(
    st.builds(
        Envelope,
        kind=st.sampled_from([BOOK, HEARTBEAT]),
        received_us=stamps,
        connection=st.text(),
        tms=st.none() | stamps,
        stream_type=st.none() | st.sampled_from(["SNAPSHOT", "REALTIME"]),
    )
)
def test_headers_come_back_as_they_were_written(envelope: Envelope) -> None:
    assert read_headers(headers_of(envelope), 0) == envelope


def test_foreign_headers_fall_back_to_what_the_record_knows() -> None:
    headers = [("received_us", b"yesterday"), ("x", None), ("kind", b"trade")]
    assert read_headers(headers, 1234) == Envelope(BOOK, 1_234_000, "")


def test_a_heartbeat_comes_back_as_it_was_written() -> None:
    beat = Heartbeat("upbit_producer1", "c-1", ("BTC", "ETH"), (Span(1, 5, ("BTC",)), Span(2, 9, ("ETH",))))
    assert Heartbeat.decode(beat.encode()) == beat
    assert beat.to_us == 9


@pytest.mark.parametrize(
    "value", [b"", b"[]", b"{}", b'{"section":"s","connection":"c","subscribed":1,"covered":[]}']
)
def test_what_is_no_heartbeat_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="not a heartbeat"):
        Heartbeat.decode(value)


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_pieces_of_an_interval_touch_and_never_cross_a_minute(from_us: int, length_us: int) -> None:
    pieces = split_at_minutes(from_us, from_us + length_us)
    assert [p[0] for p in pieces] + [from_us + length_us] == [from_us, *(p[1] for p in pieces)]
    assert all(start // 60_000_000 == (end - 1) // 60_000_000 for start, end in pieces)
