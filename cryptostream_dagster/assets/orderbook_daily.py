"""`orderbook_daily`: the books of a closed day, one file per ticker."""

from typing import Any

from dagster import (
    AssetDep,
    AssetExecutionContext,
    AssetsDefinition,
    DataVersion,
    MaterializeResult,
    ResourceParam,
    TimeWindowPartitionMapping,
    TimeWindowPartitionsDefinition,
    asset,
)

from cryptostream_dagster.assets.shell import OWNERS, explained, table_schema
from cryptostream_dagster.partitions import day_of
from cryptostream_dagster.resources import Platform
from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.transforms.schema import book_columns

# Not the windows' group: their job builds a group, and knows only windows.
DAILY_GROUP = "daily"

DESCRIPTION = """The Parquet of a closed day, one file per ticker under a root of its own (`DAILY_URL`).

The rows of the day's windows, one window after the other, in their own order. A day whose windows are not all
built is refused; one of which a window is built again is written again. The windows' objects stay in place.
"""


def orderbook_daily(
    days: TimeWindowPartitionsDefinition, settings: PipelineSettings, parquet: AssetsDefinition
) -> AssetsDefinition:
    """Return the asset."""
    # The first day may have begun before PARTITIONS_START: what is before that is not waited for.
    windows = TimeWindowPartitionMapping(allow_nonexistent_upstream_partitions=True)

    @asset(
        name="orderbook_daily",
        deps=[AssetDep(parquet, partition_mapping=windows)],
        partitions_def=days,
        group_name=DAILY_GROUP,
        owners=OWNERS,
        kinds={"duckdb", "parquet"},
        description=DESCRIPTION,
        metadata={"dagster/column_schema": table_schema(book_columns(settings.depth))},
    )
    def build(context: AssetExecutionContext, platform: ResourceParam[Platform]) -> MaterializeResult[Any]:
        from cryptostream_dagster.daily import daily_step

        key = context.partition_key
        with explained(key), platform.connect() as connection:
            built = daily_step(connection, day_of(days, key, platform.settings), platform.settings)
        return MaterializeResult(
            metadata={
                "dagster/row_count": sum(file.rows for file in built.files),
                "files": len(built.files),
                "bytes": sum(file.bytes for file in built.files),
                "windows": built.windows,
                "written": built.written,
                "digest": built.digest,
                "daily_url": platform.settings.daily_root or "",
            },
            data_version=DataVersion(built.digest),
        )

    return build
