"""Who gets which book: history for the first, real time for all, the same books again for the next."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from ingest_services.simulator.books import Publication
from ingest_services.simulator.config import SimulatorConfig
from ingest_services.simulator.exchange import Exchange, Wish, now_ms
from ingest_services.simulator.walk import Walk

MARKETS = ("KRW-BTC", "KRW-ETH", "KRW-XRP")
CONFIG = SimulatorConfig(history_minutes=2, rate=20, one_sided_share=0, crossed_share=0)
WISHES = {market: Wish(5) for market in MARKETS}


class Listener:
    """A client that keeps all it is told, and reads only while it is let."""

    def __init__(self, limit: int | None = None) -> None:
        self.gone = False
        self.frames: list[dict[str, Any]] = []
        self.may_read = asyncio.Event()
        if limit is None:
            self.may_read.set()

    def tell(self, book: Publication, depth: int, stream_type: str) -> None:
        self.frames.append(json.loads(book.encode("SIMPLE", depth, stream_type)))

    async def room(self) -> None:
        await self.may_read.wait()

    def stamps(self, market: str, stream_type: str = "REALTIME") -> list[int]:
        return [f["tms"] for f in self.frames if f["cd"] == market and f["st"] == stream_type]


def with_exchange(test: Callable[[Exchange], Awaitable[None]], config: SimulatorConfig = CONFIG) -> None:
    async def run() -> None:
        exchange = Exchange({market: Walk(market, config, now_ms()) for market in MARKETS})
        publisher = asyncio.create_task(exchange.run())
        try:
            async with asyncio.timeout(20):
                await test(exchange)
        finally:
            publisher.cancel()

    asyncio.run(run())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def all_stamps(market: str, from_ms: int, to_ms: int, config: SimulatorConfig = CONFIG) -> list[int]:
    """The stamps that a walk gives, computed without the exchange."""
    walk = Walk(market, replace(config, history_minutes=0), from_ms)
    walk.begin(from_ms)
    stamps = []
    while walk.due_ms <= to_ms:
        stamps.append(walk.step().tms)
    return stamps


def counts(exchange: Exchange) -> Mapping[str, int]:
    found: dict[str, int] = {}
    for candle in exchange.truth.candles():
        found[str(candle["market"])] = found.get(str(candle["market"]), 0) + int(str(candle["book_count"]))
    return found


def test_history_and_real_time_join_without_a_gap_or_a_repetition() -> None:
    async def test(exchange: Exchange) -> None:
        listener = Listener()
        asked = now_ms()
        exchange.subscribe(listener, WISHES)
        await until(lambda: exchange.history_done)
        await asyncio.sleep(0.3)
        exchange.leave(listener)
        from_ms = (asked - 120_000) // 300_000 * 300_000
        history = exchange.history()
        assert history["from_ms"] in (from_ms, from_ms + 300_000)
        for market in MARKETS:
            stamps = listener.stamps(market)
            expected = all_stamps(market, int(str(history["from_ms"])), stamps[-1])
            assert stamps == expected
            assert stamps[-1] > int(str(history["to_ms"])), "real time went on"
            (snapshot,) = listener.stamps(market, "SNAPSHOT")
            assert snapshot == max(s for s in stamps if s <= int(str(history["to_ms"])))
            assert counts(exchange)[market] == len(stamps)
        played = [f["tms"] for f in listener.frames if f["st"] == "REALTIME"]
        assert played == sorted(played), "books of all markets come in the order of time"

    with_exchange(test)


def test_a_second_subscriber_waits_and_then_gets_snapshot_and_real_time() -> None:
    async def test(exchange: Exchange) -> None:
        first, second = Listener(limit=0), Listener()
        exchange.subscribe(first, WISHES)
        exchange.subscribe(second, WISHES)
        await asyncio.sleep(0.05)
        assert second.frames == []
        first.may_read.set()
        await until(lambda: len(second.frames) > 10)
        assert [f["st"] for f in second.frames[:3]] == ["SNAPSHOT"] * 3
        assert all(f["st"] == "REALTIME" for f in second.frames[3:])
        live = second.frames[3:]
        assert first.frames[-len(live) :] == live

    with_exchange(test)


def test_a_history_that_was_cut_off_starts_again_with_the_same_books_for_the_heir() -> None:
    async def test(exchange: Exchange) -> None:
        first, heir = Listener(limit=0), Listener()
        exchange.subscribe(first, WISHES)
        exchange.subscribe(heir, {"KRW-BTC": Wish(5)})
        await asyncio.sleep(0.05)
        cut = first.stamps("KRW-BTC")
        assert cut
        assert heir.frames == []
        exchange.leave(first)
        await until(lambda: exchange.is_live("KRW-BTC"))
        assert not exchange.history_done, "two markets have had no one to tell"
        exchange.leave(heir)
        assert heir.stamps("KRW-BTC")[: len(cut)] == cut
        assert counts(exchange) == {"KRW-BTC": len(heir.stamps("KRW-BTC"))}, "what nobody has is not true"
        late = Listener()
        exchange.subscribe(late, WISHES)
        await until(lambda: exchange.history_done)
        assert late.stamps("KRW-ETH")[0] == first.stamps("KRW-ETH")[0]
        assert late.frames[0]["cd"] == "KRW-BTC"
        assert late.frames[0]["st"] == "SNAPSHOT"

    with_exchange(test)


def test_a_client_that_is_gone_does_not_make_its_history_true() -> None:
    async def test(exchange: Exchange) -> None:
        first, second = Listener(limit=0), Listener()
        exchange.subscribe(first, WISHES)
        await asyncio.sleep(0.05)
        first.gone = True
        first.may_read.set()
        await asyncio.sleep(0.05)
        assert not exchange.history_done
        exchange.leave(first)
        exchange.subscribe(second, WISHES)
        await until(lambda: exchange.history_done)
        exchange.leave(second)
        assert counts(exchange) == {market: len(second.stamps(market)) for market in MARKETS}

    with_exchange(test)


def test_time_goes_on_when_nobody_listens() -> None:
    async def test(exchange: Exchange) -> None:
        listener = Listener()
        exchange.subscribe(listener, WISHES)
        await until(lambda: exchange.history_done)
        exchange.leave(listener)
        before = exchange.truth.books_published
        await until(lambda: exchange.truth.books_published > before + 10)

    with_exchange(test)


def test_markets_that_nobody_asked_for_have_no_truth() -> None:
    async def test(exchange: Exchange) -> None:
        watcher = Listener()
        exchange.subscribe(watcher, {"KRW-ETH": Wish(5, realtime=False), "KRW-NONE": Wish(5)})
        assert [(f["cd"], f["st"]) for f in watcher.frames] == [("KRW-ETH", "SNAPSHOT")]
        await asyncio.sleep(0.1)
        assert exchange.truth.books_published == 0
        assert not exchange.history_done

    with_exchange(test, replace(CONFIG, history_minutes=0))


def test_without_history_the_snapshot_is_no_event_of_any_window_to_come() -> None:
    async def test(exchange: Exchange) -> None:
        listener = Listener()
        asked = now_ms()
        exchange.subscribe(listener, {"KRW-BTC": Wish(5)})
        await until(lambda: len(listener.frames) > 3)
        exchange.leave(listener)
        (snapshot,) = listener.stamps("KRW-BTC", "SNAPSHOT")
        assert snapshot == asked // 300_000 * 300_000 - 1
        assert counts(exchange) == {"KRW-BTC": len(listener.stamps("KRW-BTC"))}
        assert min(listener.stamps("KRW-BTC")) >= asked

    with_exchange(test, replace(CONFIG, history_minutes=0))


def test_a_market_that_is_listed_again_has_one_stream_of_books() -> None:
    config = replace(CONFIG, history_minutes=0, rate=5)

    async def test(exchange: Exchange) -> None:
        listener = Listener()
        exchange.subscribe(listener, {"KRW-BTC": Wish(5)})
        await until(lambda: exchange.is_live("KRW-BTC"))
        # The next book of its first life is on the agenda still.
        exchange.delist_market("KRW-BTC")
        exchange.list_market(Walk("KRW-BTC", config, now_ms()))
        exchange.subscribe(listener, {"KRW-BTC": Wish(5)})
        listener.frames.clear()
        for count in range(2, 8):
            await until(lambda count=count: len(listener.frames) >= count)
            assert listener.frames[-1]["tms"] <= now_ms(), "no book comes before its time"

    with_exchange(test, config)


def test_a_market_that_is_delisted_while_it_catches_up_is_left_out() -> None:
    async def test(exchange: Exchange) -> None:
        listener = Listener(limit=0)
        exchange.subscribe(listener, WISHES)
        await asyncio.sleep(0.05)
        assert not exchange.is_live("KRW-ETH")
        exchange.delist_market("KRW-ETH")
        came = len(listener.stamps("KRW-ETH"))
        listener.may_read.set()
        await until(lambda: exchange.history_done)
        exchange.leave(listener)
        assert len(listener.stamps("KRW-ETH")) == came
        assert listener.stamps("KRW-ETH", "SNAPSHOT") == []
        assert len(listener.stamps("KRW-BTC", "SNAPSHOT")) == 1

    with_exchange(test)
