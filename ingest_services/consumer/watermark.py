"""Where a partition's log ends *now*: an answer to a request sent after the question was asked.

A cached high watermark proves nothing, and one that arrives now may answer a fetch sent before. So each
question gets a client of its own: every request of it is younger than the question. It happens about once a
minute. The larger of list-offsets and a fetch's high watermark counts, because the embedded broker answers
list-offsets with the first offset of its last batch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaTimeoutError

from ingest_services.consumer import batches
from ingest_services.kafka import connect


def log_ends(
    config: Mapping[str, Any], positions: Mapping[TopicPartition, int], timeout_s: float
) -> dict[TopicPartition, int]:
    """Return the offset after the last record of some partitions.

    Args:
        config: Client configuration (`kafka.client_config`).
        positions: An offset within each partition's log, or at its end, to fetch from.
        timeout_s: How long to wait for the broker, seconds.

    Raises:
        KafkaTimeoutError: If the broker did not answer for every partition in time.
        OffsetOutOfRangeError: If the log does not hold a position: it was truncated or rolled back.
    """
    deadline = time.monotonic() + timeout_s
    batches.install()
    consumer = connect(
        KafkaConsumer,
        **config,
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="none",
        enable_incremental_fetch_sessions=False,
        fetch_max_wait_ms=10,
        max_partition_fetch_bytes=1,
    )
    try:
        consumer.assign(list(positions))
        for partition, offset in positions.items():
            consumer.seek(partition, offset)
        ends: dict[TopicPartition, int] = consumer.end_offsets(list(positions), timeout_ms=timeout_s * 1000)
        waiting = set(positions)
        while waiting:
            if time.monotonic() > deadline:
                raise KafkaTimeoutError(f"no answer for {sorted(waiting)} within {timeout_s} s")
            consumer.poll(timeout_ms=50, max_records=1)
            for partition in list(waiting):
                high = consumer.highwater(partition)
                if high is not None:
                    ends[partition] = max(ends[partition], high)
                    consumer.pause(partition)
                    waiting.remove(partition)
        return ends
    finally:
        consumer.close()
