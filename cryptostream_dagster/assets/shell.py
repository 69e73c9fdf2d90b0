"""What the assets share: one run builds one window or a range of them, each with its own metadata.

In a run over a range no window loses another: what can be built is built and told to Dagster at once, window
by window, each with a data version of its own. What fails is remembered with its reason (`window_failure`),
the later assets of the run leave it out, and the run fails at its end, naming each (`assets.verdict`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from dagster import (
    AssetCheckExecutionContext,
    AssetExecutionContext,
    AssetMaterialization,
    AssetRecordsFilter,
    BackfillPolicy,
    DagsterInstance,
    DataVersion,
    Failure,
    MaterializeResult,
    TableColumn,
    TableColumnConstraints,
    TableSchema,
    TimeWindowPartitionsDefinition,
)
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION

from cryptostream_dagster.partitions import window_of
from cryptostream_dagster.transforms.schema import Column
from cryptostream_dagster.window import Window
from ingest_services.errors import UserError

if TYPE_CHECKING:
    import psycopg

    from cryptostream_dagster.resources import Platform

GROUP = "orderbook"
OWNERS = ["team:cryptostream"]

# The windows of one run: four hours. The same on every asset, or Dagster would not build them in one run.
BACKFILL_POLICY = BackfillPolicy.multi_run(max_partitions_per_run=48)

# Dagster's tag of a run that belongs to a backfill; it has no public name for it.
BACKFILL_TAG = "dagster/backfill"
# A run with this tag builds what is finished once more.
FORCE_TAG = "cryptostream/force"
FORCE = "true"

# The check that fails a run over a range for the windows that it could not build.
VERDICT = "every_window_built"

# Windows that an error names one by one.
_NAMED = 20

# Dagster knows one data version and one outcome for all partitions of a run. We tell it of each by ourselves,
# and this keeps it from adding its own word: it is what Dagster marks assets with that have told already.
_TOLD = {SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION: True}

# Of a run's connections to Dagster's own database. One as old as this is not used again: so a server that was
# started again is found again, with the retries that Dagster has for connecting. A statement of a run takes
# milliseconds.
_RECYCLE_S = 1
_STATEMENT_TIMEOUT_MS = 60_000
_MORE_CONNECTIONS = 10
_kept = WeakSet[DagsterInstance]()


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
    """Build the run's windows, oldest first; what a backfill finds finished it leaves alone, unless forced.

    Args:
        context: Of the asset; it has the resource `platform`.
        partitions: Its partitions.
        build: Builds one window.

    Raises:
        Failure: If a window cannot be built; those of a range that can be are built and told before.
    """
    keep_connection(context.instance)
    platform: Platform = context.resources.platform
    keys = list(context.partition_keys)
    windows = dict(zip(keys, _windows(partitions, keys), strict=True))
    with explained("Postgres"), platform.connect() as connection:
        step = _Step(context, platform, connection, list(windows.values()))
        if len(keys) == 1:
            report, reason = step.outcome(keys[0], windows[keys[0]], build)
            if report is None:
                raise Failure(f"{keys[0]}: {reason}", allow_retries=False)
            return MaterializeResult(metadata=report.metadata, data_version=DataVersion(report.digest))
        failed = {}
        for key, window in windows.items():
            report, reason = step.outcome(key, window, build)
            if report is not None:
                step.tell(key, report)
            else:
                failed[key] = reason
    if failed and not _verdict_follows(context):
        raise Failure(describe_failed(failed, len(keys)), allow_retries=False)
    return MaterializeResult(metadata=_TOLD)


def keep_connection(instance: DagsterInstance) -> None:
    """Let a run's process keep its connection to Dagster's database.

    Dagster opens a new one for each statement, several for each event that is told: of quiet windows that was
    nearly half of the time of a run over a range. Its webserver keeps them by the same call; a run, too, is
    one instance in a process of its own, that ends. Where the storage is no server nothing happens.

    Args:
        instance: The run's.
    """
    if instance not in _kept:
        instance.optimize_for_webserver(_STATEMENT_TIMEOUT_MS, _RECYCLE_S, _MORE_CONNECTIONS)
        _kept.add(instance)


class _Step:
    """One asset's part of a run."""

    def __init__(
        self,
        context: AssetExecutionContext,
        platform: Platform,
        connection: psycopg.Connection,
        windows: Sequence[Window],
    ) -> None:
        from cryptostream_dagster.catalog.outcome import failures_of_run, finished_windows

        self._context = context
        self._platform = platform
        self._connection = connection
        self._asset = context.asset_key.to_user_string()
        self._parents = list(context.assets_def.asset_deps[context.asset_key])
        names = {key.to_user_string() for key in self._parents}
        self._held_back = {
            failure.window: failure.reason
            for failure in failures_of_run(connection, context.run.run_id)
            if failure.asset in names
        }
        tags = context.run.tags
        may_skip = BACKFILL_TAG in tags and tags.get(FORCE_TAG) != FORCE
        self._finished = finished_windows(connection, windows[0], windows[-1]) if may_skip else {}

    def outcome(
        self, key: str, window: Window, build: Callable[[Window], Report]
    ) -> tuple[Report | None, str]:
        """Build a window, or find out why not."""
        from cryptostream_dagster.catalog.outcome import forget_failure, note_failure

        reason = self._held_back.get(window, "")
        report = None
        if not reason:
            try:
                report = self._skip(key, window) or build(window)
            except _what_a_window_can_raise() as error:
                # If it was Postgres that went away this raises, and there is no need to try the others.
                self._connection.execute("SELECT 1")
                reason = " ".join(str(error).split()) or type(error).__name__
                self._context.log.error(f"{key}: {reason}", exc_info=not isinstance(error, UserError))
        if report is None:
            note_failure(self._connection, window, self._asset, self._context.run.run_id, reason)
        else:
            forget_failure(self._connection, window, self._asset)
        return report, reason

    def tell(self, key: str, report: Report) -> None:
        """Tell Dagster that a window is built: now, so that a run that dies has lost nothing."""
        provenance = {}
        for parent in self._parents:
            provenance[f"dagster/input_data_version/{parent.to_user_string()}"] = report.digest
            provenance[f"dagster/input_event_pointer/{parent.to_user_string()}"] = "NULL"
        self._context.log_event(
            AssetMaterialization(
                self._context.asset_key,
                partition=key,
                metadata=report.metadata,
                tags={
                    "dagster/data_version": report.digest,
                    "dagster/data_version_is_user_provided": "true",
                    **provenance,
                },
            )
        )

    def _skip(self, key: str, window: Window) -> Report | None:
        """Return what was told of a window that is finished; None if there is something to do."""
        from cryptostream_dagster.steps import PARQUET, parquet_is_there

        finished = self._finished.get(window)
        if finished is None or self._asset not in finished.assets:
            return None
        if self._asset == PARQUET and not parquet_is_there(self._connection, window, self._platform.settings):
            return None
        told = self._told_before(key, finished.digest)
        metadata = {**told, "version": finished.version, "digest": finished.digest, "skipped": True}
        return Report(finished.digest, metadata)

    def _told_before(self, key: str, digest: str) -> Mapping[str, Any]:
        records = self._context.instance.fetch_materializations(
            AssetRecordsFilter(self._context.asset_key, asset_partitions=[key]), limit=1
        ).records
        told = records[0].asset_materialization if records else None
        if told is None or (told.tags or {}).get("dagster/data_version") != digest:
            return {}
        return dict(told.metadata)


