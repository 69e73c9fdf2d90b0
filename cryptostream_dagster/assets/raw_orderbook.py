"""`raw_orderbook`: a window of the raw lake, sealed."""

from typing import Any

from dagster import (
    AssetExecutionContext,
    AssetsDefinition,
    MaterializeResult,
    MetadataValue,
    ResourceParam,
    TimeWindowPartitionsDefinition,
    asset,
)

from cryptostream_dagster.assets.shell import (
    BACKFILL_POLICY,
    GROUP,
    OWNERS,
    Report,
    build_windows,
    explained,
)
from cryptostream_dagster.resources import Platform
from cryptostream_dagster.window import Window

DESCRIPTION = """Every frame of a 5-minute window, exactly as the exchange sent it: JSON lines in the lake.

A run waits until the window is **complete** (nothing more will come), fixes which objects make it (the
seal), and reports what is in it. **Coverage** says apart from that whether anybody was listening: a window
that is complete with zero coverage is silence of ours, not of the market.
"""


def raw_orderbook(partitions: TimeWindowPartitionsDefinition) -> AssetsDefinition:
    """Return the asset."""

    @asset(
        name="raw_orderbook",
        partitions_def=partitions,
        backfill_policy=BACKFILL_POLICY,
        group_name=GROUP,
        owners=OWNERS,
        kinds={"kafka", "json"},
        description=DESCRIPTION,
    )
    def build(context: AssetExecutionContext, platform: ResourceParam[Platform]) -> MaterializeResult[Any]:
        with explained(context.op_execution_context.run_id[:8]):
            store = platform.require_lake()
        with explained("Postgres"), platform.connect() as connection:

            def seal(window: Window) -> Report:
                from cryptostream_dagster.steps import seal_step  # brings psycopg and DuckDB's callers

                sealed = seal_step(connection, store, window, platform.settings)
                found = sealed.seal
                metadata: dict[str, Any] = {
                    "dagster/row_count": found.rows,
                    "tickers": found.tickers,
                    "files": found.files,
                    "bytes": found.bytes,
                    "late_rows": found.late_rows,
                    "quarantined": found.quarantined,
                    "coverage_mean": _ratio(sealed.coverage.mean),
                    "coverage_min": _ratio(sealed.coverage.least),
                    "lag_s": MetadataValue.float(round(sealed.lag_s, 3)),
                    "sealed_at": MetadataValue.timestamp(found.sealed_at),
                    "version": found.version,
                    "digest": found.digest,
                    "source": platform.settings.source,
                }
                context.log.info(
                    f"{window.label(platform.settings.zone)}: version {found.version}, {found.rows} books of "
                    f"{found.tickers} tickers in {found.files} objects"
                )
                return Report(found.digest, metadata)

            return build_windows(context, partitions, seal)

    return build


def _ratio(value: float | None) -> MetadataValue[Any]:
    return MetadataValue.text("unknown") if value is None else MetadataValue.float(round(value, 6))
