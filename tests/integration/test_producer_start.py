"""A start while something is away: what is not caught on the wire cannot be fetched again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptostream_dagster.local.ports import free_port
from ingest_services import kafka
from ingest_services.errors import UserError
from ingest_services.kafka import create_topics
from ingest_services.producer import markets, service, topics
from ingest_services.producer.health import ProducerHealth
from ingest_services.producer.markets import MarketMemory
from ingest_services.producer.metrics import MarketList
from ingest_services.producer.service import ProducerService
from tests.broker import Broker, running_broker
from tests.integration.test_producer_service import (
    books,
    heartbeats,
    now_ms,
    producing,
    read_all,
    section,
    settings_for,
)
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


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten what a start waits for."""
    monkeypatch.setattr(kafka, "CONNECT_TIMEOUT_S", 0.5)
    monkeypatch.setattr(service, "KAFKA_TIMEOUT_S", 2.0)
    monkeypatch.setattr(topics, "LOOK_EVERY_S", 0.2)
    monkeypatch.setattr(markets, "FOLLOW_EVERY_S", 0.3)
    monkeypatch.setattr(markets, "CONFIRM_S", 0.2)
    monkeypatch.setattr(markets, "START_TIMEOUT_S", 1.0)
    monkeypatch.setattr(markets, "RETRY_BASE_S", 0.1)


# ---- Kafka is away


