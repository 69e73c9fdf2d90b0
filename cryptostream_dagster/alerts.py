"""The sensor that tells a webhook of failed runs, if ALERT_WEBHOOK_URL names one."""

from collections.abc import Mapping, Sequence

from dagster import (
    DagsterEvent,
    DefaultSensorStatus,
    RunFailureSensorContext,
    SensorDefinition,
    run_failure_sensor,
)

from cryptostream_dagster.jobs import PARTITION_TAG, RANGE_END_TAG, RANGE_START_TAG
from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.webhook import post

_REASON_CHARACTERS = 400


def build_sensors(settings: PipelineSettings) -> list[SensorDefinition]:
    """Return the sensor, running; nothing without a webhook."""
    url = settings.alert_webhook_url
    if url is None:
        return []

    @run_failure_sensor(
        name="alert_on_failure",
        default_status=DefaultSensorStatus.RUNNING,
        description="Posts one line to ALERT_WEBHOOK_URL for every run that failed.",
        monitor_all_code_locations=False,
    )
    def alert_on_failure(context: RunFailureSensorContext) -> None:
        steps = context.get_step_failure_events()
        run = context.dagster_run
        text = failure_text(settings.source, run.job_name, run.tags, run.run_id, _reason(context, steps))
        if refused := post(url, text):
            # Not raised: Dagster would come back to this run for ever.
            context.log.warning(f"not sent, {refused}: {text}")

    return [alert_on_failure]


def failure_text(source: str, job: str, tags: Mapping[str, str], run_id: str, reason: str) -> str:
    """Return what people are told of a failed run, in one line.

    Args:
        source: Whose data it is.
        job: The job.
        tags: The run's tags: they say which windows it was to build.
        run_id: The run's id.
        reason: Why it failed.
    """
    first = tags.get(RANGE_START_TAG) or tags.get(PARTITION_TAG)
    last = tags.get(RANGE_END_TAG) or first
    windows = "" if first is None else f" for {first}" + (f" to {last}" if last != first else "")
    line = " ".join(reason.split())
    if first is not None and first == last:
        line = line.replace(f"{first}: ", "", 1)  # was said
    if len(line) > _REASON_CHARACTERS:
        line = line[: _REASON_CHARACTERS - 1] + "…"
    return f"CryptoStream ({source}): {job} failed{windows}, run {run_id[:8]}: {line}"


def _reason(context: RunFailureSensorContext, steps: Sequence[DagsterEvent]) -> str:
    for event in steps:
        failed = event.step_failure_data
        if failed.user_failure_data and failed.user_failure_data.description:
            return f"{event.step_key}: {failed.user_failure_data.description}"
        if failed.error:
            return f"{event.step_key}: {(failed.error.cause or failed.error).message}"
    return context.failure_event.message or "no reason was recorded"
