"""Quiet or dead, unknown or silent: what becomes of tickers that say nothing, on a real socket and broker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from ingest_services.lake.coverage import covered_intervals, covered_us
from ingest_services.producer import coverage, keeper, silence, supervision
from ingest_services.producer.feed import Item, Signal
from ingest_services.producer.metrics import SectionStats
from tests.broker import Broker
from tests.integration.test_producer_service import (
    books,
    heartbeats,
    now_ms,
    producing,
    read_all,
    section,
    settings_for,
)
from tests.scripted_exchange import ScriptedExchange, book, scripted_exchange, wait_until


@pytest.fixture
def exchange() -> Iterator[ScriptedExchange]:
    with scripted_exchange() as running:
        yield running


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a second of what takes a minute."""
    monkeypatch.setattr(silence, "OVERDUE_US", (600_000, 900_000))
    monkeypatch.setattr(silence, "SNAPSHOT_BOUND_US", 600_000)
    monkeypatch.setattr(silence, "GRACE_US", 400_000)
    monkeypatch.setattr(supervision, "KEEPALIVE_S", 0.3)
    monkeypatch.setattr(keeper, "TURN_S", 0.05)
    monkeypatch.setattr(keeper, "ASK_EVERY_S", 0.3)
    monkeypatch.setattr(coverage.CoverageTracker.__init__, "__defaults__", (200_000,))


def keep_talking(exchange: ScriptedExchange, market: str, until: object, what: str) -> None:
    serial = 1000

    def talk() -> bool:
        nonlocal serial
        serial += 1
        exchange.send(book(market, now_ms(), serial))
        time.sleep(0.02)
        return until()  # type: ignore[operator]

    wait_until(talk, what)


def test_a_dead_subscription_is_replaced_and_its_silence_is_a_hole(
    broker: Broker, exchange: ScriptedExchange, tmp_path: Path
) -> None:
    topic = broker.topic()
    with producing(
        [section(topic, "KRW-BTC", "KRW-ETH")], settings_for(exchange, broker.bootstrap, tmp_path)
    ) as running:
        stats: SectionStats = running.stats[0]
        wait_until(lambda: len(stats.last_frame_us) == 2, "the snapshots")
        time.sleep(0.01)  # what is read at once has one stamp
        last = now_ms()
        exchange.send(book("KRW-BTC", last, 1))
        # From here on Bitcoin's book changes, and the socket does not say so.
        exchange.books["KRW-BTC"] = book("KRW-BTC", last + 50, 2)
        keep_talking(exchange, "KRW-ETH", lambda: stats.resubscriptions == 1, "a new subscription")
        keep_talking(exchange, "KRW-ETH", lambda: exchange.ended == 1, "the end of the old one")
        replaced_us = time.time_ns() // 1000
        keep_talking(
            exchange, "KRW-ETH", lambda: time.time_ns() // 1000 > replaced_us + 500_000, "half a second"
        )
    assert not stats.reconnects, "nothing was cut"
    assert stats.resubscriptions == 1
    assert stats.verdicts["dead"] == 1
    assert stats.holes_s > 0
    records = read_all(broker.bootstrap, topic)
    told = heartbeats(records)
    first, second = dict.fromkeys(r.envelope.connection for r in books(records))
    # On the old connection Bitcoin is covered up to its last book, and Ethereum to the end.
    on_first = covered_intervals(h for h in told if h.connection == first)
    last_btc_us = max(
        r.envelope.received_us for r in books(records) if (r.key, r.envelope.connection) == (b"BTC", first)
    )
    assert on_first["BTC"][-1][1] <= last_btc_us
    assert any("BTC" in hole.tickers for h in told for hole in h.holes), "it had been claimed"
    # Both together: a hole for Bitcoin that begins with its last book, and none for Ethereum.
    spans = covered_intervals(told)
    assert len(spans["ETH"]) == 1
    assert len(spans["BTC"]) == 2
    assert spans["BTC"][0][1] <= last_btc_us
    assert covered_us(spans["BTC"], last_btc_us, spans["BTC"][1][0]) == 0
    assert second.startswith("upbit_producer1-")


