"""The live window goes first, however long the queue is; a lost run holds its window up only for a while."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.test_utils import create_run_for_test
from dagster._daemon.monitoring import run_monitoring
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon

from cryptostream_dagster.code_server import end_lost_runs
from cryptostream_dagster.jobs import BACKFILL, LIVE, RECONCILE, request_run
from cryptostream_dagster.local_stack import instance as local_instance
from tests.dagster_world import KEYS, WINDOW, book, open_world
from tests.postgres_fixture import TestDatabase

ROOT = Path(__file__).parents[2]
ORIGIN = RemoteJobOrigin(
    RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("cryptostream"), "__repository__"), "build_windows"
)
QUEUED, STARTED = dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTED


@pytest.fixture(params=["bare", "local"])
def instance(
    request: pytest.FixtureRequest, tmp_path: Path, postgres_server: TestDatabase
) -> Iterator[dg.DagsterInstance]:
    """Runs and their queue as the root's dagster.yaml and the local stack have them."""
    bare = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    settings = bare if request.param == "bare" else local_instance(postgres_server)
    ours = {name: settings[name] for name in ("run_coordinator", "concurrency", "run_monitoring")}
    with dg.DagsterInstance.local_temp(str(tmp_path), overrides=ours) as opened:
        yield opened


def tags_of(kind: str) -> dict[str, str]:
    if kind == BACKFILL:  # from the UI, which knows no kinds
        return {"dagster/backfill": "long"}
    return dict(request_run(kind, "key", KEYS[0], KEYS[0]).tags)


def add(instance: dg.DagsterInstance, kind: str, status: dg.DagsterRunStatus) -> str:
    run = create_run_for_test(
        instance, job_name="build_windows", status=status, tags=tags_of(kind), remote_job_origin=ORIGIN
    )
    return run.run_id


def next_from_queue(instance: dg.DagsterInstance) -> list[str]:
    """The kinds of the runs that the real coordinator would launch now, in its order."""
    daemon = QueuedRunCoordinatorDaemon(interval_seconds=1)
    config = instance.get_concurrency_config()
    runs = daemon._get_runs_to_dequeue(instance, config, fixed_iteration_time=None)
    return [run.tags.get("cryptostream/kind", BACKFILL) for run in runs]


def test_with_a_long_backfill_queued_the_live_window_starts_at_once(instance: dg.DagsterInstance) -> None:
    for _ in range(6):
        add(instance, BACKFILL, QUEUED)
    for _ in range(2):
        add(instance, RECONCILE, QUEUED)
    add(instance, LIVE, QUEUED)
    taken = next_from_queue(instance)
    assert taken[0] == LIVE  # though it came last
    assert sorted(taken[1:]) == [BACKFILL, RECONCILE]  # one of each; the others wait


def test_while_backfill_and_reconciliation_run_there_is_a_slot_for_the_live_window(
    instance: dg.DagsterInstance,
) -> None:
    for kind in (BACKFILL, RECONCILE):
        add(instance, kind, STARTED)
        for _ in range(3):
            add(instance, kind, QUEUED)
    assert next_from_queue(instance) == []
    add(instance, LIVE, QUEUED)
    assert next_from_queue(instance) == [LIVE]
    # The one before may still be waiting for its window to be complete.
    add(instance, LIVE, STARTED)
    assert next_from_queue(instance) == [LIVE]


def test_a_run_whose_process_is_gone_holds_up_its_window_until_its_time_is_over_and_no_longer(
    tmp_path: Path, database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_world(tmp_path, database) as world:
        world.lake.commit([book(0, 100)])
        world.lake.through(WINDOW.end)
        (request,) = world.tick()
        run_id = create_run_for_test(
            world.instance,
            job_name="build_windows",
            status=STARTED,
            tags={**request.tags, "dagster/partition": KEYS[0]},
        ).run_id
        with world.platform.connect() as connection:  # long ago: no pause stands in the way
            connection.execute("UPDATE lake_window SET requested_at = now() - %s", (timedelta(hours=2),))
        record = world.instance.get_run_record_by_id(run_id)
        assert record is not None
        started = record.start_time or record.create_timestamp.timestamp()

        def look(later_s: float) -> None:
            monkeypatch.setattr(run_monitoring, "get_current_timestamp", lambda: started + later_s)
            run = world.instance.get_run_record_by_id(run_id)
            assert run is not None
            run_monitoring.check_run_timeout(
                world.instance, run._replace(start_time=started), logging.getLogger("test"), 3600
            )

        look(590)
        assert world.tick() == []
        look(610)
        gone = world.instance.get_run_by_id(run_id)
        assert gone is not None
        assert gone.status == dg.DagsterRunStatus.FAILURE
        (again,) = world.tick()
        assert again.partition_key == KEYS[0]


def test_a_code_server_that_starts_ends_the_runs_that_the_one_before_took_with_it(
    instance: dg.DagsterInstance,
) -> None:
    lost = [add(instance, kind, STARTED) for kind in (LIVE, RECONCILE)]
    waiting = add(instance, RECONCILE, QUEUED)
    assert next_from_queue(instance) == []
    assert end_lost_runs(instance) == 2
    assert {
        run.run_id for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))
    } == {*lost}
    assert next_from_queue(instance) == [RECONCILE]
    queued = instance.get_run_by_id(waiting)
    assert queued is not None
    assert queued.status == QUEUED
