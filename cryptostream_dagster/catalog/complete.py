"""Which windows are complete: nothing more will come. The rule is in `docs/windows.md`.

*Complete* says nothing about whether anybody was listening; that is coverage.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import psycopg

from cryptostream_dagster.catalog.sync import sync
from cryptostream_dagster.sql import load_sql
from cryptostream_dagster.window import Window
from ingest_services.lake.chain import is_closed, read_chains, read_progress
from ingest_services.lake.store import ObjectStore

POLL_S = 0.5

_PACKAGE = "cryptostream_dagster.catalog"


@dataclass(frozen=True, slots=True)
class Behind:
    """A partition that a window still waits for; `closed` if only the end of a closed chain is missing."""

    chain: int
    topic: str
    partition: int
    closed: bool


class Incomplete(Exception):  # noqa: N818 - an answer, not a failure
    """The window did not become complete in time."""


def behind(connection: psycopg.Connection, until: datetime) -> list[Behind]:
    """Return the partitions of every chain in force that are not through an instant yet."""
    rows = connection.execute(load_sql(_PACKAGE, "behind"), {"until": until})
    return [Behind(*row) for row in rows]


def complete_until(connection: psycopg.Connection) -> datetime | None:
    """Return the instant up to which every partition is through; None if one has claimed nothing yet.

    If every chain is closed (all topics were retired), that is the end of the window in which this was done.
    """
    row = connection.execute(
        "SELECT min(minutes_through), bool_and(minutes_through IS NOT NULL AND end_offset IS NULL) "
        "FROM lake_partition WHERE end_offset IS NULL OR next_offset < end_offset"
    ).fetchone()
    assert row is not None
    if row[1] is None:
        row = connection.execute(load_sql(_PACKAGE, "last_window_retired")).fetchone()
        assert row is not None
        retired: datetime | None = row[0]
        return retired
    return row[0] if row[1] else None


def wait_until_complete(
    connection: psycopg.Connection,
    store: ObjectStore,
    window: Window,
    zone: ZoneInfo,
    timeout_s: float,
    *,
    synced: bool = False,
) -> None:
    """Sync the catalog until a window is complete.

    While it waits it reads nothing but the progress objects of the partitions that are behind, twice a
    second.

    Args:
        connection: In autocommit mode.
        store: The lake.
        window: The window.
        zone: The market's time zone, in which the message tells times.
        timeout_s: How long to wait.
        synced: The catalog was synced a moment ago: first see what it says.

    Raises:
        Incomplete: If it is not complete by then; the message names the partitions, how far they are and
            since when they are silent.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        if not synced:
            sync(connection, store)
        synced = False
        waiting = behind(connection, window.end)
        if not waiting and connection.execute("SELECT 1 FROM lake_chain LIMIT 1").fetchone():
            return
        while True:
            if time.monotonic() >= deadline:
                raise Incomplete(_describe(window, zone, waiting, store))
            # Progress is an object that is replaced; a store has nothing to wait on.
            time.sleep(min(POLL_S, max(0.0, deadline - time.monotonic())))
            if _may_be_complete(store, waiting, window):
                break


def _may_be_complete(store: ObjectStore, waiting: list[Behind], window: Window) -> bool:
    """Return whether the claims say by now what we wait for, so that a sync may bring it."""
    if not waiting:  # there is no chain at all: look for one
        return bool(read_chains(store))
    if any(not partition.closed and is_closed(store, partition.chain) for partition in waiting):
        return True  # whoever waits for a chain that was closed meanwhile waits for nothing
    for partition in waiting:
        progress = read_progress(store, partition.chain, partition.partition)
        if not partition.closed and (progress is None or progress.minutes_through_ms < window.end_ms):
            return False
    return True


def _describe(window: Window, zone: ZoneInfo, waiting: list[Behind], store: ObjectStore) -> str:
    """Say who is behind, how far it is, how long it has been silent, and what to look at."""
    what = f"window {window.label(zone)} is not complete"
    if not waiting:
        return f"{what}: no consumer has ever written to {store.url}; is one running, with this RAW_URL?"
    now = datetime.now(UTC).timestamp()
    lines = []
    for partition in waiting:
        progress = read_progress(store, partition.chain, partition.partition)
        if partition.closed:
            state = "its closed chain has commits that cannot be read yet"
        elif progress is None:
            state = "no consumer has reported progress yet"
        else:
            through = datetime.fromtimestamp(progress.minutes_through_ms / 1000, zone)
            age = now - progress.at_ms / 1000
            state = f"minutes_through {through:%Y-%m-%d %H:%M%z}, reported {age:.0f} s ago"
        lines.append(f"chain {partition.chain} ({partition.topic}) partition {partition.partition}: {state}")
    cure = "Is each one's consumer running? The window is built once they are through"
    return f"{what}: {'; '.join(lines)}. {cure}"
