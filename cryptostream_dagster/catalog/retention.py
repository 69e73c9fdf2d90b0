"""Frozen windows: raw data that has expired, and what of it the catalog forgets.

`docs/housekeeping.md` is the page. A frozen window keeps what was built from it; it is never sealed again,
and never built from less. Belongs here: which windows are frozen, and pruning the catalog. Does not belong
here: deleting raw objects, which the bucket's own rule does, or a person.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from datetime import datetime, timedelta

import psycopg

from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.sql import load_sql
from cryptostream_dagster.transforms.storage import ObjectGone, Storage
from cryptostream_dagster.window import Window
from ingest_services.errors import UserError

_PACKAGE = "cryptostream_dagster.catalog"

# Who began to build a window just before it was frozen is long done by then: nothing is deleted under it.
MARGIN = timedelta(days=1)

# What one transaction of pruning takes at most: bounds how long it holds its locks.
_COMMITS_A_STEP = 50
_ROWS_A_STEP = 20_000


class Frozen(UserError):  # noqa: N818 - an answer, not a failure
    """The window's raw data is not there any more: it cannot be sealed or built again."""


def frozen_until(
    connection: psycopg.Connection, settings: PipelineSettings, now: datetime
) -> datetime | None:
    """Return the instant before which every window is frozen; None if none is.

    It is `RAW_RETENTION_DAYS` before now, or where the catalog was pruned up to already, if that is later: a
    setting that is taken back brings nothing back.
    """
    row = connection.execute("SELECT value::timestamptz FROM meta WHERE key = 'frozen_until'").fetchone()
    known = [] if row is None else [row[0]]
    if settings.raw_retention is not None:
        known.append(now - settings.raw_retention)
    return max(known, default=None)


def require_raw(
    connection: psycopg.Connection, window: Window, settings: PipelineSettings, now: datetime
) -> None:
    """Refuse a window that is frozen by its age.

    Raises:
        Frozen: If it ended before the instant that `frozen_until` tells.
    """
    until = frozen_until(connection, settings, now)
    if until is not None and window.end <= until:
        raise Frozen(
            f"window {window.label(settings.zone)} is frozen: raw data from before "
            f"{until.astimezone(settings.zone):%Y-%m-%d %H:%M%z} has expired (RAW_RETENTION_DAYS); "
            "what was built from it stays as it is"
        )


def require_objects(
    connection: psycopg.Connection, raw: Storage, window: Window, settings: PipelineSettings
) -> None:
    """Refuse a window of whose raw objects one is gone; take the mark off one whose objects are back.

    Raises:
        Frozen: If an object that the catalog knows of the window is not there; the window is marked.
    """
    paths = [
        str(path)
        for (path,) in connection.execute(
            "SELECT path FROM lake_file WHERE minute >= %s AND minute < %s AND kind = 'book' ORDER BY path",
            (window.start, window.end),
        )
    ]
    for path, size in zip(paths, raw.sizes(paths), strict=True):
        if size is None:
            raise freeze_gone(connection, window, ObjectGone(raw.url, path), settings)
    thaw(connection, window)


def thaw(connection: psycopg.Connection, window: Window) -> None:
    """Take the mark off a window whose raw objects are all there."""
    connection.execute(
        "UPDATE lake_window SET gone_path = NULL WHERE window_start = %s AND gone_path IS NOT NULL",
        (window.start,),
    )


def is_gone(connection: psycopg.Connection, window: Window) -> bool:
    """Return whether a raw object of a window was found to be gone."""
    row = connection.execute(
        "SELECT gone_path IS NOT NULL FROM lake_window WHERE window_start = %s", (window.start,)
    ).fetchone()
    return row is not None and bool(row[0])


def freeze_gone(
    connection: psycopg.Connection, window: Window, gone: ObjectGone, settings: PipelineSettings
) -> Frozen:
    """Mark a window of which a raw object is gone, so that the sensor does not ask for it again.

    Args:
        connection: Outside the transaction that failed.
        window: The window.
        gone: Which object.
        settings: For the words.

    Returns:
        What to raise.
    """
    connection.execute(
        "UPDATE lake_window SET gone_path = %s WHERE window_start = %s", (gone.path, window.start)
    )
    return Frozen(
        f"window {window.label(settings.zone)} is frozen: {gone}; what was built from it stays as it is. "
        "If the object comes back, materialize the window again"
    )


def freeze_until(connection: psycopg.Connection, until: datetime) -> None:
    """Freeze every window that ended before an instant, for good."""
    connection.execute(load_sql(_PACKAGE, "freeze_until"), {"until": until.isoformat()})


@dataclass(frozen=True, slots=True)
class Pruned:
    """What pruning removed from the catalog.

    Attributes:
        until: Windows before this instant are frozen; None if raw data is kept for ever.
        commits: Commits that were forgotten, with the objects that they name.
        done: Whether nothing is left to forget.
    """

    until: datetime | None
    commits: int
    done: bool


def prune(
    connection: psycopg.Connection, settings: PipelineSettings, now: datetime, budget_s: float
) -> Pruned:
    """Forget the commits, objects and quarantined lines of windows that are frozen by their age.

    Of each partition the oldest commits go, up to the one before the first that is needed: so the rest still
    follow each other without a hole, and have all of their objects. Safe to run twice, and twice at once.

    Args:
        connection: In autocommit mode.
        settings: With `RAW_RETENTION_DAYS`.
        now: The current instant.
        budget_s: Stop after so many seconds; the next call goes on.
    """
    deadline = time.monotonic() + budget_s
    if settings.raw_retention is not None:
        freeze_until(connection, Window.at(now - settings.raw_retention - MARGIN).start)
    row = connection.execute("SELECT value::timestamptz FROM meta WHERE key = 'frozen_until'").fetchone()
    if row is None:
        return Pruned(None, 0, done=True)
    until: datetime = row[0]
    forgotten = 0
    partitions = connection.execute("SELECT chain, partition FROM lake_partition ORDER BY 1, 2").fetchall()
    for chain, partition in partitions:
        while count := _forget_commits(connection, chain, partition, until):
            forgotten += count
            if time.monotonic() > deadline:
                return Pruned(until, forgotten, done=False)
    for name in ("prune_seal_files", "prune_quarantined_lines", "prune_subscriptions"):
        arguments = {"until": until, "limit": _ROWS_A_STEP}
        while connection.execute(load_sql(_PACKAGE, name), arguments).rowcount == _ROWS_A_STEP:
            if time.monotonic() > deadline:
                return Pruned(until, forgotten, done=False)
    return Pruned(until, forgotten, done=True)


def _forget_commits(connection: psycopg.Connection, chain: int, partition: int, until: datetime) -> int:
    """Forget some of a partition's oldest commits; return how many."""
    arguments = {"chain": chain, "partition": partition, "until": until, "limit": _COMMITS_A_STEP + 1}
    rows = connection.execute(load_sql(_PACKAGE, "oldest_commits"), arguments)
    bases = [base for base, _ in itertools.takewhile(lambda row: row[1], rows.fetchall())]
    if len(bases) < 2:
        return 0
    return connection.execute(load_sql(_PACKAGE, "forget_commits"), {**arguments, "kept": bases[-1]}).rowcount
