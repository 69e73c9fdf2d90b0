"""Our candles against the exchange's own, hourly. What agreement means is in `warehouse/agreement.py`.

The exchange's candles are an asset that we do not make; the check is theirs, so that no backfill of ours asks
the exchange anything: it counts requests by address, and the producers live at the same one.
"""

from datetime import UTC, datetime

from dagster import (
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetSelection,
    AssetSpec,
    DefaultScheduleStatus,
    MetadataValue,
    ResourceParam,
    RunRequest,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SkipReason,
    TableRecord,
    asset_check,
    define_asset_job,
    schedule,
)
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from cryptostream_dagster.assets.shell import OWNERS, explained
from cryptostream_dagster.resources import Platform
from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.warehouse.agreement import (
    TICKERS,
    WINDOWS,
    candles_to_compare,
    compare_all,
    describe,
)
from ingest_services.upbit.rest import Rest

JOB = "cross_check"

# Past the hour, when its last window is built and the next is far from its end.
_CRON = "8 * * * *"


def exchange_candles() -> AssetSpec:
    """Return the exchange's candles, as an asset that is made elsewhere."""
    return AssetSpec(
        "exchange_candles",
        description="The exchange's own 5-minute candles, of trades, as its REST API tells them. Not ours: "
        "they are asked for hourly, to compare ours with them, and not kept.",
        group_name="exchange",
        owners=OWNERS,
        kinds={"upbit"},
    )


def build_check() -> AssetChecksDefinition:
    """Return the check."""

    @asset_check(
        asset="exchange_candles",
        additional_deps=["ohlc_5m_ticker"],
        name="agree_with_ohlc_5m_ticker",
        description=(
            "What was traded, [low, high], overlaps our mids, widened by the mean spread, in each of the "
            f"last {WINDOWS} windows of the {TICKERS} busiest tickers. No answer and no trade are unknown, "
            "and not wrong."
        ),
    )
    def agree(platform: ResourceParam[Platform]) -> AssetCheckResult:
        with explained("Postgres"), platform.connect() as connection:
            candles = candles_to_compare(connection, datetime.now(UTC))
        found = compare_all(candles, Rest(platform.settings.upbit_rest_url).candles)
        apart = sum(len(comparison.apart) for comparison in found)
        table = [
            TableRecord(
                {
                    "ticker": comparison.ticker,
                    "compared": comparison.compared,
                    "unknown": comparison.unknown,
                    "apart": len(comparison.apart),
                    "worst_bps": round(comparison.worst_bps, 3),
                }
            )
            for comparison in found
        ]
        return AssetCheckResult(
            passed=apart == 0,
            severity=AssetCheckSeverity.WARN,
            metadata={
                "violations": apart,
                "compared": sum(comparison.compared for comparison in found),
                "unknown": sum(comparison.unknown for comparison in found),
                "detail": describe(found),
                **({"tickers": MetadataValue.table(table)} if table else {}),
            },
        )

    return agree


def build_job(check: AssetChecksDefinition) -> UnresolvedAssetJobDefinition:
    """Return the job that asks."""
    return define_asset_job(
        JOB,
        selection=AssetSelection.checks(check),
        description="Asks the exchange for its own candles and compares ours with them.",
        # Behind every window.
        tags={"dagster/priority": "-1"},
    )


def build_schedule(job: UnresolvedAssetJobDefinition, settings: PipelineSettings) -> ScheduleDefinition:
    """Return the schedule; running unless somebody stops it."""

    @schedule(
        name="cross_check_hourly",
        cron_schedule=_CRON,
        job=job,
        execution_timezone=settings.market_time_zone,
        default_status=DefaultScheduleStatus.RUNNING,
        description="Compares the last hour with the exchange's own candles.",
    )
    def cross_check_hourly(context: ScheduleEvaluationContext) -> RunRequest | SkipReason:
        if settings.missing:
            return SkipReason(settings.missing)
        return RunRequest(f"cross-check:{context.scheduled_execution_time:%Y-%m-%dT%H:%M%z}")

    return cross_check_hourly
