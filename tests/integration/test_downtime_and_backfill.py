"""Dagster is stopped, killed, asked for backfills: every candle is right in the end, with nobody's help."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from cryptostream_dagster.assets.shell import BACKFILL_TAG
from cryptostream_dagster.jobs import RANGE_END_TAG, RANGE_START_TAG
from cryptostream_dagster.settings import PARTITION_KEY_FORMAT
from cryptostream_dagster.window import Window
from tests.candle_reference import ReferenceBook, read_book, reference_candles
from tests.dagster_processes import DagsterProcesses, dagster_processes
from tests.lake_builder import SEOUL, LakeBuilder, Row, covered_minutes, frame
from tests.pipeline import pipeline_settings
from tests.postgres_fixture import TestDatabase
from tests.stack import until

TICKERS = ("BTC", "ETH", "USDT-XRP")
PATIENCE_S = 200


@dataclass
class History:
    """Random books, some of which are delivered late; what the candles must be is worked out in Python."""

    lake: LakeBuilder
    first: Window
    seed: int
    books: list[ReferenceBook] = field(default_factory=list)
    late: list[Row] = field(default_factory=list)

    def deliver(self, windows: int, *, withhold: float = 0.0) -> None:
        """Commit so many further windows; a share of their books is held back."""
        chance = random.Random(f"{self.seed} {self.lake.next}")
        start = self.first.shifted(self.done)
        rows = []
        for n in range(windows):
            for ticker in TICKERS:
                price = chance.randrange(100, 200)
                for _ in range(chance.randrange(1, 12)):
                    tms = start.shifted(n).start_ms + chance.randrange(300_000)
                    price += chance.randrange(-3, 4)
                    row = Row(frame(ticker, tms, [(price + 1, price - 1, 1, 1)]), (tms + 50) * 1000)
                    (self.late if chance.random() < withhold else rows).append(row)
        self._commit(rows, windows)
        self.done += windows
        self.lake.through(self.first.shifted(self.done).start)

    def deliver_late(self) -> None:
        self._commit(self.late, 0)
        self.late = []
        self.lake.through(self.first.shifted(self.done).start)

    def _commit(self, rows: list[Row], windows: int) -> None:
        rows.sort(key=lambda row: row.received_us)
        base = self.lake.next[0]
        start = self.first.shifted(self.done).start
        self.lake.commit(rows, covered_minutes(start, 5 * windows, *TICKERS) if windows else ())
        for number, row in enumerate(rows):
            book = read_book("", row.received_us, base + number, row.frame)
            ticker = {"KRW-BTC": "BTC", "KRW-ETH": "ETH"}.get(market(row.frame), market(row.frame))
            self.books.append(ReferenceBook(ticker, *list(vars(book).values())[1:]))

    done: int = 0

    def wrong(self, connection: psycopg.Connection) -> list[str]:
        """Compare every candle with the reference; return what differs."""
        found = {
            (row[0], row[1]): row[2:]
            for row in connection.execute(
                "SELECT ticker, event_time, open_price, high_price, low_price, close_price, book_count "
                "FROM ohlc_5m_ticker"
            )
        }
        expected = {}
        for n in range(self.done):
            window = self.first.shifted(n)
            inside = [b for b in self.books if window.start_ms <= b.tms < window.end_ms]
            for ticker, c in reference_candles(inside, window.start_ms, window.end_ms).items():
                expected[ticker, window.start] = (c.open, c.high, c.low, c.close, c.book_count)
        return [
            f"{key}: {found.get(key)}, not {expected.get(key)} (seed {self.seed})"
            for key in sorted({*found, *expected})
            if found.get(key) != expected.get(key)
        ]


def market(value: bytes) -> str:
    import orjson

    return str(orjson.loads(value)["cd"])


@dataclass
class Deployed:
    processes: DagsterProcesses
    history: History
    connection: psycopg.Connection

    def unbuilt(self) -> list[datetime]:
        rows = self.connection.execute(
            "SELECT n FROM generate_series(%s::timestamptz, %s, '5 minutes') AS n LEFT JOIN lake_window AS w "
            "ON w.window_start = n WHERE w.built_revision IS DISTINCT FROM w.revision OR w.built_at IS NULL "
            "OR w.built_coverage_revision IS DISTINCT FROM w.coverage_revision",
            (self.history.first.start, self.history.first.shifted(self.history.done - 1).start),
        )
        return [row[0] for row in rows]

    def wait_until_built(self) -> None:
        until(
            lambda: not self.unbuilt() and not self.history.wrong(self.connection),
            PATIENCE_S,
            lambda: f"{self.unbuilt()} {self.history.wrong(self.connection)[:3]} {self.processes.said()}",
        )

    def keys(self, first: int, end: int) -> tuple[str, str]:
        def key(n: int) -> str:
            return self.history.first.shifted(n).local(SEOUL).strftime(PARTITION_KEY_FORMAT)

        return key(first), key(end)


@pytest.fixture
def deployed(tmp_path: Path, database: TestDatabase) -> Iterator[Deployed]:
    first = Window.at(datetime.now(UTC) - timedelta(hours=3))
    start = first.local(SEOUL).strftime(PARTITION_KEY_FORMAT)
    settings = pipeline_settings(tmp_path, database, partitions_start=start, sensor_interval_s=1)
    lake = LakeBuilder(tmp_path / "raw", since=first.start)
    with (
        dagster_processes(tmp_path, database, settings) as processes,
        psycopg.connect(database.dsn, autocommit=True) as connection,
    ):
        done = processes.run("migrate")
        assert done.returncode == 0, done.stderr
        yield Deployed(processes, History(lake, first, random.randrange(2**32)), connection)


@pytest.mark.timeout(600)
def test_after_a_downtime_with_late_data_and_a_killed_code_server_every_candle_is_right(
    deployed: Deployed,
) -> None:
    history, dagster = deployed.history, deployed.processes
    history.deliver(3, withhold=0.3)
    dagster.start()
    deployed.wait_until_built()

    dagster.stop()
    history.deliver(3, withhold=0.2)
    history.deliver_late()
    history.deliver(3)
    assert history.wrong(deployed.connection)
    dagster.start()
    deployed.wait_until_built()
    superseded = deployed.connection.execute("SELECT count(*) FROM ohlc_5m_history").fetchone()
    assert superseded is not None
    assert superseded[0] > 0

    # A code location that is killed in the middle of a run, while more arrives.
    history.deliver(2)
    with dagster.instance() as instance:

        def running() -> bool:
            return bool(instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])))

        until(running, PATIENCE_S, dagster.said)
    dagster.kill_code()
    history.deliver(1)
    dagster.start_code()
    deployed.wait_until_built()

    backfill_leaves_finished_windows_alone(deployed)
    backfill_builds_by_ranged_runs(deployed)
    backfill_names_what_it_could_not_build(deployed)


def backfill_leaves_finished_windows_alone(deployed: Deployed) -> None:
    done = deployed.processes.run("backfill", *deployed.keys(0, 12), "--wait")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "12 windows finished already (--force builds them again)",
        "nothing to build",
    ]


def backfill_builds_by_ranged_runs(deployed: Deployed) -> None:
    deployed.connection.execute("UPDATE ohlc_5m_ticker SET close_price = 1")
    assert deployed.history.wrong(deployed.connection)
    done = deployed.processes.run("backfill", *deployed.keys(0, 12), "--force", "--wait")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert deployed.history.wrong(deployed.connection) == []
    said = done.stdout.splitlines()
    assert "12 windows, ohlc_5m_ticker, " in said[0]
    assert said[-1] == "done: every window is built"
    number = said[0].split()[1].rstrip(":")
    assert any(line.endswith(f"/runs/b/{number}") for line in said)
    with deployed.processes.instance() as instance:
        (run,) = instance.get_runs(dg.RunsFilter(tags={BACKFILL_TAG: number}))
    first, last = deployed.keys(0, 11)
    assert (run.tags[RANGE_START_TAG], run.tags[RANGE_END_TAG]) == (first, last)
    assert run.tags["dagster/priority"] == "-10"


def backfill_names_what_it_could_not_build(deployed: Deployed) -> None:
    bad = deployed.history.first.shifted(4)
    row = deployed.connection.execute(
        "SELECT path FROM lake_file WHERE minute >= %s AND kind = 'book' ORDER BY minute, path LIMIT 1",
        (bad.start,),
    ).fetchone()
    assert row is not None
    damaged = deployed.history.lake.folder / row[0]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-2])
    done = deployed.processes.run("backfill", *deployed.keys(3, 6), "--force", "--wait")
    assert done.returncode == 1, done.stdout
    (line,) = [line for line in done.stdout.splitlines() if row[0] in line]
    assert line.startswith(bad.label(SEOUL))
    assert "1 window not built" in done.stdout.splitlines()[-1]
    damaged.write_bytes(whole)
