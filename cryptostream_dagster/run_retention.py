"""Retention of Dagster's own runs: old ones go, what they materialized stays as it is.

Dagster never deletes a run, and its `delete_run` takes the run's materializations along: partitions that are
built would show as missing. So they are taken out of the run first. Belongs here: which runs go, and how.
Does not belong here: when (`housekeeping`), and ticks, whose retention is in dagster.yaml.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from dagster import DagsterEventType, DagsterInstance, DagsterRunStatus, EventLogEntry, RunsFilter
from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus
from dagster._core.instance import RUNLESS_RUN_ID
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager
from dagster._core.storage.tags import BACKFILL_ID_TAG
from dagster._serdes import deserialize_value, serialize_value

FINISHED = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]

# Runs of one call, some days' worth: what is left, the next call takes.
MOST_RUNS = 5000

# The events of a run that say what it made; the rest is how it went.
_KEPT_EVENTS = [DagsterEventType.ASSET_MATERIALIZATION.value, DagsterEventType.ASSET_OBSERVATION.value]

_UNFINISHED_BACKFILLS = [BulkActionStatus.REQUESTED, BulkActionStatus.CANCELING, BulkActionStatus.FAILING]


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What became of old runs.

    Attributes:
        runs: Deleted.
        kept: Old, but still what a partition or an asset shows.
        done: Whether no other old run is left.
    """

    runs: int
    kept: int
    done: bool


def forget_runs(
    instance: DagsterInstance, keep: timedelta, now: datetime, budget_s: float, most: int = MOST_RUNS
) -> Forgotten:
    """Delete runs that finished long ago, oldest first, with their events and local logs.

    What they materialized stays: partition status, time, metadata, data version, and the results of checks.
    A run stays as long as it is the newest attempt at a partition (so a failed partition shows as failed
    until it is built), an asset's newest, or one of a backfill that is under way. Safe to run twice, and to
    be killed.

    Args:
        instance: A Dagster instance on Postgres or SQLite.
        keep: Age from which a finished run is old.
        now: The current instant, aware.
        budget_s: Stop after so many seconds; the next call goes on.
        most: Runs of one call.
    """
    deadline = time.monotonic() + budget_s
    needed = _still_shown(instance)
    backfills = {
        backfill.backfill_id
        for backfill in instance.get_backfills(filters=BulkActionsFilter(statuses=_UNFINISHED_BACKFILLS))
    }
    found = instance.get_runs(
        RunsFilter(statuses=FINISHED, updated_before=now - keep),
        limit=most + len(needed) + 1,
        ascending=True,
    )
    old = [
        run for run in found if run.run_id not in needed and run.tags.get(BACKFILL_ID_TAG) not in backfills
    ]
    deleted = 0
    for run in old[:most]:
        if time.monotonic() > deadline:
            break
        forget_run(instance, run.run_id)
        deleted += 1
    return Forgotten(deleted, len(found) - len(old), done=deleted == len(old))


def forget_run(instance: DagsterInstance, run_id: str) -> None:
    """Delete one run and its events, but for what it materialized."""
    storage: Any = instance.event_log_storage
    table = SqlEventLogStorageTable
    theirs = (table.c.run_id == run_id) & table.c.dagster_event_type.in_(_KEPT_EVENTS)
    with (
        storage.index_connection() as connection,
        nullcontext() if connection.in_transaction() else connection.begin(),
    ):
        for row in connection.execute(table.select().where(theirs)).fetchall():
            # As an event that was reported without a run; everything else about it stays, its id included.
            entry = deserialize_value(row.event, EventLogEntry)._replace(run_id=RUNLESS_RUN_ID)
            values = {"run_id": RUNLESS_RUN_ID, "event": serialize_value(entry)}
            connection.execute(table.update().where(table.c.id == row.id).values(**values))
    # The run itself last: who is killed before finds it again.
    storage.delete_events(run_id)
    instance.delete_run(run_id)
    logs = instance.compute_log_manager
    if isinstance(logs, LocalComputeLogManager):  # a bucket has a lifecycle rule of its own
        logs.delete_logs(prefix=[run_id])


def _still_shown(instance: DagsterInstance) -> set[str]:
    """Return the runs that a partition's or an asset's state comes from."""
    storage = instance.event_log_storage
    needed: set[str] = set()
    keys = instance.get_asset_keys()
    for key in keys:
        attempts = storage.get_latest_asset_partition_materialization_attempts_without_materializations(key)
        needed.update(run_id for run_id, _ in attempts.values())
    for record in instance.get_asset_records(keys):
        entry = record.asset_entry
        newest = entry.last_materialization
        needed.update(run_id for run_id in (entry.last_run_id, newest and newest.run_id) if run_id)
    return needed
