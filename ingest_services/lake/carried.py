"""Which partitions of a chain are nobody's: their claims stand still while time goes on."""

from __future__ import annotations

from collections.abc import Mapping

from ingest_services.lake import chain as chains
from ingest_services.lake.chain import Chain
from ingest_services.lake.layout import MINUTE_MS
from ingest_services.lake.store import ObjectStore

# A consumer claims every minute; windows have five, and are waited for no longer than that.
STALE_MS = 5 * MINUTE_MS


def behind_ms(store: ObjectStore, chain: Chain, now_ms: int | None = None) -> Mapping[int, int]:
    """Return how far the claim of each partition of an open chain is behind, ms.

    Args:
        store: The lake.
        chain: The chain.
        now_ms: Behind this instant; None: behind the newest claim beside them.
    """
    through = {}
    for partition in chain.partitions:
        claim = chains.read_progress(store, chain.number, partition)
        # A chain that was just opened has claimed nothing yet.
        through[partition] = max(claim.minutes_through_ms if claim else 0, chain.since_ms)
    newest = max(through.values(), default=0) if now_ms is None else now_ms
    return {partition: max(0, newest - through_ms) for partition, through_ms in through.items()}
