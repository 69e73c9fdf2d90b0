"""`orderbook_features_5m`: written at the version of the window's Parquet, and no window is built without."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from cryptostream_dagster.catalog.reconcile import find_candidates
from cryptostream_dagster.client import Client
from cryptostream_dagster.transforms.schema import FEATURE_COLUMNS
from cryptostream_dagster.window import Window
from ingest_services.errors import UserError
from tests.lake_builder import Level, Row, frame, instant, ms
from tests.pipeline import Pipeline, open_pipeline
from tests.postgres_fixture import TestDatabase

START = instant("2025-02-02 16:05:00")
WINDOW = Window.at(START)
DEEP: Level = (10_100, 9_900, 1, 1)


@pytest.fixture
def pipeline(tmp_path: Path, database: TestDatabase) -> Iterator[Pipeline]:
    with open_pipeline(tmp_path, database) as opened:
        opened.lake.through(START + timedelta(hours=2))
        yield opened


def book(seconds: float, levels: list[Level], ticker: str = "BTC") -> Row:
    tms = ms(START) + round(seconds * 1000)
    return Row(frame(ticker, tms, levels), (tms + 50) * 1000)


def unfinished(pipeline: Pipeline) -> list[Window]:
    return [candidate.window for candidate in find_candidates(pipeline.connection, START)]


def features(pipeline: Pipeline) -> list[tuple[object, ...]]:
    return pipeline.query("SELECT * FROM orderbook_features_5m ORDER BY ticker, event_time")


def test_a_window_becomes_features(pipeline: Pipeline) -> None:
    near: Level = (10_001, 9_999, 2, 6)
    pipeline.lake.commit([book(0, [near, DEEP]), book(100, [(10_003, 9_997, 3, 3)], "ETH")])
    pipeline.build(WINDOW)
    names = (
        "ticker, market, event_time, event_date::text, mean_spread_bps, ask_depth_10bps, bid_depth_50bps, "
        "imbalance, close_microprice, realized_volatility, return_count, book_count, version"
    )
    assert pipeline.query(f"SELECT {names} FROM orderbook_features_5m ORDER BY ticker") == [
        (
            *("BTC", "KRW-BTC", START, "2025-02-02", 2, 2, 6),
            *(Decimal("0.5"), Decimal("10000.5"), 0, 300, 1, 1),
        ),
        ("ETH", "KRW-ETH", START, "2025-02-02", 6, None, None, 0, 10_000, 0, 200, 1, 1),
    ]


def test_the_client_gives_them_as_a_frame(pipeline: Pipeline) -> None:
    pipeline.lake.commit([book(0, [(10_001, 9_999, 2, 6)]), book(300, [(10_001, 9_999, 1, 1), DEEP])])
    pipeline.build(WINDOW)
    pipeline.build(WINDOW.shifted(1))
    with Client(pipeline.settings) as client:
        frame = client.features("BTC")
        assert [str(start)[11:16] for start in frame.index] == ["16:05", "16:10"]
        assert frame["imbalance"].tolist() == [0.5, 0]
        assert frame["ask_depth_10bps"].isna().tolist() == [True, False]
        assert client.features("BTC", end="2025-02-02 16:10", exact=True)["mean_spread_bps"].tolist() == [2]
        assert client.features("ETH").empty


def test_the_table_has_the_declared_columns(pipeline: Pipeline) -> None:
    found = pipeline.query(
        "SELECT column_name FROM information_schema.columns WHERE table_name = 'orderbook_features_5m' "
        "ORDER BY ordinal_position"
    )
    assert [name for (name,) in found] == [column.name for column in FEATURE_COLUMNS]


@pytest.mark.parametrize("first", ["candles", "features"])
def test_a_window_is_built_once_candles_and_features_are(pipeline: Pipeline, first: str) -> None:
    pipeline.lake.commit([book(0, [DEEP])])
    pipeline.seal(WINDOW)
    pipeline.parquet(WINDOW)
    last = {"candles": "features", "features": "candles"}[first]
    getattr(pipeline, first)(WINDOW)
    assert unfinished(pipeline) == [WINDOW]
    getattr(pipeline, last)(WINDOW)
    assert unfinished(pipeline) == []
    # And again at the next version: that one of the two is there at the one before does not count.
    pipeline.lake.commit([book(1, [DEEP])])
    pipeline.seal(WINDOW)
    pipeline.parquet(WINDOW)
    getattr(pipeline, first)(WINDOW)
    assert unfinished(pipeline) == [WINDOW]
    getattr(pipeline, last)(WINDOW)
    assert unfinished(pipeline) == []


def test_late_data_rebuilds_what_it_changes_and_building_again_changes_nothing(pipeline: Pipeline) -> None:
    pipeline.lake.commit([book(0, [DEEP]), book(0, [DEEP], "ETH")])
    pipeline.build(WINDOW)
    first = features(pipeline)
    again = pipeline.features(WINDOW).written
    assert again is not None
    assert (again.rows, again.new, again.dropped) == (2, 0, 0)
    assert features(pipeline) == first
    pipeline.lake.commit([book(100, [(10_001, 9_999, 1, 1), DEEP])])
    pipeline.build(WINDOW)
    bitcoin, ether = features(pipeline)
    assert ether == first[1]
    assert bitcoin != first[0]
    query = "SELECT ticker, book_count, version FROM orderbook_features_5m ORDER BY 1"
    assert pipeline.query(query) == [("BTC", 2, 2), ("ETH", 1, 1)]


def test_an_older_build_never_replaces_a_newer_one(pipeline: Pipeline) -> None:
    pipeline.lake.commit([book(0, [DEEP])])
    pipeline.build(WINDOW)
    # As if another run had written version 5 while this one was computing.
    pipeline.query(
        "INSERT INTO seal SELECT window_start, 5, 'x', revision, coverage_revision, sealed_at, files, rows, "
        "bytes, tickers, late_rows, quarantined FROM seal RETURNING 1"
    )
    pipeline.query("UPDATE built SET version = 5 WHERE asset = 'orderbook_features_5m' RETURNING 1")
    pipeline.query("UPDATE orderbook_features_5m SET imbalance = 1, version = 5 RETURNING 1")
    assert pipeline.features(WINDOW).written is None
    assert pipeline.query("SELECT imbalance, version FROM orderbook_features_5m") == [(1, 5)]


def test_without_parquet_there_are_no_features_and_it_is_said(pipeline: Pipeline) -> None:
    with pytest.raises(UserError, match="materialize orderbook_parquet first"):
        pipeline.features(WINDOW)


def test_a_window_of_silence_has_none_and_is_built(pipeline: Pipeline) -> None:
    pipeline.build(WINDOW)
    assert features(pipeline) == []
    assert unfinished(pipeline) == []
    assert pipeline.query("SELECT version FROM built WHERE asset = 'orderbook_features_5m'") == [(1,)]
