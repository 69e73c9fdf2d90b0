"""What a consumer process tells: its metrics, and whether it does what it is for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from prometheus_client import Counter, Gauge, Histogram

from ingest_services.monitor import Health, make_registry

# A poll takes a fraction of a second. While the broker or the store is away nothing is polled, and a new
# start would not help.
POLLED_S = 15.0

REGISTRY = make_registry()

COMMITTED = Counter(
    "cryptostream_consumer_records_committed",
    "Records committed to the raw lake, by section and kind",
    ["section", "kind"],
    registry=REGISTRY,
)
COMMITS = Counter("cryptostream_consumer_commits", "Commits", ["section"], registry=REGISTRY)
FENCED = Counter(
    "cryptostream_consumer_fenced",
    "Commits that another writer had made first",
    ["section"],
    registry=REGISTRY,
)
MISSING = Counter(
    "cryptostream_consumer_offsets_missing", "Offsets that never came", ["section"], registry=REGISTRY
)
LATE = Counter(
    "cryptostream_consumer_late_books",
    "Books committed into a minute that was claimed before",
    ["section"],
    registry=REGISTRY,
)
QUARANTINED = Counter(
    "cryptostream_consumer_quarantined",
    "Records committed to quarantine, by reason",
    ["section", "reason"],
    registry=REGISTRY,
)
RETRIES = Counter(
    "cryptostream_consumer_store_retries",
    "Store failures that were tried again",
    ["what", "cause"],
    registry=REGISTRY,
)
BUDGET = Gauge(
    "cryptostream_consumer_memory_budget_bytes",
    "What buffered records may take, of all partitions together",
    registry=REGISTRY,
)
LAG = Gauge(
    "cryptostream_consumer_lag_records",
    "Records between position and log end",
    ["topic", "partition"],
    registry=REGISTRY,
)
BUFFERED = Gauge(
    "cryptostream_consumer_buffered_bytes",
    "Lines read and not yet committed",
    ["topic", "partition"],
    registry=REGISTRY,
)
THROUGH = Gauge(
    "cryptostream_consumer_minutes_through_seconds",
    "End of the last minute claimed, s since the epoch",
    ["topic", "partition"],
    registry=REGISTRY,
)
OLDEST = Gauge(
    "cryptostream_consumer_oldest_buffered_age_seconds",
    "Since the oldest record that was read and not yet committed was received",
    ["topic", "partition"],
    registry=REGISTRY,
)
BEHIND = Gauge(
    "cryptostream_consumer_claim_behind_seconds",
    "How far the claim of a partition is behind, whoever carries it",
    ["topic", "partition"],
    registry=REGISTRY,
)
UPLOAD_SECONDS = Histogram(
    "cryptostream_consumer_upload_seconds",
    "To create one object, failures and pauses included",
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
    registry=REGISTRY,
)
COMMIT_SECONDS = Histogram(
    "cryptostream_consumer_commit_seconds",
    "From cut to durable commit",
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
    registry=REGISTRY,
)


def begin(sections: Iterable[str]) -> None:
    """Let the counters of some sections begin at zero: one that is born with a number shows no increase."""
    for section in sections:
        for counter in (COMMITS, FENCED, MISSING, LATE):
            counter.labels(section)


class Watched(Protocol):
    """A carrier at work."""

    @property
    def names(self) -> tuple[str, ...]:
        """Its sections."""
        ...

    @property
    def polled_s(self) -> float:
        """When it last asked the broker for records, monotonic clock; 0 if never."""
        ...

    @property
    def trouble(self) -> str:
        """Why it cannot carry; empty if it can."""
        ...


class Running(Protocol):
    """The thread that a carrier runs in."""

    def done(self) -> bool:
        """Whether it has ended."""
        ...


class ConsumerHealth:
    """Judges the carriers of one process: one that ended is a failure; one that reads nothing may wait."""

    def __init__(self, began_s: float, alarms: Callable[[], Iterable[str]] = lambda: ()) -> None:
        """Begin with nothing at work.

        Args:
            began_s: Now, monotonic clock.
            alarms: Tells what else is wrong: a store that fails, partitions that are nobody's.
        """
        self._began_s = began_s
        self._alarms = alarms
        self._carriers: list[tuple[Watched, Running]] = []
        self.ending = False

    def watch(self, carrier: Watched, run: Running) -> None:
        """Judge one more carrier."""
        self._carriers.append((carrier, run))

    def __call__(self) -> Health:
        """Return how the process is, now."""
        now_s = time.monotonic()
        failed, degraded = [], []
        figures: dict[str, Mapping[str, float]] = {}
        for carrier, run in self._carriers:
            names = ", ".join(carrier.names)
            age_s = now_s - (carrier.polled_s or self._began_s)
            if run.done() and not self.ending:
                failed.append(f"{names}: its thread ended")
            elif carrier.trouble:
                degraded.append(f"{names}: {carrier.trouble}")
            elif age_s > POLLED_S:
                degraded.append(
                    f"{names}: nothing was read for {age_s:.0f} s; is the broker or the store away?"
                )
            figures.update({name: {"polled_age_s": round(age_s, 3)} for name in carrier.names})
        return Health(tuple(failed), (*degraded, *self._alarms()), figures)
