"""When to ping, give up, and come back: the rules, without sockets."""

from __future__ import annotations

import random
import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_services.backoff import Backoff
from ingest_services.producer import supervision
from ingest_services.producer.supervision import (
    AFTER_MINUTE_S,
    FIRST_MESSAGE_S,
    GOOD_AFTER_S,
    KEEPALIVE_S,
    MUTE_S,
    NEXT,
    STALL_S,
    Action,
    ConnectionLimiter,
    MessageLimiter,
    State,
    Supervision,
    Watch,
)

IDLE_TIMEOUT_S = 60.0


def test_a_socket_on_which_nothing_ever_came_is_given_up() -> None:
    watch = Watch(100.0, 0.0)
    assert watch.due(100.0 + FIRST_MESSAGE_S - 0.01, 8.0) is not Action.GIVE_UP
    assert watch.due(100.0 + FIRST_MESSAGE_S, 8.0) is Action.GIVE_UP


def test_pongs_alone_are_no_life() -> None:
    watch = Watch(0.0, 0.0)
    watch.heard(FIRST_MESSAGE_S - 0.1)
    assert watch.due(FIRST_MESSAGE_S, 0.0) is Action.GIVE_UP


def test_a_socket_that_answers_no_ping_is_given_up_however_quiet_it_used_to_be() -> None:
    watch = Watch(0.0, 0.0)
    for second in range(0, 210, 10):
        watch.message(float(second))
    assert watch.mute_s == MUTE_S[1]
    assert watch.due(200.0 + STALL_S - 0.1, 0.0) is not Action.GIVE_UP
    assert watch.due(200.0 + STALL_S, 0.0) is Action.GIVE_UP


def test_up_every_ten_seconds_keeps_a_quiet_connection_and_pongs_alone_do_not() -> None:
    watch = Watch(0.0, 0.0)
    for second in range(300):
        assert watch.due(float(second), float(second)) is not Action.GIVE_UP
        watch.heard(float(second))
        if second % 10 == 0:
            watch.message(float(second))
    actions = []
    for second in range(300, 320):
        watch.heard(float(second))
        actions.append(watch.due(float(second), float(second)))
    silent_s = actions.index(Action.GIVE_UP) + 300 - 290
    assert silent_s == MUTE_S[1]
    assert actions.count(Action.ASK_UP) == 1, "it is asked for `UP` once more before that"
    assert actions.index(Action.ASK_UP) < actions.index(Action.GIVE_UP)


def test_a_busy_connection_that_falls_mute_is_given_up_within_seconds() -> None:
    watch = Watch(0.0, 0.0)
    at = 0.0
    while at < 90.0:
        at += 0.1
        watch.message(at)
    assert watch.mute_s == MUTE_S[0]
    watch.heard(at + MUTE_S[0])
    assert watch.due(at + MUTE_S[0], 0.0) is Action.GIVE_UP


def test_a_burst_of_snapshots_does_not_make_a_connection_busy() -> None:
    watch = Watch(0.0, 0.0)
    for number in range(855):
        watch.message(0.2 + number / 1e4)
    assert watch.mute_s == MUTE_S[1]


@given(st.lists(st.floats(0.0, 40.0), min_size=1, max_size=200))
def test_whatever_came_before_silence_is_bounded(gaps: list[float]) -> None:
    watch = Watch(0.0, 0.0)
    at = 0.0
    for gap in gaps:
        at += gap
        watch.message(at)
        assert MUTE_S[0] <= watch.mute_s <= MUTE_S[1]
    watch.heard(at + MUTE_S[1] + 1e-6)
    assert watch.due(at + MUTE_S[1] + 1e-6, 0.0) is Action.GIVE_UP


# ---- states


def test_the_states_of_a_connection_in_order() -> None:
    seen: list[tuple[State, State, str]] = []
    machine = Supervision(on_change=lambda was, now, cause: seen.append((was, now, cause)))
    machine.enter(State.CONNECTING)
    machine.subscribed(0.0)
    machine.enter(State.LIVE)
    machine.enter(State.STALLED)
    machine.ended("stalled", 30.0)
    machine.enter(State.CONNECTING)
    machine.enter(State.STOPPED)
    assert seen == [
        (State.CONNECTING, State.SUBSCRIBED, ""),
        (State.SUBSCRIBED, State.LIVE, ""),
        (State.LIVE, State.STALLED, ""),
        (State.STALLED, State.BACKING_OFF, "stalled"),
        (State.BACKING_OFF, State.CONNECTING, ""),
        (State.CONNECTING, State.STOPPED, ""),
    ]


