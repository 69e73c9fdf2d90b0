"""The one time dimension: 5-minute windows in the market's time zone, the UTC offset in the key.

Belongs here: the partitions definition and the way from key to window and back. Does not belong here: which
windows are complete (`catalog`).
"""

from __future__ import annotations

from datetime import UTC

from dagster import TimeWindowPartitionsDefinition

from cryptostream_dagster.settings import PARTITION_KEY_FORMAT, PipelineSettings
from cryptostream_dagster.window import Window
from ingest_services.errors import UserError

CRON = "*/5 * * * *"


def window_partitions(settings: PipelineSettings) -> TimeWindowPartitionsDefinition:
    """Return the partitions of all assets: one per window from `PARTITIONS_START` on."""
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
