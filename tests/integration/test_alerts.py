"""A failed run is told to a webhook, once; a webhook that is dead is a line in a log."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from pydantic import SecretStr

from cryptostream_dagster import webhook as webhook_module
from cryptostream_dagster.alerts import failure_text
from cryptostream_dagster.definitions import build_defs
from cryptostream_dagster.jobs import PARTITION_TAG, RANGE_END_TAG, RANGE_START_TAG
from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.webhook import post
from ingest_services.errors import UserError
from ingest_services.settings import load_settings
from tests.webhook_server import SECRET, Webhook, open_webhook

KEY = "2025-02-02T16:05+0900"


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    with open_webhook() as opened:
        yield opened


def settings(folder: Path, url: str | None) -> PipelineSettings:
    """Settings with which every run fails: there is no Postgres, and no lake."""
    return PipelineSettings(
        _env_file=None,
        raw_url=(folder / "raw").as_uri(),
        source="simulator",
        partitions_start="2025-02-01T00:00+0900",
        alert_webhook_url=None if url is None else SecretStr(url),
    )


def test_without_a_webhook_there_is_no_sensor(tmp_path: Path) -> None:
    for url in (None, ""):
        sensors = build_defs(settings(tmp_path, url)).sensors or []
        assert "alert_on_failure" not in {sensor.name for sensor in sensors}


@pytest.mark.parametrize("status", [200, 500])
def test_a_failed_run_is_told_once_even_to_a_webhook_that_fails(
    tmp_path: Path, webhook: Webhook, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    webhook.status = status
    defs = build_defs(settings(tmp_path, webhook.url))
    sensor = defs.resolve_sensor_def("alert_on_failure")
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:

        def tick(cursor: str | None) -> str | None:
            data = sensor.evaluate_tick(dg.build_sensor_context(instance=instance, cursor=cursor))
            assert not data.run_requests
            return data.cursor

        cursor = tick(None)  # from now on
        assert webhook.told == []
        job = defs.resolve_job_def("build_windows")
        result = job.execute_in_process(instance=instance, partition_key=KEY, raise_on_error=False)
        assert not result.success
        cursor = tick(cursor)
        (text,) = webhook.told
        assert text.startswith(
            f"CryptoStream (simulator): build_windows failed for {KEY}, run {result.run_id[:8]}: "
            f"raw_orderbook: {result.run_id[:8]}: there is no raw lake at RAW_URL="
        )
        assert "\n" not in text
        tick(tick(cursor))
        assert len(webhook.told) == 1
    logged = capfd.readouterr().err
    assert SECRET not in logged
    assert ("not sent, the webhook answered 500" in logged) == (status == 500)


def test_a_dead_webhook_costs_a_moment_and_does_not_give_its_url_away(
    webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert post(SecretStr(webhook.url), "x" * 5000) is None
    assert webhook.told == ["x" * 1000]
    monkeypatch.setattr(webhook_module, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        answers = [post(SecretStr(f"http://127.0.0.1:{port}/{SECRET}"), "hello")]
    answers.append(post(SecretStr(f"http://127.0.0.1:{port}/{SECRET}"), "hello"))  # nobody there any more
    answers.append(post(SecretStr(f"http://no such host/{SECRET}"), "hello"))
    for answer in answers:
        assert answer is not None
        assert answer.startswith("the webhook did not answer (")
        assert SECRET not in answer


def test_a_webhook_that_is_none_is_refused_without_telling_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALERT_WEBHOOK_URL", f"hooks.example/{SECRET}")
    with pytest.raises(UserError) as refused:
        load_settings(PipelineSettings)
    assert str(refused.value).startswith("setting ALERT_WEBHOOK_URL (environment or .env): ")
    assert SECRET not in str(refused.value)


def test_what_is_told_says_which_windows_and_is_short() -> None:
    ranged = {RANGE_START_TAG: KEY, RANGE_END_TAG: "2025-02-02T17:00+0900"}
    text = failure_text("upbit", "build_windows", ranged, "1234567890", "two\nlines " + "and more " * 100)
    windows = f"{KEY} to 2025-02-02T17:00+0900"
    assert text.startswith(
        f"CryptoStream (upbit): build_windows failed for {windows}, run 12345678: two lines"
    )
    assert len(text) < 600
    assert failure_text("upbit", "market", {}, "12345678", "no") == (
        "CryptoStream (upbit): market failed, run 12345678: no"
    )
    assert failure_text("upbit", "j", {PARTITION_TAG: KEY}, "1", f"raw_orderbook: {KEY}: no") == (
        f"CryptoStream (upbit): j failed for {KEY}, run 1: raw_orderbook: no"
    )
