"""From heartbeats to covered intervals: over which time every change of a book was received."""

from __future__ import annotations

from collections.abc import Iterable

import orjson

from ingest_services.record import Heartbeat

Interval = tuple[int, int]


def read_heartbeats(data: bytes) -> list[Heartbeat]:
    """Read the content of a coverage object.

    Args:
        data: Its decompressed lines.

    Raises:
        ValueError: If a line is no heartbeat.
    """
    return [Heartbeat.from_json(orjson.loads(line)["heartbeat"]) for line in data.splitlines()]


def covered_intervals(heartbeats: Iterable[Heartbeat]) -> dict[str, list[Interval]]:
    """Return each ticker's covered intervals, µs since the epoch, disjoint and in order.

    A ticker that was subscribed to and never covered has an empty list. What lies between two intervals is a
    hole: nobody can say that nothing was missed there.
    """
    pieces: dict[str, list[Interval]] = {}
    for heartbeat in heartbeats:
        for ticker in heartbeat.subscribed:
            pieces.setdefault(ticker, [])
        for covered in heartbeat.covered:
            for ticker in covered.tickers:
                pieces.setdefault(ticker, []).append((covered.from_us, covered.to_us))
    return {ticker: merge(intervals) for ticker, intervals in pieces.items()}


def merge(intervals: Iterable[Interval]) -> list[Interval]:
    """Return the union of intervals, disjoint and in order; touching ones become one."""
    merged: list[Interval] = []
    for start, end in sorted(i for i in intervals if i[0] < i[1]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def covered_us(intervals: Iterable[Interval], from_us: int, to_us: int) -> int:
    """Return how much of [from_us, to_us) the intervals cover, µs."""
    clipped = ((max(start, from_us), min(end, to_us)) for start, end in intervals)
    return sum(end - start for start, end in merge(clipped))
