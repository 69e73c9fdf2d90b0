"""A section at work: its keeper with the feed, publisher, spool and follower."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ingest_services.config import ProducerSection
from ingest_services.producer.feed import Feed, Inbox
from ingest_services.producer.keeper import Keeper
from ingest_services.producer.lane import Lane
from ingest_services.producer.markets import MarketFollower, MarketMemory
from ingest_services.producer.metrics import SectionStats
from ingest_services.producer.outbox import Outbox
from ingest_services.producer.publisher import Publisher
from ingest_services.producer.spool import Spool, Spooled
from ingest_services.producer.supervision import ConnectionLimiter, State
from ingest_services.settings import IngestSettings
from ingest_services.upbit.rest import Rest


class Section:
    """One section of `producer.conf` at work in this process."""

    def __init__(
        self,
        section: ProducerSection,
        markets: tuple[str, ...],
        settings: IngestSettings,
        limiter: ConnectionLimiter,
        rest: Rest,
        stats: SectionStats,
    ) -> None:
        """Open what the section needs; `start` begins to collect.

        Args:
            section: The section.
            markets: What to subscribe to first; empty if the exchange has yet to say it.
            settings: Where from and where to.
            limiter: The exchange's limit on new connections, shared by the sections of the process.
            rest: The exchange's REST API, shared likewise.
            stats: The section's numbers.

        Raises:
            UserError: If SPOOL_DIR cannot be written.
        """
        self.section = section
        self.stats = stats
        self._settings = settings
        self._limiter = limiter
        self._inbox: Inbox = Inbox()
        stats.spool_limit_bytes = settings.spool_max_mb * 2**20
        self._spool = Spool(settings.spool_dir, section.name, limit_bytes=stats.spool_limit_bytes)
        self.live: Lane[None] = Lane(
            settings.kafka_bootstrap, section.topic, section.partition, f"{section.name}-live"
        )
        self.publisher = Publisher(
            section.name,
            self._inbox,
            stats,
            lambda on_resume, on_lost: Outbox(
                self.live, self._make_backlog, self._spool, stats, on_resume, on_lost
            ),
        )
        self._rest = rest
        self._lock = threading.Lock()
        self._collecting = False
        self._stopping = False
        self._keeper = self._make_keeper(markets) if markets else None
        self._follower = None
        if section.all_of is not None:
            memory = MarketMemory(settings.spool_dir, section.name, settings.upbit_rest_url, section.all_of)
            self._follower = MarketFollower(rest, section.all_of, markets, memory, stats, self._want)

    @property
    def ended(self) -> tuple[str, ...]:
        """The parts of the section that ended and should not have."""
        if self._stopping or not self._collecting:
            return ()
        keeper, follower = self._keeper, self._follower
        alive = {
            "publisher": self.publisher.is_alive() and not self.publisher.failed,
            "feed": keeper is None or not keeper.failed,
            "market follower": follower is None or follower.is_alive(),
        }
        return tuple(part for part, lives in alive.items() if not lives)

    def start(self) -> None:
        """Begin to collect."""
        self.publisher.start()
        if self._keeper is not None:
            self._keeper.start()
        if self._follower is not None:
            self._follower.start()
        self._collecting = True

    def stop_feeds(self) -> None:
        """Ask the exchange for nothing more; `join_feeds` waits for what is on its way."""
        with self._lock:
            self._stopping = True
        if self._follower is not None:
            self._follower.stop()
        if self._keeper is not None:
            self._keeper.stop()

    def join_feeds(self, deadline_s: float) -> None:
        """Wait for the end of the connection until a deadline (monotonic clock)."""
        if self._keeper is not None:
            self._keeper.join_feeds(deadline_s)

    def abandon(self) -> None:
        """Give back what a section that never started had opened."""
        self.live.close()
        self._spool.close()

    def _want(self, markets: tuple[str, ...]) -> None:
        """Subscribe to other markets than before, or to the first."""
        with self._lock:
            if self._stopping:
                return
            if self._keeper is not None:
                self._keeper.want(markets)
                return
            keeper = self._make_keeper(markets)
            keeper.start()
            self._keeper = keeper

    def _make_keeper(self, markets: tuple[str, ...]) -> Keeper:
        self.stats.markets = len(markets)
        return Keeper(
            self.section.name,
            markets,
            make_feed=self._make_feed,
            rest=self._rest,
            inbox=self._inbox,
            stats=self.stats,
        )

    def _make_backlog(self) -> Lane[Spooled]:
        return Lane(
            self._settings.kafka_bootstrap,
            self.section.topic,
            self.section.partition,
            f"{self.section.name}-backlog",
        )

    def _make_feed(self, markets: tuple[str, ...], on_state: Callable[[Feed, State], None]) -> Feed:
        return Feed(
            self.section.name,
            markets,
            url=self._settings.upbit_ws_url,
            depth=self._settings.depth,
            inbox=self._inbox,
            limiter=self._limiter,
            stats=self.stats,
            on_state=on_state,
        )
