"""Trades that could have happened on the published books, as the exchange's 5-minute candles of them.

A trade is at the bid or at the ask of the book that stands, never between them: so a candle of trades is near
one of mids, and is not the same. Which books see a trade follows from market and stamp alone: a history that
is played again has the same trades. Trades are not kept, only one accumulator per market and window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from zlib import crc32

from ingest_services.simulator.books import Publication
from ingest_services.simulator.feed import window_start

# One book in so many sees a trade.
_EVERY = 3


@dataclass(slots=True)
class TradeCandle:
    """One window of one market in which there was a trade.

    Attributes:
        start_ms: Start of the window, ms since the epoch.
        open: Price of the first trade; likewise `high`, `low` and `close`.
        last_ms: Stamp of the last trade.
        volume: Sum of the trades' sizes.
        turnover: Sum of size times price.
    """

    start_ms: int
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    last_ms: int
    volume: Decimal = Decimal(0)
    turnover: Decimal = Decimal(0)

    def add(self, tms: int, price: Decimal, size: Decimal) -> None:
        """Count one trade."""
        self.high, self.low, self.close = max(self.high, price), min(self.low, price), price
        self.last_ms = tms
        self.volume += size
        self.turnover += size * price


class Trades:
    """Candles of trades by market and window."""

    def __init__(self) -> None:
        self._candles: dict[str, dict[int, TradeCandle]] = {}

    def add(self, book: Publication) -> None:
        """Let a trade happen on a published book, or not; the books of a market come in order."""
        ask, bid = book.best_ask, book.best_bid
        if ask is None or bid is None or bid > ask:
            return
        dice = crc32(f"{book.market} {book.tms}".encode())
        dice, miss = divmod(dice, _EVERY)
        if miss:
            return
        dice, buyer = divmod(dice, 2)
        price = ask if buyer else bid
        start = window_start(book.tms)
        windows = self._candles.setdefault(book.market, {})
        candle = windows.get(start)
        if candle is None:
            candle = windows[start] = TradeCandle(start, price, price, price, price, book.tms)
        candle.add(book.tms, price, Decimal(1 + dice % 10_000) / 10_000)

    def forget(self, market: str) -> None:
        """Forget a market: its books are about to be published again from the first one on."""
        self._candles.pop(market, None)

    def candles(self, market: str, count: int, before_ms: int | None = None) -> Iterator[TradeCandle]:
        """Yield the newest candles of a market, newest first, the running one included.

        Args:
            market: Market code.
            count: How many at most.
            before_ms: Only those that start before this instant, ms since the epoch; None: all.
        """
        windows = self._candles.get(market, {})
        starts = sorted((s for s in windows if before_ms is None or s < before_ms), reverse=True)
        return (windows[start] for start in islice(starts, count))
