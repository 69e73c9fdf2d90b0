"""`cryptostream produce`: one or several producer sections in one process.

Belongs here: starting, watching and stopping the process. Does not belong here: what one section is made of
(`section.py`).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence

import structlog

from ingest_services.config import ProducerSection
from ingest_services.monitor import Monitor, make_registry, serve
from ingest_services.producer.health import ProducerHealth
from ingest_services.producer.markets import MarketMemory, ask_once, first_markets
from ingest_services.producer.metrics import SectionStats, StatsCollector
from ingest_services.producer.publisher import FLUSH_TIMEOUT_S
from ingest_services.producer.section import Section
from ingest_services.producer.supervision import ConnectionLimiter, State
from ingest_services.producer.topics import TopicWatch
from ingest_services.settings import IngestSettings
from ingest_services.upbit.rest import Rest

# How long a start waits for Kafka's first word, and then for a lane; after that it begins with the spool.
# Together they stay under the 10 s within which a signal ends it.
KAFKA_TIMEOUT_S = 6.0
LANES_TIMEOUT_S = 2.0
# Feeds end within this; then the publishers flush. Together they stay under the 10 s that are promised.
FEED_STOP_S = 2.0
PUBLISHER_STOP_S = FLUSH_TIMEOUT_S + 1.0
# Whatever hangs, the process ends this long after the signal.
END_S = 9.5
_CHECK_EVERY_S = 0.5

_log = structlog.get_logger()


def run(sections: Sequence[ProducerSection], settings: IngestSettings, metrics_port: int | None) -> int:
    """Run sections until SIGTERM or SIGINT, then drain.

    Args:
        sections: What to collect.
        settings: Where from and where to.
        metrics_port: Loopback port for `/metrics` and `/health`; None for neither.

    Returns:
        The process's exit status: 0 after a signal, 1 if a part of the service failed or what was received
        could neither be delivered nor spooled in time.

    Raises:
        UserError: Before anything is started, if it cannot work.
    """
    ending = _Ending()
    service = ProducerService(sections, settings, metrics_port)
    if not ending.asked.is_set():
        service.start()
    while not service.ended and not ending.asked.wait(_CHECK_EVERY_S):
        pass
    ended = service.ended
    if ended:
        _log.error("ended_unasked", parts=ended)
    ending.begin()
    if service.stop() and not ended:
        ending.status = 0
    return ending.status


class _Ending:
    """Ends the process in time, whatever hangs: counted from the signal, or from when a part failed."""

    def __init__(self) -> None:
        """Take SIGTERM and SIGINT from now on, while things are being opened, too."""
        self.asked = threading.Event()
        self.status = 1
        self._begun = False
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._ask)

    def begin(self) -> None:
        """Allow `END_S` for everything that is left to do, the interpreter's own end included."""
        if not self._begun:
            self._begun = True
            timer = threading.Timer(END_S, self._end)
            timer.daemon = True
            timer.start()

    def _ask(self, *_: object) -> None:
        self.begin()
        self.asked.set()

    def _end(self) -> None:
        threads = [thread.name for thread in threading.enumerate()]
        _log.error("not_ended_in_time", status=self.status, threads=threads)
        os._exit(self.status)


class ProducerService:
    """Sections running in this process."""

    def __init__(
        self, sections: Sequence[ProducerSection], settings: IngestSettings, metrics_port: int | None = None
    ) -> None:
        """Check that everything can work, and open what is needed; `start` begins to collect.

        Kafka and the exchange may be away: then the frames wait in the spool, and the markets of `ALL-…` are
        those of the last run, or awaited.

        Raises:
            UserError: If Kafka answers and lacks a topic or partition, the exchange tells its markets and has
                none of an `ALL-…`, SPOOL_DIR cannot be written, or the metrics port is taken. Nothing is left
                behind.
        """
        self.stats = [SectionStats(section.name) for section in sections]
        self._running: list[Section] = []
        self._monitor: Monitor | None = None
        self._topics = TopicWatch(sections, settings.kafka_bootstrap, self.stats)
        self._started = False
        rest = Rest(settings.upbit_rest_url)
        limiter = ConnectionLimiter()
        try:
            asked_s = time.monotonic()
            self._topics.start()
            told = ask_once(rest) if any(section.all_of for section in sections) else ()
            kafka_answers = self._topics.first_look(asked_s + KAFKA_TIMEOUT_S - time.monotonic())
            if not kafka_answers:
                _log.error(
                    "kafka_unreachable",
                    bootstrap=settings.kafka_bootstrap,
                    error=str(self._topics.unreachable or "it does not answer"),
                    spooling_to=str(settings.spool_dir),
                )
            for section, stats in zip(sections, self.stats, strict=True):
                markets = section.markets
                if section.all_of is not None:
                    memory = MarketMemory(
                        settings.spool_dir, section.name, settings.upbit_rest_url, section.all_of
                    )
                    markets = first_markets(memory, section.all_of, told, stats)
                self._running.append(Section(section, markets, settings, limiter, rest, stats))
            if kafka_answers:
                # What is received before a lane is ready would go to the spool, and from there to Kafka.
                deadline_s = time.monotonic() + LANES_TIMEOUT_S
                for running in self._running:
                    running.live.wait_ready(max(0.0, deadline_s - time.monotonic()))
            if metrics_port is not None:
                registry = make_registry(StatsCollector(self.stats, rest))
                self._monitor = serve(
                    registry, ProducerHealth(self._running), metrics_port, settings.metrics_host
                )
        except BaseException:
            self._abandon()
            raise

    @property
    def ended(self) -> list[str]:
        """The parts of the service that ended and should not have."""
        return [f"{running.stats.section}: {part}" for running in self._running for part in running.ended]

    @property
    def failed(self) -> bool:
        """Whether a part of the service ended that should not have."""
        return bool(self.ended)

    def start(self) -> None:
        """Begin to collect."""
        self._started = True
        for running in self._running:
            running.start()
        _log.info("producing", sections=[stats.section for stats in self.stats])

    def stop(self) -> bool:
        """Read no more, publish what was read with a last heartbeat, flush, and end; under 10 s.

        Returns:
            Whether everything received is in Kafka or in the spool.
        """
        if not self._started:
            self._abandon()
            return True
        self._topics.stop()
        for running in self._running:
            running.stop_feeds()
        deadline_s = time.monotonic() + FEED_STOP_S
        for running in self._running:
            running.join_feeds(deadline_s)
        for running in self._running:
            running.publisher.stop()
        deadline_s = time.monotonic() + PUBLISHER_STOP_S
        for running in self._running:
            running.publisher.join(max(0.0, deadline_s - time.monotonic()))
            running.stats.state = State.STOPPED
        if self._monitor is not None:
            self._monitor.close()
        kept = True
        for running in self._running:
            ended = not running.publisher.is_alive()
            kept = kept and ended
            _log.info(
                "stopped",
                section=running.section.name,
                ended=ended,
                drained=running.publisher.drained,
                spool_bytes=running.stats.spool_bytes,
            )
        return kept

    def _abandon(self) -> None:
        """Give back what a service that never started had opened."""
        self._topics.stop()
        if self._monitor is not None:
            self._monitor.close()
        for running in self._running:
            running.abandon()
