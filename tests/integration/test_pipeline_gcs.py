"""The three steps make of a lake on Google Cloud Storage what they make of the same in a folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cryptostream_dagster.client import Client
from cryptostream_dagster.glance import pictures
from cryptostream_dagster.questions import QUESTIONS, Ground
from cryptostream_dagster.resources import Platform
from cryptostream_dagster.steps import candle_step, parquet_step, seal_step
from cryptostream_dagster.transforms.raw import RawObject, read_lines
from cryptostream_dagster.transforms.storage import ObjectGone, open_storage
from cryptostream_dagster.window import Window
from ingest_services.errors import UserError
from ingest_services.lake.stores import open_store
from tests.fake_gcs import FakeGcs, running_proxy, uploads
from tests.lake_builder import LakeBuilder, Row, frame, instant, ms
from tests.pipeline import pipeline_settings
from tests.postgres_fixture import TestDatabase

START = instant("2025-02-02 16:05:00")
WINDOW = Window.at(START)


def build(
    folder: Path, database: TestDatabase, raw_url: str, parquet_url: str
) -> tuple[list[Any], dict[str, str]]:
    """Build the window from a lake; return its candles without their times of building, and its tables."""
    settings = pipeline_settings(folder, database, raw_url=raw_url, parquet_url=parquet_url)
    platform = Platform(settings)
    with platform.connect() as connection:
        seal_step(connection, platform.require_lake(), WINDOW, settings)
        assert parquet_step(connection, WINDOW, settings).written
        assert not parquet_step(connection, WINDOW, settings).written
        candle_step(connection, WINDOW, settings)
        ground = Ground(connection, settings)
        for question in QUESTIONS:
            if question.asset != "orderbook_features_5m":
                assert question.ask(ground, WINDOW).violations == 0, question.name
        assert list(pictures(connection, WINDOW, settings)) == ["picture_of_day", "picture_of_window"]
        found = connection.execute(
            "SELECT ticker, event_time, open_price, high_price, low_price, close_price, book_count, version "
            "FROM ohlc_5m_ticker ORDER BY ticker"
        ).fetchall()
        for table in ("built", "ohlc_5m_ticker", "seal", "lake_partition"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() != (0,), table  # type: ignore[arg-type]
    with Client(settings) as client:
        tables = {
            ticker: client.books(ticker, WINDOW.start, WINDOW.end).to_csv()
            for ticker in ("BTC", "ETH", "XRP")
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


def test_a_window_on_gcs_is_the_window_in_a_folder(
    tmp_path: Path, two_databases: list[TestDatabase], gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = LakeBuilder(tmp_path / "raw")
    fill(lake)
    expected = build(tmp_path, two_databases[0], lake.url, (tmp_path / "parquet").as_uri())
    raw, tables = gcs.bucket(), gcs.bucket()
    with running_proxy(gcs) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        url = f"gs://{raw}/some/raw"
        copy = open_store(url)
        for path in lake.store.list(""):
            copy.create(path, lake.store.get(path))
        proxy.requests.clear()
        found = build(tmp_path, two_databases[1], url, f"gs://{tables}/some/parquet")
        requests = list(proxy.requests)
    assert len(expected[0]) == 3
    assert [len(books.splitlines()) for books in expected[1].values()] == [1 + 40] * 3
    assert found == expected
    of_raw = [request for request in requests if f"/b/{raw}/" in request.path]
    of_tables = [request for request in requests if f"/b/{tables}/" in request.path]
    assert len(of_raw) + len(of_tables) == len(requests)
    # Who reads the raw lake gets and lists, and fetches each object of books once.
    assert {request.method for request in of_raw} == {"GET"}
    fetched = Counter(request.name for request in of_raw if "/ticker=" in request.name)
    assert set(fetched.values()) == {1}
    assert len(fetched) == 120
    # Neither is written twice, nor by way of this machine's disk.
    begun = Counter(request.name for request in of_tables if request.method == "POST")
    assert sorted(begun.values()) == [1] * 3
    (tmp_path / "parquet").rename(tmp_path / "elsewhere")
    copied = gcs.mirror(tables, tmp_path / "copy") / "some/parquet"
    for path in (tmp_path / "elsewhere").rglob("*.parquet"):
        assert (copied / path.relative_to(tmp_path / "elsewhere")).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("bucket", "status", "says"),
    [
        (None, None, "there is no bucket no-such-bucket; create it, or name another"),
        ("", 403, "this account may not; docs/windows.md says what it must be allowed to do in the bucket"),
    ],
)
def test_a_bucket_that_cannot_be_written_is_one_line_and_leaves_nothing(
    tmp_path: Path,
    database: TestDatabase,
    gcs: FakeGcs,
    monkeypatch: pytest.MonkeyPatch,
    bucket: str | None,
    status: int | None,
    says: str,
) -> None:
    lake = LakeBuilder(tmp_path / "raw")
    fill(lake)
    with running_proxy(gcs) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        good = gcs.bucket()
        if status is not None:
            proxy.fault(status, uploads, times=100)
        name = "no-such-bucket" if bucket is None else good
        settings = pipeline_settings(tmp_path, database, parquet_url=f"gs://{name}/p")
        platform = Platform(settings)
        with platform.connect() as connection:
            seal_step(connection, platform.require_lake(), WINDOW, settings)
            with pytest.raises(UserError, match=says) as caught:
                parquet_step(connection, WINDOW, settings)
            assert f"gs://{name}/p/ticker=" in str(caught.value)
            assert "\n" not in str(caught.value)
            for table in ("built", "parquet_file"):
                assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)  # type: ignore[arg-type]
            # Put right, the same run goes through.
            proxy.faults.clear()
            settings = settings.model_copy(update={"parquet_url": f"gs://{good}/p"})
            assert parquet_step(connection, WINDOW, settings).written
            assert len(candle_step(connection, WINDOW, settings).candles) == 3


def test_a_bucket_that_cannot_be_read_is_one_line(
    tmp_path: Path, gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_proxy(gcs) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        storage = open_storage("PARQUET_URL", f"gs://{gcs.bucket()}/p")
        storage.write("a/b", b"x")
        proxy.fault(403, times=100)
        for ask in (
            lambda: storage.read("a/b"),
            lambda: storage.sizes(["a/b"]),
            lambda: storage.delete(["a/b"]),
            lambda: storage.find("a"),
        ):
            with pytest.raises(
                UserError, match=r"^gs://\S+/p/a\S*: cannot be .*this account may not"
            ) as caught:
                ask()
            assert "\n" not in str(caught.value)


def test_an_object_that_is_gone_is_named(gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
    storage = open_storage("RAW_URL", f"gs://{gcs.bucket()}/raw")
    with pytest.raises(ObjectGone, match=r"gs://.*/raw/ticker=BTC/x\.jsonl: a commit names it"):
        read_lines(storage, RawObject("ticker=BTC/x.jsonl", "BTC", 1, 1, 1, "00000000"))
