"""Time, the one dimension: 5-minute windows and days on the market's clock; a window's key has its offset.

Belongs here: the partitions definition and the way from key to window and back. Does not belong here: which
windows are complete (`catalog`).
"""

from __future__ import annotations

from datetime import UTC, date

from dagster import TimeWindowPartitionsDefinition

from cryptostream_dagster.day import DAY_FORMAT, Day
from cryptostream_dagster.settings import PARTITION_KEY_FORMAT, PipelineSettings
from cryptostream_dagster.window import Window
from ingest_services.errors import UserError

CRON = "*/5 * * * *"
MIDNIGHT = "0 0 * * *"


def window_partitions(settings: PipelineSettings) -> TimeWindowPartitionsDefinition:
    """Return the partitions of the windows' assets: one per window from `PARTITIONS_START` on."""
    return TimeWindowPartitionsDefinition(
        start=settings.first_window.astimezone(settings.zone).strftime(PARTITION_KEY_FORMAT),
        cron_schedule=CRON,
        fmt=PARTITION_KEY_FORMAT,
        timezone=settings.market_time_zone,
    )


def window_of(partitions: TimeWindowPartitionsDefinition, key: str) -> Window:
    """Return the window that a partition key names.

    Raises:
        UserError: If it is no key of these partitions. Dagster itself would round a key beside the grid.
    """
    if not partitions.has_partition_key(key):
        raise UserError(
            f"partition {key} does not exist: keys look like {partitions.get_first_partition_key()}, one for "
            "each 5-minute window from PARTITIONS_START to the newest that has ended"
        )
    return Window(partitions.time_window_for_partition_key(key).start.astimezone(UTC))


def key_of(settings: PipelineSettings, window: Window) -> str:
    """Return the partition key that names a window."""
    return window.local(settings.zone).strftime(PARTITION_KEY_FORMAT)


def day_partitions(settings: PipelineSettings) -> TimeWindowPartitionsDefinition:
    """Return the partitions of `orderbook_daily`: one per day, from the one of `PARTITIONS_START` on."""
    return TimeWindowPartitionsDefinition(
        start=str(Day.at(settings.first_window, settings.zone)),
        cron_schedule=MIDNIGHT,
        fmt=DAY_FORMAT,
        timezone=settings.market_time_zone,
    )


def day_of(days: TimeWindowPartitionsDefinition, key: str, settings: PipelineSettings) -> Day:
    """Return the day that a partition key names.

    Raises:
        UserError: If it is no key of these partitions.
    """
    if not days.has_partition_key(key):
        raise UserError(
            f"partition {key} does not exist: keys look like {days.get_first_partition_key()}, one for each "
            "day from that of PARTITIONS_START to the newest that has ended"
        )
    return Day(date.fromisoformat(key), settings.zone)
