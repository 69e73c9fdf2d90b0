"""A window: five minutes of exchange time, [start, end). Plain instants, no Dagster.

Windows lie on the grid of UTC; every zone's offset is a multiple of five minutes, so they lie on the market's
grid, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

WINDOW = timedelta(minutes=5)
WINDOW_S = 300


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """[start, start + 5 minutes), start in UTC."""

    start: datetime

    def __post_init__(self) -> None:
        if self.start.tzinfo is not UTC or self.start.timestamp() % WINDOW_S:
            raise ValueError(f"{self.start!r} is not the start of a window in UTC")

    @classmethod
    def at(cls, instant: datetime) -> Window:
        """Return the window that an aware instant lies in."""
        stamp = int(instant.timestamp())
        return cls(datetime.fromtimestamp(stamp - stamp % WINDOW_S, UTC))

    @classmethod
    def last_ended(cls, now: datetime) -> Window:
        """Return the newest window that has ended."""
        return cls.at(now).shifted(-1)

    def shifted(self, windows: int) -> Window:
        """Return the window so many windows later."""
        return Window(self.start + windows * WINDOW)

    @property
    def end(self) -> datetime:
        """The first instant that is not in the window."""
        return self.start + WINDOW

    @property
    def start_ms(self) -> int:
        """Start, ms since the epoch."""
        return int(self.start.timestamp()) * 1000

    @property
    def end_ms(self) -> int:
        """End, ms since the epoch."""
        return self.start_ms + WINDOW_S * 1000

    @property
    def number(self) -> int:
        """Windows since the epoch; fits 32 bits, so it can be half of an advisory lock's key."""
        return self.start_ms // (WINDOW_S * 1000)

    def local(self, zone: ZoneInfo) -> datetime:
        """Start in the market's time zone."""
        return self.start.astimezone(zone)

    def event_date(self, zone: ZoneInfo) -> date:
        """The market-zone date that the window's candles belong to."""
        return self.local(zone).date()

    def label(self, zone: ZoneInfo) -> str:
        """What people read: `2025-02-02 16:05+0900`."""
        return self.local(zone).strftime("%Y-%m-%d %H:%M%z")


def windows_between(first: Window, last: Window) -> Iterator[Window]:
    """Yield the windows from `first` to `last`, both included."""
    for step in range((last.start - first.start) // WINDOW + 1):
        yield first.shifted(step)
