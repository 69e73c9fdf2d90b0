"""The Dagster half's commands: thin shells over plain functions, imported when they are called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ingest_services.commands import WaitS

HistoryMinutes = Annotated[
    int, typer.Option(min=0, max=1440, help="Minutes of back-dated simulated books for an empty lake.")
]
# Three whole windows: the least that the demo compares.
DemoMinutes = Annotated[
    int, typer.Option(min=15, max=1440, help="Minutes of back-dated simulated books to begin with.")
]


def register(app: typer.Typer) -> None:
    """Add the Dagster half's commands to the command line."""
    app.command()(dev)
    app.command()(demo)
    app.command()(migrate)
    app.command()(chart)
    app.command()(status)
    app.command()(expire)
    catalog = typer.Typer(help="The catalog of the lake in Postgres.", no_args_is_help=True)
    catalog.command("rebuild")(rebuild_catalog)
    app.add_typer(catalog, name="catalog")
    app.command()(backfill)


def dev(
    live: Annotated[bool, typer.Option("--live", help="The real exchange instead of the simulator.")] = False,
    state: Annotated[
        Path | None, typer.Option(help="State folder; .cryptostream/sim or .cryptostream/live by default.")
    ] = None,
    history_minutes: HistoryMinutes = 30,
    rate: Annotated[float, typer.Option(min=0.01, help="Simulated books per second and ticker.")] = 2.0,
    broker_limit_mib: Annotated[
        int, typer.Option(min=1, help="Memory of the broker after which a fresh one takes over, MiB.")
    ] = 512,
) -> None:
    """Run the whole platform on this machine until Ctrl-C."""
    from cryptostream_dagster import local_stack

    local_stack.dev(state, local_stack.Options(live, history_minutes, rate, broker_limit_mib))


def demo(
    history_minutes: DemoMinutes = 30,
    live_windows: Annotated[
        int, typer.Option(min=0, max=12, help="Go on until so many live windows were built, too.")
    ] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the temporary folder with its logs.")] = False,
) -> None:
    """Run the platform in a temporary folder and compare every candle with the simulator's truth."""
    from cryptostream_dagster.local_demo import demo as run

    raise typer.Exit(run(history_minutes, live_windows=live_windows, keep=keep))


def migrate(wait_s: WaitS = 0) -> None:
    """Create or upgrade the warehouse's tables, and make their next partitions."""
    from cryptostream_dagster.settings import PipelineSettings
    from cryptostream_dagster.warehouse import connection, schema
    from ingest_services.backoff import keep_trying
    from ingest_services.settings import load_settings

    settings = load_settings(PipelineSettings)
    with keep_trying(
        lambda: connection.connect(settings),
        connection.Unreachable,
        wait_s,
        lambda line: typer.echo(line, err=True),
    ) as warehouse:
        applied = schema.migrate(warehouse)
        schema.claim_database(warehouse, settings.source, settings.market_time_zone)
        made = schema.make_partitions_ahead(warehouse, settings.zone)
    typer.echo(f"applied {', '.join(applied)}" if applied else "the schema is up to date")
    if made:
        typer.echo(f"made {', '.join(made)}")


