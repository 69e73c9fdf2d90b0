"""What one WebSocket frame says: a book, a status, an error or garbage.

A frame is a whole order book; there is no sequence number and no delta. `read_frame` never raises: what is
not understood comes back as `Garbage` with the reason, because the bytes are kept either way.

**Formats.** SIMPLE, which our producers ask for, and DEFAULT (the same book under long keys) are read alike,
here and in the Parquet step. JSON_LIST and SIMPLE_LIST wrap books in an array: garbage that is named as such.
Source: https://global-docs.upbit.com/reference/websocket-orderbook and frames seen on the wire.

**Stamps.** The rule for a frame's `tms` (DEFAULT: `timestamp`), from the exchange to the candle:

====================================  ====================================================================
whole number, 10^12 to 10^13 - 1      ms since the epoch (2001 to 2286), as documented. However old: a quiet
                                      book's snapshot is, and a book played back is
10^14 and more                        µs, as seen in August 2023: cut to whole ms (`exchange_ms`). 10^14 ms is
                                      the year 5138, 10^14 µs is 1973: no real stamp is on the wrong side. The
                                      same book in either unit is one book (a duplicate); books of one ms keep
                                      the order in which they were received
any other whole number above 0        read here, put in quarantine by the consumer (`timestamp out of range`):
                                      damage that would scatter objects over absurd paths. That is seconds,
                                      10^13 to 10^14 - 1, and µs from 2286 on, 2^63 included
more than 5 s after it was received   quarantine by the consumer (`timestamp after it was received`); up to
                                      5 s it is data, see `docs/commit-chain.md`
0, below 0, 2^64 and more, with a     garbage here (`no timestamp`), so quarantine. JSON has no such whole
point or exponent, text, true, null,  number, or it is none; guessing would put a book at a wrong instant
missing
====================================  ====================================================================

A key that occurs twice in one object is read differently by different parsers (RFC 8259, 4). Where that moves
a book to another market or out of its window, the Parquet step rejects and counts it.
"""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from ingest_services.upbit.markets import ticker_of

SNAPSHOT = "SNAPSHOT"
REALTIME = "REALTIME"

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
    if isinstance(message, dict):
        frame = _read_book(message)
        # A book that also had a field of those names must not be taken for a word about it, and dropped.
        return frame if isinstance(frame, Book) else _read_word(message) or frame
    if isinstance(message, list) and message and all(isinstance(item, dict) for item in message):
        return Garbage("a list of frames, as in the formats JSON_LIST and SIMPLE_LIST")
    return Garbage("not a JSON object")


def _read_word(message: dict[str, object]) -> Status | ExchangeError | None:
    status, error = message.get("status"), message.get("error")
    if "error" in message:
        told = error if isinstance(error, dict) else {"name": error}
        return ExchangeError(_text(told.get("name", "?")), _text(told.get("message", "")))
    return Status(status) if isinstance(status, str) else None


def _text(value: object) -> str:
    # Names were seen as text and as numbers. Nothing else is spelt out: nested lists would exhaust the stack.
    return str(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


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
