"""The definitions as text, one line a thing, so that nothing changes unseen: `definitions_snapshot.txt`.

python -m tests.definitions_snapshot   # writes it anew; the difference is what a review looks at
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from pydantic import SecretStr

from cryptostream_dagster.definitions import build_defs
from cryptostream_dagster.settings import PipelineSettings

FILE = Path(__file__).with_name("definitions_snapshot.txt")


def snapshot() -> str:
    """Describe the definitions as they are with the settings' defaults, and a webhook for alerts."""
    settings = PipelineSettings(_env_file=None, alert_webhook_url=SecretStr("http://127.0.0.1"))
    return "\n".join(_lines(build_defs(settings))) + "\n"


def _lines(defs: dg.Definitions) -> Iterator[str]:
    repository = defs.get_repository_def()
    graph = repository.asset_graph
    for key in sorted(graph.get_all_asset_keys()):
        yield from _asset(graph, key)
    for job in sorted(repository.get_all_jobs(), key=lambda job: job.name):
        if job.name.startswith("__"):
            continue
        layer = job.asset_layer
        yield f"job {job.name}"
        yield f"    assets: {_names(key.to_user_string() for key in layer.selected_asset_keys)}"
        yield f"    checks: {_names(key.to_user_string() for key in layer.asset_graph.asset_check_keys)}"
        yield f"    executor: {job.executor_def.name}"
    for schedule in sorted(repository.schedule_defs, key=lambda schedule: schedule.name):
        yield f"schedule {schedule.name}: {schedule.default_status.value}"
        yield f"    when: {schedule.cron_schedule} in {schedule.execution_timezone}"
        yield f"    job: {schedule.job_name}"
    for sensor in sorted(repository.sensor_defs, key=lambda sensor: sensor.name):
        yield f"sensor {sensor.name}: {sensor.default_status.value}"
        yield f"    every: {sensor.minimum_interval_seconds} s"
        yield f"    jobs: {_names(target.job_name for target in sensor.targets)}"
    yield f"resources: {_names(repository.get_top_level_resources())}"


def _asset(graph: AssetGraph, key: dg.AssetKey) -> Iterator[str]:
    node = graph.get(key)
    yield f"asset {key.to_user_string()}"
    yield f"    from: {_names(parent.to_user_string() for parent in node.parent_keys)}"
    yield f"    group: {node.group_name}"
    yield f"    kinds: {_names(tag.removeprefix('dagster/kind/') for tag in node.tags if 'kind' in tag)}"
    yield f"    owners: {_names(node.owners)}"
    yield f"    partitions: {_partitions(node.partitions_def)}"
    policy = node.backfill_policy
    yield f"    backfill: {policy.policy_type.value if policy else 'none'}" + (
        f", {policy.max_partitions_per_run} a run" if policy and policy.max_partitions_per_run else ""
    )
    schema = node.metadata.get("dagster/column_schema")
    if schema is not None:
        yield f"    columns: {len(schema.columns)}"
    for check in sorted(node.check_keys, key=lambda check: check.name):
        spec = graph.get_check_spec(check)
        yield f"    check {check.name}" + (": partitioned" if spec.partitions_def else "")


def _partitions(partitions: dg.PartitionsDefinition[str] | None) -> str:
    if isinstance(partitions, dg.TimeWindowPartitionsDefinition):
        return f"{partitions.cron_schedule} in {partitions.timezone}, {partitions.fmt}"
    return "none" if partitions is None else type(partitions).__name__


def _names(names: object) -> str:
    return ", ".join(sorted(names)) or "none"  # type: ignore[call-overload]


if __name__ == "__main__":
    FILE.write_text(snapshot(), encoding="utf-8")
