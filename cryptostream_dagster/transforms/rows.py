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
import pyarrow as pa

from cryptostream_dagster.sql import load_sql
from cryptostream_dagster.transforms.arrow import Numbers, is_there, to_arrow, to_numpy
from cryptostream_dagster.window import Window

_PACKAGE = "cryptostream_dagster.transforms"
_ENVELOPE = r'^\{"partition":(\d+),"offset":(\d+),'
_UNITS = {"ask_price": "ap", "ask_size": "as", "bid_price": "bp", "bid_size": "bs"}
_BAD_UNITS = "number in the units missing, of another type or beyond a double"


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
    units = _Units(_column(table, "units"))
    reason = _column(table, "reason")
    fits = ~(is_there(reason) | units.not_finite())
    order = total_order(lines, np.flatnonzero(fits))
    repeats = find_repeats(lines, units, order, depth)
    kept = order[~np.isin(order, repeats, assume_unique=True)] if len(repeats) else order
    quarantined = np.flatnonzero(~fits)
    reasons = [reason[at].as_py() or _BAD_UNITS for at in quarantined.tolist()]
    return Rows(_flat(table, units, kept, depth), lines.ticker[kept], repeats, quarantined, reasons)


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
    totals = ("level", "total_ask_size", "total_bid_size")
    others = [_floats(_column(lines.table, name))[chosen] for name in totals]
    levels = [np.where(there, column, np.nan) for _, column, there in units.levels(chosen, depth)]
    numbers = np.vstack([*others, *levels]).T
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
        lists: All of them, an array.
    """

    def __init__(self, lists: Any) -> None:
        offsets = to_numpy(lists.offsets)
        self._start, self._length = offsets[:-1], np.diff(offsets)
        names = [lists.type.value_type.field(number).name for number in range(4)]
        fields = dict(zip(names, lists.values.flatten(), strict=True))
        # If no book has a level, there is still something to take.
        nothing = np.zeros(1)
        self._numbers = {
            side: _floats(fields[name]) if len(lists.values) else nothing for side, name in _UNITS.items()
        }

    def not_finite(self) -> Numbers:
        """Return for each book whether one of its numbers is NULL or not finite."""
        wrong = np.zeros(len(self._length), bool)
        for numbers in self._numbers.values():
            finite = np.isfinite(numbers)
            if not finite.all():
                book = np.repeat(np.arange(len(self._length)), self._length)
                wrong[book[~finite]] = True
        return wrong

    def levels(self, books: Numbers, depth: int) -> Iterator[tuple[str, Numbers, Numbers]]:
        """Yield the columns of a side, like `ask_price`: a row per level of the numbers of some books.

        With them comes which of the numbers are there: none beyond a book's end, and none that is padding.
        """
        level = np.arange(depth)[:, np.newaxis]
        at = self._start[books] + level
        beyond = self._length[books] <= level
        for side in ("ask", "bid"):
            columns = [f"{side}_price", f"{side}_size"]
            price, size = (np.take(self._numbers[column], at, mode="clip") for column in columns)
            there = ~(beyond | (price == 0) & (size == 0))
            yield columns[0], price, there
            yield columns[1], size, there


def _flat(table: Any, units: _Units, rows: Numbers, depth: int) -> Any:
    instant = pa.timestamp("us", tz="UTC")
    columns = {
        "exchange_time": to_arrow(instant, _numbers(table, "tms")[rows] * 1000),
        "received_time": to_arrow(instant, _numbers(table, "received_us")[rows]),
    }
    for name, numbers, there in units.levels(rows, depth):
        bits = np.packbits(there, axis=1, bitorder="little")
        for level in range(depth):
            columns[f"{name}{level + 1}"] = to_arrow(pa.float64(), numbers[level], bits[level])
    others = ["stream_type", "level", "total_ask_size", "total_bid_size", "connection", "partition", "offset"]
    taken = table.select(others).take(to_arrow(pa.int64(), rows))
    return pa.table(columns | dict(zip(others, taken.columns, strict=True)))


def _column(table: Any, name: str) -> Any:
    """Return a column as one array, which it is already unless a ticker has more lines than a chunk."""
    column = table.column(name)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _numbers(table: Any, name: str) -> Numbers:
    """Return a column of integers; anything for NULL, which only lines that do not fit have."""
    return to_numpy(_column(table, name))


def _floats(array: Any) -> Numbers:
    """Return an array of doubles; NaN for NULL."""
    return np.where(is_there(array), to_numpy(array), np.nan) if array.null_count else to_numpy(array)
