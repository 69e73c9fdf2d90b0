"""What `orderbook_daily` does for one day, without Dagster: its windows' Parquet into one file per ticker.

Each file is recorded when it is written, so that a run that was killed goes on where it was; the day is
recorded when all are. A day whose files are there, of the same windows' versions, is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from itertools import groupby

import psycopg

from cryptostream_dagster.catalog.days import PARQUET, DayState, find_days
from cryptostream_dagster.day import Day
from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.sql import load_sql
from cryptostream_dagster.transforms.daily import DayChangedError, DayWriter, Part, daily_path
from cryptostream_dagster.transforms.storage import Storage, open_storage
from cryptostream_dagster.warehouse.connection import held_day
from cryptostream_dagster.window import Window
from ingest_services.errors import UserError

_WAREHOUSE = "cryptostream_dagster.warehouse"

# Tickers whose windows' objects are listed in memory at once, 288 each.
_TICKERS_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class DailyFile:
    """A file as it is recorded.

    Attributes:
        ticker: Canonical ticker.
        path: Relative to DAILY_URL.
        bytes: Its size.
        rows: Its rows.
        digest: Of the day when it was written.
    """

    ticker: str
    path: str
    bytes: int
    rows: int
    digest: str


@dataclass(frozen=True, slots=True)
class DailyBuilt:
    """What the step found or wrote.

    Attributes:
        digest: Over the versions of the day's windows.
        windows: How many windows the day has.
        files: One per ticker, by ticker.
        written: How many of them were written now.
    """

    digest: str
    windows: int
    files: list[DailyFile]
    written: int


def daily_step(connection: psycopg.Connection, day: Day, settings: PipelineSettings) -> DailyBuilt:
    """Write a closed day's files, unless they are there already.

    Args:
        connection: In autocommit mode.
        day: The day.
        settings: Of the platform.

    Raises:
        UserError: If the day is not closed: the line names windows that are not built. If an object is not
            what was recorded, or another run is writing the day.
        DayChangedError: If a window was built again meanwhile; what was written is of use to the next run.
    """
    parquet, daily = open_storage("PARQUET_URL", settings.parquet_url), open_daily(settings)
    with held_day(connection, day):
        state = _closed(connection, day, settings)
        tickers, recorded = _tickers(connection, day, settings)
        files = {
            file.ticker: file for file in _current(daily, recorded, state.digest) if file.ticker in tickers
        }
        wanted = [ticker for ticker in tickers if ticker not in files]
        gone = [file.path for file in recorded if file.ticker not in tickers]
        if wanted or gone or state.written_digest != state.digest:
            writer = DayWriter(parquet, daily, max(128, settings.duckdb_memory_mb // settings.duckdb_threads))
            for start in range(0, len(wanted), _TICKERS_AT_ONCE):
                batch = _parts(connection, day, settings, wanted[start : start + _TICKERS_AT_ONCE])
                for file in _write(writer, day, batch, state.digest, settings):
                    _note_file(connection, day, file)
                    files[file.ticker] = file
            _finish(connection, daily, day, state, gone, settings)
    return DailyBuilt(state.digest, state.windows, [files[ticker] for ticker in tickers], len(wanted))


def open_daily(settings: PipelineSettings) -> Storage:
    """Open DAILY_URL.

    Raises:
        UserError: If there is none.
    """
    if settings.daily_root is None:
        raise UserError(
            f"PARQUET_URL={settings.parquet_url} is a whole bucket, so that nothing is beside it: say where "
            "daily files go with DAILY_URL"
        )
    return open_storage("DAILY_URL", settings.daily_root)


def _closed(connection: psycopg.Connection, day: Day, settings: PipelineSettings) -> DayState:
    found = find_days(connection, settings, day, day, datetime.now(UTC))
    if not found:
        raise UserError(f"{day}: has no window; the lake began later, or PARTITIONS_START is later")
    state = found[0]
    if not state.is_closed:
        names = [f"{window.local(day.zone):%H:%M%z}" for window in state.first_missing]
        more = f" and {state.missing - len(names)} more" if state.missing > len(names) else ""
        raise UserError(
            f"{day}: {state.missing} of its {state.windows} windows have no Parquet: {', '.join(names)}{more}"
            "; materialize orderbook_parquet of them first"
        )
    return state


def _tickers(
    connection: psycopg.Connection, day: Day, settings: PipelineSettings
) -> tuple[list[str], list[DailyFile]]:
    """Return the tickers with rows on the day, and the files that are recorded of it."""
    found = connection.execute(load_sql(_WAREHOUSE, "day_tickers"), _bounds(day, settings)).fetchall()
    tickers = [ticker for ticker, has_rows, *_ in found if has_rows]
    return tickers, [DailyFile(ticker, *file) for ticker, _, *file in found if file[0] is not None]


def _current(daily: Storage, recorded: Sequence[DailyFile], digest: str) -> list[DailyFile]:
    """Return the files that were written from these versions and are there."""
    files = [file for file in recorded if file.digest == digest]
    sizes = daily.sizes([file.path for file in files])
    return [file for file, size in zip(files, sizes, strict=True) if size == file.bytes]


def _parts(
    connection: psycopg.Connection, day: Day, settings: PipelineSettings, tickers: Sequence[str]
) -> dict[str, list[Part]]:
    arguments = {**_bounds(day, settings), "tickers": list(tickers)}
    rows = connection.execute(load_sql(_WAREHOUSE, "day_parts"), arguments)
    return {
        ticker: [Part(Window.at(start), *part) for _, start, *part in group]
        for ticker, group in groupby(rows, key=lambda row: str(row[0]))
    }


def _write(
    writer: DayWriter,
    day: Day,
    tickers: Mapping[str, Sequence[Part]],
    digest: str,
    settings: PipelineSettings,
) -> Iterator[DailyFile]:
    """Write files, some at a time; yield each when it is there."""
    provenance = {"source": settings.source, "digest": digest}

    def write(ticker: str) -> DailyFile:
        parts = tickers[ticker]
        size = writer.write(ticker, day, parts, provenance)
        return DailyFile(ticker, daily_path(ticker, day), size, sum(part.rows for part in parts), digest)

    with ThreadPoolExecutor(settings.duckdb_threads) as pool:
        try:
            for future in as_completed([pool.submit(write, ticker) for ticker in tickers]):
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _note_file(connection: psycopg.Connection, day: Day, file: DailyFile) -> None:
    names = ("ticker", "path", "bytes", "rows", "digest")
    arguments = dict(zip(names, astuple(file), strict=True))
    connection.execute(load_sql(_WAREHOUSE, "note_daily_file"), {"day": day.date, **arguments})


def _finish(
    connection: psycopg.Connection,
    daily: Storage,
    day: Day,
    state: DayState,
    gone: list[str],
    settings: PipelineSettings,
) -> None:
    """Record the day as written, and forget the files of tickers that have no rows on it any more."""
    with connection.transaction():
        if _closed(connection, day, settings).digest != state.digest:
            raise DayChangedError(
                f"{day}: a window was built again while the day was being written; it is written anew"
            )
        connection.execute("DELETE FROM daily_file WHERE day = %s AND digest <> %s", (day.date, state.digest))
        connection.execute(load_sql(_WAREHOUSE, "note_daily"), {"day": day.date, "digest": state.digest})
        daily.delete(gone)


def _bounds(day: Day, settings: PipelineSettings) -> dict[str, object]:
    return {
        "day": day.date,
        "asset": PARQUET,
        "since": max(day.start, settings.first_window),
        "until": day.end,
    }
