"""Which windows want building, and when: the sensor's decisions, as plain functions.

A window wants building when it is complete and what the catalog holds of it is not what was built: never
built, grown since, or failed before. Everything here is safe to get wrong now and then: a run that was not
needed changes nothing, and a window that was left out is found again by the next tick.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import psycopg

from cryptostream_dagster.sql import load_sql
from cryptostream_dagster.window import WINDOW, Window

_PACKAGE = "cryptostream_dagster.catalog"

# Windows without a book that one call may enter into the catalog: 35 days.
_FILL_LIMIT = 10_000


@dataclass(frozen=True, slots=True)
class Candidate:
    """A window whose built state differs from what the catalog holds.

    Attributes:
        window: The window.
        rows: Books in the catalog.
        revision: Of books and heartbeats together; moves with either.
        first_change_at: When the first object that is not built yet joined; None: no object, an empty window.
        last_change_at: When the last one joined.
        requests: How often a run was asked for at this revision.
        requested_at: When the last time was.
    """

    window: Window
    rows: int
    revision: int
    first_change_at: datetime | None
    last_change_at: datetime | None
    requests: int
    requested_at: datetime | None


@dataclass(frozen=True, slots=True)
class Policy:
    """How eager reconciliation is.

    Attributes:
        grace: After its end a window is left to the schedule for so long.
        settle: A window is built once it has been quiet for so long, or ten times as long after its first
            change.
        max_runs: Runs asked for in one tick.
        max_windows: Windows of one run; of those tried before a quarter as many with every request.
        max_rows: Books of one run, unless a single window has more.
        retry_first: Pause before a second request for the same state; doubles with each.
        retry_most: The longest pause.
    """

    grace: timedelta
    settle: timedelta
    max_runs: int = 2
    max_windows: int = 48
    max_rows: int = 2_000_000
    retry_first: timedelta = timedelta(seconds=30)
    retry_most: timedelta = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Request:
    """A run that is wanted: adjacent windows, in order.

    Attributes:
        candidates: What it builds.
        attempt: 1 for the first request for this state.
    """

    candidates: tuple[Candidate, ...]
    attempt: int

    @property
    def first(self) -> Window:
        """The oldest window."""
        return self.candidates[0].window

    @property
    def last(self) -> Window:
        """The newest window."""
        return self.candidates[-1].window

    @property
    def run_key(self) -> str:
        """Names the windows, their state and the attempt; Dagster launches a key once only."""
        newest = max(candidate.revision for candidate in self.candidates)
        return f"{self.first.number}-{self.last.number}:{newest}:{self.attempt}"


def decide(
    candidates: Iterable[Candidate],
    complete_until: datetime | None,
    in_flight: Iterable[Window],
    now: datetime,
    policy: Policy,
) -> list[Request]:
    """Decide which runs to ask for, newest windows first.

    Adjacent windows that were asked for equally often go into one ranged run: a run costs seconds to launch,
    a window less, and what fails in a window loses none of the others. What kills the whole run would: so
    runs become shorter with every request, until a window goes alone.

    Args:
        candidates: In any order.
        complete_until: Everything before this instant is complete; None: nothing is.
        in_flight: Windows of runs that are queued or running.
        now: The current instant.
        policy: Limits.
    """
    if complete_until is None:
        return []
    busy = set(in_flight)
    ready = [
        candidate
        for candidate in sorted(candidates, key=lambda c: c.window)
        if candidate.window.end <= complete_until
        and candidate.window not in busy
        and candidate.window.end + policy.grace <= now
        and _settled(candidate, now, policy)
        and _may_try(candidate, now, policy)
    ]
    return _group(ready, policy)[::-1][: policy.max_runs]


def _settled(candidate: Candidate, now: datetime, policy: Policy) -> bool:
    if candidate.first_change_at is None or candidate.last_change_at is None:
        return True
    return (
        now >= candidate.last_change_at + policy.settle
        or now >= candidate.first_change_at + 10 * policy.settle
    )


def _may_try(candidate: Candidate, now: datetime, policy: Policy) -> bool:
    if candidate.requests == 0 or candidate.requested_at is None:
        return True
    # 2**20 is past any retry_most; the bound keeps the number small.
    doublings = min(candidate.requests - 1, 20)
    pause = min(policy.retry_first * (1 << doublings), policy.retry_most)
    return now >= candidate.requested_at + pause


def _group(ready: Sequence[Candidate], policy: Policy) -> list[Request]:
    groups: list[list[Candidate]] = []
    for candidate in ready:
        group = groups[-1] if groups else []
        if (
            group
            and group[-1].window.end == candidate.window.start
            and group[-1].requests == candidate.requests
            and len(group) < policy.max_windows >> (2 * min(candidate.requests, 30))
            and sum(c.rows for c in group) + candidate.rows <= policy.max_rows
        ):
            group.append(candidate)
        else:
            groups.append([candidate])
    return [Request(tuple(group), group[0].requests + 1) for group in groups]


def find_candidates(
    connection: psycopg.Connection, since: datetime, until: datetime | None = None, limit: int = 1000
) -> list[Candidate]:
    """Return windows whose built state is behind: those tried least first, of these the newest first.

    Args:
        connection: In autocommit mode.
        since: Older windows have no partition.
        until: Windows that end later are left out; None: none is. Windows that are not complete would hold up
            older ones that are, if there are more of them than the limit.
        limit: How many at most.
    """
    arguments = {"since": since, "until": until and until - WINDOW, "limit": limit}
    rows = connection.execute(load_sql(_PACKAGE, "candidates"), arguments)
    return [Candidate(Window.at(row[0]), *row[1:]) for row in rows]


def note_requests(connection: psycopg.Connection, requests: Iterable[Request]) -> None:
    """Remember that runs were asked for: before they are, so that a crash costs a pause, never a storm."""
    for request in requests:
        for candidate in request.candidates:
            connection.execute(
                "UPDATE lake_window SET requested_at = clock_timestamp(), requests = %s, "
                "requested_revision = %s WHERE window_start = %s",
                (candidate.requests + 1, candidate.revision, candidate.window.start),
            )


def enter_empty_windows(connection: psycopg.Connection, complete_until: datetime | None) -> None:
    """Enter the complete windows since the lake began into the catalog, so that silence is built, too.

    A window without a single object is a fact: nobody listened, or nothing moved.
    """
    if complete_until is None:
        return
    with connection.transaction():
        row = connection.execute(load_sql(_PACKAGE, "first_window_not_entered")).fetchone()
        if row is None or row[0] is None:
            return
        first, last = Window.at(row[0]), Window.at(complete_until).shifted(-1)
        last = min(last, first.shifted(_FILL_LIMIT - 1))
        if last < first:
            return
        connection.execute(
            "INSERT INTO lake_window (window_start) SELECT generate_series(%s, %s, %s) "
            "ON CONFLICT DO NOTHING",
            (first.start, last.start, WINDOW),
        )
        connection.execute(
            "INSERT INTO meta (key, value) VALUES ('windows_entered_until', %s) "
            "ON CONFLICT (key) DO UPDATE SET value = greatest(meta.value, excluded.value)",
            (last.end.isoformat(),),
        )
