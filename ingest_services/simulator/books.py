"""What a feed publishes, and how a simulated book looks on the wire.

Numbers are kept as the text that goes out and, where the truth needs them, as exact decimals beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from typing import Protocol

import orjson

from ingest_services.upbit.ticks import UNITS_PER_ONE

_DECIMALS = 8
_MIN_PLAIN = UNITS_PER_ONE // 1000
_MAX_PLAIN = UNITS_PER_ONE * 10**7
_STAMP = re.compile(rb'("(?:tms|timestamp)"\s*:\s*)(\d+)')


class Publication(Protocol):
    """One book on its way out, simulated or recorded."""

    @property
    def market(self) -> str:
        """Market code."""

    @property
    def tms(self) -> int:
        """Its stamp, ms since the epoch."""

    @property
    def best_ask(self) -> Decimal | None:
        """Price of the best ask; None if there is none."""

    @property
    def best_bid(self) -> Decimal | None:
        """Price of the best bid; None if there is none."""

    def encode(self, stream_format: str, depth: int, stream_type: str) -> bytes:
        """Return the frame."""

    def rest(self, depth: int) -> dict[str, object]:
        """Return it as `/v1/orderbook` tells it, ready for orjson."""

    def is_event(self, now_ms: int) -> bool:
        """Tell whether it counts for a candle if it is sent now (ms since the epoch)."""


def number_text(units: int) -> str:
    """Write a number as the exchange does: like Java, in exponent form below 10⁻³ and from 10⁷ on.

    Args:
        units: The number in units of 10⁻⁸, not negative.

    Returns:
        `127.0`, `7.9276E-4`, `1.16539E8`.
    """
    if units == 0:
        return "0.0"
    if _MIN_PLAIN <= units < _MAX_PLAIN:
        whole, fraction = divmod(units, UNITS_PER_ONE)
        return f"{whole}.{f'{fraction:08d}'.rstrip('0') or '0'}"
    digits = str(units)
    return f"{digits[0]}.{digits[1:].rstrip('0') or '0'}E{len(digits) - 1 - _DECIMALS}"


def restamped(frame: bytes, change: Callable[[int], int]) -> bytes:
    """Return a frame with its first stamp changed, and no other byte."""
    return _STAMP.sub(lambda found: found[1] + str(change(int(found[2]))).encode(), frame, count=1)


@cache
def _template(stream_format: str, rows: int) -> str:
    if stream_format.startswith("SIMPLE"):
        unit = '{"ap":%s,"bp":%s,"as":%s,"bs":%s}'
        text = '{"ty":"orderbook","cd":"%s","tms":%d,"tas":%s,"tbs":%s,"obu":[UNITS],"st":"%s","lv":0}'
    else:
        unit = '{"ask_price":%s,"bid_price":%s,"ask_size":%s,"bid_size":%s}'
        text = (
            '{"type":"orderbook","code":"%s","timestamp":%d,"total_ask_size":%s,"total_bid_size":%s,'
            '"orderbook_units":[UNITS],"stream_type":"%s","level":0}'
        )
    text = text.replace("UNITS", ",".join([unit] * rows))
    return f"[{text}]" if stream_format.endswith("_LIST") else text


@dataclass(slots=True)
class SimulatedBook:
    """A whole book; each side is best first, and may be shorter than the other.

    Attributes:
        market: Market code.
        tms: Stamp, ms since the epoch.
        total_ask: Sum of all ask sizes, as text.
        total_bid: Sum of all bid sizes, as text.
        ask_prices: Text of each level's price.
        ask_sizes: Text of each level's size.
        bid_prices: Text of each level's price.
        bid_sizes: Text of each level's size.
        best_ask: Exact price of the first ask, None if there is none.
        best_bid: Exact price of the first bid, None if there is none.
    """

    market: str
    tms: int
    total_ask: str
    total_bid: str
    ask_prices: list[str]
    ask_sizes: list[str]
    bid_prices: list[str]
    bid_sizes: list[str]
    best_ask: Decimal | None
    best_bid: Decimal | None
    _frames: dict[tuple[str, int, str], bytes] = field(default_factory=dict)

    def encode(self, stream_format: str, depth: int, stream_type: str) -> bytes:
        """Return the frame; the same arguments give the same bytes object, so many clients cost one encoding.

        Args:
            stream_format: One of `upbit.request.FORMATS`.
            depth: Levels a side at most; the frame is as long as the deeper side, the other is padded.
            stream_type: `SNAPSHOT` or `REALTIME`.
        """
        key = (stream_format, depth, stream_type)
        frame = self._frames.get(key)
        if frame is None:
            rows, cells = self._cells(depth)
            values = (self.market, self.tms, self.total_ask, self.total_bid, *cells, stream_type)
            frame = self._frames[key] = (_template(stream_format, rows) % values).encode()
        return frame

    def rest(self, depth: int) -> dict[str, object]:
        """Return the book as `/v1/orderbook` tells it."""
        rows, cells = self._cells(depth)
        names = ("ask_price", "bid_price", "ask_size", "bid_size")
        return {
            "market": self.market,
            "timestamp": self.tms,
            "total_ask_size": orjson.Fragment(self.total_ask),
            "total_bid_size": orjson.Fragment(self.total_bid),
            "orderbook_units": [
                dict(zip(names, map(orjson.Fragment, cells[4 * row : 4 * row + 4]), strict=True))
                for row in range(rows)
            ],
            "level": 0,
        }

    def is_event(self, now_ms: int) -> bool:  # noqa: ARG002
        """Every step of a walk is a change of the book."""
        return True

    def _cells(self, depth: int) -> tuple[int, list[str]]:
        rows = min(depth, max(len(self.ask_prices), len(self.bid_prices)))
        cells = ["0.0"] * (4 * rows)
        asks = min(rows, len(self.ask_prices))
        bids = min(rows, len(self.bid_prices))
        cells[0 : 4 * asks : 4] = self.ask_prices[:asks]
        cells[1 : 4 * bids : 4] = self.bid_prices[:bids]
        cells[2 : 4 * asks : 4] = self.ask_sizes[:asks]
        cells[3 : 4 * bids : 4] = self.bid_sizes[:bids]
        return rows, cells
