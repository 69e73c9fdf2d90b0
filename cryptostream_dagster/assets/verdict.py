"""`every_window_built`: the check by which a run over a range fails for the windows that it could not build.

A step that raised would keep the steps after it from building the other windows; this one has none after it.
A window that is asked for alone fails in the step that cannot build it, and does not come here.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from dagster import (
    AssetCheckEvaluation,
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSpec,
    AssetsDefinition,
    Failure,
    Output,
    ResourceParam,
    TimeWindowPartitionsDefinition,
    multi_asset_check,
)

from cryptostream_dagster.assets.shell import VERDICT, describe_failed, explained
from cryptostream_dagster.partitions import window_of
from cryptostream_dagster.resources import Platform


def build_verdict(
    partitions: TimeWindowPartitionsDefinition,
    last: AssetsDefinition,
    others: Sequence[AssetsDefinition] = (),
) -> AssetChecksDefinition:
    """Return the check.

    Args:
        partitions: Of the assets.
        last: The asset that it belongs to.
        others: Assets of a run that it waits for, too.
    """
    spec = AssetCheckSpec(
        VERDICT,
        asset=last,
        additional_deps=list(others),
        description="Every window that a run over a range was asked for was built; if not, here is why not.",
        partitions_def=partitions,
    )

    @multi_asset_check(
        name=f"{last.key.to_user_string()}_{VERDICT}",
        specs=[spec],
        description=spec.description,
        op_tags={"dagster/priority": "-1"},  # nobody waits for a check
    )
    def check(context: AssetCheckExecutionContext, platform: ResourceParam[Platform]) -> Iterator[Any]:
        keys = list(context.op_execution_context.partition_keys)
        if len(keys) == 1:
            yield AssetCheckResult(passed=True, check_name=VERDICT, asset_key=last.key)
            return
        from cryptostream_dagster.catalog.outcome import failures_of_run

        with explained("Postgres"), platform.connect() as connection:
            reasons: dict[object, str] = {}
            for failure in failures_of_run(connection, context.run.run_id):
                reasons.setdefault(failure.window, f"{failure.asset}: {failure.reason}")
        failed = {}
        for key in keys:
            reason = reasons.get(window_of(partitions, key))
            if reason is not None:
                failed[key] = reason
            # As a result Dagster would record it without its partition.
            yield AssetCheckEvaluation(
                asset_key=last.key,
                check_name=VERDICT,
                passed=reason is None,
                metadata={} if reason is None else {"reason": reason},
                partition=key,
            )
        if failed:
            raise Failure(describe_failed(failed, len(keys)), allow_retries=False)
        yield Output(None, spec.get_python_identifier())

    return check
