"""A closed day of the exchange into one file per ticker: time, memory, size, and what a reader has of it.

The day is as uneven as the exchange: of 20 tickers one is busy (3,000 books a window), five are middling
(500) and the rest quiet (40). One busy ticker is built by the platform's own steps, window by window; the
others' objects are its rows, all or some of them, under as many names as there are tickers (hard links). So
what is read comes from memory, and what a disk adds is not in the figures; all else is real: every object is
opened, checked and read, and its rows are compressed anew.

* bare: DuckDB copies the windows' objects of 20 tickers to a file for each, without checks or a record;
* again: the same day once more: nothing is left to do;
* scan: DuckDB reads one column of a ticker's day, from its windows' objects and from its file.

Goals: memory of 1.5 GiB at most, a tenth of the day at most in time, one file a ticker in no more bytes, and
read sooner than the windows' objects. `--full` is the whole exchange, 855 tickers: a quarter of a million
objects.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import psycopg
import pyarrow as pa
from load.window import ZONE, write_lake
from pyarrow import parquet
from rich.console import Console
from rich.table import Table

from cryptostream_dagster.catalog.sync import sync
from cryptostream_dagster.daily import daily_step
from cryptostream_dagster.day import Day
from cryptostream_dagster.local.ports import free_port
from cryptostream_dagster.local.postgres import EmbeddedPostgres
from cryptostream_dagster.resources import Platform
from cryptostream_dagster.settings import PARTITION_KEY_FORMAT, PipelineSettings
from cryptostream_dagster.steps import parquet_step, seal_step
from cryptostream_dagster.transforms.books import parquet_path
from cryptostream_dagster.transforms.daily import daily_path
from cryptostream_dagster.transforms.duck import open_duckdb
from cryptostream_dagster.window import Window
from ingest_services.settings import load_settings

ROOT = Path(__file__).parents[1]
DAY = Day(date(2026, 2, 3), ZONE)
DEPTH = 15
WHOLE_EXCHANGE = 855
BUSY, MIDDLING, QUIET = 3_000, 500, 40
MOST_MEMORY_GIB = 1.5
MOST_SECONDS = 8_640
REPEATS = 3
BARE_TICKERS = 20  # as uneven as all of them
FIRST = "T000"  # the ticker that the platform builds


def books_of(number: int) -> int:
    """Return a ticker's books of a window, by its number."""
    return {0: BUSY, 4: MIDDLING, 8: MIDDLING, 12: MIDDLING, 16: MIDDLING, 19: MIDDLING}.get(
        number % 20, QUIET
    )


def ticker_of(number: int) -> str:
    return f"T{number:03d}"


