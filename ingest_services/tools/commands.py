"""The tools' commands: thin shells over plain functions, imported when they are called."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Annotated
from zoneinfo import ZoneInfo

import typer

from ingest_services.errors import UserError


def audit(
    broker: Annotated[bool, typer.Option("--broker", help="Compare with the broker's logs, too.")] = False,
    since: Annotated[
        str | None, typer.Option(help="Only what was committed since: 2026-02-03T04:05, or with an offset.")
    ] = None,
    chain: Annotated[int | None, typer.Option(help="Only this chain.")] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read every line of every object.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check everything that the raw lake says against what it holds; exit status 1 if anything is wrong."""
    from rich.console import Console

    from ingest_services import settings
    from ingest_services.lake import audit as audits
    from ingest_services.lake.stores import open_store
    from ingest_services.tools import show
    from ingest_services.tools.broker import ask_logs

    ours = settings.load_settings(settings.IngestSettings)
    since_ms = None if since is None else _read_instant("--since", since, ours.zone)
    report = audits.audit(
        open_store(ours.raw_url),
        audits.Scope(since_ms, chain, deep),
        (lambda topics: ask_logs(ours.kafka_bootstrap, topics)) if broker else None,
    )
    if as_json:
        typer.echo(show.report_json(report))
    else:
        show.show_report(report, Console(highlight=False, soft_wrap=True))
    raise typer.Exit(1 if report.violation_count else 0)


def gc(
    delete: Annotated[bool, typer.Option("--delete", help="Remove them; without it they are shown.")] = False,
    paths: Annotated[bool, typer.Option("--paths", help="Print the path of each.")] = False,
) -> None:
    """Remove objects of the raw lake that no commit names and none ever can."""
    from rich.console import Console

    from ingest_services import settings
    from ingest_services.lake import layout, orphans
    from ingest_services.lake.store import DeletableStore
    from ingest_services.lake.stores import open_store
    from ingest_services.tools import show

    ours = settings.load_settings(settings.IngestSettings)
    lake = open_store(ours.raw_url)
    if layout.read_lake(lake) is None:
        raise UserError(f"{lake.url}: there is no lake here (no {layout.LAKE_FILE}); is RAW_URL right?")
    on_orphan = typer.echo if paths else lambda _: None
    if delete:
        if not isinstance(lake, DeletableStore):
            raise UserError(f"{lake.url}: objects of this kind of store cannot be removed")
        found = orphans.remove_orphans(lake, on_orphan)
    else:
        found = orphans.find_leftovers(lake, on_orphan)
    show.show_leftovers(found, Console(highlight=False, soft_wrap=True), deleted=delete)


def replay(
    from_: Annotated[str, typer.Argument(metavar="FROM", help="Received at or after: 2026-02-03T04:05.")],
    to: Annotated[str, typer.Argument(metavar="TO", help="Received before.")],
    tickers: Annotated[
        str | None, typer.Option(help="Books of these alone, separated by commas; no heartbeats.")
    ] = None,
    topic: Annotated[str | None, typer.Option(help="Publish into this topic.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write a file for `cryptostream simulate --playback` instead.")
    ] = None,
    speed: Annotated[
        float, typer.Option(min=0, help="1 is the pace at which they were received; 0 as fast as possible.")
    ] = 1.0,
    double: Annotated[
        str | None, typer.Option(help="The topic's name again, to publish into the one the lake is fed from.")
    ] = None,
) -> None:
    """Publish what was committed once more, or write it to a file that the simulator plays."""
    from ingest_services import settings
    from ingest_services.lake.stores import open_store
    from ingest_services.tools import replay as replays
    from ingest_services.upbit.markets import market_of, ticker_of

    ours = settings.load_settings(settings.IngestSettings)
    try:
        names = [ticker_of(market_of(name.strip())) for name in (tickers or "").split(",") if name.strip()]
    except ValueError as error:
        raise UserError(f"--tickers: {error}") from error
    wanted = replays.Range(
        _read_instant("FROM", from_, ours.zone) * 1000,
        _read_instant("TO", to, ours.zone) * 1000,
        frozenset(names),
    )
    if wanted.from_us >= wanted.to_us:
        raise UserError(f"FROM {from_} is not before TO {to}")
    if (topic is None) == (out is None):
        raise UserError("say where to: --topic NAME or --out FILE")
    lake = open_store(ours.raw_url)
    if out is not None:
        done = replays.export(out, replays.read_range(lake, wanted))
        typer.echo(f"{out}: {done.records} books; {done.skipped} other records left out")
    elif topic is not None:
        replays.require_other_topic(lake, topic, double)
        done = replays.publish(ours.kafka_bootstrap, topic, replays.read_range(lake, wanted), speed)
        typer.echo(f"topic {topic}: {done.records} records")


def retire(
    topic: Annotated[str, typer.Argument(help="The topic that was given up.")],
    undo: Annotated[bool, typer.Option("--undo", help="Take it up again, where it ended.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Give up the records that the broker has and the lake has not.")
    ] = False,
) -> None:
    """Close a topic for good: windows no longer wait for it (its producers and consumers are stopped)."""
    from ingest_services import settings
    from ingest_services.lake.audit import BrokerLog
    from ingest_services.lake.stores import open_store
    from ingest_services.tools import retire as retirements
    from ingest_services.tools.broker import ask_logs

    ours = settings.load_settings(settings.IngestSettings)
    lake = open_store(ours.raw_url)
    now_ms = time.time_ns() // 1_000_000

    def ask_log() -> BrokerLog | None:
        return ask_logs(ours.kafka_bootstrap, [topic])[topic]

    if undo:
        chain = retirements.take_up_topic(lake, topic, ask_log, now_ms)
        typer.echo(f"topic {topic}: taken up again in chain {chain.number}; start its consumers")
        return
    done = retirements.retire_topic(lake, topic, ask_log, now_ms, force=force)
    typer.echo(f"topic {topic}: retired by chain {done.chain.number}; windows no longer wait for it")
    if done.given_up is None:
        typer.echo("given up: the broker did not answer, so nobody knows what it still holds")
    for partition, count in sorted((done.given_up or {}).items()):
        typer.echo(f"given up: {count} records of partition {partition}, which are in no lake")


def _read_instant(where: str, text: str, zone: ZoneInfo) -> int:
    """Read an instant, ms since the epoch; without an offset it is the market's time."""
    try:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=zone)
        return int(moment.timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        raise UserError(f"{where} {text}: is no instant ({error}); write it like 2026-02-03T04:05") from error
