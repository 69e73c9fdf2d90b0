from __future__ import annotations

import os
from pathlib import Path

import psycopg
import pytest

from cryptostream_dagster.local.ports import free_port
from cryptostream_dagster.local.postgres import EmbeddedPostgres
from ingest_services.errors import UserError


def test_data_survives_a_stop_and_a_killed_owner(postgres_folder: Path) -> None:
    first = EmbeddedPostgres(postgres_folder / "postgres", free_port())
    with first, psycopg.connect(first.dsn) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS x")
    # A second server finds the folder; a third finds the second still running, as after a SIGKILL.
    second = EmbeddedPostgres(postgres_folder / "postgres", free_port())
    second.start()
    with EmbeddedPostgres(postgres_folder / "postgres", free_port()) as third:
        with psycopg.connect(third.dsn) as connection:
            assert connection.execute("SELECT x FROM kept").fetchone() == (1,)
        assert second.pid is None
    second.stop()


def test_a_wrong_password_is_refused(postgres_folder: Path) -> None:
    with EmbeddedPostgres(postgres_folder / "postgres", free_port()) as server:
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(server.dsn.replace(server.password, "guess"))
        assert (postgres_folder / "postgres.password").stat().st_mode & 0o077 == 0


def test_a_server_that_cannot_start_says_why(postgres_folder: Path) -> None:
    port = free_port()
    with (
        EmbeddedPostgres(postgres_folder / "one", port),
        pytest.raises(UserError, match=r"[Aa]ddress already in use"),
    ):
        EmbeddedPostgres(postgres_folder / "two", port).start()


def test_stop_leaves_no_process_behind(postgres_folder: Path) -> None:
    server = EmbeddedPostgres(postgres_folder / "postgres", free_port())
    server.start()
    pid = server.pid
    assert pid is not None
    server.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
