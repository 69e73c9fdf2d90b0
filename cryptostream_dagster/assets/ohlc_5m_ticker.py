"""`ohlc_5m_ticker`: candles of the mid of best ask and best bid, in Postgres."""

from typing import TYPE_CHECKING, Any

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
    table_schema,
)
from cryptostream_dagster.assets.shown import table
from cryptostream_dagster.resources import Platform
from cryptostream_dagster.transforms.schema import CANDLE_COLUMNS
from cryptostream_dagster.window import Window

if TYPE_CHECKING:
    from cryptostream_dagster.transforms.candles import TickerCandle

DESCRIPTION = """5-minute candles of the mid of best ask and best bid, one row per ticker with a book.

Quotes, not trades: there is no volume. One-sided and crossed books are excluded and counted. A candle that a
later version of its window replaces moves to `ohlc_5m_history`; `coverage_5m` says how much was listened to.
"""


def ohlc_5m_ticker(partitions: TimeWindowPartitionsDefinition, parquet: AssetsDefinition) -> AssetsDefinition:
    """Return the asset."""

    @asset(
        name="ohlc_5m_ticker",
        deps=[parquet],
        partitions_def=partitions,
        backfill_policy=BACKFILL_POLICY,
        group_name=GROUP,
        owners=OWNERS,
        kinds={"duckdb", "postgres"},
        description=DESCRIPTION,
        metadata={
            "dagster/column_schema": table_schema(CANDLE_COLUMNS),
            "dagster/table_name": "public.ohlc_5m_ticker",
        },
    )
    def build(context: AssetExecutionContext, platform: ResourceParam[Platform]) -> MaterializeResult[Any]:
        with explained("Postgres"), platform.connect() as connection:

            def write(window: Window) -> Report:
                from cryptostream_dagster.glance import pictures
                from cryptostream_dagster.steps import candle_step

                built = candle_step(connection, window, platform.settings)
                metadata: dict[str, Any] = {
                    "dagster/row_count": sum(candle.book_count > 0 for candle in built.candles),
                    "books": sum(candle.book_count for candle in built.candles),
                    "one_sided": sum(candle.one_sided_count for candle in built.candles),
                    "crossed": sum(candle.crossed_count for candle in built.candles),
                    "version": built.version,
                    "digest": built.digest,
                }
                if built.written is not None:
                    metadata["new"] = built.written.new
                    metadata["superseded"] = built.written.superseded
                if shown := _busiest(built.candles):
                    metadata["busiest_tickers"] = table(shown)
                if len(context.partition_keys) == 1:
                    # A backfill's windows are many, and nobody looks at each: the event log is spared.
                    drawn = pictures(connection, window, platform.settings)
                    metadata |= {name: MetadataValue.md(picture) for name, picture in drawn.items()}
                return Report(built.digest, metadata)

            return build_windows(context, partitions, write)

    return build


def _busiest(candles: "list[TickerCandle]") -> list[dict[str, str | int]]:
    return [
        {
            "ticker": candle.ticker,
            "open": _plain(candle.open),
            "high": _plain(candle.high),
            "low": _plain(candle.low),
            "close": _plain(candle.close),
            "books": candle.book_count,
        }
        for candle in sorted(candles, key=lambda candle: (-candle.book_count, candle.ticker))
        if candle.book_count
    ]


def _plain(price: object) -> str:
    text = f"{price:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
