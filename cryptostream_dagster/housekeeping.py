"""The job that lets go of what nobody needs: old Dagster runs, and the catalog's rows of expired raw data.

`docs/housekeeping.md` says what goes and what stays. The work is in `run_retention` and `catalog.retention`.
"""

from datetime import UTC, datetime, timedelta

from dagster import (
    DefaultScheduleStatus,
    JobDefinition,
    OpExecutionContext,
    ResourceParam,
    ScheduleDefinition,
    job,
    op,
)

from cryptostream_dagster.assets.shell import explained
from cryptostream_dagster.jobs import KIND_TAG
from cryptostream_dagster.resources import Platform
from cryptostream_dagster.settings import PipelineSettings

HOUSEKEEPING = "housekeeping"

# Four chances a day: a schedule does not catch up, and a machine at home is not always on.
_CRON = "42 */6 * * *"
# Of each part, so that the run is done before it is taken for stuck.
_BUDGET_S = 240.0


@op(
    description="Deletes Dagster's runs that finished more than RUN_RETENTION_DAYS ago; what they made stays."
)
def forget_old_runs(context: OpExecutionContext, platform: ResourceParam[Platform]) -> None:
    """Delete old runs of this instance."""
    from cryptostream_dagster.run_retention import forget_runs  # reaches into Dagster's storage: not at load

    keep = timedelta(days=platform.settings.run_retention_days)
    done = forget_runs(context.instance, keep, datetime.now(UTC), _BUDGET_S)
    context.log.info(
        f"{done.runs} runs older than {keep.days} days deleted, {done.kept} kept because a partition still "
        f"shows them{'' if done.done else '; the rest next time'}"
    )


@op(description="Takes raw data that has expired (RAW_RETENTION_DAYS) out of the catalog's list.")
def forget_expired_raw(context: OpExecutionContext, platform: ResourceParam[Platform]) -> None:
    """Prune the catalog."""
    if platform.settings.missing:
        context.log.info(platform.settings.missing)
        return
    with explained("Postgres"), platform.connect() as connection:
        from cryptostream_dagster.catalog.retention import prune

        done = prune(connection, platform.settings, datetime.now(UTC), _BUDGET_S)
    if done.until is None:
        context.log.info("raw data is kept for ever")
        return
    context.log.info(
        f"windows before {done.until.astimezone(platform.settings.zone):%Y-%m-%d %H:%M} are frozen; "
        f"{done.commits} commits forgotten{'' if done.done else '; the rest next time'}"
    )


@job(
    name=HOUSEKEEPING,
    tags={KIND_TAG: HOUSEKEEPING, "dagster/priority": "-10"},
    description="Forgets old runs and what the catalog knows of expired raw data.",
)
def housekeeping_job() -> None:
    """Both ops, each on its own: one that fails does not stop the other."""
    forget_old_runs()
    forget_expired_raw()


def build_housekeeping(settings: PipelineSettings) -> tuple[JobDefinition, ScheduleDefinition]:
    """Return the job and its schedule; running unless somebody stops it."""
    schedule = ScheduleDefinition(
        name=HOUSEKEEPING,
        job=housekeeping_job,
        cron_schedule=_CRON,
        execution_timezone=settings.market_time_zone,
        default_status=DefaultScheduleStatus.RUNNING,
        description="Four times a day; each does little.",
    )
    return housekeeping_job, schedule
