"""Who gets which book, and when: subscriptions, the history on the first of them, and real time.

A market's life: it sleeps until someone subscribes to it; then everything since its start is sent to that
client alone, as fast as it takes it (*catching up*); from the instant at which nothing more is due it is
*live*, for ever, and each book goes to all that subscribe. If the client leaves before its market is live,
the market starts anew with the next one, with the same books. A market may be listed later, and delisted at
any time. No sockets here: a client is anything that takes books.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from ingest_services.simulator.books import Publication
from ingest_services.simulator.feed import Feed
from ingest_services.simulator.journal import Journal
from ingest_services.simulator.trades import Trades
from ingest_services.simulator.truth import Truth
from ingest_services.upbit.frames import REALTIME, SNAPSHOT

# Books between two chances for other tasks: some milliseconds of work.
_BATCH = 100
# Live books are published together if they are due within this time.
_TICK_S = 0.003

log = structlog.get_logger()


class Client(Protocol):
    """What the exchange needs to know of a socket."""

    gone: bool

    def tell(self, book: Publication, depth: int, stream_type: str) -> None:
        """Queue a book's frame. A client that cannot keep up is dropped; this never waits."""

    async def room(self) -> None:
        """Wait until a history may go on, or the client is gone."""


@dataclass(frozen=True, slots=True)
class Wish:
    """How a client wants one market."""

    depth: int
    snapshot: bool = True
    realtime: bool = True


@dataclass(eq=False, slots=True)
class _CatchUp:
    client: Client
    markets: tuple[str, ...]
    task: asyncio.Task[None] | None = field(default=None)


def now_ms() -> int:
    """Return the time, ms since the epoch."""
    return time.time_ns() // 1_000_000


