"""What the compose files make of other people's images, run on this machine: Postgres and the local store."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cryptostream_dagster.local.ports import LOOPBACK, answers, free_port
from tests.deploy.compose import DOCKER, POSTGRES_PROGRAMS, resolve
from tests.fake_gcs import FakeGcs, fake_gcs_binary
from tests.postgres_fixture import TestDatabase

ENVIRONMENT = {"PATH": f"{POSTGRES_PROGRAMS}:/usr/bin:/bin", "LC_ALL": "C"}


def service(name: str) -> dict[str, Any]:
    given: dict[str, Any] = resolve("compose.yaml", DOCKER / "env.example")["services"][name]
    return given


def make_databases(
    folder: Path, server: TestDatabase, dagster: str, reader_password: str
) -> subprocess.CompletedProcess[str]:
    """Run the job `databases` as its container would."""
    given = service("databases")
    assert given["entrypoint"] == ["sh", "/etc/cryptostream/create-databases.sh"]
    environment = given["environment"]
    for name, text in (
        ("POSTGRES_PASSWORD_FILE", server.password),
        ("GRAFANA_READER_PASSWORD_FILE", reader_password),
    ):
        secret = folder / Path(environment[name]).name
        secret.write_text(text)
        environment[name] = str(secret)
    environment |= {"PGHOST": server.host, "PGUSER": server.user, "PGDATABASE": server.name}
    return subprocess.run(
        ["sh", str(DOCKER / "postgres" / "create-databases.sh")],
        env={**environment, **ENVIRONMENT, "PGPORT": str(server.port), "DAGSTER_POSTGRES_DB": dagster},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_databases_job_may_run_again_and_takes_a_new_password(
    tmp_path: Path, database: TestDatabase, dagster_database: str
) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        kept = []
        for password in ("first", 'it\'s "another" $one\\\n'):
            done = make_databases(tmp_path, database, dagster_database, password)
            assert done.returncode == 0, done.stderr
            assert password not in done.stdout + done.stderr
            kept += connection.execute(
                "SELECT rolpassword, rolcanlogin, rolsuper, rolcreatedb, "
                "pg_has_role(oid, 'pg_read_all_data', 'usage'), "
                "pg_has_role(oid, 'pg_write_all_data', 'usage') FROM pg_authid "
                "WHERE rolname = 'grafana_reader'"
            ).fetchall()
        assert kept[0][0] != kept[1][0]
        assert [row[1:] for row in kept] == [(True, False, False, True, False)] * 2
        assert (
            connection.execute("SELECT FROM pg_database WHERE datname = %s", (dagster_database,)).rowcount
            == 1
        )


@pytest.mark.parametrize("empty", ["postgres_password", "grafana_reader_password"])
def test_an_empty_password_is_refused_before_anything_is_made(
    tmp_path: Path, database: TestDatabase, dagster_database: str, empty: str
) -> None:
    said = {"postgres_password": "something", "grafana_reader_password": "something", empty: "\n"}
    server = replace(database, password=said["postgres_password"])
    done = make_databases(tmp_path, server, dagster_database, said["grafana_reader_password"])
    assert done.returncode != 0
    assert f"write the password into docker/secrets/{empty}" in done.stderr
    assert done.stderr.count("\n") == 1
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        assert not connection.execute(
            "SELECT FROM pg_database WHERE datname = %s", (dagster_database,)
        ).rowcount


def test_the_health_check_of_postgres_tells_one_that_serves_from_none(database: TestDatabase) -> None:
    kind, command = service("postgres")["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    for port, healthy in ((database.port, True), (free_port(), False)):
        own = {"POSTGRES_USER": database.user, "POSTGRES_DB": database.name, "PGPORT": str(port)}
        # Compose writes `$$` where the container is to see `$`.
        done = subprocess.run(
            ["sh", "-c", command.replace("$$", "$")],
            env={**ENVIRONMENT, **own},
            capture_output=True,
            check=False,
        )
        assert (done.returncode == 0) is healthy, done.stderr


@contextmanager
def local_store(folder: Path, port: int) -> Iterator[FakeGcs]:
    """Run the service `gcs` with the image's entry point, its volumes in a folder."""
    given = service("gcs")
    (volume,) = given["volumes"]
    words = [
        word.replace(volume["target"], str(folder / "volume"))
        .replace("4443", str(port))
        .replace("0.0.0.0", LOOPBACK)
        for word in given["command"]
    ]
    data = "/data".replace(volume["target"], str(folder / "volume"))
    process = subprocess.Popen([str(fake_gcs_binary()), "-data", data, *words])
    try:
        deadline = time.monotonic() + 20
        while not answers(port):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        check = given["healthcheck"]["test"]
        with urllib.request.urlopen(check[-1].replace("4443", str(port)), timeout=10) as answer:
            assert answer.status == 200
        yield FakeGcs(f"http://{LOOPBACK}:{port}")
    finally:
        process.terminate()
        process.wait(10)


def test_the_local_store_has_what_it_had_when_it_is_started_again(tmp_path: Path) -> None:
    port = free_port()
    found = []
    with local_store(tmp_path, port) as store:
        bucket = store.bucket()
        assert store.insert(bucket, "orderbook/lake.json", b"{}") == 200
        found.append(describe(store, bucket))
    with local_store(tmp_path, port) as store:
        found.append(describe(store, bucket))
        assert store.insert(bucket, "orderbook/lake.json", b"[]") == 412
    # The generation too: an object that was written once more is another one.
    assert found[0] == found[1]


def describe(store: FakeGcs, bucket: str) -> dict[str, Any]:
    url = f"{store.url}/storage/v1/b/{bucket}/o/orderbook%2Flake.json"
    with urllib.request.urlopen(url, timeout=10) as answer:
        told = json.load(answer)
    return {name: told.get(name) for name in ("generation", "size", "contentType", "crc32c", "timeCreated")}
