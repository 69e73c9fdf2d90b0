"""`raw_orderbook`: a window of the raw lake, sealed."""

import time
from collections.abc import Mapping
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
from cryptostream_dagster.assets.shown import raw_objects, table
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
            # One wait for all windows of a run: what one window waited for the next would wait for, too.
            patience = Patience(platform.settings.seal_wait_s)
            ranged = len(context.partition_keys) > 1
            if ranged:
                from cryptostream_dagster.catalog.sync import sync

                sync(connection, store)

            def seal(window: Window) -> Report:
                from cryptostream_dagster.steps import seal_step  # brings psycopg and DuckDB's callers

                sealed = seal_step(
                    connection, store, window, platform.settings, patience.left_s(), synced=ranged
                )
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
                    "where": raw_objects(platform.settings.raw_url, window, platform.settings.zone),
                }
                if short := _least_covered(sealed.coverage.ratios):
                    metadata["least_covered"] = table(short)
                context.log.info(
                    f"{window.label(platform.settings.zone)}: version {found.version}, {found.rows} books of "
                    f"{found.tickers} tickers in {found.files} objects"
                )
                return Report(found.digest, metadata)

            return build_windows(context, partitions, seal)

    return build


class Patience:
    """How long a run may still wait for windows to become complete.

    Args:
        seconds: In all, from the first wait on.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until: float | None = None

    def left_s(self) -> float:
        """Return what is left, seconds."""
        now = time.monotonic()
        if self._until is None:
            self._until = now + self._seconds
        return max(0.0, self._until - now)


def _ratio(value: float | None) -> MetadataValue[Any]:
    return MetadataValue.text("unknown") if value is None else MetadataValue.float(round(value, 6))


def _least_covered(ratios: Mapping[str, float]) -> list[dict[str, str | float]]:
    """Return who was not wholly listened to, the least first."""
    short = sorted((ratio, ticker) for ticker, ratio in ratios.items() if ratio < 1)
    return [{"ticker": ticker, "coverage": round(ratio, 6)} for ratio, ticker in short]
