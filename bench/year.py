"""A year of windows materialized: the asset page's queries and the sensor's tick.

The year is synthetic: one real event an asset, told by Dagster, and copies of it for all the other windows,
put into Dagster's Postgres in bulk; the catalog likewise. Then

* the queries that the UI's asset page sends (`PartitionHealthQuery`, `AssetHealthQuery`, word for word as the
  webserver's page holds them), to a real webserver with a real code server behind it: the first one after a
  start, which computes what Dagster keeps, and one when the next window has been built;
* a tick of the sensor: with nothing to do, with every window unbuilt, and with a backfill's runs queued.

Goal: under 1 s each, but for the first look after a start, which is given beside it. `PartitionHealthQuery`
asks for every partition's key. Dagster makes them anew for each answer, one by one from the cron line, from a
definition of its own and not from ours, and then sends them: what of them is materialized takes 0.1 s. No
asset with so many partitions has its page sooner, which two more rows show: the same query for

* a bare asset: one in a code location of its own, with as many partitions, in UTC (which is the quickest
  zone), nothing of it materialized;
* ours with half the partitions, PARTITIONS_START moved forward: what a person can do.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import dagster_webserver
import psycopg
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.test_utils import create_run_for_test
from load.servers import webserver
from rich.console import Console
from rich.table import Table

from cryptostream_dagster.assets.shell import BACKFILL_TAG
from cryptostream_dagster.backfill import window_assets
from cryptostream_dagster.definitions import build_defs
from cryptostream_dagster.jobs import RANGE_END_TAG, RANGE_START_TAG
from cryptostream_dagster.local.ports import free_port
from cryptostream_dagster.local.postgres import EmbeddedPostgres
from cryptostream_dagster.local_stack import DAGSTER_DATABASE, instance
from cryptostream_dagster.partitions import key_of, window_partitions
from cryptostream_dagster.resources import Platform
from cryptostream_dagster.settings import PARTITION_KEY_FORMAT, PipelineSettings
from cryptostream_dagster.window import Window
from ingest_services.lake import chain as chains
from ingest_services.lake.layout import claim_lake

ROOT = Path(__file__).parents[1]
GOAL_S = 1.0
KEYS_QUERY = "PartitionHealthQuery"
REPEATS = 5
WINDOWS_A_RUN = 48
COPIES = (
    "INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, step_key, asset_key, partition) "
    "SELECT run_id, replace(event, %(key)s, to_char({at}, 'YYYY-MM-DD\"T\"HH24:MI+0900')), "
    "dagster_event_type, timestamp, step_key, asset_key, to_char({at}, 'YYYY-MM-DD\"T\"HH24:MI+0900') "
    "FROM event_logs, generate_series(%(first)s::timestamptz, %(last)s, '5 minutes') AS n "
    "WHERE asset_key = %(asset)s AND partition = %(key)s"
).format(at="n AT TIME ZONE 'Asia/Seoul'")


class Year:
    """An instance, a warehouse and a lake that hold so many windows, the newest of them just ended."""

    def __init__(self, folder: Path, server: EmbeddedPostgres, windows: int) -> None:
        self.server = server
        self.last = Window.last_ended(datetime.now(UTC)).shifted(-1)
        self.first = self.last.shifted(1 - windows)
        self.settings = PipelineSettings(
            _env_file=None,
            raw_url=(folder / "raw").as_uri(),
            parquet_url=(folder / "parquet").as_uri(),
            source="simulator",
            **{name.lower(): value for name, value in server.environment.items()},
        )
        start = self.first.local(self.settings.zone).strftime(PARTITION_KEY_FORMAT)
        self.settings = self.settings.model_copy(update={"partitions_start": start})
        self.home = folder / "dagster"
        self.home.mkdir()
        (self.home / "dagster.yaml").write_text(json.dumps(instance(server)))
        self.defs = build_defs(self.settings)
        self.partitions = window_partitions(self.settings)
        self.assets = window_assets(self.defs, self.partitions)
        self.platform = Platform(self.settings)

    @property
    def dsn(self) -> str:
        return self.server.dsn.rpartition("/")[0] + "/" + DAGSTER_DATABASE

    def fill(self, opened: dg.DagsterInstance) -> None:
        """Materialize all windows but the newest, in Dagster and in the catalog."""
        key = key_of(self.settings, self.first)
        for asset in self.assets:
            opened.report_runless_asset_event(
                dg.AssetMaterialization(
                    asset,
                    partition=key,
                    metadata={"dagster/row_count": 192_000, "version": 1, "digest": "0" * 64},
                    tags={"dagster/data_version": "0" * 64},
                )
            )
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            for asset in self.assets:
                connection.execute(
                    COPIES,
                    {
                        "key": key,
                        "asset": asset.to_string(),
                        "first": self.first.shifted(1).start,
                        "last": self.last.shifted(-2).start,
                    },
                )
            connection.execute("ANALYZE")
        # Dagster remembers the newest event of an asset: one that it was told of, after all the copies.
        self.tell(opened, self.last.shifted(-1))
        store = self.platform.store
        claim_lake(store, "simulator", "Asia/Seoul")
        log = {0: 0}
        chain = chains.open_chain(store, "orderbook", "topic-1", log, lambda: log, self.first.start_ms)
        progress = chains.Progress(chain.number, 0, 0, self.last.end_ms, self.last.end_ms + 5000)
        chains.write_progress(store, progress)
        with self.platform.connect() as connection:
            series = "generate_series(%s::timestamptz, %s, '5 minutes') AS n"
            span = (self.first.start, self.last.start)
            connection.execute(
                "INSERT INTO lake_window (window_start, rows, revision, coverage_revision, built_revision, "
                "built_coverage_revision, built_at, first_change_at, last_change_at) "
                f"SELECT n, 192000, 1, 1, 1, 1, n, n, n FROM {series}",
                span,
            )
            connection.execute(
                "INSERT INTO seal SELECT n, 1, repeat('0', 64), 1, 1, n, 800, 192000, 70000000, 160, 0, 0 "
                f"FROM {series}",
                span,
            )
            for asset in self.assets:
                connection.execute(
                    f"INSERT INTO built SELECT n, %s, 1, repeat('0', 64), n FROM {series}",
                    (asset.to_user_string(), *span),
                )
            connection.execute("ANALYZE")

    def tell(self, opened: dg.DagsterInstance, window: Window) -> None:
        """Materialize a window, as the schedule does every five minutes."""
        key = key_of(self.settings, window)
        for asset in self.assets:
            opened.report_runless_asset_event(dg.AssetMaterialization(asset, partition=key))

    def tick(self, opened: dg.DagsterInstance) -> None:
        sensor = self.defs.resolve_sensor_def("reconcile")
        with dg.build_sensor_context(
            instance=opened, definitions=self.defs, resources={"platform": self.platform}
        ) as context:
            sensor.evaluate_tick(context)

    def queue(self, opened: dg.DagsterInstance) -> int:
        """Queue the runs of a backfill of the whole year."""
        origin = RemoteJobOrigin(
            RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("cryptostream"), "__repository__"), "j"
        )
        runs = 0
        window = self.first
        while window <= self.last:
            until = min(window.shifted(WINDOWS_A_RUN - 1), self.last)
            create_run_for_test(
                opened,
                job_name="j",
                status=dg.DagsterRunStatus.QUEUED,
                remote_job_origin=origin,
                tags={
                    BACKFILL_TAG: "year",
                    RANGE_START_TAG: key_of(self.settings, window),
                    RANGE_END_TAG: key_of(self.settings, until),
                },
            )
            runs += 1
            window = until.shifted(1)
        return runs

    @property
    def environment(self) -> dict[str, str]:
        """Of a server process of Dagster's."""
        given = self.settings.model_dump(mode="json", exclude_none=True)
        return {
            **os.environ,
            **{name.upper(): str(value) for name, value in given.items()},
            **self.server.environment,
            "DAGSTER_HOME": str(self.home),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'bench'}",
        }


