"""What people read beside candles: longer ones, the series without holes, what was known when; partitions."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cryptostream_dagster import commands
from cryptostream_dagster.catalog.sync import sync
from cryptostream_dagster.client import Client
from cryptostream_dagster.transforms.schema import CANDLE_COLUMNS
from cryptostream_dagster.warehouse.connection import connect
from cryptostream_dagster.warehouse.schema import (
    MONTHS_AHEAD,
    PARTITIONED_BY_DATE,
    PARTITIONED_BY_INSTANT,
    ensure_partitions,
    make_partitions_ahead,
)
from cryptostream_dagster.window import Window
from tests.lake_builder import SEOUL, Row, covered_minutes, frame, instant, ms
from tests.pipeline import Pipeline, open_pipeline, pipeline_settings
from tests.postgres_fixture import TestDatabase

MIDNIGHT = instant("2025-02-03 00:00:00")
COLUMNS = ", ".join(column.name for column in CANDLE_COLUMNS)


@pytest.fixture
def pipeline(tmp_path: Path, database: TestDatabase) -> Iterator[Pipeline]:
    with open_pipeline(tmp_path, database) as opened:
        opened.lake.through(MIDNIGHT + timedelta(hours=2))
        yield opened


def book(at: datetime, mid: float, half_spread: float = 1, ticker: str = "BTC") -> Row:
    return Row(frame(ticker, ms(at), [(mid + half_spread, mid - half_spread, 1, 1)]), ms(at) * 1000 + 50)


def minutes(n: float) -> datetime:
    return MIDNIGHT + timedelta(minutes=n)


def build(pipeline: Pipeline, first: float, last: float) -> None:
    """Build the windows that start at these minutes from midnight, and all between them."""
    window = Window.at(minutes(first))
    while window.start <= minutes(last):
        pipeline.build(window)
        window = window.shifted(1)


# ── views ────────────────────────────────────────


def test_a_day_is_the_market_s_and_an_hour_is_its_clock_s(pipeline: Pipeline) -> None:
    # Two windows of Sunday in Seoul and two of Monday; all of it is Sunday in UTC.
    pipeline.lake.commit([book(minutes(n), mid) for n, mid in ((-10, 10), (-5, 30), (5, 20), (62, 40))])
    build(pipeline, -10, 60)
    query = "SELECT event_date::text, open_price, high_price, low_price, close_price, book_count, windows "
    assert pipeline.query(f"{query} FROM ohlc_1d ORDER BY 1") == [
        ("2025-02-02", 10, 30, 10, 30, 2, 2),
        ("2025-02-03", 20, 40, 20, 40, 2, 2),
    ]
    query = "SELECT event_time, event_date::text, close_price, windows FROM ohlc_1h ORDER BY 1"
    assert pipeline.query(query) == [
        (minutes(-60), "2025-02-02", 30, 2),
        (minutes(0), "2025-02-03", 20, 1),
        (minutes(60), "2025-02-03", 40, 1),
    ]


def test_longer_means_weigh_by_the_time_for_which_there_was_a_mid(pipeline: Pipeline) -> None:
    # The first window has a mid for its last 60 s only; the second one for all of its 300 s.
    pipeline.lake.commit([book(minutes(4), 100, 1), book(minutes(5), 400, 2)])
    build(pipeline, 0, 5)
    assert pipeline.query("SELECT quoted_ms FROM ohlc_5m_ticker ORDER BY event_time") == [
        (60_000,),
        (300_000,),
    ]
    twap = Decimal(100 * 60 + 400 * 300) / 360
    spread = Decimal(200 * 60 + 100 * 300) / 360
    for view in ("ohlc_1h", "ohlc_1d"):
        ((found_twap, found_spread),) = pipeline.query(f"SELECT twap_price, mean_spread_bps FROM {view}")
        assert abs(found_twap - twap) < Decimal("1e-9")
        assert abs(found_spread - spread) < Decimal("1e-5")


def test_coverage_of_longer_candles_is_of_all_their_time(pipeline: Pipeline) -> None:
    # Two windows of the hour were listened to, in full and for two minutes; the rest is not even sealed.
    beats = [*covered_minutes(minutes(0), 5, "BTC"), *covered_minutes(minutes(5), 2, "BTC")]
    pipeline.lake.commit([book(minutes(0), 10), book(minutes(5), 10)], beats)
    build(pipeline, 0, 5)
    hour, day = (
        float(pipeline.value(f"SELECT coverage_ratio FROM {view}")) for view in ("ohlc_1h", "ohlc_1d")
    )
    assert (hour, day) == pytest.approx((7 / 60, 7 / (24 * 60)))
    with Client(pipeline.settings) as client:
        for freq in ("1h", "1d"):
            columns = client.candles("BTC", freq=freq)  # type: ignore[arg-type]
            assert columns[["twap_price", "mean_spread_bps"]].notna().all(axis=None)
            assert len(columns["coverage_ratio"]) == 1
    # Before the first heartbeat nobody knows.
    pipeline.lake.commit([book(minutes(-5), 10)])
    build(pipeline, -5, -5)
    query = "SELECT coverage_ratio FROM ohlc_1h ORDER BY event_time"
    assert [ratio for (ratio,) in pipeline.query(query)] == [None, pytest.approx(7 / 60)]


def test_the_series_without_holes_says_what_it_carried_and_who_listened(pipeline: Pipeline) -> None:
    beats = covered_minutes(minutes(-10), 15, "BTC")
    pipeline.lake.commit([book(minutes(n), mid) for n, mid in ((-10, 10), (-5, 30), (5, 20))], beats)
    build(pipeline, -10, 10)
    query = (
        "SELECT close_price, carried_forward, carried_from, coverage_ratio FROM ohlc_5m_filled "
        "WHERE ticker = 'BTC' ORDER BY event_time"
    )
    assert pipeline.query(query) == [
        (10, False, None, 1),
        (30, False, None, 1),
        (30, True, minutes(-5), 1),
        (20, False, None, 0),
        (20, True, minutes(5), 0),
    ]
    # A window that is not built yet is no window without a book.
    pipeline.lake.commit([book(minutes(15), 7)])
    sync(pipeline.connection, pipeline.lake.store)
    assert len(pipeline.query(query)) == 5
    # It begins with the ticker's first candle, whenever that was built.
    pipeline.lake.commit([book(minutes(-15), 5)])
    build(pipeline, -15, -15)
    assert pipeline.query(query)[:2] == [(5, False, None, None), (10, False, None, 1)]


# ── what was known when ────────────────────────────────────────


def test_what_was_known_at_any_instant_can_be_asked_later(pipeline: Pipeline) -> None:
    """Whatever happens to candles, the view says at each moment what the table said then."""
    moments: list[tuple[datetime, list[Any]]] = []
    first, second = Window.at(minutes(0)), Window.at(minutes(5))
    pipeline.lake.commit([book(minutes(0), 10), book(minutes(6), 20, ticker="ETH")])

    def look() -> None:
        table = pipeline.query(f"SELECT {COLUMNS} FROM ohlc_5m_ticker ORDER BY ticker, event_time")
        moments.append((pipeline.value("SELECT clock_timestamp()"), table))

    look()
    pipeline.build(second)
    look()
    pipeline.build(first)
    look()
    # Late data: a new candle, one that changes, one that only its predecessor changes.
    pipeline.lake.commit([book(minutes(1), 12), book(minutes(2), 30, ticker="ETH")])
    pipeline.build(first)
    look()
    pipeline.build(first)
    look()
    # Who listened is told late.
    pipeline.lake.commit(heartbeats=covered_minutes(minutes(0), 3, "BTC", "ETH"))
    pipeline.build(first)
    look()
    assert set(pipeline.query("SELECT coverage_ratio FROM ohlc_5m_ticker")) == {(0.6,), (None,)}
    # A candle that is withdrawn: its window turns out to have no book.
    pipeline.query("UPDATE lake_file SET minute = minute - interval '1 day' WHERE ticker = 'ETH' RETURNING 1")
    pipeline.build(second)
    look()
    assert [len(table) for _, table in moments] == [0, 1, 2, 3, 3, 3, 2]
    for at, table in moments:
        known = pipeline.query(
            f"SELECT {COLUMNS} FROM ohlc_5m_known WHERE valid_from <= %s AND coalesce(%s < valid_to, true) "
            "ORDER BY ticker, event_time",
            at,
            at,
        )
        assert known == table, at
    # At no instant were there two candles of one window.
    spans = pipeline.query(
        "SELECT ticker, event_time, valid_from, valid_to FROM ohlc_5m_known ORDER BY 1, 2, 3, 4"
    )
    for one, other in pairwise(spans):
        assert one[:2] != other[:2] or (one[3] is not None and one[3] <= other[2])


def test_the_page_names_every_column_of_coverage(pipeline: Pipeline) -> None:
    page = (Path(__file__).parents[2] / "docs" / "candles.md").read_text().split("`coverage_5m` has")[1]
    named = [
        name for row in re.findall(r"^\| ([^|]+) \|", page, re.MULTILINE) for name in row.split("`")[1::2]
    ]
    columns = pipeline.query(
        "SELECT column_name FROM information_schema.columns WHERE table_name = 'coverage_5m' "
        "ORDER BY ordinal_position"
    )
    assert named == [name for (name,) in columns]


# ── partitions ────────────────────────────────────────


def partitions(pipeline: Pipeline) -> set[str]:
    found = pipeline.query(
        "SELECT relname FROM pg_inherits JOIN pg_class ON oid = inhrelid WHERE relkind = 'r'"
    )
    return {name for (name,) in found}


def test_partitions_of_a_window_s_month_and_the_next_are_there(pipeline: Pipeline) -> None:
    # 1 March 00:00 in Seoul is still February in UTC, where coverage_5m is cut.
    window = Window.at(instant("2025-03-01 00:00:00"))
    made = ensure_partitions(pipeline.connection, window, SEOUL)
    assert set(made) == {
        *("ohlc_5m_ticker_2025_03", "ohlc_5m_ticker_2025_04"),
        *("orderbook_features_5m_2025_03", "orderbook_features_5m_2025_04"),
        *("coverage_5m_2025_02", "coverage_5m_2025_03"),
    }
    assert set(made) <= partitions(pipeline)
    assert ensure_partitions(pipeline.connection, window, SEOUL) == []


def test_partitions_are_made_ahead_of_time_once_and_by_two_at_once(
    tmp_path: Path, database: TestDatabase, pipeline: Pipeline
) -> None:
    # Connecting has made them already: without them it starts again.
    tables = PARTITIONED_BY_DATE + PARTITIONED_BY_INSTANT
    there = partitions(pipeline)
    months = [f"{datetime.now(SEOUL):%Y_%m}"]
    while len(months) <= MONTHS_AHEAD:
        year, month = map(int, months[-1].split("_"))
        months.append(f"{year + month // 12}_{month % 12 + 1:02d}")
    wanted = {f"{table}_{month}" for table in PARTITIONED_BY_DATE for month in months}
    assert wanted <= there
    for name in there:
        pipeline.connection.execute(f"DROP TABLE {name}")
    made: list[list[str]] = []

    def run() -> None:
        with connect(pipeline_settings(tmp_path, database)) as connection:
            made.append(make_partitions_ahead(connection, SEOUL))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == len(threads), "one of them failed"
    names = sorted(name for each in made for name in each)
    assert names == sorted(set(names)), "one was made twice"
    assert len(names) == len(tables) * (MONTHS_AHEAD + 1)
    assert set(names) == partitions(pipeline)
    assert make_partitions_ahead(pipeline.connection, SEOUL) == []
    # A row of the last month that was prepared finds its place.
    last = datetime(*map(int, months[-1].split("_")), 15, tzinfo=UTC)  # type: ignore[arg-type, misc]
    pipeline.connection.execute(
        "INSERT INTO coverage_5m (ticker, window_start, source, subscribed) VALUES ('BTC', %s, 'x', true)",
        (last,),
    )


def test_migrate_makes_the_tables_and_their_next_partitions_and_a_second_time_nothing(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {**database.environment, "SOURCE": "simulator"}.items():
        monkeypatch.setenv(name, value)
    commands.migrate()
    applied, made = capsys.readouterr().out.splitlines()
    assert applied.startswith("applied 0001_catalog.sql, ")
    tables = PARTITIONED_BY_DATE + PARTITIONED_BY_INSTANT
    assert len(made.removeprefix("made ").split(", ")) == len(tables) * (MONTHS_AHEAD + 1)
    commands.migrate()
    assert capsys.readouterr().out == "the schema is up to date\n"
