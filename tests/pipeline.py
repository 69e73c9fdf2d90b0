"""A whole Dagster half for tests: a lake, a database of its own, and the steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from cryptostream_dagster import steps
from cryptostream_dagster.resources import Platform
from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.window import Window
from tests.lake_builder import LakeBuilder
from tests.postgres_fixture import TestDatabase


def pipeline_settings(folder: Path, database: TestDatabase, **overrides: Any) -> PipelineSettings:
    values: dict[str, Any] = {
        "raw_url": (folder / "raw").as_uri(),
        "parquet_url": (folder / "parquet").as_uri(),
        "source": "simulator",
        "partitions_start": "2025-02-01T00:00+0900",
        "seal_wait_s": 0,
        "settle_s": 0,
        **{name.lower(): value for name, value in database.environment.items()},
        **overrides,
    }
    return PipelineSettings(_env_file=None, **values)


@dataclass
class Pipeline:
    """What a test builds windows with."""

    settings: PipelineSettings
    lake: LakeBuilder
    connection: psycopg.Connection

    def build(self, window: Window) -> tuple[steps.Sealed, steps.ParquetBuilt, steps.CandlesBuilt]:
        built = (self.seal(window), self.parquet(window), self.candles(window))
        self.features(window)
        return built

    def seal(self, window: Window) -> steps.Sealed:
        return steps.seal_step(self.connection, self.lake.store, window, self.settings)

    def parquet(self, window: Window) -> steps.ParquetBuilt:
        return steps.parquet_step(self.connection, window, self.settings)

    def candles(self, window: Window) -> steps.CandlesBuilt:
        return steps.candle_step(self.connection, window, self.settings)

    def features(self, window: Window) -> steps.FeaturesBuilt:
        return steps.feature_step(self.connection, window, self.settings)

    def query(self, text: str, *arguments: object) -> list[tuple[Any, ...]]:
        return self.connection.execute(text, arguments or None).fetchall()  # type: ignore[arg-type]

    def value(self, text: str, *arguments: object) -> Any:
        ((value,),) = self.query(text, *arguments)
        return value


@contextmanager
def open_pipeline(folder: Path, database: TestDatabase, partitions: int = 1) -> Iterator[Pipeline]:
    settings = pipeline_settings(folder, database)
    lake = LakeBuilder(folder / "raw", partitions)
    with Platform(settings).connect() as connection:
        yield Pipeline(settings, lake, connection)