def test_a_quiet_ticker_is_left_alone(broker: Broker, exchange: ScriptedExchange, tmp_path: Path) -> None:
    topic = broker.topic()
    with producing(
        [section(topic, "KRW-BTC", "KRW-ETH")], settings_for(exchange, broker.bootstrap, tmp_path)
    ) as running:
        stats = running.stats[0]
        wait_until(lambda: stats.verdicts["quiet"] >= 6, "three looks at both")
        assert exchange.clients == 1
        assert len(exchange.requests) == 1
    assert set(stats.verdicts) == {"quiet"}
    assert not stats.reconnects
    told = heartbeats(read_all(broker.bootstrap, topic))
    assert all(len(spans) == 1 for spans in covered_intervals(told).values())


def test_an_unknown_code_is_reported_by_name_and_costs_nobody_else_anything(
    broker: Broker, exchange: ScriptedExchange, tmp_path: Path
) -> None:
    exchange.markets = ["KRW-BTC"]
    exchange.silent_codes = {"KRW-GONE"}
    with (
        capture_logs() as logs,
        producing(
            [section(broker.topic(), "KRW-BTC", "KRW-GONE")],
            settings_for(exchange, broker.bootstrap, tmp_path),
        ) as running,
    ):
        stats = running.stats[0]
        wait_until(lambda: stats.verdicts["unknown"] >= 2, "two looks")
        assert stats.silent == ("GONE",)
        assert len(exchange.requests) == 1, "there is nothing that a new subscription could mend"
    assert [line["tickers"] for line in logs if line["event"] == "unknown_or_delisted"] == [["GONE"]]
    assert stats.resubscriptions == 0


def test_a_listed_code_without_a_snapshot_is_subscribed_anew_at_growing_intervals(
    broker: Broker, exchange: ScriptedExchange, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "RENEW_BASE_S", 0.5)
    exchange.books["KRW-ETH"] = book("KRW-ETH", now_ms(), 1)
    exchange.silent_codes = {"KRW-ETH"}
    topic = broker.topic()
    with producing(
        [section(topic, "KRW-BTC", "KRW-ETH")], settings_for(exchange, broker.bootstrap, tmp_path)
    ) as running:
        stats = running.stats[0]
        wait_until(lambda: stats.resubscriptions == 2, "two attempts", 30)
        assert stats.silent == ("ETH",)
        exchange.silent_codes = set()
        wait_until(lambda: stats.silent == (), "one that succeeds", 30)
    assert stats.resubscriptions in (2, 3), "no storm"
    spans = covered_intervals(heartbeats(read_all(broker.bootstrap, topic)))
    assert len(spans["BTC"]) == 1, "nobody else has a gap"


def test_an_exchange_that_does_not_answer_ends_nothing(
    broker: Broker, exchange: ScriptedExchange, tmp_path: Path
) -> None:
    exchange.rest_refuses_with = 500
    with producing(
        [section(broker.topic(), "KRW-BTC")], settings_for(exchange, broker.bootstrap, tmp_path)
    ) as running:
        stats = running.stats[0]
        wait_until(lambda: stats.verdicts["unanswered"] >= 2, "two questions")
        assert len(exchange.requests) == 1
        exchange.rest_refuses_with = None
        wait_until(lambda: stats.verdicts["quiet"] >= 1, "an answer")
    assert set(stats.verdicts) == {"unanswered", "quiet"}


@pytest.mark.parametrize("status", [429, 418])
def test_a_blocked_path_is_not_hammered(
    broker: Broker, exchange: ScriptedExchange, tmp_path: Path, status: int
) -> None:
    exchange.rest_refuses_with = status
    with producing(
        [section(broker.topic(), "KRW-BTC")], settings_for(exchange, broker.bootstrap, tmp_path)
    ) as running:
        stats = running.stats[0]
        wait_until(lambda: stats.verdicts["unanswered"] >= 2, "two turns")
        asked_s = list(exchange.rest_asked_s)
    # After 418 the second turn did not even ask; after 429 it waited.
    assert len(asked_s) == (1 if status == 418 else 2)
    assert all(later - first >= 5.0 for first, later in pairwise(asked_s))


