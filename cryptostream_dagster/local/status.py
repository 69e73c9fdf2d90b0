"""What a running stack is doing, gathered from its children, the lake and the warehouse.

Does not belong here: deciding anything, and how it looks (`local.view`). Nothing here raises because a child
does not answer: what is unknown is None.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.request
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from prometheus_client.parser import text_string_to_metric_families

from cryptostream_dagster.local.ports import LOOPBACK
from cryptostream_dagster.warehouse import queries
from cryptostream_dagster.warehouse.queries import Candle
from ingest_services.lake import chain as chains
from ingest_services.lake.store import ObjectStore

_TIMEOUT_S = 2.0

Samples = Mapping[str, list[tuple[Mapping[str, str], float]]]


@dataclass
class Status:
    """One look at the stack; None is unknown.

    Attributes:
        source: `simulator` or `upbit`.
        url: Where the Dagster UI is, once it answers.
        frames_per_s: Frames that the producer received, per second.
        records: Records that the raw lake holds.
        lag: Records between the consumer and the end of the broker's log.
        last_window: Start of the newest window whose candles are built, data or not.
        windows: Number of such windows that began in the last 24 hours.
        candles: The newest candle of each ticker.
        children: State by program name.
    """

    source: str
    url: str | None = None
    frames_per_s: float | None = None
    records: int | None = None
    lag: int | None = None
    last_window: datetime | None = None
    windows: int | None = None
    candles: list[Candle] = field(default_factory=list)
    children: Mapping[str, str] = field(default_factory=dict)


def fetch_json(url: str) -> Any:
    """Return what a local URL answers, or None if it does not."""
    body = _fetch(url)
    if body is None:
        return None
    with suppress(ValueError):
        return json.loads(body)
    return None


def fetch_metrics(port: int) -> Samples:
    """Return a process's metrics by sample name; empty if it does not answer."""
    samples: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    body = _fetch(f"http://{LOOPBACK}:{port}/metrics")
    with suppress(ValueError):
        for family in text_string_to_metric_families((body or b"").decode()):
            for sample in family.samples:
                samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return samples


def total(samples: Samples, name: str) -> float | None:
    """Return the sum of a metric over its labels, or None if it is not there."""
    found = samples.get(name)
    return sum(value for _, value in found) if found else None


def _fetch(url: str) -> bytes | None:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - always a loopback URL
            body: bytes = answer.read()
            return body
    except (OSError, http.client.HTTPException):
        return None


class Observer:
    """Looks at a stack again and again; keeps what rates are computed from.

    Args:
        source: Whose data it is.
        lake: The raw lake.
        dsn: The warehouse.
    """

    def __init__(self, source: str, lake: ObjectStore, dsn: str) -> None:
        self._source = source
        self._lake = lake
        self._dsn = dsn
        self._frames: tuple[float, float] | None = None
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None

    def look(
        self, producers: Iterable[int], consumers: Iterable[int], children: Mapping[str, str], url: str | None
    ) -> Status:
        """Return how things are now.

        Args:
            producers: Metrics ports of the producers.
            consumers: Metrics ports of the consumers.
            children: State of each program, as it is to be shown.
            url: Where the Dagster UI is.
        """
        status = Status(self._source, url=url, children=dict(children))
        frames = [total(fetch_metrics(port), "cryptostream_producer_frames_total") for port in producers]
        known = [count for count in frames if count is not None]
        status.frames_per_s = self._rate(sum(known)) if known else None
        lags = [total(fetch_metrics(port), "cryptostream_consumer_lag_records") for port in consumers]
        waiting = [lag for lag in lags if lag is not None]
        status.lag = int(sum(waiting)) if waiting else None
        status.records = records_in(self._lake)
        self._ask_warehouse(status)
        return status

    def close(self) -> None:
        """Let the warehouse go."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _rate(self, frames: float) -> float | None:
        now = time.monotonic()
        before, self._frames = self._frames, (now, frames)
        if before is None or frames < before[1]:
            return None
        return (frames - before[1]) / (now - before[0])

    def _ask_warehouse(self, status: Status) -> None:
        try:
            if self._connection is None:
                self._connection = psycopg.connect(self._dsn, autocommit=True, connect_timeout=2)
            status.candles = queries.newest_candles(self._connection)
            last = queries.last_built_window(self._connection)
            status.last_window = last.start if last else None
            since = datetime.now(UTC) - timedelta(days=1)
            status.windows = queries.windows_built_since(self._connection, since)
        except psycopg.errors.UndefinedTable:
            pass  # Not migrated yet: nothing is known, and the connection is as good as before.
        except psycopg.Error:
            self.close()


def records_in(lake: ObjectStore) -> int:
    """Return how many records the raw lake holds: all that its chains cover."""
    known = chains.read_chains(lake)
    ends = {chain.predecessor: chain.predecessor_end for chain in known}
    count = 0
    for chain in known:
        for partition in chain.partitions:
            end = ends.get(chain.number, {}).get(partition)
            if end is None:
                progress = chains.read_progress(lake, chain.number, partition)
                end = progress.next if progress else chain.start[partition]
            count += end - chain.start[partition]
    return count
