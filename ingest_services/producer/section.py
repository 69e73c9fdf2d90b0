"""A section at work: its feed (two for a moment while markets change), publisher, spool and follower."""

from __future__ import annotations

import threading
import time

from ingest_services.config import ProducerSection
from ingest_services.kafka import unreachable
from ingest_services.producer.feed import Feed, Inbox
from ingest_services.producer.lane import Lane
from ingest_services.producer.markets import MarketFollower
from ingest_services.producer.metrics import SectionStats
from ingest_services.producer.outbox import Outbox
from ingest_services.producer.publisher import Publisher
from ingest_services.producer.spool import Spool, Spooled
from ingest_services.producer.supervision import ConnectionLimiter
from ingest_services.settings import IngestSettings

# A new connection gets this long to deliver before the old one is asked again whether it may go.
HANDOVER_POLL_S = 0.1


class Section:
    """One section of `producer.conf` at work in this process."""

    def __init__(
        self,
        section: ProducerSection,
        markets: tuple[str, ...],
        settings: IngestSettings,
        limiter: ConnectionLimiter,
        stats: SectionStats,
    ) -> None:
        """Open what the section needs; `start` begins to collect.

        Args:
            section: The section.
            markets: What to subscribe to first.
            settings: Where from and where to.
            limiter: The exchange's limit on new connections, shared by the sections of the process.
            stats: The section's numbers.

        Raises:
            UserError: If SPOOL_DIR cannot be written.
        """
        self.section = section
        self.stats = stats
        self._settings = settings
        self._limiter = limiter
        self._inbox: Inbox = Inbox()
        self._lock = threading.Lock()
        self._stopping = False
        self._spool = Spool(settings.spool_dir, section.name)
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
        self._feed = self._make_feed(markets)
        self._follower = (
            MarketFollower(settings.upbit_rest_url, section.all_of, markets, self._change_markets)
            if section.all_of
            else None
        )

    @property
    def failed(self) -> bool:
        """Whether a part of the section ended that should not have."""
        return self.publisher.failed or not (self._stopping or self._feed.is_alive())

    def require_ready(self, deadline_s: float) -> None:
        """Wait for Kafka until a deadline (monotonic clock).

        Raises:
            UserError: If it is not there by then.
        """
        if not self.live.wait_ready(max(0.0, deadline_s - time.monotonic())):
            raise unreachable(self._settings.kafka_bootstrap, "no idempotent producer could be made")

    def start(self) -> None:
        """Begin to collect."""
        self.publisher.start()
        self._feed.start()
        if self._follower is not None:
            self._follower.start()

    def stop_feeds(self) -> None:
        """Ask the exchange for nothing more; `join_feeds` waits for what is on its way."""
        with self._lock:
            self._stopping = True
            self._feed.stop()
        if self._follower is not None:
            self._follower.stop()

    def join_feeds(self, deadline_s: float) -> None:
        """Wait for the end of the connection until a deadline (monotonic clock)."""
        self._feed.join(max(0.0, deadline_s - time.monotonic()))

    def abandon(self) -> None:
        """Give back what a section that never started had opened."""
        self.live.close()
        self._spool.close()

    def _make_backlog(self) -> Lane[Spooled]:
        return Lane(
            self._settings.kafka_bootstrap,
            self.section.topic,
            self.section.partition,
            f"{self.section.name}-backlog",
        )

    def _make_feed(self, markets: tuple[str, ...]) -> Feed:
        self.stats.markets = len(markets)
        return Feed(
            self.section.name,
            markets,
            url=self._settings.upbit_ws_url,
            depth=self._settings.depth,
            inbox=self._inbox,
            limiter=self._limiter,
            stats=self.stats,
        )

    def _change_markets(self, markets: tuple[str, ...]) -> None:
        # The new connection delivers before the old one goes: no gap for the markets that stay.
        with self._lock:
            if self._stopping:
                return
            new = self._make_feed(markets)
            new.start()
            old, self._feed = self._feed, new
        while not self._feed.live.wait(HANDOVER_POLL_S) and not self._stopping:
            pass
        old.stop()
