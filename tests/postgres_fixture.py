"""Pytest plugin: one real Postgres for the session, one empty database for each test that asks."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestDatabase]:
    """The session's server; the database it names is empty and shared: prefer `database`."""
    from cryptostream_dagster.local.postgres import EmbeddedPostgres

    folder = tmp_path_factory.mktemp("postgres")
    with EmbeddedPostgres(folder / "data", free_port()) as server:
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
