"""Closed days in daily files: complete, in order, once, whatever is built again or killed in between."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cryptostream_dagster import client
from cryptostream_dagster import daily as steps
from cryptostream_dagster.catalog.days import find_days
from cryptostream_dagster.client import Client
from cryptostream_dagster.daily import DailyBuilt, daily_step
from cryptostream_dagster.day import Day
from cryptostream_dagster.definitions import build_defs
from cryptostream_dagster.resources import Platform
from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.steps import parquet_step
from cryptostream_dagster.transforms.daily import DayChangedError, DayWriter, daily_path
from cryptostream_dagster.transforms.parquet import read_books
from cryptostream_dagster.transforms.storage import Storage, open_storage
from cryptostream_dagster.warehouse.connection import connect
from cryptostream_dagster.window import Window
from ingest_services.errors import UserError
from tests.fake_gcs import FakeGcs
from tests.lake_builder import SEOUL, LakeBuilder, Row, frame, instant
from tests.pipeline import Pipeline, pipeline_settings
from tests.postgres_fixture import TestDatabase
from tests.window_objects import write_window

DAY = Day(date(2025, 2, 2), SEOUL)
# A short day: the lake began and the partitions start twenty minutes before midnight.
WINDOWS = list(DAY.windows())[-4:]
START = WINDOWS[0].start
TICKERS = ("BTC", "ETH")


def book(window: Window, seconds: float, mid: float, ticker: str = "BTC", **options: Any) -> Row:
    tms = window.start_ms + round(seconds * 1000)
    return Row(frame(ticker, tms, [(mid + 1, mid - 1, 1, 1)], **options), (tms + 50) * 1000)


class World(Pipeline):
    """A pipeline that begins shortly before a midnight, and its client."""

    def daily(self) -> DailyBuilt:
        return daily_step(self.connection, DAY, self.settings)

    def file(self, ticker: str) -> Path:
        return Path(str(self.settings.daily_root).removeprefix("file://")) / daily_path(ticker, DAY)

    def objects(self, ticker: str) -> pa.Table:
        """The day's windows, one after the other: what a daily file must be."""
        paths = self.query(
            "SELECT path FROM parquet_file WHERE ticker = %s AND path <> '' ORDER BY window_start", ticker
        )
        root = Path(self.settings.parquet_url.removeprefix("file://"))
        tables = [pq.ParquetFile(root / path).read() for (path,) in paths]
        return pa.concat_tables(tables, promote_options="default")

    def assert_file_is_its_windows(self, ticker: str) -> None:
        assert pq.ParquetFile(self.file(ticker)).read().equals(self.objects(ticker))

    def books(self, ticker: str = "BTC") -> pd.DataFrame:
        return Client(self.settings).books(ticker, DAY.start, DAY.end)

    def assert_client_sees_the_windows(self, ticker: str) -> None:
        expected = self.objects(ticker).to_pandas().set_index("exchange_time")
        expected["received_time"] = expected["received_time"].dt.tz_convert(SEOUL)
        pd.testing.assert_frame_equal(self.books(ticker), expected.tz_convert(SEOUL))

    def rebuild(self, window: Window, *rows: Row) -> None:
        """Late data, and the window built again."""
        self.lake.commit(rows)
        self.build(window)

    def state(self) -> Any:
        (found,) = find_days(self.connection, self.settings, DAY, DAY, DAY.end)
        return found

    @property
    def wants_writing(self) -> bool:
        return bool(self.state().digest != self.state().written_digest)


@pytest.fixture
def world(tmp_path: Path, database: TestDatabase) -> Iterator[World]:
    settings = pipeline_settings(
        tmp_path, database, partitions_start=f"{START.astimezone(SEOUL):%Y-%m-%dT%H:%M%z}"
    )
    lake = LakeBuilder(tmp_path / "raw", since=START)
    rows = [
        book(window, 60 * n, 100 + number + n, ticker)
        for number, window in enumerate(WINDOWS)
        for n in range(3)
        for ticker in TICKERS
        if ticker == "BTC" or number != 2
    ]
    # State from before its window: later in the file than what is stamped later.
    old = book(WINDOWS[0], 30, 99, stream_type="SNAPSHOT")
    rows.append(Row(old.frame, (WINDOWS[1].start_ms + 5) * 1000))
    lake.commit(rows)
    lake.through(DAY.end + timedelta(hours=1))
    with Platform(settings).connect() as connection:
        yield World(settings, lake, connection)


