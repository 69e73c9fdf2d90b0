from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from cryptostream_dagster.warehouse.freshness import STALE_AFTER, Newest, explain, is_fresh
from cryptostream_dagster.window import Window

WINDOW = Window.at(datetime(2025, 2, 2, 7, 5, tzinfo=UTC))
ZONE = ZoneInfo("Asia/Seoul")
MINUTE = timedelta(minutes=1)
BEGAN = WINDOW.end - timedelta(days=1)


def test_the_numbers_are_fresh_until_two_windows_were_missed() -> None:
    newest = Newest(BEGAN, WINDOW, WINDOW)
    assert is_fresh(newest, WINDOW.end + STALE_AFTER)
    assert not is_fresh(newest, WINDOW.end + STALE_AFTER + timedelta(seconds=1))
    assert not is_fresh(Newest(BEGAN, WINDOW, None), WINDOW.end)


def test_in_a_lake_that_just_began_the_first_window_is_awaited_as_long() -> None:
    newest = Newest(WINDOW.end, WINDOW, None)
    assert is_fresh(newest, WINDOW.end + STALE_AFTER)
    assert explain(newest, WINDOW.end, ZONE) == "the lake is new: its first window is awaited"
    assert not is_fresh(newest, WINDOW.end + STALE_AFTER + timedelta(seconds=1))
    assert not is_fresh(Newest(None, None, None), WINDOW.end)


@pytest.mark.parametrize(
    ("newest", "minutes", "said"),
    [
        (
            Newest(BEGAN, WINDOW, WINDOW),
            2,
            "the newest covered window, 2025-02-02 16:05+0900, ended 2 min ago",
        ),
        (
            Newest(BEGAN, WINDOW.shifted(9), WINDOW),
            46,
            "the newest covered window, 2025-02-02 16:05+0900, ended 46 min ago; windows are built, but "
            "nobody listens: are the producers running?",
        ),
        (
            Newest(BEGAN, WINDOW, WINDOW),
            46,
            "the newest covered window, 2025-02-02 16:05+0900, ended 46 min ago; none was built since "
            "2025-02-02 16:05+0900",
        ),
        (
            Newest(BEGAN, None, None),
            2,
            "no window of the last day is complete and was listened to; no window was ever built",
        ),
    ],
)
def test_what_is_stale_says_what_is_missing(newest: Newest, minutes: int, said: str) -> None:
    assert explain(newest, WINDOW.end + minutes * MINUTE, ZONE) == said
