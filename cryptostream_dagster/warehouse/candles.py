"""Writing a window's candles: superseded ones become history, unchanged ones are not touched."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

import psycopg

from cryptostream_dagster.sql import load_sql
from cryptostream_dagster.transforms.candles import TickerCandle
from cryptostream_dagster.warehouse.connection import lock_boundaries
from cryptostream_dagster.window import Window

_PACKAGE = "cryptostream_dagster.warehouse"


@dataclass(frozen=True, slots=True)
class Written:
    """What writing a window changed.

    Attributes:
        candles: Candles of the window now.
        new: Those that were not there before.
        superseded: Those that moved to the history, replaced or withdrawn.
        followers: Candles of the next window whose `prev_close_price` changed with it.
    """

    candles: int
    new: int
    superseded: int
    followers: int


def write_candles(
    connection: psycopg.Connection,
    window: Window,
    version: int,
    candles: list[TickerCandle],
    zone: ZoneInfo,
) -> Written:
    """Write a window's candles and their counts in `coverage_5m`.

    Args:
        connection: In the transaction that holds `lock_window`; `coverage_5m` has its ratios already.
        window: The window.
        version: Of the seal that they were built from.
        candles: One per ticker with rows.
        zone: The market's time zone.
    """
    arguments: dict[str, object] = {
        "start": window.start,
        "event_date": window.event_date(zone),
        "previous_start": window.shifted(-1).start,
        "next_start": window.end,
        "version": version,
    }
    connection.execute(load_sql(_PACKAGE, "stage_table"))
    with connection.cursor().copy("COPY stage FROM STDIN") as copy:
        for candle in candles:
            copy.write_row(candle)
    lock_boundaries(connection, window)
    # After the locks, so that what one writer superseded is not older than what the one before it wrote.
    arguments["now"] = _now(connection)
    connection.execute(load_sql(_PACKAGE, "fresh_candles"), arguments)
    superseded = connection.execute(load_sql(_PACKAGE, "supersede"), arguments).rowcount
    inserted = connection.execute(load_sql(_PACKAGE, "insert_fresh"), arguments).rowcount
    connection.execute(load_sql(_PACKAGE, "count_books"), arguments)
    connection.execute(load_sql(_PACKAGE, "note_tickers"), arguments)
    followers = connection.execute(load_sql(_PACKAGE, "supersede_followers"), arguments).rowcount
    if followers:
        connection.execute(load_sql(_PACKAGE, "update_followers"), arguments)
    row = connection.execute("SELECT count(*) FROM fresh").fetchone()
    assert row is not None
    return Written(row[0], inserted, superseded, followers)


def _now(connection: psycopg.Connection) -> datetime:
    row = connection.execute("SELECT clock_timestamp()").fetchone()
    assert row is not None
    moment = row[0]
    assert isinstance(moment, datetime)
    return moment
