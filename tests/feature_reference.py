"""The features of a window again, in plain Python and exact fractions: what the SQL is compared with."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

BPS = (10, 50)


@dataclass(frozen=True)
class FullBook:
    """A book with all its levels as the exchange's own decimals; padding is left out."""

    ticker: str
    tms: int
    received_us: int
    offset: int
    asks: tuple[tuple[Decimal, Decimal], ...]
    bids: tuple[tuple[Decimal, Decimal], ...]
    content: object

    @property
    def mid(self) -> Fraction | None:
        """None for a book that is one-sided or crossed."""
        ask, bid = self.best
        return None if ask <= 0 or bid <= 0 or bid > ask else (ask + bid) / 2

    @property
    def best(self) -> tuple[Fraction, Fraction]:
        return (
            Fraction(self.asks[0][0]) if self.asks else Fraction(0),
            Fraction(self.bids[0][0]) if self.bids else Fraction(0),
        )


@dataclass(frozen=True)
class ReferenceFeatures:
    spread_bps: Fraction | None
    depths: dict[str, Fraction | None]
    imbalance: Fraction | None
    microprice: Fraction | None
    volatility: float | None
    returns: int
    book_count: int


def read_full_book(ticker: str, received_us: int, offset: int, value: bytes) -> FullBook:
    """Read a SIMPLE frame without ever making a float of a number."""
    message = json.loads(value, parse_float=Decimal, parse_int=Decimal)
    units = message["obu"]

    def side(price: str, size: str) -> tuple[tuple[Decimal, Decimal], ...]:
        return tuple((unit[price], unit[size]) for unit in units if unit[price] or unit[size])

    content = tuple(tuple(unit[key].normalize() for key in ("ap", "bp", "as", "bs")) for unit in units)
    return FullBook(
        ticker, int(message["tms"]), received_us, offset, side("ap", "as"), side("bp", "bs"), content
    )


def reference_features(books: list[FullBook], start_ms: int, end_ms: int) -> dict[str, ReferenceFeatures]:
    """Return the features of each ticker that has a usable book in the window."""
    by_ticker: dict[str, list[FullBook]] = defaultdict(list)
    for book in books:
        by_ticker[book.ticker].append(book)
    found = {}
    for ticker, rows in by_ticker.items():
        rows.sort(key=lambda b: (b.tms, b.received_us, b.offset))
        unique = list({(row.tms, row.content): row for row in reversed(rows)}.values())[::-1]
        unique.sort(key=lambda b: (b.tms, b.received_us, b.offset))
        in_time = [row for row in unique if row.tms < end_ms]
        if any(row.mid is not None and row.tms >= start_ms for row in in_time):
            found[ticker] = _features(in_time, start_ms, end_ms)
    return found


def _features(rows: list[FullBook], start_ms: int, end_ms: int) -> ReferenceFeatures:
    # (ms in force, book) of every usable book.
    weighed = []
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        until = end_ms if following is None else following.tms
        if row.mid is not None:
            weighed.append((max(0, until - max(row.tms, start_ms)), row))
    usable = [row for _, row in weighed]
    returns, volatility = _volatility(usable, start_ms, end_ms)
    return ReferenceFeatures(
        _mean([(ms, _spread_bps(row)) for ms, row in weighed]),
        {
            f"{side}_depth_{bps}bps": _mean([(ms, _depth(row, side, bps)) for ms, row in weighed], known=True)
            for bps in BPS
            for side in ("ask", "bid")
        },
        _mean([(ms, _imbalance(row)) for ms, row in weighed]),
        _microprice(usable[-1]),
        volatility,
        returns,
        sum(row.tms >= start_ms for row in usable),
    )


def _mean(values: list[tuple[int, Fraction | None]], known: bool = False) -> Fraction | None:
    """Average over time; with `known` None if a value is not known for some time."""
    if known and any(value is None and ms > 0 for ms, value in values):
        return None
    total = sum(ms for ms, value in values if value is not None)
    return sum((ms * v for ms, v in values if v is not None), Fraction(0)) / total if total else None


def _spread_bps(row: FullBook) -> Fraction:
    ask, bid = row.best
    return (ask - bid) / ((ask + bid) / 2) * 10_000


def _depth(row: FullBook, side: str, bps: int) -> Fraction | None:
    mid = row.mid
    assert mid is not None
    levels = row.asks if side == "ask" else row.bids
    away = [(abs(Fraction(price) - mid) / mid * 10_000, Fraction(size)) for price, size in levels]
    # On the far side of the mid a level is at no distance: only a locked book comes near that.
    if all(distance < bps for distance, _ in away):
        return None
    return sum((size for distance, size in away if distance <= bps), Fraction(0))


def _imbalance(row: FullBook) -> Fraction | None:
    ask, bid = Fraction(row.asks[0][1]), Fraction(row.bids[0][1])
    return (bid - ask) / (bid + ask) if bid + ask else None


def _microprice(row: FullBook) -> Fraction | None:
    (ask, bid), ask_size, bid_size = row.best, Fraction(row.asks[0][1]), Fraction(row.bids[0][1])
    total = ask_size + bid_size
    return (ask * bid_size + bid * ask_size) / total if total else None


def _volatility(usable: list[FullBook], start_ms: int, end_ms: int) -> tuple[int, float | None]:
    mids: list[Fraction] = []
    for second in range(start_ms, end_ms + 1, 1000):
        until_then = [row.mid for row in usable if row.tms <= second]
        if until_then and until_then[-1] is not None:
            mids.append(until_then[-1])
    steps = [math.log(later / earlier) for earlier, later in pairwise(mids)]
    return len(steps), math.sqrt(math.fsum(step * step for step in steps)) if steps else None
