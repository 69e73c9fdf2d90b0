"""`cryptostream backfill`: ask Dagster for a range of windows, and follow it to the end.

An *asset* backfill, put into the instance as the UI does it, so that the assets' own policy makes the runs:
ranged ones, 48 windows each. Belongs here: for which windows of a range there is anything to do, and what
became of them. Does not belong here: building (`assets`), the daemon that launches the runs (Dagster's).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg
from dagster import (
    AssetKey,
    AssetSelection,
    DagsterInstance,
    DagsterRunStatus,
    Definitions,
    PartitionKeyRange,
    RunsFilter,
    TimeWindowPartitionsDefinition,
)
from dagster._core.definitions.assets.graph.asset_graph_subset import AssetGraphSubset
from dagster._core.execution.backfill import (
    BULK_ACTION_TERMINAL_STATUSES,
    BulkActionStatus,
    PartitionBackfill,
)
from dagster._core.utils import make_new_backfill_id
from dotenv import dotenv_values

from cryptostream_dagster.assets.shell import BACKFILL_TAG, FORCE, FORCE_TAG, GROUP
from cryptostream_dagster.catalog.outcome import SEALED, WindowFailure, failures_of_run, finished_windows
from cryptostream_dagster.catalog.retention import frozen_until
from cryptostream_dagster.catalog.sync import sync
from cryptostream_dagster.client import find_state, settings_of_state
from cryptostream_dagster.definitions import build_defs
from cryptostream_dagster.jobs import BACKFILL, KIND_TAG, PRIORITY
from cryptostream_dagster.local.state import url_of
from cryptostream_dagster.partitions import key_of, window_partitions
from cryptostream_dagster.resources import Platform
from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.steps import windows_without_parquet
from cryptostream_dagster.window import Window, windows_between
from ingest_services.errors import UserError
from ingest_services.settings import load_settings

_POLL_S = 1.0
# The backfill daemon looks every half minute and leaves a sign of life each time.
_DAEMON = "BACKFILL"
_SIGN_OF_LIFE_S = 120.0
# Failed windows that are named one by one.
_NAMED = 20

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Deployment:
    """Where Dagster and the data are.

    Attributes:
        settings: Of the pipeline that Dagster runs.
        home: Its DAGSTER_HOME.
        url: Of its UI; None if that is not known.
    """

    settings: PipelineSettings
    home: Path
    url: str | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done for the windows of a range.

    Attributes:
        build: There is something to do.
        finished: Nothing is, and nobody forces it.
        refused: Their raw data has expired: building them would empty them.
    """

    build: tuple[Window, ...]
    finished: tuple[Window, ...]
    refused: tuple[Window, ...]


def find_deployment(state: Path | None) -> Deployment:
    """Find the Dagster that is meant: a local stack's, or the one of DAGSTER_HOME.

    Args:
        state: Folder of a local stack; None: the environment's or `.env`'s, or the only one that runs here.

    Raises:
        UserError: If it is not clear which.
    """
    home = os.environ.get("DAGSTER_HOME") or dotenv_values(".env").get("DAGSTER_HOME")
    if state is None and home:
        return Deployment(load_settings(PipelineSettings), Path(home), None)
    try:
        folder = state or find_state()
    except UserError as error:
        raise UserError(f"which Dagster? DAGSTER_HOME is not set, and {error}") from error
    return Deployment(settings_of_state(folder), folder.absolute() / "dagster", url_of(folder))


def windows_of_range(settings: PipelineSettings, start: str, end: str, now: datetime) -> list[Window]:
    """Return the windows that [start, end) touches.

    Args:
        settings: Their zone and the first window.
        start: An instant or a partition key; without an offset it is the market's time.
        end: The same, exclusive.
        now: The current instant.

    Raises:
        UserError: If one cannot be understood, or there is a window without a partition among them.
    """
    since, until = _instant("FROM", start, settings), _instant("TO", end, settings)
    if since >= until:
        raise UserError(f"FROM {start} is not before TO {end}")
    first = Window.at(since)
    last = Window.at(until)
    if last.start == until:
        last = last.shifted(-1)
    if first.start < settings.first_window:
        raise UserError(
            f"FROM {start} is before the first window, PARTITIONS_START={settings.partitions_start}"
        )
    newest = Window.last_ended(now)
    if last > newest:
        raise UserError(
            f"TO {end} is beyond the newest window that has ended, "
            f"{newest.label(settings.zone)} to {newest.shifted(1).label(settings.zone)}"
        )
    return list(windows_between(first, last))