@pytest.fixture
def closed(world: World) -> World:
    for window in WINDOWS:
        world.build(window)
    return world


def test_a_closed_day_is_one_file_per_ticker_and_the_same_rows(closed: World) -> None:
    built = closed.daily()
    assert (built.windows, built.written) == (4, 2)
    assert [(file.ticker, file.rows) for file in built.files] == [("BTC", 13), ("ETH", 9)]
    for ticker in TICKERS:
        closed.assert_file_is_its_windows(ticker)
        closed.assert_client_sees_the_windows(ticker)
    stamps = closed.books().index
    assert not stamps.is_monotonic_increasing  # the snapshot
    assert not closed.wants_writing


def test_a_day_that_is_not_closed_is_refused_with_its_windows(world: World) -> None:
    for number in (1, 2):
        world.build(WINDOWS[number])
    with pytest.raises(UserError) as refused:
        world.daily()
    assert str(refused.value) == (
        "2025-02-02: 2 of its 4 windows have no Parquet: 23:40+0900, 23:55+0900; "
        "materialize orderbook_parquet of them first"
    )
    with pytest.raises(UserError, match="2025-02-01: has no window; the lake began later"):
        daily_step(world.connection, DAY.shifted(-1), world.settings)
    assert not world.file("BTC").exists()


def test_nothing_is_written_if_nothing_changed_and_only_what_is_lost_is_written_again(closed: World) -> None:
    first = closed.daily()
    before = {
        ticker: (closed.file(ticker).stat().st_mtime_ns, closed.file(ticker).read_bytes())
        for ticker in TICKERS
    }
    again = closed.daily()
    assert (again.digest, again.files, again.written) == (first.digest, first.files, 0)
    closed.file("BTC").write_bytes(b"")
    assert closed.daily().written == 1
    assert closed.file("BTC").read_bytes() == before["BTC"][1]
    assert closed.file("ETH").stat().st_mtime_ns == before["ETH"][0]


def test_a_late_window_is_seen_at_once_and_then_the_day_is_written_again(closed: World) -> None:
    closed.daily()
    old = closed.file("BTC").read_bytes()
    closed.rebuild(WINDOWS[2], book(WINDOWS[2], 99, 7), book(WINDOWS[2], 99, 8, "ETH"))
    assert closed.file("BTC").read_bytes() == old
    for ticker in TICKERS:  # of ETH there was no object of this window
        closed.assert_client_sees_the_windows(ticker)
    assert closed.wants_writing
    assert closed.daily().written == 2
    for ticker in TICKERS:
        closed.assert_file_is_its_windows(ticker)
    assert not closed.wants_writing


def test_no_books_are_read_twice_or_from_both_roots(closed: World, monkeypatch: pytest.MonkeyPatch) -> None:
    closed.daily()
    objects = Path(closed.settings.parquet_url.removeprefix("file://"))
    read: list[str] = []

    def spy(parquet: Storage, paths: list[str]) -> pa.Table:
        read.extend(Path(path).name for path in paths)
        return read_books(parquet, paths)

    monkeypatch.setattr(client, "read_books", spy)
    closed.assert_client_sees_the_windows("BTC")
    assert read == []
    closed.rebuild(WINDOWS[1], book(WINDOWS[1], 99, 7))
    closed.assert_client_sees_the_windows("BTC")
    assert read == ["BTC-202502022345.parquet"]
    # Either root alone has all of it: whoever globs one sees every row once.
    closed.daily()
    expected = closed.books()
    objects.rename(objects.with_name("elsewhere"))
    pd.testing.assert_frame_equal(closed.books(), expected)
    objects.with_name("elsewhere").rename(objects)
    closed.file("BTC").unlink()
    pd.testing.assert_frame_equal(closed.books(), expected)


