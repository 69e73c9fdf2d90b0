from __future__ import annotations

from datetime import UTC, datetime

import pytest

from cryptostream_dagster.partitions import key_of, window_of, window_partitions
from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.window import Window, windows_between
from ingest_services.errors import UserError
from ingest_services.settings import load_settings


def settings_of(**values: str) -> PipelineSettings:
    return PipelineSettings(_env_file=None, **values)  # type: ignore[arg-type]


def test_a_key_names_the_window_in_market_time_and_comes_back() -> None:
    settings = settings_of(partitions_start="2025-01-01T00:00+0900")
    partitions = window_partitions(settings)
    window = window_of(partitions, "2025-02-02T16:05+0900")
    assert window == Window(datetime(2025, 2, 2, 7, 5, tzinfo=UTC))
    assert key_of(settings, window) == "2025-02-02T16:05+0900"
    assert partitions.get_first_partition_key() == "2025-01-01T00:00+0900"
    assert partitions.get_partition_key_for_timestamp(window.start.timestamp()) == "2025-02-02T16:05+0900"


@pytest.mark.parametrize(
    "key",
    ["2025-02-02T16:06+0900", "2025-02-02T07:05+0000", "2024-12-31T23:55+0900", "2999-01-01T00:00+0900"],
)
def test_a_key_beside_the_grid_or_outside_the_range_is_refused_not_rounded(key: str) -> None:
    partitions = window_partitions(settings_of(partitions_start="2025-01-01T00:00+0900"))
    with pytest.raises(UserError, match="does not exist"):
        window_of(partitions, key)


def test_the_hour_that_summer_time_repeats_has_two_sets_of_keys() -> None:
    settings = settings_of(market_time_zone="America/New_York", partitions_start="2025-01-01T00:00-0500")
    partitions = window_partitions(settings)
    first = window_of(partitions, "2025-11-02T01:05-0400")
    second = window_of(partitions, "2025-11-02T01:05-0500")
    assert second == first.shifted(12)
    assert key_of(settings, second) == "2025-11-02T01:05-0500"


def test_windows_lie_on_the_grid() -> None:
    window = Window.at(datetime(2025, 2, 2, 7, 9, 59, 999999, tzinfo=UTC))
    assert window.start == datetime(2025, 2, 2, 7, 5, tzinfo=UTC)
    assert Window.last_ended(window.end) == window
    assert [w.number - window.number for w in windows_between(window, window.shifted(2))] == [0, 1, 2]
    with pytest.raises(ValueError, match="not the start"):
        Window(datetime(2025, 2, 2, 7, 6, tzinfo=UTC))


def test_a_malformed_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("yesterday", "2026-01-01T00:01+0900"):
        monkeypatch.setenv("PARTITIONS_START", value)
        with pytest.raises(UserError, match=r"PARTITIONS_START='.*' .*must "):
            load_settings(PipelineSettings)


def test_missing_settings_are_named_in_one_sentence() -> None:
    missing = settings_of(postgres_user="me").missing
    assert missing is not None
    assert missing.startswith("POSTGRES_HOST, POSTGRES_DB not set")
    assert settings_of(postgres_host="h", postgres_user="u", postgres_db="d").missing is None


def test_a_password_is_not_shown() -> None:
    assert "hunter2" not in repr(settings_of(postgres_password="hunter2"))


@pytest.mark.parametrize(
    ("parquet", "daily"),
    [
        ("file:///lake/parquet", "file:///lake/parquet"),
        ("file:///lake/parquet", "file:///lake/parquet/daily/"),
        ("file:///lake/parquet/", "file:///lake/other/../parquet/daily"),
        ("file:///lake/parquet", "file:///lake"),
        ("gs://bucket/orderbook", "gs://bucket"),
        ("gs://bucket", "gs://bucket/daily"),
    ],
)
def test_daily_files_have_a_root_of_their_own(
    parquet: str, daily: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARQUET_URL", parquet)
    monkeypatch.setenv("DAILY_URL", daily)
    with pytest.raises(UserError, match=r"setting DAILY_URL=.* neither inside PARQUET_URL="):
        load_settings(PipelineSettings)


@pytest.mark.parametrize(
    ("values", "root"),
    [
        ({"parquet_url": "file:///lake/parquet"}, "file:///lake/parquet-daily"),
        ({"parquet_url": "gs://bucket/orderbook/", "daily_url": ""}, "gs://bucket/orderbook-daily"),
        ({"parquet_url": "gs://bucket"}, None),
        ({"parquet_url": "gs://bucket", "daily_url": "gs://bucket-daily"}, "gs://bucket-daily"),
        ({"parquet_url": "file:///lake/day", "daily_url": "file:///lake/daily"}, "file:///lake/daily"),
    ],
)
def test_daily_files_are_beside_parquet_unless_somebody_says_where(
    values: dict[str, str], root: str | None
) -> None:
    assert settings_of(**values).daily_root == root