@given(st.lists(st.sampled_from(State), max_size=20))
def test_no_way_leads_where_no_connection_goes(states: list[State]) -> None:
    machine = Supervision()
    for state in states:
        allowed = state is machine.state or state in NEXT[machine.state]
        before = machine.state
        if allowed:
            machine.enter(state)
            assert machine.state is state
        else:
            with pytest.raises(ValueError, match=f"from {before.value} to {state.value}"):
                machine.enter(state)
            assert machine.state is before


@pytest.mark.parametrize("cause", ["closed_1000", "closed_1006", "stalled", "status_429", "feed_failed"])
def test_every_end_is_a_failure_and_waits_a_little_longer(cause: str) -> None:
    machine = Supervision(Backoff(base_s=1.0, cap_s=30.0, chance=random.Random(1)))
    waits = []
    for number in range(12):
        machine.enter(State.CONNECTING)
        machine.subscribed(float(number))
        machine.enter(State.LIVE)
        waits.append(machine.ended(cause, number + GOOD_AFTER_S / 2))
    assert 0.5 <= waits[0] <= 1.0
    assert 15.0 <= waits[-1] <= 30.0


def test_a_connection_that_was_live_for_long_begins_again_at_the_base() -> None:
    machine = Supervision(Backoff(base_s=1.0, cap_s=30.0))
    for live in [False] * 10 + [True]:
        machine.enter(State.CONNECTING)
        if live:
            machine.subscribed(0.0)
            machine.enter(State.LIVE)
        wait_s = machine.ended("closed_1000", GOOD_AFTER_S)
    assert wait_s <= 1.0


@given(st.lists(st.floats(0, 2.0), max_size=300))
def test_messages_stay_inside_the_limits_whatever_is_sent(gaps: list[float]) -> None:
    limiter = MessageLimiter()
    at, sent = 0.0, []
    for gap in gaps:
        at += gap
        if limiter.take(at):
            sent.append(at)
    for first, later in zip(sent, sent[5:], strict=False):
        assert later - first >= 1.0 - 1e-9
    for first, later in zip(sent, sent[100:], strict=False):
        assert later - first >= 60.0 - 1e-9


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
        watch.message(now + elapsed)
        action = watch.due(now + elapsed, wall + elapsed)
        assert action in (Action.PING, Action.NOTHING)
        if action is Action.PING:
            pings.append(elapsed)
    assert 60 / KEEPALIVE_S - 2 < len(pings) < 60
    gaps = [b - a for a, b in zip([0.0, *pings], pings, strict=False)]
    assert max(gaps) < KEEPALIVE_S + 0.25
    minute = 60 - wall % 60
    assert any(minute <= ping < minute + AFTER_MINUTE_S + 0.25 for ping in pings) or minute > 59.7


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


def test_when_the_exchange_refuses_one_nobody_asks_before_the_pause_is_over() -> None:
    now = 0.0
    limiter = ConnectionLimiter(4, lambda: now)
    assert limiter.reserve_s() == 0.0
    assert limiter.refused(5.0) == 5.0
    slots = [limiter.reserve_s() for _ in range(10)]
    assert slots[:4] == [5.0] * 4
    assert slots[4:8] == [6.0] * 4, "and then inside the limit"
    now = 5.0
    assert limiter.pause_s == 0.0


def test_refusals_in_a_row_pause_for_longer_and_a_connection_ends_the_row() -> None:
    limiter = ConnectionLimiter(4, lambda: 0.0)
    pauses = [limiter.refused(30.0) for _ in range(20)]
    assert pauses[:5] == [30.0] * 5
    assert supervision.PAUSE_CAP_S / 2 <= pauses[-1] <= supervision.PAUSE_CAP_S
    limiter.accepted()
    assert limiter.refused(5.0) == 5.0


def test_who_waited_while_another_was_refused_queues_up_anew() -> None:
    now = 0.0

    class Stop(threading.Event):
        """Time passes; in the first piece of it another section is refused."""

        def wait(self, timeout: float | None = None) -> bool:
            nonlocal now
            if not limiter.pause_s and now < 1.0:
                limiter.refused(30.0)
            now += timeout or 0.0
            return False

    limiter = ConnectionLimiter(1, lambda: now)
    turns: list[float] = []
    assert limiter.wait(Stop()) == 0.0
    limiter.wait(Stop(), lambda: turns.append(now))
    assert now >= 30.0
    assert max(later - earlier for earlier, later in pairwise(turns)) <= supervision.TURN_S
