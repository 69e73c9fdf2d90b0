"""The jobs: the four assets of a window, or of a range of windows; and `orderbook_daily` of a day."""

from __future__ import annotations

from dagster import (
    AssetChecksDefinition,
    AssetSelection,
    DagsterRunStatus,
    RunRequest,
    define_asset_job,
)
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from cryptostream_dagster.assets.orderbook_daily import DAILY_GROUP
from cryptostream_dagster.assets.shell import GROUP

JOB = "build_windows"
DAILY_JOB = "build_days"

KIND_TAG = "cryptostream/kind"
# The list of runs shows this one beside the kind; of Dagster's own tags of a range it shows none.
WINDOWS_TAG = "cryptostream/windows"
LIVE = "live"
RECONCILE = "reconcile"
BACKFILL = "backfill"
DAILY = "daily"
PRIORITY = {LIVE: 10, RECONCILE: 0, BACKFILL: -10, DAILY: -20}

# A run whose process is gone (a code location that was killed) is ended by nothing but its time, and until
# then its windows count as being built. A live window waits two minutes at most and a reconciling run is
# bounded in windows and rows: neither takes so long. A backfill's run may; the instance's limit is for it. A
# day of the whole exchange takes minutes, more of them beside everything else.
MAX_RUNTIME_S = {LIVE: 600, RECONCILE: 600, DAILY: 3600}

# Dagster's own tags of a run over a range of partitions; it has no public names for them.
RANGE_START_TAG = "dagster/asset_partition_range_start"
RANGE_END_TAG = "dagster/asset_partition_range_end"
PARTITION_TAG = "dagster/partition"


# Runs that may still do something.
UNFINISHED = [
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]


def build_job(*elsewhere: AssetChecksDefinition) -> UnresolvedAssetJobDefinition:
    """Return the job.

    Args:
        *elsewhere: Checks that are about no window, and are asked elsewhere.
    """
    return define_asset_job(
        JOB,
        selection=AssetSelection.groups(GROUP) - AssetSelection.checks(*elsewhere),
        description="A window from the raw lake to candles; the schedule's and the sensor's job.",
    )


def build_daily_job() -> UnresolvedAssetJobDefinition:
    """Return the job of a closed day; a job of its own, because its partitions are days."""
    return define_asset_job(
        DAILY_JOB,
        selection=AssetSelection.groups(DAILY_GROUP),
        description="A closed day's Parquet into one file per ticker; the daily schedule's job.",
    )


def request_run(kind: str, run_key: str, first: str, last: str) -> RunRequest:
    """Return the request for a run.

    Args:
        kind: `LIVE`, `RECONCILE` or `DAILY`: where the run stands in the queue.
        run_key: Dagster launches a key once.
        first: Partition key of the first window or day.
        last: Partition key of the last window; a run of more than one is a ranged run.
    """
    tags = {
        KIND_TAG: kind,
        "dagster/priority": str(PRIORITY[kind]),
        "dagster/max_runtime": str(MAX_RUNTIME_S[kind]),
    }
    if first == last:
        return RunRequest(run_key, partition_key=first, tags=tags)
    tags |= {WINDOWS_TAG: f"{first} to {last}", RANGE_START_TAG: first, RANGE_END_TAG: last}
    return RunRequest(run_key, tags=tags)
