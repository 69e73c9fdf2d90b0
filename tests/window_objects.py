"""Windows' Parquet objects for tests, without a lake and a database: small, and of the declared schema."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq

from cryptostream_dagster.transforms.books import parquet_path
from cryptostream_dagster.transforms.daily import Part
from cryptostream_dagster.transforms.schema import Column, book_columns
from cryptostream_dagster.transforms.storage import Storage
from cryptostream_dagster.window import Window

SEOUL = ZoneInfo("Asia/Seoul")

_KINDS = {
    "string": pa.string(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "double": pa.float64(),
    "int32": pa.int32(),
    "int64": pa.int64(),
}


def write_window(
    parquet: Storage,
    window: Window,
    rows: int,
    *,
    ticker: str = "BTC",
    version: int = 1,
    depth: int = 1,
    zone: ZoneInfo = SEOUL,
) -> Part:
    """Write an object of `rows` books, of which the first is from before the window: a snapshot."""
    table = window_table(window, rows, ticker=ticker, version=version, depth=depth)
    digest = f"digest of {window.number} version {version}"
    metadata = {b"cryptostream.version": str(version), b"cryptostream.digest": digest}
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), sink, compression="zstd")
    data = sink.getvalue()
    path = parquet_path(ticker, window, zone)
    parquet.write(path, data)
    return Part(window, path, version, digest, rows, data.size)


def window_table(
    window: Window, rows: int, *, ticker: str = "BTC", version: int = 1, depth: int = 1
) -> pa.Table:
    """What `write_window` writes: prices tell the version, sizes the row; every third size is NULL."""
    step_ms = 300_000 // max(rows, 1)
    stamps = [window.start_ms - 60_000 if n == 0 else window.start_ms + n * step_ms for n in range(rows)]
    times = [datetime.fromtimestamp(stamp / 1000, UTC) for stamp in stamps]

    def values(column: Column) -> Sequence[Any]:
        match column.kind:
            case "string":
                return [{"market": f"KRW-{ticker}", "ticker": ticker}.get(column.name, column.name)] * rows
            case "timestamp":
                return times
            case "double":
                if "price" in column.name:
                    return [float(version)] * rows
                return [None if column.nullable and n % 3 == 2 else n + 0.1 for n in range(rows)]
            case _:
                return range(rows)

    columns = book_columns(depth)
    schema = pa.schema([pa.field(c.name, _KINDS[c.kind], nullable=c.nullable) for c in columns])
    return pa.table([pa.array(values(c), _KINDS[c.kind]) for c in columns], schema=schema)
