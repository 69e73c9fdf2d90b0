"""Typed settings of the Dagster half, read from the environment and from `.env`.

Everything of the ingest half that says where the lake is and whose it is, and what the pipeline adds. Nothing
here is required to *load* the definitions; `missing` says what a run needs and has not got.
"""

from __future__ import annotations

import posixpath
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from ingest_services.settings import IngestSettings

PARTITION_KEY_FORMAT = "%Y-%m-%dT%H:%M%z"


class PipelineSettings(IngestSettings):
    """Settings of the assets, the sensor and the client.

    Attributes:
        parquet_url: Where Parquet goes: `file:///folder`; another scheme is only another setting.
        daily_url: Where closed days go, one file per ticker; None: beside `parquet_url`. Neither may be
            inside the other: whoever reads all of one root sees no row twice.
        postgres_host: Host of the warehouse; a run fails without it.
        postgres_port: Its port.
        postgres_user: Its user.
        postgres_password: Its password; may be empty where the server asks for none.
        postgres_db: Its database.
        partitions_start: First window, as a partition key. Dagster wants at most 100,000 partitions an asset,
            and a year has 105,120 windows.
        seal_wait_s: How long a run waits for its window to be complete; below the window's own length.
        sensor_interval_s: Least time between two ticks of the reconciling sensor.
        schedule_grace_s: How long after its end a window is left to the schedule.
        settle_s: How long a window must have been quiet before it is built by the sensor; a window that data
            never stops trickling into is built after ten times as long.
        raw_retention_days: Days after which raw data counts as expired and its windows are frozen; None: it
            is kept for ever.
        alert_webhook_url: Where failures are told, as Slack's webhooks take them; None: nowhere.
        run_retention_days: Days after which a finished run of Dagster's is deleted; what it made stays.
        duckdb_threads: Threads of one step: batches of tickers that are converted at once, and DuckDB's.
        duckdb_memory_mb: Memory of one DuckDB session, MiB; it spills to disk beyond.
    """

    parquet_url: str = "file://" + str(Path(".cryptostream/parquet").absolute())
    daily_url: str | None = None
    postgres_host: str | None = None
    postgres_port: int = Field(default=5432, ge=1, le=65535)
    postgres_user: str | None = None
    postgres_password: SecretStr = SecretStr("")
    postgres_db: str | None = None
    partitions_start: str = "2026-11-01T00:00+0900"
    seal_wait_s: float = Field(default=120.0, ge=0, lt=300)
    sensor_interval_s: int = Field(default=30, ge=1)
    schedule_grace_s: float = Field(default=60.0, ge=0)
    settle_s: float = Field(default=5.0, ge=0)
    raw_retention_days: int | None = Field(default=None, ge=1)
    alert_webhook_url: SecretStr | None = None
    run_retention_days: int = Field(default=14, ge=1)
    duckdb_threads: int = Field(default=2, ge=1)
    duckdb_memory_mb: int = Field(default=1024, ge=128)

    @field_validator("daily_url")
    @classmethod
    def _root_of_its_own(cls, value: str | None, info: ValidationInfo) -> str | None:
        parquet_url = info.data.get("parquet_url")
        if value and parquet_url and _one_holds_the_other(value, parquet_url):
            raise ValueError(
                f"must be a root of its own, neither inside PARQUET_URL={parquet_url} nor around it"
            )
        return value or None

    @field_validator("partitions_start")
    @classmethod
    def _partition_key(cls, value: str) -> str:
        try:
            start = datetime.strptime(value, PARTITION_KEY_FORMAT)
        except ValueError as error:
            raise ValueError("must look like 2026-01-01T00:00+0900") from error
        if start.timestamp() % 300:
            raise ValueError("must be the start of a 5-minute window, like 2026-01-01T00:00+0900")
        return value

    @field_validator("alert_webhook_url")
    @classmethod
    def _http(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or not value.get_secret_value():
            return None
        if not value.get_secret_value().startswith(("https://", "http://")):
            raise ValueError("must begin with https:// or http://")
        return value

    @property
    def daily_root(self) -> str | None:
        """DAILY_URL, or its default beside PARQUET_URL; None where nothing is beside it, a whole bucket."""
        if self.daily_url:
            return self.daily_url
        parts = urlsplit(self.parquet_url)
        return f"{self.parquet_url.rstrip('/')}-daily" if parts.path.strip("/") else None

    @property
    def first_window(self) -> datetime:
        """Start of the first window, an aware instant."""
        return datetime.strptime(self.partitions_start, PARTITION_KEY_FORMAT)

    @property
    def raw_retention(self) -> timedelta | None:
        """How long raw data is kept; None: for ever."""
        return None if self.raw_retention_days is None else timedelta(days=self.raw_retention_days)

    @property
    def missing(self) -> str | None:
        """Which settings a run needs and has not got, as one sentence; None if it has all."""
        names = [
            name.upper()
            for name in ("postgres_host", "postgres_user", "postgres_db")
            if not getattr(self, name)
        ]
        if not names:
            return None
        return (
            f"{', '.join(names)} not set: the assets keep their catalog and the candles in Postgres. "
            "Set POSTGRES_HOST, POSTGRES_PORT, POSTGRES_USER, POSTGRES_PASSWORD and POSTGRES_DB in the "
            "environment or in .env, or run `make dev`, which brings its own"
        )


def _one_holds_the_other(one: str, other: str) -> bool:
    """Whether two URLs are the same folder, or one of them is inside the other."""
    roots = []
    for url in (one, other):
        parts = urlsplit(url)
        folder = posixpath.normpath("/" + unquote(parts.path)).lstrip("/")
        roots.append(f"{parts.scheme}://{parts.netloc}/{folder}".rstrip("/") + "/")
    return roots[0].startswith(roots[1]) or roots[1].startswith(roots[0])
