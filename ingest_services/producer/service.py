"""`cryptostream produce`: one or several producer sections in one process."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Sequence

import structlog
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from ingest_services.config import ProducerSection
from ingest_services.errors import UserError
from ingest_services.kafka import open_admin, topic_id, unreachable
from ingest_services.producer.feed import Feed, Inbox
from ingest_services.producer.lane import Lane
from ingest_services.producer.markets import MarketFollower, discover
from ingest_services.producer.metrics import SectionStats, serve_metrics
from ingest_services.producer.outbox import Outbox
from ingest_services.producer.publisher import FLUSH_TIMEOUT_S, Publisher
from ingest_services.producer.spool import Spool, Spooled
from ingest_services.producer.supervision import ConnectionLimiter, State
from ingest_services.settings import IngestSettings

KAFKA_TIMEOUT_S = 5.0
# Feeds end within this; then the publishers flush. Together they stay under the 10 s that are promised.
FEED_STOP_S = 2.0
# A new connection gets this long to deliver before the old one is asked again whether it may go.
HANDOVER_POLL_S = 0.1
_CHECK_EVERY_S = 0.5

_log = structlog.get_logger()


def run(sections: Sequence[ProducerSection], settings: IngestSettings, metrics_port: int | None) -> int:
    """Run sections until SIGTERM or SIGINT, then drain.

    Args:
        sections: What to collect.
        settings: Where from and where to.
        metrics_port: Loopback port for `/metrics`; None for no metrics.

    Returns:
        The process's exit status: 0 after a signal, 1 if a part of the service failed.

    Raises:
        UserError: Before anything is started, if it cannot work.
    """
    stop = threading.Event()
    service = ProducerService(sections, settings, metrics_port)
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
    service.start()
    try:
        while not stop.wait(_CHECK_EVERY_S):
            if service.failed:
                return 1
    finally:
        service.stop()
    return 1 if service.failed else 0


class ProducerService:
    """Sections running in this process."""

    def __init__(
        self, sections: Sequence[ProducerSection], settings: IngestSettings, metrics_port: int | None = None
    ) -> None:
        """Check that everything can work, and open what is needed; `start` begins to collect.

        Raises:
            UserError: If no broker answers, a topic or partition is missing, the markets of `ALL-…` cannot be
                found out, SPOOL_DIR cannot be written, or the metrics port is taken. Nothing is left behind.
        """
        _require_partitions(sections, settings.kafka_bootstrap)
        markets = {
            section.name: section.markets
            if section.all_of is None
            else discover(settings.upbit_rest_url, section.all_of)
            for section in sections
        }
        self._limiter = ConnectionLimiter()
        self._server = None
        self._running: list[_Running] = []
        self.stats = [SectionStats(section.name) for section in sections]
        try:
            for section, stats in zip(sections, self.stats, strict=True):
                self._running.append(_Running(section, markets[section.name], settings, self._limiter, stats))
            deadline_s = time.monotonic() + KAFKA_TIMEOUT_S
            for running in self._running:
                running.require_ready(deadline_s)
            if metrics_port is not None:
                self._server, _ = serve_metrics(self.stats, metrics_port)
        except BaseException:
            for running in self._running:
                running.abandon()
            raise

    @property
    def failed(self) -> bool:
        """Whether a part of the service ended that should not have."""
        return any(running.failed for running in self._running)

    def start(self) -> None:
        """Begin to collect."""
        for running in self._running:
            running.start()
        _log.info("producing", sections=[stats.section for stats in self.stats])

    def stop(self) -> None:
        """Read no more, publish what was read with a last heartbeat, flush, and end; under 10 s."""
        for running in self._running:
            running.stop_feeds()
        deadline_s = time.monotonic() + FEED_STOP_S
        for running in self._running:
            running.join_feeds(deadline_s)
        for running in self._running:
            running.publisher.stop()
        for running in self._running:
            running.publisher.join(FLUSH_TIMEOUT_S + 1.0)
            running.stats.state = State.STOPPED
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        for running in self._running:
            _log.info(
                "stopped",
                section=running.section.name,
                drained=running.publisher.drained,
                spool_bytes=running.stats.spool_bytes,
            )


class _Running:
    """One section: its feed (two for a moment while markets change), publisher and follower."""

    def __init__(
        self,
        section: ProducerSection,
        markets: tuple[str, ...],
        settings: IngestSettings,
        limiter: ConnectionLimiter,
        stats: SectionStats,
    ) -> None:
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
        return self.publisher.failed or not (self._stopping or self._feed.is_alive())

    def require_ready(self, deadline_s: float) -> None:
        if not self.live.wait_ready(max(0.0, deadline_s - time.monotonic())):
            raise unreachable(self._settings.kafka_bootstrap, "no idempotent producer could be made")

    def start(self) -> None:
        self.publisher.start()
        self._feed.start()
        if self._follower is not None:
            self._follower.start()

    def stop_feeds(self) -> None:
        with self._lock:
            self._stopping = True
            self._feed.stop()
        if self._follower is not None:
            self._follower.stop()

    def join_feeds(self, deadline_s: float) -> None:
        self._feed.join(max(0.0, deadline_s - time.monotonic()))

    def abandon(self) -> None:
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


def _require_partitions(sections: Sequence[ProducerSection], bootstrap: str) -> None:
    with open_admin(bootstrap) as admin:
        for section in sections:
            partitions = _partitions(admin, section.topic, bootstrap)
            if section.partition not in partitions:
                raise UserError(
                    f"producer.conf [{section.name}] partition_number={section.partition}: topic "
                    f"{section.topic} has partitions 0 to {len(partitions) - 1}"
                )


def _partitions(admin: KafkaAdminClient, topic: str, bootstrap: str) -> tuple[int, ...]:
    try:
        return topic_id(admin, topic)[1]
    except KafkaError as error:
        raise unreachable(bootstrap, error) from error
