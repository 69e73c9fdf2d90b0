"""What a producer process tells about itself: plain numbers, exported at `/metrics`.

The hot path adds to plain integers; Prometheus' own types are only made when somebody asks. The table for
people is in `docs/metrics.md`.

Belongs here: the numbers, and how each is told. Does not belong here: what they mean for the process's health
(`health.py`), the server (`monitor.py`).
"""

from __future__ import annotations

import enum
import math
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ingest_services.producer.supervision import State
from ingest_services.record import CLOCK_TOLERANCE_MS
from ingest_services.upbit.rest import Rest

PREFIX = "cryptostream_producer_"
LATENCY_BOUNDS_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
# Below zero: our clock is behind the exchange's.
DELAY_BOUNDS_S = (-1.0, -0.1, 0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 60.0)
_SPAN_S = 60.0


class MarketList(enum.StrEnum):
    """Where a section's list of markets comes from.

    STATIC: from producer.conf. FOLLOWED: the exchange told it. REMEMBERED: from an earlier run, because the
    exchange did not say. DISTRUSTED: the exchange tells another one that cannot be true, and the one before
    is kept. UNKNOWN: nobody said yet, so nothing is collected.
    """

    STATIC = "static"
    FOLLOWED = "followed"
    REMEMBERED = "remembered"
    DISTRUSTED = "distrusted"
    UNKNOWN = "unknown"


class SmallestDelay:
    """The smallest delay from exchange to receiver of the last one to two minutes: clock skew plus path.

    A single book with an absurd stamp is not the clock: what lies further below zero than clocks may differ
    is only told if nothing else came.
    """

    __slots__ = ("_far_s", "_near_s", "_span")

    def __init__(self) -> None:
        self._span = 0
        # Of this span and the one before.
        self._near_s = [math.inf, math.inf]
        self._far_s = [-math.inf, -math.inf]

    def observe(self, seconds: float, now_s: float) -> None:
        """Take note of one delay; `now_s` is the monotonic clock."""
        span = int(now_s / _SPAN_S)
        if span != self._span:
            follows = span == self._span + 1
            self._near_s = [math.inf, self._near_s[0] if follows else math.inf]
            self._far_s = [-math.inf, self._far_s[0] if follows else -math.inf]
            self._span = span
        if seconds < -CLOCK_TOLERANCE_MS / 1e3:
            self._far_s[0] = max(self._far_s[0], seconds)
        elif seconds < self._near_s[0]:
            self._near_s[0] = seconds

    def read_s(self, now_s: float) -> float | None:
        """Return it, seconds; None if no delay was seen. `now_s` is the monotonic clock."""
        age = int(now_s / _SPAN_S) - self._span
        valid = slice(0, 2 - age) if age in (0, 1) else slice(0, 0)
        found = min(self._near_s[valid], default=math.inf)
        if math.isinf(found):
            found = max(self._far_s[valid], default=math.inf)
        return None if math.isinf(found) else found


@dataclass(slots=True)
class SectionStats:
    """The numbers of one section; each is written by one thread.

    Attributes:
        section: The section's name.
        state: Where its connection stands.
        markets: How many markets it subscribes to.
        market_list: Where the list of them comes from.
        markets_read_us: When the exchange last said which markets there are, µs since the epoch; 0 if never.
        frames: Frames received.
        bytes: Bytes of those.
        garbage: Frames that could not be read, published all the same.
        error_frames: The exchange's error frames.
        status_frames: `UP` and its like.
        microsecond_stamps: Books whose stamp came in µs.
        future_stamps: Books stamped later than they were received, beyond the clocks' tolerance.
        delay_counts: Exchange stamp to receipt, REALTIME books, by bucket of `DELAY_BOUNDS_S`.
        smallest_delay: The smallest of them lately.
        last_frame_us: By ticker, when its last book was received, µs since the epoch.
        silent: Tickers subscribed to that the live connection delivered nothing of within the bound.
        verdicts: What comparing quiet tickers with the exchange's REST API said, by verdict.
        resubscriptions: Connections made anew for a subscription that was dead, or silent and unanswered.
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
        topic_problem: Why Kafka, which answers, cannot take the section's records; empty if nothing is known.
        spooling: Whether records go to disk now.
        spool_bytes: What the spool holds.
        spool_limit_bytes: What it may hold.
        spool_records: Records in it; of what another process left, those that were read so far.
        spool_oldest_us: When its oldest record was received, µs since the epoch, to a segment; 0 if none.
        spool_damaged_bytes: What of the spool could not be read.
        latency_counts: Received to acknowledged, live records, by bucket of `LATENCY_BOUNDS_S`.
        latency_sum_s: The sum of those.
        feed_turn_s: When the feed last came round, monotonic clock; 0 if never.
        publisher_turn_s: When the publisher did.
    """

    section: str
    state: State = State.CONNECTING
    markets: int = 0
    market_list: MarketList = MarketList.STATIC
    markets_read_us: int = 0
    frames: int = 0
    bytes: int = 0
    garbage: int = 0
    error_frames: int = 0
    status_frames: int = 0
    microsecond_stamps: int = 0
    future_stamps: int = 0
    delay_counts: list[int] = field(default_factory=lambda: [0] * (len(DELAY_BOUNDS_S) + 1))
    smallest_delay: SmallestDelay = field(default_factory=SmallestDelay)
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
    topic_problem: str = ""
    spooling: bool = False
    spool_bytes: int = 0
    spool_limit_bytes: int = 0
    spool_records: int = 0
    spool_oldest_us: int = 0
    spool_damaged_bytes: int = 0
    latency_counts: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS_S) + 1))
    latency_sum_s: float = 0.0
    feed_turn_s: float = 0.0
    publisher_turn_s: float = 0.0

    def observe_delay(self, seconds: float) -> None:
        """Count one book's way from the exchange's stamp to its receipt; below zero if the clocks differ."""
        self.delay_counts[bisect_left(DELAY_BOUNDS_S, seconds)] += 1
        self.smallest_delay.observe(seconds, time.monotonic())

    def observe_latency(self, seconds: float) -> None:
        """Count one live record's way from the socket to its acknowledgement."""
        self.latency_counts[bisect_left(LATENCY_BOUNDS_S, seconds)] += 1
        self.latency_sum_s += seconds

    def forget_tickers(self, kept: Iterable[str]) -> None:
        """Tell no more about tickers that are not among those kept."""
        for ticker in set(self.last_frame_us).difference(kept):
            self.last_frame_us.pop(ticker, None)


# The values of labels beside the section's name, and the number.
Sample = tuple[tuple[str, ...], float]


@dataclass(frozen=True, slots=True)
class Family:
    """One metric of a section.

    Attributes:
        name: Behind `PREFIX`; Prometheus adds `_total` to a counter's.
        text: What it is, for `/metrics`.
        fields: The fields of `SectionStats` that it tells.
        read: Reads its samples.
        labels: Names of labels beside `section`.
        counter: Whether it only grows.
    """

    name: str
    text: str
    fields: tuple[str, ...]
    read: Callable[[SectionStats], Iterable[Sample]]
    labels: tuple[str, ...] = ()
    counter: bool = False


@dataclass(frozen=True, slots=True)
class Distribution:
    """One histogram of a section.

    Attributes:
        name: Behind `PREFIX`.
        text: What it is, for `/metrics`.
        fields: The field with its counts, and the one with the sum. Prometheus' format has no sum where
            values may lie below zero.
        bounds: Upper bounds of the buckets but the last, seconds.
    """

    name: str
    text: str
    fields: tuple[str] | tuple[str, str]
    bounds: Sequence[float]


def _counts(attribute: str, text: str, name: str = "") -> Family:
    return Family(name or attribute, text, (attribute,), _plain(attribute), counter=True)


def _tells(attribute: str, text: str, name: str = "") -> Family:
    return Family(name or attribute, text, (attribute,), _plain(attribute))


def _plain(attribute: str) -> Callable[[SectionStats], Iterable[Sample]]:
    return lambda stats: [((), float(getattr(stats, attribute)))]


def _counts_by(attribute: str, label: str, text: str) -> Family:
    def read(stats: SectionStats) -> Iterable[Sample]:
        counter: Counter[str] = getattr(stats, attribute)
        return [((key,), float(count)) for key, count in dict(counter).items()]

    return Family(attribute, text, (attribute,), read, (label,), counter=True)


def _tells_which(attribute: str, label: str, kind: type[enum.StrEnum], text: str, name: str = "") -> Family:
    def read(stats: SectionStats) -> Iterable[Sample]:
        return [((each.value,), float(getattr(stats, attribute) is each)) for each in kind]

    return Family(name or attribute, text, (attribute,), read, (label,))


def _ages(attribute: str, text: str, name: str) -> Family:
    def read(stats: SectionStats) -> Iterable[Sample]:
        at_us: int = getattr(stats, attribute)
        return [((), age_s(at_us))] if at_us else []

    return Family(name, text, (attribute,), read)


def age_s(at_us: int) -> float:
    """Return how long ago that was, seconds; `at_us` is µs since the epoch."""
    return max(0.0, time.time() - at_us / 1e6)


def _frame_ages(stats: SectionStats) -> Iterable[Sample]:
    return [((ticker,), age_s(at_us)) for ticker, at_us in dict(stats.last_frame_us).items()]


def _loop_ages(stats: SectionStats) -> Iterable[Sample]:
    turns = {"feed": stats.feed_turn_s, "publisher": stats.publisher_turn_s}
    return [((loop,), time.monotonic() - turn_s) for loop, turn_s in turns.items() if turn_s]


def _skew(stats: SectionStats) -> Iterable[Sample]:
    skew_s = stats.smallest_delay.read_s(time.monotonic())
    return [] if skew_s is None else [((), skew_s)]


