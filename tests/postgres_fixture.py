"""Pytest plugin: one real Postgres for the session, one empty database for each test that asks."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cryptostream_dagster.local.ports import free_port

_numbers = itertools.count(1)


@dataclass(frozen=True)
class TestDatabase:
    """Where a test's own database is."""

    __test__ = False

    host: str
    port: int
    user: str
    password: str
    name: str

    @property
    def dsn(self) -> str:
        return f"postgresql://{self.user}:{self.password}@{self.host}:{self.port}/{self.name}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "POSTGRES_HOST": self.host,
            "POSTGRES_PORT": str(self.port),
            "POSTGRES_USER": self.user,
            "POSTGRES_PASSWORD": self.password,
            "POSTGRES_DB": self.name,
        }


@pytest.fixture
def postgres_folder() -> Iterator[Path]:
    """A folder for a server. Not pytest's own: each new session, also one that runs beside this one, closes
    that to all but root, and as root the server runs as somebody else.
    """
    with tempfile.TemporaryDirectory(prefix="cryptostream-postgres-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[TestDatabase]:
    """The session's server; the database it names is empty and shared: prefer `database`."""
    from cryptostream_dagster.local.postgres import EmbeddedPostgres

    with (
        tempfile.TemporaryDirectory(prefix="cryptostream-postgres-") as folder,
        EmbeddedPostgres(Path(folder) / "data", free_port(), parameters={"fsync": "off"}) as server,
    ):
        yield TestDatabase(server.host, server.port, server.user, server.password, server.database)


@pytest.fixture
def database(postgres_server: TestDatabase) -> Iterator[TestDatabase]:
    """An empty database of this test's own, dropped afterwards."""
    import psycopg

    name = f"test_{next(_numbers)}"
    with psycopg.connect(postgres_server.dsn, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]  # our own counter
    server = postgres_server
    yield TestDatabase(server.host, server.port, server.user, server.password, name)
    with psycopg.connect(postgres_server.dsn, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")  # type: ignore[arg-type]
