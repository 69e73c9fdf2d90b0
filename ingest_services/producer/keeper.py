"""The keeper: sees to it that a section's connection is subscribed to the right markets, and that they live.

    wanted markets changed ──┐
                             ├──▶ a new connection ──▶ all its tickers delivered ──▶ the old one is closed
    a subscription is dead, ─┘
    or silent, unanswered

A thread per section. The old connection goes on until the new one has delivered, so nobody else's books have
a gap. What is quiet and what is dead is told in `silence.py`.

Belongs here: asking the exchange about overdue tickers, replacing connections. Does not belong here: keeping
one connection alive (`feed.py`), which markets there are (`markets.py`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

from ingest_services.backoff import Backoff
from ingest_services.producer.feed import Connection, Dead, Feed, Inbox, Proven
from ingest_services.producer.metrics import SectionStats
from ingest_services.producer.silence import Verdict
from ingest_services.producer.supervision import State
from ingest_services.upbit.markets import market_of
from ingest_services.upbit.rest import Rest, RestBook, RestError

TURN_S = 0.5
# Overdue tickers are collected for this long before the exchange is asked, once for all of them.
ASK_EVERY_S = 3.0
# Between two connections made for dead subscriptions: a code that stays dead must not become a storm.
RENEW_BASE_S, RENEW_CAP_S = 5.0, 300.0
# No dead subscription for this long: the next one is the first of its kind.
CALM_S = 900.0
# One unknown code fails a question for all: so many questions find one among all markets that has no book.
SIFT_QUESTIONS = 24

_log = structlog.get_logger()


class Keeper(threading.Thread):
    """Owns the feeds of one section."""

    def __init__(
        self,
        section: str,
        markets: tuple[str, ...],
        *,
        make_feed: Callable[[tuple[str, ...], Callable[[Feed, State], None]], Feed],
        rest: Rest,
        inbox: Inbox,
        stats: SectionStats,
    ) -> None:
        """Describe a keeper; `start` begins to collect.

        Args:
            section: Producer section.
            markets: What to subscribe to first.
            make_feed: Makes a feed of some markets that tells its states.
            rest: The exchange's REST API.
            inbox: Where verdicts go, behind the frames that they speak of.
            stats: The section's numbers.
        """
        super().__init__(name=f"{section}-keeper", daemon=True)
        self._section = section
        self._wanted = markets
        self._make_feed = make_feed
        self._rest = rest
        self._inbox = inbox
        self._stats = stats
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._feeds = [self._new_feed(markets)]
        # Why the connection is to be replaced by one to the same markets; empty if it is not.
        self._renew = ""
        self._renew_backoff = Backoff(RENEW_BASE_S, RENEW_CAP_S)
        self._renewed_s = -CALM_S
        self._renew_after_s = 0.0
        self._silence_backoff = Backoff(RENEW_BASE_S, RENEW_CAP_S)
        self._replace_after_s = 0.0
        # Replaced feeds that may still be reading what was on its way.
        self._leaving: list[Feed] = []
        self._asked_s = 0.0
        self._unknown: set[str] = set()

    @property
    def failed(self) -> bool:
        """Whether a thread ended that should not have."""
        feed = self._feeds[0]
        ended = not self.is_alive() or (feed.ident is not None and not feed.is_alive())
        return ended and not self._stopping.is_set()

    def want(self, markets: tuple[str, ...]) -> None:
        """Change what the section subscribes to."""
        self._wanted = markets

    def run(self) -> None:
        """Collect until stopped."""
        with self._lock:
            if not self._stopping.is_set():
                self._feeds[0].start()
        while not self._stopping.wait(TURN_S):
            try:
                self._turn(time.monotonic())
            except Exception:  # noqa: BLE001 (whatever the exchange says, the feed goes on)
                _log.exception("keeper_failed", section=self._section)
                self._stats.verdicts["failed"] += 1

    def stop(self) -> None:
        """Ask the exchange for nothing more; `join_feeds` waits for what is on its way."""
        with self._lock:
            self._stopping.set()
            for feed in self._feeds:
                feed.stop()

    def join_feeds(self, deadline_s: float) -> None:
        """Wait for the end of the connections until a deadline (monotonic clock)."""
        for feed in [*self._leaving, *self._feeds]:
            if feed.ident is not None:
                feed.join(max(0.0, deadline_s - time.monotonic()))

    # ---- one turn

    def _turn(self, now_s: float) -> None:
        feed = self._feeds[0]
        connection = feed.connection
        if connection is not None:
            self._bury(connection, now_s)
            if now_s - self._asked_s >= ASK_EVERY_S:
                self._look(connection, now_s)
            if connection.silences.abandoned():
                # The REST API answers nobody, or not in time. A new connection begins with snapshots.
                self._plan_renewal("unanswered silence", now_s)
        if len(self._feeds) > 1:
            self._hand_over()
        elif now_s < self._replace_after_s:
            return
        elif self._wanted != feed.markets:
            self._replace("markets")
        elif self._renew and now_s >= self._renew_after_s:
            why, self._renew = self._renew, ""
            self._renewed_s = now_s
            self._stats.resubscriptions += 1
            self._replace(why)

    def _replace(self, why: str) -> None:
        with self._lock:
            if self._stopping.is_set():
                return
            feed = self._new_feed(self._wanted)
            feed.follow(self._feeds[0])
            self._feeds.append(feed)
            feed.start()
        _log.info("replacing_connection", section=self._section, why=why, markets=len(feed.markets))

    def _hand_over(self) -> None:
        old, new = self._feeds
        before, connection = old.connection, new.connection
        if connection is None or not connection.silences.settled:
            return
        self._leaving = [feed for feed in self._leaving if feed.is_alive()]
        if before is not None and len(connection.silences.unheard()) == len(connection.tickers):
            retry_s = self._silence_backoff.next_s()
            _log.error(
                "replacement_silent",
                section=self._section,
                connection=connection.name,
                retry_in_s=round(retry_s, 1),
            )
            with self._lock:
                self._feeds = [old]
                self._leaving.append(new)
                new.stop()
            self._renew = "silent replacement"
            self._renew_after_s = self._replace_after_s = time.monotonic() + retry_s
            return
        if before is not None:
            before.silences.compare(connection.silences)
        self._silence_backoff.reset()
        # Whatever was dead on the old one is subscribed anew.
        self._renew = ""
        with self._lock:
            self._feeds = [new]
            self._leaving.append(old)
            self._stats.markets = len(new.markets)
            self._stats.state = new.state
            old.stop()
        _log.info("replaced_connection", section=self._section, connection=connection.name)

    def _bury(self, connection: Connection, now_s: float) -> None:
        """Take note of the dead."""
        dead = connection.silences.dead()
        if not dead:
            return
        self._inbox.put((time.time_ns() // 1000, connection, Dead(dead)))
        _log.error("dead_subscription", connection=connection.name, tickers=sorted(dead))
        self._stats.verdicts[Verdict.DEAD] += len(dead)
        self._plan_renewal("dead subscription", now_s)

    def _plan_renewal(self, why: str, now_s: float) -> None:
        if self._renew:
            return
        self._renew = why
        self._renew_after_s = now_s
        if now_s - self._renewed_s > CALM_S:
            self._renew_backoff.reset()
        else:
            self._renew_after_s = self._renewed_s + self._renew_backoff.next_s()

    def _look(self, connection: Connection, now_s: float) -> None:
        """Compare what is overdue with the exchange's present books."""
        silences = connection.silences
        if silences.settled:
            silent = silences.unheard()
            if silent and silent != self._stats.silent:
                _log.warning("silent_tickers", connection=connection.name, tickers=silent)
            self._stats.silent = silent
        overdue = silences.overdue(time.time_ns() // 1000)
        if not overdue:
            return
        self._asked_s = now_s
        asked_us = time.time_ns() // 1000
        try:
            books, unknown = self._present_books({market_of(ticker): ticker for ticker in overdue})
        except RestError as error:
            _log.warning("overdue_unanswered", connection=connection.name, error=str(error), tickers=overdue)
            self._stats.verdicts[Verdict.UNANSWERED] += len(overdue)
            silences.leave_open(overdue)
            return
        answered_us = time.time_ns() // 1000
        proven: dict[str, int] = {}
        for ticker, book in books.items():
            verdict = silences.judge(ticker, book, asked_us, answered_us)
            self._stats.verdicts[verdict] += 1
            if verdict is Verdict.QUIET:
                proven[ticker] = asked_us
        for ticker in unknown:
            silences.excuse(ticker, asked_us)
            self._stats.verdicts[Verdict.UNKNOWN] += 1
        if set(unknown) - self._unknown:
            _log.error("unknown_or_delisted", connection=connection.name, tickers=unknown)
        self._unknown = (self._unknown - set(books)) | set(unknown)
        if proven:
            self._inbox.put((answered_us, connection, Proven(proven)))

    def _present_books(self, tickers: dict[str, str]) -> tuple[dict[str, RestBook], list[str]]:
        """Return the present books by ticker, and the tickers that the exchange does not know."""
        try:
            books = self._rest.books(sorted(tickers))
        except RestError as error:
            if error.status != 404:
                raise
            # One unknown code fails them all.
            listed = set(tickers).intersection(self._rest.markets())
            books, bookless = self._sift(sorted(listed))
            unknown = set(tickers).difference(listed).union(bookless)
        else:
            unknown = set()
        found = {tickers[market]: book for market, book in books.items() if market in tickers}
        return found, sorted(tickers[market] for market in unknown)

    def _sift(self, markets: list[str]) -> tuple[dict[str, RestBook], set[str]]:
        """Return the books of listed markets, and those that have none: each half is asked for by itself.

        Markets that were not come to stay overdue, and are asked for again without those.
        """
        books: dict[str, RestBook] = {}
        bookless: set[str] = set()
        waiting = [markets]
        for _ in range(SIFT_QUESTIONS):
            some = waiting.pop() if waiting else []
            if not some:
                break
            try:
                books |= self._rest.books(some)
            except RestError as error:
                if error.status != 404:
                    raise
                if len(some) == 1:
                    bookless.update(some)
                else:
                    middle = len(some) // 2
                    waiting += [some[:middle], some[middle:]]
        return books, bookless

    def _new_feed(self, markets: tuple[str, ...]) -> Feed:
        return self._make_feed(markets, self._on_state)

    def _on_state(self, feed: Feed, state: State) -> None:
        # While two connections exist, the one that collects is the one that counts.
        if feed is self._feeds[0]:
            self._stats.state = state
