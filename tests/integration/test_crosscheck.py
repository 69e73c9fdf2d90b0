"""Our candles against the simulated exchange's own, asked over its REST API."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import websocket

from cryptostream_dagster.definitions import build_defs
from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.warehouse.schema import ensure_partitions
from cryptostream_dagster.window import Window
from ingest_services.simulator.server import Simulator
from tests.pipeline import Pipeline, open_pipeline
from tests.postgres_fixture import TestDatabase
from tests.simulator_thread import serving


def play_the_history(simulator: Simulator) -> None:
    """Listen until the present: the history is played to whoever subscribes."""
    request = [{"ticket": "x"}, {"type": "orderbook", "codes": list(simulator.exchange.feeds)}]
    with closing(websocket.create_connection(simulator.ws_url)) as connection:
        connection.send(json.dumps(request))
        while not simulator.exchange.history_done:
            connection.recv()


def write_what_is_true(pipeline: Pipeline, simulator: Simulator, now: datetime) -> None:
    """Write the candles that follow from every published book, as a pipeline that lost none would."""
    for candle in simulator.exchange.truth.candles():
        window = Window.at(datetime.fromtimestamp(int(str(candle["window_start_ms"])) / 1000, UTC))
        if window.end > now:
            continue
        ensure_partitions(pipeline.connection, window, pipeline.settings.zone)
        values = {**candle, "start": window.start, "day": window.event_date(pipeline.settings.zone)}
        pipeline.connection.execute(
            "INSERT INTO ohlc_5m_ticker (ticker, market, event_time, event_date, open_price, high_price, "
            "low_price, close_price, book_count, first_book_at, last_book_at, mean_spread_bps, "
            "coverage_ratio, version, built_at) VALUES (%(ticker)s, %(market)s, %(start)s, %(day)s, "
            "%(open)s, %(high)s, %(low)s, %(close)s, %(book_count)s, %(start)s, %(start)s, 20, 1, 1, now())",
            values,
        )


def cross_check(settings: PipelineSettings) -> tuple[bool, dict[str, object]]:
    job = build_defs(settings).resolve_job_def("cross_check")
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(instance=instance)
        assert result.success
        (evaluation,) = result.get_asset_check_evaluations()
    assert evaluation.severity == dg.AssetCheckSeverity.WARN
    return evaluation.passed, {name: value.value for name, value in evaluation.metadata.items()}


def test_candles_agree_with_the_exchanges_own_and_a_wrong_one_is_named(
    tmp_path: Path, database: TestDatabase
) -> None:
    with open_pipeline(tmp_path, database) as pipeline:
        nothing = pipeline.settings.model_copy(update={"upbit_rest_url": "http://127.0.0.1:1"})
        passed, said = cross_check(nothing)
        assert (passed, said["detail"]) == (
            True,
            "unknown: there is no candle of ours of which all was listened to",
        )

        with serving(tickers=("BTC", "ETH"), rate=0.5, seed=7, history_minutes=60) as simulator:
            now = datetime.now(UTC)
            play_the_history(simulator)
            settings = pipeline.settings.model_copy(update={"upbit_rest_url": simulator.rest_url})
            write_what_is_true(pipeline, simulator, now)
            passed, said = cross_check(settings)
            assert passed, said
            assert int(str(said["compared"])) >= 20
            assert str(said["detail"]).startswith(f"{said['compared']} windows of 2 tickers agree")

            # One candle of ETH is of another market's books.
            wrong = now - timedelta(minutes=20)
            pipeline.connection.execute(
                "UPDATE ohlc_5m_ticker SET low_price = low_price * 2, high_price = high_price * 2 "
                "WHERE ticker = 'ETH' AND event_time = %s",
                (Window.at(wrong).start,),
            )
            passed, said = cross_check(settings)
            assert (passed, said["violations"]) == (False, 1)
            assert str(said["detail"]).startswith("ETH: 1 windows, up to ")

            # Of a candle that may be missing books nothing is proved.
            pipeline.connection.execute(
                "UPDATE ohlc_5m_ticker SET coverage_ratio = 0.9 WHERE ticker = 'ETH' AND event_time = %s",
                (Window.at(wrong).start,),
            )
            passed, said = cross_check(settings)
            assert passed, said

        # The exchange is gone: nothing is known, and nothing is wrong.
        passed, said = cross_check(settings)
        assert (passed, said["compared"]) == (True, 0)
        assert str(said["detail"]).startswith("unknown: http://127.0.0.1:")
