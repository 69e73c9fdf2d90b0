"""From heartbeats to covered intervals: over which time every change of a book was received."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import orjson

from ingest_services.record import Heartbeat

Interval = tuple[int, int]


def read_reports(data: bytes) -> list[tuple[int, Heartbeat]]:
    """Read the content of a coverage object: heartbeats, each with when it was received, µs since the epoch.

    Args:
        data: Its decompressed lines.

    Raises:
        ValueError: If a line is no heartbeat.
    """
    reports = []
    for line in data.splitlines():
        try:
            message = orjson.loads(line)
            received_us = int(message["received_us"])
            heartbeat = message["heartbeat"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a line of a coverage object: {error!r}") from error
        reports.append((received_us, Heartbeat.from_json(heartbeat)))
    return reports


def read_heartbeats(data: bytes) -> list[Heartbeat]:
    """Read the heartbeats of a coverage object, in the order of the log.

    Args:
        data: Its decompressed lines.

    Raises:
        ValueError: If a line is no heartbeat.
    """
    return [heartbeat for _, heartbeat in read_reports(data)]


def covered_intervals(heartbeats: Iterable[Heartbeat]) -> dict[str, list[Interval]]:
    """Return each ticker's covered intervals, µs since the epoch, disjoint and in order.

    The union over connections of what each covered; a hole takes back what its own connection claimed, and no
    other's claim. The order of the heartbeats does not matter. A ticker that was named and never covered has
    an empty list. What lies between two intervals is a hole: nobody can say that nothing was missed there.
    """
    tickers: set[str] = set()
    covered: defaultdict[tuple[str, str], list[Interval]] = defaultdict(list)
    holes: defaultdict[tuple[str, str], list[Interval]] = defaultdict(list)
    for heartbeat in heartbeats:
        tickers.update(heartbeat.subscribed)
        for found, spans in ((covered, heartbeat.covered), (holes, heartbeat.holes)):
            for span in spans:
                for ticker in span.tickers:
                    found[ticker, heartbeat.connection].append((span.from_us, span.to_us))
    left: dict[str, list[Interval]] = {ticker: [] for ticker in tickers}
    for (ticker, connection), intervals in covered.items():
        left.setdefault(ticker, []).extend(subtract(intervals, holes.get((ticker, connection), ())))
    for ticker, _ in holes:
        left.setdefault(ticker, [])
    return {ticker: merge(intervals) for ticker, intervals in left.items()}


def merge(intervals: Iterable[Interval]) -> list[Interval]:
    """Return the union of intervals, disjoint and in order; touching ones become one."""
    merged: list[Interval] = []
    for start, end in sorted(i for i in intervals if i[0] < i[1]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def subtract(intervals: Iterable[Interval], holes: Iterable[Interval]) -> list[Interval]:
    """Return what intervals cover and holes do not, disjoint and in order."""
    left = merge(intervals)
    for start, end in merge(holes):
        left = [
            piece
            for from_us, to_us in left
            for piece in ((from_us, min(to_us, start)), (max(from_us, end), to_us))
            if piece[0] < piece[1]
        ]
    return left


def covered_us(intervals: Iterable[Interval], from_us: int, to_us: int) -> int:
    """Return how much of [from_us, to_us) the intervals cover, µs."""
    clipped = ((max(start, from_us), min(end, to_us)) for start, end in intervals)
    return sum(end - start for start, end in merge(clipped))
