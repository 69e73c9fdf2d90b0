"""`/health` of a producer at work: a thread that is stuck or ended is told; being alone is no failure."""

from __future__ import annotations

import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from cryptostream_dagster.local.ports import free_port
from ingest_services.producer import health
from ingest_services.producer.outbox import Outbox
from ingest_services.producer.supervision import Supervision, Watch
from tests.broker import Broker
from tests.integration.test_producer_service import now_ms, producing, section, settings_for
from tests.producer_process import MarketServer, market_server, producer_process
from tests.scripted_exchange import ScriptedExchange, book, scripted_exchange, wait_until


@pytest.fixture
def exchange() -> Iterator[ScriptedExchange]:
    with scripted_exchange() as running:
        yield running


@pytest.fixture
def rest() -> Iterator[MarketServer]:
    with market_server() as running:
        yield running


def ask(port: int) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
            return answer.status, orjson.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, orjson.loads(error.read())


def test_a_publisher_that_is_stuck_is_failed_and_says_so(
    broker: Broker, exchange: ScriptedExchange, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "STUCK_S", 2.0)
    frozen, thawed = threading.Event(), threading.Event()
    pump = Outbox.pump

    def freeze(self: Outbox, now_s: float) -> None:
        if frozen.is_set():
            thawed.wait(120)
        pump(self, now_s)

    monkeypatch.setattr(Outbox, "pump", freeze)
    port = free_port()
    settings = settings_for(exchange, broker.bootstrap, tmp_path)
    with producing([section(broker.topic(), "KRW-BTC")], settings, port):
        wait_until(lambda: ask(port)[1]["status"] == "ok", "health", 30)
        frozen.set()
        try:
            wait_until(lambda: ask(port)[0] == 503, "the failure", 30)
            code, told = ask(port)
            assert (code, told["status"]) == (503, "failed")
            assert told["reasons"][0].startswith("upbit_producer1: the publisher has not come round for ")
        finally:
            thawed.set()
        wait_until(lambda: ask(port)[1]["status"] == "ok", "health again", 30)


def test_a_feed_that_is_stuck_is_failed_and_says_so(
    broker: Broker, exchange: ScriptedExchange, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "STUCK_S", 2.0)
    frozen, thawed = threading.Event(), threading.Event()
    due = Watch.due

    def freeze(self: Watch, now_s: float, wall_s: float) -> Any:
        if frozen.is_set():
            thawed.wait(120)
        return due(self, now_s, wall_s)

    monkeypatch.setattr(Watch, "due", freeze)
    port = free_port()
    settings = settings_for(exchange, broker.bootstrap, tmp_path)
    with producing([section(broker.topic(), "KRW-BTC")], settings, port):
        wait_until(lambda: ask(port)[1]["status"] == "ok", "health", 30)
        frozen.set()
        try:
            wait_until(lambda: ask(port)[0] == 503, "the failure", 30)
            assert "the feed has not come round for " in ask(port)[1]["reasons"][0]
        finally:
            thawed.set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("part", ["publisher", "feed"])
def test_a_thread_that_ended_is_failed_and_says_so(
    broker: Broker, exchange: ScriptedExchange, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    killed = threading.Event()

    def die(*args: Any, **kwargs: Any) -> Any:
        if killed.is_set():
            sys.exit()  # ends the thread, whatever it catches
        return original(*args, **kwargs)

    owner, name = (Outbox, "pump") if part == "publisher" else (Supervision, "enter")
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, die)
    port = free_port()
    settings = settings_for(exchange, broker.bootstrap, tmp_path)
    with producing([section(broker.topic(), "KRW-BTC")], settings, port) as running:
        wait_until(lambda: ask(port)[1]["status"] == "ok", "health", 30)
        killed.set()
        exchange.close()
        wait_until(lambda: ask(port)[0] == 503, "the failure", 30)
        assert ask(port)[1]["reasons"][0] == f"upbit_producer1: the {part} ended"
        assert running.failed


def test_health_follows_what_happens(
    broker: Broker, exchange: ScriptedExchange, rest: MarketServer, tmp_path: Path
) -> None:
    topic = broker.topic()
    with producer_process(
        tmp_path,
        topic=topic,
        tickers={"upbit_producer1": "BTC,XXX"},
        bootstrap=broker.bootstrap,
        ws_url=exchange.ws_url,
        rest_url=rest.url,
        port=free_port(),
    ) as producer:
        exchange.silent_codes = {"KRW-XXX"}
        # An unknown code is silent; that is told by name, and is nothing that a new start would cure.
        producer.wait_for("degraded", "upbit_producer1: silent: XXX")
        assert producer.health()[0]
        _, told = ask(producer.port)
        figures = told["sections"]["upbit_producer1"]
        assert (figures["state"], figures["silent"], figures["spooling"]) == ("live", ["XXX"], False)
        assert figures["last_frame_age_s"] is not None
        with urllib.request.urlopen(f"http://127.0.0.1:{producer.port}/metrics") as answer:
            metrics = answer.read().decode()
        label = 'section="upbit_producer1"'
        assert f'cryptostream_producer_silent_ticker{{{label},ticker="XXX"}} 1.0' in metrics
        assert f'cryptostream_producer_last_frame_age_seconds{{{label},ticker="BTC"}}' in metrics
        assert f'cryptostream_producer_last_frame_age_seconds{{{label},ticker="XXX"}}' not in metrics
        # The exchange is away: degraded, and a restart would not help.
        exchange.refuse_with = 503
        exchange.close()
        producer.wait_for("degraded", "the connection is backing_off")
        exchange.refuse_with = None
        exchange.silent_codes = set()
        producer.wait_for("ok")
        assert producer.terminate() == 0


def test_the_skew_between_the_clocks_is_told(
    broker: Broker, exchange: ScriptedExchange, tmp_path: Path
) -> None:
    port = free_port()
    settings = settings_for(exchange, broker.bootstrap, tmp_path)
    with producing([section(broker.topic(), "KRW-BTC")], settings, port):
        wait_until(lambda: exchange.clients == 1, "a subscription")
        # The exchange's clock is 3 s ahead of ours.
        for i in range(5):
            exchange.send(book("KRW-BTC", now_ms() + 3000, i))
            time.sleep(0.01)
        wait_until(
            lambda: any("behind the exchange's" in reason for reason in ask(port)[1]["reasons"]), "the skew"
        )
        skew_s = ask(port)[1]["sections"]["upbit_producer1"]["clock_skew_s"]
        assert -3.1 < skew_s < -1.0
