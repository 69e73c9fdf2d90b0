from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from cryptostream_dagster.checks import QUESTIONS, ask
from cryptostream_dagster.definitions import build_defs
from cryptostream_dagster.jobs import RANGE_END_TAG, RANGE_START_TAG
from cryptostream_dagster.partitions import window_partitions
from cryptostream_dagster.resources import Platform
from cryptostream_dagster.sensors import windows_of_runs
from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.window import Window
from tests.lake_builder import LakeBuilder, Row, covered_minutes, frame, heartbeat, instant, ms
from tests.pipeline import pipeline_settings
from tests.postgres_fixture import TestDatabase

START = instant("2025-02-02 16:05:00")
WINDOW = Window.at(START)
KEYS = ["2025-02-02T16:05+0900", "2025-02-02T16:10+0900", "2025-02-02T16:15+0900"]
ASSETS = ("raw_orderbook", "orderbook_parquet", "ohlc_5m_ticker")
ROOT = Path(__file__).parents[2]


def book(seconds: float, mid: float, ticker: str = "BTC") -> Row:
    tms = ms(START) + round(seconds * 1000)
    return Row(frame(ticker, tms, [(mid + 1, mid - 1, 1, 1)]), (tms + 50) * 1000)


class World:
    """A Dagster instance on a folder of its own, a lake and a database."""

    def __init__(self, folder: Path, settings: PipelineSettings, instance: dg.DagsterInstance) -> None:
        self.settings = settings
        self.lake = LakeBuilder(folder / "raw", since=START)
        self.instance = instance
        self.defs = build_defs(settings)
        self.platform = Platform(settings)
        self.partitions = window_partitions(settings)

    def run(self, first: str, last: str | None = None) -> dg.ExecuteInProcessResult:
        job = self.defs.resolve_job_def("build_windows")
        if last is None:
            return job.execute_in_process(instance=self.instance, partition_key=first, raise_on_error=False)
        tags = {RANGE_START_TAG: first, RANGE_END_TAG: last}
        return job.execute_in_process(instance=self.instance, tags=tags, raise_on_error=False)

    def materialization(self, asset: str, key: str) -> dict[str, Any]:
        records = self.instance.fetch_materializations(
            dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[key]), limit=1
        ).records
        materialization = records[0].asset_materialization
        assert materialization is not None
        version = (materialization.tags or {})["dagster/data_version"]
        return {"data_version": version, **{k: v.value for k, v in materialization.metadata.items()}}

    def query(self, text: str) -> list[tuple[Any, ...]]:
        with self.platform.connect() as connection:
            return connection.execute(text).fetchall()  # type: ignore[arg-type]

    def tick(self) -> list[dg.RunRequest]:
        sensor = self.defs.resolve_sensor_def("reconcile")
        context = dg.build_sensor_context(
            instance=self.instance, definitions=self.defs, resources={"platform": self.platform}
        )
        return list(sensor.evaluate_tick(context).run_requests or [])


@pytest.fixture
def world(tmp_path: Path, database: TestDatabase) -> Iterator[World]:
    home = tmp_path / "dagster"
    home.mkdir()
    settings = pipeline_settings(tmp_path, database, schedule_grace_s=0)
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        yield World(tmp_path, settings, instance)


def test_the_graph_is_what_the_design_says(world: World) -> None:
    graph = world.defs.resolve_asset_graph()
    keys = {asset: dg.AssetKey(asset) for asset in ASSETS}
    assert set(graph.get_all_asset_keys()) == set(keys.values())
    assert graph.get(keys["orderbook_parquet"]).parent_keys == {keys["raw_orderbook"]}
    assert graph.get(keys["ohlc_5m_ticker"]).parent_keys == {keys["orderbook_parquet"]}
    nodes = [graph.get(key) for key in keys.values()]
    assert {node.group_name for node in nodes} == {"orderbook"}
    assert {node.partitions_def for node in nodes} == {world.partitions}
    assert len({node.backfill_policy for node in nodes}) == 1
    assert all(node.description and node.owners for node in nodes)
    assert {check.name for check in graph.asset_check_keys} == {
        "offsets_contiguous",
        "listened",
        "rows_add_up",
        "prices_in_order",
        "books_have_candles",
    }
    assert world.defs.resolve_schedule_def("live_window").default_status == dg.DefaultScheduleStatus.RUNNING
    assert world.defs.resolve_sensor_def("reconcile").default_status == dg.DefaultSensorStatus.RUNNING


