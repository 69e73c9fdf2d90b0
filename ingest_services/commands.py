"""The ingest half's commands: thin shells over plain functions, imported when they are called."""

from __future__ import annotations

import os
from typing import Annotated, NoReturn

import typer

Sections = Annotated[list[str] | None, typer.Argument(help="Sections to run, as the .conf file names them.")]
Everything = Annotated[bool, typer.Option("--all", help="Run every section of the file.")]
WaitS = Annotated[
    float, typer.Option("--wait", min=0, help="Seconds to go on trying while the servers are not there yet.")
]
MetricsPort = Annotated[
    int | None,
    typer.Option(min=1, max=65535, help="Serve /metrics and /health on this port (of METRICS_HOST)."),
]


def register(app: typer.Typer) -> None:
    """Add the ingest half's commands to the command line."""
    from ingest_services.simulator.commands import simulate
    from ingest_services.tools import commands as tools

    app.command()(buckets)
    app.command()(topic)
    app.command()(produce)
    app.command()(consume)
    app.command()(health)
    app.command()(simulate)
    for tool in (tools.audit, tools.gc, tools.replay, tools.retire):
        app.command()(tool)


def _leave(status: int) -> NoReturn:
    """End the process now that its service has ended.

    Python's own way out takes seconds on a busy machine, waits for threads that belong to the Kafka client,
    and was seen to hang after everything was done and said.
    """
    os._exit(status)


def buckets(
    urls: Annotated[
        list[str], typer.Argument(help="gs://bucket/prefix, as RAW_URL and PARQUET_URL have it.")
    ],
) -> None:
    """Create the buckets that some URLs name, unless they are there."""
    from ingest_services.lake.gcs import create_bucket

    for url in urls:
        typer.echo(f"{url}: {'created its bucket' if create_bucket(url) else 'its bucket is there'}")


def topic(wait_s: WaitS = 0) -> None:
    """Create the topics with exactly the partitions that producer.conf names."""
    from ingest_services import backoff, config, kafka, settings

    ours = settings.load_settings(settings.IngestSettings)
    partitions = config.partitions_of(config.read_producers(ours.producer_conf))
    config.require_consumers(partitions, config.read_consumers(ours.consumer_conf), ours.consumer_conf)
    backoff.keep_trying(
        lambda: kafka.create_topics(ours.kafka_bootstrap, partitions),
        kafka.Unreachable,
        wait_s,
        lambda line: typer.echo(line, err=True),
    )
    for name, count in partitions.items():
        typer.echo(f"topic {name}: {count} partitions")


def produce(names: Sections = None, everything: Everything = False, metrics_port: MetricsPort = None) -> None:
    """Carry the exchange's frames into Kafka (sections of producer.conf)."""
    from ingest_services import config, logs, settings
    from ingest_services.producer import service, spool

    ours = settings.load_settings(settings.IngestSettings)
    sections = config.read_producers(ours.producer_conf)
    config.partitions_of(sections)
    chosen = config.select(ours.producer_conf, sections, names or [], everything=everything)
    logs.setup_logging()
    spool.warn_of_orphans(ours.spool_dir, (section.name for section in sections))
    _leave(service.run(chosen, ours, metrics_port))


def consume(names: Sections = None, everything: Everything = False, metrics_port: MetricsPort = None) -> None:
    """Carry Kafka's records into the raw lake (sections of consumer.conf)."""
    from ingest_services import config, logs, settings
    from ingest_services.consumer import service

    ours = settings.load_settings(settings.IngestSettings)
    sections = config.read_consumers(ours.consumer_conf)
    chosen = config.select(ours.consumer_conf, sections, names or [], everything=everything)
    logs.setup_logging()
    _leave(service.run(chosen, ours, metrics_port))


def health(
    port: Annotated[int, typer.Option(min=1, max=65535, help="The --metrics-port of the process to ask.")],
    end_failed: Annotated[
        bool, typer.Option("--end-failed", help="End a process that has failed, for whoever restarts it.")
    ] = False,
) -> None:
    """Ask a producer or consumer on this machine how it is; exit status 1 if it has to be restarted."""
    from ingest_services import monitor

    alive, line = monitor.end_failed(port) if end_failed else monitor.ask(port)
    typer.echo(line)
    raise typer.Exit(0 if alive else 1)
