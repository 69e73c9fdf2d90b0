"""Old runs of Dagster's go; what they materialized stays, on the storage that production has."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.storage.partition_status_cache import get_and_update_asset_status_cache_value

from cryptostream_dagster import run_retention
from cryptostream_dagster.run_retention import forget_runs
from tests.dagster_world import KEYS, START, WINDOW, World, book, open_postgres_world
from tests.lake_builder import covered_minutes
from tests.postgres_fixture import TestDatabase

ASSETS = ("raw_orderbook", "orderbook_parquet", "ohlc_5m_ticker")
KEEP = timedelta(days=14)
LONG_AGO = timedelta(days=40)


@pytest.fixture
def world(tmp_path: Path, database: TestDatabase) -> Iterator[World]:
    with open_postgres_world(tmp_path, database) as opened:
        yield opened


def shown(world: World) -> dict[str, Any]:
    """What the UI shows of partitions: from its cache, from scratch, and the records behind it."""
    graph = world.defs.resolve_asset_graph()
    found: dict[str, Any] = {}
    for asset in ASSETS:
        key = dg.AssetKey(asset)
        for cache in ("as cached", "from scratch"):
            if cache == "from scratch":
                world.instance.wipe_asset_cached_status([key])
            get_and_update_asset_status_cache_value(world.instance, key, world.partitions)
            found[f"{asset} {cache}"] = world.instance.get_status_by_partition(key, KEYS, world.partitions)
        records = world.instance.fetch_materializations(key, limit=100).records
        found[asset] = [
            (
                record.storage_id,
                record.timestamp,
                record.partition_key,
                record.asset_materialization,  # metadata and tags, the data version among them
            )
            for record in records
        ]
        found[f"{asset} tags"] = [
            world.instance.event_log_storage.get_event_tags_for_asset(key, {"dagster/partition": k})
            for k in KEYS
        ]
    checks = list(graph.asset_check_keys)
    found["checks"] = [
        (info.check_key, info.partition_key, info.latest_execution_status, info.is_current)
        for info in world.instance.event_log_storage.get_asset_check_partition_info(checks)
    ]
    return found


def age(world: World, *run_ids: str) -> None:
    then = datetime.now(UTC).replace(tzinfo=None) - LONG_AGO
    for run_id in run_ids:
        sql = "UPDATE runs SET create_timestamp = '{0}', update_timestamp = '{0}' WHERE run_id = '{1}'"
        world.query(sql.format(then, run_id) + " RETURNING 1")


def forget(world: World, **options: Any) -> tuple[int, int, bool]:
    now = datetime.now(UTC)
    done = forget_runs(world.instance, KEEP, now, options.pop("budget_s", 60), **options)
    return done.runs, done.kept, done.done


def test_old_runs_go_and_every_partition_shows_what_it_showed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.lake.commit([book(0, 100), book(300, 110)], covered_minutes(START, 10, "BTC"))
    world.lake.through(WINDOW.shifted(1).end)
    ranged = world.run(KEYS[0], KEYS[1])
    failed = world.run(KEYS[2])  # not complete yet
    unfinished = world.instance.create_run_for_job(
        world.defs.resolve_job_def("build_windows"), status=dg.DagsterRunStatus.STARTED
    )
    age(world, ranged.run_id, failed.run_id, unfinished.run_id)
    world.lake.commit([book(30, 105)])
    recent = world.run(KEYS[0])
    assert (ranged.success, failed.success, recent.success) == (True, False, True)
    before = shown(world)
    statuses = before["orderbook_parquet from scratch"].values()
    assert [status.value for status in statuses] == ["MATERIALIZED", "MATERIALIZED", "FAILED"]

    def die(run_id: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(world.instance, "delete_run", die)
    with pytest.raises(KeyboardInterrupt):
        forget(world)
    monkeypatch.undo()
    assert shown(world) == before  # killed in the middle
    assert forget(world, most=0) == (0, 0, False)
    monkeypatch.setattr(run_retention, "_PAGE", 1)
    assert forget(world) == (1, 1, True)  # the failed run is what its partition shows
    assert shown(world) == before

    assert {run.run_id for run in world.instance.get_runs()} == {
        failed.run_id,
        unfinished.run_id,
        recent.run_id,
    }
    assert world.query(f"SELECT count(*) FROM event_logs WHERE run_id = '{ranged.run_id}'") == [(0,)]
    assert not (Path(world.instance.storage_directory()) / ranged.run_id).exists()

    # Once its partition is built, the failed run says nothing any more.
    world.lake.through(WINDOW.shifted(2).end)
    assert world.run(KEYS[2]).success
    assert forget(world) == (1, 0, True)


def test_the_housekeeping_job_does_both_and_its_schedule_is_on(world: World) -> None:
    world.lake.through(WINDOW.end)
    result = world.defs.resolve_job_def("housekeeping").execute_in_process(instance=world.instance)
    assert result.success
    assert {event.step_key for event in result.get_step_success_events()} == {
        "forget_old_runs",
        "forget_expired_raw",
    }
    schedule = world.defs.resolve_schedule_def("housekeeping")
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING
