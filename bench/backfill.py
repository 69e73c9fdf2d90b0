"""A backfill by ranged runs against single-partition runs: per window, with their number, in memory.

Each run is a process of its own, as Dagster launches it, on one instance (Postgres) and one lake; all
windows hold the same books. Measured from the start of the process to its end: imports, Dagster's
bookkeeping, sealing, Parquet, candles, checks.

* ranged: runs of 48 windows, and half as many windows; of more than two runs, the first third of them and
  the last: is the time linear in windows?
* single: runs of one window, a few of them;
* bare: the same steps and the same questions without Dagster, imports done: what a window itself takes;
* finished: the same range once more, as a backfill: nothing is left to do.

Goals: 4 times faster per window, linear, 1.5 GiB at most; every window materialized, each of its checks
answered. The first depends on what a window holds: a run costs seconds to launch whatever it builds, and no
run builds a window in less than the bare steps take; the table says what that leaves. The default is a quiet
window; `--tickers 160 --books 192000` is the busy one of the other benchmarks.

A day, as a person asks for it: `--windows 288 --tickers 160 --daemon` puts one backfill into the instance,
and Dagster's own daemon and code server launch its runs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import dagster as dg
import psycopg
from load.servers import daemon
from load.stack import cpu_s
from load.window import WINDOW, ZONE, write_lake
from rich.console import Console
from rich.table import Table

from cryptostream_dagster.assets.shell import BACKFILL_POLICY, BACKFILL_TAG, VERDICT
from cryptostream_dagster.backfill import follow, submit, window_assets
from cryptostream_dagster.catalog.sync import sync
from cryptostream_dagster.definitions import build_defs
from cryptostream_dagster.jobs import JOB, RANGE_END_TAG, RANGE_START_TAG
from cryptostream_dagster.local.ports import free_port
from cryptostream_dagster.local.postgres import EmbeddedPostgres
from cryptostream_dagster.local_stack import DAGSTER_DATABASE, instance
from cryptostream_dagster.partitions import key_of, window_partitions
from cryptostream_dagster.questions import QUESTIONS, Ground
from cryptostream_dagster.resources import Platform
from cryptostream_dagster.settings import PARTITION_KEY_FORMAT, PipelineSettings
from cryptostream_dagster.steps import candle_step, feature_step, parquet_step, seal_step
from cryptostream_dagster.window import Window, windows_between
from ingest_services.settings import load_settings

ROOT = Path(__file__).parents[1]
DEPTH = 15
SINGLES = 4
BARE = 8
LEAST_SPEED_UP = 4
MOST_MEMORY_GIB = 1.5
MOST_GROWTH = 1.2
WINDOWS_A_RUN = BACKFILL_POLICY.max_partitions_per_run or 48
LOOK_S = 0.2
LAST = "ohlc_5m_ticker"  # the asset that the verdict on a run belongs to
# Each check must have an answer of each window; that it holds is another matter, of the books.
CHECK_RESULTS = (
    "SELECT check_name, asset_key, count(DISTINCT partition) FROM asset_check_executions "
    "WHERE execution_status IN ('SUCCEEDED', 'FAILED') AND partition = ANY(%s) GROUP BY 1, 2"
)


@dataclass(frozen=True)
class Took:
    """What one run took, or several: windows, seconds, the processor's, and the most memory of one, GiB."""

    windows: int
    seconds: float
    processor: float
    memory: float

    @property
    def each(self) -> float:
        """Seconds a window."""
        return self.seconds / self.windows

    @property
    def work(self) -> float:
        """Processor seconds a window."""
        return self.processor / self.windows


def together(runs: Sequence[Took]) -> Took:
    return Took(
        sum(run.windows for run in runs),
        sum(run.seconds for run in runs),
        sum(run.processor for run in runs),
        max(run.memory for run in runs),
    )


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
    say()


