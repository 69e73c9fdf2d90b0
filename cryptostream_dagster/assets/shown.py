"""Metadata that several assets show: where a window's objects are, and small tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit
from zoneinfo import ZoneInfo

from dagster import MetadataValue, TableMetadataValue, TableRecord

from cryptostream_dagster.window import Window

# Metadata lives in the event log for ever: a glance, not the table.
ROWS = 10


def raw_objects(url: str, window: Window, zone: ZoneInfo) -> MetadataValue[Any]:
    """Return where a window's raw objects are: a pattern that shells and `gcloud storage ls` understand."""
    start = window.local(zone)
    tens, first = divmod(start.minute, 10)
    minutes = f"minute={tens}[{first}-{first + 4}]"
    return _objects(url, f"ticker=*/{start:year=%Y/month=%m/day=%d/hour=%H}/{minutes}/*")


def parquet_objects(url: str, window: Window, zone: ZoneInfo) -> MetadataValue[Any]:
    """Return where a window's Parquet objects are, as a pattern."""
    start = window.local(zone)
    return _objects(url, f"ticker=*/{start:year=%Y/month=%m/day=%d/hour=%H}/*-{start:%Y%m%d%H%M}.parquet")


def table(rows: Iterable[Mapping[str, str | int | float | bool]]) -> TableMetadataValue:
    """Return the first rows as the UI shows a table; not empty."""
    return MetadataValue.table([TableRecord(row) for row, _ in zip(rows, range(ROWS), strict=False)])


def _objects(url: str, pattern: str) -> MetadataValue[Any]:
    if url.startswith("file://"):
        return MetadataValue.path(f"{unquote(urlsplit(url).path).rstrip('/')}/{pattern}")
    return MetadataValue.text(f"{url.rstrip('/')}/{pattern}")
