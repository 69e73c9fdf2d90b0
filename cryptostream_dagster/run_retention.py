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
_MATERIALIZED = DagsterEventType.ASSET_MATERIALIZATION.value
_KEPT_EVENTS = [_MATERIALIZED, DagsterEventType.ASSET_OBSERVATION.value]

_PLANNED = DagsterEventType.ASSET_MATERIALIZATION_PLANNED.value

_PAGE = 500

_UNFINISHED_BACKFILLS = [BulkActionStatus.REQUESTED, BulkActionStatus.CANCELING, BulkActionStatus.FAILING]


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What became of old runs.

    Attributes:
        runs: Deleted.
        kept: Old, but still what a partition or an asset shows, as far as was looked.
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
    newest = _newest_of_assets(instance)
    backfills = {
        backfill.backfill_id
        for backfill in instance.get_backfills(filters=BulkActionsFilter(statuses=_UNFINISHED_BACKFILLS))
    }
    deleted = kept = 0
    last_kept = None
    while page := instance.get_runs(
        RunsFilter(statuses=FINISHED, updated_before=now - keep),
        cursor=last_kept,  # those before it that were not kept are gone
        limit=_PAGE,
        ascending=True,
    ):
        for run in page:
            if deleted == most or time.monotonic() > deadline:
                return Forgotten(deleted, kept, done=False)
            if (
                run.run_id in newest
                or run.tags.get(BACKFILL_ID_TAG) in backfills
                or (run.status != DagsterRunStatus.SUCCESS and _is_shown(instance, run.run_id))
            ):
                kept += 1
                last_kept = run.run_id
            else:
                forget_run(instance, run.run_id)
                deleted += 1
    return Forgotten(deleted, kept, done=True)


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


def _newest_of_assets(instance: DagsterInstance) -> set[str]:
    """Return the runs that the pages of the assets name as their last."""
    newest: set[str] = set()
    for record in instance.get_asset_records(instance.get_asset_keys()):
        entry = record.asset_entry
        last = entry.last_materialization
        newest.update(run_id for run_id in (entry.last_run_id, last and last.run_id) if run_id)
    return newest


def _is_shown(instance: DagsterInstance, run_id: str) -> bool:
    """Return whether a run that did not succeed is the newest attempt at one of its partitions."""
    storage: Any = instance.event_log_storage
    planned, later = SqlEventLogStorageTable.alias("planned"), SqlEventLogStorageTable.alias("later")
    after = (
        (later.c.asset_key == planned.c.asset_key)
        & (later.c.partition == planned.c.partition)
        & later.c.dagster_event_type.in_([_PLANNED, _MATERIALIZED])
        & (later.c.id > planned.c.id)
    )
    query = (
        planned.select()
        .where(
            planned.c.run_id == run_id,
            planned.c.dagster_event_type == _PLANNED,
            planned.c.partition.is_not(None),
        )
        .where(~later.select().where(after).correlate(planned).exists())
        .limit(1)
    )
    with storage.index_connection() as connection:
        return connection.execute(query).first() is not None
