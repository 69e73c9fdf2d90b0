"""`cryptostream status`: what is so is shown, what needs a person is said, unknown is called unknown."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cryptostream_dagster.catalog.outcome import note_failure
from cryptostream_dagster.catalog.sync import sync
from cryptostream_dagster.overview import Asked, Claim, Overview, Service, WindowState, find_troubles, look
from cryptostream_dagster.overview_screen import as_json, as_screen
from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.warehouse.freshness import Newest
from cryptostream_dagster.window import Window
from ingest_services import monitor
from ingest_services.cli import build_app
from tests.lake_builder import Row, covered_minutes, frame
from tests.pipeline import Pipeline, open_pipeline, pipeline_settings
from tests.postgres_fixture import TestDatabase

NOW = datetime.now(UTC)
LAST = Window.last_ended(NOW)


@pytest.fixture
def last() -> Window:
    """The newest window that has ended: when the test runs, not when it was collected."""
    return Window.last_ended(datetime.now(UTC))


@pytest.fixture
def pipeline(tmp_path: Path, database: TestDatabase, last: Window) -> Iterator[Pipeline]:
    """Three windows up to the present, the last one built; ETH was not listened to."""
    with open_pipeline(tmp_path, database) as opened:
        opened.lake.since = last.shifted(-2).start
        windows = [last.shifted(n) for n in (-2, -1, 0)]
        beats = covered_minutes(windows[0].start, 15, "BTC") + covered_minutes(windows[2].start, 1, "ETH")
        opened.lake.commit([book(window) for window in windows], beats)
        opened.lake.through(last.end)
        for window in windows:
            opened.build(window)
        # The lake of the builder begins in 2025; what is before these windows is not this test's.
        opened.settings = opened.settings.model_copy(update={"partitions_start": key(windows[0])})
        yield opened


def book(window: Window, seconds: float = 5) -> Row:
    tms = window.start_ms + round(seconds * 1000)
    return Row(frame("BTC", tms, [(101, 99, 1, 1)]), (tms + 50) * 1000)


def key(window: Window) -> str:
    return window.start.strftime("%Y-%m-%dT%H:%M%z")


def screen(overview: Overview, settings: PipelineSettings) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(as_screen(overview, find_troubles(overview, settings), settings.zone))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def in_one_line(shown: str) -> str:
    return " ".join(shown.split())


def run_status(settings: PipelineSettings, *arguments: str) -> tuple[int, dict[str, Any]]:
    environment = {
        name.upper(): str(getattr(settings, name))
        for name in ("raw_url", "parquet_url", "source", "partitions_start", "postgres_host", "postgres_port")
    }
    environment |= {"POSTGRES_USER": settings.postgres_user or "", "POSTGRES_DB": settings.postgres_db or ""}
    environment |= {"POSTGRES_PASSWORD": settings.postgres_password.get_secret_value()}
    done = CliRunner().invoke(build_app(), ["status", "--json", *arguments], env=environment)
    return done.exit_code, json.loads(done.stdout)


def test_one_screen_says_how_everything_is(pipeline: Pipeline, last: Window) -> None:
    overview = look(pipeline.settings, Asked(), datetime.now(UTC))
    assert find_troubles(overview, pipeline.settings) == []
    shown = screen(overview, pipeline.settings)
    zone = pipeline.settings.zone
    for text in (
        "SIMULATED DATA, not a market",
        "producers unknown",
        "Dagster unknown say where: --dagster URL",
        f"orderbook/0 {last.end.astimezone(zone):%H:%M}",
        "not built yet 0 complete windows",
        "worst: ETH 20 %",
        "nothing needs a person",
    ):
        assert text in in_one_line(shown)
    assert [line.split()[1:5] for line in shown.splitlines() if " 1 " in line and "60 %" in line] == [
        ["1", "1", "60", "%"]
    ]
    assert len(shown.splitlines()) < 25


def test_the_exit_status_says_whether_something_needs_a_person(pipeline: Pipeline, last: Window) -> None:
    code, told = run_status(pipeline.settings)
    assert (code, told["troubles"], told["unbuilt"]) == (0, [], 0)
    assert told["windows"][0]["start"] == last.start.isoformat()
    health = {"failed": ("the disk is full",)}
    served = monitor.serve(monitor.make_registry(), lambda: monitor.Health(**health), 0)
    try:
        code, told = run_status(pipeline.settings, "--consumer-port", str(served.port))
    finally:
        served.close()
    assert (code, told["troubles"]) == (1, [f"consumer :{served.port}: failed: the disk is full"])


def test_windows_that_failed_or_wait_are_shown_with_their_reason(pipeline: Pipeline, last: Window) -> None:
    failing, grown = last.shifted(-1), last.shifted(-2)
    pipeline.lake.commit([book(failing, 9), book(grown, 9)])
    sync(pipeline.connection, pipeline.lake.store)
    note_failure(pipeline.connection, failing, "raw_orderbook", "a run", "the disk is full")
    note_failure(pipeline.connection, last, "raw_orderbook", "a run", "it is built all the same")
    overview = look(pipeline.settings, Asked(), datetime.now(UTC))
    assert (overview.unbuilt, overview.failed_windows) == (2, 1)
    shown = screen(overview, pipeline.settings)
    assert "raw_orderbook the disk is full" in in_one_line(shown)
    assert "has grown since" in shown
    assert "windows that failed and are not built: 1" in shown
    pipeline.connection.execute(
        "UPDATE lake_window SET gone_path = 'x' WHERE window_start = %s", (grown.start,)
    )
    overview = look(pipeline.settings, Asked(), datetime.now(UTC))
    assert (overview.unbuilt, overview.frozen) == (1, 1)
    assert "because raw objects of them are gone: 1" in screen(overview, pipeline.settings)


def test_what_does_not_answer_is_not_well_and_the_rest_is_unknown(
    tmp_path: Path, database: TestDatabase
) -> None:
    settings = pipeline_settings(tmp_path, database)
    overview = look(settings, Asked([[1]], [[]], "http://127.0.0.1:1"), NOW)
    assert [(service.name, service.well) for service in overview.services] == [
        ("producer :1", False),
        ("consumer", None),
        ("Dagster", False),
        ("lake", False),
        ("warehouse", False),
    ]
    shown = screen(overview, settings)
    assert "nothing was ever written to it" in shown
    assert "it has no tables yet" in shown
    assert "claimed through unknown" in in_one_line(shown)
    assert "windows: unknown" in shown
    assert json.loads(as_json(overview, []))["windows"] is None


def test_each_thing_that_needs_a_person_is_said(tmp_path: Path, database: TestDatabase) -> None:
    settings = pipeline_settings(tmp_path, database)

    def troubles(**seen: Any) -> list[str]:
        return find_troubles(Overview(NOW, "upbit", "file:///lake", **seen), settings)

    old, fresh = NOW - timedelta(minutes=6), NOW - timedelta(minutes=1)
    assert troubles() == []
    assert troubles(services=[Service("producer", None, "?"), Service("consumer", True, "ok")]) == []
    assert troubles(claims=[Claim("orderbook", 1, 0, fresh, fresh)]) == []
    assert troubles(claims=[Claim("orderbook", 1, 0, old, old)]) == [
        "partition 0 of topic orderbook: no consumer has claimed anything for 6 min"
    ]
    assert troubles(claims=[Claim("orderbook", 1, 0, None, None)]) == [
        "partition 0 of topic orderbook: no consumer has claimed anything yet"
    ]
    assert troubles(newest=Newest(None, LAST, LAST)) == []
    (stale,) = troubles(newest=Newest(None, LAST.shifted(-9), LAST.shifted(-9)))
    assert "none was built since" in stale
    (deaf,) = troubles(newest=Newest(None, LAST, None))
    assert "are the producers running?" in deaf
    window = WindowState(LAST.start, 1, 1, None, 1, NOW, True, False, None)
    assert troubles(newest=Newest(fresh, LAST, None), windows=[window]) == []  # a new lake
    (silent,) = troubles(newest=Newest(None, LAST, LAST), windows=[replace(window, coverage=0.0)])
    assert silent.startswith("nobody listened in ")
    assert troubles(unbuilt=1, oldest_unbuilt=LAST.start) == []  # its turn comes
    (unbuilt,) = troubles(unbuilt=3, oldest_unbuilt=LAST.shifted(-4).start)
    assert unbuilt.startswith("complete windows that are not built: 3, the oldest")
