"""The Kafka record: what a producer writes is what a consumer reads, and foreign records are readable too."""

from __future__ import annotations

import json

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


def test_holes_come_back_as_they_were_written_and_are_not_there_where_there_are_none() -> None:
    beat = Heartbeat("upbit_producer1", "c-1", ("BTC",), (), (Span(1, 5, ("BTC",)), Span(7, 9, ("BTC",))))
    assert Heartbeat.decode(beat.encode()) == beat
    assert (beat.to_us, beat.only_takes_back) == (9, True)
    claim = Heartbeat("upbit_producer1", "c-1", ("BTC",), (Span(1, 12, ("BTC",)),), beat.holes)
    assert (claim.to_us, claim.only_takes_back) == (12, False)
    silent = Heartbeat("upbit_producer1", "c-1", ("BTC",), ())
    assert b"holes" not in silent.encode()
    assert (silent.to_us, silent.only_takes_back) == (None, False)


BEAT: dict[str, object] = {
    "section": "s",
    "connection": "c",
    "subscribed": ["BTC", "USDT-ETH"],
    "covered": [],
}
SPAN = {"from_us": 1, "to_us": 2, "tickers": ["BTC"]}
DEEP: list[object] = []
for _ in range(900):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "change",
    [
        {"subscribed": 1},
        {"subscribed": "BTC"},
        {"subscribed": ["KRW-BTC"]},
        {"subscribed": ["btc"]},
        {"subscribed": ["../x"]},
        {"subscribed": [None]},
        {"section": None},
        {"section": "a\0b"},  # Postgres could not hold it, and a sync would stop for all windows
        {"section": DEEP},
        {"connection": 7},
        {"covered": {}},
        {"covered": [7]},
        {"covered": [SPAN | {"from_us": "1"}]},
        {"covered": [SPAN | {"from_us": 1.5}]},
        {"covered": [SPAN | {"to_us": True}]},
        {"covered": [SPAN | {"to_us": 2**70}]},  # comes back as a float
        {"covered": [SPAN | {"tickers": None}]},
        {"holes": None},
        {"holes": [SPAN, {}]},
        {"holes": [SPAN | {"tickers": [DEEP]}]},
    ],
)
def test_what_is_no_heartbeat_is_refused(change: dict[str, object]) -> None:
    assert Heartbeat.decode(json.dumps(BEAT | {"holes": [SPAN]}).encode()).holes == (Span(1, 2, ("BTC",)),)
    with pytest.raises(ValueError, match="not a heartbeat"):
        Heartbeat.decode(json.dumps(BEAT | change).encode())


@pytest.mark.parametrize("value", [b"", b"[]", b"7", b"{}", b"null", b"\xff"])
def test_what_is_no_json_object_is_no_heartbeat(value: bytes) -> None:
    with pytest.raises(ValueError, match="not a heartbeat"):
        Heartbeat.decode(value)


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_pieces_of_an_interval_touch_and_never_cross_a_minute(from_us: int, length_us: int) -> None:
    pieces = split_at_minutes(from_us, from_us + length_us)
    assert [p[0] for p in pieces] + [from_us + length_us] == [from_us, *(p[1] for p in pieces)]
    assert all(start // 60_000_000 == (end - 1) // 60_000_000 for start, end in pieces)
