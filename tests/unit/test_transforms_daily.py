"""A daily file is its windows' objects, one after the other, and says which ones."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cryptostream_dagster.day import Day
from cryptostream_dagster.transforms import daily as module
from cryptostream_dagster.transforms.daily import (
    DayChangedError,
    DayReader,
    DayWriter,
    Part,
    daily_path,
    where_rows_are,
    window_stamps,
)
from cryptostream_dagster.transforms.storage import open_storage
from ingest_services.errors import UserError
from tests.window_objects import SEOUL, window_table, write_window

DAY = Day(date(2025, 2, 2), SEOUL)
WINDOWS = list(DAY.windows())


class Roots:
    """Two roots, and a writer with small row groups."""

    def __init__(self, folder: Path) -> None:
        self.parquet = open_storage("PARQUET_URL", (folder / "parquet").as_uri())
        self.daily = open_storage("DAILY_URL", (folder / "daily").as_uri())
        self.writer = DayWriter(self.parquet, self.daily, group_rows=100)

    def write(self, parts: list[Part], day: Day = DAY) -> pq.ParquetFile:
        size = self.writer.write("BTC", day, parts, {"digest": "of the day"})
        path = Path(self.daily.locate(daily_path("BTC", day)))
        assert path.stat().st_size == size
        return pq.ParquetFile(path)

    def reader(self, day: Day = DAY) -> DayReader:
        reader = DayReader.open(self.daily, "BTC", day)
        assert reader is not None
        return reader


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    return Roots(tmp_path)


def test_it_is_the_rows_of_its_windows_in_their_own_order_and_schema(roots: Roots) -> None:
    rows = {0: 7, 1: 130, 5: 1, 6: 60, 287: 60}
    parts = [write_window(roots.parquet, WINDOWS[n], count) for n, count in rows.items()]
    written = roots.write(parts)
    expected = pa.concat_tables(window_table(WINDOWS[n], count) for n, count in rows.items())
    table = written.read()
    assert table.equals(expected)
    assert table.schema.equals(expected.schema, check_metadata=False)
    assert daily_path("BTC", DAY) == "ticker=BTC/year=2025/month=02/BTC-20250202.parquet"
    # A window lies in one row group, and each group tells from when to when it is.
    groups = [written.metadata.row_group(n) for n in range(written.num_row_groups)]
    assert [group.num_rows for group in groups] == [137, 121]
    assert all(group.column(2).statistics.has_min_max for group in groups)
    assert written.metadata.row_group(0).column(2).path_in_schema == "exchange_time"


def test_it_says_which_versions_it_was_made_from(roots: Roots) -> None:
    parts = [write_window(roots.parquet, WINDOWS[n], 3, version=n + 1) for n in (0, 2)]
    metadata = roots.write(parts).schema_arrow.metadata
    assert metadata[b"cryptostream.digest"] == b"of the day"
    assert metadata[b"cryptostream.day"] == b"2025-02-02"
    assert metadata[b"cryptostream.day_start"] == b"2025-02-01T15:00:00+00:00"
    held = roots.reader().held
    assert {window: (one.version, one.first_row, one.rows) for window, one in held.items()} == {
        WINDOWS[0]: (1, 0, 3),
        WINDOWS[2]: (3, 3, 3),
    }
    stamps = window_stamps(roots.parquet, "BTC", DAY)
    assert [held[part.window].stamp for part in parts] == [stamps[part.path] for part in parts]


def test_reading_five_minutes_reads_one_row_group(roots: Roots, monkeypatch: pytest.MonkeyPatch) -> None:
    roots.write([write_window(roots.parquet, window, 60) for window in WINDOWS[:40]])
    asked: list[list[int]] = []
    read = pq.ParquetFile.read_row_groups

    def count(self: pq.ParquetFile, groups: list[int], **options: Any) -> pa.Table:
        asked.append(groups)
        return read(self, groups, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", count)
    reader = roots.reader()
    for number in (0, 17, 39):
        assert reader.read(WINDOWS[number], WINDOWS[number]).equals(window_table(WINDOWS[number], 60))
    assert asked == [[0], [8], [19]]
    across = pa.concat_tables(window_table(window, 60) for window in WINDOWS[3:8])
    assert reader.read(WINDOWS[3], WINDOWS[7]).equals(across)


def test_columns_that_came_in_the_course_of_the_day_are_null_before(roots: Roots) -> None:
    depths = {0: 1, 1: 5, 2: 1}
    parts = [write_window(roots.parquet, WINDOWS[n], 150, depth=depth) for n, depth in depths.items()]
    table = roots.write(parts).read()
    assert table.schema.names == window_table(WINDOWS[1], 1, depth=5).schema.names
    for number, depth in depths.items():
        mine = table.slice(150 * number, 150)
        expected = window_table(WINDOWS[number], 150, depth=depth)
        assert mine.select(expected.schema.names).equals(expected)
        if depth == 1:
            assert mine["ask_price5"].null_count == 150


def test_a_day_on_which_an_hour_comes_twice_has_both(roots: Roots) -> None:
    day = Day(date(2025, 11, 2), ZoneInfo("America/New_York"))
    parts = [write_window(roots.parquet, window, 2, zone=day.zone) for window in day.windows()]
    assert roots.write(parts, day).read().num_rows == 600
    assert len(roots.reader(day).held) == 300


def test_what_the_folders_are_called_is_no_data(tmp_path: Path) -> None:
    roots = Roots(tmp_path / "market=elsewhere" / "partition=9")
    table = roots.write([write_window(roots.parquet, window, 2) for window in WINDOWS[:2]]).read()
    assert table.equals(pa.concat_tables(window_table(window, 2) for window in WINDOWS[:2]))


def test_an_object_that_is_not_the_recorded_one_is_named(roots: Roots) -> None:
    parts = [write_window(roots.parquet, window, 3) for window in WINDOWS[:2]]
    file = Path(roots.parquet.locate(parts[1].path))
    whole = file.read_bytes()
    file.unlink()
    with pytest.raises(UserError, match=r"BTC-202502020005\.parquet: is not there; materialize"):
        roots.write(parts)
    file.write_bytes(whole[:-9])
    with pytest.raises(UserError, match=r"0005\.parquet: has \d+ bytes, \d+ were recorded"):
        roots.write(parts)
    file.write_bytes(b"x" * len(whole))
    with pytest.raises(UserError, match=r"0005\.parquet: is no Parquet"):
        roots.write(parts)
    # Nothing half-written in any case, not even the temporary file.
    assert list(Path(roots.daily.root).rglob("*")) == []


@pytest.mark.parametrize("moment", ["before it is read", "while it is read", "after it was read"])
def test_a_window_that_is_built_again_meanwhile_stops_the_day(
    roots: Roots, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [write_window(roots.parquet, window, 120) for window in WINDOWS[:3]]
    groups = module._groups

    def rebuild() -> None:
        # The same size, so that only the stamp and the metadata can tell.
        again = write_window(roots.parquet, WINDOWS[1], 120, version=2)
        assert again.bytes == parts[1].bytes

    def disturbed(*arguments: Any) -> Any:
        for number, group in enumerate(groups(*arguments)):
            if number == {"while it is read": 1, "after it was read": 2}.get(moment):
                rebuild()
            yield group

    monkeypatch.setattr(module, "_groups", disturbed)
    if moment == "before it is read":
        rebuild()
    with pytest.raises(DayChangedError, match="built again"):
        roots.write(parts)
    assert not (Path(roots.daily.root) / daily_path("BTC", DAY)).exists()


def test_each_window_is_read_from_one_place(roots: Roots) -> None:
    parts = [write_window(roots.parquet, window, 5) for window in WINDOWS[:6]]
    roots.write(parts)

    def pieces() -> list[object]:
        stamps = window_stamps(roots.parquet, "BTC", DAY)
        return [
            piece if isinstance(piece, str) else tuple(WINDOWS.index(window) for window in piece)
            for piece in where_rows_are("BTC", WINDOWS[:8], roots.reader(), stamps, SEOUL)
        ]

    assert pieces() == [(0, 5)]
    # Built again, even into as many bytes: the object. Never there before: the object. Gone: the file.
    assert write_window(roots.parquet, WINDOWS[2], 5, version=2).bytes == parts[2].bytes
    new = write_window(roots.parquet, WINDOWS[7], 5).path
    Path(roots.parquet.locate(parts[5].path)).unlink()
    assert pieces() == [(0, 1), parts[2].path, (3, 5), new]
    # An object that was only touched is read, too: it cannot be told from one that was built again.
    os.utime(roots.parquet.locate(parts[0].path))
    assert pieces() == [parts[0].path, (1, 1), parts[2].path, (3, 5), new]
    assert where_rows_are("BTC", WINDOWS[:1], None, {}, SEOUL) == []


def test_a_file_that_is_no_daily_file_is_named(roots: Roots) -> None:
    assert DayReader.open(roots.daily, "BTC", DAY) is None
    path = Path(roots.daily.locate(daily_path("BTC", DAY)))
    path.parent.mkdir(parents=True)
    pq.write_table(window_table(WINDOWS[0], 1), path)
    with pytest.raises(UserError, match=r"BTC-20250202\.parquet: is no daily file of ours"):
        DayReader.open(roots.daily, "BTC", DAY)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"BTC-20250202\.parquet: .*; materialize orderbook_daily"):
        DayReader.open(roots.daily, "BTC", DAY)
