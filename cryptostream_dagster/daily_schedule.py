"""The daily schedule: closed days that are not in daily files, or not any more, get a run.

It looks every hour, the first time soon after the market's midnight, and back over all days: what Dagster's
downtime left out or late data built again is found by the same look. The decisions are in `catalog/days.py`.
"""

from datetime import UTC, date, datetime

from dagster import (
    DagsterInstance,
    DefaultScheduleStatus,
    ResourceParam,
    RunRequest,
    RunsFilter,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SkipReason,
    TimeWindowPartitionsDefinition,
    schedule,
)
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from cryptostream_dagster.day import Day
from cryptostream_dagster.jobs import DAILY, PARTITION_TAG, UNFINISHED, request_run
from cryptostream_dagster.resources import Platform
from cryptostream_dagster.settings import PipelineSettings

# A day's last window is built within minutes of midnight, and left to settle for ten.
CRON = "20 * * * *"


def build_daily_schedule(
    job: UnresolvedAssetJobDefinition, days: TimeWindowPartitionsDefinition, settings: PipelineSettings
) -> ScheduleDefinition:
    """Return the schedule; running unless somebody stops it."""

    @schedule(
        name="closed_days",
        cron_schedule=CRON,
        job=job,
        execution_timezone=settings.market_time_zone,
        default_status=DefaultScheduleStatus.RUNNING,
        description="Writes closed days into daily files, and again those of which a window was built again.",
    )
    def closed_days(
        context: ScheduleEvaluationContext, platform: ResourceParam[Platform]
    ) -> list[RunRequest] | SkipReason:
        if settings.missing:
            return SkipReason(settings.missing)
        if settings.daily_root is None:
            return SkipReason("DAILY_URL is not set")
        requests = _requests(context.instance, platform, days, datetime.now(UTC))
        return requests or SkipReason("every closed day is in daily files, or was asked for")

    return closed_days


def _requests(
    instance: DagsterInstance, platform: Platform, days: TimeWindowPartitionsDefinition, now: datetime
) -> list[RunRequest]:
    # Loading the definitions should not bring psycopg.
    from cryptostream_dagster.catalog.days import DayPolicy, decide_days, find_days, note_day_requests

    settings = platform.settings
    first = Day.at(settings.first_window, settings.zone)
    last = Day.at(now, settings.zone).shifted(-1)
    if last.date < first.date:
        return []
    with platform.connect() as connection:
        states = find_days(connection, settings, first, last, now)
        wanted = decide_days(states, _in_flight(instance, days), now, DayPolicy())
        note_day_requests(connection, wanted)
    return [
        request_run(DAILY, f"{key}:{state.digest[:16]}:{state.requests + 1}", key, key)
        for state in wanted
        for key in [state.date.isoformat()]
    ]


def _in_flight(instance: DagsterInstance, days: TimeWindowPartitionsDefinition) -> set[date]:
    """Return the days that unfinished runs write, whoever asked for them."""
    runs = instance.get_runs(RunsFilter(statuses=UNFINISHED))
    keys = {run.tags.get(PARTITION_TAG, "") for run in runs}
    return {date.fromisoformat(key) for key in keys if days.has_partition_key(key)}