class Place:
    """A lake, a warehouse and the roots of Parquet."""

    def __init__(self, folder: Path, server: EmbeddedPostgres) -> None:
        self.folder = folder
        self.parquet = folder / "parquet"
        self.daily = folder / "daily"
        self.given = {
            "RAW_URL": (folder / "raw").as_uri(),
            "PARQUET_URL": self.parquet.as_uri(),
            "DAILY_URL": self.daily.as_uri(),
            "SOURCE": "simulator",
            "PARTITIONS_START": f"{DAY.start.astimezone(ZONE):{PARTITION_KEY_FORMAT}}",
            **server.environment,
        }
        self.settings = PipelineSettings(
            _env_file=None, **{name.lower(): value for name, value in self.given.items()}
        )

    def fill(self, tickers: int) -> None:
        """Build a day of one busy ticker, and make the others' objects from it."""
        windows = list(DAY.windows())
        write_lake(self.folder / "raw", 1, BUSY, DEPTH, ".jsonl.zst", len(windows), windows[0])
        platform = Platform(self.settings)
        store = platform.require_lake()
        with platform.connect() as connection:
            sync(connection, store)
            for window in windows:
                seal_step(connection, store, window, self.settings, synced=True)
                parquet_step(connection, window, self.settings)
                sizes = self._objects(window, tickers)
                copy = (
                    "COPY parquet_file (window_start, ticker, path, bytes, sealed_rows, rows, duplicates, "
                    "quarantined) FROM STDIN"
                )
                with connection.cursor().copy(copy) as rows:
                    for number in range(1, tickers):
                        ticker, books = ticker_of(number), books_of(number)
                        path = parquet_path(ticker, window, ZONE)
                        rows.write_row((window.start, ticker, path, sizes[books], books, books, 0, 0))
            connection.execute("ANALYZE")

    def _objects(self, window: Window, tickers: int) -> dict[int, int]:
        """Write a window's objects; return the size of one of so many rows."""
        whole = self.parquet / parquet_path(FIRST, window, ZONE)
        table = parquet.ParquetFile(whole).read()
        sources = {BUSY: whole}
        for books in (MIDDLING, QUIET):
            rows = pa.array(range(0, BUSY, BUSY // books)).slice(0, books)
            sources[books] = self.folder / f"{books}.parquet"
            sources[books].unlink(missing_ok=True)  # its links keep what it was
            parquet.write_table(table.take(rows), sources[books], compression="zstd")
        for number in range(1, tickers):
            path = self.parquet / parquet_path(ticker_of(number), window, ZONE)
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(sources[books_of(number)], path)
        return {books: source.stat().st_size for books, source in sources.items()}

    def child(self, what: str, tickers: int) -> dict[str, float]:
        """Do something in a process of its own, whose memory is nobody else's."""
        done = subprocess.run(
            [sys.executable, __file__, "--child", what, "--tickers", str(tickers)],
            env={**os.environ, **self.given, "PYTHONPATH": str(ROOT)},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        said: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return said

    def windows_of(self, ticker: str) -> list[str]:
        return [str(self.parquet / parquet_path(ticker, window, ZONE)) for window in DAY.windows()]


def be_child(what: str, tickers: int) -> None:
    """Write the day, by the step or barely; say what it took."""
    settings = load_settings(PipelineSettings)
    platform = Platform(settings)
    written = 0
    if what == "step":
        with platform.connect() as connection:
            began = time.perf_counter()
            written = daily_step(connection, DAY, settings).written
    else:
        root = Path(str(settings.daily_root).removeprefix("file://")).with_name("bare")
        root.mkdir()
        objects = Path(settings.parquet_url.removeprefix("file://"))
        session = open_duckdb(settings.duckdb_threads, settings.duckdb_memory_mb, root / "spill")
        began = time.perf_counter()
        for number in range(tickers):
            ticker = ticker_of(number)
            glob = objects / f"ticker={ticker}" / "**" / "*.parquet"
            session.execute(
                f"COPY (FROM read_parquet('{glob}', hive_partitioning = false)) "
                f"TO '{root / ticker}.parquet' (FORMAT parquet, COMPRESSION zstd)"
            )
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = time.perf_counter() - began
    print(
        json.dumps(
            {
                "s": seconds,
                "cpu": used.ru_utime + used.ru_stime,
                "gib": used.ru_maxrss / 2**20,
                "files": written,
            }
        )
    )


def scan(files: Sequence[str]) -> float:
    """Return how long it takes DuckDB to read a column, the best of some times."""
    session = open_duckdb(2, 1024, None)

    def once() -> float:
        began = time.perf_counter()
        session.execute(
            "SELECT max(ask_price1), min(exchange_time) FROM read_parquet($files, hive_partitioning = false)",
            {"files": list(files)},
        ).fetchall()
        return time.perf_counter() - began

    try:
        return min(once() for _ in range(REPEATS))
    finally:
        session.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tickers", type=int, default=40)
    parser.add_argument("--full", action="store_true", help=f"the whole exchange, {WHOLE_EXCHANGE} tickers")
    parser.add_argument("--child", choices=("step", "bare"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    tickers: int = WHOLE_EXCHANGE if given.full else given.tickers
    if given.child:
        be_child(given.child, tickers)
        return
    console = Console(width=None if sys.stdout.isatty() else 120)
    with (
        tempfile.TemporaryDirectory(prefix="cryptostream-daily-") as folder,
        EmbeddedPostgres(Path(folder) / "postgres", free_port()) as server,
    ):
        place = Place(Path(folder), server)
        place.fill(tickers)
        with psycopg.connect(server.dsn) as connection:
            (before,) = connection.execute(
                "SELECT count(*), sum(bytes)::bigint, sum(rows)::bigint FROM parquet_file"
            ).fetchall()
        day = place.child("step", tickers)
        again = place.child("step", tickers)
        some = min(tickers, BARE_TICKERS)
        bare = place.child("bare", some)
        files = [place.daily / daily_path(ticker_of(number), DAY) for number in range(tickers)]
        after = sum(file.stat().st_size for file in files)
        ours = sum(Path(path).stat().st_size for path in place.windows_of(FIRST)), files[0].stat().st_size
        scans = []
        for number, name in ((0, "busy"), (4, "middling"), (1, "quiet")):
            if number < tickers:
                objects = place.windows_of(ticker_of(number))
                scans.append((name, scan(objects), scan([str(files[number])])))
    console.print(f"{tickers} tickers, {before[0]:,} objects, {before[2]:,} rows of a day")
    table = Table()
    for column in ("what", "s", "processor s", "GiB"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for name, took in (("step", day), ("again", again), (f"bare, {some} tickers", bare)):
        table.add_row(name, f"{took['s']:.1f}", f"{took['cpu']:.1f}", f"{took['gib']:.2f}")
    console.print(table)
    ratio = after / before[1]
    for said, good in (
        (f"{before[1] / 1e9:.2f} GB before, {after / 1e9:.2f} GB after: {ratio:.2f} times", ratio <= 1),
        (
            f"the ticker that the steps built: {ours[0] / 1e6:.1f} MB before, {ours[1] / 1e6:.1f} MB after",
            ours[1] <= ours[0],
        ),
        (
            f"a ticker takes {day['s'] / tickers:.2f} s, barely copied {bare['s'] / some:.2f} s "
            f"(of the processor {day['cpu'] / tickers:.2f} and {bare['cpu'] / some:.2f})",
            True,
        ),
        (f"memory {day['gib']:.2f} GiB (goal ≤ {MOST_MEMORY_GIB})", day["gib"] <= MOST_MEMORY_GIB),
        (f"{day['s']:.0f} s for the day (goal ≤ {MOST_SECONDS})", day["s"] <= MOST_SECONDS),
        (f"{day['files']:.0f} files written, then {again['files']:.0f}", not again["files"]),
        *(
            (f"scan of a {name} ticker: {one * 1000:.0f} ms before, {two * 1000:.0f} ms after", two < one)
            for name, one, two in scans
        ),
    ):
        console.print(said if good else f"MISSED: {said}")


if __name__ == "__main__":
    main()
