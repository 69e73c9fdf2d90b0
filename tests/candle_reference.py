"""The candle rule again, in plain Python and exact decimals: what the SQL is compared with."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

import orjson


@dataclass(frozen=True)
class ReferenceCandle:
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    book_count: int
    first_ms: int
    last_ms: int
    twap: Fraction | None
    spread_bps: Fraction | None
    one_sided: int
    crossed: int


@dataclass(frozen=True)
class ReferenceBook:
    """A book whose best prices are the exchange's own decimals."""

    ticker: str
    tms: int
    received_us: int
    offset: int
    ask: Decimal
    bid: Decimal
    content: object = None
    level: Decimal = Decimal(0)


def read_book(ticker: str, received_us: int, offset: int, value: bytes) -> ReferenceBook:
    """Read a SIMPLE frame without ever making a float of a price."""
    import json

    message = json.loads(value, parse_float=Decimal, parse_int=Decimal)
    orjson.loads(value)  # the same bytes are JSON to everybody else
    best = message["obu"][0]
    tms = int(message["tms"])
    content = json.dumps(
        [[unit[key].normalize() for key in ("ap", "bp", "as", "bs")] for unit in message["obu"]], default=str
    )
    return ReferenceBook(
        ticker,
        tms // 1000 if tms >= 10**14 else tms,
        received_us,
        offset,
        best["ap"],
        best["bp"],
        content,
        message["lv"],
    )


def reference_candles(books: list[ReferenceBook], start_ms: int, end_ms: int) -> dict[str, ReferenceCandle]:
    """Return the candle of each ticker that has one."""
    by_ticker: dict[str, list[ReferenceBook]] = defaultdict(list)
    for book in books:
        if book.level == 0:
            by_ticker[book.ticker].append(book)
    candles = {}
    for ticker, rows in by_ticker.items():
        rows.sort(key=lambda b: (b.tms, b.received_us, b.offset))
        seen: set[object] = set()
        unique = []
        for row in rows:
            key = (row.tms, row.content if row.content is not None else (row.ask, row.bid))
            if key not in seen:
                seen.add(key)
                unique.append(row)
        if candle := _candle([row for row in unique if row.tms < end_ms], start_ms, end_ms):
            candles[ticker] = candle
    return candles


def _candle(rows: list[ReferenceBook], start_ms: int, end_ms: int) -> ReferenceCandle | None:
    mids: list[Decimal] = []
    usable: list[ReferenceBook] = []
    one_sided = crossed = weight = 0
    twap = spread = Fraction(0)
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        until = end_ms if following is None else following.tms
        duration = max(0, until - max(row.tms, start_ms))
        event = row.tms >= start_ms
        if row.ask <= 0 or row.bid <= 0:
            one_sided += event
        elif row.bid > row.ask:
            crossed += event
        else:
            mid = Fraction(row.ask + row.bid) / 2
            weight += duration
            twap += mid * duration
            spread += Fraction(row.ask - row.bid) / mid * 10_000 * duration
            if event:
                usable.append(row)
                mids.append((row.ask + row.bid) / 2)
    if not mids:
        return None
    return ReferenceCandle(
        mids[0],
        max(mids),
        min(mids),
        mids[-1],
        len(mids),
        usable[0].tms,
        usable[-1].tms,
        twap / weight if weight else None,
        spread / weight if weight else None,
        one_sided,
        crossed,
    )
