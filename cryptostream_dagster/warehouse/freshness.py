"""How old the newest window is that is complete *and* covered, and whether that is too old.

When something was last built says nothing: a backfill builds old windows, and without producers empty ones
are built all the same. Neither makes the numbers new.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from cryptostream_dagster.sql import load_sql
from cryptostream_dagster.window import Window

if TYPE_CHECKING:
    import psycopg

# A window is 5 minutes long and is built within SEAL_WAIT_S (2 minutes) of its end: at most 7 minutes pass
# from the end of one to the next being there. After 15 two in a row were missed.
STALE_AFTER = timedelta(minutes=15)

# A window of which less was listened to, on the mean over the subscribed tickers, is more hole than data.
# Whether all was listened to is another question (the check `listened`): one dead connection of many must not
# hide whether the rest flows.
ENOUGH_LISTENED = 0.5

# What is older is stale whatever it is; bounds what one look costs.
_LOOK_BACK = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest windows of their kind.

    Attributes:
        began: When the lake began; None: there is none yet.
        built: With candles built, data or not; None: there is none.
        covered: Of these the newest that was listened to; None: none within a day.
    """

    began: datetime | None
    built: Window | None
    covered: Window | None


def newest_windows(connection: psycopg.Connection, now: datetime) -> Newest:
    """Look for the newest windows.

    Args:
        connection: To the warehouse.
        now: The current instant.
    """
    row = connection.execute(
        load_sql("cryptostream_dagster.warehouse", "fresh", "checks"),
        {"since": now - _LOOK_BACK, "enough": ENOUGH_LISTENED},
    ).fetchone()
    assert row is not None
    built, covered = (None if start is None else Window.at(start) for start in row[1:])
    return Newest(row[0], built, covered)


def lag_of(newest: Newest, now: datetime) -> timedelta | None:
    """Return how long ago the newest complete and covered window ended; None: more than a day, or never."""
    return None if newest.covered is None else now - newest.covered.end


def is_fresh(newest: Newest, now: datetime) -> bool:
    """Whether the newest complete and covered window is new enough; in a new lake it is awaited as long."""
    covered_until = None if newest.covered is None else newest.covered.end
    known = [instant for instant in (newest.began, covered_until) if instant is not None]
    return bool(known) and now - max(known) <= STALE_AFTER


def explain(newest: Newest, now: datetime, zone: ZoneInfo) -> str:
    """Return one sentence for people: how new the numbers are, and if they are not, what is missing."""
    lag = lag_of(newest, now)
    if newest.covered is None or lag is None:
        covered = "no window of the last day is complete and was listened to"
    else:
        covered = f"the newest covered window, {newest.covered.label(zone)}, ended {_minutes(lag)} ago"
    if is_fresh(newest, now):
        return covered if lag is not None else "the lake is new: its first window is awaited"
    if newest.built is None:
        return f"{covered}; no window was ever built"
    if now - newest.built.end <= STALE_AFTER:
        return f"{covered}; windows are built, but nobody listens: are the producers running?"
    return f"{covered}; none was built since {newest.built.label(zone)}"


def _minutes(lag: timedelta) -> str:
    return f"{lag / timedelta(minutes=1):.0f} min"