def test_a_run_materializes_a_window_with_metadata_and_passing_checks(world: World) -> None:
    rows = [book(0, 100), book(60, 110), book(60, 110), book(9, 5, "ETH")]
    world.lake.commit(rows, covered_minutes(START, 5, "BTC"))
    world.lake.through(WINDOW.end)
    result = world.run(KEYS[0])
    assert result.success
    raw = world.materialization("raw_orderbook", KEYS[0])
    assert (raw["tickers"], raw["dagster/row_count"], raw["files"], raw["coverage_mean"]) == (2, 4, 3, 1.0)
    assert raw["data_version"] == raw["digest"]
    parquet = world.materialization("orderbook_parquet", KEYS[0])
    assert (parquet["sealed_rows"], parquet["dagster/row_count"], parquet["duplicates"]) == (4, 3, 1)
    candles = world.materialization("ohlc_5m_ticker", KEYS[0])
    assert (candles["dagster/row_count"], candles["books"], candles["new"]) == (2, 3, 2)
    assert candles["data_version"] == raw["digest"]
    checks = result.get_asset_check_evaluations()
    assert len(checks) == 5
    assert all(check.passed for check in checks)
    assert world.query("SELECT ticker, close_price FROM ohlc_5m_ticker ORDER BY 1") == [
        ("BTC", 110),
        ("ETH", 5),
    ]


def test_a_ranged_run_tells_each_window_apart(world: World) -> None:
    world.lake.commit([book(0, 100), book(300, 110), book(301, 120), book(600, 130)])
    world.lake.through(START + timedelta(hours=1))
    assert world.run(KEYS[0], KEYS[2]).success
    assert [world.materialization("ohlc_5m_ticker", key)["books"] for key in KEYS] == [1, 2, 1]
    assert len({world.materialization("raw_orderbook", key)["digest"] for key in KEYS}) == 3
    check = dg.AssetCheckKey(dg.AssetKey("ohlc_5m_ticker"), "books_have_candles")
    history = world.instance.event_log_storage.get_asset_check_execution_history(check, limit=20)
    assert {record.partition for record in history if record.status.value == "SUCCEEDED"} >= set(KEYS)


def test_a_check_fails_when_its_promise_is_broken(world: World) -> None:
    world.lake.commit([book(0, 100)])
    world.lake.through(WINDOW.end)
    assert world.run(KEYS[0]).success
    with world.platform.connect() as connection:
        connection.execute("UPDATE ohlc_5m_ticker SET low_price = 200")
        connection.execute("UPDATE coverage_5m SET book_count = 7")
        connection.execute("UPDATE parquet_file SET duplicates = 3")
        connection.execute("UPDATE lake_commit SET missing = 2")
        results = {question.name: ask(connection, question, WINDOW) for question in QUESTIONS}
    assert results == {
        "offsets_contiguous": (2, "chain 1 partition 0: 2 offsets"),
        "listened": (0, "unknown: no heartbeat is that old"),
        "rows_add_up": (3, "sealed 1, accounted for -2"),
        "prices_in_order": (1, "BTC"),
        "books_have_candles": (1, "BTC"),
    }


def test_a_window_in_which_too_little_was_listened_to_warns_and_names_the_worst(world: World) -> None:
    beats = covered_minutes(WINDOW.end, 5, *(f"T{n}" for n in range(200)))
    beats.append(heartbeat(WINDOW.end, WINDOW.end + timedelta(minutes=1), "BTC", section="upbit_producer2"))
    world.lake.commit([book(0, 100), book(301, 100)], beats)
    world.lake.through(START + timedelta(hours=1))
    evaluations = []
    for key in KEYS:
        result = world.run(key)
        assert result.success  # a warning, not an error
        evaluations += [e for e in result.get_asset_check_evaluations() if e.check_name == "listened"]
    assert [(e.passed, e.severity) for e in evaluations] == [
        (passed, dg.AssetCheckSeverity.WARN) for passed in (True, True, False)
    ]
    unknown, well, silent = (e.metadata.get("detail") for e in evaluations)
    assert unknown is not None
    assert unknown.value == "unknown: no heartbeat is that old"
    assert well is None  # one of 201 tickers has 0.2: the mean is 0.996
    assert silent is not None
    assert str(silent.value).startswith("mean coverage 0; worst: BTC 0, T0 0, ")
    assert evaluations[2].metadata["violations"].value == 201


