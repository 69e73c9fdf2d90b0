"""What more than one test of deploy/ starts from."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import psycopg
import pytest

from tests.postgres_fixture import TestDatabase


@pytest.fixture
def dagster_database(database: TestDatabase) -> Iterator[str]:
    """The name of a database that a test's job `databases` makes."""
    name = f"dagster_{uuid.uuid4().hex[:8]}"
    yield name
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')  # type: ignore[arg-type]
