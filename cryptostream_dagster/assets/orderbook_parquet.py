"""`orderbook_parquet`: the books of a sealed window as typed columns, one object per ticker."""

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
    FORCE,
    FORCE_TAG,
    GROUP,
    OWNERS,
    Report,
    build_windows,
    explained,
    table_schema,
)
from cryptostream_dagster.assets.shown import parquet_objects, table
from cryptostream_dagster.resources import Platform
from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.transforms.schema import book_columns
from cryptostream_dagster.window import Window

if TYPE_CHECKING:
    from cryptostream_dagster.transforms.books import TickerBooks

DESCRIPTION = """Each book of a window once, flat, in a total order: one Parquet object per ticker and window.

Padding is NULL, duplicates (redundant producers, reconnects) are removed and counted, lines that do not fit
the schema are quarantined and counted (`quarantined_line` in Postgres says which, and why): sealed rows =
written + duplicates + quarantined. An object's metadata tells its version and the commits it came from.
"""


def orderbook_parquet(
    partitions: TimeWindowPartitionsDefinition, settings: PipelineSettings, raw: AssetsDefinition
) -> AssetsDefinition:
    """Return the asset."""

    @asset(
        name="orderbook_parquet",
        deps=[raw],
        partitions_def=partitions,
        backfill_policy=BACKFILL_POLICY,
        group_name=GROUP,
        owners=OWNERS,
        kinds={"duckdb", "parquet"},
        description=DESCRIPTION,
        metadata={"dagster/column_schema": table_schema(book_columns(settings.depth))},
    )
    def build(context: AssetExecutionContext, platform: ResourceParam[Platform]) -> MaterializeResult[Any]:
        with explained("Postgres"), platform.connect() as connection:

            def write(window: Window) -> Report:
                from cryptostream_dagster.steps import parquet_step

                force = context.run.tags.get(FORCE_TAG) == FORCE
                built = parquet_step(connection, window, platform.settings, force=force)
                metadata: dict[str, Any] = {
                    "dagster/row_count": sum(books.rows for books in built.tickers),
                    "sealed_rows": sum(books.sealed_rows for books in built.tickers),
                    "duplicates": sum(books.duplicates for books in built.tickers),
                    "quarantined": sum(books.quarantined for books in built.tickers),
                    "objects": sum(bool(books.path) for books in built.tickers),
                    "bytes": sum(books.bytes for books in built.tickers),
                    "unchanged": not built.written,
                    "version": built.version,
                    "digest": built.digest,
                    "where": parquet_objects(platform.settings.parquet_url, window, platform.settings.zone),
                }
                if built.tickers:
                    metadata["largest"] = table(_largest(built.tickers))
                return Report(built.digest, metadata)

            return build_windows(context, partitions, write)

    return build


def _largest(tickers: "list[TickerBooks]") -> list[dict[str, str | int]]:
    """Return what became of the rows of the tickers that had most."""
    return [
        {
            "ticker": books.ticker,
            "rows": books.rows,
            "duplicates": books.duplicates,
            "quarantined": books.quarantined,
            "bytes": books.bytes,
        }
        for books in sorted(tickers, key=lambda books: (-books.sealed_rows, books.ticker))
    ]
