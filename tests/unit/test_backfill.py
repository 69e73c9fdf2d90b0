from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cryptostream_dagster.backfill import find_deployment, ranges, windows_of_range
from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.window import Window
from ingest_services.errors import UserError

SETTINGS = PipelineSettings(_env_file=None, partitions_start="2025-02-02T00:00+0900")
NOW = datetime(2025, 2, 3, 0, 2, tzinfo=UTC)  # 09:02 in Seoul


def labels(start: str, end: str) -> list[str]:
    return [f"{w.local(SETTINGS.zone):%H:%M}" for w in windows_of_range(SETTINGS, start, end, NOW)]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ("2025-02-02T16:05", "2025-02-02T16:15", ["16:05", "16:10"]),
        ("2025-02-02T16:05+0900", "2025-02-02T16:15+0900", ["16:05", "16:10"]),  # partition keys
        ("2025-02-02T07:05+00:00", "2025-02-02 16:15", ["16:05", "16:10"]),
        ("2025-02-02T16:07", "2025-02-02T16:10:01", ["16:05", "16:10"]),  # whatever the range touches
        ("2025-02-03", "2025-02-03T00:05", ["00:00"]),
        ("2025-02-03T08:55", "2025-02-03T09:00", ["08:55"]),  # the newest that has ended
    ],
)
def test_a_range_is_every_window_that_it_touches(start: str, end: str, expected: list[str]) -> None:
    assert labels(start, end) == expected


@pytest.mark.parametrize(
    ("start", "end", "words"),
    [
        ("soon", "2025-02-03", "FROM soon: is no instant"),
        ("2025-02-03", "2025-02-03T25:00", "TO 2025-02-03T25:00: is no instant"),
        ("2025-02-03T01:00", "2025-02-03T01:00", "is not before TO"),
        ("2025-02-01", "2025-02-03", "PARTITIONS_START=2025-02-02T00:00+0900"),
        ("2025-02-03", "2025-02-03T09:01", "beyond the newest window that has ended, 2025-02-03 08:55+0900"),
    ],
)
def test_a_range_that_is_none_says_which_end_is_wrong(start: str, end: str, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        windows_of_range(SETTINGS, start, end, NOW)


def test_ranges_are_unbroken() -> None:
    first = Window.at(NOW)
    chosen = [first.shifted(n) for n in (7, 0, 1, 2, 5)]
    numbers = [(a.number - first.number, b.number - first.number) for a, b in ranges(chosen)]
    assert numbers == [(0, 2), (5, 5), (7, 7)]
    assert ranges([]) == []


def test_which_dagster_is_meant_is_not_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    with pytest.raises(UserError, match="DAGSTER_HOME is not set, and no local stack was started here"):
        find_deployment(None)
    (tmp_path / ".env").write_text("DAGSTER_HOME=/somewhere\nSOURCE=simulator\n")
    assert find_deployment(None).home == Path("/somewhere")
    assert find_deployment(None).settings.source == "simulator"