FAMILIES: tuple[Family | Distribution, ...] = (
    # ---- the connection
    _tells_which("state", "state", State, "1 for the state that the connection is in.", "connection_state"),
    _counts("connected", "Connections opened."),
    _counts_by("reconnects", "cause", "Connections that ended, by cause."),
    _counts("resubscriptions", "Connections made anew for dead or unanswered subscriptions."),
    _counts(
        "limiter_wait_s",
        "Seconds for which connecting waited for the exchange's limit.",
        "limiter_wait_seconds",
    ),
    _ages(
        "last_received_us",
        "Seconds since something, a pong included, was last received.",
        "last_received_age_seconds",
    ),
    # ---- frames
    _counts("frames", "Frames received from the exchange."),
    _counts("bytes", "Bytes of frames received."),
    _counts("garbage", "Frames that could not be read; published for the quarantine."),
    _counts("error_frames", "Error frames of the exchange."),
    _counts("status_frames", "Status frames (UP) of the exchange."),
    _counts("microsecond_stamps", "Books whose stamp came in microseconds."),
    _counts("future_stamps", "Books stamped later than they were received, beyond the clocks' tolerance."),
    Distribution(
        "exchange_delay_seconds",
        "From the exchange's stamp to receipt, REALTIME books; below zero if this clock is behind.",
        ("delay_counts",),
        DELAY_BOUNDS_S,
    ),
    Family(
        "clock_skew_seconds",
        "The smallest delay from exchange to receiver of the last minute or two: clock skew plus path.",
        ("smallest_delay",),
        _skew,
    ),
    _counts("backpressure_s", "Seconds for which reading waited for publishing.", "backpressure_seconds"),
    # ---- markets and tickers
    _tells("markets", "Markets subscribed to."),
    _tells_which("market_list", "source", MarketList, "1 for where the list of markets comes from."),
    _ages(
        "markets_read_us",
        "Seconds since the exchange said which markets there are.",
        "market_list_age_seconds",
    ),
    Family(
        "last_frame_age_seconds",
        "Seconds since the ticker's last book was received.",
        ("last_frame_us",),
        _frame_ages,
        ("ticker",),
    ),
    Family(
        "silent_tickers",
        "Tickers subscribed to that delivered nothing within the bound.",
        ("silent",),
        lambda stats: [((), float(len(stats.silent)))],
    ),
    Family(
        "silent_ticker",
        "1 for each ticker that delivered nothing within the bound.",
        ("silent",),
        lambda stats: [((ticker,), 1.0) for ticker in stats.silent],
        ("ticker",),
    ),
    _counts_by("verdicts", "verdict", "What comparing overdue tickers with the exchange's books said."),
    _counts("holes_s", "Ticker-seconds claimed as covered and taken back.", "holes_seconds"),
    # ---- Kafka
    _counts("heartbeats", "Heartbeats made."),
    _counts("published", "Records handed to Kafka."),
    _counts("acknowledged", "Records that Kafka acknowledged."),
    Distribution(
        "publish_seconds",
        "From the socket to Kafka's acknowledgement, live records.",
        ("latency_counts", "latency_sum_s"),
        LATENCY_BOUNDS_S,
    ),
    Family(
        "topic_missing",
        "1 while Kafka answers and lacks the section's topic or partition.",
        ("topic_problem",),
        lambda stats: [((), float(bool(stats.topic_problem)))],
    ),
    # ---- the spool
    _tells("spooling", "1 while records go to disk."),
    _counts("spooled", "Records that were kept on disk because Kafka could not take them."),
    _tells("spool_bytes", "Bytes that wait on disk."),
    _tells("spool_limit_bytes", "Bytes that may wait on disk."),
    _tells("spool_records", "Records that wait on disk; of what another process left, those read so far."),
    _ages(
        "spool_oldest_us",
        "Seconds since the oldest record that waits on disk was received.",
        "spool_oldest_age_seconds",
    ),
    _counts("spool_damaged_bytes", "Bytes of the spool that could not be read."),
    _counts("lost", "Records that could not be kept; coverage has a hole there."),
    # ---- the process
    Family(
        "loop_age_seconds",
        "Seconds since a loop last came round.",
        ("feed_turn_s", "publisher_turn_s"),
        _loop_ages,
        ("loop",),
    ),
)


class StatsCollector(Collector):
    """Turns the numbers of a process into Prometheus metrics."""

    def __init__(self, stats: Iterable[SectionStats], rest: Rest) -> None:
        """Tell about some sections.

        Args:
            stats: Their numbers.
            rest: The exchange's REST API, which they share.
        """
        self._stats = list(stats)
        self._rest = rest

    def collect(self) -> Iterator[Metric]:
        """Yield every metric; those of sections with a label for the section."""
        for family in FAMILIES:
            yield self._distribution(family) if isinstance(family, Distribution) else self._family(family)
        yield CounterMetricFamily(
            PREFIX + "rest_wait_seconds",
            "Seconds for which questions to the REST API waited for the exchange's limit.",
            self._rest.waited_s,
        )
        yield CounterMetricFamily(
            PREFIX + "rest_refused", "Answers 429 and 418 of the REST API.", self._rest.refused
        )

    def _family(self, family: Family) -> Metric:
        make = CounterMetricFamily if family.counter else GaugeMetricFamily
        metric = make(PREFIX + family.name, family.text, labels=("section", *family.labels))
        for stats in self._stats:
            for values, number in family.read(stats):
                metric.add_metric((stats.section, *values), number)
        return metric

    def _distribution(self, distribution: Distribution) -> Metric:
        histogram = HistogramMetricFamily(PREFIX + distribution.name, distribution.text, labels=["section"])
        for stats in self._stats:
            total = 0
            buckets = []
            bounds = [*map(str, distribution.bounds), "+Inf"]
            for bound, count in zip(bounds, list(getattr(stats, distribution.fields[0])), strict=True):
                total += count
                buckets.append((bound, float(total)))
            total_s = getattr(stats, distribution.fields[1]) if len(distribution.fields) > 1 else None
            histogram.add_metric([stats.section], buckets, total_s)
        return histogram
