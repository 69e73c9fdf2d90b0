"""Small pictures for the UI, as SVG text: candles and spread of a day, quotes and spread of a window.

Belongs here: drawing what it is given, in milliseconds and a few kilobytes. A picture lives in the event log
for ever, and a run draws it that people wait for: no library that takes a second to import, no bitmap.
Does not belong here: what is drawn and when (`assets`); the chart that a person saves (`chart.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import NamedTuple
from urllib.parse import quote
from zoneinfo import ZoneInfo

# An upper bound of one picture as markdown, bytes: a day of 300 windows (when clocks go back), long numbers.
MOST_BYTES = 20_000

# Of a window's quotes one is drawn in so many seconds: the last.
_QUOTE_EVERY = timedelta(seconds=2)

_WIDTH, _HEIGHT = 640, 260
_LEFT, _RIGHT = 12, 550
_PRICES = (38, 172)
_SPREADS = (192, 232)
_UP, _DOWN, _ASK, _BID, _SPREAD = "#1f9d61", "#d1495b", "#d1495b", "#2f6fb7", "#8a6fb0"


class Bar(NamedTuple):
    """A candle: start, prices, mean spread in basis points or None."""

    start: datetime
    open: float
    high: float
    low: float
    close: float
    spread_bps: float | None


class Quote(NamedTuple):
    """Best bid and ask at a moment; a two-sided book that is not crossed."""

    moment: datetime
    bid: float
    ask: float


class _Axis(NamedTuple):
    """From values to pixels; a range of nothing is drawn in the middle."""

    low: float
    high: float
    top: float
    bottom: float

    def at(self, value: float) -> float:
        if self.high <= self.low:
            return (self.top + self.bottom) / 2
        return self.bottom - (value - self.low) / (self.high - self.low) * (self.bottom - self.top)


def day_picture(
    title: str, bars: Sequence[Bar], start: datetime, end: datetime, width: timedelta, zone: ZoneInfo
) -> str:
    """Draw candles of a day, or of a part of it, and their mean spreads below.

    Args:
        title: What it is, of whom.
        bars: In order, at least one.
        start: Where the picture begins, an instant.
        end: Where it ends.
        width: Of a bar.
        zone: Of the times that are written.

    Returns:
        SVG.
    """
    prices = _Axis(min(bar.low for bar in bars), max(bar.high for bar in bars), *_PRICES)
    time = _time_axis(start, end)
    pixels = time(start + width) - time(start)
    lines: dict[tuple[str, float], list[str]] = {}
    for bar in bars:
        colour = _UP if bar.close >= bar.open else _DOWN
        middle = _n(time(bar.start) + pixels / 2)
        upper, lower = prices.at(max(bar.open, bar.close)), prices.at(min(bar.open, bar.close))
        wick = f"M{middle},{_n(prices.at(bar.high))}V{_n(prices.at(bar.low))}"
        # A line as wide as a body is shorter to write than a rectangle; one of no height would not be seen.
        body = f"M{middle},{_n(upper - 0.3)}V{_n(lower + 0.3)}"
        lines.setdefault((colour, 0.7), []).append(wick)
        lines.setdefault((colour, pixels * 0.8), []).append(body)
    shapes = [
        f"<path d='{''.join(parts)}' stroke='{colour}' stroke-width='{_n(thickness)}'/>"
        for (colour, thickness), parts in lines.items()
    ]
    spreads = [(time(bar.start) + pixels / 2, bar.spread_bps) for bar in bars]
    return _picture(title, prices, shapes, spreads, pixels * 0.8, (start, end), "%H:%M", zone)


def window_picture(
    title: str, quotes: Iterable[Quote], start: datetime, end: datetime, zone: ZoneInfo
) -> str:
    """Draw best bid and ask over a window, and the spread below: the last quote of every two seconds.

    Args:
        title: What it is, of whom.
        quotes: In order, at least one.
        start: Where the window begins, an instant.
        end: Where it ends.
        zone: Of the times that are written.

    Returns:
        SVG.
    """
    last = {(each.moment - start) // _QUOTE_EVERY: each for each in quotes}
    shown = [Quote(start + step * _QUOTE_EVERY, each.bid, each.ask) for step, each in last.items()]
    prices = _Axis(min(each.bid for each in shown), max(each.ask for each in shown), *_PRICES)
    time = _time_axis(start, end)
    shapes = [
        f"<path d='{_steps(points, time(end))}' stroke='{colour}' fill='none'/>"
        for points, colour in (
            ([(time(q.moment), prices.at(q.ask)) for q in shown], _ASK),
            ([(time(q.moment), prices.at(q.bid)) for q in shown], _BID),
        )
    ]
    half = _QUOTE_EVERY / 2
    spreads = [(time(q.moment + half), (q.ask - q.bid) / (q.ask + q.bid) * 20_000) for q in shown]
    width = (_RIGHT - _LEFT) * (_QUOTE_EVERY / (end - start))
    return _picture(title, prices, shapes, spreads, width, (start, end), "%H:%M:%S", zone)


def as_markdown(svg: str, alternative: str) -> str:
    """Return a picture as the UI shows it in metadata: an image in markdown that brings its own data."""
    return f"![{alternative}](data:image/svg+xml,{quote(svg, safe=_PLAIN)})"


# What may stay as it is in the address of an image in markdown. Text, and not base64, so that the database
# compresses it.
_PLAIN = "/:;=,.'-+*!?@$&"


def _picture(
    title: str,
    prices: _Axis,
    shapes: Sequence[str],
    spreads: Sequence[tuple[float, float | None]],
    width: float,
    span: tuple[datetime, datetime],
    clock: str,
    zone: ZoneInfo,
) -> str:
    known = [(x, spread) for x, spread in spreads if spread is not None]
    most = max((spread for _, spread in known), default=0.0)
    below = _Axis(0.0, most or 1.0, *_SPREADS)
    bars = "".join(f"M{_n(x)},{_SPREADS[1]}V{_n(below.at(spread))}" for x, spread in known)
    start, end = span
    ticks = [start + (end - start) * quarter / 4 for quarter in range(5)]
    anchors = ("start", "middle", "middle", "middle", "end")
    pixels = _time_axis(start, end)
    lines = "".join(f"M{_LEFT},{y}H{_RIGHT}" for y in (*_PRICES, *_SPREADS))
    return "".join(
        (
            f"<svg xmlns='http://www.w3.org/2000/svg' width='{_WIDTH}' height='{_HEIGHT}' "
            "font-family='sans-serif' font-size='11' fill='#444'>",
            f"<rect width='{_WIDTH}' height='{_HEIGHT}' rx='6' fill='#fff'/>",
            f"<text x='{_LEFT}' y='20' font-size='13' fill='#111'>{_text(title)}</text>",
            f"<path d='{lines}' stroke='#ddd'/>",
            *shapes,
            f"<path d='{bars}' stroke='{_SPREAD}' stroke-width='{_n(max(width, 0.5))}'/>",
            f"<text x='{_RIGHT + 6}' y='{_PRICES[0] + 4}'>{_price(prices.high)}</text>",
            f"<text x='{_RIGHT + 6}' y='{_PRICES[1] + 4}'>{_price(prices.low)}</text>",
            f"<text x='{_RIGHT + 6}' y='{_SPREADS[0] + 4}'>{most:.3g} bps</text>",
            f"<text x='{_RIGHT + 6}' y='{_SPREADS[1] + 4}'>spread</text>",
            *(
                f"<text x='{_n(pixels(tick))}' y='{_HEIGHT - 10}' text-anchor='{anchor}'>"
                f"{tick.astimezone(zone):{clock}}</text>"
                for tick, anchor in zip(ticks, anchors, strict=True)
            ),
            "</svg>",
        )
    )


def _time_axis(start: datetime, end: datetime) -> Callable[[datetime], float]:
    return lambda moment: _LEFT + (moment - start) / (end - start) * (_RIGHT - _LEFT)


def _steps(points: Sequence[tuple[float, float]], end: float) -> str:
    """Return a path that stays where it is until the next point, and after the last to the end."""
    path = f"M{_n(points[0][0])},{_n(points[0][1])}"
    for before, after in pairwise(points):
        path += f"H{_n(after[0])}" + (f"V{_n(after[1])}" if after[1] != before[1] else "")
    return f"{path}H{_n(end)}"


def _n(pixels: float) -> str:
    """Write a length to a tenth of a pixel, no digit too many."""
    return f"{pixels:.1f}".removesuffix(".0")


def _price(price: float) -> str:
    return f"{price:,.10g}"


def _text(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