def status(
    state: Annotated[Path | None, typer.Option(help="State folder of a local stack to look at.")] = None,
    producer_port: Annotated[
        list[int] | None, typer.Option(help="--metrics-port of a producer; may be given again.")
    ] = None,
    consumer_port: Annotated[
        list[int] | None, typer.Option(help="--metrics-port of a consumer; may be given again.")
    ] = None,
    dagster: Annotated[str | None, typer.Option(help="URL of Dagster's webserver.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show on one screen how the platform is; exit status 1 if something needs a person."""
    from datetime import UTC, datetime

    from rich.console import Console

    from cryptostream_dagster import overview, overview_screen
    from cryptostream_dagster.client import Client

    settings = (Client.from_state(state) if state else Client()).settings
    local = overview.find_local(settings)
    asked = overview.Asked(
        [[port] for port in producer_port or []] or (local.producers if local else ()),
        [[port] for port in consumer_port or []] or (local.consumers if local else ()),
        dagster or (local.dagster if local else None),
    )
    found = overview.look(settings, asked, datetime.now(UTC))
    troubles = overview.find_troubles(found, settings)
    if as_json:
        typer.echo(overview_screen.as_json(found, troubles))
    else:
        Console(highlight=False).print(overview_screen.as_screen(found, troubles, settings.zone))
    raise typer.Exit(1 if troubles else 0)


def expire(
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete them; without it they are counted.")
    ] = False,
    unbuilt: Annotated[
        bool, typer.Option("--unbuilt", help="Also those of windows that are not built.")
    ] = False,
) -> None:
    """Delete raw objects older than RAW_RETENTION_DAYS; on a bucket its lifecycle rule does that."""
    from datetime import UTC, datetime

    from cryptostream_dagster import expire as expiring
    from cryptostream_dagster.resources import Platform
    from cryptostream_dagster.settings import PipelineSettings
    from ingest_services.settings import load_settings

    settings = load_settings(PipelineSettings)
    platform = Platform(settings)
    store = platform.require_lake()
    with platform.connect() as connection:
        done = expiring.expire(connection, store, settings, datetime.now(UTC), delete=delete, unbuilt=unbuilt)
    until = done.until.astimezone(settings.zone)
    typer.echo(
        f"{done.objects:,} raw objects of before {until:%Y-%m-%d %H:%M%z} "
        + ("are deleted" if done.deleted else "would be deleted: --delete does it")
    )


def rebuild_catalog() -> None:
    """Build the catalog anew from the lake, the Parquet and the tables; everything may go on meanwhile."""
    from cryptostream_dagster import rebuild
    from cryptostream_dagster.resources import Platform
    from cryptostream_dagster.settings import PipelineSettings
    from ingest_services.settings import load_settings

    settings = load_settings(PipelineSettings)
    done = rebuild.rebuild(settings, Platform(settings).require_lake(), lambda line: typer.echo(f"{line} …"))
    typer.echo(
        f"{done.commits:,} commits, {done.windows:,} windows: {done.built:,} are built from all that the "
        f"lake holds of them, {done.to_build:,} are left to the sensor, {done.frozen:,} are frozen; tables "
        f"of {done.completed:,} windows were completed from their Parquet"
    )


def chart(
    ticker: Annotated[str, typer.Argument(help="BTC or KRW-BTC.")],
    start: Annotated[
        str | None, typer.Option("--from", help="First moment, market time; all by default.")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", help="End, exclusive, market time.")] = None,
    out: Annotated[Path | None, typer.Option(help="PNG to write; TICKER.png by default.")] = None,
    freq: Annotated[
        Literal["5min", "1h", "1d"],
        typer.Option(help="Of 5 minutes, or an hour or day of the market's clock."),
    ] = "5min",
    state: Annotated[Path | None, typer.Option(help="State folder of a local stack to read.")] = None,
) -> None:
    """Draw a candlestick chart."""
    from cryptostream_dagster import chart as charts
    from cryptostream_dagster.client import Client

    with Client.from_state(state) if state else Client() as client:
        typer.echo(charts.draw(client, ticker, start, end, out, freq))


def backfill(
    from_: Annotated[
        str,
        typer.Argument(
            metavar="FROM", help="First window: 2026-02-03T04:05, market time, or a partition key."
        ),
    ],
    to: Annotated[str, typer.Argument(metavar="TO", help="End, exclusive.")],
    force: Annotated[bool, typer.Option("--force", help="Build finished windows once more.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow it to the end; exit status 1 if a window was not built.")
    ] = False,
    state: Annotated[Path | None, typer.Option(help="State folder of a local stack.")] = None,
) -> None:
    """Build a range of windows; those that are finished are left alone."""
    from cryptostream_dagster import backfill as backfills

    raise typer.Exit(backfills.backfill(from_, to, state, typer.echo, force=force, wait=wait))
