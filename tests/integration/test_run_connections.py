"""A run keeps its connection to Dagster's database, and finds a database again that was started anew."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import psycopg
import sqlalchemy
from sqlalchemy import event

from tests.dagster_world import KEYS, WINDOW, World, book, open_postgres_world
from tests.postgres_fixture import TestDatabase


@contextmanager
def counted_connections() -> Iterator[list[object]]:
    """Collect the connections that SQLAlchemy opens, which is how Dagster reaches its database."""
    opened: list[object] = []

    def note(connection: object, record: object) -> None:
        opened.append(record)

    event.listen(sqlalchemy.Engine, "connect", note)
    try:
        yield opened
    finally:
        event.remove(sqlalchemy.Engine, "connect", note)


def tell(world: World, times: int) -> None:
    for number in range(times):
        world.instance.report_runless_asset_event(dg.AssetMaterialization("told", metadata={"n": number}))


def told(world: World) -> int:
    return len(world.instance.fetch_materializations(dg.AssetKey("told"), limit=100).records)


def test_what_a_run_tells_takes_no_connection_each(tmp_path: Path, database: TestDatabase) -> None:
    with open_postgres_world(tmp_path, database) as world:
        with counted_connections() as opened:
            tell(world, 3)
        assert len(opened) >= 6  # Dagster's own way
        world.lake.commit([book(1, 100)])
        world.lake.through(WINDOW.end)
        assert world.run(KEYS[0]).success
        with counted_connections() as opened:
            tell(world, 20)
        # Each lives a second: more than one only on a machine that is very busy, never one for each event.
        assert len(opened) < 20
        assert told(world) == 23


def test_a_database_that_was_started_again_is_found_again(tmp_path: Path, database: TestDatabase) -> None:
    with open_postgres_world(tmp_path, database) as world:
        world.lake.commit([book(1, 100)])
        world.lake.through(WINDOW.end)
        assert world.run(KEYS[0]).success
        tell(world, 1)
        with psycopg.connect(database.dsn, autocommit=True) as connection:
            ended = connection.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            ).fetchone()
        assert ended is not None
        assert ended[0] >= 1  # there was a connection to lose
        time.sleep(1.1)  # no start of a server is quicker
        tell(world, 1)
        assert told(world) == 2
