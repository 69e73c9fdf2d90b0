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


LIST = Garbage("a list of frames, as in the formats JSON_LIST and SIMPLE_LIST")


@pytest.mark.parametrize("message", [SIMPLE, DEFAULT])
def test_both_formats_are_the_same_book(message: dict[str, object]) -> None:
    assert read_frame(orjson.dumps(message)) == Book("KRW-BTC", "BTC", 1738480560123, "REALTIME")


def test_microseconds_are_recognised_by_their_magnitude() -> None:
    frame = read_frame(orjson.dumps(SIMPLE | {"tms": 1738480560123456}))
    assert isinstance(frame, Book)
    assert frame.tms == 1738480560123


@pytest.mark.parametrize(("simple", "message"), [("tms", SIMPLE), ("timestamp", DEFAULT)])
@pytest.mark.parametrize(
    ("stamp", "tms"),
    [
        ("1738480560123", 1738480560123),
        ("1738480560123999", 1738480560123),
        ("100000000000000", 100_000_000_000),
        ("99999999999999", 99_999_999_999_999),
        ("1", 1),
        ("1738480560", 1_738_480_560),
        ("9223372036854775807", 9_223_372_036_854_775),
        ("18446744073709551615", 18_446_744_073_709_551),
        *((absurd, None) for absurd in ("0", "-1", "-1738480560123", "18446744073709551616", "1e400", "NaN")),
        *((absurd, None) for absurd in ("1738480560123.0", "1.738480560123E12", '"1738480560123"', "true")),
        *((absurd, None) for absurd in ("null", "[1738480560123]", "{}", "01738480560123", "")),
    ],
)
def test_every_stamp_has_a_stated_outcome(
    simple: str, message: dict[str, object], stamp: str, tms: int | None
) -> None:
    value = orjson.dumps(message).replace(b'":1738480560123', b'":' + stamp.encode())
    frame = read_frame(value)
    if tms is None:
        assert isinstance(frame, Garbage)
    else:
        assert frame == Book("KRW-BTC", "BTC", tms, "REALTIME", microseconds=len(stamp) > 14)
    without = {key: field for key, field in message.items() if key != simple}
    assert read_frame(orjson.dumps(without)) == Garbage("no timestamp")


@pytest.mark.parametrize(
    "more", [{"status": "UP"}, {"error": "x"}, {"error": {"name": "x"}}, {"method": "x"}]
)
def test_a_book_with_one_field_more_is_still_a_book(more: dict[str, object]) -> None:
    assert isinstance(read_frame(orjson.dumps(SIMPLE | more)), Book)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b'{"status":"UP"}', Status("UP")),
        (b'{"error":{"message":"m","name":"NO_CODES"}}', ExchangeError("NO_CODES", "m")),
        (b'{"error":"boom"}', ExchangeError("boom", "")),
        (b'{"error":{"name":404,"message":"x"}}', ExchangeError("404", "x")),
        (b"<html>", Garbage("not JSON")),
        (b'{"error":[[]]}', ExchangeError("a list", "")),
        (b'{"error":{"name":' + b"[" * 1000 + b"]" * 1000 + b"}}", ExchangeError("a list", "")),
        (b'{"error":{"message":{}}}', ExchangeError("?", "a dict")),
        (b"[1]", Garbage("not a JSON object")),
        (b"[]", Garbage("not a JSON object")),
        (b"7", Garbage("not a JSON object")),
        (b"[" + orjson.dumps(SIMPLE) + b"]", LIST),
        (b"[" + orjson.dumps(DEFAULT) + b"," + orjson.dumps(DEFAULT) + b"]", LIST),
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
