"""Sealing: fixing exactly which objects make a window. `docs/windows.md` states the rule."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

import psycopg

from cryptostream_dagster.sql import load_sql
from cryptostream_dagster.warehouse.connection import lock_window
from cryptostream_dagster.window import Window

_PACKAGE = "cryptostream_dagster.catalog"


@dataclass(frozen=True, slots=True)
class Seal:
    """One version of a window's file set.

    Attributes:
        window: The window.
        version: 1, 2, … within the window.
        digest: SHA-256 over the files' names, sizes and checksums, hex.
        revision: State of the catalog's window that this seal stands for.
        coverage_revision: The same for heartbeats.
        sealed_at: When it was sealed first.
        files: Objects with books.
        rows: Lines in them.
        bytes: Their stored size.
        tickers: How many tickers they are of.
        late_rows: Rows of objects that were received whole after the window's end plus lateness.
        quarantined: Quarantined records received in the window, as known when it was sealed last.
    """

    window: Window
    version: int
    digest: str
    revision: int
    coverage_revision: int
    sealed_at: datetime
    files: int
    rows: int
    bytes: int
    tickers: int
    late_rows: int
    quarantined: int


@dataclass(frozen=True, slots=True)
class SealedFile:
    """An object of a sealed window and the commit that names it."""

    path: str
    ticker: str
    chain: int
    partition: int
    base: int
    rows: int
    bytes: int
    crc32c: str


def seal_window(connection: psycopg.Connection, window: Window, lateness_s: float) -> Seal:
    """Fix the set of objects that make a window, as the catalog knows it now.

    The same set gives the same seal; another set gives the next version.

    Args:
        connection: In autocommit mode.
        window: A window that is complete.
        lateness_s: What counts as late, seconds after the window's end.
    """
    with connection.transaction():
        lock_window(connection, window)
        connection.execute(
            "INSERT INTO lake_window (window_start) VALUES (%s) ON CONFLICT DO NOTHING", (window.start,)
        )
        # The row lock holds back a sync that would add objects between the revision and the list.
        row = connection.execute(
            "SELECT revision, coverage_revision FROM lake_window WHERE window_start = %s FOR UPDATE",
            (window.start,),
        ).fetchone()
        assert row is not None
        digest = digest_of(_current_files(connection, window))
        latest = newest_seal(connection, window)
        arguments = {
            "start": window.start,
            "end": window.end,
            "digest": digest,
            "revision": row[0],
            "coverage_revision": row[1],
            "late_after_us": (window.end_ms + round(lateness_s * 1000)) * 1000,
        }
        if latest is not None and latest.digest == digest:
            connection.execute(load_sql(_PACKAGE, "refresh_seal"), {**arguments, "version": latest.version})
        else:
            version = 1 if latest is None else latest.version + 1
            connection.execute(load_sql(_PACKAGE, "add_seal"), {**arguments, "version": version})
            connection.execute(load_sql(_PACKAGE, "add_seal_files"), {**arguments, "version": version})
        sealed = newest_seal(connection, window)
        assert sealed is not None
        return sealed


def newest_seal(connection: psycopg.Connection, window: Window) -> Seal | None:
    """Return a window's newest seal."""
    row = connection.execute(
        "SELECT version, digest, revision, coverage_revision, sealed_at, files, rows, bytes, tickers, "
        "late_rows, quarantined FROM seal WHERE window_start = %s ORDER BY version DESC LIMIT 1",
        (window.start,),
    ).fetchone()
    return None if row is None else Seal(window, *row)


def has_grown(connection: psycopg.Connection, window: Window) -> bool:
    """Return whether a window was sealed, and sealing it now would give another version."""
    latest = newest_seal(connection, window)
    return latest is not None and latest.digest != digest_of(_current_files(connection, window))


def sealed_files(connection: psycopg.Connection, seal: Seal) -> list[SealedFile]:
    """Return a seal's objects, in an order that depends on nothing but them."""
    rows = connection.execute(
        "SELECT path, ticker, chain, partition, base_offset, rows, bytes, crc32c "
        "FROM seal_file JOIN lake_file USING (file_id) WHERE window_start = %s AND version = %s "
        'ORDER BY path COLLATE "C"',
        (seal.window.start, seal.version),
    )
    return [SealedFile(*row) for row in rows]


def digest_of(files: list[SealedFile]) -> str:
    """Return the digest over a set of objects, which must be in order of their paths."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.chain}\t{file.path}\t{file.rows}\t{file.bytes}\t{file.crc32c}\n".encode())
    return digest.hexdigest()


def _current_files(connection: psycopg.Connection, window: Window) -> list[SealedFile]:
    rows = connection.execute(
        "SELECT path, ticker, chain, partition, base_offset, rows, bytes, crc32c FROM lake_file "
        "WHERE minute >= %s AND minute < %s AND kind = 'book' ORDER BY path COLLATE \"C\"",
        (window.start, window.end),
    )
    return [SealedFile(*row) for row in rows]
