"""Our candles against the exchange's own: bounds, not equality, for ours are of mids and theirs of trades.

A trade happens at the bid or at the ask of the book that stands, half a spread from the mid. So what the
exchange says was traded in a window, [low, high], must overlap what we say the mid was, made wider by the
window's mean spread on both sides: twice what the mean book allows, because a spread may be wider when it is
traded at. It need not lie inside: a large order sweeps through levels that are gone before a book of it is
published. And it need not be as wide: not every mid is traded at.

What nobody knows is no disagreement: no answer, no trade, a candle that may be missing books.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from cryptostream_dagster.sql import load_sql
from cryptostream_dagster.window import WINDOW, Window
from ingest_services.upbit.rest import RestCandle, RestError

if TYPE_CHECKING:
    import psycopg

# The tickers that are asked for: one request each.
TICKERS = 10
# The windows that are compared, and how long their end must be past: theirs and ours are there by then.
WINDOWS = 12
SETTLED = timedelta(minutes=2)
_COVERED = 0.999

# Answers that mean "leave me alone".
_REFUSALS = (418, 429)


class Candle(NamedTuple):
    """What is compared of one of ours: bounds of the mid, and the mean spread in basis points."""

    ticker: str
    market: str
    window: Window
    low: float
    high: float
    spread_bps: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """One ticker.

    Attributes:
        ticker: Canonical ticker.
        compared: Windows that both have.
        unknown: Windows of ours that the exchange says nothing of.
        apart: The windows that do not agree, with their distance in basis points.
        silence: Why nothing could be compared; empty if it could.
    """

    ticker: str
    compared: int
    unknown: int
    apart: Mapping[Window, float]
    silence: str = ""

    @property
    def worst_bps(self) -> float:
        """The largest distance, basis points; 0 if all agree."""
        return max(self.apart.values(), default=0.0)


def distance_bps(ours: Candle, theirs: RestCandle) -> float:
    """Return how far apart the two ranges are, basis points of the mid; 0 if they overlap."""
    middle = (ours.low + ours.high) / 2
    spread = middle * ours.spread_bps / 10_000
    gap = max(theirs.low - (ours.high + spread), (ours.low - spread) - theirs.high, 0.0)
    return gap / middle * 10_000


def compare(ticker: str, ours: Sequence[Candle], theirs: Iterable[RestCandle]) -> Comparison:
    """Compare one ticker's candles, window by window."""
    known = {candle.start: candle for candle in theirs}
    pairs = [(candle, known[candle.window.start]) for candle in ours if candle.window.start in known]
    apart = {
        candle.window: distance for candle, other in pairs if (distance := distance_bps(candle, other)) > 0
    }
    return Comparison(ticker, len(pairs), len(ours) - len(pairs), apart)


def compare_all(
    candles: Sequence[Candle], ask: Callable[[str, int], Sequence[RestCandle]]
) -> list[Comparison]:
    """Compare every ticker, asking the exchange once for each; where it does not answer, that is said.

    Args:
        candles: Ours, by ticker.
        ask: Returns a market's newest candles, of so many; raises RestError.
    """
    found = []
    refused = ""
    for ticker, group in groupby(candles, key=lambda candle: candle.ticker):
        ours = list(group)
        silence = refused
        if not refused:
            try:
                # Newest first, the running one and those that have not settled included.
                found.append(compare(ticker, ours, ask(ours[0].market, WINDOWS + 3)))
                continue
            except RestError as error:
                silence = str(error)
                # One market may be gone; without an answer, or told to stop, one does not go on asking.
                refused = silence if error.status is None or error.status in _REFUSALS else ""
        found.append(Comparison(ticker, 0, len(ours), {}, silence))
    return found


def describe(found: Sequence[Comparison]) -> str:
    """Return one sentence for people: who is apart and by how much, the worst first; or what is not known."""
    apart = sorted((c for c in found if c.apart), key=lambda c: -c.worst_bps)
    if apart:
        return "; ".join(
            f"{c.ticker}: {len(c.apart)} windows, up to {c.worst_bps:.3g} bps apart" for c in apart
        )
    compared, unknown = sum(c.compared for c in found), sum(c.unknown for c in found)
    if compared:
        return f"{compared} windows of {len(found)} tickers agree" + (
            f", {unknown} unknown" if unknown else ""
        )
    silence = next((c.silence for c in found if c.silence), "")
    return "unknown: " + (silence or "there is no candle of ours of which all was listened to")


def candles_to_compare(connection: psycopg.Connection, now: datetime) -> list[Candle]:
    """Return the busiest tickers' candles of the last hour, by ticker.

    Args:
        connection: To the warehouse.
        now: The current instant.
    """
    until = Window.at(now - SETTLED).start
    rows = connection.execute(
        load_sql("cryptostream_dagster.warehouse", "busiest_candles"),
        {"since": until - WINDOWS * WINDOW, "until": until, "tickers": TICKERS, "covered": _COVERED},
    )
    return [
        Candle(ticker, market, Window.at(start), float(low), float(high), float(spread or 0))
        for ticker, market, start, low, high, spread in rows
    ]
