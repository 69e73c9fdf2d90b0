"""Asset checks: each question of `questions.py`, asked for every window that a run builds.

One step an asset: a step costs more than most of its questions.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from dagster import (
    AssetCheckEvaluation,
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetKey,
    Output,
    ResourceParam,
    TimeWindowPartitionsDefinition,
    multi_asset_check,
)

from cryptostream_dagster.assets.shell import explained, windows_not_built
from cryptostream_dagster.partitions import window_of
from cryptostream_dagster.questions import QUESTIONS, Answer, Ground, Question
from cryptostream_dagster.resources import Platform


def build_checks(partitions: TimeWindowPartitionsDefinition) -> list[AssetChecksDefinition]:
    """Return all checks of windows."""
    return [
        _build_checks(asset, list(questions), partitions)
        for asset, questions in groupby(QUESTIONS, key=lambda question: question.asset)
    ]


def _build_checks(
    asset: str, questions: Sequence[Question], partitions: TimeWindowPartitionsDefinition
) -> AssetChecksDefinition:
    specs = {
        question.name: AssetCheckSpec(
            question.name, asset=asset, description=question.description, partitions_def=partitions
        )
        for question in questions
    }

    @multi_asset_check(
        name=f"{asset}_checks",
        specs=list(specs.values()),
        description=f"What must hold of a window of {asset}.",
        # Whatever else there is to do in the run comes first: nobody waits for a check.
        op_tags={"dagster/priority": "-1"},
        can_subset=True,
    )
    def check(context: AssetCheckExecutionContext, platform: ResourceParam[Platform]) -> Iterator[Any]:
        selected = {key.name for key in context.selected_asset_check_keys}
        asked = [question for question in questions if question.name in selected]
        keys = list(context.op_execution_context.partition_keys)
        with explained("Postgres"), platform.connect() as connection:
            ground = Ground(connection, platform.settings)
            left_out = windows_not_built(connection, context, asset)
            for key in keys:
                window = window_of(partitions, key)
                if window in left_out:
                    continue
                for question in asked:
                    yield _report(question, question.ask(ground, window), key if len(keys) > 1 else None)
        if len(keys) > 1:
            for question in asked:
                yield Output(None, specs[question.name].get_python_identifier())

    return check


def _report(question: Question, answer: Answer, partition: str | None) -> Any:
    """Return the result of a check; in a run of many windows, with the window that it is about.

    There Dagster would record a result without its partition.
    """
    said: dict[str, Any] = {
        "passed": answer.violations == 0,
        "check_name": question.name,
        "severity": AssetCheckSeverity.WARN if question.warns else AssetCheckSeverity.ERROR,
        "metadata": {
            "violations": answer.violations,
            **({"detail": answer.detail} if answer.detail else {}),
        },
    }
    if partition is None:
        return AssetCheckResult(asset_key=question.asset, **said)
    return AssetCheckEvaluation(asset_key=AssetKey(question.asset), partition=partition, **said)
