"""`make demo`: the stack in a temporary folder, until its candles can be compared with the simulator's truth.

Belongs here: the comparison and how it is told. Does not belong here: how anything runs (`local_stack`).
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import psycopg
from rich.console import Console, JustifyMethod
from rich.table import Table

from cryptostream_dagster.local.ports import LOOPBACK
from cryptostream_dagster.local.state import StateFolder
from cryptostream_dagster.local.status import fetch_json
from cryptostream_dagster.local.view import PlainView, banner
from cryptostream_dagster.local_stack import WINDOW_S, Options, Stack
from cryptostream_dagster.settings import PipelineSettings
from ingest_services.errors import UserError
from ingest_services.settings import load_settings

WINDOWS = 3
TIMEOUT_S = 110.0
# How long after its end a live window may take: no promise, only when to stop waiting.
LIVE_PATIENCE_S = 60.0
_ASK_EVERY_S = 0.5
_LOG_TAIL_LINES = 15


class Key(NamedTuple):
    """What names a candle."""

    window_ms: int
    ticker: str


class Prices(NamedTuple):
    """What a candle says."""

    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    books: int


@dataclass(frozen=True)
class Difference:
    """A candle that is not as the simulator published it; None means that one side has none."""

    key: Key
    built: Prices | None
    true: Prices | None

    def __str__(self) -> str:
        return f"{self.key.ticker} {self.key.window_ms}: built {self.built}, truth {self.true}"


def compare(
    built: Mapping[Key, Prices], truth: Mapping[Key, Prices], windows: Iterable[int]
) -> list[Difference]:
    """Return every difference in some windows: values, candles that are missing, candles that are too many.

    Args:
        built: What the warehouse holds.
        truth: What the simulator published.
        windows: Starts of the windows to compare, ms since the epoch.
    """
    chosen = set(windows)
    keys = sorted(key for key in built.keys() | truth.keys() if key.window_ms in chosen)
    return [
        Difference(key, built.get(key), truth.get(key)) for key in keys if built.get(key) != truth.get(key)
    ]


def read_truth(answer: Mapping[str, Any]) -> dict[Key, Prices]:
    """Return the candles of the simulator's `/simulator/truth`."""
    return {
        Key(int(candle["window_start_ms"]), candle["ticker"]): Prices(
            open=Decimal(candle["open"]),
            high=Decimal(candle["high"]),
            low=Decimal(candle["low"]),
            close=Decimal(candle["close"]),
            books=int(candle["book_count"]),
        )
        for candle in answer["candles"]
    }


def read_candles(dsn: str) -> dict[Key, Prices]:
    """Return the candles of the warehouse."""
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(
            "SELECT event_time, ticker, open_price, high_price, low_price, close_price, book_count"
            " FROM ohlc_5m_ticker"
        ).fetchall()
    return {Key(round(row[0].timestamp() * 1000), row[1]): Prices(*row[2:]) for row in rows}


def read_delays(dsn: str) -> dict[int, float]:
    """Return how long after a window's end its candles were there, s; by its start, ms since the epoch."""
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(
            "SELECT event_time, extract(epoch FROM max(built_at) - event_time)"
            " FROM ohlc_5m_ticker GROUP BY event_time"
        ).fetchall()
    return {round(start.timestamp() * 1000): float(age_s) - WINDOW_S for start, age_s in rows}


class _Progress:
    """Decides when the demo has seen enough: all of the history, and as many live windows as asked."""

    def __init__(self, live_windows: int) -> None:
        self.live_windows = live_windows
        self.timeout_s = TIMEOUT_S + live_windows * (WINDOW_S + LIVE_PATIENCE_S)
        self.delays: dict[int, float] = {}
        self.began = time.monotonic()
        self.first_candle_s: float | None = None
        self.built: dict[Key, Prices] = {}
        self.truth: dict[Key, Prices] = {}
        self.ready_s = 0.0
        self._asked = 0.0

    def enough(self, stack: Stack) -> bool:
        """Look at most twice a second; remember what was found.

        Raises:
            UserError: If it takes longer than `timeout_s`.
        """
        now = time.monotonic()
        self.ready_s = (stack.ready_at or now) - self.began
        if now < self._asked + _ASK_EVERY_S:
            return False
        self._asked = now
        self.built = read_candles(stack.dsn)
        answer = fetch_json(
            f"http://{LOOPBACK}:{stack.ports['simulator']}/simulator/truth?window_s={WINDOW_S}"
        )
        if self.built and self.first_candle_s is None:
            self.first_candle_s = now - self.began
        if answer:
            self.truth = read_truth(answer)
            ended = {
                key.window_ms for key in self.truth if key.window_ms + WINDOW_S * 1000 <= answer["now_ms"]
            }
            history = {window for window in ended if window + WINDOW_S * 1000 <= answer["history"]["to_ms"]}
            live = (ended - history) & self.windows()
            if len(history) >= WINDOWS and history <= self.windows() and len(live) >= self.live_windows:
                if live:
                    delays = read_delays(stack.dsn)
                    self.delays = {window: delays[window] for window in live}
                return True
        if now > self.began + self.timeout_s:
            raise UserError(
                f"demo: {len(self.windows())} windows built after {self.timeout_s:.0f} s; expected at least "
                f"{WINDOWS}, all of the history, and {self.live_windows} live ones"
            )
        return False

    def windows(self) -> set[int]:
        """Return the windows that have candles."""
        return {key.window_ms for key in self.built}


