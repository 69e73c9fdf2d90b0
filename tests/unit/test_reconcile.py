from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptostream_dagster.catalog.reconcile import Candidate, Policy, Request, decide
from cryptostream_dagster.jobs import RANGE_END_TAG, RANGE_START_TAG
from cryptostream_dagster.sensors import windows_of_runs
from cryptostream_dagster.window import Window

NOW = datetime(2025, 2, 2, 12, 0, tzinfo=UTC)
FIRST = Window(datetime(2025, 2, 2, 6, 0, tzinfo=UTC))
POLICY = Policy(grace=timedelta(seconds=60), settle=timedelta(seconds=10))


def candidate(
    number: int, rows: int = 100, changed_s_ago: float = 1000, requests: int = 0, requested_s_ago: float = 0
) -> Candidate:
    changed = NOW - timedelta(seconds=changed_s_ago)
    requested = NOW - timedelta(seconds=requested_s_ago) if requests else None
    return Candidate(FIRST.shifted(number), rows, 7, changed, changed, requests, requested)


def numbers(requests: list[Request]) -> list[list[int]]:
    return [[c.window.number - FIRST.number for c in request.candidates] for request in requests]


def test_adjacent_windows_share_a_run_and_the_newest_run_comes_first() -> None:
    requests = decide([candidate(n) for n in (5, 0, 1, 2, 6)], NOW, [], NOW, POLICY)
    assert numbers(requests) == [[5, 6], [0, 1, 2]]
    assert all(request.attempt == 1 for request in requests)


def test_nothing_is_asked_for_before_it_is_complete() -> None:
    candidates = [candidate(n) for n in range(3)]
    assert numbers(decide(candidates, FIRST.shifted(2).start, [], NOW, POLICY)) == [[0, 1]]
    assert decide(candidates, None, [], NOW, POLICY) == []


def test_a_window_that_a_run_is_building_is_left_alone() -> None:
    requests = decide([candidate(n) for n in range(3)], NOW, [FIRST.shifted(1)], NOW, POLICY)
    assert numbers(requests) == [[2], [0]]


def test_the_newest_window_is_left_to_the_schedule_for_a_while() -> None:
    live = Window.last_ended(NOW)
    number = live.number - FIRST.number
    assert decide([candidate(number)], NOW, [], live.end + timedelta(seconds=59), POLICY) == []
    assert numbers(decide([candidate(number)], NOW, [], live.end + timedelta(seconds=60), POLICY)) == [
        [number]
    ]


def test_a_window_that_still_changes_waits_but_not_for_ever() -> None:
    busy = candidate(0, changed_s_ago=5)
    assert decide([busy], NOW, [], NOW, POLICY) == []
    trickling = Candidate(FIRST, 100, 7, NOW - timedelta(seconds=101), NOW, 0, None)
    assert numbers(decide([trickling], NOW, [], NOW, POLICY)) == [[0]]
    empty = Candidate(FIRST, 0, 0, None, None, 0, None)
    assert numbers(decide([empty], NOW, [], NOW, POLICY)) == [[0]]


def test_what_failed_is_tried_again_apart_and_with_growing_pauses() -> None:
    failed = candidate(1, requests=1, requested_s_ago=29)
    assert numbers(decide([candidate(0), failed, candidate(2)], NOW, [], NOW, POLICY)) == [[2], [0]]
    failed = candidate(1, requests=1, requested_s_ago=31)
    policy = Policy(POLICY.grace, POLICY.settle, max_runs=5)
    requests = decide([candidate(0), failed, candidate(2)], NOW, [], NOW, policy)
    assert numbers(requests) == [[2], [1], [0]]
    assert [request.attempt for request in requests] == [1, 2, 1]
    for attempts, pause in ((2, 60), (3, 120), (10, 3600), (500, 3600)):
        early = candidate(1, requests=attempts, requested_s_ago=pause - 1)
        late = candidate(1, requests=attempts, requested_s_ago=pause + 1)
        assert decide([early], NOW, [], NOW, POLICY) == []
        assert len(decide([late], NOW, [], NOW, POLICY)) == 1


def test_what_was_lost_with_its_run_is_tried_in_ever_shorter_runs_until_a_window_goes_alone() -> None:
    policy = Policy(POLICY.grace, POLICY.settle, max_runs=100)
    for attempts, most in ((0, 48), (1, 12), (2, 3), (3, 1), (4, 1), (500, 1)):
        many = [candidate(n, requests=attempts, requested_s_ago=4000) for n in range(50)]
        requests = decide(many, NOW, [], NOW, policy)
        assert max(len(request.candidates) for request in requests) == most
        assert sum(len(request.candidates) for request in requests) == 50


def test_a_storm_of_failures_asks_for_no_more_than_its_pauses_allow() -> None:
    """Every run fails at once: in a day a window is asked for as often as the pauses say, and no more."""
    asked = 0
    state = candidate(0)
    for step in range(0, 86_400, 2):  # a tick every two seconds
        now = NOW + timedelta(seconds=step)
        for request in decide([state], NOW, [], now, POLICY):
            asked += 1
            (old,) = request.candidates
            state = Candidate(
                old.window, old.rows, old.revision, old.first_change_at, old.last_change_at, asked, now
            )
    # 30 s, 1 min, … 32 min until the pauses are an hour: seven or eight, then one an hour.
    assert 25 <= asked <= 33


def test_work_is_bounded_in_runs_windows_and_rows() -> None:
    many = [candidate(n) for n in range(60)]
    assert [len(r.candidates) for r in decide(many, NOW, [], NOW, Policy(POLICY.grace, POLICY.settle))] == [
        12,
        48,
    ]
    full = [candidate(n, rows=900_000) for n in range(6)]
    assert numbers(decide(full, NOW, [], NOW, POLICY)) == [[4, 5], [2, 3]]
    assert decide(many, NOW, [], NOW, Policy(POLICY.grace, POLICY.settle, max_runs=0)) == []


def test_a_run_key_changes_with_windows_state_and_attempt_alone() -> None:
    one = Request((candidate(0), candidate(1)), 1)
    assert one.run_key == Request((candidate(0), candidate(1, rows=5)), 1).run_key
    others = [
        Request((candidate(0),), 1),
        Request((candidate(0), candidate(1)), 2),
        Request((candidate(0), Candidate(FIRST.shifted(1), 100, 8, NOW, NOW, 0, None)), 1),
    ]
    assert len({one.run_key, *(other.run_key for other in others)}) == 4


def test_windows_in_flight_are_those_of_any_run_whoever_asked_for_it() -> None:
    def key(number: int) -> str:
        return f"{FIRST.shifted(number).start:%Y-%m-%dT%H:%M}+0000"

    def ranged(first: int, last: int) -> dict[str, str]:
        return {"dagster/backfill": "b", RANGE_START_TAG: key(first), RANGE_END_TAG: key(last)}

    tags = [
        {"dagster/partition": "2025-02-02T15:10+0900"},  # the third window of the day, in Seoul
        ranged(10, 40),
        ranged(20, 22),  # within another one
        ranged(50, 51),
        {"dagster/partition": "2025-02-02"},  # of another job: a day
        {"dagster/partition": "2025-02-02T06:03+0000"},  # no window begins there
        {},
    ]
    among = [FIRST.shifted(n) for n in range(60)]
    found = [window.number - FIRST.number for window in sorted(windows_of_runs(tags, among))]
    assert found == [2, *range(10, 41), 50, 51]
    assert windows_of_runs(tags, []) == windows_of_runs([], among) == set()