@pytest.mark.usefixtures("quick")
def test_what_was_collected_before_there_was_a_broker_arrives_once_and_in_order(
    exchange: ScriptedExchange, tmp_path: Path
) -> None:
    port = free_port()
    settings = settings_for(exchange, f"127.0.0.1:{port}", tmp_path)
    with producing([section("orderbook", "KRW-BTC")], settings) as running:
        stats = running.stats[0]
        judge = ProducerHealth(running._running)
        wait_until(lambda: exchange.clients == 1, "a subscription")
        for i in range(300):
            exchange.send(book("KRW-BTC", now_ms(), i))
        wait_until(lambda: stats.spooled >= 301, "the spool")
        assert not running.failed
        assert any("Kafka takes nothing" in reason for reason in judge().degraded)
        with running_broker(port) as broker:
            # It answers, and lacks the topic: the spool goes on, and it is said why.
            wait_until(lambda: bool(stats.topic_problem), "the missing topic")
            assert stats.topic_problem.startswith("topic orderbook does not exist; create it with")
            assert any(stats.topic_problem in reason for reason in judge().degraded)
            exchange.send(book("KRW-BTC", now_ms(), 300))
            time.sleep(0.3)
            assert stats.spooling
            there_us = time.time_ns() // 1000
            create_topics(broker.bootstrap, {"orderbook": 1})
            wait_until(lambda: not stats.spooling and not stats.topic_problem, "the live path", 30)
            exchange.send(*(book("KRW-BTC", now_ms(), i) for i in range(301, 400)))
            wait_until(lambda: stats.spool_bytes == 0 and not judge().degraded, "an empty spool", 30)
            wait_until(lambda: stats.frames >= len(exchange.sent), "all frames")
            running.stop()
            kept = books(records := read_all(broker.bootstrap, "orderbook"))
    assert sorted(record.value for record in kept) == sorted(exchange.sent)
    before = [r for r in kept if r.envelope.received_us < there_us]
    assert [record.value for record in before] == exchange.sent[: len(before)]
    assert len(before) >= 302
    assert all(r.timestamp == r.envelope.received_us // 1000 for r in kept)
    assert stats.lost == 0
    first_us = min(r.envelope.received_us for r in kept)
    assert min(c.from_us for h in heartbeats(records) for c in h.covered) == first_us


@pytest.mark.usefixtures("quick")
def test_a_partition_that_is_missing_later_is_said_and_cured(
    exchange: ScriptedExchange, tmp_path: Path
) -> None:
    port = free_port()
    settings = settings_for(exchange, f"127.0.0.1:{port}", tmp_path)
    with producing([section("orderbook", "KRW-BTC", partition=1)], settings) as running:
        stats = running.stats[0]
        wait_until(lambda: stats.spooled >= 1, "the spool")
        with running_broker(port) as broker:
            create_topics(broker.bootstrap, {"orderbook": 1})
            wait_until(lambda: bool(stats.topic_problem), "the missing partition")
        assert "partition_number=1: topic orderbook has partitions 0 to 0" in stats.topic_problem
        with running_broker(port) as broker:
            create_topics(broker.bootstrap, {"orderbook": 2})
            wait_until(lambda: not stats.topic_problem and stats.spool_bytes == 0, "delivery", 30)
            assert [r.value for r in books(read_all(broker.bootstrap, "orderbook", 1))] == exchange.sent


def test_a_process_that_starts_and_ends_without_a_broker_leaves_its_frames_in_the_spool(
    exchange: ScriptedExchange, rest: MarketServer, tmp_path: Path
) -> None:
    port, broker_port = free_port(), free_port()
    settings = {
        "topic": "orderbook",
        "tickers": {"upbit_producer1": "BTC"},
        "bootstrap": f"127.0.0.1:{broker_port}",
        "ws_url": exchange.ws_url,
        "rest_url": rest.url,
        "port": port,
    }
    with producer_process(tmp_path, **settings) as producer:
        wait_until(lambda: exchange.clients == 1, "a subscription", 30)
        exchange.send(*(book("KRW-BTC", now_ms(), i) for i in range(50)))
        assert "Kafka takes nothing" in producer.wait_for("degraded", "Kafka takes nothing")
        assert producer.terminate() == 0, producer.log_path.read_text()
        (told,) = producer.log("kafka_unreachable")
    assert (told["level"], told["bootstrap"]) == ("error", settings["bootstrap"])
    assert told["spooling_to"] == str(tmp_path / "spool")
    before = list(exchange.sent)
    wait_until(lambda: exchange.clients == 0, "the end of the socket")
    with running_broker(broker_port) as broker:
        create_topics(broker.bootstrap, {"orderbook": 1})
        with producer_process(tmp_path, **settings) as producer:
            producer.wait_for("ok")
            assert producer.terminate() == 0
        kept = [r.value for r in books(read_all(broker.bootstrap, "orderbook"))]
    assert [value for value in kept if value in set(before)] == before
    assert sorted(kept) == sorted(exchange.sent)


# ---- the exchange's REST API is away


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("why", [429, 418, 500, "hangs"])
def test_a_start_without_the_list_of_markets_takes_the_last_one(
    broker: Broker, exchange: ScriptedExchange, rest: MarketServer, tmp_path: Path, why: int | str
) -> None:
    settings = settings_for(exchange, broker.bootstrap, tmp_path)
    settings.upbit_rest_url = rest.url
    MarketMemory(settings.spool_dir, "upbit_producer1", rest.url, "KRW").save(("KRW-BTC", "KRW-ETH"))
    if why == "hangs":
        rest.hangs.set()
    else:
        rest.status = int(why)
    with producing([section(broker.topic(), all_of="KRW")], settings) as running:
        stats = running.stats[0]
        wait_until(lambda: exchange.clients == 1, "a subscription")
        assert stats.market_list is MarketList.REMEMBERED
        assert exchange.requests[0][1]["codes"] == ["KRW-BTC.15", "KRW-ETH.15"]
        assert any("earlier run" in reason for reason in ProducerHealth(running._running)().degraded)


@pytest.mark.usefixtures("quick")
def test_a_start_without_any_list_waits_for_it_and_holds_up_nobody_else(
    broker: Broker, exchange: ScriptedExchange, tmp_path: Path
) -> None:
    rest_port = free_port()
    settings = settings_for(exchange, broker.bootstrap, tmp_path)
    settings.upbit_rest_url = f"http://127.0.0.1:{rest_port}"
    topic = broker.topic(2)
    from ingest_services.config import ProducerSection

    sections = [
        ProducerSection("upbit_all", topic, 0, (), "KRW"),
        ProducerSection("upbit_one", topic, 1, ("USDT-BTC",)),
    ]
    with producing(sections, settings) as running:
        everything, one = running.stats
        wait_until(lambda: one.acknowledged >= 1, "the other section")
        assert everything.market_list is MarketList.UNKNOWN
        assert not running.failed
        assert [asked[1]["codes"] for asked in exchange.requests] == [["USDT-BTC.15"]]
        with market_server(rest_port):
            wait_until(lambda: everything.acknowledged >= 2, "the markets", 30)
        assert everything.market_list is MarketList.FOLLOWED
        assert exchange.requests[-1][1]["codes"] == ["KRW-BTC.15", "KRW-ETH.15"]
    memory = MarketMemory(settings.spool_dir, "upbit_all", settings.upbit_rest_url, "KRW")
    assert memory.load() == ("KRW-BTC", "KRW-ETH")


@pytest.mark.usefixtures("quick")
def test_a_hiccup_of_the_list_of_markets_ends_no_subscription(
    broker: Broker, exchange: ScriptedExchange, rest: MarketServer, tmp_path: Path
) -> None:
    settings = settings_for(exchange, broker.bootstrap, tmp_path)
    settings.upbit_rest_url = rest.url
    with producing([section(broker.topic(), all_of="KRW")], settings) as running:
        wait_until(lambda: exchange.clients == 1, "a subscription")
        for nonsense in ([], ["BTC-ETH"], ["KRW-XXX"]):
            asked = rest.asked
            rest.markets = nonsense
            wait_until(lambda asked=asked: rest.asked >= asked + 3, "three answers")
        assert running.stats[0].market_list is MarketList.DISTRUSTED
        rest.markets = ["KRW-BTC", "KRW-ETH"]
        wait_until(lambda: running.stats[0].market_list is MarketList.FOLLOWED, "an answer that is believed")
        assert len(exchange.requests) == 1


@pytest.mark.usefixtures("quick")
def test_an_odd_name_in_the_list_of_markets_keeps_nobody_else_out(
    broker: Broker, exchange: ScriptedExchange, rest: MarketServer, tmp_path: Path
) -> None:
    settings = settings_for(exchange, broker.bootstrap, tmp_path)
    settings.upbit_rest_url = rest.url
    rest.markets = ["KRW-BTC", "KRW-../x", "krw-eth", ""]
    with producing([section(broker.topic(), all_of="KRW")], settings):
        wait_until(lambda: exchange.clients == 1, "a subscription")
    assert exchange.requests[0][1]["codes"] == ["KRW-BTC.15"]


def test_an_exchange_without_such_markets_is_one_line(
    broker: Broker, exchange: ScriptedExchange, rest: MarketServer, tmp_path: Path
) -> None:
    settings = settings_for(exchange, broker.bootstrap, tmp_path)
    settings.upbit_rest_url = rest.url
    rest.markets = ["BTC-ETH"]
    with pytest.raises(
        UserError, match=r"\[upbit_producer1\] tickers=ALL-KRW: .* no KRW market is among them"
    ):
        ProducerService([section(broker.topic(), all_of="KRW")], settings)
    assert exchange.origins == []
    assert not settings.spool_dir.exists()
