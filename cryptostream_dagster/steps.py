"""What the assets do for one window, without Dagster: seal, write Parquet, write candles and features.

Every step takes the window's lock, looks at the newest state inside it, writes, and records what it built in
the same transaction. A step that finds nothing to do changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import orjson
import psycopg

from cryptostream_dagster.catalog.complete import wait_until_complete
from cryptostream_dagster.catalog.coverage import Coverage, record_coverage, window_coverage
from cryptostream_dagster.catalog.retention import freeze_gone, is_gone, require_objects, require_raw, thaw
from cryptostream_dagster.catalog.seal import (
    Seal,
    SealedFile,
    has_grown,
    newest_seal,
    seal_window,
    sealed_files,
)
from cryptostream_dagster.day import Day
from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.sql import load_sql
from cryptostream_dagster.transforms.books import BookBuilder, TickerBooks
from cryptostream_dagster.transforms.candles import TickerCandle, window_candles
from cryptostream_dagster.transforms.daily import daily_path
from cryptostream_dagster.transforms.features import TickerFeatures, window_features
from cryptostream_dagster.transforms.raw import RawObject
from cryptostream_dagster.transforms.storage import ObjectGone, Storage, open_storage
from cryptostream_dagster.warehouse.candles import Written, write_candles
from cryptostream_dagster.warehouse.connection import lock_window
from cryptostream_dagster.warehouse.features import FeaturesWritten, write_features
from cryptostream_dagster.warehouse.queries import CANDLES, FEATURES, TABLES
from cryptostream_dagster.warehouse.schema import ensure_partitions
from cryptostream_dagster.window import Window
from ingest_services.errors import UserError
from ingest_services.lake.store import ObjectStore

PARQUET = "orderbook_parquet"

_WAREHOUSE = "cryptostream_dagster.warehouse"


@dataclass(frozen=True, slots=True)
class Sealed:
    """What sealing a window found.

    Attributes:
        seal: The newest seal.
        coverage: The window's coverage.
        lag_s: From the window's end to the sealing, seconds.
    """

    seal: Seal
    coverage: Coverage
    lag_s: float


@dataclass(frozen=True, slots=True)
class ParquetBuilt:
    """What the Parquet step found or wrote.

    Attributes:
        version: Version of the seal that the objects were built from.
        digest: Its digest.
        tickers: What became of each ticker's rows.
        written: False if the objects were there already.
    """

    version: int
    digest: str
    tickers: list[TickerBooks]
    written: bool


@dataclass(frozen=True, slots=True)
class CandlesBuilt:
    """What the candle step computed and changed.

    Attributes:
        version: Version of the seal that the candles were built from.
        digest: Its digest.
        candles: One per ticker with rows.
        written: What changed; None if a newer version was there already.
    """

    version: int
    digest: str
    candles: list[TickerCandle]
    written: Written | None


@dataclass(frozen=True, slots=True)
class FeaturesBuilt:
    """What the feature step computed and changed.

    Attributes:
        version: Version of the seal that the features were built from.
        digest: Its digest.
        features: One per ticker with a usable book.
        written: What changed; None if a newer version was there already.
    """

    version: int
    digest: str
    features: list[TickerFeatures]
    written: FeaturesWritten | None


def seal_step(
    connection: psycopg.Connection,
    store: ObjectStore,
    window: Window,
    settings: PipelineSettings,
    wait_s: float | None = None,
    *,
    synced: bool = False,
) -> Sealed:
    """Wait until a window is complete, seal it and record its coverage.

    Args:
        connection: In autocommit mode.
        store: The lake.
        window: The window.
        settings: `SEAL_WAIT_S` and what counts as late.
        wait_s: How long to wait instead, seconds: what is left to a run over a range.
        synced: The catalog was just synced: if it calls the window complete, the lake need not be asked.

    Raises:
        Incomplete: If it is not complete by then.
        Frozen: If its raw data has expired, or was found to be gone.
        UserError: If the lake is not readable.
    """
    require_raw(connection, window, settings, datetime.now(UTC))
    wait_s = settings.seal_wait_s if wait_s is None else wait_s
    wait_until_complete(connection, store, window, settings.zone, wait_s, synced=synced)
    if has_grown(connection, window) or is_gone(connection, window):
        # Before anything is sealed: what is there by now may be less than what the window was built from.
        require_objects(connection, open_raw(settings), window, settings)
    ensure_partitions(connection, window, settings.zone)
    try:
        return _seal(connection, store, window, settings)
    except ObjectGone as error:
        raise freeze_gone(connection, window, error, settings) from error


def _seal(
    connection: psycopg.Connection, store: ObjectStore, window: Window, settings: PipelineSettings
) -> Sealed:
    with connection.transaction():
        seal = seal_window(connection, window, settings.lateness_s)
        coverage = window_coverage(connection, store, window)
        tickers = sorted({file.ticker for file in sealed_files(connection, seal)})
        record_coverage(connection, window, coverage, settings.source, tickers)
    return Sealed(seal, coverage, (datetime.now(UTC) - window.end).total_seconds())


def parquet_step(
    connection: psycopg.Connection, window: Window, settings: PipelineSettings, *, force: bool = False
) -> ParquetBuilt:
    """Write the Parquet of a window's newest seal, unless it is there already or forced to.

    Raises:
        Frozen: If it is to be written, and the raw data has expired or was found to be gone.
        UserError: If the window was never sealed, or its raw objects are not what their commits say.
    """
    try:
        return _build_parquet(connection, window, settings, force=force)
    except ObjectGone as error:
        raise freeze_gone(connection, window, error, settings) from error


def _build_parquet(
    connection: psycopg.Connection, window: Window, settings: PipelineSettings, *, force: bool
) -> ParquetBuilt:
    raw, parquet = open_raw(settings), open_parquet(settings)
    with connection.transaction():
        lock_window(connection, window)
        seal = newest_seal(connection, window)
        if seal is None:
            raise UserError(
                f"window {window.label(settings.zone)} is not sealed: materialize raw_orderbook first"
            )
        recorded = _recorded_books(connection, window)
        there = _built_version(connection, window, PARQUET) == seal.version
        if there and not force and _all_there(parquet, recorded):
            return ParquetBuilt(seal.version, seal.digest, recorded, written=False)
        require_raw(connection, window, settings, datetime.now(UTC))
        files = sealed_files(connection, seal)
        builder = BookBuilder(
            raw,
            parquet,
            settings.depth,
            settings.zone,
            settings.duckdb_threads,
            settings.duckdb_memory_mb,
        )
        built = builder.build(
            window,
            [
                RawObject(file.path, file.ticker, file.chain, file.rows, file.bytes, file.crc32c)
                for file in files
            ],
            _provenance(seal, files, settings),
        )
        connection.execute("DELETE FROM parquet_file WHERE window_start = %s", (window.start,))
        connection.cursor().executemany(
            load_sql(_WAREHOUSE, "insert_parquet_files"),
            [
                (window.start, t.ticker, t.path, t.bytes, t.sealed_rows, t.rows, t.duplicates, t.quarantined)
                for t in built.tickers
            ],
        )
        connection.execute("DELETE FROM quarantined_line WHERE window_start = %s", (window.start,))
        connection.cursor().executemany(
            load_sql(_WAREHOUSE, "insert_quarantined_lines"),
            [
                (window.start, line.ticker, line.path, line.line, line.partition, line.offset, line.reason)
                for line in built.quarantined
            ],
        )
        gone = [t for t in recorded if t.path and t.path not in {u.path for u in built.tickers}]
        _withdraw_daily(window, [t.ticker for t in gone], settings)
        parquet.delete([t.path for t in gone])
        if there:
            connection.execute(load_sql(_WAREHOUSE, "note_rewritten"), {"start": window.start})
        _note_built(connection, seal, PARQUET)
        thaw(connection, window)
    return ParquetBuilt(seal.version, seal.digest, built.tickers, written=True)


def _withdraw_daily(window: Window, tickers: list[str], settings: PipelineSettings) -> None:
    """Delete the daily files of tickers that have no row in a window any more.

    A reader takes a window from the daily file when its object is not there: before the object goes, the file
    has to. The day is written again soon, because its digest is another one now.
    """
    if tickers and settings.daily_root:
        day = Day.at(window.start, settings.zone)
        daily = open_storage("DAILY_URL", settings.daily_root)
        daily.delete([daily_path(ticker, day) for ticker in tickers])


def candle_step(connection: psycopg.Connection, window: Window, settings: PipelineSettings) -> CandlesBuilt:
    """Write the candles of a window from its Parquet.

    Raises:
        UserError: If there is no Parquet of it.
    """
    ensure_partitions(connection, window, settings.zone)
    with connection.transaction():
        source = _lock_parquet(connection, window, settings)
        candles = window_candles(
            source.parquet,
            source.paths,
            window,
            settings.duckdb_threads,
            settings.duckdb_memory_mb,
            source.digest,
        )
        if _is_newer(connection, window, CANDLES, source):
            return CandlesBuilt(source.version, source.digest, candles, None)
        written = write_candles(connection, window, source.version, candles, settings.zone)
        _finish(connection, window, CANDLES, source)
    return CandlesBuilt(source.version, source.digest, candles, written)


def feature_step(connection: psycopg.Connection, window: Window, settings: PipelineSettings) -> FeaturesBuilt:
    """Write the book features of a window from its Parquet.

    Raises:
        UserError: If there is no Parquet of it.
    """
    ensure_partitions(connection, window, settings.zone)
    with connection.transaction():
        source = _lock_parquet(connection, window, settings)
        features = window_features(
            source.parquet,
            source.paths,
            window,
            settings.duckdb_threads,
            settings.duckdb_memory_mb,
            source.digest,
        )
        if _is_newer(connection, window, FEATURES, source):
            return FeaturesBuilt(source.version, source.digest, features, None)
        written = write_features(connection, window, source.version, features, settings.zone)
        _finish(connection, window, FEATURES, source)
    return FeaturesBuilt(source.version, source.digest, features, written)


def parquet_is_there(connection: psycopg.Connection, window: Window, settings: PipelineSettings) -> bool:
    """Return whether every Parquet object on record of a window is there, with the size on record."""
    return _all_there(open_parquet(settings), _recorded_books(connection, window))


def windows_without_parquet(
    connection: psycopg.Connection, first: Window, last: Window, settings: PipelineSettings
) -> set[Window]:
    """Return the windows from `first` to `last` of which a Parquet object on record is not there."""
    rows = connection.execute(
        "SELECT window_start, path, bytes FROM parquet_file "
        "WHERE window_start >= %s AND window_start <= %s AND path <> ''",
        (first.start, last.start),
    ).fetchall()
    sizes = open_parquet(settings).sizes([row[1] for row in rows])
    return {Window.at(row[0]) for row, size in zip(rows, sizes, strict=True) if size != row[2]}


def open_parquet(settings: PipelineSettings) -> Storage:
    """Open PARQUET_URL."""
    return open_storage("PARQUET_URL", settings.parquet_url)


@dataclass(frozen=True, slots=True)
class _Source:
    """A window's Parquet, and the seal that it was built from."""

    parquet: Storage
    paths: list[str]
    version: int
    digest: str


