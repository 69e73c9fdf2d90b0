"""Neither dead producers nor a backfill make the numbers look new."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from pydantic import SecretStr

from cryptostream_dagster.definitions import build_defs
from cryptostream_dagster.resources import Platform
from cryptostream_dagster.window import Window
from tests.lake_builder import Row, covered_minutes, frame, ms
from tests.pipeline import Pipeline, open_pipeline
from tests.postgres_fixture import TestDatabase
from tests.webhook_server import open_webhook


@pytest.fixture
def pipeline(tmp_path: Path, database: TestDatabase) -> Iterator[Pipeline]:
    with open_pipeline(tmp_path, database) as opened:
        yield opened


class Watch:
    """The sensor, tick by tick."""

    def __init__(self, pipeline: Pipeline, instance: dg.DagsterInstance) -> None:
        self.defs = build_defs(pipeline.settings)
        self.platform = Platform(pipeline.settings)
        self.instance = instance
        self.cursor: str | None = None

    def tick(self) -> tuple[bool, str] | None:
        """Return what is told to the check, if anything is."""
        context = dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            definitions=self.defs,
            resources={"platform": self.platform},
        )
        told = self.defs.resolve_sensor_def("freshness").evaluate_tick(context)
        self.cursor = told.cursor or self.cursor
        assert not told.run_requests
        if not told.asset_events:
            return None
        (event,) = told.asset_events
        assert isinstance(event, dg.AssetCheckEvaluation)
        assert (event.asset_key.to_user_string(), event.check_name) == ("ohlc_5m_ticker", "fresh")
        return event.passed, str(event.metadata["detail"].value)


def test_only_a_new_window_that_was_listened_to_is_fresh(pipeline: Pipeline) -> None:
    last = Window.last_ended(datetime.now(UTC))
    lake = pipeline.lake
    with dg.DagsterInstance.ephemeral() as instance:
        watch = Watch(pipeline, instance)
        assert watch.tick() is None  # nobody knows of a lake yet

        # An hour ago somebody listened; then the producers died. Windows are complete all the same.
        lake.commit(heartbeats=covered_minutes(last.shifted(-12).start, 5, "BTC"))
        lake.through(last.end)
        pipeline.build(last.shifted(-12))
        for n in (-1, 0):
            pipeline.build(last.shifted(n))
        assert (
            pipeline.value("SELECT max(coverage_ratio) FROM coverage_5m WHERE window_start = %s", last.start)
            == 0
        )
        red = watch.tick()
        assert red is not None
        assert not red[0]
        assert red[1].endswith("windows are built, but nobody listens: are the producers running?")

        # A backfill of what is old, covered or not, changes nothing.
        lake.commit(heartbeats=covered_minutes(last.shifted(-20).start, 5, "BTC"))
        for n in (-20, -19):
            pipeline.build(last.shifted(n))
        assert watch.tick() is None  # red as before: not said again
        # But after a materialization it is: until then the UI shows the check as not evaluated.
        instance.report_runless_asset_event(dg.AssetMaterialization("ohlc_5m_ticker"))
        again = watch.tick()
        assert again is not None
        assert not again[0]

        # What they heard comes late: now it is known that somebody listened. Books of tickers to which nobody
        # was subscribed say nothing of that.
        at = ms(last.start) + 1000
        strays = [Row(frame(ticker, at, [(2, 1, 1, 1)]), at * 1000 + 50) for ticker in ("ETH", "XRP")]
        lake.commit(strays, covered_minutes(last.start, 5, "BTC"))
        pipeline.build(last)
        green = watch.tick()
        assert green is not None
        assert green[0]
        assert watch.tick() is None

        # A cursor that another version of this program left behind is no reason to fall silent.
        for cursor in ('{"passed": true, "at": 1}', "fresh", "[]"):
            watch.cursor = cursor
            again = watch.tick()
            assert again is not None
            assert again[0]


def test_that_it_turned_is_told_to_a_webhook(pipeline: Pipeline) -> None:
    last = Window.last_ended(datetime.now(UTC))
    pipeline.lake.through(last.end)
    pipeline.seal(last)
    with open_webhook() as webhook, dg.DagsterInstance.ephemeral() as instance:
        pipeline.settings = pipeline.settings.model_copy(update={"alert_webhook_url": SecretStr(webhook.url)})
        watch = Watch(pipeline, instance)
        watch.tick()
        assert webhook.told == []  # what was before is not known: nothing has turned
        pipeline.lake.commit(heartbeats=covered_minutes(last.start, 5, "BTC"))
        pipeline.build(last)
        watch.tick()
        watch.tick()
        # Said to the check again after every window, and to people once.
        instance.report_runless_asset_event(dg.AssetMaterialization("ohlc_5m_ticker"))
        assert watch.tick() is not None
        (told,) = webhook.told
        assert told.startswith("CryptoStream (simulator): ohlc_5m_ticker is fresh again: the newest covered")


def test_a_person_can_ask_for_it_in_a_run(pipeline: Pipeline) -> None:
    key = dg.AssetCheckKey(dg.AssetKey("ohlc_5m_ticker"), "fresh")
    job = build_defs(pipeline.settings).resolve_job_def("__ASSET_JOB")
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.get_subset(asset_check_selection={key}).execute_in_process(instance=instance)
        (evaluation,) = result.get_asset_check_evaluations()
        assert (evaluation.passed, evaluation.partition) == (False, None)
        record = instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key]
        assert record.status.value == "FAILED"
