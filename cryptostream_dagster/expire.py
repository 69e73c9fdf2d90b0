"""`cryptostream expire`: deletes raw objects that RAW_RETENTION_DAYS calls expired.

For lakes in a folder; a bucket does it by itself, by a lifecycle rule. Belongs here: which objects go, and
what must be so before. Does not belong here: what is refused because of it (`catalog.retention`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import psycopg

from cryptostream_dagster.catalog.retention import MARGIN, freeze_until
from cryptostream_dagster.catalog.sync import sync
from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.sql import load_sql
from cryptostream_dagster.window import Window
from ingest_services.errors import UserError
from ingest_services.lake.layout import read_data_path
from ingest_services.lake.store import DeletableStore, FolderStore, ObjectStore

# What may expire; chains, commits and claims never do.
ROOMS = ("ticker=", "coverage/", "quarantine/")

_FOLDER = "year=%Y/month=%m/day=%d/hour=%H/minute=%M"


@dataclass(frozen=True, slots=True)
class Expired:
    """What expired.

    Attributes:
        until: Objects of minutes that ended by then.
        objects: How many objects.
        deleted: Whether they are gone.
    """

    until: datetime
    objects: int
    deleted: bool


def expire(
    connection: psycopg.Connection,
    store: ObjectStore,
    settings: PipelineSettings,
    now: datetime,
    *,
    delete: bool,
    unbuilt: bool = False,
) -> Expired:
    """Count, or delete, the raw objects of windows that have been frozen by their age for a day.

    The windows are frozen for good before the first object goes, so that nobody builds one meanwhile.

    Args:
        connection: To the warehouse, in autocommit mode.
        store: The lake.
        settings: With `RAW_RETENTION_DAYS`.
        now: The current instant.
        delete: Whether to delete them.
        unbuilt: Whether those of windows that are not built may go, too.

    Raises:
        UserError: If raw data is kept for ever, the store cannot delete, or a window is not built.
    """
    if settings.raw_retention is None:
        raise UserError("RAW_RETENTION_DAYS is not set: raw data is kept for ever")
    until = Window.at(now - settings.raw_retention - MARGIN).start
    sync(connection, store)
    if delete and not unbuilt:
        _require_built(connection, settings, until)
    if not delete:
        return Expired(until, sum(1 for _ in _expired(store, until, settings.zone)), deleted=False)
    if not isinstance(store, DeletableStore):
        raise UserError(f"{store.url}: objects of this kind of store cannot be removed")
    freeze_until(connection, until)
    count = 0
    for path in _expired(store, until, settings.zone):
        store.delete(path)
        count += 1
        if isinstance(store, FolderStore):
            _remove_empty_folders(store, path)
    return Expired(until, count, deleted=True)


def _expired(store: ObjectStore, until: datetime, zone: ZoneInfo) -> Iterator[str]:
    for room in ROOMS:
        for path in store.list(room):
            data = read_data_path(path)
            if data is None:
                continue  # not ours: `gc` lists it
            # Where clocks are set back, a folder holds two minutes: the later one counts.
            minute = datetime.strptime(data.folder, _FOLDER).replace(tzinfo=zone, fold=1)
            if minute.timestamp() + timedelta(minutes=1).total_seconds() <= until.timestamp():
                yield path


def _remove_empty_folders(store: FolderStore, path: str) -> None:
    """Remove the folders that an object leaves empty: with every minute they would outgrow the data."""
    folder = store.root.joinpath(*path.split("/")).parent
    with suppress(OSError):  # it is not empty
        while folder != store.root:
            folder.rmdir()
            folder = folder.parent


def _require_built(connection: psycopg.Connection, settings: PipelineSettings, until: datetime) -> None:
    row = connection.execute(
        load_sql("cryptostream_dagster.catalog", "unbuilt_before"),
        {"since": settings.first_window, "until": until},
    ).fetchone()
    if row is not None and row[0]:
        raise UserError(
            f"windows of expired raw data that are not built as the lake has them: {row[0]}, the first "
            f"{Window.at(row[1]).label(settings.zone)}; raise RAW_RETENTION_DAYS and they will be, or let go "
            "of them: --unbuilt"
        )
