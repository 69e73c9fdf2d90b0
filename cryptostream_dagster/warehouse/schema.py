"""The versioned schema: the numbered files of `migrations/`, each applied once, in order of number.

Numbers may have gaps, and a file may come to a database after one with a greater number: what counts is which
files were applied, not how far.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from importlib.resources import files
from typing import LiteralString
from zoneinfo import ZoneInfo

import psycopg
from psycopg import sql

from cryptostream_dagster.warehouse.connection import Lock
from cryptostream_dagster.window import Window
from ingest_services.errors import UserError

# Tables that are cut at months of the market's calendar, and those that are cut at months of UTC.
PARTITIONED_BY_DATE = ("ohlc_5m_ticker", "orderbook_features_5m")
PARTITIONED_BY_INSTANT = ("coverage_5m",)
# A warehouse that nobody looks after for so long still takes the rows of its newest window.
MONTHS_AHEAD = 3

_NAME = re.compile(r"(\d{4})_\w+\.sql")


def migrations() -> list[tuple[int, str, LiteralString]]:
    """Return number, name and text of every migration, in order."""
    folder = files("cryptostream_dagster.warehouse") / "migrations"
    found = []
    for file in folder.iterdir():
        if match := _NAME.fullmatch(file.name):
            text: LiteralString = file.read_text(encoding="utf-8")
            found.append((int(match[1]), file.name, text))
    return sorted(found)


def applied_migrations(connection: psycopg.Connection) -> set[str]:
    """Return the names of the migrations that the database has."""
    if not _existing(connection, ["schema_migration"]):
        return set()
    return {row[0] for row in connection.execute("SELECT name FROM schema_migration")}


def migrate(connection: psycopg.Connection) -> list[str]:
    """Bring the schema up to date; safe to run twice, and twice at once.

    Args:
        connection: Outside a transaction; everything happens in one, so a failure leaves nothing behind.

    Returns:
        Names of the migrations that were applied now.

    Raises:
        UserError: If the database is newer than this program.
    """
    known = migrations()
    names = {name for _, name, _ in known}
    applied = []
    with connection.transaction():
        if applied_migrations(connection) == names:
            return []
        connection.execute("SELECT pg_advisory_xact_lock(%s, 0)", (Lock.SCHEMA,))
        connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migration "
            "(version integer PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        # Again, after the lock: somebody may have been at it meanwhile.
        there = applied_migrations(connection)
        if unknown := sorted(there - names):
            raise UserError(
                f"the database's schema has {', '.join(unknown)}, which this program does not know: "
                "it was migrated by a newer one; update this installation"
            )
        for number, name, text in known:
            if name not in there:
                connection.execute(text)
                connection.execute(
                    "INSERT INTO schema_migration (version, name) VALUES (%s, %s)", (number, name)
                )
                applied.append(name)
    return applied


def claim_database(connection: psycopg.Connection, source: str, time_zone: str) -> None:
    """Make sure that the database is this lake's: remember whose it is, or compare.

    Raises:
        UserError: If it holds another source's data, or dates of another time zone.
    """
    ours = {"source": source, "time_zone": time_zone}
    with connection.transaction():
        found: dict[str, str] = dict(
            connection.execute("SELECT key, value FROM meta WHERE key = ANY(%s)", (list(ours),))
        )
        if found == ours:
            return
        if not found:
            for item in ours.items():
                connection.execute(
                    "INSERT INTO meta (key, value) VALUES (%s, %s) ON CONFLICT DO NOTHING", item
                )
            found = dict(connection.execute("SELECT key, value FROM meta WHERE key = ANY(%s)", (list(ours),)))
    if found != ours:
        raise UserError(
            f"the database holds {found}, the lake and the settings say {ours}; simulated and real data "
            "never share a database: set POSTGRES_DB to another one"
        )


def ensure_partitions(
    connection: psycopg.Connection, window: Window, zone: ZoneInfo, months_ahead: int = 1
) -> list[str]:
    """Make the monthly partitions that a window's rows go to, and those of the months after.

    Safe to run twice, and twice at once. Each is made in a transaction of its own, before the one that
    writes: attaching takes a lock that stops no reader and no writer of the parent, but should be held for a
    moment only.

    Args:
        connection: Outside a transaction.
        window: The window.
        zone: The market's time zone.
        months_ahead: How many months after the window's.

    Returns:
        Names of the partitions that were made now.
    """
    wanted = {}
    for table in PARTITIONED_BY_DATE + PARTITIONED_BY_INSTANT:
        day = window.event_date(zone) if table in PARTITIONED_BY_DATE else window.start.date()
        for month in (_month(day, later) for later in range(months_ahead + 1)):
            wanted[f"{table}_{month:%Y_%m}"] = table, month
    made = []
    for name in sorted(wanted.keys() - _existing(connection, list(wanted))):
        table, month = wanted[name]
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s, 1)", (Lock.SCHEMA,))
            if _existing(connection, [name]):
                continue
            names = {"name": sql.Identifier(name), "table": sql.Identifier(table)}
            connection.execute(
                sql.SQL("CREATE TABLE {name} (LIKE {table} INCLUDING DEFAULTS)").format(**names)
            )
            connection.execute(
                sql.SQL(
                    "ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ({start}) TO ({end})"
                ).format(**names, start=sql.Literal(month), end=sql.Literal(_month(month, 1)))
            )
        made.append(name)
    return made


def make_partitions_ahead(connection: psycopg.Connection, zone: ZoneInfo) -> list[str]:
    """Make the partitions of this month and the next ones, long before a row is to go there.

    Returns:
        Names of the partitions that were made now.
    """
    return ensure_partitions(connection, Window.at(datetime.now(UTC)), zone, MONTHS_AHEAD)


def _month(day: date, later: int = 0) -> date:
    months = day.year * 12 + day.month - 1 + later
    return date(months // 12, months % 12 + 1, 1)


def _existing(connection: psycopg.Connection, tables: list[str]) -> set[str]:
    """Return which of some tables exist."""
    # Not to_regclass: its cached "no" survives the wait for a lock, while somebody else makes the table.
    found = connection.execute(
        "SELECT tablename FROM pg_tables WHERE schemaname = current_schema() AND tablename = ANY(%s)",
        (tables,),
    )
    return {row[0] for row in found}
