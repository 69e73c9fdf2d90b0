"""What the simulator knows to be true: the candles that follow from every book it published.

Books are not kept, only one accumulator per market and 5-minute window. Prices are exact decimals.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

from ingest_services.simulator.books import Publication
from ingest_services.simulator.feed import WINDOW_MS, window_start
from ingest_services.upbit.markets import ticker_of


@dataclass(slots=True)
class Candle:
    """One window of one market. `book_count` has no excluded books in it.

    Attributes:
        window_start_ms: Start of the window, ms since the epoch.
        open: Mid price of the earliest book; likewise `high`, `low` and `close`. None before the first book.
        book_count: Books that count.
        excluded_count: Books without a mid price: one side empty, or the best bid not below the best ask.
        first_book_ms: Stamp of the earliest book that counts.
        last_book_ms: Stamp of the latest.
    """

    window_start_ms: int
    open: Decimal = Decimal(0)
    high: Decimal = Decimal(0)
    low: Decimal = Decimal(0)
    close: Decimal = Decimal(0)
    book_count: int = 0
    excluded_count: int = 0
    first_book_ms: int = 0
    last_book_ms: int = 0

    def add(self, tms: int, mid: Decimal | None) -> None:
        """Count one book; `mid` is None if it has none."""
        if mid is None:
            self.excluded_count += 1
            return
        if not self.book_count:
            self.open = self.high = self.low = self.close = mid
            self.first_book_ms = self.last_book_ms = tms
        elif mid > self.high:
            self.high = mid
        elif mid < self.low:
            self.low = mid
        if tms < self.first_book_ms:
            self.open, self.first_book_ms = mid, tms
        if tms >= self.last_book_ms:
            self.close, self.last_book_ms = mid, tms
        self.book_count += 1

    def merge(self, later: Candle) -> None:
        """Take in the candle of a later window."""
        if later.book_count and self.book_count:
            self.high, self.low = max(self.high, later.high), min(self.low, later.low)
            self.close, self.last_book_ms = later.close, later.last_book_ms
        elif later.book_count:
            self.open, self.high, self.low, self.close = later.open, later.high, later.low, later.close
            self.first_book_ms, self.last_book_ms = later.first_book_ms, later.last_book_ms
        self.book_count += later.book_count
        self.excluded_count += later.excluded_count


class Truth:
    """Candles by market and window."""

    def __init__(self) -> None:
        self._candles: dict[str, dict[int, Candle]] = {}

    @property
    def books_published(self) -> int:
        """Books published so far, excluded ones too."""
        return sum(
            c.book_count + c.excluded_count for windows in self._candles.values() for c in windows.values()
        )

    def add(self, book: Publication) -> None:
        """Count a published book."""
        ask, bid = book.best_ask, book.best_bid
        mid = (ask + bid) / 2 if ask is not None and bid is not None and bid <= ask else None
        tms = book.tms
        windows = self._candles.setdefault(book.market, {})
        start = window_start(tms)
        candle = windows.get(start)
        if candle is None:
            candle = windows[start] = Candle(start)
        candle.add(tms, mid)

    def forget(self, market: str) -> None:
        """Forget a market: its books are about to be published again from the first one on."""
        self._candles.pop(market, None)

    def candles(self, window_s: int = WINDOW_MS // 1000) -> Iterator[dict[str, object]]:
        """Yield every candle with at least one book that counts, by market and time.

        Args:
            window_s: Length of a window in seconds, a multiple of 300.

        Raises:
            ValueError: If it is not.
        """
        window_ms = window_s * 1000
        if window_ms <= 0 or window_ms % WINDOW_MS:
            raise ValueError(f"window_s={window_s}: must be a multiple of {WINDOW_MS // 1000}")
        for market in sorted(self._candles):
            merged: dict[int, Candle] = {}
            for start, candle in sorted(self._candles[market].items()):
                whole = start - start % window_ms
                merged.setdefault(whole, Candle(whole)).merge(candle)
            for candle in merged.values():
                if candle.book_count:
                    yield _as_json(market, candle)


def decimal_text(value: Decimal) -> str:
    """Write a decimal without an exponent and without trailing zeros."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _as_json(market: str, candle: Candle) -> dict[str, object]:
    return {
        "ticker": ticker_of(market),
        "market": market,
        "window_start_ms": candle.window_start_ms,
        "open": decimal_text(candle.open),
        "high": decimal_text(candle.high),
        "low": decimal_text(candle.low),
        "close": decimal_text(candle.close),
        "book_count": candle.book_count,
        "excluded_count": candle.excluded_count,
        "first_book_ms": candle.first_book_ms,
        "last_book_ms": candle.last_book_ms,
    }
