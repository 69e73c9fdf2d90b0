"""Looks after the partitions that other processes carry: one that is nobody's must be seen by somebody."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import structlog

from ingest_services.consumer import metrics
from ingest_services.consumer.clock import Clock
from ingest_services.errors import UserError
from ingest_services.lake import chain as chains
from ingest_services.lake.carried import STALE_MS, behind_ms
from ingest_services.lake.layout import MINUTE_MS
from ingest_services.lake.store import ObjectStore

LOOK_EVERY_S = 60.0
# While something is wrong it is looked at more often: the alarm should end when its cause does.
LOOK_AGAIN_S = 10.0

log = structlog.get_logger()


class Watch:
    """Reads, once a minute, the claims of all partitions of some topics' open chains, whoever carries them.

    Attributes:
        reasons: What is wrong, one line each, as of the last look.
    """

    def __init__(self, store: ObjectStore, topics: Sequence[str], clock: Clock) -> None:
        """Begin without having looked."""
        self.reasons: tuple[str, ...] = ()
        self._store = store
        self._topics = tuple(dict.fromkeys(topics))
        self._clock = clock

    def run(self, stopping: threading.Event) -> None:
        """Look until told to stop."""
        while not stopping.is_set():
            try:
                self.look()
            except (OSError, UserError) as error:
                log.warning("claims of other consumers cannot be read", cause=str(error))
            stopping.wait(LOOK_AGAIN_S if self.reasons else LOOK_EVERY_S)

    def look(self) -> None:
        """Look once.

        Raises:
            OSError: If the store fails.
            UserError: If a chain or claim cannot be understood.
        """
        known = chains.read_chains(self._store)
        reasons = []
        for topic in self._topics:
            chain = chains.current_chain(known, topic)
            if chain is None:
                continue
            if chain.retires:
                reasons.append(
                    f"topic {topic} was retired from this lake; take its sections out of consumer.conf"
                )
                continue
            for partition, behind in behind_ms(self._store, chain, self._clock.now_ms()).items():
                metrics.BEHIND.labels(topic, partition).set(behind / 1000)
                if behind > STALE_MS:
                    reasons.append(
                        f"topic {topic} partition {partition}: nobody has carried it for "
                        f"{behind // MINUTE_MS} minutes, and no window is complete without it; "
                        "is there a section in consumer.conf, and is it running?"
                    )
        for reason in sorted(set(reasons) - set(self.reasons)):
            log.error("alarm", reason=reason)
        for reason in sorted(set(self.reasons) - set(reasons)):
            log.info("alarm is over", reason=reason)
        self.reasons = tuple(reasons)
