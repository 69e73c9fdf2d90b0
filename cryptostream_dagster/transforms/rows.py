"""Lines of raw objects → rows of Parquet: typed, judged, in total order, each book once, flat.

Belongs here: what a line means and which rows come of it, for whole tickers at a time. DuckDB types the lines
(`sql/lines.sql`); what comes after is arithmetic on its columns. Does not belong here: where lines come from
(`raw`), how rows are stored (`books`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cryptostream_dagster.sql import load_sql
from cryptostream_dagster.window import Window

_PACKAGE = "cryptostream_dagster.transforms"
_ENVELOPE = r'^\{"partition":(\d+),"offset":(\d+),'
_UNITS = {"ask_price": "ap", "ask_size": "as", "bid_price": "bp", "bid_size": "bs"}
_BAD_UNITS = "number in the units missing, of another type or beyond a double"

Numbers = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Lines:
    """Typed lines of whole tickers.

    Attributes:
        table: The columns of `sql/lines.sql`.
        ticker: Of each line, the number of its ticker.
        chain: Of each line, the chain of the commit that names its object.
    """

    table: Any
    ticker: Numbers
    chain: Numbers


@dataclass(frozen=True, slots=True)
class Rows:
    """What became of some lines.

    Attributes:
        table: The rows in order, ticker by ticker; the columns of Parquet without `market` and `ticker`.
        ticker: Of each row, the number of its ticker.
        repeats: Lines that say again what another line says.
        quarantined: Lines that do not fit the schema, in order.
        reasons: Why, of each of those.
    """

    table: Any
    ticker: Numbers
    repeats: Numbers
    quarantined: Numbers
    reasons: list[str]


def type_lines(session: Any, line: Any, market: Any, window: Window) -> Any:
    """Type lines.

    Args:
        session: Of DuckDB, in order.
        line: An Arrow array of text; NULL is no JSON.
        market: Of each line, the market that its book must be of.
        window: Where REALTIME books must be.

    Returns:
        An Arrow table with one row per line, in order; its columns are those of `sql/lines.sql`.
    """
    session.register("line", pa.table({"line": line, "market": market}))
    query = load_sql(_PACKAGE, "lines").format(
        start_ms=window.start_ms, end_ms=window.end_ms, envelope=_ENVELOPE
    )
    typed = session.sql(query).to_arrow_table()
    session.unregister("line")
    return typed


def book_rows(lines: Lines, depth: int) -> Rows:
    """Judge lines, put them in order, leave out repeats, and lay the books out flat.

    Args:
        lines: Of whole tickers.
        depth: Levels a side.
    """
    table = lines.table
    units = _Units(table.column("units"))
    reasons = table.column("reason").to_numpy().copy()
    fits: Numbers = table.column("reason").is_null().to_numpy().copy()
    bad = fits & units.not_finite()
    reasons[bad] = _BAD_UNITS
    fits &= ~bad

    order = total_order(lines, np.flatnonzero(fits))
    repeats = find_repeats(lines, units, order, depth)
    kept = order[~np.isin(order, repeats, assume_unique=True)] if len(repeats) else order
    quarantined = np.flatnonzero(~fits)
    return Rows(
        _flat(table, units, kept, depth), lines.ticker[kept], repeats, quarantined, list(reasons[quarantined])
    )


def total_order(lines: Lines, chosen: Numbers) -> Numbers:
    """Return chosen lines by ticker, tms, receive time, chain, partition, offset."""
    keys = [lines.ticker, *(_numbers(lines.table, name) for name in ("tms", "received_us"))]
    keys += [lines.chain, *(_numbers(lines.table, name) for name in ("partition", "offset"))]
    return chosen[np.lexsort([key[chosen] for key in reversed(keys)])]


def find_repeats(lines: Lines, units: _Units, order: Numbers, depth: int) -> Numbers:
    """Return the lines that say again what an earlier line says: the same ticker, stamp and every number.

    Few stamps occur twice, so only those are compared: brought together by a hash of their numbers, then
    number by number.

    Args:
        lines: The lines.
        units: Their units.
        order: Those that fit the schema, in total order.
        depth: Levels a side that count.
    """
    ticker, tms = lines.ticker[order], _numbers(lines.table, "tms")[order]
    again = np.zeros(len(order), bool)
    again[1:] = (ticker[1:] == ticker[:-1]) & (tms[1:] == tms[:-1])
    twice = again.copy()
    twice[:-1] |= again[1:]
    if not twice.any():
        return order[:0]
    chosen, run = order[twice], np.cumsum(~again)[twice]
    totals = [_floats(lines.table, name)[chosen] for name in ("level", "total_ask_size", "total_bid_size")]
    numbers = np.column_stack([*totals, *(column for _, column in units.levels(chosen, depth))])
    # Compared as bits, where NULL is one NaN and there is no zero below zero.
    bits = np.where(np.isnan(numbers), np.nan, numbers + 0.0).view(np.uint64)
    weights = np.random.default_rng(0).integers(2**64, size=bits.shape[1], dtype=np.uint64) | np.uint64(1)
    hashes = ((bits ^ bits >> np.uint64(32)) * weights).sum(axis=1)
    together = np.lexsort([hashes, run])  # stable: the first in the order stays first
    bits, run = bits[together], run[together]
    same = (run[1:] == run[:-1]) & (bits[1:] == bits[:-1]).all(axis=1)
    repeats: Numbers = chosen[together[1:][same]]
    return repeats


class _Units:
    """The levels of books as DuckDB gives them: lists of structs.

    Args:
        column: The chunked column.
    """

    def __init__(self, column: Any) -> None:
        lists = column.combine_chunks()
        offsets = lists.offsets.to_numpy()
        self._start, self._length = offsets[:-1], np.diff(offsets)
        names = [lists.type.value_type.field(number).name for number in range(4)]
        fields = dict(zip(names, lists.values.flatten(), strict=True))
        # Behind all of them one more: what a book has beyond its end. NULL is NaN from here on.
        self._numbers = {
            side: np.append(fields[name].to_numpy(zero_copy_only=False), np.nan)
            for side, name in _UNITS.items()
        }

    def not_finite(self) -> Numbers:
        """Return for each book whether one of its numbers is NULL or not finite."""
        total = np.sum(list(self._numbers.values()), axis=0)[:-1]
        wrong = np.zeros(len(self._length), bool)
        if not np.isfinite(total).all():
            book = np.repeat(np.arange(len(self._length)), self._length)
            wrong[book[~np.isfinite(total)]] = True
        return wrong

    def levels(self, books: Numbers, depth: int) -> Iterator[tuple[str, Numbers]]:
        """Yield columns like `ask_price1` of some books: NaN beyond a book's end and where it is padding."""
        start, length = self._start[books], self._length[books]
        for level in range(depth):
            at = np.where(length > level, start + level, -1)
            for side in ("ask", "bid"):
                price, size = (self._numbers[f"{side}_{what}"][at] for what in ("price", "size"))
                padding = (price == 0) & (size == 0)
                price[padding] = size[padding] = np.nan
                yield f"{side}_price{level + 1}", price
                yield f"{side}_size{level + 1}", size


def _flat(table: Any, units: _Units, rows: Numbers, depth: int) -> Any:
    def instants(us: Numbers) -> Any:
        return pa.array(us).cast(pa.timestamp("us", tz="UTC"))

    at = pa.array(rows)
    columns = {
        "exchange_time": instants(_numbers(table, "tms")[rows] * 1000),
        "received_time": instants(_numbers(table, "received_us")[rows]),
        **{
            name: table.column(name).take(at)
            for name in ("stream_type", "level", "total_ask_size", "total_bid_size")
        },
    }
    # One at a time: all of them twice would be most of a batch's memory. NaN is NULL.
    columns |= {name: pa.array(column, from_pandas=True) for name, column in units.levels(rows, depth)}
    for name in ("connection", "partition", "offset"):
        columns[name] = table.column(name).take(at)
    return pa.table(columns)


def _numbers(table: Any, name: str) -> Numbers:
    """Return a column of integers; 0 for NULL, which only lines that do not fit have."""
    column: Numbers = table.column(name).fill_null(0).to_numpy()
    return column


def _floats(table: Any, name: str) -> Numbers:
    column: Numbers = table.column(name).to_numpy()
    return column
