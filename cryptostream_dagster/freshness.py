"""The check `fresh`, and the sensor that keeps asking it. What fresh means is in `warehouse/freshness.py`."""

from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from dagster import (
    AssetCheckEvaluation,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetKey,
    DefaultSensorStatus,
    ResourceParam,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    asset_check,
    sensor,
)

from cryptostream_dagster.assets.shell import explained
from cryptostream_dagster.resources import Platform
from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.warehouse.freshness import (
    ENOUGH_LISTENED,
    STALE_AFTER,
    explain,
    is_fresh,
    lag_of,
    newest_windows,
)
from cryptostream_dagster.webhook import post

CHECK = "fresh"
ASSET = "ohlc_5m_ticker"

_LOOK_EVERY_S = 60
# Evaluations live in the event log for ever: what has not changed is said again only now and then.
_REPEAT_AFTER = timedelta(minutes=30)


def build_check() -> AssetChecksDefinition:
    """Return the check; about the asset as a whole, not about a window of it."""

    @asset_check(
        asset=ASSET,
        name=CHECK,
        description=(
            f"The newest window that is complete, and of which at least {ENOUGH_LISTENED:.0%} was listened "
            f"to, ended at most {STALE_AFTER / timedelta(minutes=1):.0f} minutes ago. Looked at every minute."
        ),
        op_tags={"dagster/priority": "-1"},
    )
    def fresh(platform: ResourceParam[Platform]) -> AssetCheckResult:
        with explained("Postgres"):
            passed, metadata = _look(platform)
        return AssetCheckResult(passed=passed, metadata=metadata)

    return fresh


def build_sensor(settings: PipelineSettings) -> SensorDefinition:
    """Return the sensor; running unless somebody stops it. It starts no run: looking is all it does."""

    @sensor(
        name="freshness",
        minimum_interval_seconds=_LOOK_EVERY_S,
        default_status=DefaultSensorStatus.RUNNING,
        description=(
            f"Looks every minute whether {ASSET} is fresh, and tells its check `{CHECK}`; where there is a "
            "webhook for alerts, it is told when that turns."
        ),
    )
    def freshness(
        context: SensorEvaluationContext, platform: ResourceParam[Platform]
    ) -> SensorResult | SkipReason:
        if settings.missing:
            return SkipReason(settings.missing)
        now = datetime.now(UTC)
        passed, metadata = _look(platform)
        said = str(metadata["detail"])
        if not _is_news(context.cursor, passed, now):
            return SkipReason(said)
        if settings.alert_webhook_url and _has_turned(context.cursor, passed):
            text = (
                f"CryptoStream ({settings.source}): {ASSET} is {'fresh again' if passed else 'stale'}: {said}"
            )
            if refused := post(settings.alert_webhook_url, text):
                context.log.warning(f"not sent, {refused}: {text}")
        evaluation = AssetCheckEvaluation(AssetKey(ASSET), CHECK, passed, metadata)
        return SensorResult(asset_events=[evaluation], cursor=_cursor(passed, now))

    return freshness


def _look(platform: Platform) -> tuple[bool, dict[str, Any]]:
    """Return whether the asset is fresh, and what people see of that."""
    now = datetime.now(UTC)
    with platform.connect() as connection:
        newest = newest_windows(connection, now)
    lag = lag_of(newest, now)
    return is_fresh(newest, now), {
        "detail": explain(newest, now, platform.settings.zone),
        **({"lag_s": round(lag.total_seconds(), 1)} if lag is not None else {}),
    }


def _is_news(cursor: str | None, passed: bool, now: datetime) -> bool:
    if not cursor or _has_turned(cursor, passed):
        return True
    return bool(now.timestamp() >= orjson.loads(cursor)["at"] + _REPEAT_AFTER.total_seconds())


def _has_turned(cursor: str | None, passed: bool) -> bool:
    return bool(cursor) and orjson.loads(cursor or "")["passed"] != passed


def _cursor(passed: bool, now: datetime) -> str:
    return orjson.dumps({"passed": passed, "at": now.timestamp()}).decode()