def page_query(name: str) -> str:
    """Return a query as the webserver's own page sends it, with the fragments that it uses."""
    chunks = Path(dagster_webserver.__file__).parent / "webapp/build/_next/static/chunks"
    fragments: dict[str, str] = {}
    query = ""
    for chunk in chunks.glob("*.js"):
        text = chunk.read_text(encoding="utf-8")
        if f"query {name}(" not in text:
            continue
        for literal in re.findall(r'"((?:[^"\\]|\\.)*(?:query|fragment) \w+(?:[^"\\]|\\.)*)"', text):
            body = json.loads(f'"{literal}"')
            for fragment in re.finditer(r"fragment (\w+) on .*?\n  }\n", body, re.S):
                fragments[fragment[1]] = fragment[0]
            if found := re.search(rf"query {name}\(.*?\n  }}\n", body, re.S):
                query = found[0]
        break
    wanted, needed = re.findall(r"\.\.\.(\w+)", query), set[str]()
    while wanted:
        fragment_name = wanted.pop()
        if fragment_name in fragments and fragment_name not in needed:
            needed.add(fragment_name)
            wanted += re.findall(r"\.\.\.(\w+)", fragments[fragment_name])
    return query + "".join(fragments[fragment_name] for fragment_name in sorted(needed))


def ask(url: str, query: str, variables: dict[str, Any]) -> dict[str, Any]:
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as response:
        answer: dict[str, Any] = json.load(response)
    if "errors" in answer:
        raise RuntimeError(json.dumps(answer["errors"])[:500])
    return answer


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def median(work: Callable[[], object]) -> float:
    return statistics.median(timed(work) for _ in range(REPEATS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=100_000, help="how many; a year has 105,120")
    count: int = parser.parse_args().windows
    console = Console()
    table = Table(title=f"{count:,} windows materialized")
    for column in ("what", "s", "goal"):
        table.add_column(column, justify="left" if column == "what" else "right")

    def row(what: str, seconds: float, goal: bool = True) -> None:
        table.add_row(what, f"{seconds:.2f}", f"{'' if seconds <= GOAL_S else 'MISSED '}≤ 1" if goal else "")

    with (
        tempfile.TemporaryDirectory(prefix="cryptostream-year-") as folder,
        EmbeddedPostgres(Path(folder) / "postgres", free_port()) as server,
    ):
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {DAGSTER_DATABASE}")
        year = Year(Path(folder), server, count)
        with dg.DagsterInstance.from_config(str(year.home)) as opened:
            console.print(f"filled in {timed(lambda: year.fill(opened)):.0f} s")
            asset = {"assetKey": {"path": ["ohlc_5m_ticker"]}}
            queries: dict[str, dict[str, Any]] = {
                KEYS_QUERY: asset,
                "AssetHealthQuery": {"assetKeys": [{"path": key.path} for key in year.assets]},
            }
            with webserver(year.home, year.environment) as url:
                ask(url, "{ version }", {})
                for name, variables in queries.items():
                    work = partial(ask, url, page_query(name), variables)
                    row(f"{name}, the first", timed(work), goal=False)
                    row(f"{name}, again", median(work))
                year.tell(opened, year.last)
                for name, variables in queries.items():
                    row(f"{name}, a window later", timed(partial(ask, url, page_query(name), variables)))
            start = {"BARE_START": f"{year.first.start:%Y-%m-%dT%H:%M}"}
            with webserver(year.home, year.environment | start, "load.bare_asset") as url:
                bare = {"assetKey": {"path": ["bare"]}}
                work = partial(ask, url, page_query(KEYS_QUERY), bare)
                work()
                row(f"{KEYS_QUERY} of a bare asset", median(work), goal=False)
            later = {"PARTITIONS_START": key_of(year.settings, year.first.shifted(count // 2))}
            with webserver(year.home, year.environment | later) as url:
                work = partial(ask, url, page_query(KEYS_QUERY), asset)
                work()
                row(f"{KEYS_QUERY}, half the partitions", median(work))
            row("tick: the first", timed(lambda: year.tick(opened)), goal=False)
            row("tick: nothing to do", median(lambda: year.tick(opened)))
            with year.platform.connect() as connection:
                connection.execute("UPDATE lake_window SET revision = 2")
            row("tick: every window unbuilt", median(lambda: year.tick(opened)))
            runs = year.queue(opened)
            row(f"tick: and {runs:,} runs of a backfill queued", median(lambda: year.tick(opened)))
    console.print(table)


if __name__ == "__main__":
    main()
