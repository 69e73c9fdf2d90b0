"""The README's own Python runs, on a lake and a warehouse that the whole pipe has filled."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import pytest
from psycopg import connect

from cryptostream_dagster.window import Window
from ingest_services.lake import chain as chains
from ingest_services.lake.store import FolderStore
from tests.broker import Broker
from tests.pipe import wait_for, whole_pipe
from tests.postgres_fixture import TestDatabase
from tests.unit.test_readme import README, blocks


def test_the_readme_runs(
    tmp_path: Path, broker: Broker, database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = whole_pipe(tmp_path, broker, database, "BTC,ETH")
    lake = FolderStore(tmp_path / "raw")

    def history() -> dict[str, int]:
        url = f"http://127.0.0.1:{pipe.simulator_port}/simulator/truth?window_s=300"
        try:
            with urllib.request.urlopen(url) as answer:
                return json.load(answer)["history"]
        except OSError:
            return {"done": False}

    def through() -> int:
        progress = chains.read_progress(lake, 1, 0)
        return progress.minutes_through_ms if progress else 0

    simulate = (
        "simulate",
        "--port",
        str(pipe.simulator_port),
        "--tickers",
        "BTC,ETH",
        "--history-minutes",
        "10",
    )
    with pipe.running(*simulate), pipe.running("produce", "--all"):
        wait_for(lambda: bool(history()["done"]), "the history")
        told = history()
        with pipe.running("consume", "--all"):
            wait_for(lambda: through() >= told["to_ms"] // 300_000 * 300_000, "the history to be committed")
    starts = range(told["from_ms"], told["to_ms"] // 300_000 * 300_000, 300_000)
    pipe.build(monkeypatch, [Window(datetime.fromtimestamp(start / 1000, UTC)) for start in starts])

    with connect(database.dsn) as connection:
        found = connection.execute("SELECT relname FROM pg_class UNION SELECT attname FROM pg_attribute")
        names = {row[0] for row in found}
    assert set(re.findall(r"`((?:ohlc|coverage)_\w+)`", README)) <= names

    for block in blocks("python"):
        done = subprocess.run(
            [sys.executable, "-c", block],
            env=pipe.environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "open_price" in done.stdout
        assert "bid_price1" in done.stdout
        assert "Empty DataFrame" not in done.stdout
    with pipe.running("chart", "BTC") as chart:
        assert chart.wait(60) == 0
    assert (tmp_path / "BTC.png").read_bytes().startswith(b"\x89PNG")
