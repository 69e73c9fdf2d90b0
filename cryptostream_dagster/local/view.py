"""How a running stack looks: a live view on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol
from zoneinfo import ZoneInfo

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cryptostream_dagster.local.status import Status

PLAIN_EVERY_S = 10.0
SHOWN_TICKERS = 12
UNKNOWN = "-"


class View(Protocol):
    """What a stack talks to."""

    def say(self, line: str) -> None:
        """Take a line about something that happened."""

    def show(self, status: Status) -> None:
        """Take the latest status."""


class PlainView:
    """Prints lines: what happens at once, the status every ten seconds."""

    def __init__(self, console: Console, zone: ZoneInfo) -> None:
        self._console = console
        self._zone = zone
        self._shown = time.monotonic()

    def say(self, line: str) -> None:
        """See `View.say`."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def show(self, status: Status) -> None:
        """See `View.show`."""
        if time.monotonic() >= self._shown + PLAIN_EVERY_S:
            self.say(as_line(status, self._zone))
            self._shown = time.monotonic()


class LiveView:
    """Redraws a panel in place; what happens scrolls above it."""

    def __init__(self, live: Live, zone: ZoneInfo) -> None:
        self._live = live
        self._zone = zone

    def say(self, line: str) -> None:
        """See `View.say`."""
        self._live.console.print(line, markup=False, highlight=False)

    def show(self, status: Status) -> None:
        """See `View.show`."""
        self._live.update(as_panel(status, self._zone))


@contextmanager
def open_view(console: Console, zone: ZoneInfo) -> Iterator[View]:
    """Yield the view that suits a console: live on a terminal, plain lines elsewhere."""
    if not console.is_terminal:
        yield PlainView(console, zone)
        return
    with Live(console=console, refresh_per_second=4) as live:
        yield LiveView(live, zone)


def banner(source: str) -> str:
    """Return whose data it is, in words that cannot be missed."""
    return "SIMULATED DATA, not a market" if source == "simulator" else "LIVE data from Upbit"


def as_line(status: Status, zone: ZoneInfo) -> str:
    """Return a status as one plain line."""
    return "  ".join(f"{name} {value}" for name, value in _figures(status, zone)) + _troubles(status)


def as_panel(status: Status, zone: ZoneInfo, hint: str = "Ctrl-C stops everything") -> RenderableType:
    """Return a status as the live view of a terminal."""
    simulated = status.source == "simulator"
    figures = Table.grid(padding=(0, 2))
    figures.add_row("Dagster", Text(status.url or "starting …", style="bold cyan"))
    for name, value in _figures(status, zone)[1:]:
        figures.add_row(name, value)
    candles = Table(box=None, padding=(0, 2), header_style="dim")
    for column in ("ticker", "last candle", "close (mid)", "books"):
        candles.add_column(column, justify="left" if column == "ticker" else "right")
    for candle in status.candles[:SHOWN_TICKERS]:
        start, close = candle.event_time.astimezone(zone), candle.close_price.normalize()
        candles.add_row(candle.ticker, f"{start:%H:%M}", f"{close:f}", f"{candle.book_count:,}")
    if len(status.candles) > SHOWN_TICKERS:
        candles.add_row(f"… {len(status.candles) - SHOWN_TICKERS} more", "", "", "")
    children = Text("   ").join(
        Text(f"● {name}", style="green" if state == "running" else "yellow")
        + Text("" if state == "running" else f" {state}", style="yellow")
        for name, state in status.children.items()
    )
    return Panel(
        Group(
            figures,
            Text(),
            candles if status.candles else Text("no candle yet", style="dim"),
            Text(),
            children,
        ),
        title=Text(f" {banner(status.source)} ", style="black on yellow" if simulated else "white on red"),
        subtitle=Text(hint, style="dim"),
        title_align="left",
        subtitle_align="left",
    )


def _figures(status: Status, zone: ZoneInfo) -> list[tuple[str, str]]:
    last = status.last_window
    return [
        ("source", status.source),
        ("frames/s", UNKNOWN if status.frames_per_s is None else f"{status.frames_per_s:,.1f}"),
        ("records in the lake", UNKNOWN if status.records is None else f"{status.records:,}"),
        ("broker lag", UNKNOWN if status.lag is None else f"{status.lag:,}"),
        ("last window", f"{last.astimezone(zone):%Y-%m-%d %H:%M %Z}" if last else UNKNOWN),
        ("windows in 24 h", UNKNOWN if status.windows is None else f"{status.windows:,}"),
    ]


def _troubles(status: Status) -> str:
    troubles = [f"{name} {state}" for name, state in status.children.items() if state != "running"]
    return f"  ({', '.join(troubles)})" if troubles else ""
