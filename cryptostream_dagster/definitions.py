"""The code location: assets, checks, jobs, schedules, sensor and the resource, composed in one place.

`build_defs` is what tests and tools compose; `defs` is what `dagster dev` loads, with the settings of the
environment. Loading needs no service and no setting; what a run will miss is said at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from dagster import (
    BetaWarning,
    Definitions,
    PreviewWarning,
    definitions,
    get_dagster_logger,
    in_process_executor,
    with_source_code_references,
)

from cryptostream_dagster import alerts, crosscheck, freshness
from cryptostream_dagster.assets.market import build_market_job, build_market_sensor, market
from cryptostream_dagster.assets.ohlc_5m_ticker import ohlc_5m_ticker
from cryptostream_dagster.assets.orderbook_daily import orderbook_daily
from cryptostream_dagster.assets.orderbook_features_5m import orderbook_features_5m
from cryptostream_dagster.assets.orderbook_parquet import orderbook_parquet
from cryptostream_dagster.assets.raw_orderbook import raw_orderbook
from cryptostream_dagster.assets.verdict import build_verdict
from cryptostream_dagster.checks import build_checks
from cryptostream_dagster.daily_schedule import build_daily_schedule
from cryptostream_dagster.housekeeping import build_housekeeping
from cryptostream_dagster.jobs import build_daily_job, build_job
from cryptostream_dagster.partitions import day_partitions, window_partitions
from cryptostream_dagster.resources import Platform
from cryptostream_dagster.schedules import build_schedule
from cryptostream_dagster.sensors import build_sensor
from cryptostream_dagster.settings import PipelineSettings
from ingest_services.settings import load_settings


def build_defs(overrides: PipelineSettings | None = None, **resources: Any) -> Definitions:
    """Compose the definitions.

    Args:
        overrides: Settings to use instead of the environment's.
        **resources: Resources to use instead of our own, by name.

    Raises:
        UserError: If a setting is malformed.
    """
    with warnings.catch_warnings():
        # We know which parts of Dagster are young; nobody who starts it needs to read of it each time.
        for category in (BetaWarning, PreviewWarning):
            warnings.simplefilter("ignore", category)
        return _compose(overrides or load_settings(PipelineSettings), resources)


def _compose(settings: PipelineSettings, resources: Mapping[str, Any]) -> Definitions:
    partitions = window_partitions(settings)
    raw = raw_orderbook(partitions)
    parquet = orderbook_parquet(partitions, settings, raw)
    candles = ohlc_5m_ticker(partitions, parquet)
    features = orderbook_features_5m(partitions, parquet, candles)
    days = day_partitions(settings)
    fresh, agree = freshness.build_check(), crosscheck.build_check()
    job, daily_job, cross_check = build_job(fresh), build_daily_job(), crosscheck.build_job(agree)
    market_job = build_market_job()
    housekeeping, every_six_hours = build_housekeeping(settings)
    return Definitions(
        assets=with_source_code_references(
            [
                raw,
                parquet,
                candles,
                features,
                orderbook_daily(days, settings, parquet),
                crosscheck.exchange_candles(),
                market(),
            ]
        ),
        asset_checks=[
            *build_checks(partitions),
            build_verdict(partitions, candles, [features]),
            fresh,
            agree,
        ],
        jobs=[
            job,
            daily_job,
            cross_check,
            market_job,
            housekeeping,
        ],
        schedules=[
            build_schedule(job, partitions, settings),
            build_daily_schedule(daily_job, days, settings),
            crosscheck.build_schedule(cross_check, settings),
            every_six_hours,
        ],
        sensors=[
            build_sensor(job, settings),
            freshness.build_sensor(settings),
            build_market_sensor(market_job, settings),
            *alerts.build_sensors(settings),
        ],
        resources={"platform": Platform(settings), **resources},
        executor=in_process_executor,
    )


@definitions
def defs() -> Definitions:
    """Compose them with the environment's settings when Dagster loads them, and say what a run will miss.

    Not when this module is imported: who brings settings of his own is not told what the environment lacks.
    """
    settings = load_settings(PipelineSettings)
    if settings.missing:
        get_dagster_logger("cryptostream").warning(settings.missing)
    return build_defs(settings)
