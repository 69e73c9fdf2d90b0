"""What a producer process tells about itself: plain numbers, exported at `/metrics`.

The hot path adds to plain integers; Prometheus' own types are only made when somebody asks.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ingest_services.errors import UserError
from ingest_services.producer.supervision import State

LOOPBACK = "127.0.0.1"
LATENCY_BOUNDS_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
# Below zero: our clock is behind the exchange's.
DELAY_BOUNDS_S = (-1.0, -0.1, 0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 60.0)
_PREFIX = "cryptostream_producer_"


@dataclass(slots=True)
class SectionStats:
    """The numbers of one section; each is written by one thread.

    Attributes:
        section: The section's name.
        state: Where its connection stands.
        markets: How many markets it subscribes to.
        frames: Frames received.
        bytes: Bytes of those.
        garbage: Frames that could not be read, published all the same.
        error_frames: The exchange's error frames.
        status_frames: `UP` and its like.
        microsecond_stamps: Books whose stamp came in µs.
        future_stamps: Books stamped later than they were received, beyond the clocks' tolerance.
        delay_counts: Exchange stamp to receipt, REALTIME books, by bucket of `DELAY_BOUNDS_S`.
        delay_sum_s: The sum of those.
        last_frame_us: By ticker, when its last book was received, µs since the epoch.
        silent: Tickers subscribed to that the live connection delivered nothing of within the bound.
        verdicts: What comparing quiet tickers with the exchange's REST API said, by verdict.
        resubscriptions: Connections made anew because a subscription was dead.
        holes_s: What was claimed as covered and taken back, ticker-seconds.
        heartbeats: Heartbeats made.
        published: Records handed to Kafka.
        acknowledged: Records that Kafka acknowledged.
        spooled: Records that went to disk.
        lost: Records that could not be kept.
        connected: Connections that were opened.
        reconnects: Connections that ended, by cause.
        last_received_us: When something was last received, µs since the epoch; 0 if never.
        backpressure_s: Time for which reading waited for publishing.
        limiter_wait_s: Time for which connecting waited for the exchange's limit.
        spooling: Whether records go to disk now.
        spool_bytes: What the spool holds.
        spool_records: Records in it; of what another process left, those that were read so far.
        spool_oldest_us: When its oldest record was received, µs since the epoch, to a segment; 0 if it is empty.
        spool_damaged_bytes: What of the spool could not be read.
        latency_counts: Received to acknowledged, live records, by bucket of `LATENCY_BOUNDS_S`.
        latency_sum_s: The sum of those.
    """

    section: str
    state: State = State.CONNECTING
    markets: int = 0
    frames: int = 0
    bytes: int = 0
    garbage: int = 0
    error_frames: int = 0
    status_frames: int = 0
    microsecond_stamps: int = 0
    future_stamps: int = 0
    delay_counts: list[int] = field(default_factory=lambda: [0] * (len(DELAY_BOUNDS_S) + 1))
    delay_sum_s: float = 0.0
    last_frame_us: dict[str, int] = field(default_factory=dict)
    silent: tuple[str, ...] = ()
    verdicts: Counter[str] = field(default_factory=Counter)
    resubscriptions: int = 0
    holes_s: float = 0.0
    heartbeats: int = 0
    published: int = 0
    acknowledged: int = 0
    spooled: int = 0
    lost: int = 0
    connected: int = 0
    reconnects: Counter[str] = field(default_factory=Counter)
    last_received_us: int = 0
    backpressure_s: float = 0.0
    limiter_wait_s: float = 0.0
    spooling: bool = False
    spool_bytes: int = 0
    spool_records: int = 0
    spool_oldest_us: int = 0
    spool_damaged_bytes: int = 0
    latency_counts: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS_S) + 1))
    latency_sum_s: float = 0.0

    def observe_delay(self, seconds: float) -> None:
        """Count one book's way from the exchange's stamp to its receipt; below zero if the clocks differ."""
        self.delay_counts[bisect_left(DELAY_BOUNDS_S, seconds)] += 1
        self.delay_sum_s += seconds

    def observe_latency(self, seconds: float) -> None:
        """Count one live record's way from the socket to its acknowledgement."""
        self.latency_counts[bisect_left(LATENCY_BOUNDS_S, seconds)] += 1
        self.latency_sum_s += seconds


_COUNTERS = {
    "frames": "Frames received from the exchange.",
    "bytes": "Bytes of frames received.",
    "garbage": "Frames that could not be read; published for the quarantine.",
    "error_frames": "Error frames of the exchange.",
    "heartbeats": "Heartbeats made.",
    "published": "Records handed to Kafka.",
    "acknowledged": "Records that Kafka acknowledged.",
    "spooled": "Records that were kept on disk because Kafka could not take them.",
    "lost": "Records that could not be kept; coverage has a hole there.",
    "connected": "Connections opened.",
    "backpressure_s": "Seconds for which reading waited for publishing.",
    "limiter_wait_s": "Seconds for which connecting waited for the exchange's limit.",
    "spool_damaged_bytes": "Bytes of the spool that could not be read.",
}
_GAUGES = {
    "markets": "Markets subscribed to.",
    "spooling": "1 while records go to disk.",
    "spool_bytes": "Bytes that wait on disk.",
}


class StatsCollector(Collector):
    """Turns the numbers of all sections into Prometheus metrics."""

    def __init__(self, stats: Iterable[SectionStats]) -> None:
        self._stats = list(stats)

    def collect(self) -> Iterator[Metric]:
        """Yield every metric with a label for its section."""
        for name, text in _COUNTERS.items():
            counter = CounterMetricFamily(_PREFIX + _unit(name), text, labels=["section"])
            for stats in self._stats:
                counter.add_metric([stats.section], getattr(stats, name))
            yield counter
        for name, text in _GAUGES.items():
            gauge = GaugeMetricFamily(_PREFIX + _unit(name), text, labels=["section"])
            for stats in self._stats:
                gauge.add_metric([stats.section], getattr(stats, name))
            yield gauge
        yield self._ages()
        yield self._states()
        yield self._reconnects()
        yield self._latencies()

    def _ages(self) -> Metric:
        ages = GaugeMetricFamily(
            _PREFIX + "last_frame_age_seconds",
            "Seconds since something was last received.",
            labels=["section"],
        )
        for stats in self._stats:
            if stats.last_received_us:
                ages.add_metric([stats.section], time.time() - stats.last_received_us / 1e6)
        return ages

    def _states(self) -> Metric:
        states = GaugeMetricFamily(
            _PREFIX + "connection_state", "1 for the state a connection is in.", labels=["section", "state"]
        )
        for stats in self._stats:
            for state in State:
                states.add_metric([stats.section, state.value], float(stats.state is state))
        return states

    def _reconnects(self) -> Metric:
        reconnects = CounterMetricFamily(
            _PREFIX + "reconnects", "Connections that ended, by cause.", labels=["section", "cause"]
        )
        for stats in self._stats:
            for cause, count in list(stats.reconnects.items()):
                reconnects.add_metric([stats.section, cause], count)
        return reconnects

    def _latencies(self) -> Metric:
        latencies = HistogramMetricFamily(
            _PREFIX + "publish_seconds",
            "From the socket to Kafka's acknowledgement, live records.",
            labels=["section"],
        )
        for stats in self._stats:
            total = 0
            buckets = []
            for bound, count in zip([*LATENCY_BOUNDS_S, "+Inf"], stats.latency_counts, strict=True):
                total += count
                buckets.append((str(bound), float(total)))
            latencies.add_metric([stats.section], buckets, stats.latency_sum_s)
        return latencies


def serve_metrics(stats: Iterable[SectionStats], port: int) -> tuple[WSGIServer, Thread]:
    """Serve `/metrics` on the loopback interface until the returned server is shut down.

    Raises:
        UserError: If the port is taken.
    """
    registry = CollectorRegistry()
    registry.register(StatsCollector(stats))
    try:
        return start_http_server(port, addr=LOOPBACK, registry=registry)
    except OSError as error:
        raise UserError(
            f"--metrics-port {port}: cannot listen on {LOOPBACK} ({error.strerror or error}); "
            "is another process using it?"
        ) from error


def _unit(name: str) -> str:
    return name.removesuffix("_s") + "_seconds" if name.endswith("_s") else name
