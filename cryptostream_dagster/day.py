"""A day of the market's clock, as instants: [midnight, next midnight). Plain values, no Dagster.

Where clocks change, a day has 23 or 25 hours and so 276 or 300 windows; nothing here counts on 288.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from cryptostream_dagster.window import Window, windows_between

DAY_FORMAT = "%Y-%m-%d"


@dataclass(frozen=True, slots=True)
class Day:
    """All windows whose start has this date on the market's clock.

    Attributes:
        date: The date.
        zone: The market's time zone.
    """

    date: date
    zone: ZoneInfo

    @classmethod
    def at(cls, instant: datetime, zone: ZoneInfo) -> Day:
        """Return the day that an aware instant lies in."""
        return cls(instant.astimezone(zone).date(), zone)

    def shifted(self, days: int) -> Day:
        """Return the day so many days later."""
        return Day(self.date + timedelta(days=days), self.zone)

    @property
    def start(self) -> datetime:
        """Its first instant, in UTC."""
        # A midnight that a change of clocks leaves out is read with the offset from before the change: that
        # is the moment of the change, and the day's first instant.
        return datetime.combine(self.date, time(), self.zone).astimezone(UTC)

    @property
    def end(self) -> datetime:
        """The first instant that is not in it, in UTC."""
        return self.shifted(1).start

    @property
    def number(self) -> int:
        """Days since the year 1; fits 32 bits, so it can be half of an advisory lock's key."""
        return self.date.toordinal()

    def windows(self) -> Iterator[Window]:
        """Yield its windows, in order."""
        return windows_between(Window(self.start), Window(self.end).shifted(-1))

    def __str__(self) -> str:
        return self.date.isoformat()
