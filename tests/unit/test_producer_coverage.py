"""Heartbeats claim what was received, up to where something proves it, and never across a minute's end."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ingest_services.producer.coverage import HEARTBEAT_EVERY_US, MAX_SILENCE_US, MINUTE_US, CoverageTracker
from ingest_services.record import Heartbeat, Span

SECOND = 1_000_000
START = 1_738_480_560 * SECOND  # a full minute


def spans(heartbeats: list[Heartbeat], ticker: str) -> list[tuple[int, int]]:
    return [(c.from_us, c.to_us) for h in heartbeats for c in h.covered if ticker in c.tickers]


def test_a_ticker_is_covered_from_its_first_book() -> None:
    tracker = CoverageTracker("s", "c", ["BTC", "ETH"], START)
    tracker.receive(START + SECOND, "BTC")
    tracker.receive(START + 2 * SECOND)
    assert tracker.finish() == Heartbeat(
        "s", "c", ("BTC", "ETH"), (Span(START + SECOND, START + 2 * SECOND, ("BTC",)),)
    )


def test_a_ticker_that_never_delivered_is_subscribed_and_not_covered() -> None:
    tracker = CoverageTracker("s", "c", ["XXX"], START)
    tracker.receive(START + SECOND)
    assert tracker.finish() == Heartbeat("s", "c", ("XXX",), ())


def test_a_ticker_nobody_asked_for_is_not_covered() -> None:
    tracker = CoverageTracker("s", "c", ["BTC"], START)
    tracker.receive(START + SECOND, "ETH")
    tracker.receive(START + 2 * SECOND)
    assert tracker.finish().covered == ()


def test_silence_is_not_claimed() -> None:
    tracker = CoverageTracker("s", "c", ["BTC"], START)
    tracker.receive(START, "BTC")
    tracker.receive(START + SECOND)
    assert tracker.finish().to_us == START + SECOND
    assert tracker.finish().covered == ()


def test_a_minute_is_claimed_to_its_end_once_something_comes_after_it() -> None:
    tracker = CoverageTracker("s", "c", ["BTC"], START)
    tracker.receive(START + 55 * SECOND, "BTC")
    heartbeat = tracker.receive(START + 61 * SECOND)
    assert heartbeat is not None
    assert heartbeat.covered == (Span(START + 55 * SECOND, START + MINUTE_US, ("BTC",)),)
    # And the rest with the next one.
    assert tracker.finish().covered == (Span(START + MINUTE_US, START + 61 * SECOND, ("BTC",)),)


def test_a_heartbeat_comes_before_the_frame_that_made_it_due() -> None:
    tracker = CoverageTracker("s", "c", ["BTC"], START)
    tracker.receive(START, "BTC")
    assert tracker.receive(START + HEARTBEAT_EVERY_US - 1, "BTC") is None
    heartbeat = tracker.receive(START + HEARTBEAT_EVERY_US, "BTC")
    assert heartbeat is not None
    assert heartbeat.to_us == START + HEARTBEAT_EVERY_US


def test_a_lost_frame_leaves_a_hole_for_its_ticker_alone() -> None:
    tracker = CoverageTracker("s", "c", ["BTC", "ETH"], START)
    tracker.receive(START, "BTC")
    tracker.receive(START, "ETH")
    tracker.receive(START + SECOND, "BTC")
    tracker.lose(START + SECOND, "BTC")
    tracker.receive(START + 2 * SECOND)
    tracker.receive(START + 3 * SECOND, "BTC")
    tracker.receive(START + 4 * SECOND)
    told = [tracker.finish()]
    assert spans(told, "BTC") == [(START, START + SECOND), (START + 3 * SECOND, START + 4 * SECOND)]
    assert spans(told, "ETH") == [(START, START + 4 * SECOND)]


def test_lost_garbage_could_have_been_anyones() -> None:
    tracker = CoverageTracker("s", "c", ["BTC", "ETH"], START)
    tracker.receive(START, "BTC")
    tracker.receive(START, "ETH")
    tracker.receive(START + SECOND)
    tracker.lose(START + SECOND, None)
    tracker.receive(START + 2 * SECOND)
    told = [tracker.finish()]
    assert spans(told, "BTC") == spans(told, "ETH") == [(START, START + SECOND)]


def test_a_clock_set_back_gives_up_what_was_not_told() -> None:
    tracker = CoverageTracker("s", "c", ["BTC"], START)
    tracker.receive(START + 5 * SECOND, "BTC")
    tracker.receive(START + 6 * SECOND)
    tracker.receive(START + SECOND)
    tracker.receive(START + 3 * SECOND)
    assert spans([tracker.finish()], "BTC") == [(START + SECOND, START + 3 * SECOND)]


def test_a_clock_set_forward_or_a_sleep_is_a_hole() -> None:
    tracker = CoverageTracker("s", "c", ["BTC"], START)
    tracker.receive(START, "BTC")
    tracker.receive(START + SECOND)
    woke = START + SECOND + MAX_SILENCE_US + 1
    heartbeat = tracker.receive(woke)
    assert heartbeat is not None
    tracker.receive(woke + SECOND)
    assert spans([heartbeat, tracker.finish()], "BTC") == [(START, START + SECOND), (woke, woke + SECOND)]


events = st.lists(
    st.tuples(
        st.integers(0, 20 * SECOND),
        st.sampled_from([None, "BTC", "ETH", "XXX"]),
        st.booleans(),
    ),
    max_size=60,
)


@given(st.integers(0, MINUTE_US), events)
def test_claims_are_disjoint_inside_minutes_and_end_at_receipts(
    offset: int, steps: list[tuple[int, str | None, bool]]
) -> None:
    at = START + offset
    tracker = CoverageTracker("s", "c", ["BTC", "ETH"], at)
    told: list[Heartbeat] = []
    receipts = {at}
    kept: dict[str, list[int]] = {"BTC": [], "ETH": []}
    lost: dict[str, list[int]] = {"BTC": [], "ETH": []}
    last_told = at
    for gap, ticker, loses in steps:
        at += gap
        heartbeat = tracker.receive(at, ticker)
        receipts.add(at)
        if heartbeat is not None:
            told.append(heartbeat)
            last_told = at
        assert at - last_told < HEARTBEAT_EVERY_US, "a heartbeat is overdue"
        if loses and ticker != "XXX":
            tracker.lose(at, ticker)
            for name in kept if ticker is None else [ticker]:
                lost[name].append(at)
        elif ticker in kept:
            kept[ticker].append(at)
    told.append(tracker.finish())
    ends = receipts | {t - t % MINUTE_US for t in receipts}
    for ticker in ("BTC", "ETH"):
        claims = spans(told, ticker)
        for from_us, to_us in claims:
            assert from_us < to_us
            assert from_us // MINUTE_US == (to_us - 1) // MINUTE_US
            assert to_us in ends
            assert to_us <= at
            # Everything inside was kept, and a book of it came first. (Frames read together have one stamp; a
            # whole book behind a lost one makes up for it.)
            assert not any(from_us < t < to_us for t in lost[ticker])
            assert any(t <= from_us for t in kept[ticker])
        assert all(a[1] <= b[0] for a, b in pairwise(claims)), claims
        assert Heartbeat.decode(told[-1].encode()) == told[-1]


@given(st.integers(0, MINUTE_US), st.lists(st.integers(1, 8 * SECOND), min_size=2, max_size=200))
def test_a_connection_without_loss_is_covered_without_a_gap(offset: int, gaps: list[int]) -> None:
    at = START + offset
    tracker = CoverageTracker("s", "c", ["BTC"], at)
    tracker.receive(at, "BTC")
    began = at
    told = []
    for gap in gaps:
        at += gap
        heartbeat = tracker.receive(at, "BTC")
        if heartbeat is not None:
            told.append(heartbeat)
    told.append(tracker.finish())
    claims = spans(told, "BTC")
    assert claims[0][0] == began
    assert claims[-1][1] == at
    assert all(a[1] == b[0] for a, b in pairwise(claims))
    minutes = {c[1] for c in claims if c[1] % MINUTE_US == 0}
    assert minutes == set(range(began - began % MINUTE_US + MINUTE_US, at + 1, MINUTE_US))
