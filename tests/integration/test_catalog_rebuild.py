"""The catalog anew: what was built is known to be, versions go on, and nothing is resurrected."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cryptostream_dagster import rebuild as rebuilding
from cryptostream_dagster.catalog.complete import complete_until
from cryptostream_dagster.catalog.reconcile import enter_empty_windows, find_candidates
from cryptostream_dagster.catalog.retention import Frozen, frozen_until
from cryptostream_dagster.catalog.sync import sync
from cryptostream_dagster.rebuild import CATALOG, Rebuilt
from cryptostream_dagster.resources import Platform
from cryptostream_dagster.window import Window
from ingest_services.lake.store import DeletableStore
from ingest_services.lake.stores import open_store
from tests.fake_gcs import FakeGcs
from tests.lake_builder import LakeBuilder, Row, covered_minutes, frame, instant
from tests.pipeline import Pipeline, open_pipeline, pipeline_settings
from tests.postgres_fixture import TestDatabase

FIRST = Window.at(instant("2025-02-02 16:05:00"))
TWICE, EMPTY, ODD, GROWN, UNBUILT = (FIRST.shifted(n) for n in range(1, 6))

STATE = {
    "chains": "SELECT * FROM lake_chain ORDER BY 1",
    "partitions": "SELECT * FROM lake_partition ORDER BY 1, 2",
    "commits": "SELECT * FROM lake_commit ORDER BY 1, 2, 3",
    "files": "SELECT kind, path, chain, partition, base_offset, minute, rows, bytes, crc32c "
    "FROM lake_file ORDER BY path",
    "windows": "SELECT window_start, rows, built_revision IS NOT DISTINCT FROM revision, "
    "first_change_at IS NULL FROM lake_window ORDER BY 1",
    "subscriptions": "SELECT * FROM subscription ORDER BY 1, 2",
    "seals": "SELECT DISTINCT ON (window_start) window_start, version, digest, files, rows, bytes, tickers, "
    "late_rows, quarantined FROM seal ORDER BY window_start, version DESC",
    "sealed": "SELECT s.window_start, s.version, f.path "
    "FROM seal_file AS s JOIN lake_file AS f USING (file_id) "
    "JOIN built AS b USING (window_start, version) WHERE b.asset = 'orderbook_parquet' ORDER BY 1, 2, 3",
    "built": "SELECT window_start, asset, version, digest FROM built ORDER BY 1, 2",
    "parquet": "SELECT * FROM parquet_file ORDER BY window_start, ticker",
    "entered": "SELECT * FROM meta ORDER BY key",
    "coverage": "SELECT * FROM coverage_5m ORDER BY window_start, ticker",
}
CANDLES = (
    "SELECT ticker, event_time, open_price, high_price, low_price, close_price, prev_close_price, "
    "book_count, coverage_ratio FROM ohlc_5m_ticker ORDER BY 1, 2"
)


@pytest.fixture
def pipeline(tmp_path: Path, database: TestDatabase) -> Iterator[Pipeline]:
    """Windows of every kind: built, built twice, empty, without a candle, grown since, never built."""
    with open_pipeline(tmp_path, database, partitions=2) as opened:
        beats = covered_minutes(FIRST.start, 25, "BTC", "ETH")
        rows = [book(window, 5, 100) for window in (FIRST, TWICE, GROWN, UNBUILT)]
        rows += [
            book(FIRST, 6, 30, "ETH"),
            Row(frame("BTC", ODD.start_ms + 1, [("1", "0", 1, 0)]), ODD.start_ms * 1000),
        ]
        opened.lake.commit(rows, beats)
        opened.lake.through(UNBUILT.end)
        sync(opened.connection, opened.lake.store)
        enter_empty_windows(opened.connection, complete_until(opened.connection))
        before = [window for window in _windows(opened) if window < FIRST]
        for window in (*before, FIRST, TWICE, EMPTY, ODD, GROWN):
            opened.build(window)
        opened.lake.commit([book(TWICE, 7, 200), book(TWICE, 7, 30, "ETH")], partition=1)
        opened.build(TWICE)
        opened.lake.commit([book(GROWN, 7, 300)], partition=1)
        sync(opened.connection, opened.lake.store)
        yield opened


def book(window: Window, seconds: float, mid: float, ticker: str = "BTC") -> Row:
    tms = window.start_ms + round(seconds * 1000)
    return Row(frame(ticker, tms, [(mid + 1, mid - 1, 1, 1)]), (tms + 50) * 1000)


def _windows(pipeline: Pipeline) -> list[Window]:
    return [
        Window.at(start) for (start,) in pipeline.query("SELECT window_start FROM lake_window ORDER BY 1")
    ]


def state(pipeline: Pipeline) -> dict[str, list[tuple[Any, ...]]]:
    return {name: pipeline.query(query) for name, query in STATE.items()}


def wanting(pipeline: Pipeline) -> list[Window]:
    return sorted(c.window for c in find_candidates(pipeline.connection, pipeline.settings.first_window))


def lose_catalog(pipeline: Pipeline, *more: str) -> None:
    pipeline.connection.execute(f"TRUNCATE {', '.join((*CATALOG, *more))}")  # type: ignore[arg-type]
    pipeline.connection.execute("DELETE FROM meta WHERE key IN ('windows_entered_until', 'frozen_until')")


def rebuild(pipeline: Pipeline) -> Rebuilt:
    return rebuilding.rebuild(pipeline.settings, pipeline.lake.store)


def test_a_catalog_that_was_lost_is_what_it_was(pipeline: Pipeline) -> None:
    before = state(pipeline)
    candles = pipeline.query("SELECT * FROM ohlc_5m_ticker ORDER BY 1, 3")
    assert wanting(pipeline) == [GROWN, UNBUILT]
    lose_catalog(pipeline)
    done = rebuild(pipeline)
    assert state(pipeline) == before
    assert wanting(pipeline) == [GROWN, UNBUILT]  # no storm
    assert pipeline.query("SELECT * FROM ohlc_5m_ticker ORDER BY 1, 3") == candles
    assert (done.to_build, done.frozen) == (2, 0)
    # Versions go on from where they were, and late data still builds.
    pipeline.lake.commit([book(TWICE, 9, 400)])
    for window, version in ((TWICE, 3), (GROWN, 2), (UNBUILT, 1)):
        _, _, built = pipeline.build(window)
        assert built.version == version
    assert wanting(pipeline) == []
    assert pipeline.value("SELECT max(high_price)::int FROM ohlc_5m_ticker") == 400


def test_a_catalog_that_is_damaged_is_what_it_was(pipeline: Pipeline) -> None:
    before = state(pipeline)
    for damage in (
        "DELETE FROM seal_file",
        "DELETE FROM lake_file WHERE kind = 'book'",
        "UPDATE lake_window SET built_revision = NULL, rows = 7",
        "DELETE FROM built WHERE asset = 'ohlc_5m_ticker'",
        "UPDATE parquet_file SET rows = 12",
        "UPDATE lake_partition SET next_offset = 1",
    ):
        pipeline.connection.execute(damage)  # type: ignore[call-overload]
    rebuild(pipeline)
    assert state(pipeline) == before
    rebuild(pipeline)  # and once more changes nothing
    assert state(pipeline) == before


def test_a_rebuild_that_is_killed_leaves_the_old_catalog_and_the_next_one_completes(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(pipeline)
    pipeline.connection.execute("UPDATE parquet_file SET rows = 12")
    damaged = state(pipeline)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    for step in ("_copy", "_move_in"):
        monkeypatch.setattr(rebuilding, step, die)
        with pytest.raises(KeyboardInterrupt):
            rebuild(pipeline)
        assert state(pipeline) == damaged
    monkeypatch.undo()
    rebuild(pipeline)
    assert state(pipeline) == before
    assert pipeline.query("SELECT 1 FROM pg_namespace WHERE nspname = 'catalog_rebuild'") == []


def test_tables_that_were_lost_are_written_again_from_the_parquet(pipeline: Pipeline) -> None:
    before, candles = state(pipeline), pipeline.query(CANDLES)
    lose_catalog(pipeline, "ohlc_5m_ticker", "ohlc_5m_history", "coverage_5m", "ticker")
    done = rebuild(pipeline)
    assert pipeline.query(CANDLES) == candles
    after = state(pipeline)
    assert {name for name in STATE if after[name] != before[name]} <= {"coverage"}
    # GROWN was sealed by hand of the state before it grew; its coverage is of now.
    assert len(after["coverage"]) == len(before["coverage"])
    assert wanting(pipeline) == [GROWN, UNBUILT]
    assert done.completed == 4


def test_parquet_that_was_lost_or_is_half_written_is_built_again_under_a_new_version(
    pipeline: Pipeline,
) -> None:
    candles = pipeline.query(CANDLES)
    root = Path(pipeline.settings.parquet_url.removeprefix("file://"))
    files = {path.name: path for path in root.rglob("*.parquet")}
    (files["BTC-202502021605.parquet"]).unlink()  # of two tickers
    (files["BTC-202502021625.parquet"]).unlink()
    files["ETH-202502021610.parquet"].write_bytes(b"torn")
    lose_catalog(pipeline)
    rebuild(pipeline)
    assert wanting(pipeline) == [FIRST, TWICE, GROWN, UNBUILT]
    for window, version in ((FIRST, 1), (TWICE, 2), (GROWN, 2)):
        _, parquet, _ = pipeline.build(window)
        assert parquet.version == version
        assert parquet.written
    assert [row for row in pipeline.query(CANDLES) if row[1] != GROWN.start] == [
        row for row in candles if row[1] != GROWN.start
    ]


def test_what_is_built_while_a_rebuild_goes_on_is_known_to_be(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = rebuilding._move_in

    def build_first(*arguments: Any) -> None:
        pipeline.build(GROWN)
        pipeline.build(UNBUILT)
        pipeline.lake.commit([book(FIRST, 9, 400)])
        real(*arguments)

    monkeypatch.setattr(rebuilding, "_move_in", build_first)
    rebuild(pipeline)
    assert wanting(pipeline) == [FIRST]
    assert pipeline.value("SELECT max(version) FROM seal WHERE window_start = %s", GROWN.start) == 2


def test_raw_data_that_has_expired_is_not_resurrected(pipeline: Pipeline) -> None:
    candles = pipeline.query(CANDLES)
    for path in (pipeline.lake.folder / "ticker=BTC").rglob("*.zst"):
        path.unlink()
    lose_catalog(pipeline)
    done = rebuild(pipeline)  # nobody said that raw data expires: what is gone is found out
    assert (done.to_build, done.frozen) == (0, 2)
    assert wanting(pipeline) == []
    with pytest.raises(Frozen):
        pipeline.seal(GROWN)

    days = (datetime.now(UTC) - UNBUILT.end).days
    pipeline.settings = pipeline.settings.model_copy(update={"raw_retention_days": days})
    lose_catalog(pipeline, "ohlc_5m_ticker", "ohlc_5m_history", "coverage_5m", "ticker")
    done = rebuild(pipeline)
    assert (done.to_build, done.frozen) == (0, 2)
    assert pipeline.query(CANDLES) == candles  # frozen, but its Parquet is there
    until = frozen_until(pipeline.connection, pipeline.settings, datetime.now(UTC))
    assert until is not None
    assert find_candidates(pipeline.connection, until) == []
    with pytest.raises(Frozen):
        pipeline.seal(GROWN)


def test_it_is_rebuilt_from_buckets_too(
    tmp_path: Path, database: TestDatabase, gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = LakeBuilder(tmp_path / "raw", since=FIRST.start)
    lake.commit([book(FIRST, 5, 100), book(FIRST, 6, 30, "ETH")], covered_minutes(FIRST.start, 5, "BTC"))
    lake.through(FIRST.end)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
    raw, parquet = (f"gs://{gcs.bucket()}/some" for _ in range(2))
    store = open_store(raw)
    for path in lake.store.list(""):
        store.create(path, lake.store.get(path))
    settings = pipeline_settings(tmp_path, database, raw_url=raw, parquet_url=parquet)
    with Platform(settings).connect() as connection:
        lake.store = store
        pipeline = Pipeline(settings, lake, connection)
        pipeline.build(FIRST)
        before = state(pipeline)
        lose_catalog(pipeline, "ohlc_5m_ticker")
        done = rebuild(pipeline)
        assert (done.built, done.to_build, done.completed) == (1, 0, 1)
        after = state(pipeline)
        assert {name for name in STATE if after[name] != before[name]} <= {"entered"}
        (gone,) = store.list("ticker=ETH")
        assert isinstance(store, DeletableStore)
        store.delete(gone)
        lake.commit([book(FIRST, 9, 100)])
        with pytest.raises(Frozen):
            pipeline.seal(FIRST)
