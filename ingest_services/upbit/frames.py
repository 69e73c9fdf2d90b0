"""What one WebSocket frame says: a book, a status, an error or garbage.

A frame is a whole order book; there is no sequence number and no delta. `read_frame` never raises: what is
not understood comes back as `Garbage` with the reason, because the bytes are kept either way.
"""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from ingest_services.upbit.markets import ticker_of

SNAPSHOT = "SNAPSHOT"
REALTIME = "REALTIME"

# Stamps came in microseconds for a while in August 2023. 10^14 ms is the year 5138, 10^14 µs is 1973: no real
# stamp of either unit is on the wrong side.
MICROSECOND_STAMP_FROM = 10**14


@dataclass(frozen=True, slots=True)
class Book:
    """An order book as a frame told it; the levels stay in the frame's bytes.

    Attributes:
        market: Market code, `KRW-BTC`.
        ticker: Canonical ticker, `BTC`.
        tms: Last change of the book on the exchange, ms since the epoch.
        stream_type: `SNAPSHOT` or `REALTIME`.
        microseconds: Whether the stamp came in µs.
    """

    market: str
    ticker: str
    tms: int
    stream_type: str
    microseconds: bool = False


@dataclass(frozen=True, slots=True)
class Status:
    """The exchange's answer to a text `PING`: it is alive."""

    status: str


@dataclass(frozen=True, slots=True)
class ExchangeError:
    """An error frame; the exchange closes the socket right after it."""

    name: str
    message: str


@dataclass(frozen=True, slots=True)
class Garbage:
    """A frame that is none of the above, and why."""

    reason: str


Frame = Book | Status | ExchangeError | Garbage


def exchange_ms(stamp: int) -> int:
    """Return an exchange stamp in ms, whether it came in ms or µs."""
    return stamp // 1000 if stamp >= MICROSECOND_STAMP_FROM else stamp


def read_frame(value: bytes) -> Frame:
    """Tell what a frame is.

    Args:
        value: The frame's bytes as the exchange sent them (SIMPLE or DEFAULT format, UTF-8 JSON).

    Returns:
        A `Book`, `Status`, `ExchangeError`, or `Garbage` with the reason. Never raises.
    """
    try:
        message = orjson.loads(value)
    except orjson.JSONDecodeError:
        return Garbage("not JSON")
    if not isinstance(message, dict):
        return Garbage("not a JSON object")
    if "error" in message:
        error = message["error"]
        if isinstance(error, dict):
            return ExchangeError(str(error.get("name", "?")), str(error.get("message", "")))
        return ExchangeError(str(error), "")
    if isinstance(message.get("status"), str):
        return Status(message["status"])
    return _read_book(message)


def _read_book(message: dict[str, object]) -> Book | Garbage:
    simple = "cd" in message
    market = message.get("cd" if simple else "code")
    stamp = message.get("tms" if simple else "timestamp")
    stream_type = message.get("st" if simple else "stream_type")
    units = message.get("obu" if simple else "orderbook_units")
    if not isinstance(market, str):
        return Garbage("no market")
    try:
        ticker = ticker_of(market)
    except ValueError:
        return Garbage("not a market code")
    if type(stamp) is not int or stamp <= 0:
        return Garbage("no timestamp")
    if stream_type not in (SNAPSHOT, REALTIME):
        return Garbage("no stream type")
    if not isinstance(units, list):
        return Garbage("no order book")
    return Book(market, ticker, exchange_ms(stamp), str(stream_type), stamp >= MICROSECOND_STAMP_FROM)
