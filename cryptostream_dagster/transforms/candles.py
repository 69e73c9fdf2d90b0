"""Parquet of a window → one candle per ticker, as plain values.

The rule is in `sql/weighed.sql` and `sql/candles.sql`.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

from cryptostream_dagster.sql import load_sql
from cryptostream_dagster.transforms.storage import Storage
from cryptostream_dagster.transforms.window_books import query_window_books, weighed_books
from cryptostream_dagster.window import Window


class TickerCandle(NamedTuple):
    """A ticker's candle before the division of its means.

    Prices are None if the window has no usable book: then there is no candle, only counts.

    Attributes:
        ticker: Canonical ticker.
        market: Market code.
        open: Mid of the first usable book in the window.
        high: Highest mid.
        low: Lowest mid.
        close: Mid of the last usable book.
        book_count: Usable books: two-sided, not crossed, stamped in the window.
        first_ms: Stamp of the first, ms since the epoch.
        last_ms: Stamp of the last.
        mid_ms: Sum of mid times ms for which it prevailed.
        spread_ms: Sum of spread in bps times the same ms.
        weight_ms: Sum of those ms.
        one_sided_count: Books in the window without an ask or without a bid.
        crossed_count: Books in the window whose best bid is above the best ask.
    """

    ticker: str
    market: str
    open: Decimal | None
    high: Decimal | None
    low: Decimal | None
    close: Decimal | None
    book_count: int
    first_ms: int | None
    last_ms: int | None
    mid_ms: Decimal
    spread_ms: Decimal
    weight_ms: int
    one_sided_count: int
    crossed_count: int


def window_candles(
    parquet: Storage,
    paths: Sequence[str],
    window: Window,
    threads: int = 2,
    memory_mb: int = 1024,
    digest: str | None = None,
) -> list[TickerCandle]:
    """Compute a window's candles.

    Args:
        parquet: Where the objects are.
        paths: The window's objects, one per ticker.
        window: The window.
        threads: Of DuckDB.
        memory_mb: Of DuckDB, MiB.
        digest: Of the seal that the objects must have been built from; None: any.

    Returns:
        One entry per ticker with a row, by ticker.

    Raises:
        UserError: If an object is missing, is no Parquet, or was built from another seal.
    """
    rows = query_window_books(parquet, paths, window, candles_query, threads, memory_mb, digest)
    return [TickerCandle(*row) for row in rows]


def candles_query(_columns: Sequence[str] = ()) -> str:
    """Return the query over `book`, the rows of a window."""
    return weighed_books() + load_sql("cryptostream_dagster.transforms", "candles")
