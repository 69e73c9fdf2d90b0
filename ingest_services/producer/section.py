"""A section at work: its keeper with the feed, publisher, spool and follower."""

from __future__ import annotations

import time
from collections.abc import Callable

from ingest_services.config import ProducerSection
from ingest_services.kafka import unreachable
from ingest_services.producer.feed import Feed, Inbox
from ingest_services.producer.keeper import Keeper
from ingest_services.producer.lane import Lane
from ingest_services.producer.markets import MarketFollower
from ingest_services.producer.metrics import SectionStats
from ingest_services.producer.outbox import Outbox
from ingest_services.producer.publisher import Publisher
from ingest_services.producer.rest import Rest
from ingest_services.producer.spool import Spool, Spooled
from ingest_services.producer.supervision import ConnectionLimiter, State
from ingest_services.settings import IngestSettings


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
            markets: What to subscribe to first.
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
        self.stats.markets = len(markets)
        self._keeper = Keeper(
            section.name, markets, make_feed=self._make_feed, rest=rest, inbox=self._inbox, stats=stats
        )
        self._follower = (
            MarketFollower(settings.upbit_rest_url, section.all_of, markets, self._keeper.want)
            if section.all_of
            else None
        )

    @property
    def failed(self) -> bool:
        """Whether a part of the section ended that should not have."""
        return self.publisher.failed or self._keeper.failed

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
        self._keeper.start()
        if self._follower is not None:
            self._follower.start()

    def stop_feeds(self) -> None:
        """Ask the exchange for nothing more; `join_feeds` waits for what is on its way."""
        self._keeper.stop()
        if self._follower is not None:
            self._follower.stop()

    def join_feeds(self, deadline_s: float) -> None:
        """Wait for the end of the connection until a deadline (monotonic clock)."""
        self._keeper.join_feeds(deadline_s)

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
