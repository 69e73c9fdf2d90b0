"""Whether a producer process does what it is for: the judgement behind `/health`.

Failed is what a new start may cure: a thread that ended, a loop that is stuck. An exchange or a Kafka that is
away, tickers that are silent, a clock that is wrong: a new start would only cost frames, so that is degraded.

Pure but for what it remembers of losses; the clocks are handed in.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from ingest_services.monitor import Health
from ingest_services.producer.metrics import MarketList, SectionStats, age_s
from ingest_services.producer.supervision import State

# A loop comes round several times a second; one that has not for this long is stuck.
STUCK_S = 15.0
# Unless it is connecting, or waits before it does: names are resolved without a bound of ours, and the
# exchange may have asked for a long pause.
CONNECTING_STUCK_S = 180.0
# A loss stays a reason for this long after it was noticed.
LOSS_S = 60.0
# Polled every 30 s.
MARKETS_OLD_S = 300.0
# Less is an ordinary NTP client's error, or the path.
SKEW_S = 1.0
_NAMES = 5


class Watched(Protocol):
    """A section at work."""

    @property
    def stats(self) -> SectionStats:
        """Its numbers."""
        ...

    @property
    def ended(self) -> tuple[str, ...]:
        """The parts of it that ended and should not have."""
        ...


class ProducerHealth:
    """Judges the sections of one process."""

    def __init__(self, sections: Iterable[Watched]) -> None:
        self._sections = list(sections)
        self._losses: dict[str, tuple[int, float]] = {}

    def __call__(self) -> Health:
        """Return how the process is, now."""
        now_s = time.monotonic()
        failed: list[str] = []
        degraded: list[str] = []
        figures = {}
        for section in self._sections:
            stats = section.stats
            failed += (f"{stats.section}: {reason}" for reason in find_failures(stats, section.ended, now_s))
            degraded += (f"{stats.section}: {reason}" for reason in find_lacks(stats, now_s))
            if self._loses(stats, now_s):
                degraded.append(f"{stats.section}: records are being lost, {stats.lost} so far")
            figures[stats.section] = figures_of(stats, now_s)
        return Health(tuple(failed), tuple(degraded), figures)

    def _loses(self, stats: SectionStats, now_s: float) -> bool:
        lost, noticed_s = self._losses.get(stats.section, (0, now_s))
        if stats.lost != lost:
            noticed_s = now_s
        self._losses[stats.section] = (stats.lost, noticed_s)
        return stats.lost > 0 and now_s - noticed_s < LOSS_S


def find_failures(stats: SectionStats, ended: Iterable[str], now_s: float) -> Iterator[str]:
    """Yield why a new start may be needed.

    Args:
        stats: The section's numbers.
        ended: Its parts that ended and should not have.
        now_s: Monotonic clock.
    """
    for part in ended:
        yield f"the {part} ended"
    if stats.state is State.STOPPED:
        return
    connecting = stats.state in (State.CONNECTING, State.BACKING_OFF)
    for loop, turn_s, bound_s in (
        ("feed", stats.feed_turn_s, CONNECTING_STUCK_S if connecting else STUCK_S),
        ("publisher", stats.publisher_turn_s, STUCK_S),
    ):
        if turn_s and now_s - turn_s > bound_s:
            yield f"the {loop} has not come round for {now_s - turn_s:.0f} s"


def find_lacks(stats: SectionStats, now_s: float) -> Iterator[str]:
    """Yield what a section lacks and cannot help.

    Args:
        stats: Its numbers.
        now_s: Monotonic clock.
    """
    if stats.market_list is MarketList.UNKNOWN:
        yield "the exchange has not said which markets there are, and none are remembered"
    elif stats.state is not State.LIVE:
        yield f"the connection is {stats.state.value}"
    if stats.market_list is MarketList.REMEMBERED:
        yield "the exchange has not said which markets there are; those of an earlier run are collected"
    elif stats.market_list is MarketList.DISTRUSTED:
        yield "the exchange's list of markets is not believed; the one before it is kept"
    elif stats.markets_read_us and age_s(stats.markets_read_us) > MARKETS_OLD_S:
        yield f"the exchange has not said for {age_s(stats.markets_read_us):.0f} s which markets there are"
    if stats.topic_problem:
        yield stats.topic_problem
    if stats.spooling:
        yield f"Kafka takes nothing; {stats.spool_bytes} bytes in the spool"
    elif stats.spool_bytes:
        yield f"{stats.spool_bytes} bytes of the spool are on their way"
    silent = stats.silent
    if silent:
        more = f" and {len(silent) - _NAMES} more" if len(silent) > _NAMES else ""
        yield f"silent: {', '.join(silent[:_NAMES])}{more}"
    skew_s = stats.smallest_delay.read_s(now_s)
    if skew_s is not None and abs(skew_s) > SKEW_S:
        yield (
            f"this clock is {-skew_s:.1f} s or more behind the exchange's"
            if skew_s < 0
            else f"no book comes in less than {skew_s:.1f} s: this clock is ahead, or the path is slow"
        )


def figures_of(stats: SectionStats, now_s: float) -> Mapping[str, Any]:
    """Return a section's figures for `/health`; seconds and bytes, None = unknown or never.

    Args:
        stats: Its numbers.
        now_s: Monotonic clock.
    """
    last_frame_us = max(dict(stats.last_frame_us).values(), default=0)
    return {
        "state": stats.state.value,
        "market_list": stats.market_list.value,
        "markets": stats.markets,
        "silent": list(stats.silent),
        "last_frame_age_s": _rounded(age_s(last_frame_us) if last_frame_us else None),
        "last_received_age_s": _rounded(age_s(stats.last_received_us) if stats.last_received_us else None),
        "clock_skew_s": _rounded(stats.smallest_delay.read_s(now_s)),
        "frames": stats.frames,
        "acknowledged": stats.acknowledged,
        "spooling": stats.spooling,
        "spool_bytes": stats.spool_bytes,
        "spool_oldest_age_s": _rounded(age_s(stats.spool_oldest_us) if stats.spool_oldest_us else None),
        "lost": stats.lost,
        "reconnects": sum(dict(stats.reconnects).values()),
        "feed_turn_age_s": _rounded(now_s - stats.feed_turn_s if stats.feed_turn_s else None),
        "publisher_turn_age_s": _rounded(now_s - stats.publisher_turn_s if stats.publisher_turn_s else None),
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