def test_books_that_were_withdrawn_are_gone_at_once(closed: World) -> None:
    closed.daily()
    # A chain was closed over these: the catalog drops what lies beyond its end.
    closed.connection.execute(
        "DELETE FROM lake_file WHERE ticker = 'ETH' AND minute >= %s AND minute < %s",
        (WINDOWS[0].start, WINDOWS[0].end),
    )
    closed.build(WINDOWS[0])
    for ticker in TICKERS:
        closed.assert_client_sees_the_windows(ticker)
    assert len(closed.books("ETH")) == 6
    assert closed.wants_writing
    closed.daily()
    closed.assert_file_is_its_windows("ETH")
    # And of a ticker that has no row on the day any more there is no file.
    closed.connection.execute("DELETE FROM lake_file WHERE ticker = 'ETH'")
    for window in WINDOWS[1:]:
        closed.build(window)
    assert closed.books("ETH").empty
    closed.file("ETH").write_bytes(b"of a run that was under way")
    assert [file.ticker for file in closed.daily().files] == ["BTC"]
    assert not closed.file("ETH").exists()
    assert closed.query("SELECT ticker FROM daily_file") == [("BTC",)]


def test_parquet_that_was_written_again_by_force_is_in_the_file_again(closed: World) -> None:
    closed.daily()
    deeper = closed.settings.model_copy(update={"depth": 5})
    parquet_step(closed.connection, WINDOWS[1], deeper, force=True)
    closed.assert_client_sees_the_windows("BTC")
    assert closed.wants_writing
    assert closed.daily().written == 2
    closed.assert_file_is_its_windows("BTC")
    assert not closed.wants_writing


def test_two_runs_at_once_are_one(closed: World, monkeypatch: pytest.MonkeyPatch) -> None:
    write = DayWriter.write
    refusals: list[str] = []

    def while_another_tries(self: DayWriter, *arguments: Any) -> int:
        with connect(closed.settings) as other, pytest.raises(UserError) as refused:
            daily_step(other, DAY, closed.settings)
        refusals.append(str(refused.value))
        return write(self, *arguments)

    monkeypatch.setattr(DayWriter, "write", while_another_tries)
    assert closed.daily().written == 2
    assert set(refusals) == {"2025-02-02: another run is writing this day; it needs no second one"}
    # It is free again.
    with connect(closed.settings) as other:
        assert daily_step(other, DAY, closed.settings).written == 0


