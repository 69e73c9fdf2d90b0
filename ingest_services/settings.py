"""Typed settings of the ingest half, read from the environment and from `.env`.

Every variable stands in the README's settings table. Belongs here: values that differ between machines.
Does not belong here: who collects what (`config.py`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from ingest_services.errors import UserError

PACKAGED_CONF = Path(__file__).parent / "conf"
# host:port; an IPv6 address stands in brackets.
_BROKER = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):([0-9]{1,5})")
_MAX_PORT = 65535


class IngestSettings(BaseSettings):
    """Settings of producers, consumers and everything that reads the raw lake.

    Attributes:
        source: Whose data this is; written into `lake.json`, and a lake of another source is refused.
        market_time_zone: Zone of paths and of what people read; code works in UTC instants.
        kafka_bootstrap: Brokers, `host:port` separated by commas.
        upbit_ws_url: The exchange's WebSocket endpoint.
        upbit_rest_url: The exchange's REST endpoint.
        depth: Order-book levels per side to subscribe to.
        raw_url: The raw lake: `file:///folder` or `gs://bucket/prefix`.
        compression: Of raw objects.
        lateness_s: Seconds after a minute's end at which the minute is cut.
        memory_budget_mb: Buffered records per consumer process, MiB.
        metrics_host: Address on which `/metrics` and `/health` are served; loopback, or a container's own.
        spool_dir: Where a producer keeps frames while Kafka cannot take them.
        spool_max_mb: Bound on that, per section and process, MiB.
        producer_conf: The file that says which producer subscribes to which tickers.
        consumer_conf: The file that says which consumer reads which partition.
    """

    model_config = SettingsConfigDict(env_file=".env", env_file_encoding="utf-8", extra="ignore")

    source: Literal["upbit", "simulator"] = "upbit"
    market_time_zone: str = "Asia/Seoul"
    kafka_bootstrap: str = "127.0.0.1:9092"
    upbit_ws_url: str = "wss://api.upbit.com/websocket/v1"
    upbit_rest_url: str = "https://api.upbit.com"
    depth: Literal[1, 5, 15, 30] = 15
    raw_url: str = "file://" + str(Path(".cryptostream/raw").absolute())
    compression: Literal["zstd", "none"] = "zstd"
    lateness_s: float = Field(default=5.0, ge=0, le=60)
    memory_budget_mb: int = Field(default=128, ge=16)
    metrics_host: str = "127.0.0.1"
    spool_dir: Path = Path(".cryptostream/spool")
    spool_max_mb: int = Field(default=4096, ge=1)
    producer_conf: Path = PACKAGED_CONF / "producer.conf"
    consumer_conf: Path = PACKAGED_CONF / "consumer.conf"

    @field_validator("market_time_zone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError("is not a time zone; use a name like Asia/Seoul") from error
        return name

    @field_validator("kafka_bootstrap")
    @classmethod
    def _known_brokers(cls, servers: str) -> str:
        for server in servers.split(","):
            found = _BROKER.fullmatch(server.strip())
            if found is None or not 0 < int(found[2]) <= _MAX_PORT:
                raise ValueError(
                    f"{server.strip()!r} is not host:port; it must be like kafka1:9092, several with commas"
                )
        return servers

    @field_validator("upbit_ws_url", "upbit_rest_url")
    @classmethod
    def _known_url(cls, url: str, info: ValidationInfo) -> str:
        schemes = ("wss", "ws") if info.field_name == "upbit_ws_url" else ("https", "http")
        parts = urlsplit(url)
        if parts.scheme not in schemes or not parts.hostname or url != "".join(url.split()):
            raise ValueError(f"must be a URL like {schemes[0]}://host or {schemes[1]}://host:port")
        if parts.port == 0:
            raise ValueError("has port 0")
        return url

    @field_validator("spool_dir", "producer_conf", "consumer_conf", mode="before")
    @classmethod
    def _named_path(cls, path: object) -> object:
        if isinstance(path, str) and not path.strip():
            raise ValueError("is empty; name a path, or leave the variable out")
        return path

    @field_validator("depth", mode="before")
    @classmethod
    def _depth_number(cls, value: object) -> object:
        return int(value) if isinstance(value, str) and value.strip().isdigit() else value

    @property
    def zone(self) -> ZoneInfo:
        """The market's time zone."""
        return ZoneInfo(self.market_time_zone)


SettingsT = TypeVar("SettingsT", bound=BaseSettings)


def load_settings(kind: type[SettingsT]) -> SettingsT:
    """Read one class of settings.

    Raises:
        UserError: If a value is malformed; the line names the variable and, unless it is a secret, the value.
            If `.env` is no text.
    """
    try:
        return kind()
    except UnicodeDecodeError as error:
        raise UserError(f".env: is not UTF-8 text ({error}); write it anew") from error
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "?"
        field = kind.model_fields.get(name)
        secret = field is not None and "Secret" in str(field.annotation)
        given = "" if secret else f"={first.get('input')!r}"
        raise UserError(f"setting {name.upper()}{given} (environment or .env): {first['msg']}") from error
