"""What `cryptostream status` knows: services, lag, windows, failures, coverage; and what needs a person.

Belongs here: gathering from services, lake, warehouse and Dagster, and the judgement. Does not belong here:
how it looks (`overview_screen`). What does not answer is unknown and stays None; looking changes nothing.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import psycopg

from cryptostream_dagster.catalog.retention import frozen_until
from cryptostream_dagster.local.state import ENV_FILE, StateFolder, url_of
from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.sql import load_sql
from cryptostream_dagster.warehouse import freshness
from cryptostream_dagster.warehouse.connection import connect
from cryptostream_dagster.warehouse.queries import CANDLES
from cryptostream_dagster.window import WINDOW, Window
from ingest_services import monitor
from ingest_services.errors import UserError
from ingest_services.lake.chain import ends_of, read_chains, read_progress
from ingest_services.lake.layout import read_lake
from ingest_services.lake.store import ObjectStore
from ingest_services.lake.stores import open_store

# A claim is made every minute; after five somebody is away.
CLAIM_STALE = timedelta(minutes=5)
# Coverage is shown of so long.
COVERED_SINCE = timedelta(hours=3)
# A window may be unbuilt for so long after it ended: as fresh.
UNBUILT_STALE = freshness.STALE_AFTER

_SHOWN = 6
_TIMEOUT_S = 5.0
_PACKAGE = "cryptostream_dagster.warehouse"
_DAEMONS = "{instance{daemonHealth{allDaemonStatuses{daemonType required healthy lastHeartbeatTime}}}}"


@dataclass(frozen=True, slots=True)
class Service:
    """A process or a store; `well` is None if nobody can say."""

    name: str
    well: bool | None
    detail: str


@dataclass(frozen=True, slots=True)
class Claim:
    """How far a partition of an open chain is; None: nothing was claimed yet."""

    topic: str
    chain: int
    partition: int
    through: datetime | None
    claimed_at: datetime | None


@dataclass(frozen=True, slots=True)
class WindowState:
    """A window and what was built of it.

    Attributes:
        start: Its start.
        rows: Books in the lake.
        tickers: With books, when it was built.
        coverage: Mean over the subscribed tickers, 0 to 1; None: unknown.
        version: Of its candles; None: not built.
        built_at: When they were built.
        current: Whether they are of all that the lake holds.
        frozen: Whether raw objects of it are gone.
        failure: Why it is not built, as the last run said.
    """

    start: datetime
    rows: int
    tickers: int | None
    coverage: float | None
    version: int | None
    built_at: datetime | None
    current: bool
    frozen: bool
    failure: str | None


@dataclass(frozen=True, slots=True)
class Failed:
    """A window that the last run could not build."""

    start: datetime
    asset: str
    reason: str
    failed_at: datetime


@dataclass
class Overview:
    """One look at the platform; None is unknown.

    Attributes:
        at: When.
        source: `simulator` or `upbit`, as the lake says; the settings' if there is none.
        lake: URL of the raw lake.
        services: Who was asked how they are.
        claims: Partitions of open chains.
        complete_until: Everything before is complete.
        newest: The newest windows that are built and covered.
        windows: The last windows, the newest first.
        unbuilt: Complete windows that are not built as the lake has them.
        oldest_unbuilt: Start of the oldest of these.
        frozen: Windows that are not built and cannot be any more, because raw objects are gone.
        failed: The last failures, the newest first.
        failed_windows: How many windows failed.
        coverage: Mean of the last hours.
        worst: The least covered tickers of the last hours.
    """

    at: datetime
    source: str
    lake: str
    services: list[Service] = field(default_factory=list)
    claims: list[Claim] | None = None
    complete_until: datetime | None = None
    newest: freshness.Newest | None = None
    windows: list[WindowState] | None = None
    unbuilt: int | None = None
    oldest_unbuilt: datetime | None = None
    frozen: int | None = None
    failed: list[Failed] | None = None
    failed_windows: int | None = None
    coverage: float | None = None
    worst: list[tuple[str, float]] | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """Whom to ask beside lake and warehouse.

    Attributes:
        producers: Metrics ports on this machine; one of each group must answer.
        consumers: The same.
        dagster: URL of the webserver.
    """

    producers: Sequence[Sequence[int]] = ()
    consumers: Sequence[Sequence[int]] = ()
    dagster: str | None = None


def look(settings: PipelineSettings, asked: Asked, now: datetime) -> Overview:
    """Ask everybody; who does not answer is unknown, or not well.

    Args:
        settings: Where lake and warehouse are.
        asked: Whom to ask beside.
        now: The current instant.
    """
    overview = Overview(now, settings.source, settings.raw_url)
    services = overview.services
    services += [_ask_group("producer", ports) for ports in asked.producers] or [
        Service("producers", None, "say where: --producer-port")
    ]
    services += [_ask_group("consumer", ports) for ports in asked.consumers] or [
        Service("consumers", None, "say where: --consumer-port")
    ]
    services += _ask_dagster(asked.dagster, now)
    services.append(_well("lake", lambda: _read_lake(settings, overview)))
    services.append(_well("warehouse", lambda: _ask_warehouse(settings, overview)))
    return overview


def find_local(settings: PipelineSettings) -> Asked | None:
    """Return whom to ask of the local stack whose lake this is; None if it is no local stack's."""
    parts = urlsplit(settings.raw_url)
    root = Path(unquote(parts.path)).parent
    if parts.scheme != "file" or not (root / ENV_FILE).is_file():
        return None
    ports = StateFolder(root).remember().ports

    def group(kind: str) -> list[list[int]]:
        # A stack that moved on to a fresh broker uses the other of the two.
        return [[ports[name] for name in (kind, f"{kind}_next") if name in ports]]

    dagster = url_of(root) or (
        f"http://{monitor.LOOPBACK}:{ports['dagster']}" if "dagster" in ports else None
    )
    return Asked(group("producer"), group("consumer"), dagster)


