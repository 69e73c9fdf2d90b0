"""When to ping, give up, and come back: the rules, without sockets."""

from __future__ import annotations

import random
import threading

from hypothesis import given
from hypothesis import strategies as st

from ingest_services.producer.supervision import (
    AFTER_MINUTE_S,
    KEEPALIVE_S,
    STALL_S,
    Action,
    Backoff,
    ConnectionLimiter,
    Watch,
)

IDLE_TIMEOUT_S = 60.0


def test_a_socket_on_which_nothing_ever_came_is_given_up() -> None:
    watch = Watch(100.0, 0.0)
    assert watch.due(100.0 + STALL_S - 0.01, 8.0) is not Action.GIVE_UP
    assert watch.due(100.0 + STALL_S, 8.0) is Action.GIVE_UP


def test_anything_heard_keeps_a_socket() -> None:
    watch = Watch(0.0, 0.0)
    for second in range(1, 100):
        assert watch.due(float(second), float(second)) is not Action.GIVE_UP
        watch.heard(float(second))
    assert watch.due(99.0 + STALL_S, 0.0) is Action.GIVE_UP


def test_a_ping_goes_out_just_after_each_minute() -> None:
    wall = 59.5
    watch = Watch(0.0, wall)
    assert watch.due(0.5, wall + 0.5) is Action.NOTHING
    assert watch.due(0.5 + AFTER_MINUTE_S + 0.001, wall + 0.5 + AFTER_MINUTE_S + 0.001) is Action.PING
    assert watch.due(0.6, wall + 0.6) is Action.NOTHING


@given(st.floats(0, 1e6), st.floats(0, 2e9))
def test_pings_stay_well_under_the_idle_timeout_and_the_message_limit(now: float, wall: float) -> None:
    assert KEEPALIVE_S * 3 < IDLE_TIMEOUT_S
    watch = Watch(now, wall)
    pings = []
    for tick in range(600):
        elapsed = tick * 0.1
        watch.heard(now + elapsed)
        if watch.due(now + elapsed, wall + elapsed) is Action.PING:
            pings.append(elapsed)
    assert len(pings) < 60
    gaps = [b - a for a, b in zip([0.0, *pings], pings, strict=False)]
    assert max(gaps) < KEEPALIVE_S + 0.25


@given(st.integers(), st.integers(1, 200))
def test_backoff_grows_to_its_cap_and_never_ends(seed: int, failures: int) -> None:
    backoff = Backoff(0.25, 30.0, random.Random(seed))
    delays = [backoff.next_s() for _ in range(failures)]
    for number, delay in enumerate(delays):
        step = min(30.0, 0.25 * 2**number)
        assert step / 2 <= delay <= step, f"seed {seed}"
    assert backoff.next_s(at_least_s=45.0) == 45.0
    backoff.reset()
    assert backoff.next_s() <= 0.25


@given(st.lists(st.floats(0, 2), max_size=60), st.integers(1, 5))
def test_connections_stay_inside_the_limit_whatever_asks(gaps: list[float], per_second: int) -> None:
    now = 0.0
    limiter = ConnectionLimiter(per_second, lambda: now)
    slots = []
    for gap in gaps:
        now += gap
        slots.append(now + limiter.reserve_s())
    assert slots == sorted(slots)
    for first, last in zip(slots, slots[per_second:], strict=False):
        assert last - first >= 1.0 - 1e-9


def test_waiting_for_a_slot_ends_when_the_service_does() -> None:
    limiter = ConnectionLimiter(1)
    stop = threading.Event()
    stop.set()
    limiter.wait(stop)
    assert limiter.wait(stop) > 0
