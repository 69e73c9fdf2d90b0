"""`cryptostream produce`: one or several producer sections in one process.

Belongs here: starting, watching and stopping the process. Does not belong here: what one section is made of
(`section.py`).
"""

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
from ingest_services.producer.markets import discover
from ingest_services.producer.metrics import SectionStats, serve_metrics
from ingest_services.producer.publisher import FLUSH_TIMEOUT_S
from ingest_services.producer.rest import Rest
from ingest_services.producer.section import Section
from ingest_services.producer.supervision import ConnectionLimiter, State
from ingest_services.settings import IngestSettings

KAFKA_TIMEOUT_S = 5.0
# Feeds end within this; then the publishers flush. Together they stay under the 10 s that are promised.
FEED_STOP_S = 2.0
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
        rest = Rest(settings.upbit_rest_url)
        self._server = None
        self._running: list[Section] = []
        self.stats = [SectionStats(section.name) for section in sections]
        try:
            for section, stats in zip(sections, self.stats, strict=True):
                self._running.append(
                    Section(section, markets[section.name], settings, self._limiter, rest, stats)
                )
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
