"""Which closed days want writing into daily files, and when: decisions as plain functions. docs/daily.md.

A day is closed when every window that it should have is built, or cannot be any more (frozen). It wants
writing when the digest over its windows' built versions is not the one that its files were written from:
never written, or a window was built again since. As in `reconcile`, a needless run changes nothing,
and a day that was left out is found again by the next tick.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

import psycopg

from cryptostream_dagster.catalog.retention import frozen_until
from cryptostream_dagster.day import Day
from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.sql import load_sql
from cryptostream_dagster.window import Window

_PACKAGE = "cryptostream_dagster.catalog"

# The asset whose built windows a day is made of.
PARQUET = "orderbook_parquet"

# Windows that a refusal names.
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class DayState:
    """What the catalog knows of a day.

    Attributes:
        date: The day, on the market's clock.
        windows: How many windows it should have.
        missing: How many of them have no Parquet yet.
        first_missing: The oldest of these.
        digest: Over the built versions of its windows; empty: nothing is built.
        last_built_at: When the last one was built.
        written_digest: The digest that its files were written from; None: never.
        requests: How often a run was asked for at this digest.
        requested_at: When the last time was.
    """

    date: date
    windows: int
    missing: int
    first_missing: tuple[Window, ...]
    digest: str
    last_built_at: datetime | None
    written_digest: str | None
    requests: int
    requested_at: datetime | None

    @property
    def is_closed(self) -> bool:
        """Whether every window is built. A day without any has nothing to write."""
        return self.windows > 0 and self.missing == 0


@dataclass(frozen=True, slots=True)
class DayPolicy:
    """How eager the schedule is.

    Attributes:
        settle: A day is written once none of its windows was built for so long: late data comes in batches.
        max_days: Days asked for in one tick, those in flight included.
        retry_first: Pause before a second request for the same state; doubles with each.
        retry_most: The longest pause.
    """

    settle: timedelta = timedelta(minutes=10)
    max_days: int = 4
    retry_first: timedelta = timedelta(minutes=50)
    retry_most: timedelta = timedelta(days=1)


def decide_days(
    states: Iterable[DayState], in_flight: Iterable[date], now: datetime, policy: DayPolicy
) -> list[DayState]:
    """Decide which days to ask for: those asked for least first, of these the newest first.

    Args:
        states: In any order.
        in_flight: Days of runs that are queued or running.
        now: The current instant.
        policy: Limits.
    """
    busy = set(in_flight)
    wanted = [
        state
        for state in states
        if state.is_closed
        and state.digest != state.written_digest
        and state.date not in busy
        and (state.last_built_at is None or state.last_built_at + policy.settle <= now)
        and _may_try(state, now, policy)
    ]
    wanted.sort(key=lambda state: (state.requests, -state.date.toordinal()))
    return wanted[: max(0, policy.max_days - len(busy))]


def _may_try(state: DayState, now: datetime, policy: DayPolicy) -> bool:
    if state.requests == 0 or state.requested_at is None:
        return True
    # 2**20 is past any retry_most; the bound keeps the number small.
    pause = min(policy.retry_first * (1 << min(state.requests - 1, 20)), policy.retry_most)
    return now >= state.requested_at + pause


def find_days(
    connection: psycopg.Connection, settings: PipelineSettings, first: Day, last: Day, now: datetime
) -> list[DayState]:
    """Return the state of the days from one to another that have or should have a window.

    Args:
        connection: In autocommit mode.
        settings: Of the platform: windows before `PARTITIONS_START` have no partition and are not waited for.
        first: The oldest day.
        last: The newest day.
        now: The current instant.
    """
    arguments = {
        "since": max(first.start, settings.first_window),
        "until": last.end,
        "zone": first.zone.key,
        "asset": PARQUET,
        "shown": _SHOWN,
        "frozen_until": frozen_until(connection, settings, now),
    }
    return [_state(row) for row in connection.execute(load_sql(_PACKAGE, "days"), arguments)]


def _state(row: tuple[Any, ...]) -> DayState:
    day, windows, missing, first_missing, *rest = row
    return DayState(day, windows, missing, tuple(Window.at(start) for start in first_missing), *rest)


def note_day_requests(connection: psycopg.Connection, states: Iterable[DayState]) -> None:
    """Remember that runs were asked for: before they are, so that a crash costs a pause, never a storm."""
    for state in states:
        connection.execute(
            load_sql(_PACKAGE, "note_day_request"),
            {"day": state.date, "digest": state.digest, "requests": state.requests + 1},
        )
