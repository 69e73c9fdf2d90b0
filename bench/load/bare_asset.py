"""A code location with one asset of 5-minute partitions in UTC and nothing else: what Dagster itself takes.

BARE_START, in the environment, is its first partition, an instant without an offset.
"""

import os

import dagster as dg


@dg.asset(
    partitions_def=dg.TimeWindowPartitionsDefinition(
        start=os.environ["BARE_START"], cron_schedule="*/5 * * * *", fmt="%Y-%m-%dT%H:%M"
    )
)
def bare() -> None:
    """Does nothing; nothing of it is materialized."""


defs = dg.Definitions([bare])
