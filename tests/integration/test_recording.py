"""Real recorded frames through the whole pipe: the candles are those that plain Python finds in the file."""

from __future__ import annotations

import json
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from psycopg import connect

from cryptostream_dagster.window import Window
from ingest_services.lake import chain as chains
from ingest_services.lake.store import FolderStore
from tests.broker import Broker
from tests.lake_oracle import read_partition
from tests.pipe import wait_for, whole_pipe
from tests.postgres_fixture import TestDatabase

RECORDING = Path(__file__).parents[3] / "shared/data/upbit_capture/orderbook_simple_depth15.jsonl"
WINDOW_MS = 300_000

Candle = tuple[Decimal, Decimal, Decimal, Decimal, int]


def read_recording() -> list[dict[str, object]]:
    frames = [json.loads(line)["frame"] for line in RECORDING.read_text().splitlines()]
    return [json.loads(frame, parse_float=Decimal) for frame in frames]


def reference_candles(books: list[dict[str, object]]) -> dict[tuple[str, int], Candle]:
    """The candles of the recording, computed with nothing of the product."""
    seen = set()
    events = defaultdict(list)
    for number, book in enumerate(books):
        key = (book["cd"], book["tms"], str(book["obu"]))
        best = book["obu"][0]
        if key in seen or not 0 < best["bp"] <= best["ap"]:
            continue
        seen.add(key)
        market, tms = str(book["cd"]), int(book["tms"])
        mid = (Decimal(best["ap"]) + Decimal(best["bp"])) / 2
        events[market.removeprefix("KRW-"), tms - tms % WINDOW_MS].append((tms, number, mid))
    candles = {}
    for key, rows in events.items():
        mids = [mid for _, _, mid in sorted(rows)]
        candles[key] = (mids[0], max(mids), min(mids), mids[-1], len(mids))
    return candles


@pytest.mark.skipif(not RECORDING.exists(), reason=f"the recording ../shared/{RECORDING.name} is not there")
def test_a_recording_through_the_whole_pipe_gives_the_candles_of_plain_python(
    tmp_path: Path, broker: Broker, database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    books = read_recording()
    assert {book["st"] for book in books} == {"REALTIME"}
    tickers = sorted({str(book["cd"]).removeprefix("KRW-") for book in books})
    pipe = whole_pipe(tmp_path, broker, database, ",".join(tickers))
    lake = FolderStore(tmp_path / "raw")

    simulate = ("simulate", "--port", str(pipe.simulator_port), "--playback", str(RECORDING), "--speed", "0")
    with pipe.running(*simulate), pipe.running("produce", "--all"), pipe.running("consume", "--all"):

        def committed() -> int:
            return (
                sum(commit.books for commit in chains.commits_from(lake, 1, 0, 0))
                if lake.root.exists()
                else 0
            )

        wait_for(lambda: committed() >= len(books), "every recorded book to be committed", 90)

    frames = sorted(json.loads(line)["frame"].encode() for line in RECORDING.read_text().splitlines())
    values = read_partition(lake.root, 1, 0).records.values()
    in_lake = [value for value in values if value and b'"obu"' in value]
    assert sorted(in_lake) == frames, "byte for byte"

    expected = reference_candles(books)
    starts = sorted({start for _, start in expected})
    windows = [Window(datetime.fromtimestamp(start / 1000, UTC)) for start in starts]
    pipe.build(monkeypatch, windows)
    with connect(database.dsn) as connection:
        rows = connection.execute(
            "SELECT ticker, event_time, open_price, high_price, low_price, close_price, book_count,"
            " coverage_ratio FROM ohlc_5m_ticker"
        ).fetchall()
    found = {(row[0], int(row[1].timestamp() * 1000)): tuple(row[2:7]) for row in rows}
    assert found == expected
    # Nobody was listening in 2021: the coverage of these windows is unknown, not zero.
    assert {row[7] for row in rows} == {None}
    assert all(row[1] + timedelta(minutes=5) < datetime.now(UTC) for row in rows)
