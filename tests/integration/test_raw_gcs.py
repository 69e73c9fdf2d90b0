"""The three steps make of a raw lake on Google Cloud Storage what they make of the same in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cryptostream_dagster.resources import Platform
from cryptostream_dagster.steps import candle_step, parquet_step, seal_step
from cryptostream_dagster.transforms.raw import RawObject, read_object
from cryptostream_dagster.transforms.storage import ObjectGone, open_storage
from cryptostream_dagster.window import Window
from ingest_services.lake.store import open_store
from tests.fake_gcs import FakeGcs, Proxy, running_proxy
from tests.lake_builder import LakeBuilder, Row, frame, instant, ms
from tests.pipeline import pipeline_settings
from tests.postgres_fixture import TestDatabase

START = instant("2025-02-02 16:05:00")
WINDOW = Window.at(START)


def build(folder: Path, database: TestDatabase, raw_url: str) -> tuple[list[Any], dict[str, Any]]:
    """Build the window from a lake; return its candles without their times of building, and its tables."""
    settings = pipeline_settings(folder, database, raw_url=raw_url)
    platform = Platform(settings)
    with platform.connect() as connection:
        seal_step(connection, platform.require_lake(), WINDOW, settings)
        parquet_step(connection, WINDOW, settings)
        candle_step(connection, WINDOW, settings)
        found = connection.execute(
            "SELECT ticker, event_time, open_price, high_price, low_price, close_price, book_count, version "
            "FROM ohlc_5m_ticker ORDER BY ticker"
        ).fetchall()
        for table in ("built", "ohlc_5m_ticker", "seal", "lake_partition"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() != (0,), table  # type: ignore[arg-type]
    tables = {
        path.relative_to(folder).as_posix(): pq.read_table(path).to_pydict()
        for path in sorted((folder / "parquet").rglob("*.parquet"))
    }
    return found, tables


def fill(lake: LakeBuilder) -> None:
    for number in range(120):
        tms = ms(START) + number * 2500
        mid = 100.0 + number % 7
        ticker = ("BTC", "ETH", "XRP")[number % 3]
        lake.commit([Row(frame(ticker, tms, [(mid + 1, mid - 1, 1, 1)]), (tms + 50) * 1000)])
    lake.through(instant("2025-02-02 18:05:00"))


@pytest.fixture
def two_databases(postgres_server: TestDatabase) -> Any:
    """A database of its own for each lake: a database belongs to one."""
    import psycopg

    names = ["raw_folder", "raw_gcs"]
    with psycopg.connect(postgres_server.dsn, autocommit=True) as connection:
        for name in names:
            connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
    server = postgres_server
    yield [TestDatabase(server.host, server.port, server.user, server.password, name) for name in names]
    with psycopg.connect(postgres_server.dsn, autocommit=True) as connection:
        for name in names:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")  # type: ignore[arg-type]


def test_a_window_from_gcs_is_the_window_from_a_folder(
    tmp_path: Path, two_databases: list[TestDatabase], gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = LakeBuilder(tmp_path / "folder/raw")
    fill(lake)
    expected = build(tmp_path / "folder", two_databases[0], lake.url)
    bucket = gcs.bucket()
    with running_proxy(gcs) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        url = f"gs://{bucket}/some/raw"
        copy = open_store(url)
        for path in lake.store.list(""):
            copy.create(path, lake.store.get(path))
        proxy.requests.clear()
        (tmp_path / "gcs").mkdir()
        found = build(tmp_path / "gcs", two_databases[1], url)
        require_readers_requests(proxy, bucket)
    assert len(expected[0]) == 3
    assert found == expected


def require_readers_requests(proxy: Proxy, bucket: str) -> None:
    """Who reads needs to get and to list objects, and nothing else."""
    for request in proxy.requests:
        assert request.method == "GET", request
        assert f"/b/{bucket}/o" in request.path, request
    assert len(proxy.requests) > 120


def test_an_object_that_is_gone_is_named(gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
    storage = open_storage("RAW_URL", f"gs://{gcs.bucket()}/raw")
    with pytest.raises(ObjectGone, match=r"gs://.*/raw/ticker=BTC/x\.jsonl: a commit names it"):
        read_object(storage, RawObject("ticker=BTC/x.jsonl", "BTC", 1, 1, 1, "00000000"))
