"""Questions that the status view asks of the warehouse every second: each is answered from an index."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

import psycopg

from cryptostream_dagster.window import Window

CANDLES = "ohlc_5m_ticker"
FEATURES = "orderbook_features_5m"
# A window is built once it is built in all of these.
TABLES = (CANDLES, FEATURES)


@dataclass(frozen=True, slots=True)
class Candle:
    """A row of `ohlc_5m_ticker`, what is shown of it."""

    ticker: str
    event_time: datetime
    close_price: Decimal
    book_count: int


def last_built_window(connection: psycopg.Connection) -> Window | None:
    """Return the newest window whose candles are built, data or not."""
    row = connection.execute("SELECT max(window_start) FROM built WHERE asset = %s", (CANDLES,)).fetchone()
    return None if row is None or row[0] is None else Window.at(row[0])


def windows_built_since(connection: psycopg.Connection, since: datetime) -> int:
    """Return how many windows at or after an aware instant have their candles built, data or not."""
    row = connection.execute(
        "SELECT count(*) FROM built WHERE asset = %s AND window_start >= %s", (CANDLES, since)
    ).fetchone()
    assert row is not None
    return int(row[0])


def newest_candles(connection: psycopg.Connection) -> list[Candle]:
    """Return the newest candle of every ticker, by ticker."""
    rows = connection.execute(
        "SELECT ticker, event_time, close_price, book_count FROM ohlc_5m_ticker "
        "JOIN ticker AS t USING (ticker, market) WHERE event_time = t.last_event_time ORDER BY ticker"
    )
    return [Candle(*row) for row in rows]
