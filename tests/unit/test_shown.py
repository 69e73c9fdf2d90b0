from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import dagster as dg

from cryptostream_dagster.assets.shown import ROWS, parquet_objects, raw_objects, table
from cryptostream_dagster.window import Window

WINDOW = Window.at(datetime(2025, 2, 2, 7, 55, tzinfo=UTC))
ZONE = ZoneInfo("Asia/Seoul")


def test_where_objects_are_is_a_path_here_and_an_address_in_the_cloud() -> None:
    day = "year=2025/month=02/day=02/hour=16"
    raw = raw_objects("gs://bucket/orderbook", WINDOW, ZONE)
    assert raw == dg.MetadataValue.text(f"gs://bucket/orderbook/ticker=*/{day}/minute=5[5-9]/*")
    parquet = parquet_objects("file:///a%20b/parquet", WINDOW, ZONE)
    assert parquet == dg.MetadataValue.path(f"/a b/parquet/ticker=*/{day}/*-202502021655.parquet")


def test_a_table_is_a_glance() -> None:
    assert len(table({"n": n} for n in range(1000)).value.records) == ROWS