def find_troubles(overview: Overview, settings: PipelineSettings) -> list[str]:
    """Return what needs a person, a sentence each; empty if nothing does."""
    zone, now = settings.zone, overview.at
    troubles = [f"{s.name}: {s.detail}" for s in overview.services if s.well is False]
    for claim in overview.claims or []:
        who = f"partition {claim.partition} of topic {claim.topic}"
        if claim.claimed_at is None:
            troubles.append(f"{who}: no consumer has claimed anything yet")
        elif now - claim.claimed_at > CLAIM_STALE:
            troubles.append(f"{who}: no consumer has claimed anything for {in_words(now - claim.claimed_at)}")
    newest = next((w for w in overview.windows or [] if w.version is not None), None)
    if overview.newest is not None and not freshness.is_fresh(overview.newest, now):
        troubles.append(freshness.explain(overview.newest, now, zone))
    elif newest is not None and newest.coverage == 0:
        troubles.append(
            f"nobody listened in {newest.start.astimezone(zone):%H:%M}: are the producers running?"
        )
    if overview.failed_windows:
        troubles.append(f"windows that failed and are not built: {overview.failed_windows}")
    oldest = overview.oldest_unbuilt
    if oldest is not None and now - oldest - WINDOW > UNBUILT_STALE:
        troubles.append(
            f"complete windows that are not built: {overview.unbuilt}, the oldest "
            f"{oldest.astimezone(zone):%Y-%m-%d %H:%M}"
        )
    if overview.frozen:
        troubles.append(
            f"windows that cannot be built because raw objects of them are gone: {overview.frozen}"
        )
    return troubles


def in_words(span: timedelta) -> str:
    """Return a span as people say it: `90 s`, `12 min`, `5 h`."""
    seconds = span.total_seconds()
    if abs(seconds) < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if abs(seconds) < 7200 else f"{seconds / 3600:.0f} h"


def _ask_group(kind: str, ports: Iterable[int]) -> Service:
    answers = [(port, *monitor.ask(port)) for port in ports]
    for port, alive, line in answers:
        if alive:
            return Service(f"{kind} :{port}", line == monitor.Status.OK, line)
    if not answers:
        return Service(kind, None, "it has no --metrics-port")
    port, _, line = answers[0]
    return Service(f"{kind} :{port}", False, line)