def _lock_parquet(connection: psycopg.Connection, window: Window, settings: PipelineSettings) -> _Source:
    """Take the window's lock and return its Parquet.

    Raises:
        UserError: If there is none, or it is not what was recorded.
    """
    parquet = open_parquet(settings)
    lock_window(connection, window)
    row = connection.execute(
        "SELECT version, digest FROM built WHERE window_start = %s AND asset = %s", (window.start, PARQUET)
    ).fetchone()
    if row is None:
        raise UserError(
            f"window {window.label(settings.zone)} has no Parquet: materialize orderbook_parquet first"
        )
    recorded = _recorded_books(connection, window)
    if not _all_there(parquet, recorded):
        raise UserError(
            f"window {window.label(settings.zone)}: the Parquet in {parquet.url} is not what was "
            "recorded; materialize orderbook_parquet again"
        )
    return _Source(parquet, [books.path for books in recorded if books.path], row[0], row[1])


def _is_newer(connection: psycopg.Connection, window: Window, table: str, source: _Source) -> bool:
    return (_built_version(connection, window, table) or 0) > source.version


def _finish(connection: psycopg.Connection, window: Window, table: str, source: _Source) -> None:
    """Record that a table has its rows of a window, and the window as built if all tables have."""
    arguments = {
        "start": window.start,
        "asset": table,
        "version": source.version,
        "digest": source.digest,
        "tables": list(TABLES),
    }
    connection.execute(load_sql(_WAREHOUSE, "note_built"), arguments)
    connection.execute(load_sql(_WAREHOUSE, "finish_window"), arguments)


