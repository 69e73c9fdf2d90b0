"""A backfill by ranged runs against single-partition runs: per window, with their number, in memory.

Each run is a process of its own, as Dagster launches it, on one instance (Postgres) and one lake; all
windows hold the same books. Measured from the start of the process to its end: imports, Dagster's
bookkeeping, sealing, Parquet, candles, checks.

* ranged: runs of 48 windows; and half as many windows, to see whether the time is linear in them;
* single: runs of one window, a few of them;
* finished: the same range once more, as a backfill: nothing is left to do.

Goals: 4 times faster per window, linear, 1.5 GiB at most. The first depends on what a window holds: a run
costs seconds to launch whatever it builds. The default is a quiet window; `--tickers 160 --books 192000` is
the busy one of the other benchmarks. A day: `--windows 288`.
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
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import psycopg
from load.window import WINDOW, ZONE, write_lake
from rich.console import Console
from rich.table import Table

from cryptostream_dagster.assets.shell import BACKFILL_POLICY, BACKFILL_TAG
from cryptostream_dagster.definitions import build_defs
from cryptostream_dagster.jobs import JOB, RANGE_END_TAG, RANGE_START_TAG
from cryptostream_dagster.local.ports import free_port
from cryptostream_dagster.local.postgres import EmbeddedPostgres
from cryptostream_dagster.local_stack import DAGSTER_DATABASE, instance
from cryptostream_dagster.partitions import key_of
from cryptostream_dagster.settings import PARTITION_KEY_FORMAT, PipelineSettings
from cryptostream_dagster.window import Window
from ingest_services.settings import load_settings

ROOT = Path(__file__).parents[1]
DEPTH = 15
SINGLES = 4
LEAST_SPEED_UP = 4
MOST_MEMORY_GIB = 1.5
WINDOWS_A_RUN = BACKFILL_POLICY.max_partitions_per_run or 48


@dataclass(frozen=True)
class Took:
    """What a run took: seconds and the most memory, GiB."""

    seconds: float
    memory: float


def execute(first: str, last: str, backfill: bool) -> None:
    """Be one run: what the child process does."""
    settings = load_settings(PipelineSettings)
    job = build_defs(settings).resolve_job_def(JOB)
    tags = {BACKFILL_TAG: "bench"} if backfill else {}
    with dg.DagsterInstance.get() as opened:
        if first == last:
            result = job.execute_in_process(instance=opened, partition_key=first, tags=tags)
        else:
            tags |= {RANGE_START_TAG: first, RANGE_END_TAG: last}
            result = job.execute_in_process(instance=opened, tags=tags)
    assert result.success
    print(json.dumps({"kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))


class Platform:
    """An instance, a warehouse and a lake; runs are processes beside it."""

    def __init__(self, folder: Path, server: EmbeddedPostgres) -> None:
        self.folder = folder
        self.server = server
        self.home = folder / "dagster"
        self.home.mkdir()
        (self.home / "dagster.yaml").write_text(json.dumps(instance(server)))
        start = f"{WINDOW.local(ZONE):{PARTITION_KEY_FORMAT}}"
        self.settings = PipelineSettings(_env_file=None, partitions_start=start)
        self.environment = {
            **os.environ,
            **server.environment,
            "RAW_URL": (folder / "raw").as_uri(),
            "PARQUET_URL": (folder / "parquet").as_uri(),
            "SOURCE": "simulator",
            "PARTITIONS_START": start,
            "DAGSTER_HOME": str(self.home),
            "PYTHONPATH": str(ROOT),
        }

    def run(self, first: Window, last: Window, *, backfill: bool = False) -> Took:
        began = time.perf_counter()
        keys = [key_of(self.settings, window) for window in (first, last)]
        command = [sys.executable, __file__, "--run", *keys, *(["--backfill"] if backfill else [])]
        done = subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        seconds = time.perf_counter() - began
        return Took(seconds, json.loads(done.stdout.splitlines()[-1])["kib"] / 2**20)

    def ranged(self, first: Window, windows: int, *, backfill: bool = False) -> Took:
        """Build windows by ranged runs, one after the other, as the queue lets them."""
        took = Took(0.0, 0.0)
        for start in range(0, windows, WINDOWS_A_RUN):
            end = min(start + WINDOWS_A_RUN, windows) - 1
            one = self.run(first.shifted(start), first.shifted(end), backfill=backfill)
            took = Took(took.seconds + one.seconds, max(took.memory, one.memory))
        return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=24, help="in one backfill; a day has 288")
    parser.add_argument("--tickers", type=int, default=20)
    parser.add_argument("--books", type=int, default=2_000, help="of a window, all tickers together")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--backfill", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        execute(*given.run, backfill=given.backfill)
        return
    count: int = given.windows
    half = max(2, count // 2)
    console = Console()
    with (
        tempfile.TemporaryDirectory(prefix="cryptostream-backfill-") as folder,
        EmbeddedPostgres(Path(folder) / "postgres", free_port()) as server,
    ):
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {DAGSTER_DATABASE}")
        platform = Platform(Path(folder), server)
        write_lake(
            Path(folder) / "raw", given.tickers, given.books, DEPTH, ".jsonl.zst", SINGLES + half + count
        )
        first = WINDOW
        platform.run(first, first)  # the tables are made, the catalog is synced
        first = first.shifted(1)
        singles = [platform.run(first.shifted(n), first.shifted(n)) for n in range(SINGLES - 1)]
        first = first.shifted(SINGLES - 1)
        few = platform.ranged(first, half)
        first = first.shifted(half)
        many = platform.ranged(first, count)
        again = platform.ranged(first, count, backfill=True)
    single_s = sum(took.seconds for took in singles) / len(singles)
    table = Table(title=f"{given.tickers} tickers, {given.books:,} books a window, depth {DEPTH}")
    for column in ("runs", "windows", "s", "s a window", "GiB"):
        table.add_column(column, justify="left" if column == "runs" else "right")

    def row(name: str, windows: int, took: Took) -> None:
        table.add_row(
            name, str(windows), f"{took.seconds:.1f}", f"{took.seconds / windows:.2f}", f"{took.memory:.2f}"
        )

    total = Took(sum(took.seconds for took in singles), max(took.memory for took in singles))
    row("single", len(singles), total)
    row("ranged, half as many", half, few)
    row("ranged", count, many)
    row("finished already", count, again)
    console.print(table)
    faster = single_s / (many.seconds / count)
    linear = (many.seconds / count) / (few.seconds / half)
    memory = max(few.memory, many.memory)
    for said, good in (
        (f"per window {faster:.1f} times faster than single runs (goal ≥ 4)", faster >= LEAST_SPEED_UP),
        (f"a window of twice as many takes {linear:.2f} times as long (goal ≤ 1.2)", linear <= 1.2),
        (f"memory of a run {memory:.2f} GiB (goal ≤ {MOST_MEMORY_GIB})", memory <= MOST_MEMORY_GIB),
        (f"a finished window {many.seconds / again.seconds:.1f} times faster than one to build", True),
    ):
        console.print(said if good else f"MISSED: {said}")


if __name__ == "__main__":
    main()
