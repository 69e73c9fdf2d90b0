"""The reconciling sensor: whatever should be built and is not, gets a run.

The decisions are in `catalog/reconcile.py`.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import accumulate

from dagster import (
    DagsterInstance,
    DefaultSensorStatus,
    ResourceParam,
    RunsFilter,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    sensor,
)
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from cryptostream_dagster.jobs import (
    PARTITION_TAG,
    RANGE_END_TAG,
    RANGE_START_TAG,
    RECONCILE,
    UNFINISHED,
    request_run,
)
from cryptostream_dagster.partitions import key_of
from cryptostream_dagster.resources import Platform
from cryptostream_dagster.settings import PARTITION_KEY_FORMAT, PipelineSettings
from cryptostream_dagster.window import Window

# A tick must not hold up the daemon: what a sync leaves behind, the next tick takes.
SYNC_BUDGET_S = 20.0

# Runs of ours that are wanted or under way; more than that and the sensor waits.
MAX_IN_FLIGHT = 2


def build_sensor(job: UnresolvedAssetJobDefinition, settings: PipelineSettings) -> SensorDefinition:
    """Return the sensor; running unless somebody stops it."""

    @sensor(
        name="reconcile",
        job=job,
        minimum_interval_seconds=settings.sensor_interval_s,
        default_status=DefaultSensorStatus.RUNNING,
        description="Builds windows that are complete but not built, grew since, or failed before.",
    )
    def reconcile(
        context: SensorEvaluationContext, platform: ResourceParam[Platform]
    ) -> SensorResult | SkipReason:
        if settings.missing:
            return SkipReason(settings.missing)
        if not platform.has_lake:
            return SkipReason(f"there is no raw lake at {settings.raw_url} yet")
        return _tick(context.instance, platform)

    return reconcile


def _tick(instance: DagsterInstance, platform: Platform) -> SensorResult | SkipReason:
    # Loading the definitions should not bring psycopg.
    from cryptostream_dagster.catalog.complete import complete_until
    from cryptostream_dagster.catalog.reconcile import (
        Policy,
        decide,
        enter_empty_windows,
        find_candidates,
        note_requests,
    )
    from cryptostream_dagster.catalog.retention import frozen_until
    from cryptostream_dagster.catalog.sync import sync

    settings = platform.settings
    unfinished = instance.get_runs(RunsFilter(statuses=UNFINISHED))
    ours = sum(run.tags.get("cryptostream/kind") == RECONCILE for run in unfinished)
    policy = Policy(
        grace=timedelta(seconds=settings.schedule_grace_s),
        settle=timedelta(seconds=settings.settle_s),
        max_runs=max(0, MAX_IN_FLIGHT - ours),
    )
    with platform.connect() as connection:
        sync(connection, platform.store, SYNC_BUDGET_S)
        until = complete_until(connection)
        enter_empty_windows(connection, until)
        now = datetime.now(UTC)
        oldest = max(settings.first_window, frozen_until(connection, settings, now) or settings.first_window)
        candidates = find_candidates(connection, oldest, until)
        in_flight = windows_of_runs(
            (run.tags for run in unfinished), (candidate.window for candidate in candidates)
        )
        requests = decide(candidates, until, in_flight, now, policy)
        note_requests(connection, requests)
    if not requests:
        through = (
            "nothing is" if until is None else f"complete until {until.astimezone(settings.zone):%H:%M:%S}"
        )
        return SkipReason(f"{through}; {len(candidates)} windows wait, {len(unfinished)} runs unfinished")
    return SensorResult(
        run_requests=[
            request_run(
                RECONCILE,
                request.run_key,
                key_of(settings, request.first),
                key_of(settings, request.last),
            )
            for request in requests
        ]
    )


def windows_of_runs(tags_of_runs: Iterable[Mapping[str, str]], among: Iterable[Window]) -> set[Window]:
    """Return those of some windows that runs with these tags build, whoever asked for them.

    A backfill of a year is thousands of runs: a window is looked for in their ranges, not they spelt out.
    """
    ranges: list[tuple[Window, Window]] = []
    for tags in tags_of_runs:
        first = tags.get(RANGE_START_TAG) or tags.get(PARTITION_TAG)
        last = tags.get(RANGE_END_TAG) or first
        if first and last:
            # The run of another job may be partitioned otherwise.
            with suppress(ValueError):
                ranges.append((_window(first), _window(last)))
    ranges.sort()
    starts = [first for first, _ in ranges]
    # The furthest end of all ranges that begin no later than this one.
    ends = list(accumulate((last for _, last in ranges), max))
    found = set()
    for window in among:
        before = bisect_right(starts, window)
        if before and window <= ends[before - 1]:
            found.add(window)
    return found


def _window(key: str) -> Window:
    return Window(datetime.strptime(key, PARTITION_KEY_FORMAT).astimezone(UTC))
