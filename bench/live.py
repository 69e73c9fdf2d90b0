"""The whole exchange, live: from a window's end to the moment its candles can be queried.

All of `make dev` runs, with 855 simulated markets at about 1,000 books a second, in four sections. Only
windows that were live from their beginning count. What the time goes to:

* **complete**: the last partition claims that nothing of the window is still to come (`LATENESS_S` is in it).
* **sealed**: the run has seen that, and fixed which objects make the window.
* **Parquet**, **candles**: the two steps are done. **visible**: another connection sees the candles.

It takes five minutes a window, and up to five until the first begins.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psycopg
from load import stack
from rich.console import Console
from rich.table import Table

from cryptostream_dagster.local.state import StateFolder
from cryptostream_dagster.local.view import PlainView
from cryptostream_dagster.local_stack import Options, Stack
from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.window import Window
from ingest_services.lake.chain import ends_of, read_chains, read_progress
from ingest_services.lake.store import ObjectStore
from ingest_services.lake.stores import open_store
from ingest_services.settings import load_settings
from ingest_services.simulator.config import many_tickers

MARKETS = 855
RATE = 1000.0
SECTIONS = 4
GOAL_S = {15: 20.0, 30: 30.0}
PATIENCE_S = 120.0
LOOK_EVERY_S = 0.2
PARTS_TOLD = ("complete", "sealed", "Parquet", "candles", "visible")

PARTS = """
SELECT (SELECT max(sealed_at) FROM seal WHERE window_start = %(start)s),
    (SELECT rows FROM seal WHERE window_start = %(start)s ORDER BY version DESC LIMIT 1),
    (SELECT built_at FROM built WHERE window_start = %(start)s AND asset = 'orderbook_parquet'),
    (SELECT max(built_at) FROM ohlc_5m_ticker WHERE event_time = %(start)s)
"""


@dataclass
class Seen:
    """What was seen of a window; instants are seconds since the epoch.

    Attributes:
        window: The window.
        rows: Books in it.
        instants: By part.
    """

    window: Window
    rows: int = 0
    instants: dict[str, float] = field(default_factory=dict)

    def after_end(self, part: str) -> float:
        """Return how long after the window's end a part was done, seconds."""
        return self.instants.get(part, math.nan) - self.window.end_ms / 1000


class Watch:
    """Looks at the windows of a running stack until it has seen enough of them."""

    def __init__(self, windows: int) -> None:
        self._windows = windows
        self._connection: psycopg.Connection | None = None
        self._store: ObjectStore | None = None
        self._looked = 0.0
        self.seen: list[Seen] = []
        self._current: Seen | None = None

    def enough(self, running: Stack) -> bool:
        now = time.time()
        if now < self._looked + LOOK_EVERY_S:
            return False
        self._looked = now
        if self._connection is None or self._store is None:
            self._connection = psycopg.connect(running.dsn, autocommit=True)
            self._store = open_store(running.state.raw.as_uri())
        if self._current is None:
            self._current = Seen(Window.at(datetime.now(UTC)).shifted(1))
        seen = self._current
        if now < seen.window.end_ms / 1000:
            return False
        if "complete" not in seen.instants and (at := _complete_at(self._store, seen.window)):
            seen.instants["complete"] = at
        found = self._connection.execute(PARTS, {"start": seen.window.start}).fetchone()
        assert found is not None
        sealed, rows, parquet, candles = found
        if candles is not None:
            seen.rows = rows
            for part, at in (("sealed", sealed), ("Parquet", parquet), ("candles", candles)):
                seen.instants[part] = at.timestamp()
            seen.instants["visible"] = time.time()
        elif now < seen.window.end_ms / 1000 + PATIENCE_S:
            return False
        self.seen.append(seen)
        self._current = Seen(seen.window.shifted(1))
        return len(self.seen) >= self._windows


def _complete_at(store: ObjectStore, window: Window) -> float | None:
    """Return when the last partition claimed to be through a window; None if one has not."""
    chains = read_chains(store)
    # A broker that was moved on from claims nothing more.
    closed = ends_of(chains)
    claims = [
        read_progress(store, chain.number, partition)
        for chain in chains
        if chain.number not in closed
        for partition in chain.partitions
    ]
    through = [claim for claim in claims if claim is not None and claim.minutes_through_ms >= window.end_ms]
    return max(claim.at_ms for claim in through) / 1000 if len(through) == len(claims) else None


def write_conf(state: StateFolder) -> None:
    tickers = many_tickers(MARKETS)
    for kind, path in (("producer", state.producer_conf), ("consumer", state.consumer_conf)):
        sections = []
        for number in range(SECTIONS):
            name = {"producer": "upbit_producer", "consumer": "gcs_consumer"}[kind]
            own = {
                "producer": f"tickers={','.join(tickers[number::SECTIONS])}",
                "consumer": "group_name=bench",
            }
            sections.append(
                f"[{name}{number + 1}]\ntopic_name=orderbook\npartition_number={number}\n{own[kind]}\n"
            )
        path.write_text("\n".join(sections), encoding="utf-8")


def tell(seen: list[Seen], depth: int) -> Table:
    goal_s = GOAL_S[depth]
    table = Table(
        title=f"Window end → candles visible: {MARKETS} markets, depth {depth}; s after the window's end",
        caption=f"goal: p95 <= {goal_s:.0f} s; the greatest of {len(seen)} windows: "
        f"{max(each.after_end('visible') for each in seen):.1f} s. {stack.machine()}",
    )
    for column in ("window", "books", *PARTS_TOLD):
        table.add_column(column, justify="right")
    for each in seen:
        parts = [f"{each.after_end(part):.1f}" for part in PARTS_TOLD]
        table.add_row(f"{each.window.start:%H:%M} UTC", f"{each.rows}", *parts)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--depth", type=int, default=15, choices=sorted(GOAL_S))
    options = parser.parse_args()
    os.environ["DEPTH"] = str(options.depth)
    console = Console(width=140)
    watch = Watch(options.windows)
    with tempfile.TemporaryDirectory(prefix="cryptostream-bench-") as name:
        state = StateFolder(Path(name) / "state")
        state.root.mkdir(parents=True, exist_ok=True)
        write_conf(state)
        view = PlainView(console, load_settings(PipelineSettings).zone)
        chosen = Options(history_minutes=0, rate=RATE / MARKETS, any_ports=True)
        Stack(state, chosen, view).run(until=watch.enough)
    console.print(tell(watch.seen, options.depth))


if __name__ == "__main__":
    main()
