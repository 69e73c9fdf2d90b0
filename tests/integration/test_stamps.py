"""A stamp's way from the frame to the candle: the same instant in ms and in µs, in both formats."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from cryptostream_dagster.window import Window
from ingest_services.consumer.entries import read_record
from ingest_services.record import BOOK, Envelope, headers_of
from tests.lake_builder import LakeBuilder, Row, frame, instant, ms
from tests.pipeline import Pipeline, open_pipeline
from tests.postgres_fixture import TestDatabase

START = instant("2025-02-02 16:05:00")
WINDOW = Window.at(START)
T0 = ms(START)


@pytest.fixture
def pipeline(tmp_path: Path, database: TestDatabase) -> Iterator[Pipeline]:
    with open_pipeline(tmp_path, database) as opened:
        yield opened


def rows(unit: int, *, default_format: bool) -> list[Row]:
    """Return books at the edges of the window, their stamps in ms or in µs with a fraction of a ms."""
    return [
        Row(
            frame(
                "BTC",
                moment * unit + unit * 999 // 1000,
                [(101 + n, 99 + n, 1, 1)],
                default_format=default_format,
            ),
            (moment + 40) * 1000,
        )
        for n, moment in enumerate((T0 - 1, T0, T0 + 120_000, T0 + 299_999, T0 + 300_000))
    ]


@pytest.mark.parametrize("default_format", [False, True])
@pytest.mark.parametrize("unit", [1, 1000])
def test_a_candle_is_the_same_whatever_the_unit_and_the_format(
    pipeline: Pipeline, unit: int, default_format: bool
) -> None:
    lake: LakeBuilder = pipeline.lake
    given = rows(unit, default_format=default_format)
    commit = lake.commit(given)
    # Where the consumer puts them, and what it tells of them in the commit.
    entries = [
        read_record(0, n, 0, b"BTC", row.frame, headers_of(Envelope(BOOK, row.received_us, "c")))
        for n, row in enumerate(given)
    ]
    assert [entry.tms for entry in entries] == [T0 - 1, T0, T0 + 120_000, T0 + 299_999, T0 + 300_000]
    assert sorted({entry.minute_ms for entry in entries}) == sorted(f.minute_ms for f in commit.files)
    assert min(f.min_tms or 0 for f in commit.files) == T0 - 1
    assert max(f.max_tms or 0 for f in commit.files) == T0 + 300_000
    lake.through(WINDOW.end + timedelta(minutes=5))
    _, parquet, _ = pipeline.build(WINDOW)
    assert [(t.rows, t.duplicates, t.quarantined) for t in parquet.tickers] == [(3, 0, 0)]
    assert pipeline.query(
        "SELECT open_price, close_price, book_count, first_book_at, last_book_at FROM ohlc_5m_ticker"
    ) == [(101, 103, 3, START, START + timedelta(milliseconds=299_999))]
