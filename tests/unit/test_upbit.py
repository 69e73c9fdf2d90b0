"""The exchange's protocol: frames in both formats, stamps in both units, tickers in both spellings."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_services.upbit.frames import Book, ExchangeError, Garbage, Status, read_frame
from ingest_services.upbit.markets import market_of, ticker_of
from ingest_services.upbit.request import subscription_request

SIMPLE = {"ty": "orderbook", "cd": "KRW-BTC", "tms": 1738480560123, "obu": [], "st": "REALTIME"}
DEFAULT = {
    "type": "orderbook",
    "code": "KRW-BTC",
    "timestamp": 1738480560123,
    "orderbook_units": [],
    "stream_type": "REALTIME",
}


@pytest.mark.parametrize("message", [SIMPLE, DEFAULT])
def test_both_formats_are_the_same_book(message: dict[str, object]) -> None:
    assert read_frame(orjson.dumps(message)) == Book("KRW-BTC", "BTC", 1738480560123, "REALTIME")


def test_microseconds_are_recognised_by_their_magnitude() -> None:
    frame = read_frame(orjson.dumps(SIMPLE | {"tms": 1738480560123456}))
    assert isinstance(frame, Book)
    assert frame.tms == 1738480560123


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b'{"status":"UP"}', Status("UP")),
        (b'{"error":{"message":"m","name":"NO_CODES"}}', ExchangeError("NO_CODES", "m")),
        (b'{"error":"boom"}', ExchangeError("boom", "")),
        (b'{"error":{"name":404,"message":"x"}}', ExchangeError("404", "x")),
        (b"<html>", Garbage("not JSON")),
        (b"[1]", Garbage("not a JSON object")),
        (b"{}", Garbage("no market")),
        (orjson.dumps(SIMPLE | {"cd": "KRW"}), Garbage("not a market code")),
        (orjson.dumps(SIMPLE | {"tms": "now"}), Garbage("no timestamp")),
        (orjson.dumps(SIMPLE | {"tms": True}), Garbage("no timestamp")),
        (orjson.dumps(SIMPLE | {"st": None}), Garbage("no stream type")),
        (orjson.dumps(SIMPLE | {"obu": None}), Garbage("no order book")),
        (orjson.dumps(SIMPLE)[:-9], Garbage("not JSON")),
    ],
)
def test_every_other_frame_says_what_it_is(value: bytes, expected: object) -> None:
    assert read_frame(value) == expected


@given(st.binary(max_size=200))
def test_no_frame_raises(value: bytes) -> None:
    read_frame(value)


@given(st.sampled_from(["KRW", "BTC", "USDT"]), st.from_regex(r"[A-Z0-9]{1,8}", fullmatch=True))
def test_a_market_and_its_ticker_name_each_other(quote: str, base: str) -> None:
    market = f"{quote}-{base}"
    assert market_of(ticker_of(market)) == market


def test_one_message_carries_every_code_with_its_depth() -> None:
    request = orjson.loads(subscription_request("t", ["KRW-BTC", "BTC-ETH"], 15))
    assert request == [
        {"ticket": "t"},
        {"type": "orderbook", "codes": ["KRW-BTC.15", "BTC-ETH.15"]},
        {"format": "SIMPLE"},
    ]


@pytest.mark.parametrize(("markets", "depth"), [([], 15), (["KRW-BTC"], 7)])
def test_a_request_that_the_exchange_would_misread_is_not_sent(markets: list[str], depth: int) -> None:
    with pytest.raises(ValueError, match=r"no markets|none of"):
        subscription_request("t", markets, depth)