def test_a_frame_that_nobody_can_read_is_a_hole_until_the_exchange_is_asked(
    broker: Broker, exchange: ScriptedExchange, tmp_path: Path
) -> None:
    topic = broker.topic()
    with producing(
        [section(topic, "KRW-BTC")], settings_for(exchange, broker.bootstrap, tmp_path)
    ) as running:
        stats = running.stats[0]
        wait_until(lambda: exchange.clients == 1, "a subscription")
        exchange.send(book("KRW-BTC", now_ms(), 1))
        wait_until(lambda: "BTC" in stats.last_frame_us, "a book")
        time.sleep(0.1)
        exchange.send(b'{"ty":"orderbook","cd":"KRW-B')
        wait_until(lambda: stats.garbage == 1, "the garbage")
        wait_until(lambda: stats.verdicts["quiet"] >= 2, "proof")
        time.sleep(0.7)
    records = read_all(broker.bootstrap, topic)
    garbage_us = next(r for r in books(records) if r.key == b"").envelope.received_us
    before, after = covered_intervals(heartbeats(records))["BTC"]
    assert before[1] == garbage_us
    assert after[0] > garbage_us
    assert len(exchange.requests) == 1, "the same book: nothing was missed"


def test_a_replacement_that_says_nothing_replaces_nothing(
    broker: Broker, exchange: ScriptedExchange, tmp_path: Path
) -> None:
    topic = broker.topic()
    with producing(
        [section(topic, "KRW-BTC", "KRW-ETH")], settings_for(exchange, broker.bootstrap, tmp_path)
    ) as running:
        stats = running.stats[0]
        wait_until(lambda: exchange.clients == 1, "a subscription")
        exchange.send(book("KRW-BTC", now_ms(), 1))
        exchange.snapshots = False
        exchange.deaf_from = 2
        exchange.books["KRW-BTC"] = book("KRW-BTC", now_ms() + 50, 2)
        keep_talking(exchange, "KRW-ETH", lambda: exchange.ended == 1, "a replacement, and its end")
        keep_talking(exchange, "KRW-ETH", lambda: len(exchange.sent) > 100, "a bit more")
    connections = {r.envelope.connection for r in books(read_all(broker.bootstrap, topic))}
    assert len(connections) == 1
    assert not stats.reconnects


def test_a_listed_market_without_a_book_keeps_nobody_else_from_being_compared(
    broker: Broker, exchange: ScriptedExchange, tmp_path: Path
) -> None:
    exchange.markets = ["KRW-BTC", "KRW-ETH", "KRW-NEW"]
    exchange.bookless = {"KRW-NEW"}
    exchange.silent_codes = {"KRW-NEW", "KRW-GONE"}
    with producing(
        [section(broker.topic(), "KRW-BTC", "KRW-ETH", "KRW-NEW", "KRW-GONE")],
        settings_for(exchange, broker.bootstrap, tmp_path),
    ) as running:
        stats = running.stats[0]
        wait_until(lambda: stats.verdicts["quiet"] >= 4 and stats.verdicts["unknown"] >= 2, "verdicts", 30)
        assert stats.silent == ("NEW", "GONE")
    assert set(stats.verdicts) == {"quiet", "unknown"}


