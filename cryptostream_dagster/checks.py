"""Asset checks, one per question in `warehouse/checks/*.sql`: how many things of a window are wrong?"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dagster import (
    AssetCheckEvaluation,
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetKey,
    ResourceParam,
    TimeWindowPartitionsDefinition,
    asset_check,
)

from cryptostream_dagster.assets.shell import explained
from cryptostream_dagster.partitions import window_of
from cryptostream_dagster.resources import Platform
from cryptostream_dagster.sql import load_sql
from cryptostream_dagster.window import Window

if TYPE_CHECKING:
    import psycopg


# Mean coverage of a window that is an alarm: 1 % is three seconds, less than a producer's restart takes.
ENOUGH_COVERAGE = 0.99


@dataclass(frozen=True, slots=True)
class Question:
    """A check: its file, the asset that it is about, and what it means to people.

    Attributes:
        name: Of the check and of its `.sql` file, which returns `violations` and `detail`.
        asset: The asset.
        description: What must hold.
        severity: How bad a violation is.
    """

    name: str
    asset: str
    description: str
    severity: AssetCheckSeverity = AssetCheckSeverity.ERROR


QUESTIONS = (
    Question(
        "offsets_contiguous",
        "raw_orderbook",
        "The commits around the window follow each other without a hole, and the broker had every offset. "
        "When a missing record was received nobody knows: it counts in every window where it may have been.",
        AssetCheckSeverity.WARN,
    ),
    Question(
        "listened",
        "raw_orderbook",
        f"Mean coverage of the subscribed tickers is at least {ENOUGH_COVERAGE}, or unknown.",
        AssetCheckSeverity.WARN,
    ),
    Question("rows_add_up", "orderbook_parquet", "Sealed rows = written + duplicates + rejected."),
    Question("prices_in_order", "ohlc_5m_ticker", "low ≤ open, close ≤ high."),
    Question("books_have_candles", "ohlc_5m_ticker", "A ticker has a candle exactly if it has a book."),
)


def build_checks(partitions: TimeWindowPartitionsDefinition) -> list[AssetChecksDefinition]:
    """Return all checks."""
    return [_build_check(question, partitions) for question in QUESTIONS]


def _build_check(question: Question, partitions: TimeWindowPartitionsDefinition) -> AssetChecksDefinition:
    @asset_check(
        asset=question.asset,
        name=question.name,
        description=question.description,
        partitions_def=partitions,
    )
    def check(context: AssetCheckExecutionContext, platform: ResourceParam[Platform]) -> AssetCheckResult:
        keys = list(context.op_execution_context.partition_keys)
        results = {}
        with explained("Postgres"), platform.connect() as connection:
            for key in keys:
                results[key] = ask(connection, question, window_of(partitions, key))
        if len(keys) > 1:
            # Dagster would record the run's one result without a partition: tell it of each.
            for key, (violations, detail) in results.items():
                context.instance.report_runless_asset_event(
                    AssetCheckEvaluation(
                        asset_key=AssetKey(question.asset),
                        check_name=question.name,
                        passed=violations == 0,
                        metadata=_metadata(violations, detail),
                        severity=question.severity,
                        partition=key,
                    )
                )
        return AssetCheckResult(
            passed=not any(violations for violations, _ in results.values()),
            severity=question.severity,
            metadata=_metadata(
                sum(violations for violations, _ in results.values()),
                "; ".join(
                    f"{key}: {detail}" if len(keys) > 1 else detail
                    for key, (_, detail) in results.items()
                    if detail
                ),
            ),
        )

    return check


def ask(connection: "psycopg.Connection", question: Question, window: Window) -> tuple[int, str | None]:
    """Return how many things of a window are wrong, and which; or why it cannot be said."""
    query = load_sql("cryptostream_dagster.warehouse", question.name, "checks")
    arguments = {"start": window.start, "end": window.end, "enough": ENOUGH_COVERAGE}
    row = connection.execute(query, arguments).fetchone()
    return (0, None) if row is None else (int(row[0]), row[1])


def _metadata(violations: int, detail: str | None) -> dict[str, Any]:
    return {"violations": violations, **({"detail": detail} if detail else {})}
