"""A window of the raw lake for benchmarks: books as the simulator walks them, objects as a consumer cuts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from crc32c import crc32c

from cryptostream_dagster.transforms.raw import RawObject
from cryptostream_dagster.window import Window
from ingest_services.lake import layout, lines
from ingest_services.simulator.config import SimulatorConfig
from ingest_services.simulator.walk import Walk

WINDOW = Window.at(datetime(2026, 2, 2, 7, 5, tzinfo=UTC))
ZONE = ZoneInfo("Asia/Seoul")
MINUTES = 5


@dataclass(frozen=True)
class RawWindow:
    """A window's raw objects in a folder.

    Attributes:
        folder: Of the lake.
        objects: One per ticker and minute, as a seal lists them.
        lines: How many lines they hold.
        content: Size of the lines, bytes.
    """

    folder: Path
    objects: list[RawObject]
    lines: int
    content: int

    @property
    def files(self) -> list[str]:
        """Every object's file."""
        return [str(self.folder / item.path) for item in self.objects]


def write_window(
    folder: Path, tickers: int, books: int, depth: int, suffix: str = ".jsonl", window: Window = WINDOW
) -> RawWindow:
    """Write a window; every ticker has as many books as any other.

    Args:
        folder: An empty one.
        tickers: How many.
        books: Of all of them.
        depth: Levels a side.
        suffix: Of the objects, which says their compression.
        window: The window.
    """
    found: list[RawObject] = []
    offset = content = 0
    for number in range(tickers):
        ticker = f"T{number:03d}"
        for minute, texts in enumerate(_minutes(ticker, books // tickers, depth, window)):
            minute_ms = window.start_ms + minute * layout.MINUTE_MS
            base = offset
            data = []
            for tms, frame in texts:
                data.append(lines.book_line(0, offset, tms * 1000 + 50_000, "upbit_producer1-bench-1", frame))
                offset += 1
            whole = b"".join(data)
            content += len(whole)
            stored = lines.compress(whole, suffix)
            token = hashlib.sha256(f"{ticker}{minute}".encode()).hexdigest()[:8]
            path = layout.book_path(ticker, minute_ms, texts[0][0], 0, base, token, ZONE, suffix)
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(stored)
            found.append(RawObject(path, ticker, 1, len(texts), len(stored), f"{crc32c(stored):08x}"))
    return RawWindow(folder, found, offset, content)


def _minutes(ticker: str, books: int, depth: int, window: Window) -> Iterator[list[tuple[int, bytes]]]:
    """Yield the frames of each minute with their stamps, evenly."""
    walk = Walk(f"KRW-{ticker}", SimulatorConfig(seed=1, depth=depth, history_minutes=0), window.start_ms)
    walk.begin(window.start_ms)
    for minute in range(MINUTES):
        texts = []
        for number in range(minute * books // MINUTES, (minute + 1) * books // MINUTES):
            book = walk.step()
            book.tms = window.start_ms + number * MINUTES * layout.MINUTE_MS // books
            texts.append((book.tms, book.encode("SIMPLE", depth, "REALTIME")))
        yield texts
