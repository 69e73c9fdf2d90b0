"""A lake of one window or more for benchmarks: books as the simulator walks them, cut as a consumer cuts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from crc32c import crc32c

from cryptostream_dagster.window import Window
from ingest_services.lake import chain as chains
from ingest_services.lake import layout, lines
from ingest_services.lake.store import FolderStore
from ingest_services.simulator.config import SimulatorConfig
from ingest_services.simulator.walk import Walk

WINDOW = Window.at(datetime(2026, 2, 2, 7, 5, tzinfo=UTC))
ZONE = ZoneInfo("Asia/Seoul")
MINUTES = 5


def write_lake(
    folder: Path, tickers: int, books: int, depth: int, suffix: str, windows: int = 1, begin: Window = WINDOW
) -> int:
    """Write complete windows into an empty folder; return the size of their lines, bytes.

    Args:
        folder: Of the lake.
        tickers: How many; each has as many books as any other, evenly in time, in an object a minute.
        books: Of a window, all tickers together.
        depth: Levels a side at most: some markets are thin, as on the exchange.
        suffix: Of the objects, which says their compression.
        windows: How many; each is a commit.
        begin: The first one.
    """
    store = FolderStore(folder)
    layout.claim_lake(store, "simulator", str(ZONE))
    chain = chains.open_chain(store, "orderbook", "bench", {0: 0}, lambda: {0: 0}, begin.start_ms)
    offset = size = 0
    for shift in range(windows):
        window = begin.shifted(shift)
        base = offset
        files: list[chains.CommitFile] = []
        for number in range(tickers):
            ticker = f"T{number:03d}"
            for minute_ms, frames in _minutes(ticker, books // tickers, depth, window):
                content = [
                    lines.book_line(0, offset + n, tms * 1000 + 50_000, "upbit_producer1-bench-1", frame)
                    for n, (tms, frame) in enumerate(frames)
                ]
                size += sum(map(len, content))
                data = lines.pack(content, suffix)
                token = hashlib.sha256(b"%d" % offset).hexdigest()[:8]
                first, last = frames[0][0], frames[-1][0]
                path = layout.book_path(ticker, minute_ms, first, 0, 0, token, ZONE, suffix)
                # Not by the store: what is synced to disk one by one takes longer than all that is measured.
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(data)
                files.append(
                    chains.CommitFile(
                        "book", path, ticker, minute_ms, len(frames), len(data), f"{crc32c(data):08x}",
                        first, last, first * 1000 + 50_000, last * 1000 + 50_000,
                    )
                )  # fmt: skip
                offset += len(frames)
        rows = offset - base
        token = f"{shift:08x}"
        commit = chains.Commit(
            chain.number, 0, base, offset, token, tuple(files), rows, 0, 0, (), window.end_ms + 6000
        )
        chains.write_commit(store, commit)
    end_ms = begin.shifted(windows).start_ms
    chains.write_progress(store, chains.Progress(chain.number, 0, offset, end_ms, end_ms + 6000))
    return size


def _minutes(
    ticker: str, books: int, depth: int, window: Window
) -> Iterator[tuple[int, list[tuple[int, bytes]]]]:
    """Yield each minute and its frames with their stamps."""
    walk = Walk(f"KRW-{ticker}", SimulatorConfig(seed=1, depth=depth, history_minutes=0), window.start_ms)
    walk.begin(window.start_ms)
    for minute in range(MINUTES):
        frames = []
        for number in range(minute * books // MINUTES, (minute + 1) * books // MINUTES):
            book = walk.step()
            book.tms = window.start_ms + number * MINUTES * layout.MINUTE_MS // books
            frames.append((book.tms, book.encode("SIMPLE", depth, "REALTIME")))
        yield window.start_ms + minute * layout.MINUTE_MS, frames