def say(since: tuple[float, float] = (0.0, 0.0)) -> None:
    """Tell the parent what this process has used, since an instant and its processor time by then."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds, processor = time.perf_counter() - since[0], time.process_time() - since[1]
    print(json.dumps({"s": seconds, "processor": processor, "kib": used.ru_maxrss}))


def build_bare(first: str, last: str) -> None:
    """Build windows without Dagster; the first one brings the imports and is not counted."""
    settings = load_settings(PipelineSettings)
    platform = Platform(settings)
    store = platform.require_lake()
    began = time.perf_counter(), time.process_time()
    start, end = (
        Window.at(window_partitions(settings).start_time_for_partition_key(k)) for k in (first, last)
    )
    with platform.connect() as connection:
        sync(connection, store)
        for window in windows_between(start, end):
            seal_step(connection, store, window, settings, synced=True)
            parquet_step(connection, window, settings)
            candle_step(connection, window, settings)
            feature_step(connection, window, settings)
            ground = Ground(connection, settings)
            for question in QUESTIONS:
                question.ask(ground, window)
            if window == start:
                began = time.perf_counter(), time.process_time()
    say(began)


class Place:
    """An instance, a warehouse and a lake; runs are processes beside it."""

    def __init__(self, folder: Path, server: EmbeddedPostgres) -> None:
        self.folder = folder
        self.server = server
        self.home = folder / "dagster"
        self.home.mkdir()
        (self.home / "dagster.yaml").write_text(json.dumps(instance(server)))
        start = f"{WINDOW.local(ZONE):{PARTITION_KEY_FORMAT}}"
        given = {
            "RAW_URL": (folder / "raw").as_uri(),
            "PARQUET_URL": (folder / "parquet").as_uri(),
            "SOURCE": "simulator",
            "PARTITIONS_START": start,
            **server.environment,
        }
        self.settings = PipelineSettings(
            _env_file=None, **{name.lower(): value for name, value in given.items()}
        )
        self.environment = {
            **os.environ,
            **given,
            "DAGSTER_HOME": str(self.home),
            "PYTHONPATH": str(ROOT),
        }
        self.assets = window_assets(build_defs(self.settings), window_partitions(self.settings))

    def keys(self, first: Window, windows: int) -> list[str]:
        return [key_of(self.settings, first.shifted(n)) for n in range(windows)]

    def run(self, first: Window, windows: int = 1, *, backfill: bool = False) -> Took:
        began = time.perf_counter()
        said = self._child("--run", first, windows, *(["--backfill"] if backfill else []))
        return Took(windows, time.perf_counter() - began, said["processor"], said["kib"] / 2**20)

    def bare(self, first: Window, windows: int) -> Took:
        """Build windows without Dagster, and the one before them to begin with."""
        said = self._child("--bare", first.shifted(-1), windows + 1)
        return Took(windows, said["s"], said["processor"], said["kib"] / 2**20)

    def ranged(self, first: Window, windows: int, *, backfill: bool = False) -> list[Took]:
        """Build windows by ranged runs, one after the other, as the queue lets them."""
        return [
            self.run(first.shifted(start), min(WINDOWS_A_RUN, windows - start), backfill=backfill)
            for start in range(0, windows, WINDOWS_A_RUN)
        ]

    def backfilled(self, first: Window, windows: int) -> list[Took]:
        """Ask for a backfill and let the daemon do it; return its runs.

        A run's time is from the end of the one before, so that the sum is all of the time that it took.
        """
        watched = Watched(self.home)
        with dg.DagsterInstance.from_config(str(self.home)) as opened, daemon(self.home, self.environment):
            began = time.time()
            wanted = [first.shifted(n) for n in range(windows)]
            partitions = window_partitions(self.settings)
            with watched:
                number = submit(opened, self.assets, partitions, self.settings, wanted, force=False)
                status, runs = follow(opened, number, print, LOOK_S)
            assert status.value == "COMPLETED_SUCCESS", status
            records = opened.get_run_records(dg.RunsFilter(run_ids=runs))
        ends = sorted(record.end_time or 0.0 for record in records)
        counts = [min(WINDOWS_A_RUN, windows - start) for start in range(0, windows, WINDOWS_A_RUN)]
        # Beside each run the code server has processes that are no run's alone.
        used = sum(watched.processor.values()) / windows
        return [
            Took(count, until - since, count * used, watched.gib)
            for count, (since, until) in zip(counts, pairwise([began, *ends]), strict=True)
        ]

    @property
    def dagster_dsn(self) -> str:
        return self.server.dsn.rpartition("/")[0] + "/" + DAGSTER_DATABASE

    def dagster_bytes(self) -> int:
        """Return the size of Dagster's own database."""
        with psycopg.connect(self.dagster_dsn) as connection:
            row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
        assert row is not None
        return int(row[0])

    def told(self, first: Window, windows: int) -> list[str]:
        """Say what Dagster does not show of windows as it should: materializations, results of checks."""
        keys = self.keys(first, windows)
        wrong = []
        with dg.DagsterInstance.from_config(str(self.home)) as opened:
            for asset in self.assets:
                if missing := set(keys) - set(opened.get_materialized_partitions(asset)):
                    wrong.append(f"{asset.to_user_string()}: {len(missing)} windows are not materialized")
        with psycopg.connect(self.dagster_dsn) as connection:
            results = connection.execute(CHECK_RESULTS, (keys,)).fetchall()
        asked = {(question.asset, question.name) for question in QUESTIONS} | {(LAST, VERDICT)}
        answered = {(dg.AssetKey.from_db_string(asset), name): n for name, asset, n in results}
        for asset, name in sorted(asked):
            found = answered.get((dg.AssetKey(asset), name), 0)
            if found != windows:
                wrong.append(f"{asset} {name}: answered of {found} windows")
        return wrong

    def _child(self, what: str, first: Window, windows: int, *more: str) -> dict[str, float]:
        keys = [key_of(self.settings, window) for window in (first, first.shifted(windows - 1))]
        command = [sys.executable, __file__, what, *keys, *more]
        done = subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        said: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return said