def _ask_dagster(url: str | None, now: datetime) -> list[Service]:
    if url is None:
        return [Service("Dagster", None, "say where: --dagster URL")]
    request = urllib.request.Request(  # noqa: S310 - a URL that a person gave
        f"{url.rstrip('/')}/graphql",
        json.dumps({"query": _DAEMONS}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            told = json.loads(answer.read())
        daemons = told["data"]["instance"]["daemonHealth"]["allDaemonStatuses"]
        return [
            Service("Dagster", True, url),
            *(_daemon(daemon, now) for daemon in daemons if daemon["required"]),
        ]
    except (OSError, HTTPException) as error:
        return [Service("Dagster", False, f"{url}: {getattr(error, 'reason', error)}")]
    except (ValueError, KeyError, TypeError):
        return [Service("Dagster", False, f"{url}: something else answers there")]


def _daemon(told: dict[str, Any], now: datetime) -> Service:
    name = f"daemon {told['daemonType'].lower()}"
    beat = told["lastHeartbeatTime"]
    # One that was heard while we asked others was heard now.
    age = max(timedelta(), now - datetime.fromtimestamp(beat, UTC)) if beat else None
    since = "never heard" if age is None else f"heard {in_words(age)} ago"
    return Service(name, bool(told["healthy"]), since)


def _well(name: str, ask: Callable[[], str]) -> Service:
    try:
        return Service(name, True, ask())
    except UserError as error:
        return Service(name, False, str(error))
    except psycopg.errors.UndefinedTable:
        return Service(name, False, "it has no tables yet: run `cryptostream migrate`")
    except (OSError, psycopg.Error) as error:
        return Service(name, False, " ".join(str(error).split()))


def _read_lake(settings: PipelineSettings, overview: Overview) -> str:
    store = open_store(settings.raw_url)
    identity = read_lake(store)
    if identity is None:
        raise UserError(f"{store.url}: nothing was ever written to it")
    overview.source = identity.source
    overview.claims = _claims(store)
    through = [claim.through for claim in overview.claims]
    known = [moment for moment in through if moment is not None]
    overview.complete_until = min(known) if known and len(known) == len(through) else None
    return store.url


def _claims(store: ObjectStore) -> list[Claim]:
    chains = read_chains(store)
    closed = ends_of(chains)
    claims = []
    for chain in chains:
        if chain.number in closed:
            continue
        for partition in chain.partitions:
            progress = read_progress(store, chain.number, partition)
            claims.append(
                Claim(
                    chain.topic,
                    chain.number,
                    partition,
                    None if progress is None else _instant(progress.minutes_through_ms),
                    None if progress is None else _instant(progress.at_ms),
                )
            )
    return claims


def _ask_warehouse(settings: PipelineSettings, overview: Overview) -> str:
    now = overview.at
    with connect(settings) as connection:
        overview.newest = freshness.newest_windows(connection, now)
        rows = connection.execute(
            load_sql(_PACKAGE, "last_windows"),
            {"asset": CANDLES, "until": now - WINDOW, "limit": _SHOWN},
        )
        overview.windows = [WindowState(*row) for row in rows]
        frozen = frozen_until(connection, settings, now)
        oldest = max(settings.first_window, frozen or settings.first_window)
        if overview.complete_until is not None:
            last = Window.at(overview.complete_until).shifted(-1)
            row = connection.execute(
                load_sql(_PACKAGE, "unbuilt_windows"), {"oldest": oldest, "last": last.start}
            ).fetchone()
            assert row is not None
            overview.unbuilt, overview.oldest_unbuilt, overview.frozen = row
        failed = connection.execute(
            load_sql(_PACKAGE, "failed_windows"), {"oldest": oldest, "limit": _SHOWN}
        ).fetchall()
        overview.failed = [Failed(*row[:4]) for row in failed]
        overview.failed_windows = failed[0][4] if failed else 0
        worst = connection.execute(
            load_sql(_PACKAGE, "worst_coverage"), {"since": now - COVERED_SINCE, "limit": _SHOWN}
        ).fetchall()
        overview.worst = [(ticker, ratio) for ticker, ratio, _ in worst]
        overview.coverage = worst[0][2] if worst else None
    return f"{settings.postgres_host}:{settings.postgres_port}/{settings.postgres_db}"


def _instant(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)
