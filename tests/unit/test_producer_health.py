"""What a producer's numbers say about its health: failed only where a new start may help."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import pytest

from ingest_services.monitor import Status
from ingest_services.producer import health
from ingest_services.producer.health import ProducerHealth
from ingest_services.producer.metrics import MarketList, SectionStats
from ingest_services.producer.supervision import State


@dataclass
class Section:
    """A section at work, as far as its health is concerned."""

    stats: SectionStats = field(default_factory=lambda: SectionStats("s", State.LIVE))
    ended: tuple[str, ...] = ()


def turned(stats: SectionStats, seconds_ago: float) -> None:
    stats.feed_turn_s = stats.publisher_turn_s = time.monotonic() - seconds_ago


def test_a_section_that_collects_is_ok() -> None:
    section = Section()
    turned(section.stats, 0.1)
    section.stats.observe_delay(0.02)
    found = ProducerHealth([section])()
    assert (found.status, found.failed, found.degraded) == (Status.OK, (), ())
    assert found.sections["s"]["state"] == "live"
    assert found.sections["s"]["last_frame_age_s"] is None


def test_what_a_new_start_may_cure_is_failed() -> None:
    section = Section(ended=("publisher",))
    turned(section.stats, health.STUCK_S + 2)
    found = ProducerHealth([section])()
    assert found.status is Status.FAILED
    assert found.failed == (
        "s: the publisher ended",
        "s: the feed has not come round for 17 s",
        "s: the publisher has not come round for 17 s",
    )


@pytest.mark.parametrize("state", [State.CONNECTING, State.BACKING_OFF])
def test_a_feed_that_waits_before_it_connects_is_not_stuck(state: State) -> None:
    section = Section(SectionStats("s", state))
    turned(section.stats, 60)
    section.stats.publisher_turn_s = time.monotonic()
    found = ProducerHealth([section])()
    assert found.status is Status.DEGRADED
    assert found.degraded == (f"s: the connection is {state.value}",)
    turned(section.stats, health.CONNECTING_STUCK_S + 1)
    assert ProducerHealth([section])().status is Status.FAILED


def test_a_section_that_stops_is_not_stuck() -> None:
    section = Section(SectionStats("s", State.STOPPED))
    turned(section.stats, 60)
    assert ProducerHealth([section])().status is Status.DEGRADED


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("market_list", MarketList.UNKNOWN, "has not said which markets there are, and none are remembered"),
        ("market_list", MarketList.REMEMBERED, "those of an earlier run are collected"),
        ("market_list", MarketList.DISTRUSTED, "is not believed"),
        ("markets_read_us", 1, "has not said for"),
        ("topic_problem", "topic orderbook does not exist", "topic orderbook does not exist"),
        ("spooling", True, "Kafka takes nothing; 0 bytes in the spool"),
        ("spool_bytes", 77, "77 bytes of the spool are on their way"),
        ("silent", ("XXX",), "silent: XXX"),
        ("silent", tuple("ABCDEFG"), "silent: A, B, C, D, E and 2 more"),
    ],
)
def test_what_is_away_or_wrong_is_degraded(name: str, value: object, reason: str) -> None:
    section = Section()
    setattr(section.stats, name, value)
    found = ProducerHealth([section])()
    assert found.status is Status.DEGRADED
    assert len(found.degraded) == 1
    assert reason in found.degraded[0]


@pytest.mark.parametrize(("delay_s", "reason"), [(-2.0, "2.0 s or more behind"), (3.0, "less than 3.0 s")])
def test_a_clock_that_is_wrong_is_degraded(delay_s: float, reason: str) -> None:
    section = Section()
    section.stats.observe_delay(delay_s)
    assert reason in ProducerHealth([section])().degraded[0]


def test_a_loss_is_a_reason_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    section = Section()
    judge = ProducerHealth([section])
    assert judge().status is Status.OK
    section.stats.lost = 3
    assert judge().degraded == ("s: records are being lost, 3 so far",)
    assert judge().status is Status.DEGRADED
    now_s = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now_s + health.LOSS_S + 1)
    assert judge().status is Status.OK


def test_the_worst_section_counts() -> None:
    good, bad = Section(SectionStats("good", State.LIVE)), Section(SectionStats("bad", State.LIVE), ("feed",))
    found = ProducerHealth([good, bad])()
    assert found.failed == ("bad: the feed ended",)
    assert set(found.sections) == {"good", "bad"}