def test_a_silence_for_which_nobody_answered_is_a_hole(
    broker: Broker, exchange: ScriptedExchange, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ethereum must not pause for so long on a busy machine.
    monkeypatch.setattr(silence, "OVERDUE_US", (3_000_000, 3_000_000))
    exchange.rest_refuses_with = 500
    topic = broker.topic()
    with producing(
        [section(topic, "KRW-BTC", "KRW-ETH")], settings_for(exchange, broker.bootstrap, tmp_path)
    ) as running:
        stats = running.stats[0]
        wait_until(lambda: exchange.clients == 1, "a subscription")
        for serial in range(30):
            exchange.send(book("KRW-BTC", now_ms(), serial), book("KRW-ETH", now_ms(), serial))
            time.sleep(0.02)
        silent_us = time.time_ns() // 1000
        exchange.refuse_with = 418
        keep_talking(exchange, "KRW-ETH", lambda: stats.verdicts["unanswered"] >= 2, "questions")
        speaks_us = time.time_ns() // 1000
        exchange.send(book("KRW-BTC", now_ms(), 2000))
        keep_talking(
            exchange, "KRW-ETH", lambda: time.time_ns() // 1000 > speaks_us + 500_000, "half a second"
        )
    assert not stats.reconnects
    spans = covered_intervals(heartbeats(read_all(broker.bootstrap, topic)))
    assert covered_us(spans["BTC"], silent_us, speaks_us) == 0
    assert len(spans["BTC"]) == 2
    assert len(spans["ETH"]) == 1


@pytest.mark.parametrize("dead", [True, False])
def test_a_silence_for_which_rest_does_not_answer_is_answered_for_by_a_new_connection(
    broker: Broker, exchange: ScriptedExchange, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dead: bool
) -> None:
    monkeypatch.setattr(silence, "OVERDUE_US", (2_000_000, 2_000_000))
    monkeypatch.setattr(silence, "ANSWER_US", 1_000_000)
    exchange.rest_refuses_with = 418
    topic = broker.topic()
    with producing(
        [section(topic, "KRW-BTC", "KRW-ETH")], settings_for(exchange, broker.bootstrap, tmp_path)
    ) as running:
        stats = running.stats[0]
        wait_until(lambda: exchange.clients == 1, "a subscription")
        for serial in range(30):
            exchange.send(book("KRW-BTC", now_ms(), serial), book("KRW-ETH", now_ms(), serial))
            time.sleep(0.02)
        if dead:
            exchange.books["KRW-BTC"] = book("KRW-BTC", now_ms() + 50, 2000)
        silent_us = time.time_ns() // 1000
        keep_talking(exchange, "KRW-ETH", lambda: exchange.ended == 1, "the end of the old connection")
        renewed_us = time.time_ns() // 1000
    assert stats.resubscriptions == 1
    assert not stats.verdicts["dead"]
    spans = covered_intervals(heartbeats(read_all(broker.bootstrap, topic)))
    assert len(spans["ETH"]) == 1
    assert len(spans["BTC"]) == (2 if dead else 1)
    assert dead == (covered_us(spans["BTC"], silent_us, renewed_us) < (renewed_us - silent_us) // 2)


def test_the_dead_are_found_while_a_replacement_does_not_come(
    broker: Broker, exchange: ScriptedExchange, tmp_path: Path
) -> None:
    with producing(
        [section(broker.topic(), "KRW-BTC", "KRW-ETH")], settings_for(exchange, broker.bootstrap, tmp_path)
    ) as running:
        stats = running.stats[0]
        wait_until(lambda: exchange.clients == 1, "a subscription")
        exchange.refuse_with = 418
        exchange.books["KRW-BTC"] = book("KRW-BTC", now_ms() + 50, 2)
        keep_talking(exchange, "KRW-ETH", lambda: stats.reconnects["status_418"] >= 1, "a refusal")
        assert stats.holes_s > 0, "the claim is taken back now, not when a new connection stands"
        exchange.books["KRW-BTC"] = book("KRW-BTC", now_ms() + 5000, 3)
        keep_talking(exchange, "KRW-ETH", lambda: stats.verdicts["dead"] >= 2, "the next verdict")
        assert exchange.clients == 1


def test_a_listing_whose_connection_says_nothing_is_not_tried_again_at_once(
    broker: Broker, exchange: ScriptedExchange, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "RENEW_BASE_S", 60.0)
    with producing(
        [section(broker.topic(), "KRW-BTC", "KRW-ETH")], settings_for(exchange, broker.bootstrap, tmp_path)
    ) as running:
        wait_until(lambda: exchange.clients == 1, "a subscription")
        exchange.snapshots = False
        exchange.deaf_from = 2
        owner = running._running[0]._keeper
        assert owner is not None
        owner.want(("KRW-BTC", "KRW-ETH", "KRW-NEW"))
        keep_talking(exchange, "KRW-ETH", lambda: exchange.ended == 1, "a replacement, and its end")
        sent = len(exchange.sent)
        keep_talking(exchange, "KRW-ETH", lambda: len(exchange.sent) > sent + 100, "two seconds and more")
        assert len(exchange.requests) == 2


def test_the_old_connection_goes_on_until_the_new_one_has_delivered_every_ticker(
    broker: Broker, exchange: ScriptedExchange, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence, "SNAPSHOT_BOUND_US", 60_000_000)
    topic = broker.topic()
    with producing(
        [section(topic, "KRW-BTC", "KRW-ETH")], settings_for(exchange, broker.bootstrap, tmp_path)
    ) as running:
        wait_until(lambda: exchange.clients == 1, "a subscription")
        owner = running._running[0]._keeper
        assert owner is not None
        exchange.silent_codes = {"KRW-BTC", "KRW-NEW"}
        owner.want(("KRW-BTC", "KRW-ETH", "KRW-NEW"))
        wait_until(lambda: exchange.clients == 2, "the new subscription")
        exchange.send(book("KRW-NEW", now_ms(), 1))
        time.sleep(10 * keeper.TURN_S)
        assert exchange.ended == 0, "Bitcoin would have a gap"
        exchange.send(book("KRW-BTC", now_ms(), 2))
        wait_until(lambda: exchange.ended == 1, "the end of the old one")
    spans = covered_intervals(heartbeats(read_all(broker.bootstrap, topic)))
    assert len(spans["BTC"]) == len(spans["ETH"]) == 1


@pytest.mark.parametrize("way", ["cut", "listing"])
def test_what_is_usual_with_a_ticker_outlives_its_connection(
    broker: Broker, exchange: ScriptedExchange, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(silence, "OVERDUE_US", (600_000, 60_000_000))
    with producing(
        [section(broker.topic(), "KRW-BTC", "KRW-ETH")], settings_for(exchange, broker.bootstrap, tmp_path)
    ) as running:
        stats = running.stats[0]
        wait_until(lambda: exchange.clients == 1, "a subscription")
        for serial in range(30):
            exchange.send(book("KRW-BTC", now_ms(), serial), book("KRW-ETH", now_ms(), serial))
            time.sleep(0.02)
        # From now on Bitcoin's book changes, and no connection says so after its snapshot.
        owner = running._running[0]._keeper
        assert owner is not None
        if way == "cut":
            exchange.close()
        else:
            owner.want(("KRW-BTC", "KRW-ETH", "KRW-NEW"))
        keep_talking(exchange, "KRW-ETH", lambda: exchange.ended == 1 and exchange.clients == 1, "the next")
        exchange.books["KRW-BTC"] = book("KRW-BTC", now_ms() + 50, 2000)
        keep_talking(exchange, "KRW-ETH", lambda: stats.verdicts["dead"] == 1, "the verdict")


def test_a_stop_waits_for_the_connection_that_was_just_replaced(
    broker: Broker, exchange: ScriptedExchange, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with producing(
        [section(broker.topic(), "KRW-BTC", "KRW-ETH")], settings_for(exchange, broker.bootstrap, tmp_path)
    ) as running:
        wait_until(lambda: exchange.clients == 1, "a subscription")
        owner = running._running[0]._keeper
        assert owner is not None
        (old,) = owner._feeds
        put = old._inbox.put

        def put_late(item: Item) -> None:
            # What was on its way takes a while.
            time.sleep(1.0 if item[2] is Signal.STOPPED else 0.0)
            put(item)

        monkeypatch.setattr(old, "_inbox", SimpleNamespace(put=put_late, qsize=old._inbox.qsize))
        owner.want(("KRW-BTC", "KRW-ETH", "KRW-NEW"))
        wait_until(lambda: owner._feeds != [old] and len(owner._feeds) == 1, "the replacement")
        owner.stop()
        owner.join_feeds(time.monotonic() + 10)
        assert not old.is_alive()
