"""Questions that the status view, the client and the checks ask of the warehouse."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

import psycopg

from cryptostream_dagster.window import Window

CANDLES = "ohlc_5m_ticker"


@dataclass(frozen=True, slots=True)
class Candle:
    """A row of `ohlc_5m_ticker`, its most asked-for columns."""

    ticker: str
    market: str
    event_time: datetime
    open_price: Decimal
    high_price: Decimal
    low_price: Decimal
    close_price: Decimal
    book_count: int
    coverage_ratio: float | None
    version: int


_CANDLE = (
    "SELECT ticker, market, event_time, open_price, high_price, low_price, close_price, book_count, "
    "coverage_ratio, version FROM ohlc_5m_ticker "
)


def last_built_window(connection: psycopg.Connection) -> Window | None:
    """Return the newest window whose candles are built, data or not."""
    row = connection.execute("SELECT max(window_start) FROM built WHERE asset = %s", (CANDLES,)).fetchone()
    return None if row is None or row[0] is None else Window.at(row[0])


def newest_candles(connection: psycopg.Connection) -> list[Candle]:
    """Return the newest candle of every ticker, by ticker."""
    rows = connection.execute(
        _CANDLE
        + "JOIN ticker AS t USING (ticker, market) WHERE event_time = t.last_event_time ORDER BY ticker"
    )
    return [Candle(*row) for row in rows]


def candles_between(
    connection: psycopg.Connection, start: datetime, end: datetime, ticker: str | None = None
) -> list[Candle]:
    """Return the candles with start ≤ event_time < end, by time and ticker.

    Args:
        connection: Any.
        start: Aware instant.
        end: Aware instant.
        ticker: Canonical ticker; None: all.
    """
    rows = connection.execute(
        _CANDLE + "WHERE event_time >= %s AND event_time < %s AND (%s::text IS NULL OR ticker = %s) "
        "ORDER BY event_time, ticker",
        (start, end, ticker, ticker),
    )
    return [Candle(*row) for row in rows]


def parquet_paths(
    connection: psycopg.Connection, start: datetime, end: datetime, ticker: str | None = None
) -> list[str]:
    """Return the Parquet objects of windows that start in [start, end), relative to PARQUET_URL."""
    rows = connection.execute(
        "SELECT path FROM parquet_file WHERE window_start >= %s AND window_start < %s AND path <> '' "
        "AND (%s::text IS NULL OR ticker = %s) ORDER BY window_start, ticker",
        (start, end, ticker, ticker),
    )
    return [row[0] for row in rows]
