"""What the footers of a window's Parquet give away."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from cryptostream_dagster.transforms.contents import outside, read_footers, undeclared
from cryptostream_dagster.transforms.schema import arrow_schema, book_columns
from cryptostream_dagster.transforms.storage import open_storage
from cryptostream_dagster.window import Window

WINDOW = Window.at(datetime(2025, 2, 2, 7, 5, tzinfo=UTC))
IN = timedelta(minutes=2)
BEFORE = timedelta(minutes=-1)
AFTER = timedelta(minutes=5)
Row = tuple[str, timedelta, timedelta]


def write(folder: Path, rows: list[Row], change: Callable[[pa.Table], pa.Table] = lambda t: t) -> str:
    """Write an object of depth 1; of a row: type, when stamped, when received, from the start of WINDOW."""
    kinds: dict[str, Any] = {"string": "x", "double": 1.0, "int32": 0, "int64": 0}
    columns: dict[str, list[Any]] = {
        column.name: [kinds.get(column.kind)] * len(rows) for column in book_columns(1)
    }
    columns["stream_type"] = [kind for kind, _, _ in rows]
    columns["exchange_time"] = [WINDOW.start + stamped for _, stamped, _ in rows]
    columns["received_time"] = [WINDOW.start + received for _, _, received in rows]
    table = pa.table(columns, schema=arrow_schema(book_columns(1), {"cryptostream.depth": "1"}))
    pq.write_table(change(table), folder / "BTC-1.parquet")
    return "BTC-1.parquet"


def faults(folder: Path, name: str) -> tuple[list[str], list[str]]:
    storage = open_storage("PARQUET_URL", folder.as_uri())
    footers = read_footers(storage, [name])
    return undeclared(footers), outside(storage, footers, WINDOW)


def replaced(name: str, value: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        number = table.schema.get_field_index(name)
        values = [value, *table[name].to_pylist()[1:]]
        return table.set_column(
            number, table.schema.field(name), pa.array(values, table.schema.field(name).type)
        )

    return change


def test_an_object_that_is_as_declared_has_no_fault(tmp_path: Path) -> None:
    name = write(tmp_path, [("SNAPSHOT", BEFORE, IN), ("REALTIME", IN, AFTER)])
    assert faults(tmp_path, name) == ([], [])


@pytest.mark.parametrize(
    ("column", "value", "fault"),
    [
        ("bid_size1", -3.0, "bid_size1 is -3.0, not >= 0"),
        ("ask_price1", 0.0, "ask_price1 is 0.0, not > 0"),
        ("stream_type", "MADE_UP", "stream_type is MADE_UP, not REALTIME or SNAPSHOT"),
        ("offset", -1, "offset is -1, not >= 0"),
    ],
)
def test_a_value_beyond_its_bounds_is_named(tmp_path: Path, column: str, value: Any, fault: str) -> None:
    rows: list[Row] = [("REALTIME", IN, IN), ("REALTIME", IN, IN)]
    found, _ = faults(tmp_path, write(tmp_path, rows, replaced(column, value)))
    assert found == [f"BTC-1.parquet: {fault}"]


def test_null_is_no_value(tmp_path: Path) -> None:
    name = write(tmp_path, [("REALTIME", IN, IN)], replaced("ask_price1", None))
    assert faults(tmp_path, name) == ([], [])


def test_other_columns_than_the_declared_ones_are_a_fault(tmp_path: Path) -> None:
    def nullable(table: pa.Table) -> pa.Table:
        fields = [field.with_nullable(True) for field in table.schema]
        return table.cast(pa.schema(fields, table.schema.metadata))

    for change in (nullable, lambda table: table.drop_columns(["level"])):
        found, _ = faults(tmp_path, write(tmp_path, [("REALTIME", IN, IN)], change))
        assert found == ["BTC-1.parquet: has other columns than the declared ones"]


def test_what_is_no_parquet_of_ours_is_a_fault_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and then the power failed")
    for found in faults(tmp_path, "cut.parquet"):
        assert found[0].startswith("cut.parquet: cannot be read (")
    found, _ = faults(tmp_path, "gone.parquet")
    assert found[0].startswith("gone.parquet: cannot be read (")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    found, strays = faults(tmp_path, "other.parquet")
    assert found == ["other.parquet: does not say how deep its books are: no object of ours"]
    assert strays == ["other.parquet: no row, or no statistics"]


@pytest.mark.parametrize(
    ("rows", "strays"),
    [
        ([("REALTIME", IN, IN), ("REALTIME", AFTER, AFTER)], True),
        ([("REALTIME", BEFORE, IN)], True),
        ([("REALTIME", IN, AFTER)], False),  # delivered late
        ([("SNAPSHOT", BEFORE, IN)], False),  # a quiet book
        ([("SNAPSHOT", IN, AFTER)], True),
        # Both in one object: the footer cannot tell whose time is outside.
        ([("SNAPSHOT", BEFORE, IN), ("REALTIME", IN, AFTER)], False),
        ([("SNAPSHOT", BEFORE, IN), ("REALTIME", BEFORE, IN)], True),
        ([("SNAPSHOT", BEFORE, AFTER), ("REALTIME", IN, IN)], True),
    ],
)
def test_a_book_of_another_window_is_found(tmp_path: Path, rows: list[Row], strays: bool) -> None:
    _, found = faults(tmp_path, write(tmp_path, rows))
    assert bool(found) == strays
    if strays:
        assert found[0].startswith("BTC-1.parquet: stamped 2025-02-02 07:")
