"""How `cryptostream status` looks: one screen for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cryptostream_dagster.local.view import banner
from cryptostream_dagster.overview import Claim, Overview, Service, WindowState, in_words
from cryptostream_dagster.window import WINDOW, Window

UNKNOWN = "unknown"


def as_screen(overview: Overview, troubles: Sequence[str], zone: ZoneInfo) -> RenderableType:
    """Return an overview as one screen.

    Args:
        overview: What was seen.
        troubles: What needs a person.
        zone: The market's time zone; times of today are shown without their day.
    """
    at = overview.at.astimezone(zone)
    parts: list[RenderableType] = [
        Text(f"{banner(overview.source)}; {at:%Y-%m-%d %H:%M:%S %Z}", style="bold"),
        Text(),
        _services(overview.services),
        Text(),
        _figures(overview, zone),
        Text(),
        _windows(overview, zone),
    ]
    if overview.failed:
        parts += [Text(), _failed(overview, zone)]
    parts.append(Text())
    if troubles:
        parts += [Text(f"! {trouble}", style="bold red") for trouble in troubles]
    else:
        parts.append(Text("nothing needs a person", style="green"))
    return Group(*parts)


def as_json(overview: Overview, troubles: Sequence[str]) -> str:
    """Return an overview as JSON: instants as ISO 8601 in UTC, what is unknown as null."""
    told = {"troubles": list(troubles), **asdict(overview)}
    if overview.newest is not None:
        told["newest"] = {
            "built": overview.newest.built and overview.newest.built.start,
            "covered": overview.newest.covered and overview.newest.covered.start,
        }
    return json.dumps(told, indent=2, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return float(value)  # Postgres' numeric


def _services(services: Sequence[Service]) -> Table:
    table = Table.grid(padding=(0, 2))
    marks = {True: ("ok", "green"), False: ("NOT WELL", "bold red"), None: (UNKNOWN, "yellow")}
    for service in services:
        mark, style = marks[service.well]
        detail = "" if service.well and service.detail == "ok" else service.detail
        table.add_row(service.name, Text(mark, style=style), Text(detail, style="dim"))
    return table


def _figures(overview: Overview, zone: ZoneInfo) -> Table:
    table = Table.grid(padding=(0, 2))
    newest, now = overview.newest, overview.at
    for name, value in (
        ("claimed through", _claimed(overview.claims, now, zone)),
        ("complete until", _moment(overview.complete_until, now, zone)),
        ("newest built", UNKNOWN if newest is None else _window(newest.built, now, zone)),
        ("newest covered", UNKNOWN if newest is None else _window(newest.covered, now, zone)),
        ("not built yet", UNKNOWN if overview.unbuilt is None else f"{overview.unbuilt} complete windows"),
        ("coverage, last 3 h", _coverage(overview)),
    ):
        table.add_row(name, value)
    return table


def _claimed(claims: Sequence[Claim] | None, now: datetime, zone: ZoneInfo) -> str:
    if claims is None:
        return UNKNOWN
    if not claims:
        return "no chain is open"
    shown = []
    for claim in claims[:8]:
        what = f"{claim.topic}/{claim.partition}"
        if claim.through is None or claim.claimed_at is None:
            shown.append(f"{what} nothing yet")
        else:
            age = (now - claim.claimed_at).total_seconds()
            shown.append(f"{what} {claim.through.astimezone(zone):%H:%M} ({age:.0f} s ago)")
    more = f" … {len(claims) - 8} more" if len(claims) > 8 else ""
    return "  ".join(shown) + more


def _coverage(overview: Overview) -> str:
    if overview.worst is None or overview.coverage is None:
        return UNKNOWN
    worst = [f"{ticker} {_share(ratio)}" for ticker, ratio in overview.worst if ratio < 1]
    return f"mean {_share(overview.coverage)}" + (f"; worst: {', '.join(worst)}" if worst else ", all of it")


def _windows(overview: Overview, zone: ZoneInfo) -> RenderableType:
    if overview.windows is None:
        return Text(f"windows: {UNKNOWN}")
    if not overview.windows:
        return Text("no window yet")
    table = Table(box=None, padding=(0, 2), header_style="dim", pad_edge=False)
    for column in ("window", "books", "tickers", "coverage", "version", "built", "after its end"):
        table.add_column(column, justify="left" if column in {"window", "built"} else "right")
    for window in overview.windows:
        built = _moment(window.built_at, overview.at, zone, seconds=True)
        table.add_row(
            _moment(window.start, overview.at, zone),
            f"{window.rows:,}",
            "-" if window.tickers is None else f"{window.tickers:,}",
            UNKNOWN if window.coverage is None else _share(window.coverage),
            "-" if window.version is None else str(window.version),
            _state(window) or built,
            "-" if window.built_at is None else in_words(window.built_at - window.start - WINDOW),
        )
    return table


def _state(window: WindowState) -> str:
    """What is the matter with a window; empty if it is built."""
    if window.frozen:
        return "frozen"
    if window.failure is not None:
        return "FAILED"
    if window.version is None:
        return "not yet"
    return "" if window.current else "has grown since"


def _failed(overview: Overview, zone: ZoneInfo) -> Table:
    table = Table.grid(padding=(0, 2))
    for failed in overview.failed or []:
        when = _moment(failed.start, overview.at, zone)
        table.add_row(Text("failed", style="red"), when, failed.asset, Text(failed.reason))
    return table


def _window(window: Window | None, now: datetime, zone: ZoneInfo) -> str:
    if window is None:
        return "none within a day"
    return f"{_moment(window.start, now, zone)}, ended {in_words(now - window.end)} ago"


def _moment(moment: datetime | None, now: datetime, zone: ZoneInfo, *, seconds: bool = False) -> str:
    if moment is None:
        return UNKNOWN
    local = moment.astimezone(zone)
    time = f"{local:%H:%M:%S}" if seconds else f"{local:%H:%M}"
    return time if local.date() == now.astimezone(zone).date() else f"{local:%Y-%m-%d} {time}"


def _share(ratio: float) -> str:
    # Rounded down: 100 % is all of it.
    return f"{int(ratio * 1000) / 10:g} %"
