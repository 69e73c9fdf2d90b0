"""A market's books in the order of time: what the exchange asks of the walk and of a recording alike."""

from __future__ import annotations

from typing import Protocol

from ingest_services.simulator.books import Publication

WINDOW_MS = 300_000


def window_start(ms: int) -> int:
    """Return the start of the 5-minute window that an instant lies in; both ms since the epoch."""
    return ms - ms % WINDOW_MS


class Feed(Protocol):
    """The books of one market. It is asked for them; it does nothing on its own."""

    @property
    def market(self) -> str:
        """Market code."""

    @property
    def current(self) -> Publication:
        """The newest book that was published; before the first, the book that was there at the opening."""

    @property
    def has_snapshots(self) -> bool:
        """Whether subscribers are sent a SNAPSHOT made of `current`."""

    @property
    def from_ms(self) -> int:
        """Where its time starts, ms since the epoch."""

    @property
    def due_ms(self) -> int | None:
        """When the next book is to be published, ms since the epoch; None if there is none."""

    @property
    def place(self) -> int:
        """The next book's place among those of other markets that are due in the same millisecond."""

    def begin(self, now_ms: int) -> None:
        """Go to the first book. The first call decides when that is; later ones give the same books again."""

    def step(self) -> Publication:
        """Return the next book and make it the current one."""