def plan(
    connection: psycopg.Connection,
    settings: PipelineSettings,
    windows: Sequence[Window],
    assets: Iterable[str],
    now: datetime,
    *,
    force: bool,
) -> Plan:
    """Sort windows by what there is to do.

    Args:
        connection: With a catalog that was just synced.
        settings: Where the Parquet is, and how long raw data is kept.
        windows: In order.
        assets: Names of all that a window consists of.
        now: The current instant.
        force: Take what is finished for unfinished.
    """
    wanted = set(assets) - {SEALED}
    finished: set[Window] = set()
    if not force:
        found = finished_windows(connection, windows[0], windows[-1])
        finished = {window for window, state in found.items() if wanted <= state.assets}
        finished -= windows_without_parquet(connection, windows[0], windows[-1], settings)
    until = frozen_until(connection, settings, now)
    left = [window for window in windows if window not in finished]
    return Plan(
        tuple(window for window in left if until is None or window.end > until),
        tuple(window for window in windows if window in finished),
        tuple(window for window in left if until is not None and window.end <= until),
    )


def ranges(windows: Iterable[Window]) -> list[tuple[Window, Window]]:
    """Return the first and the last window of each unbroken range."""
    found: list[tuple[Window, Window]] = []
    for window in sorted(windows):
        if found and found[-1][1].end == window.start:
            found[-1] = (found[-1][0], window)
        else:
            found.append((window, window))
    return found


def window_assets(defs: Definitions, partitions: TimeWindowPartitionsDefinition) -> set[AssetKey]:
    """Return the assets of the graph that are built window by window."""
    graph = defs.resolve_asset_graph()
    selected = AssetSelection.groups(GROUP).resolve(graph)
    return {key for key in selected if graph.get(key).partitions_def == partitions}


def submit(
    instance: DagsterInstance,
    assets: Iterable[AssetKey],
    partitions: TimeWindowPartitionsDefinition,
    settings: PipelineSettings,
    windows: Sequence[Window],
    *,
    force: bool,
) -> str:
    """Put an asset backfill into the instance; the daemon launches its runs.

    Returns:
        Its id.
    """
    subset = partitions.empty_subset()
    for first, last in ranges(windows):
        keys = PartitionKeyRange(key_of(settings, first), key_of(settings, last))
        subset = subset.with_partition_key_range(partitions, keys)
    backfill_id = make_new_backfill_id()
    request = PartitionBackfill.from_asset_graph_subset(
        backfill_id=backfill_id,
        backfill_timestamp=time.time(),
        tags={
            KIND_TAG: BACKFILL,
            "dagster/priority": str(PRIORITY[BACKFILL]),
            **({FORCE_TAG: FORCE} if force else {}),
        },
        dynamic_partitions_store=instance,
        # A decorator hides the signature of a named tuple.
        asset_graph_subset=AssetGraphSubset(dict.fromkeys(assets, subset), set()),  # type: ignore[call-arg]
        title="cryptostream backfill",
        description=None,
        run_config=None,
    )
    instance.add_backfill(request)
    return str(backfill_id)


def follow(
    instance: DagsterInstance, backfill_id: str, say: Say, poll_s: float = _POLL_S
) -> tuple[BulkActionStatus, list[str]]:
    """Wait until a backfill is over, telling how far it is.

    Args:
        instance: Where it is.
        backfill_id: Which.
        say: Told whenever a run began or ended.
        poll_s: Between two looks, seconds.

    Returns:
        How it ended, and the ids of its runs.
    """
    told = ""
    while True:
        backfill = instance.get_backfill(backfill_id)
        if backfill is None:
            raise UserError(f"backfill {backfill_id} is not in the instance any more")
        runs = instance.get_runs(RunsFilter(tags={BACKFILL_TAG: backfill_id}))
        ended = sum(run.is_finished for run in runs)
        failed = sum(run.status == DagsterRunStatus.FAILURE for run in runs)
        now = f"{ended} of {len(runs)} runs ended" + (f", {failed} of them failed" if failed else "")
        if runs and now != told:
            say(now)
            told = now
        if backfill.status in BULK_ACTION_TERMINAL_STATUSES:
            return backfill.status, [run.run_id for run in runs]
        time.sleep(poll_s)


