"""`orderbook_features_5m`: what the books of a window say beyond its candle, in Postgres."""

from typing import TYPE_CHECKING, Any

from dagster import (
    AssetExecutionContext,
    AssetsDefinition,
    MaterializeResult,
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
    table_schema,
)
from cryptostream_dagster.assets.shown import table
from cryptostream_dagster.resources import Platform
from cryptostream_dagster.transforms.schema import FEATURE_COLUMNS
from cryptostream_dagster.window import Window

if TYPE_CHECKING:
    from cryptostream_dagster.transforms.features import TickerFeatures

DESCRIPTION = """Spread, depth, imbalance, microprice and realised volatility of a window's books.

One row for each candle. Depth within 10 and 50 bps of the mid is NULL where a book ended sooner: nothing is
guessed. `docs/features.md` defines every column and says where its definition is from.
"""


def orderbook_features_5m(
    partitions: TimeWindowPartitionsDefinition, parquet: AssetsDefinition, candles: AssetsDefinition
) -> AssetsDefinition:
    """Return the asset; it comes after the candles, which people wait for."""

    @asset(
        name="orderbook_features_5m",
        deps=[parquet, candles],
        partitions_def=partitions,
        backfill_policy=BACKFILL_POLICY,
        group_name=GROUP,
        owners=OWNERS,
        kinds={"duckdb", "postgres"},
        description=DESCRIPTION,
        metadata={
            "dagster/column_schema": table_schema(FEATURE_COLUMNS),
            "dagster/table_name": "public.orderbook_features_5m",
        },
    )
    def build(context: AssetExecutionContext, platform: ResourceParam[Platform]) -> MaterializeResult[Any]:
        with explained("Postgres"), platform.connect() as connection:

            def write(window: Window) -> Report:
                from cryptostream_dagster.steps import feature_step

                built = feature_step(connection, window, platform.settings)
                metadata: dict[str, Any] = {
                    "dagster/row_count": len(built.features),
                    "depth_unknown": sum(row.ask_depth_10bps_ms is None for row in built.features),
                    "version": built.version,
                    "digest": built.digest,
                }
                if built.written is not None:
                    metadata["new"] = built.written.new
                    metadata["dropped"] = built.written.dropped
                if shown := _busiest(built.features):
                    metadata["busiest_tickers"] = table(shown)
                return Report(built.digest, metadata)

            return build_windows(context, partitions, write)

    return build


def _busiest(features: "list[TickerFeatures]") -> list[dict[str, str | int]]:
    return [
        {
            "ticker": row.ticker,
            "spread_bps": f"{row.spread_ms / row.weight_ms:.3f}" if row.weight_ms else "",
            "volatility": f"{row.volatility:.6f}" if row.volatility is not None else "",
            "books": row.book_count,
        }
        for row in sorted(features, key=lambda row: (-row.book_count, row.ticker))
    ]
