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
from dagster._core.test_utils import create_run_for_test

from cryptostream_dagster.definitions import build_defs
from cryptostream_dagster.jobs import RANGE_END_TAG, RANGE_START_TAG, RECONCILE, request_run
from cryptostream_dagster.pictures import MOST_BYTES
from cryptostream_dagster.questions import QUESTIONS
from cryptostream_dagster.sensors import MAX_IN_FLIGHT
from cryptostream_dagster.settings import PipelineSettings
from tests.dagster_world import KEYS, START, WINDOW, World, book, open_world
from tests.lake_builder import LakeBuilder, covered_minutes
from tests.postgres_fixture import TestDatabase

ROOT = Path(__file__).parents[2]


@pytest.fixture
def world(tmp_path: Path, database: TestDatabase) -> Iterator[World]:
    with open_world(tmp_path, database) as opened:
        yield opened


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
    # Where the objects are said to be, they are.
    assert len(list(Path("/").glob(raw["where"][1:]))) == raw["files"] == 3
    assert len(list(Path("/").glob(parquet["where"][1:]))) == parquet["objects"] == 2
    candles = world.materialization("ohlc_5m_ticker", KEYS[0])
    assert (candles["dagster/row_count"], candles["books"], candles["new"]) == (2, 3, 2)
    assert candles["data_version"] == raw["digest"]
    features = world.materialization("orderbook_features_5m", KEYS[0])
    assert (features["dagster/row_count"], features["depth_unknown"], features["new"]) == (2, 0, 2)
    assert features["data_version"] == raw["digest"]
    for name in ("picture_of_day", "picture_of_window"):
        assert candles[name].startswith("![BTC, the ")
        assert len(candles[name]) <= MOST_BYTES
    checks = result.get_asset_check_evaluations()
    assert len(checks) == len(QUESTIONS) + 1  # the verdict on the run
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
    # Nobody looks at each window of a backfill: its pictures are spared.
    assert "picture_of_day" not in world.materialization("ohlc_5m_ticker", KEYS[0])
    check = dg.AssetCheckKey(dg.AssetKey("ohlc_5m_ticker"), "books_have_candles")
    history = world.instance.event_log_storage.get_asset_check_execution_history(check, limit=20)
    assert {record.partition for record in history if record.status.value == "SUCCEEDED"} >= set(KEYS)


def test_a_window_that_cannot_be_complete_fails_with_who_is_behind(world: World) -> None:
    world.lake.commit([book(0, 100)])
    world.lake.through(WINDOW.end - timedelta(minutes=2))
    result = world.run(KEYS[0])
    assert not result.success
    text = str(result.failure_data_for_node("raw_orderbook"))
    assert "chain 1 (orderbook) partition 0: minutes_through 2025-02-02 16:08+0900, reported" in text
    assert "s ago" in text


def test_what_failed_for_want_of_completeness_is_asked_for_once_it_can_be_built(world: World) -> None:
    world.lake.commit([book(0, 100)])
    world.lake.through(WINDOW.end - timedelta(minutes=2))
    assert not world.run(KEYS[0]).success
    assert world.tick() == []  # it would fail again
    world.lake.through(WINDOW.end)
    (request,) = world.tick()
    assert request.partition_key == KEYS[0]
    assert world.run(KEYS[0]).success
    assert world.query("SELECT * FROM window_failure") == []
    told = set(world.materialization("raw_orderbook", KEYS[0]))
    assert told >= {"tickers", "dagster/row_count", "bytes", "files", "late_rows", "quarantined"}
    assert told >= {"coverage_mean", "coverage_min", "lag_s", "sealed_at", "version", "digest"}


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
        "import sys; from cryptostream_dagster.definitions import defs; print('imported', file=sys.stderr); "
        "slow = {'duckdb', 'pandas', 'pyarrow', 'psycopg', 'numpy', 'google.cloud.storage', 'kafka'}; "
        "print(bool(defs().assets), sorted(slow & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**environment, "POSTGRES_HOST": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["True", "[]"]
    # Said when they are loaded: a backfill of a local stack imports them, too, and lacks nothing.
    imported, _, loaded = done.stderr.partition("imported")
    assert imported == ""
    assert "POSTGRES_HOST, POSTGRES_USER, POSTGRES_DB not set" in loaded
    assert "Warning" not in done.stderr


