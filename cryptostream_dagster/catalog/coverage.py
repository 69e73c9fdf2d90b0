"""Coverage of a window: over which share of it every change of a book was received, by heartbeats alone.

None is *unknown*: the window ended before anybody reported what they listened to. 0.0 is known absence: a
producer section that falls silent is still expected, and what it listened to last was not listened to.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import orjson
import psycopg
from zstandard import ZstdError

from cryptostream_dagster.sql import load_sql
from cryptostream_dagster.transforms.storage import ObjectGone
from cryptostream_dagster.window import WINDOW_S, Window
from ingest_services.errors import UserError
from ingest_services.lake.chain import CommitFile
from ingest_services.lake.coverage import covered_intervals, covered_us, read_heartbeats, read_reports
from ingest_services.lake.lines import decompress
from ingest_services.lake.store import ObjectMissing, ObjectStore
from ingest_services.record import Heartbeat

_PACKAGE = "cryptostream_dagster.catalog"

# A section that was not heard for longer was taken out of service: its tickers are no gap for ever.
EXPECTED_FOR = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Coverage:
    """Coverage of one window.

    Attributes:
        known: Whether heartbeats existed by then; if not, every ratio is None.
        ratios: Share of the window, 0 to 1, by subscribed ticker, those of silent sections included.
    """

    known: bool
    ratios: dict[str, float]

    @property
    def mean(self) -> float | None:
        """Mean over the subscribed tickers; 0.0 if nobody was subscribed to anything, None if unknown."""
        if not self.known:
            return None
        return sum(self.ratios.values()) / len(self.ratios) if self.ratios else 0.0

    @property
    def least(self) -> float | None:
        """The least covered ticker's share; None if unknown."""
        return min(self.ratios.values(), default=0.0) if self.known else None


def window_coverage(connection: psycopg.Connection, store: ObjectStore, window: Window) -> Coverage:
    """Compute a window's coverage from the heartbeats that the catalog knows.

    Raises:
        UserError: If an object with heartbeats is missing or is none.
    """
    # Intervals never cross a minute's end and an object holds those of its minute, so the minute of the
    # lake's first heartbeat decides for windows, which end on full minutes, as the exact instant would.
    row = connection.execute(
        "SELECT min(minute) FROM lake_file WHERE kind = 'heartbeat' AND minute < %s", (window.end,)
    ).fetchone()
    if row is None or row[0] is None:
        return Coverage(False, {})
    paths = connection.execute(
        "SELECT path FROM lake_file WHERE minute >= %s AND minute < %s AND kind = 'heartbeat' ORDER BY path",
        (window.start, window.end),
    )
    heartbeats: list[Heartbeat] = []
    for (path,) in paths:
        try:
            heartbeats += read_heartbeats(decompress(path, store.get(path)))
        except ObjectMissing as error:
            raise ObjectGone(store.url, path) from error
        except (ValueError, ZstdError) as error:
            raise UserError(f"{store.url}/{path}: {error}") from error
    start_us, end_us = window.start_ms * 1000, window.end_ms * 1000
    ratios = {
        ticker: covered_us(intervals, start_us, end_us) / (WINDOW_S * 1_000_000)
        for ticker, intervals in covered_intervals(heartbeats).items()
    }
    heard = {heartbeat.section for heartbeat in heartbeats if not heartbeat.only_takes_back}
    for ticker in _expected(connection, window, heard):
        ratios.setdefault(ticker, 0.0)
    return Coverage(True, ratios)


def note_subscriptions(
    connection: psycopg.Connection, store: ObjectStore, files: Iterable[CommitFile]
) -> None:
    """Remember what each section was subscribed to, from objects that join the catalog.

    Args:
        connection: In the transaction that takes the objects in.
        store: The lake.
        files: Objects; those without heartbeats are passed over.
    """
    newest: dict[tuple[str, datetime], tuple[int, tuple[str, ...]]] = {}
    for file in files:
        if file.kind != "heartbeat":
            continue
        start = Window.at(datetime.fromtimestamp(file.minute_ms / 1000, UTC)).start
        try:
            reports = read_reports(decompress(file.path, store.get(file.path)))
        except (ObjectMissing, ValueError, ZstdError):
            # One bad or expired object must not stop every window; sealing its own window names it.
            continue
        for received_us, heartbeat in reports:  # of two that were received at once the later in the log stays
            # What is taken back is found out later, maybe when the section is subscribed to something else.
            if heartbeat.only_takes_back:
                continue
            key = (heartbeat.section, start)
            if key not in newest or newest[key][0] <= received_us:
                newest[key] = (received_us, heartbeat.subscribed)
    if not newest:
        return
    connection.execute(
        load_sql(_PACKAGE, "note_subscriptions"),
        {
            "sections": [section for section, _ in newest],
            "windows": [start for _, start in newest],
            "received": [received_us for received_us, _ in newest.values()],
            # As JSON: arrays of arrays would have to be of one length.
            "tickers": [orjson.dumps(tickers).decode() for _, tickers in newest.values()],
        },
    )


def record_coverage(
    connection: psycopg.Connection, window: Window, coverage: Coverage, source: str, tickers: list[str]
) -> None:
    """Write a window's coverage, one row per ticker that was subscribed to or has books.

    Args:
        connection: In the transaction that seals or builds the window.
        window: The window.
        coverage: Its coverage.
        source: Whose data it is.
        tickers: Those with books.
    """
    listed = sorted({*tickers, *coverage.ratios})
    rows = [
        (ticker, ticker in coverage.ratios, coverage.ratios.get(ticker, 0.0) if coverage.known else None)
        for ticker in listed
    ]
    connection.execute(load_sql(_PACKAGE, "forget_coverage"), {"start": window.start, "tickers": listed})
    connection.execute(
        load_sql(_PACKAGE, "record_coverage"),
        {
            "start": window.start,
            "source": source,
            "tickers": listed,
            "subscribed": [row[1] for row in rows],
            "ratios": [row[2] for row in rows],
        },
    )


def _expected(connection: psycopg.Connection, window: Window, heard: set[str]) -> set[str]:
    """Return the tickers of the sections that were heard before the window, but not in it."""
    rows = connection.execute(
        load_sql(_PACKAGE, "last_subscriptions"),
        {"start": window.start, "since": window.start - EXPECTED_FOR},
    )
    return {ticker for section, tickers in rows if section not in heard for ticker in tickers}
