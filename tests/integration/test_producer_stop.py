"""SIGTERM drains and exits 0, whatever hangs, and whatever becomes of the log."""

from __future__ import annotations

import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cryptostream_dagster.local.ports import free_port
from ingest_services.kafka import create_topics
from tests.broker import Broker, running_broker
from tests.integration.test_producer_service import books, now_ms, read_all
from tests.producer_process import (
    MarketServer,
    exchange_that_never_closes,
    market_server,
    producer_process,
)
from tests.scripted_exchange import ScriptedExchange, book, scripted_exchange, wait_until


@pytest.fixture
def exchange() -> Iterator[ScriptedExchange]:
    with scripted_exchange() as running:
        yield running


@pytest.fixture
def rest() -> Iterator[MarketServer]:
    with market_server() as running:
        yield running


def settings(
    exchange: ScriptedExchange, rest: MarketServer, bootstrap: str, topic: str, tickers: str = "BTC"
) -> dict[str, Any]:
    return {
        "topic": topic,
        "tickers": {"upbit_producer1": tickers},
        "bootstrap": bootstrap,
        "ws_url": exchange.ws_url,
        "rest_url": rest.url,
        "port": free_port(),
    }


@pytest.mark.parametrize("when", ["before the start", "while it runs"])
def test_a_broker_that_hangs(
    exchange: ScriptedExchange, rest: MarketServer, tmp_path: Path, when: str
) -> None:
    with running_broker() as broker:
        create_topics(broker.bootstrap, {"orderbook": 1})
        if when == "before the start":
            broker.process.send_signal(signal.SIGSTOP)
        with producer_process(
            tmp_path, **settings(exchange, rest, broker.bootstrap, "orderbook")
        ) as producer:
            wait_until(lambda: exchange.clients == 1, "a subscription", 60)
            broker.process.send_signal(signal.SIGSTOP)
            exchange.send(*(book("KRW-BTC", now_ms(), i) for i in range(50)))
            producer.wait_for("degraded", "Kafka takes nothing")
            assert producer.terminate() == 0, producer.log_path.read_text()
        broker.process.send_signal(signal.SIGCONT)
        with producer_process(
            tmp_path, **settings(exchange, rest, broker.bootstrap, "orderbook")
        ) as producer:
            producer.wait_for("ok")
            assert producer.terminate() == 0
        kept = [record.value for record in books(read_all(broker.bootstrap, "orderbook"))]
    # What was on its way when the broker hung may have arrived all the same, and comes again from the spool.
    assert set(kept) == set(exchange.sent)


def test_an_exchange_that_never_closes(
    broker: Broker, exchange: ScriptedExchange, rest: MarketServer, tmp_path: Path
) -> None:
    topic = broker.topic()
    frame = book("KRW-BTC", now_ms(), stream_type="SNAPSHOT")
    with exchange_that_never_closes(frame) as url:
        given = settings(exchange, rest, broker.bootstrap, topic) | {"ws_url": url}
        with producer_process(tmp_path, **given) as producer:
            producer.wait_for("ok")
            assert producer.terminate() == 0, producer.log_path.read_text()
    assert [record.value for record in books(read_all(broker.bootstrap, topic))] == [frame]


@pytest.mark.parametrize("when", ["before the start", "while it runs"])
def test_a_rest_api_that_hangs(
    broker: Broker, exchange: ScriptedExchange, rest: MarketServer, tmp_path: Path, when: str
) -> None:
    given = settings(exchange, rest, broker.bootstrap, broker.topic(), "ALL-KRW")
    if when == "before the start":
        rest.hangs.set()
    with producer_process(tmp_path, **given) as producer:
        if when == "before the start":
            producer.wait_for("degraded", "none are remembered")
        else:
            producer.wait_for("ok")
            rest.hangs.set()
        assert producer.terminate() == 0, producer.log_path.read_text()


def test_a_signal_while_it_still_starts(
    exchange: ScriptedExchange, rest: MarketServer, tmp_path: Path
) -> None:
    given = settings(exchange, rest, "127.0.0.1:1", "orderbook", "ALL-KRW")
    rest.hangs.set()
    with producer_process(tmp_path, **given) as producer:
        wait_until(lambda: rest.asked > 0, "the first question", 30)
        assert producer.terminate() == 0, producer.log_path.read_text()
    assert exchange.origins == []


# ---- the log


@pytest.mark.parametrize("stderr", ["closed", "full disk", "nobody reads"])
def test_a_log_that_cannot_be_written_costs_its_lines_and_nothing_else(
    broker: Broker, exchange: ScriptedExchange, rest: MarketServer, tmp_path: Path, stderr: str
) -> None:
    topic = broker.topic()
    given = settings(exchange, rest, broker.bootstrap, topic)
    if stderr == "full disk":
        target: Any = os.open("/dev/full", os.O_WRONLY)
    elif stderr == "nobody reads":
        reader, target = os.pipe()
        os.close(reader)
    else:
        target = os.open(os.devnull, os.O_RDONLY)  # writing to it fails, as to a descriptor that is closed
    try:
        with producer_process(tmp_path, stderr=target, **given) as producer:
            producer.wait_for("ok")
            exchange.close()
            wait_until(lambda: len(exchange.requests) == 2, "another connection", 30)
            exchange.send(book("KRW-BTC", now_ms(), 1))
            wait_until(lambda: lost_lines(producer.port) > 3, "lines that are lost", 30)
            assert producer.terminate() == 0
    finally:
        os.close(target)
    assert [record.value for record in books(read_all(broker.bootstrap, topic))] == exchange.sent


def test_a_process_without_stderr_writes_its_log_into_nothing_else(
    broker: Broker, exchange: ScriptedExchange, rest: MarketServer, tmp_path: Path
) -> None:
    topic = broker.topic()
    given = settings(exchange, rest, broker.bootstrap, topic)
    with producer_process(tmp_path, **given) as producer:
        # The same command once more, by a shell that closes its stderr.
        port = free_port()
        arguments = [*producer.process.args[:-1], str(port)]  # type: ignore[index, misc]
        environment = dict(
            line.split("=", 1)
            for line in Path(f"/proc/{producer.process.pid}/environ").read_text().split("\0")
            if "=" in line
        )
        silent = subprocess.Popen(
            ["sh", "-c", 'exec "$@" 2>&-', "sh", *arguments], env=environment, cwd=tmp_path
        )
        try:
            wait_until(lambda: exchange.clients == 2, "two subscriptions", 60)
            exchange.send(book("KRW-BTC", now_ms(), 1))
            silent.send_signal(signal.SIGTERM)
            assert silent.wait(30) == 0
        finally:
            silent.kill()
            silent.wait()
        assert producer.terminate() == 0
    kept = [record.value for record in books(read_all(broker.bootstrap, topic))]
    assert sorted(kept) == sorted(exchange.sent)


def lost_lines(port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("cryptostream_process_log_lines_lost_total "):
                return float(line.split()[1])
    raise AssertionError("no such metric")