def test_the_schedule_asks_for_the_window_that_just_ended(world: World) -> None:
    schedule = world.defs.resolve_schedule_def("live_window")

    def tick(when: datetime) -> Any:
        context = dg.build_schedule_context(
            instance=world.instance,
            scheduled_execution_time=when,
            repository_def=world.defs.get_repository_def(),
        )
        return schedule.evaluate_tick(context)

    (request,) = tick(datetime(2025, 2, 2, 7, 10, tzinfo=UTC)).run_requests or []
    assert request.partition_key == KEYS[0]
    assert request.tags["dagster/priority"] == "10"
    # The window before the first one that there is has no partition.
    before = tick(world.settings.first_window)
    assert (before.run_requests or []) == []
    assert before.skip_message == "2025-01-31T23:55+0900 is before PARTITIONS_START=2025-02-01T00:00+0900"


def test_the_sensor_builds_what_is_complete_once_and_again_when_it_grew(world: World) -> None:
    world.lake.commit([book(0, 100), book(300, 110), book(3600, 120)])
    assert world.tick() == []  # nothing is complete yet
    world.lake.through(WINDOW.shifted(2).start)
    (request,) = world.tick()
    assert request.tags[RANGE_END_TAG] == KEYS[1]
    # What the list of runs shows of a range.
    assert request.tags["cryptostream/windows"] == f"{KEYS[0]} to {KEYS[1]}"
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


def test_windows_that_are_not_complete_hold_up_none_that_is_however_many_they_are(world: World) -> None:
    """A consumer is dead for days while the others go on, and Dagster was not there before."""
    world.lake.commit([book(0, 100)])
    world.lake.through(WINDOW.end)
    world.query(
        "INSERT INTO lake_window (window_start, rows, revision) SELECT start, 1, 1 FROM generate_series("
        f"'{WINDOW.end}'::timestamptz, '{WINDOW.shifted(1001).start}', '5 minutes') AS start RETURNING 1"
    )
    assert [request.partition_key for request in world.tick()] == [KEYS[0]]


def test_the_sensor_has_two_runs_under_way_at_most(world: World) -> None:
    world.lake.commit([book(0, 100)])
    world.lake.through(WINDOW.end)
    elsewhere = request_run(RECONCILE, "key", KEYS[2], KEYS[2]).tags
    for _ in range(MAX_IN_FLIGHT):
        run = create_run_for_test(
            world.instance, job_name="build_windows", status=dg.DagsterRunStatus.STARTED, tags=elsewhere
        )
    assert world.tick() == []
    world.instance.report_run_canceled(run)
    assert [request.partition_key for request in world.tick()] == [KEYS[0]]


def test_the_sensor_tries_again_what_failed(world: World) -> None:
    world.lake.commit([book(0, 100)])
    world.lake.through(WINDOW.end)
    (first,) = world.tick()
    with world.platform.connect() as connection:
        connection.execute("UPDATE lake_window SET requested_at = now() - interval '1 minute'")
    (again,) = world.tick()
    assert first.partition_key == again.partition_key == KEYS[0]
    assert first.run_key != again.run_key


def test_another_sources_lake_is_refused(world: World, tmp_path: Path) -> None:
    world.lake.through(WINDOW.end)
    settings = world.settings.model_copy(update={"source": "upbit"})
    job = build_defs(settings).resolve_job_def("build_windows")
    result = job.execute_in_process(instance=world.instance, partition_key=KEYS[0], raise_on_error=False)
    assert "holds data of source simulator" in str(result.failure_data_for_node("raw_orderbook"))