class Watched:
    """Looks at the runs' processes while a `with` block lasts.

    Args:
        home: The instance's folder.

    Attributes:
        gib: The most memory that one of them had.
        processor: Processor seconds of each by its id.
    """

    def __init__(self, home: Path) -> None:
        self._ours = f"DAGSTER_HOME={home}".encode()
        self.gib = 0.0
        self.processor: dict[str, float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *raised: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    # A run is a process that our code server spawns.
                    if b"spawn_main" not in (process / "cmdline").read_bytes():
                        continue
                    if self._ours not in (process / "environ").read_bytes():
                        continue
                    status = (process / "status").read_text()
                    self.processor[process.name] = cpu_s(int(process.name))
                except OSError:
                    continue  # it has ended
                for line in status.splitlines():
                    if line.startswith("VmHWM"):
                        self.gib = max(self.gib, int(line.split()[1]) / 2**20)


def growth(few: Took | None, many: Sequence[Took]) -> tuple[str, float]:
    """Say how much longer a window takes of the processor where there are more of them.

    Of the processor, because what else a machine does is not a matter of the number of windows.

    Args:
        few: Half as many; None: the first third of the runs is compared with the last.
        many: The runs.
    """
    if few is not None:
        return "of twice as many", together(many).work / few.work
    third = len(many) // 3
    return "of the last third of the runs", together(many[-third:]).work / together(many[:third]).work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=24, help="in one backfill; a day has 288")
    parser.add_argument("--tickers", type=int, default=20)
    parser.add_argument("--books", type=int, default=2_000, help="of a window, all tickers together")
    parser.add_argument("--daemon", action="store_true", help="let Dagster's daemon launch the ranged runs")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--bare", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--backfill", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        execute(*given.run, backfill=given.backfill)
        return
    if given.bare:
        build_bare(*given.bare)
        return
    count: int = given.windows
    # What each of the daemon's runs takes of the processor is not known.
    half = max(2, count // 2) if count <= 2 * WINDOWS_A_RUN or given.daemon else 0
    console = Console(width=None if sys.stdout.isatty() else 120)
    with (
        tempfile.TemporaryDirectory(prefix="cryptostream-backfill-") as folder,
        EmbeddedPostgres(Path(folder) / "postgres", free_port()) as server,
    ):
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {DAGSTER_DATABASE}")
        place = Place(Path(folder), server)
        lake = Path(folder) / "raw"
        write_lake(lake, given.tickers, given.books, DEPTH, ".jsonl.zst", SINGLES + 1 + BARE + half + count)
        window = WINDOW
        place.run(window)  # the tables are made, the catalog is synced
        singles = [place.run(window.shifted(n)) for n in range(1, SINGLES)]
        window = window.shifted(SINGLES + 1)
        bare = place.bare(window, BARE)
        window = window.shifted(BARE)
        few = together(place.ranged(window, half)) if half else None
        window = window.shifted(half)
        size = place.dagster_bytes()
        many = place.backfilled(window, count) if given.daemon else place.ranged(window, count)
        size = place.dagster_bytes() - size
        wrong = place.told(window, count)
        again = together(place.ranged(window, count, backfill=True))
    single, whole = together(singles), together(many)
    table = Table(title=f"{given.tickers} tickers, {given.books:,} books a window, depth {DEPTH}")
    for column in ("what", "windows", "s", "s a window", "processor s a window", "GiB"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for name, took in (
        ("single", single),
        ("bare", bare),
        ("ranged, half as many", few),
        ("ranged, one backfill of the daemon's" if given.daemon else "ranged", whole),
        ("finished already", again),
    ):
        if took is not None:
            cells = (f"{took.seconds:.1f}", f"{took.each:.3f}", f"{took.work:.3f}")
            table.add_row(name, str(took.windows), *cells, f"{took.memory:.2f}")
    console.print(table)
    faster = single.each / whole.each
    what, grown = growth(few, many)
    memory = max(took.memory for took in (few, whole) if took is not None)
    for said, good in (
        (
            f"per window {faster:.1f} times faster than single runs (goal ≥ {LEAST_SPEED_UP}); "
            f"the bare steps are {single.each / bare.each:.1f} times faster",
            faster >= LEAST_SPEED_UP,
        ),
        (
            f"Dagster and the process add {single.each - bare.each:.2f} s to a window alone, "
            f"{whole.each - bare.each:.2f} s to one of many",
            True,
        ),
        (
            f"a window {what} takes {grown:.2f} times as much of the processor (goal ≤ {MOST_GROWTH})",
            grown <= MOST_GROWTH,
        ),
        (f"memory of a run {memory:.2f} GiB (goal ≤ {MOST_MEMORY_GIB})", memory <= MOST_MEMORY_GIB),
        (f"a finished window {whole.each / again.each:.1f} times faster than one to build", True),
        (f"a window is {size / count / 1000:.0f} kB in Dagster's database", True),
        (
            "; ".join(wrong)
            or f"every window materialized by each of {len(place.assets)} assets, and each of its "
            f"{len(QUESTIONS) + 1} checks answered",
            not wrong,
        ),
    ):
        console.print(said if good else f"MISSED: {said}")


if __name__ == "__main__":
    main()
