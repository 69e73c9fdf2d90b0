"""What the assets share: one run builds one window or a range of them, each with its own metadata."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dagster import (
    AssetExecutionContext,
    BackfillPolicy,
    DataVersion,
    Failure,
    MaterializeResult,
    TableColumn,
    TableColumnConstraints,
    TableSchema,
    TimeWindowPartitionsDefinition,
)

from cryptostream_dagster.partitions import window_of
from cryptostream_dagster.transforms.schema import Column
from cryptostream_dagster.window import Window
from ingest_services.errors import UserError

GROUP = "orderbook"
OWNERS = ["team:cryptostream"]

# The windows of one run: four hours. The same on every asset, or Dagster would not build them in one run.
BACKFILL_POLICY = BackfillPolicy.multi_run(max_partitions_per_run=48)


@dataclass(frozen=True, slots=True)
class Report:
    """What building a window tells Dagster.

    Attributes:
        digest: The data version: the digest of the sealed window that it was built from.
        metadata: For the window's materialization.
    """

    digest: str
    metadata: Mapping[str, Any]


def build_windows(
    context: AssetExecutionContext,
    partitions: TimeWindowPartitionsDefinition,
    build: Callable[[Window], Report],
) -> MaterializeResult[Any]:
    """Build the run's windows, oldest first.

    Args:
        context: Of the asset.
        partitions: Its partitions.
        build: Builds one window.
    """
    keys = list(context.partition_keys)
    reports = []
    for key in keys:
        with explained(key):
            reports.append(build(window_of(partitions, key)))
    if len(keys) == 1:
        return MaterializeResult(metadata=reports[0].metadata, data_version=DataVersion(reports[0].digest))
    for key, report in zip(keys, reports, strict=True):
        context.add_asset_metadata(report.metadata, partition_key=key)
    # Dagster knows one data version for all partitions of a run; each one's own is in its metadata.
    combined = hashlib.sha256("".join(report.digest for report in reports).encode()).hexdigest()
    return MaterializeResult(data_version=DataVersion(combined))


@contextmanager
def explained(key: str) -> Iterator[None]:
    """Turn what a person can put right into one sentence that the UI shows."""
    import psycopg  # slow to import, and only runs come here

    from cryptostream_dagster.catalog.complete import Incomplete

    try:
        yield
    except (UserError, Incomplete) as error:
        raise Failure(f"{key}: {error}", allow_retries=False) from error
    except psycopg.OperationalError as error:
        raise Failure(f"{key}: Postgres went away: {' '.join(str(error).split())}") from error


def table_schema(columns: Sequence[Column]) -> TableSchema:
    """Return declared columns as Dagster shows them."""
    return TableSchema(
        columns=[
            TableColumn(
                column.name,
                column.kind,
                column.description,
                constraints=TableColumnConstraints(nullable=column.nullable, other=list(column.bounds)),
            )
            for column in columns
        ]
    )
