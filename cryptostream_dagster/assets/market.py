"""`market`: the exchange's markets as its REST API tells them, and the job and sensor that ask."""

from datetime import UTC, datetime, timedelta
from typing import Any

from dagster import (
    AssetsDefinition,
    AssetSelection,
    DefaultSensorStatus,
    MaterializeResult,
    ResourceParam,
    RunRequest,
    SensorDefinition,
    SensorEvaluationContext,
    SkipReason,
    asset,
    define_asset_job,
    sensor,
)
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from cryptostream_dagster.assets.shell import OWNERS, explained, table_schema
from cryptostream_dagster.resources import Platform
from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.transforms.schema import MARKET_COLUMNS

JOB = "poll_markets"

DESCRIPTION = """Every market that the exchange ever told of: names, warnings, tick size, first and last seen.

A market that is delisted stays, and what changes moves to `market_history`: who tests a strategy on the past
asks `market_known` which markets there were then. Asked for hourly; a poll that fails changes nothing.
"""

# The minute at which an hour's poll is due: no window is about to end, and candles are compared later.
_MINUTE = timedelta(minutes=3)
_LOOK_EVERY_S = 60


def market() -> AssetsDefinition:
    """Return the asset. It has no partitions: the exchange tells the present only."""

    @asset(
        name="market",
        group_name="exchange",
        owners=OWNERS,
        kinds={"upbit", "postgres"},
        description=DESCRIPTION,
        metadata={
            "dagster/column_schema": table_schema(MARKET_COLUMNS),
            "dagster/table_name": "public.market",
        },
    )
    def build(platform: ResourceParam[Platform]) -> MaterializeResult[Any]:
        now = f"{datetime.now(UTC).astimezone(platform.settings.zone):%F %R}"
        with explained(now), platform.connect() as connection:
            from cryptostream_dagster.warehouse.markets import poll_markets
            from ingest_services.upbit.rest import Rest

            kept = poll_markets(connection, Rest(platform.settings.upbit_rest_url), platform.settings.source)
            row = connection.execute("SELECT count(*) FROM market").fetchone()
        metadata: dict[str, Any] = {
            "dagster/row_count": row[0] if row else 0,
            "listed": kept.listed,
            "new": len(kept.new),
            "changed": kept.changed,
        }
        if kept.delisted:
            metadata["delisted"] = ", ".join(kept.delisted)
        return MaterializeResult(metadata=metadata)

    return build


def build_market_job() -> UnresolvedAssetJobDefinition:
    """Return the job that asks."""
    return define_asset_job(
        JOB,
        selection=AssetSelection.assets("market"),
        description="Asks the exchange for its markets.",
        # Behind every window.
        tags={"dagster/priority": "-1"},
    )


def build_market_sensor(job: UnresolvedAssetJobDefinition, settings: PipelineSettings) -> SensorDefinition:
    """Return the sensor; running unless somebody stops it.

    A schedule would leave a new warehouse without its markets until the hour comes round.
    """

    @sensor(
        name="markets",
        job=job,
        minimum_interval_seconds=_LOOK_EVERY_S,
        default_status=DefaultSensorStatus.RUNNING,
        description="Asks the exchange for its markets: at once where nobody has, then hourly.",
    )
    def markets(_: SensorEvaluationContext) -> RunRequest | SkipReason:
        if settings.missing:
            return SkipReason(settings.missing)
        return RunRequest(poll_key(datetime.now(UTC)))

    return markets


def poll_key(now: datetime) -> str:
    """Return the key of the poll that was due last; Dagster launches a key once.

    Args:
        now: The current instant.
    """
    return f"markets:{now.astimezone(UTC) - _MINUTE:%Y-%m-%dT%H}Z"