def test_a_window_that_cannot_be_complete_fails_with_who_is_behind(world: World) -> None:
    world.lake.commit([book(0, 100)])
    world.lake.through(WINDOW.end - timedelta(minutes=2))
    result = world.run(KEYS[0])
    assert not result.success
    text = str(result.failure_data_for_node("raw_orderbook"))
    assert "chain 1 partition 0: minutes_through 2025-02-02 07:08 UTC, reported" in text
    assert "s ago" in text


def test_missing_settings_fail_a_run_with_the_sentence_that_loading_logged(
    tmp_path: Path, database: TestDatabase
) -> None:
    settings = PipelineSettings(
        _env_file=None,
        raw_url=(tmp_path / "raw").as_uri(),
        source="simulator",
        partitions_start="2025-02-01T00:00+0900",
    )
    LakeBuilder(tmp_path / "raw")
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        job = build_defs(settings).resolve_job_def("build_windows")
        result = job.execute_in_process(instance=instance, partition_key=KEYS[0], raise_on_error=False)
        assert settings.missing is not None
        assert settings.missing in str(result.failure_data_for_node("raw_orderbook"))


def test_definitions_load_with_no_settings_at_all_and_quickly_enough() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("POSTGRES")}
    code = (
        "import sys; from cryptostream_dagster.definitions import defs; "
        "slow = {'duckdb', 'pandas', 'pyarrow', 'psycopg', 'numpy', 'google.cloud.storage', 'kafka'}; "
        "print(sorted(slow & set(sys.modules)), len(defs.assets))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**environment, "POSTGRES_HOST": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["[]", "3"]
    assert "POSTGRES_HOST, POSTGRES_USER, POSTGRES_DB not set" in done.stderr
    assert "Warning" not in done.stderr


def test_the_schedule_asks_for_the_window_that_just_ended(world: World) -> None:
    schedule = world.defs.resolve_schedule_def("live_window")
    when = datetime(2025, 2, 2, 7, 10, tzinfo=UTC)
    context = dg.build_schedule_context(
        instance=world.instance,
        scheduled_execution_time=when,
        repository_def=world.defs.get_repository_def(),
    )
    (request,) = schedule.evaluate_tick(context).run_requests or []
    assert request.partition_key == KEYS[0]
    assert request.tags["dagster/priority"] == "10"


def test_the_sensor_builds_what_is_complete_once_and_again_when_it_grew(world: World) -> None:
    world.lake.commit([book(0, 100), book(300, 110), book(3600, 120)])
    assert world.tick() == []  # nothing is complete yet
    world.lake.through(WINDOW.shifted(2).start)
    (request,) = world.tick()
    assert request.tags[RANGE_END_TAG] == KEYS[1]
    # Asked for and not finished: neither the run nor the pause after it allows another.
    assert world.tick() == []
    assert world.run(request.tags[RANGE_START_TAG], request.tags[RANGE_END_TAG]).success
    assert world.tick() == []
    world.lake.commit([book(30, 105)])
    (request,) = world.tick()
    assert request.partition_key == KEYS[0]
    assert world.run(KEYS[0]).success
    assert world.query("SELECT version FROM ohlc_5m_ticker ORDER BY event_time") == [(2,), (1,)]
    assert world.tick() == []


def test_the_sensor_tries_again_what_failed(world: World) -> None:
    world.lake.commit([book(0, 100)])
    world.lake.through(WINDOW.end)
    (first,) = world.tick()
    with world.platform.connect() as connection:
        connection.execute("UPDATE lake_window SET requested_at = now() - interval '1 minute'")
    (again,) = world.tick()
    assert first.partition_key == again.partition_key == KEYS[0]
    assert first.run_key != again.run_key


def test_windows_in_flight_are_read_from_the_runs_tags(world: World) -> None:
    tags = [
        {"dagster/partition": KEYS[0]},
        {RANGE_START_TAG: KEYS[1], RANGE_END_TAG: KEYS[2]},
        {"dagster/partition": "of another job"},
        {},
    ]
    assert windows_of_runs(tags, world.partitions) == {WINDOW.shifted(n) for n in range(3)}


def test_another_sources_lake_is_refused(world: World, tmp_path: Path) -> None:
    world.lake.through(WINDOW.end)
    settings = world.settings.model_copy(update={"source": "upbit"})
    job = build_defs(settings).resolve_job_def("build_windows")
    result = job.execute_in_process(instance=world.instance, partition_key=KEYS[0], raise_on_error=False)
    assert "holds data of source simulator" in str(result.failure_data_for_node("raw_orderbook"))
