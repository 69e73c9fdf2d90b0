"""What became of windows: finished, or failed and why.

Belongs here: what a run reads before it builds a window and leaves behind after. Does not belong here: which
windows should be built next (`reconcile`).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime

import psycopg

from cryptostream_dagster.sql import load_sql
from cryptostream_dagster.window import Window

_PACKAGE = "cryptostream_dagster.catalog"

# Has no row in `built`: the seal itself is what it builds.
SEALED = "raw_orderbook"
# Without it nothing of a window is finished.
CANDLES = "ohlc_5m_ticker"


@dataclass(frozen=True, slots=True)
class Finished:
    """A window of which nothing is left to do, as far as the catalog knows.

    Attributes:
        version: Of its newest seal.
        digest: Of the same.
        assets: What is built from that seal.
    """

    version: int
    digest: str
    assets: frozenset[str]


@dataclass(frozen=True, slots=True)
class WindowFailure:
    """Why an asset of a window is not built.

    Attributes:
        window: The window.
        asset: Name of the asset.
        run_id: Of the Dagster run that failed.
        reason: One sentence.
        failed_at: When.
    """

    window: Window
    asset: str
    run_id: str
    reason: str
    failed_at: datetime


def finished_windows(connection: psycopg.Connection, first: Window, last: Window) -> dict[Window, Finished]:
    """Return the windows from `first` to `last` whose candles are those of all that the catalog holds.

    Whether their Parquet is still there the catalog does not know.
    """
    assets: dict[tuple[Window, int, str], set[str]] = defaultdict(set)
    rows = connection.execute(load_sql(_PACKAGE, "finished"), {"first": first.start, "last": last.start})
    for start, asset, version, digest in rows:
        assets[Window.at(start), version, digest].add(asset)
    return {
        window: Finished(version, digest, frozenset({SEALED, *built}))
        for (window, version, digest), built in assets.items()
        if CANDLES in built
    }


def note_failure(
    connection: psycopg.Connection, window: Window, asset: str, run_id: str, reason: str
) -> None:
    """Remember why a run could not build an asset of a window."""
    connection.execute(
        load_sql(_PACKAGE, "note_failure"),
        {"start": window.start, "asset": asset, "run": run_id, "reason": reason},
    )


def forget_failure(connection: psycopg.Connection, window: Window, asset: str) -> None:
    """Forget it: the asset is built."""
    connection.execute(
        "DELETE FROM window_failure WHERE window_start = %s AND asset = %s", (window.start, asset)
    )


def failures_of_run(connection: psycopg.Connection, run_id: str) -> list[WindowFailure]:
    """Return what a run could not build, by window and asset."""
    rows = connection.execute(
        "SELECT window_start, asset, run_id, reason, failed_at FROM window_failure "
        "WHERE run_id = %s ORDER BY window_start, failed_at, asset",
        (run_id,),
    )
    return [WindowFailure(Window.at(row[0]), *row[1:]) for row in rows]


def failures_between(connection: psycopg.Connection, first: Window, last: Window) -> list[WindowFailure]:
    """Return what is not built of the windows from `first` to `last` because a run failed, and why."""
    rows = connection.execute(
        "SELECT window_start, asset, run_id, reason, failed_at FROM window_failure "
        "WHERE window_start >= %s AND window_start <= %s ORDER BY window_start, failed_at, asset",
        (first.start, last.start),
    )
    return [WindowFailure(Window.at(row[0]), *row[1:]) for row in rows]