def open_raw(settings: PipelineSettings) -> Storage:
    """Open RAW_URL, to read many objects at once."""
    return open_storage("RAW_URL", settings.raw_url)


def _provenance(seal: Seal, files: list[SealedFile], settings: PipelineSettings) -> dict[str, str]:
    commits = sorted({(file.chain, file.partition, file.base) for file in files})
    return {
        "version": str(seal.version),
        "digest": seal.digest,
        "source": settings.source,
        "window_start": seal.window.start.isoformat(),
        "window_end": seal.window.end.isoformat(),
        "depth": str(settings.depth),
        # Chain, partition and base offset: the name of each commit that the rows came from.
        "commits": orjson.dumps(commits).decode(),
    }


def _built_version(connection: psycopg.Connection, window: Window, asset: str) -> int | None:
    row = connection.execute(
        "SELECT version FROM built WHERE window_start = %s AND asset = %s", (window.start, asset)
    ).fetchone()
    return None if row is None else int(row[0])


def _note_built(connection: psycopg.Connection, seal: Seal, asset: str) -> None:
    connection.execute(
        load_sql(_WAREHOUSE, "note_built"),
        {"start": seal.window.start, "asset": asset, "version": seal.version, "digest": seal.digest},
    )


def _recorded_books(connection: psycopg.Connection, window: Window) -> list[TickerBooks]:
    rows = connection.execute(
        "SELECT ticker, path, bytes, sealed_rows, rows, duplicates, quarantined FROM parquet_file "
        'WHERE window_start = %s ORDER BY ticker COLLATE "C"',
        (window.start,),
    )
    return [TickerBooks(*row) for row in rows]


def _all_there(parquet: Storage, recorded: list[TickerBooks]) -> bool:
    objects = [books for books in recorded if books.path]
    sizes = parquet.sizes([books.path for books in objects])
    return all(size == books.bytes for size, books in zip(sizes, objects, strict=True))


__all__ = [
    "CandlesBuilt",
    "FeaturesBuilt",
    "ParquetBuilt",
    "Sealed",
    "candle_step",
    "feature_step",
    "open_parquet",
    "open_raw",
    "parquet_is_there",
    "parquet_step",
    "seal_step",
    "windows_without_parquet",
]
