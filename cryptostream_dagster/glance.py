"""A window at a glance: the busiest ticker's day so far, and its quotes in the window, as pictures.

Belongs here: whose data, and which, goes into a picture. Does not belong here: how it is drawn (`pictures`).
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from cryptostream_dagster.pictures import Bar, Quote, as_markdown, day_picture, window_picture
from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.sql import load_sql
from cryptostream_dagster.transforms.books import parquet_path
from cryptostream_dagster.transforms.storage import Storage, open_storage
from cryptostream_dagster.window import WINDOW, Window

if TYPE_CHECKING:
    import psycopg

_WAREHOUSE = "cryptostream_dagster.warehouse"

# Who is the busiest is asked of two hours: of one window it would be another each time.
_BUSIEST_OF = 24
_DAY_AT_LEAST = timedelta(hours=2)


def pictures(connection: psycopg.Connection, window: Window, settings: PipelineSettings) -> dict[str, str]:
    """Return pictures as markdown: `picture_of_day` and `picture_of_window`; none if there is no candle.

    Args:
        connection: To the warehouse; the window's candles are there.
        window: The window.
        settings: Where the Parquet is, whose data it is, and the market's time zone.

    Raises:
        UserError: If the Parquet cannot be read.
    """
    arguments = {"first": window.shifted(1 - _BUSIEST_OF).start, "last": window.start}
    row = connection.execute(load_sql(_WAREHOUSE, "busiest_ticker"), arguments).fetchone()
    if row is None:
        return {}
    ticker = str(row[0])
    whose = f"{ticker}, {{}} ({'simulated data' if settings.source == 'simulator' else settings.source})"
    zone, day = settings.zone, window.event_date(settings.zone)
    found = {}
    if bars := day_so_far(connection, ticker, window, settings):
        # The day so far, and not all of it: in the morning that would be a corner of an empty picture.
        start = min(bars[0].start, window.end - _DAY_AT_LEAST)
        title = whose.format(f"5-minute candles of the mid, {day:%Y-%m-%d}")
        found["picture_of_day"] = as_markdown(
            day_picture(title, bars, start, window.end, WINDOW, zone), f"{ticker}, the day so far"
        )
    path = parquet_path(ticker, window, zone)
    if quotes := quotes_of(open_storage("PARQUET_URL", settings.parquet_url), path, window):
        title = whose.format(f"best ask (red) and best bid (blue), {window.label(zone)}")
        svg = window_picture(title, quotes, window.start, window.end, zone)
        found["picture_of_window"] = as_markdown(svg, f"{ticker}, the window")
    return found


def day_so_far(
    connection: psycopg.Connection, ticker: str, window: Window, settings: PipelineSettings
) -> list[Bar]:
    """Return a ticker's candles of the market's day until a window, in order."""
    rows = connection.execute(
        load_sql(_WAREHOUSE, "day_so_far"),
        {"ticker": ticker, "day": window.event_date(settings.zone), "last": window.start},
    )
    # A picture has hundreds of pixels: doubles are exact enough.
    return [
        Bar(
            start,
            float(first),
            float(high),
            float(low),
            float(last),
            None if spread is None else float(spread),
        )
        for start, first, high, low, last, spread in rows
    ]


def quotes_of(parquet: Storage, path: str, window: Window) -> list[Quote]:
    """Return the quotes of one object that are events of the window, in order; perhaps none.

    Raises:
        UserError: If it cannot be read.
    """
    import pyarrow as pa
    from pyarrow import parquet as pq

    from ingest_services.errors import UserError

    if parquet.sizes([path]) == [None]:
        return []
    try:
        table = pq.read_table(
            parquet.locate(path),
            columns=["exchange_time", "bid_price1", "ask_price1", "level"],
            filesystem=parquet.filesystem,
            partitioning=None,
        )
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{parquet.url}/{path}: cannot be read ({error})") from error
    return [
        Quote(moment, bid, ask)
        for moment, bid, ask, level in zip(*(column.to_pylist() for column in table.columns), strict=True)
        if level == 0 and bid and ask and 0 < bid <= ask and window.start <= moment < window.end
    ]