class Exchange:
    """All markets, all subscriptions, the truth and the trades."""

    def __init__(
        self,
        feeds: Mapping[str, Feed],
        clock: Callable[[], int] = now_ms,
        journal: Journal | None = None,
    ) -> None:
        """Open with every market asleep.

        Args:
            feeds: Books by market code.
            clock: Returns the time, ms since the epoch.
            journal: Is told of every book that is published.
        """
        self._feeds = dict(feeds)
        self.truth = Truth()
        self.trades = Trades()
        self._clock = clock
        self._journal = journal
        self._subscribers: dict[str, dict[Client, Wish]] = {market: {} for market in feeds}
        self._catching_up: dict[str, _CatchUp] = {}
        self._live_since_ms: dict[str, int] = {}
        self._from_ms: int | None = None
        # (due, place among equals, a number that settles the rest, market)
        self._heap: list[tuple[int, int, int, str]] = []
        self._order = {market: number for number, market in enumerate(feeds)}
        self._next_order = len(feeds)
        # Markets that were listed later have no history that anybody could wait for.
        self._listed_later: set[str] = set()
        self._wake = asyncio.Event()

    @property
    def feeds(self) -> Mapping[str, Feed]:
        """The books of every market that is listed, by code."""
        return self._feeds

    @property
    def markets_live(self) -> int:
        """How many markets are live."""
        return len(self._live_since_ms)

    @property
    def history_done(self) -> bool:
        """Whether every market is live: nothing of any history is still to come, whoever connects next."""
        return all(m in self._live_since_ms or m in self._listed_later for m in self._feeds)

    def is_live(self, market: str) -> bool:
        """Tell whether a market's books come in real time now."""
        return market in self._live_since_ms

    def history(self) -> dict[str, object]:
        """Return the time that the history covers, as `/simulator/truth` tells it."""
        done = self.history_done
        since = [ms for m, ms in self._live_since_ms.items() if m not in self._listed_later]
        to_ms = max(since, default=None) if done else None
        return {"from_ms": self._from_ms, "to_ms": to_ms, "done": done}

    def list_market(self, feed: Feed) -> None:
        """List a market. It sleeps until someone subscribes to it; who asked for it before hears nothing.

        Raises:
            ValueError: If it is listed already.
        """
        market = feed.market
        if market in self._feeds:
            raise ValueError(f"{market} is listed already")
        self._feeds[market] = feed
        self._subscribers[market] = {}
        self._order[market] = self._next_order
        self._next_order += 1
        self._listed_later.add(market)

    def delist_market(self, market: str) -> None:
        """Take a market away: its books stop, its subscribers are told nothing.

        Raises:
            ValueError: If there is no such market.
        """
        if market not in self._feeds:
            raise ValueError(f"{market} is not listed")
        del self._feeds[market], self._subscribers[market], self._order[market]
        self._catching_up.pop(market, None)
        self._live_since_ms.pop(market, None)
        self._listed_later.discard(market)

    def subscribe(self, client: Client, wishes: Mapping[str, Wish]) -> None:
        """Replace what a client is subscribed to.

        Args:
            client: The client.
            wishes: By market code; an unknown code is met with silence.
        """
        self.leave(client)
        asleep = []
        for market, wish in wishes.items():
            feed = self._feeds.get(market)
            if feed is None:
                continue
            if wish.realtime:
                self._subscribers[market][client] = wish
            begun = market in self._live_since_ms or market in self._catching_up
            if begun or not wish.realtime:
                # While a market catches up its subscribers wait: their snapshot comes when it is live.
                if market not in self._catching_up or not wish.realtime:
                    self._offer_snapshot(client, wish, feed)
            else:
                asleep.append(market)
        if asleep:
            self._start_catching_up(client, tuple(asleep))

    def leave(self, client: Client) -> None:
        """Forget a client; markets that were catching up for it go to another subscriber, or to sleep."""
        for subscribers in self._subscribers.values():
            subscribers.pop(client, None)
        orphans: dict[Client, list[str]] = {}
        for catch_up in {c for c in self._catching_up.values() if c.client is client}:
            if catch_up.task is not None:
                catch_up.task.cancel()
            for market in catch_up.markets:
                if self._catching_up.get(market) is not catch_up:
                    continue
                del self._catching_up[market]
                self.truth.forget(market)
                self.trades.forget(market)
                heir = next(iter(self._subscribers[market]), None)
                if heir is not None:
                    orphans.setdefault(heir, []).append(market)
        for heir, markets in orphans.items():
            self._start_catching_up(heir, tuple(markets))

    async def run(self) -> None:
        """Publish live books when they are due, until cancelled."""
        while True:
            done = 0
            while self._heap and self._heap[0][0] <= self._clock() and done < _BATCH:
                _, _, order, market = heapq.heappop(self._heap)
                done += 1
                # A market that was delisted, even one that was listed again, is not this one any more.
                if self._order.get(market) != order:
                    continue
                feed = self._feeds[market]
                self._publish(feed.step())
                self._schedule(feed, order)
            if done == _BATCH:
                await asyncio.sleep(0)
                continue
            self._wake.clear()
            if not self._heap:
                await self._wake.wait()
                continue
            wait_s = max(_TICK_S, (self._heap[0][0] - self._clock()) / 1000)
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _publish(self, book: Publication) -> None:
        self._record(book)
        for client, wish in list(self._subscribers[book.market].items()):
            client.tell(book, wish.depth, REALTIME)

    def _record(self, book: Publication) -> None:
        if book.is_event(self._clock()):
            self.truth.add(book)
            self.trades.add(book)
        if self._journal is not None:
            self._journal.published(book.market, book.tms)

    def _offer_snapshot(self, client: Client, wish: Wish, feed: Feed) -> None:
        if wish.snapshot and feed.has_snapshots:
            client.tell(feed.current, wish.depth, SNAPSHOT)

    def _schedule(self, feed: Feed, order: int) -> None:
        due = feed.due_ms
        if due is not None:
            heapq.heappush(self._heap, (due, feed.place, order, feed.market))

    def _start_catching_up(self, client: Client, markets: tuple[str, ...]) -> None:
        catch_up = _CatchUp(client, markets)
        now = self._clock()
        for market in markets:
            feed = self._feeds[market]
            feed.begin(now)
            if market not in self._listed_later:
                self._from_ms = feed.from_ms if self._from_ms is None else min(self._from_ms, feed.from_ms)
            self._catching_up[market] = catch_up
        catch_up.task = asyncio.create_task(self._catch_up(catch_up))
        catch_up.task.add_done_callback(_log_failure)

    async def _catch_up(self, catch_up: _CatchUp) -> None:
        """Send one client everything that is due, in the order of time, and make its markets live."""
        client = catch_up.client
        heap: list[tuple[int, int, int, Feed]] = []
        for market in catch_up.markets:
            feed = self._feeds[market]
            due = feed.due_ms
            if due is not None:
                heap.append((due, feed.place, self._order[market], feed))
        heapq.heapify(heap)
        sent = 0
        while heap and heap[0][0] <= self._clock():
            _, _, order, feed = heap[0]
            if self._catching_up.get(feed.market) is not catch_up:
                heapq.heappop(heap)
                continue
            book = feed.step()
            self._record(book)
            client.tell(book, self._subscribers[feed.market][client].depth, REALTIME)
            due = feed.due_ms
            if due is None:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (due, feed.place, order, feed))
            sent += 1
            if sent % _BATCH == 0:
                await client.room()
                await asyncio.sleep(0)
            if client.gone:
                # Its socket is about to `leave`, and the markets start anew for the next subscriber.
                return
        # From here to the end nothing waits, so no book can fall between history and real time.
        now = self._clock()
        for market in catch_up.markets:
            if self._catching_up.get(market) is not catch_up:
                continue
            feed = self._feeds[market]
            del self._catching_up[market]
            self._live_since_ms[market] = now
            for subscriber, wish in self._subscribers[market].items():
                self._offer_snapshot(subscriber, wish, feed)
            self._schedule(feed, self._order[market])
        self._wake.set()
        log.info("markets live", markets=len(catch_up.markets), history_books=sent)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("history failed", exc_info=error)