def demo(history_minutes: int, *, live_windows: int = 0, keep: bool) -> int:
    """Run the platform until at least three windows are built and compare every candle with the truth.

    Args:
        history_minutes: Back-dated books that the simulator begins with, minutes.
        live_windows: Go on until so many windows with live books have ended and were built, by themselves.
        keep: Leave the temporary folder, for a look at its logs.

    Returns:
        0 if every candle of every built window is exactly what the simulator published, else 1.

    Raises:
        UserError: If the platform does not start or is too slow.
    """
    zone = load_settings(PipelineSettings).zone
    console = Console()
    root = Path(tempfile.mkdtemp(prefix="cryptostream-demo-"))
    progress = _Progress(live_windows)
    try:
        view = PlainView(console, zone)
        options = Options(history_minutes=history_minutes, any_ports=True)
        stack = Stack(StateFolder(root), options, view)
        view.say(f"{banner(stack.source)}; state in {root}")
        stack.run(until=progress.enough)
    except UserError:
        _show_logs(console, root / "logs")
        raise
    finally:
        if keep:
            console.print(f"kept {root}", highlight=False, soft_wrap=True)
        else:
            shutil.rmtree(root, ignore_errors=True)
    windows = progress.windows()
    if len(windows) < WINDOWS:
        console.print("demo stopped before there was anything to compare")
        return 1
    differences = compare(progress.built, progress.truth, windows)
    _tell(console, progress, differences, zone)
    return 1 if differences else 0


def _show_logs(console: Console, folder: Path) -> None:
    for log in sorted(folder.glob("*.log")):
        console.rule(log.name)
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        console.print("\n".join(lines[-_LOG_TAIL_LINES:]), markup=False, highlight=False, soft_wrap=True)


def _tell(console: Console, progress: _Progress, differences: list[Difference], zone: ZoneInfo) -> None:
    wrong = {difference.key for difference in differences}
    title = "5-minute candles, mid price (SIMULATED DATA)"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("window", "ticker", "open", "high", "low", "close", "books", "true"):
        side: JustifyMethod = "left" if column in ("window", "ticker") else "right"
        table.add_column(column, justify=side, no_wrap=True)
    for key in sorted(progress.built.keys() | wrong):
        prices = progress.built.get(key)
        start = datetime.fromtimestamp(key.window_ms / 1000, zone)
        values = (
            [*(f"{price.normalize():f}" for price in prices[:4]), str(prices.books)] if prices else ["-"] * 5
        )
        table.add_row(f"{start:%H:%M}", key.ticker, *values, "NO" if key in wrong else "yes")
    console.print(table)
    for window_ms, delay_s in sorted(progress.delays.items()):
        start = datetime.fromtimestamp(window_ms / 1000, zone)
        console.print(f"live window {start:%H:%M}: candles {delay_s:.1f} s after its end", highlight=False)
    for difference in differences:
        console.print(str(difference), highlight=False, soft_wrap=True)
    verdict = (
        f"[bold red]{len(differences)} of them differ[/]"
        if differences
        else "[bold green]all exactly equal[/]"
    )
    books = sum(prices.books for prices in progress.built.values())
    console.print(
        f"{len(progress.built)} candles of {len(progress.windows())} windows from {books:,} books, "
        f"compared with the simulator's own: {verdict}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        f"services up after {progress.ready_s:.0f} s, first candle after "
        f"{progress.first_candle_s or 0:.0f} s, done after {time.monotonic() - progress.began:.0f} s",
        highlight=False,
    )