def windows_not_built(
    connection: psycopg.Connection, context: AssetCheckExecutionContext, asset: str
) -> set[Window]:
    """Return the windows of which this run could not build an asset: nothing to check."""
    from cryptostream_dagster.catalog.outcome import failures_of_run

    failures = failures_of_run(connection, context.run.run_id)
    return {failure.window for failure in failures if failure.asset == asset}


def describe_failed(failed: Mapping[str, str], asked: int) -> str:
    """Say which windows of a run were not built, and why.

    Args:
        failed: Reason by partition key.
        asked: Windows that the run was asked for.
    """
    lines = [f"{key}: {reason}" for key, reason in failed.items()]
    shown = "\n".join(lines[:_NAMED]) + (f"\n… and {len(lines) - _NAMED} more" if len(lines) > _NAMED else "")
    return f"{len(lines)} of {asked} windows were not built, the others were:\n{shown}"


def _windows(partitions: TimeWindowPartitionsDefinition, keys: Sequence[str]) -> list[Window]:
    windows = []
    for key in keys:
        with explained(key):
            windows.append(window_of(partitions, key))
    return windows


def _verdict_follows(context: AssetExecutionContext) -> bool:
    """Return whether the run holds the check that will fail it, so that this step need not stop the next."""
    return any(name.endswith(f"_{VERDICT}") for name in context.job_def.graph.node_dict)


def _what_a_window_can_raise() -> tuple[type[Exception], ...]:
    """Return the errors that a window's own data, objects or locks cause: no reason to leave the others."""
    import duckdb  # both are slow to import, and this is asked only after an error
    import psycopg

    from cryptostream_dagster.catalog.complete import Incomplete

    return (UserError, Incomplete, psycopg.Error, duckdb.Error, OSError, ValueError)


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
