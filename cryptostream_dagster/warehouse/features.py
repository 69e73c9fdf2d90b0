"""Writing a window's book features: rows that changed are replaced, the others are not touched."""

from __future__ import annotations

from dataclasses import dataclass
from zoneinfo import ZoneInfo

import psycopg

from cryptostream_dagster.sql import load_sql
from cryptostream_dagster.transforms.features import TickerFeatures
from cryptostream_dagster.window import Window

_PACKAGE = "cryptostream_dagster.warehouse"


@dataclass(frozen=True, slots=True)
class FeaturesWritten:
    """What writing a window's features changed.

    Attributes:
        rows: Rows of the window now.
        new: Those that were not there before, or not like this.
        dropped: Those that were there and are not any more, or not like that.
    """

    rows: int
    new: int
    dropped: int


def write_features(
    connection: psycopg.Connection,
    window: Window,
    version: int,
    features: list[TickerFeatures],
    zone: ZoneInfo,
) -> FeaturesWritten:
    """Write a window's features.

    Args:
        connection: In the transaction that holds `lock_window`.
        window: The window.
        version: Of the seal that they were built from.
        features: One per ticker with a usable book.
        zone: The market's time zone.
    """
    arguments = {"start": window.start, "event_date": window.event_date(zone), "version": version}
    connection.execute(load_sql(_PACKAGE, "stage_features"))
    with connection.cursor().copy("COPY stage FROM STDIN") as copy:
        for row in features:
            copy.write_row(row)
    connection.execute(load_sql(_PACKAGE, "fresh_features"), arguments)
    dropped = connection.execute(load_sql(_PACKAGE, "drop_stale_features"), arguments).rowcount
    new = connection.execute(load_sql(_PACKAGE, "insert_features"), arguments).rowcount
    return FeaturesWritten(len(features), new, dropped)
