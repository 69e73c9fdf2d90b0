"""A day of the market's clock is what lies between two of its midnights, whatever the clocks do."""

from __future__ import annotations

from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

import pytest

from cryptostream_dagster.day import Day
from cryptostream_dagster.partitions import day_of, day_partitions
from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.transforms.books import parquet_path
from cryptostream_dagster.window import Window
from ingest_services.errors import UserError

NEW_YORK = "America/New_York"


@pytest.mark.parametrize(
    ("zone", "day", "windows"),
    [
        ("Asia/Seoul", date(2025, 2, 2), 288),
        (NEW_YORK, date(2025, 3, 9), 276),
        (NEW_YORK, date(2025, 11, 2), 300),
        ("America/Sao_Paulo", date(2018, 11, 4), 276),  # has no midnight
        ("America/Sao_Paulo", date(2018, 2, 17), 300),  # has 23:00 twice
        ("Australia/Lord_Howe", date(2025, 4, 6), 294),  # half an hour
    ],
)
def test_a_day_has_exactly_the_windows_that_start_on_its_date(zone: str, day: date, windows: int) -> None:
    found = Day(day, ZoneInfo(zone))
    inside = list(found.windows())
    assert len(inside) == windows
    assert {window.event_date(found.zone) for window in inside} == {day}
    assert found.shifted(1).start == found.end == inside[-1].end
    for outside in (inside[0].shifted(-1), inside[-1].shifted(1)):
        assert outside.event_date(found.zone) != day
    assert Day.at(inside[0].start, found.zone) == Day.at(inside[-1].start, found.zone) == found


def test_no_two_windows_of_a_repeated_hour_share_an_object() -> None:
    day = Day(date(2025, 11, 2), ZoneInfo(NEW_YORK))
    paths = [parquet_path("BTC", window, day.zone) for window in day.windows()]
    assert len(set(paths)) == 300
    again = Window(datetime(2025, 11, 2, 6, 5, tzinfo=UTC))
    assert parquet_path("BTC", again, day.zone).endswith("/hour=01/BTC-202511020105-0500.parquet")


def test_a_key_names_a_day_and_another_is_refused_not_rounded() -> None:
    settings = PipelineSettings(_env_file=None, partitions_start="2025-02-02T16:00+0900")  # type: ignore[call-arg]
    days = day_partitions(settings)
    assert day_of(days, "2025-02-02", settings) == Day(date(2025, 2, 2), settings.zone)
    for key in ("2025-02-01", "2025-2-3", "2025-02-03T00:00", "2999-01-01", ""):
        with pytest.raises(UserError, match="does not exist"):
            day_of(days, key, settings)
