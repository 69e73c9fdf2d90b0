"""The producer on the simulated exchange: its history and its present, every book once."""

from __future__ import annotations

import json
import time
import urllib.request
from collections import Counter
from pathlib import Path

import orjson

from ingest_services.config import ProducerSection
from ingest_services.settings import IngestSettings
from ingest_services.simulator.server import Simulator
from tests.broker import Broker
from tests.integration.test_producer_service import books, carried, heartbeats, producing, read_all
from tests.scripted_exchange import wait_until
from tests.simulator_thread import serving


def ask(simulator: Simulator, path: str) -> dict[str, object]:
    with urllib.request.urlopen(f"{simulator.rest_url}{path}") as answer:
        return json.loads(answer.read())


def test_every_book_of_the_history_and_the_present_is_in_kafka_once(broker: Broker, tmp_path: Path) -> None:
    tickers = ("BTC", "ETH", "XRP")
    topic = broker.topic()
    with serving(tickers=tickers, rate=5.0, seed=7, history_minutes=10) as simulator:
        settings = IngestSettings(
            _env_file=None,
            source="simulator",
            kafka_bootstrap=broker.bootstrap,
            upbit_ws_url=simulator.ws_url,
            upbit_rest_url=simulator.rest_url,
            spool_dir=tmp_path,
        )
        markets = tuple(f"KRW-{ticker}" for ticker in tickers)
        with producing([ProducerSection("upbit_producer1", topic, 0, markets)], settings) as running:
            wait_until(lambda: bool(ask(simulator, "/simulator/health")["history_done"]), "the history", 60)
            time.sleep(2)
        stats = running.stats[0]
        truth = ask(simulator, "/simulator/truth?window_s=300")
    records = books(read_all(broker.bootstrap, topic))
    assert len(records) == carried(stats) - stats.error_frames
    assert stats.lost == stats.garbage == 0
    # A snapshot repeats the newest book; each realtime book has a stamp of its own.
    events = [r for r in records if r.envelope.stream_type == "REALTIME"]
    assert len(records) - len(events) == len(tickers)
    assert max(Counter((r.key, r.envelope.tms) for r in events).values()) == 1
    counted: Counter[tuple[str, int]] = Counter()
    for record in events:
        message = orjson.loads(record.value)
        levels = message["obu"][0]
        if levels["ap"] > levels["bp"] > 0:
            counted[record.key.decode(), record.envelope.tms // 300_000 * 300_000] += 1
    last = max(r.envelope.tms for r in events) // 300_000 * 300_000
    compared = 0
    for candle in truth["candles"]:
        if candle["window_start_ms"] < last:
            assert counted[candle["ticker"], candle["window_start_ms"]] == candle["book_count"], candle
            compared += 1
    assert compared >= len(tickers)
    told = heartbeats(read_all(broker.bootstrap, topic))
    assert {ticker for h in told for c in h.covered for ticker in c.tickers} == set(tickers)