def backfill(start: str, end: str, state: Path | None, say: Say, *, force: bool, wait: bool) -> int:
    """Submit a backfill of a range of windows; what the command does.

    Args:
        start: As `windows_of_range`.
        end: As `windows_of_range`.
        state: As `find_deployment`.
        say: Told what a person should read, line by line.
        force: Build what is finished, too.
        wait: Follow it to its end.

    Returns:
        Exit status: 1 if a window was refused or, if waited for, not built.

    Raises:
        UserError: If it cannot be submitted.
    """
    deployment = find_deployment(state)
    settings = deployment.settings
    now = datetime.now(UTC)
    windows = windows_of_range(settings, start, end, now)
    defs, partitions = build_defs(settings), window_partitions(settings)
    assets = window_assets(defs, partitions)
    names = {key.to_user_string() for key in assets}
    platform = Platform(settings)
    store = platform.require_lake()
    with platform.connect() as connection:
        sync(connection, store)
        todo = plan(connection, settings, windows, names, now, force=force)
    if todo.finished:
        say(f"{_count(todo.finished)} finished already (--force builds them again)")
    for first, last in ranges(todo.refused):
        span = f"{first.label(settings.zone)} to {last.shifted(1).label(settings.zone)}"
        say(f"refused: {span}: the raw data has expired, and what was built from it stays as it is")
    if not todo.build:
        say("nothing to build")
        return 1 if todo.refused else 0
    with _open_instance(deployment.home) as instance:
        number = submit(instance, assets, partitions, settings, todo.build, force=force)
        say(f"backfill {number}: {_count(todo.build)}, {', '.join(sorted(names))}")
        for first, last in ranges(todo.build):
            say(f"  {first.label(settings.zone)} to {last.shifted(1).label(settings.zone)}")
        say(f"watch it at {deployment.url or 'the Dagster UI'}/runs/b/{number}")
        if not _daemon_lives(instance, now):
            say("no backfill daemon has been seen lately: it begins when `dagster-daemon run` does")
        if not wait:
            return 1 if todo.refused else 0
        status, runs = follow(instance, number, say)
    with platform.connect() as connection:
        failures = [failure for run in runs for failure in failures_of_run(connection, run)]
        left = plan(connection, settings, todo.build, names, now, force=False).build
    return _tell_end(status, left, failures, settings, say) or int(bool(todo.refused))


def _tell_end(
    status: BulkActionStatus,
    left: Sequence[Window],
    failures: Iterable[WindowFailure],
    settings: PipelineSettings,
    say: Say,
) -> int:
    reasons: dict[Window, str] = {}
    for failure in failures:
        reasons.setdefault(failure.window, f"{failure.asset}: {failure.reason}")
    missing = sorted({*left, *reasons})
    for window in missing[:_NAMED]:
        why = reasons.get(window, "not built; its run ended before")
        say(f"{window.label(settings.zone)}: {why}")
    if len(missing) > _NAMED:
        say(f"… and {len(missing) - _NAMED} more")
    if status is BulkActionStatus.COMPLETED_SUCCESS and not missing:
        say("done: every window is built")
        return 0
    what = f"{_count(missing)} not built: ask for the same range again to build the rest"
    say(f"ended as {status.value}, {what}")
    return 1


def _open_instance(home: Path) -> DagsterInstance:
    if not (home / "dagster.yaml").is_file():
        raise UserError(f"{home}: no dagster.yaml there; is DAGSTER_HOME right?")
    return DagsterInstance.from_config(str(home))


def _daemon_lives(instance: DagsterInstance, now: datetime) -> bool:
    heartbeat = instance.get_daemon_heartbeats().get(_DAEMON)
    return heartbeat is not None and now.timestamp() - heartbeat.timestamp < _SIGN_OF_LIFE_S


def _instant(where: str, text: str, settings: PipelineSettings) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=settings.zone)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise UserError(
            f"{where} {text}: is no instant ({error}); write it like 2026-02-03T04:05, or as a partition key"
        ) from error


def _count(windows: Sequence[Window]) -> str:
    return "1 window" if len(windows) == 1 else f"{len(windows)} windows"
