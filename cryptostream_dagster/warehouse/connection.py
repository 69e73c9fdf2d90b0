"""One way to connect, and the advisory locks that order the writers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import psycopg

from cryptostream_dagster.day import Day
from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.window import Window
from ingest_services.errors import UserError

CONNECT_TIMEOUT_S = 10
# A builder holds a window's lock for as long as it builds: seconds, half a minute for the whole exchange at
# depth 30. Whoever waits longer than this waits for one that hangs, and is tried again later.
LOCK_TIMEOUT_S = 120
# A transaction that neither works nor ends for so long belongs to a process that was stopped; it must not
# hold its locks for ever.
STUCK_S = 600


class Unreachable(UserError):  # noqa: N818 (named after what it says)
    """The server does not let us in. That may pass, where it is being started; or a person is needed."""


class Lock(IntEnum):
    """First half of an advisory lock's key; the second is the window's number, the day's, or 0."""

    SCHEMA = 0x43530000
    WINDOW = 0x43530001
    BOUNDARY = 0x43530002
    MARKETS = 0x43530013
    DAY = 0x43530035
    REBUILD = 0x43530030


def connect(settings: PipelineSettings) -> psycopg.Connection:
    """Connect to the warehouse: in UTC, every statement on its own unless inside `connection.transaction()`.

    Raises:
        Unreachable: If the server cannot be reached, or does not let us in.
        UserError: If settings are missing.
    """
    if settings.missing:
        raise UserError(settings.missing)
    try:
        return psycopg.connect(
            host=settings.postgres_host,
            port=settings.postgres_port,
            user=settings.postgres_user,
            password=settings.postgres_password.get_secret_value(),
            dbname=settings.postgres_db,
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name="cryptostream",
            autocommit=True,
            options=f"-c timezone=UTC -c lock_timeout={LOCK_TIMEOUT_S}s"
            f" -c idle_in_transaction_session_timeout={STUCK_S}s",
            keepalives_idle=10,
            tcp_user_timeout=30_000,
        )
    except psycopg.OperationalError as error:
        raise Unreachable(
            f"Postgres at {settings.postgres_host}:{settings.postgres_port} (POSTGRES_HOST, POSTGRES_PORT) "
            f"does not let {settings.postgres_user} into {settings.postgres_db}: "
            f"{' '.join(str(error).split())}"
        ) from error


def lock_window(connection: psycopg.Connection, window: Window) -> None:
    """Wait until this transaction is the only one that writes anything of a window."""
    connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", (Lock.WINDOW, window.number))


def lock_boundaries(connection: psycopg.Connection, window: Window) -> None:
    """Wait until nobody else writes candles that touch this window's start or its end.

    The close of a window is the `prev_close_price` of the next one, whichever is built first. Always taken in
    the order of time, after `lock_window`: so no two writers wait for each other.
    """
    for number in (window.number, window.number + 1):
        connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", (Lock.BOUNDARY, number))


@contextmanager
def held_day(connection: psycopg.Connection, day: Day) -> Iterator[None]:
    """Be the only one that writes a day's files.

    Held by the session, not by a transaction: a day takes minutes, and the server ends a transaction that
    waits for so long. It ends with the connection, too.

    Raises:
        UserError: If somebody else is at it.
    """
    row = connection.execute("SELECT pg_try_advisory_lock(%s, %s)", (Lock.DAY, day.number)).fetchone()
    if row is None or not row[0]:
        raise UserError(f"{day}: another run is writing this day; it needs no second one")
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute("SELECT pg_advisory_unlock(%s, %s)", (Lock.DAY, day.number))
