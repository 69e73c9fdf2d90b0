"""The check `fresh`, and the sensor that keeps asking it. What fresh means is in `warehouse/freshness.py`."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import orjson
from dagster import (
    AssetCheckEvaluation,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetKey,
    DagsterInstance,
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
    Newest,
    explain,
    is_fresh,
    lag_of,
    newest_windows,
)
from cryptostream_dagster.webhook import post

CHECK = "fresh"
ASSET = "ohlc_5m_ticker"

_LOOK_EVERY_S = 30
# Evaluations live in the event log for ever: what has not changed is said again only now and then.
_REPEAT_AFTER = timedelta(minutes=30)


def build_check() -> AssetChecksDefinition:
    """Return the check; about the asset as a whole, not about a window of it."""

    @asset_check(
        asset=ASSET,
        name=CHECK,
        description=(
            f"The newest window that is complete, and of which at least {ENOUGH_LISTENED:.0%} was listened "
            f"to, ended at most {STALE_AFTER / timedelta(minutes=1):.0f} minutes ago. Looked at twice a "
            "minute."
        ),
        op_tags={"dagster/priority": "-1"},
    )
    def fresh(platform: ResourceParam[Platform]) -> AssetCheckResult:
        with explained("Postgres"):
            seen = _look(platform)
        return AssetCheckResult(passed=seen.passed, metadata=seen.metadata)

    return fresh


def build_sensor(settings: PipelineSettings) -> SensorDefinition:
    """Return the sensor; running unless somebody stops it. It starts no run: looking is all it does."""

    @sensor(
        name="freshness",
        minimum_interval_seconds=_LOOK_EVERY_S,
        default_status=DefaultSensorStatus.RUNNING,
        description=(
            f"Looks twice a minute whether {ASSET} is fresh, and tells its check `{CHECK}`; where there is a "
            "webhook for alerts, it is told when that turns."
        ),
    )
    def freshness(
        context: SensorEvaluationContext, platform: ResourceParam[Platform]
    ) -> SensorResult | SkipReason:
        if settings.missing:
            return SkipReason(settings.missing)
        seen = _look(platform)
        passed, said = seen.passed, seen.metadata["detail"]
        if seen.newest.began is None:
            return SkipReason("the catalog knows of no lake yet")
        last, this = _Told.read(context.cursor), _Told.of(passed, context.instance)
        if last is not None and not this.is_news(last):
            return SkipReason(said)
        if settings.alert_webhook_url and last is not None and last.passed != passed:
            text = (
                f"CryptoStream ({settings.source}): {ASSET} is {'fresh again' if passed else 'stale'}: {said}"
            )
            if refused := post(settings.alert_webhook_url, text):
                context.log.warning(f"not sent, {refused}: {text}")
        evaluation = AssetCheckEvaluation(AssetKey(ASSET), CHECK, passed, seen.metadata)
        return SensorResult(asset_events=[evaluation], cursor=this.cursor)

    return freshness


class _Seen(NamedTuple):
    """What was found: the windows, whether they are fresh, and what people see of that."""

    newest: Newest
    passed: bool
    metadata: dict[str, Any]


def _look(platform: Platform) -> _Seen:
    now = datetime.now(UTC)
    with platform.connect() as connection:
        newest = newest_windows(connection, now)
    lag = lag_of(newest, now)
    return _Seen(
        newest,
        is_fresh(newest, now),
        {
            "detail": explain(newest, now, platform.settings.zone),
            **({"lag_s": round(lag.total_seconds(), 1)} if lag is not None else {}),
        },
    )


@dataclass(frozen=True, slots=True)
class _Told:
    """What the check was told, as the sensor remembers it.

    Attributes:
        passed: The answer.
        at: When, seconds since the epoch.
        materialized_at: When a window of the asset was materialized last; 0: never.
    """

    passed: bool
    at: float
    materialized_at: float

    @classmethod
    def of(cls, passed: bool, instance: DagsterInstance) -> "_Told":
        latest = instance.get_latest_materialization_event(AssetKey(ASSET))
        return cls(passed, datetime.now(UTC).timestamp(), 0.0 if latest is None else latest.timestamp)

    @classmethod
    def read(cls, cursor: str | None) -> "_Told | None":
        try:
            return cls(**orjson.loads(cursor)) if cursor else None
        except (TypeError, ValueError):
            return None  # another version of this program wrote it: what was told then is not known

    @property
    def cursor(self) -> str:
        return orjson.dumps(self).decode()

    def is_news(self, last: "_Told") -> bool:
        """Whether the check is to be told again.

        What has not turned is said again after a materialization, because the UI shows a check that is older
        than that as one that was not evaluated; and now and then.
        """
        return (
            self.passed != last.passed
            or self.materialized_at != last.materialized_at
            or self.at >= last.at + _REPEAT_AFTER.total_seconds()
        )
