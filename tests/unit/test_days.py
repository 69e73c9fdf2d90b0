"""Which days are asked for: closed, not written from what is built now, quiet, and not too often."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest

from cryptostream_dagster.catalog.days import DayPolicy, DayState, decide_days

NOW = datetime(2025, 2, 10, 15, 20, tzinfo=UTC)
HOUR = timedelta(hours=1)
CLOSED = DayState(date(2025, 2, 9), 288, 0, (), "abc", NOW - 9 * HOUR, None, 0, None)


def asked(*states: DayState, busy: tuple[date, ...] = (), policy: DayPolicy | None = None) -> list[int]:
    return [state.date.day for state in decide_days(states, busy, NOW, policy or DayPolicy())]


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({}, True),
        ({"written_digest": "abc"}, False),
        ({"written_digest": "of before a window was built again"}, True),
        ({"missing": 1}, False),
        ({"windows": 0, "digest": ""}, False),
        ({"last_built_at": NOW - timedelta(minutes=9)}, False),
        ({"last_built_at": NOW - timedelta(minutes=10)}, True),
    ],
)
def test_a_day_is_asked_for_when_it_is_closed_and_quiet_and_not_written(
    change: dict[str, object], wanted: bool
) -> None:
    assert asked(replace(CLOSED, **change)) == ([9] if wanted else [])  # type: ignore[arg-type]


def test_one_that_is_under_way_is_not_asked_for_again() -> None:
    assert asked(CLOSED, busy=(CLOSED.date,)) == []


def test_a_tick_asks_for_the_newest_few_and_those_that_failed_come_last() -> None:
    days = [replace(CLOSED, date=date(2025, 2, day)) for day in range(1, 8)]
    failed = replace(CLOSED, requests=1, requested_at=NOW - 2 * HOUR)
    policy = DayPolicy(max_days=3)
    assert asked(*days, failed, policy=policy) == [7, 6, 5]
    assert asked(failed, *days[:2], policy=policy) == [2, 1, 9]
    # Runs in flight count: however often it ticks, there are never more.
    assert asked(*days, busy=(date(2025, 1, 1), date(2025, 1, 2)), policy=policy) == [7]
    assert asked(*days, busy=tuple(date(2025, 1, n) for n in range(1, 6)), policy=policy) == []


def test_attempts_at_the_same_state_back_off_up_to_a_day() -> None:
    def pause(requests: int) -> timedelta:
        least, most = timedelta(0), timedelta(days=9)
        while most - least > timedelta(seconds=1):
            middle = (least + most) / 2
            tried = replace(CLOSED, requests=requests, requested_at=NOW - middle)
            least, most = (least, middle) if asked(tried) else (middle, most)
        return timedelta(minutes=round(most / timedelta(minutes=1)))

    minutes = timedelta(minutes=1)
    assert [pause(n) for n in (1, 2, 3, 4)] == [50 * minutes, 100 * minutes, 200 * minutes, 400 * minutes]
    assert pause(9) == pause(10**6) == timedelta(days=1)
