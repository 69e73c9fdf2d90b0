"""Parquet of a window → one row of book features per ticker, as plain values.

What the features mean is stated in `docs/features.md`; the rule is in `sql/features.sql`.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

from cryptostream_dagster.sql import load_sql
from cryptostream_dagster.transforms.schema import DEPTH_BANDS_BPS, depth_column
from cryptostream_dagster.transforms.storage import Storage
from cryptostream_dagster.transforms.window_books import query_window_books, weighed_books
from cryptostream_dagster.window import Window

# The mid is sampled for its realised volatility at every full second.
SAMPLE_MS = 1000
# A price this close to a band's edge, relatively, is on it. The edge is computed in doubles, off by 10⁻¹⁵ at
# most; prices on the exchange's tick grid are on the edge or at least 10⁻¹⁰ away from it.
_ON_EDGE = 1e-12

_IMBALANCE = """CASE WHEN bid_size1 + ask_size1 > 0
            THEN TRY_CAST((bid_size1 - ask_size1) / (bid_size1 + ask_size1) AS DECIMAL(20, 12))
        END AS imbalance"""


class TickerFeatures(NamedTuple):
    """A ticker's features before the division of its means.

    Attributes:
        ticker: Canonical ticker.
        market: Market code.
        book_count: Usable books: two-sided, not crossed, stamped in the window; at least one.
        weight_ms: ms for which a usable book prevailed.
        spread_ms: Sum of spread in bps times the ms for which it prevailed.
        ask_depth_10bps_ms: Sum of the asks' sizes within 10 bps of the mid times the same ms; None if a book
            that prevailed ended sooner.
        bid_depth_10bps_ms: The same of the bids.
        ask_depth_50bps_ms: The same within 50 bps.
        bid_depth_50bps_ms: The same of the bids.
        imbalance_ms: Sum of the best level's imbalance times ms; None if no book had one.
        imbalance_weight_ms: ms for which there was one.
        close_ask: Best ask of the last usable book.
        close_bid: Its best bid.
        close_ask_size: Size of its best ask; None if that is no size.
        close_bid_size: Size of its best bid.
        volatility: Square root of the sum of squared log returns; None without a return.
        returns: Returns from one full second to the next.
    """

    ticker: str
    market: str
    book_count: int
    weight_ms: int
    spread_ms: Decimal
    ask_depth_10bps_ms: Decimal | None
    bid_depth_10bps_ms: Decimal | None
    ask_depth_50bps_ms: Decimal | None
    bid_depth_50bps_ms: Decimal | None
    imbalance_ms: Decimal | None
    imbalance_weight_ms: int
    close_ask: Decimal
    close_bid: Decimal
    close_ask_size: Decimal | None
    close_bid_size: Decimal | None
    volatility: Decimal | None
    returns: int


def window_features(
    parquet: Storage,
    paths: Sequence[str],
    window: Window,
    threads: int = 2,
    memory_mb: int = 1024,
    digest: str | None = None,
) -> list[TickerFeatures]:
    """Compute a window's features.

    Args:
        parquet: Where the objects are.
        paths: The window's objects, one per ticker.
        window: The window.
        threads: Of DuckDB.
        memory_mb: Of DuckDB, MiB.
        digest: Of the seal that the objects must have been built from; None: any.

    Returns:
        One entry per ticker with a usable book in the window, by ticker.

    Raises:
        UserError: If an object is missing, is no Parquet, or was built from another seal.
    """
    rows = query_window_books(parquet, paths, window, features_query, threads, memory_mb, digest)
    return [TickerFeatures(*row) for row in rows]


def features_query(columns: Sequence[str]) -> str:
    """Return the query over `book` with these columns: its depth is theirs, not the setting of today."""
    depth = sum(name.startswith("ask_price") for name in columns)
    bands = [(side, bps) for bps in DEPTH_BANDS_BPS for side in ("ask", "bid")]
    measures = [_IMBALANCE, "ask_size1", "bid_size1"]
    measures += [_depth_expression(side, bps, depth) for side, bps in bands]
    sums = ",\n    ".join(_sum_expression(depth_column(side, bps)) for side, bps in bands)
    query = load_sql("cryptostream_dagster.transforms", "features").format(sums=sums, sample_ms=SAMPLE_MS)
    return weighed_books(measures) + query


def _depth_expression(side: str, bps: int, depth: int) -> str:
    """Return SQL for one book's depth: NULL unless a level lies on the band's edge or beyond it."""
    sign, outermost, within, beyond = (
        (1, "greatest", "<=", ">=") if side == "ask" else (-1, "least", ">=", "<=")
    )
    edge = f"mid::DOUBLE * {1 + sign * bps / 10_000!r}"
    prices = [f"{side}_price{level}" for level in range(1, depth + 1)]
    sizes = [f"{side}_size{level}" for level in range(1, depth + 1)]
    reaches = f"{outermost}({', '.join(prices)}) {beyond} {edge} * {1 - sign * _ON_EDGE!r}"
    total = " + ".join(
        f"CASE WHEN {price} {within} {edge} * {1 + sign * _ON_EDGE!r} THEN {size} ELSE 0 END"
        for price, size in zip(prices, sizes, strict=True)
    )
    return f"CASE WHEN {reaches} THEN TRY_CAST({total} AS DECIMAL(28, 10)) END AS {depth_column(side, bps)}"


def _sum_expression(column: str) -> str:
    return (
        f"CASE WHEN bool_and({column} IS NOT NULL) FILTER (WHERE weight_ms > 0) "
        f"THEN sum({column} * weight_ms) END AS {column}_ms"
    )
