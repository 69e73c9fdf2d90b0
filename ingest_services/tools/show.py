"""What tools found, for eyes and for machines."""

from __future__ import annotations

import time

import orjson
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ingest_services.lake.audit import PartitionAudit, Report
from ingest_services.lake.orphans import Leftovers

GAPS_SHOWN = 20


def report_json(report: Report) -> bytes:
    """Return an audit's report as JSON, with `clean` beside what the report holds."""
    told = {"clean": report.violation_count == 0, **orjson.loads(orjson.dumps(report))}
    return orjson.dumps(told, option=orjson.OPT_INDENT_2)


def show_report(report: Report, console: Console) -> None:
    """Print an audit's report: what is there, what is not, and each violation in one line."""
    lake = report.lake
    console.print(f"lake of {lake.source}, paths in {lake.time_zone}")
    table = Table(box=None, pad_edge=False)
    for name in ("chain", "topic", "partition", "offsets", "commits", "objects", "MB", "books"):
        table.add_column(name, justify="left" if name == "topic" else "right")
    for name in ("heartbeats", "quarantine", "missing", "through", "on the broker"):
        table.add_column(name, justify="right")
    for found in report.partitions:
        table.add_row(*_row(found))
    console.print(table)
    for chain, partition, start, end in report.gaps[:GAPS_SHOWN]:
        console.print(f"missing: chain {chain} partition {partition} offsets {start} to {end - 1}")
    if len(report.gaps) > GAPS_SHOWN:
        console.print(f"missing: … and more ranges; --json lists {len(report.gaps)}")
    if report.orphans_counted:
        orphans = ", ".join(f"{count} {room}" for room, count in sorted(report.orphans.items()))
        console.print(
            f"named by no commit: {orphans or 'none'}; in flight: {report.in_flight}; "
            f"not understood: {report.foreign}"
        )
        for path in report.foreign_paths[:GAPS_SHOWN]:
            console.print(f"not understood: {escape(path)}")
    for violation in report.violations:
        console.print(f"[bold red]violation:[/] {escape(str(violation))}")
    if report.violation_count > len(report.violations):
        console.print(f"… and {report.violation_count - len(report.violations)} violations more")
    console.print(f"{report.violation_count} violations" if report.violation_count else "[green]clean[/]")


def show_leftovers(found: Leftovers, console: Console, *, deleted: bool) -> None:
    """Print what `gc` found or did."""
    for path in found.foreign_paths:
        console.print(f"not understood, left alone: {escape(path)}")
    if found.foreign > len(found.foreign_paths):
        console.print(f"… and {found.foreign - len(found.foreign_paths)} paths more")
    rooms = ", ".join(f"{count} {room}" for room, count in sorted(found.orphans.items())) or "none"
    did = "removed" if deleted else "would be removed (--delete does it)"
    console.print(
        f"named by a commit: {found.named}; in flight: {found.in_flight}; not understood: {found.foreign}"
    )
    console.print(f"{did}: {rooms}")


def _row(found: PartitionAudit) -> tuple[str, ...]:
    state = " closed" if found.end is not None else ""
    through = found.minutes_through_ms
    broker = "" if found.log_end is None else f"{found.log_start}…{found.log_end}"
    return (
        f"{found.chain}{state}",
        found.topic,
        str(found.partition),
        f"{found.start}…{found.tail if found.end is None else found.end}",
        f"{found.commits}" + (f" (+{found.void} void)" if found.void else ""),
        str(found.objects),
        f"{found.bytes / 1e6:.1f}",
        *(str(found.rows.get(kind, 0)) for kind in ("book", "heartbeat", "quarantine")),
        str(found.missing),
        "" if through is None else time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(through / 1000)),
        broker,
    )