def test_a_day_that_moves_while_it_is_written_is_written_anew(
    closed: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = steps._finish

    def late(*arguments: Any) -> None:
        closed.rebuild(WINDOWS[0], book(WINDOWS[0], 222, 7))
        finish(*arguments)

    monkeypatch.setattr(steps, "_finish", late)
    with pytest.raises(DayChangedError, match="2025-02-02: a window was built again while"):
        closed.daily()
    monkeypatch.undo()
    assert closed.wants_writing
    closed.assert_client_sees_the_windows("BTC")
    assert closed.daily().written == 2
    closed.assert_file_is_its_windows("BTC")


def test_a_truncated_object_is_named_and_mending_it_mends_the_day(closed: World) -> None:
    root = Path(closed.settings.parquet_url.removeprefix("file://"))
    broken = next(root.rglob("BTC-202502022350.parquet"))
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(
        UserError, match=r"BTC-202502022350\.parquet: has 100 bytes, \d+ were recorded; mater"
    ):
        closed.daily()
    assert closed.wants_writing
    assert closed.parquet(WINDOWS[2]).written
    closed.daily()
    closed.assert_file_is_its_windows("BTC")


POINTS = ("before an object", "after an object", "after a record", "before the end", "in the end")


def crash_at(point: str, patch: pytest.MonkeyPatch) -> None:
    """Make the next step fail at a point, once."""

    def broken(owner: Any, name: str, *, after: bool) -> None:
        whole = getattr(owner, name)

        def failing(*arguments: Any, **options: Any) -> Any:
            if after:
                whole(*arguments, **options)
            raise ConnectionAbortedError(point)

        patch.setattr(owner, name, failing)

    match point:
        case "before an object":
            broken(DayWriter, "_put", after=False)
        case "after an object":
            broken(DayWriter, "_put", after=True)
        case "after a record":
            broken(steps, "_note_file", after=True)
        case "before the end":
            broken(steps, "_finish", after=False)
        case _:
            broken(Storage, "delete", after=True)


@pytest.mark.parametrize("seed", range(2))
def test_whatever_is_built_again_or_fails_the_file_becomes_its_windows(closed: World, seed: int) -> None:
    chance = random.Random(seed)
    told: list[str] = [f"seed {seed}"]
    for _ in range(12):
        match chance.choice(("late", "fail", "write", "lose")):
            case "late":
                window, ticker = chance.choice(WINDOWS), chance.choice(TICKERS)
                told.append(f"late {ticker} {window.start:%H:%M}")
                closed.rebuild(window, book(window, chance.uniform(0, 299), chance.randrange(50, 90), ticker))
            case "fail":
                point = chance.choice(POINTS)
                told.append(f"fail {point}")
                with pytest.MonkeyPatch.context() as patch:
                    crash_at(point, patch)
                    with suppress(ConnectionAbortedError):
                        closed.daily()
            case "write":
                told.append("write")
                closed.daily()
            case _:
                told.append("lose")
                closed.file(chance.choice(TICKERS)).unlink(missing_ok=True)
        try:
            for ticker in TICKERS:
                closed.assert_client_sees_the_windows(ticker)
            if not closed.wants_writing and told[-1] == "write":
                for ticker in TICKERS:
                    closed.assert_file_is_its_windows(ticker)
        except AssertionError as error:
            raise AssertionError(f"after {', '.join(told)}") from error
    closed.daily()
    for ticker in TICKERS:
        closed.assert_file_is_its_windows(ticker)
    assert closed.daily().written == 0, told


KILLED = """
import os, signal
from datetime import date
from cryptostream_dagster import client
from cryptostream_dagster import daily as steps
from cryptostream_dagster.day import Day
from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.transforms.daily import DayWriter
from cryptostream_dagster.warehouse.connection import connect

owner, name = {owner}, {name!r}
whole, calls = getattr(owner, name), []

def deadly(*arguments):
    calls.append(1)
    if {after}:
        whole(*arguments)
    if len(calls) >= {nth}:
        os.kill(os.getpid(), signal.SIGKILL)
    return None if {after} else whole(*arguments)

setattr(owner, name, deadly)
settings = PipelineSettings(_env_file=None)
steps.daily_step(connect(settings), Day(date(2025, 2, 2), settings.zone), settings)
"""


def test_kill_minus_nine_anywhere_leaves_what_the_next_run_ends(closed: World) -> None:
    given = closed.settings.model_dump(mode="json") | {
        "postgres_password": closed.settings.postgres_password.get_secret_value()
    }
    environment = {**os.environ, **{k.upper(): str(v) for k, v in given.items() if v is not None}}
    points = [
        ("DayWriter", "_put", True, 1, {2}),  # an object is there, and no record of it
        ("steps", "_finish", False, 1, {0}),  # all are, and the day is not recorded
    ]
    for number, (owner, name, after, nth, left) in enumerate(points):
        closed.rebuild(WINDOWS[number], book(WINDOWS[number], 250, 60 + number))
        code = KILLED.format(owner=owner, name=name, after=after, nth=nth)
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == -signal.SIGKILL, (name, done.stderr)
        for ticker in TICKERS:
            closed.assert_client_sees_the_windows(ticker)
        assert closed.wants_writing
        # The lock went with the process, and what was recorded is not written again.
        assert closed.daily().written in left
        for ticker in TICKERS:
            closed.assert_file_is_its_windows(ticker)


def test_every_day_has_its_state_in_one_look(world: World) -> None:
    world.seal(WINDOWS[0])  # the catalog knows when the lake began
    world.connection.execute(
        "INSERT INTO lake_window (window_start) SELECT generate_series(%s::timestamptz - interval '30 days', "
        "%s::timestamptz - interval '5 minutes', '5 minutes')",
        (START, START),
    )
    world.connection.execute(
        "INSERT INTO seal SELECT window_start, 1, md5(window_start::text), 0, 0, now(), 0, 0, 0, 0, 0, 0 "
        "FROM lake_window WHERE window_start < %s ON CONFLICT DO NOTHING",
        (START,),
    )
    world.connection.execute(
        "INSERT INTO built SELECT window_start, 'orderbook_parquet', 1, digest, now() FROM seal "
        "WHERE window_start < %s",
        (START,),
    )
    first = Day.at(START - timedelta(days=30), SEOUL)
    long = world.settings.model_copy(update={"partitions_start": f"{first}T00:00+0900"})
    states = find_days(world.connection, long, first, DAY, DAY.end)
    assert [state.date for state in states] == [first.shifted(n).date for n in range(31)]
    assert [state.windows for state in states] == [4, *[288] * 30]
    assert [state.missing for state in states] == [*[0] * 30, 4]
    assert states[-1].first_missing == tuple(WINDOWS)
    assert len({state.digest for state in states[:-1]}) == 30


def test_a_window_that_cannot_be_built_any_more_is_not_waited_for(world: World) -> None:
    for window in WINDOWS[1:]:
        world.build(window)
    assert not world.state().is_closed
    world.connection.execute("UPDATE lake_window SET gone_path = 'x' WHERE window_start = %s", (START,))
    assert world.daily().windows == 3
    world.connection.execute("UPDATE lake_window SET gone_path = NULL")
    expired = world.settings.model_copy(update={"raw_retention_days": 1})
    (state,) = find_days(world.connection, expired, DAY, DAY, WINDOWS[1].start + timedelta(days=1))
    assert state.is_closed
    # It came back: the day wants it.
    world.build(WINDOWS[0])
    assert world.wants_writing
    assert world.daily().windows == 4


def test_silence_and_windows_before_the_lake_close_a_day_as_they_are(world: World) -> None:
    # A lake with older history than its own beginning: what lies between was never anybody's.
    settings = world.settings.model_copy(update={"partitions_start": "2025-02-01T00:00+0900"})
    early = Window.at(instant("2025-02-02 10:00:00"))
    world.lake.commit([book(early, 1, 5)])
    pipeline = World(settings, world.lake, world.connection)
    for window in (early, *WINDOWS):
        pipeline.build(window)
    assert pipeline.daily().windows == 5
    pipeline.assert_file_is_its_windows("BTC")


def test_a_day_on_gcs_is_the_day_in_a_folder(
    tmp_path: Path, gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
    bucket = gcs.bucket()
    frames: list[pd.DataFrame] = []
    for root in (tmp_path.as_uri(), f"gs://{bucket}/p"):
        settings = PipelineSettings(_env_file=None, parquet_url=f"{root}/windows", daily_url=f"{root}/days")
        parquet, daily = open_storage("", f"{root}/windows"), open_storage("", f"{root}/days")
        parts = [write_window(parquet, window, 50) for window in list(DAY.windows())[:110]][:100]
        assert DayWriter(parquet, daily, group_rows=900).write("BTC", DAY, parts, {}) > 0
        # Some of these windows the file holds, some it does not, and one of them was built again.
        write_window(parquet, parts[90].window, 50, version=2)
        frames.append(Client(settings).books("BTC", parts[80].window.start, parts[99].window.shifted(10).end))
        assert len(frames[-1]) == 30 * 50 - 1  # the first window's snapshot is older
        assert frames[-1]["ask_price1"].value_counts().to_dict() == {1.0: 29 * 50 - 1, 2.0: 50}
        copied = PipelineSettings(_env_file=None, parquet_url=f"{root}/none", daily_url=f"{root}/days")
        assert len(Client(copied).books("BTC", DAY.start, DAY.end)) == 100 * 50 - 1
    pd.testing.assert_frame_equal(*frames)
    with pytest.raises(UserError, match=r"^gs://\S+/windows/.*BTC-202502020000\.parquet: is not there"):
        DayWriter(parquet, daily).write("ETH", DAY, parts, {})


class Location:
    """The code location and an instance, for a world."""

    def __init__(self, world: World, instance: dg.DagsterInstance) -> None:
        self.world, self.instance = world, instance
        self.defs = build_defs(world.settings)

    def tick(self) -> list[dg.RunRequest]:
        """What the schedule asks for once everything has been quiet for an hour."""
        self.world.connection.execute("UPDATE built SET built_at = built_at - interval '1 hour'")
        context = dg.build_schedule_context(
            instance=self.instance,
            resources={"platform": Platform(self.world.settings)},
            repository_def=self.defs.get_repository_def(),
        )
        return list(self.defs.resolve_schedule_def("closed_days").evaluate_tick(context).run_requests or [])

    def run(self, key: str = str(DAY)) -> dg.ExecuteInProcessResult:
        job = self.defs.resolve_job_def("build_days")
        return job.execute_in_process(instance=self.instance, partition_key=key, raise_on_error=False)


@pytest.fixture
def location(world: World, tmp_path: Path) -> Iterator[Location]:
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance:
        yield Location(world, instance)


def test_the_schedule_finds_days_that_were_missed_and_days_that_moved(location: Location) -> None:
    world = location.world
    for window in WINDOWS[:-1]:
        world.build(window)
    assert location.tick() == []
    # As if Dagster had been down for the rest of the year: the day is found by looking back.
    world.build(WINDOWS[-1])
    (request,) = location.tick()
    assert request.partition_key == "2025-02-02"
    assert request.tags["cryptostream/kind"] == "daily"
    assert location.tick() == []  # asked for a moment ago
    assert location.run().success
    assert location.tick() == []
    world.rebuild(WINDOWS[1], book(WINDOWS[1], 99, 7))
    (again,) = location.tick()
    assert (again.partition_key, again.run_key != request.run_key) == ("2025-02-02", True)
    assert location.run().success
    world.assert_file_is_its_windows("BTC")
    # A run that somebody started by hand is under way: none is asked for beside it.
    world.rebuild(WINDOWS[1], book(WINDOWS[1], 120, 7))
    by_hand = dg.DagsterRun(
        "build_days", tags={"dagster/partition": "2025-02-02"}, status=dg.DagsterRunStatus.STARTED
    )
    location.instance.add_run(by_hand)
    assert location.tick() == []
    location.instance.delete_run(by_hand.run_id)
    assert len(location.tick()) == 1


def test_a_run_tells_what_it_wrote_and_one_of_an_open_day_what_is_missing(location: Location) -> None:
    world = location.world
    graph = location.defs.resolve_asset_graph()
    days = graph.get(dg.AssetKey("orderbook_daily")).partitions_def
    windows = graph.get(dg.AssetKey("orderbook_parquet")).partitions_def
    mapping = graph.get_partition_mapping(dg.AssetKey("orderbook_daily"), dg.AssetKey("orderbook_parquet"))
    assert days is not None
    assert windows is not None
    needed = mapping.get_upstream_mapped_partitions_result_for_partitions(
        days.subset_with_partition_keys([str(DAY)]), days, windows
    )
    assert len(list(needed.partitions_subset.get_partition_keys())) == 4
    assert needed.required_but_nonexistent_subset.is_empty
    failed = location.run()
    assert not failed.success
    text = str(failed.failure_data_for_node("orderbook_daily"))
    assert "2025-02-02: has no window; the lake began later" in text
    for window in WINDOWS:
        world.build(window)
    assert location.run().success
    records = location.instance.fetch_materializations(
        dg.AssetRecordsFilter(dg.AssetKey("orderbook_daily"), asset_partitions=[str(DAY)]), limit=1
    ).records
    materialization = records[0].asset_materialization
    assert materialization is not None
    told = {name: value.value for name, value in materialization.metadata.items()}
    assert (told["dagster/row_count"], told["files"], told["windows"], told["written"]) == (22, 2, 4, 2)
    assert (materialization.tags or {})["dagster/data_version"] == told["digest"] == world.state().digest
