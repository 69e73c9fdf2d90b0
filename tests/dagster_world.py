"""A Dagster instance, a lake and a database of a test's own, and the definitions on them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg

from cryptostream_dagster.definitions import build_defs
from cryptostream_dagster.jobs import RANGE_END_TAG, RANGE_START_TAG
from cryptostream_dagster.partitions import window_partitions
from cryptostream_dagster.resources import Platform
from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.window import Window
from tests.lake_builder import LakeBuilder, Row, frame, instant, ms
from tests.pipeline import pipeline_settings
from tests.postgres_fixture import TestDatabase

START = instant("2025-02-02 16:05:00")
WINDOW = Window.at(START)
KEYS = ["2025-02-02T16:05+0900", "2025-02-02T16:10+0900", "2025-02-02T16:15+0900"]


def book(seconds: float, mid: float, ticker: str = "BTC") -> Row:
    tms = ms(START) + round(seconds * 1000)
    return Row(frame(ticker, tms, [(mid + 1, mid - 1, 1, 1)]), (tms + 50) * 1000)


class World:
    """A Dagster instance on a folder of its own, a lake and a database."""

    def __init__(self, folder: Path, settings: PipelineSettings, instance: dg.DagsterInstance) -> None:
        self.settings = settings
        self.lake = LakeBuilder(folder / "raw", since=START)
        self.instance = instance
        self.renew()
        self.partitions = window_partitions(settings)

    @property
    def dsn(self) -> str:
        ours = self.settings
        login = f"{ours.postgres_user}:{ours.postgres_password.get_secret_value()}"
        return f"postgresql://{login}@{ours.postgres_host}:{ours.postgres_port}/{ours.postgres_db}"

    def renew(self) -> None:
        """Load the code location again: nothing of the old one is remembered."""
        self.defs = build_defs(self.settings)
        self.platform = Platform(self.settings)

    def run(self, first: str, last: str | None = None, **tags: str) -> dg.ExecuteInProcessResult:
        """Run the job over a window, or over a range of them."""
        job = self.defs.resolve_job_def("build_windows")
        if last is None:
            return job.execute_in_process(
                instance=self.instance, partition_key=first, tags=tags, raise_on_error=False
            )
        tags = {RANGE_START_TAG: first, RANGE_END_TAG: last, **tags}
        return job.execute_in_process(instance=self.instance, tags=tags, raise_on_error=False)

    def built(self, asset: str) -> set[str]:
        """The partitions that Dagster takes for materialized."""
        return set(self.instance.get_materialized_partitions(dg.AssetKey(asset)))

    def materialization(self, asset: str, key: str) -> dict[str, Any]:
        records = self.instance.fetch_materializations(
            dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[key]), limit=1
        ).records
        materialization = records[0].asset_materialization
        assert materialization is not None
        version = (materialization.tags or {})["dagster/data_version"]
        return {"data_version": version, **{k: v.value for k, v in materialization.metadata.items()}}

    def query(self, text: str) -> list[tuple[Any, ...]]:
        with self.platform.connect() as connection:
            return connection.execute(text).fetchall()  # type: ignore[arg-type]

    def tick(self) -> list[dg.RunRequest]:
        sensor = self.defs.resolve_sensor_def("reconcile")
        context = dg.build_sensor_context(
            instance=self.instance, definitions=self.defs, resources={"platform": self.platform}
        )
        return list(sensor.evaluate_tick(context).run_requests or [])


@contextmanager
def open_world(folder: Path, database: TestDatabase, **overrides: Any) -> Iterator[World]:
    """Open a world in an empty folder; settings may be other than a test usually wants them."""
    home = folder / "dagster"
    home.mkdir()
    settings = pipeline_settings(folder, database, schedule_grace_s=0, **overrides)
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        yield World(folder, settings, instance)


@contextmanager
def open_postgres_world(folder: Path, database: TestDatabase) -> Iterator[World]:
    """Open a world whose Dagster instance is on Postgres, as in production."""
    home = folder / "dagster"
    home.mkdir()
    storage = {
        "hostname": database.host,
        "port": database.port,
        "username": database.user,
        "password": database.password,
        "db_name": database.name,
        "scheme": "postgresql+psycopg2",
    }
    config = {"storage": {"postgres": {"postgres_db": storage}}, "telemetry": {"enabled": False}}
    (home / "dagster.yaml").write_text(json.dumps(config), encoding="utf-8")
    with dg.DagsterInstance.from_config(str(home)) as instance:
        yield World(folder, pipeline_settings(folder, database), instance)
