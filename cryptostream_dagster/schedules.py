"""The schedule: every five minutes, the window that just ended. It does not catch up; the sensor does."""

from dagster import (
    DefaultScheduleStatus,
    RunRequest,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SkipReason,
    TimeWindowPartitionsDefinition,
    schedule,
)
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from cryptostream_dagster.jobs import LIVE, request_run
from cryptostream_dagster.partitions import CRON, key_of
from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.window import Window


def build_schedule(
    job: UnresolvedAssetJobDefinition, partitions: TimeWindowPartitionsDefinition, settings: PipelineSettings
) -> ScheduleDefinition:
    """Return the schedule; running unless somebody stops it."""

    @schedule(
        name="live_window",
        cron_schedule=CRON,
        job=job,
        execution_timezone=settings.market_time_zone,
        default_status=DefaultScheduleStatus.RUNNING,
        description="Builds the window that just ended. A run waits until the window is complete.",
    )
    def live_window(context: ScheduleEvaluationContext) -> RunRequest | SkipReason:
        if settings.missing:
            return SkipReason(settings.missing)
        key = key_of(settings, Window.last_ended(context.scheduled_execution_time))
        if not partitions.has_partition_key(key):
            return SkipReason(f"{key} is before PARTITIONS_START={settings.partitions_start}")
        return request_run(LIVE, f"live:{key}", key, key)

    return live_window
