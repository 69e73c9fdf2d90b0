"""The log as the carrier sees it: everything that it asks of the broker, and nothing else.

Belongs here: how Kafka gives it. Does not belong here: what follows from an answer (`carrier.py`). The
deterministic simulation (`tests/simulation/`) puts a log in memory behind the same interface.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from ingest_services import kafka
from ingest_services.consumer import batches
from ingest_services.consumer.watermark import log_ends

POLL_MS = 100
# While everything is paused nothing can come, and a commit that ends must not wait for it.
PAUSED_POLL_MS = 20
# kafka-python's own default is 500; larger polls make better use of a big fetch.
MAX_POLL_RECORDS = 2_000
BROKER_TIMEOUT_S = 5.0
# The committed offset only saves a listing: it is not worth waiting for.
HINT_TIMEOUT_S = 1.0


class Record(Protocol):
    """A record as the broker gave it."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


@dataclass(frozen=True, slots=True)
class Read:
    """What one poll brought of a partition.

    Attributes:
        records: In offset order; may be none.
        position: Everything below was read, also where the log has no record at an offset; None if unknown.
        high: The log's end as some earlier answer had it, for people; None if unknown. It proves nothing.
    """

    records: Sequence[Record]
    position: int | None
    high: int | None


class Log(Protocol):
    """A connection to the broker on behalf of one consumer group.

    `describe` and `ends` may be called from other threads than the one that reads. Whatever asks the broker
    raises `KafkaError` if there is no answer.
    """

    def describe(self, topic: str) -> tuple[str, tuple[int, ...]]:
        """Return a topic's id and its partitions in order.

        Raises:
            TopicMissing: If the broker does not have it.
        """
        ...

    def starts(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the first offset that the broker still has."""
        ...

    def ends(self, positions: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """Return the offset after the last record, learned by requests that are sent after this call.

        Args:
            positions: An offset within each partition's log, or at its end.

        Raises:
            OffsetOutOfRangeError: If the log does not hold a position: it was truncated or rolled back.
        """
        ...

    def hint(self, partition: TopicPartition) -> int | None:
        """Return the group's committed offset, or None if there is none or no answer in time."""
        ...

    def publish(self, partition: TopicPartition, offset: int) -> None:
        """Set the group's committed offset, without waiting for it."""
        ...

    def begin(self, positions: Mapping[TopicPartition, int]) -> None:
        """Read these partitions, each from an offset on."""
        ...

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Go on at another offset."""
        ...

    def pause(self, partition: TopicPartition) -> None:
        """Bring no more records of a partition."""
        ...

    def resume(self, partition: TopicPartition) -> None:
        """Undo `pause`."""
        ...

    def poll(self) -> Mapping[TopicPartition, Read]:
        """Wait for records, `POLL_MS` at most, and return what came, for every partition that is read.

        Raises:
            OffsetOutOfRangeError: If the log does not hold a position: it was truncated or rolled back.
        """
        ...

    def close(self) -> None:
        """End the connection."""
        ...


class KafkaLog:
    """A `Log` on Kafka: a consumer with fixed partitions, and an admin client for the topic's id."""

    def __init__(self, config: Mapping[str, Any], consumer: KafkaConsumer, admin: KafkaAdminClient) -> None:
        self._config = config
        self._consumer = consumer
        self._admin = admin
        self._admin_lock = threading.Lock()
        self._partitions: tuple[TopicPartition, ...] = ()
        self._hints = True

    def describe(self, topic: str) -> tuple[str, tuple[int, ...]]:
        """See `Log.describe`."""
        with self._admin_lock:
            return kafka.topic_id(self._admin, topic)

    def starts(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """See `Log.starts`."""
        starts = self._consumer.beginning_offsets(list(partitions), timeout_ms=BROKER_TIMEOUT_S * 1000)
        return dict(starts)

    def ends(self, positions: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """See `Log.ends`."""
        return log_ends(self._config, positions, BROKER_TIMEOUT_S)

    def hint(self, partition: TopicPartition) -> int | None:
        """See `Log.hint`."""
        if not self._hints:
            return None
        try:
            offset = self._consumer.committed(partition, timeout_ms=HINT_TIMEOUT_S * 1000)
        except KafkaError:
            # The group's coordinator is away: to ask for each of many partitions would take a minute.
            self._hints = False
            return None
        return None if offset is None else int(offset)

    def publish(self, partition: TopicPartition, offset: int) -> None:
        """See `Log.publish`."""
        self._consumer.commit_async({partition: OffsetAndMetadata(offset, "", -1)})

    def begin(self, positions: Mapping[TopicPartition, int]) -> None:
        """See `Log.begin`."""
        self._partitions = tuple(positions)
        self._consumer.assign(list(positions))
        for partition, offset in positions.items():
            self._consumer.seek(partition, offset)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """See `Log.seek`."""
        self._consumer.seek(partition, offset)

    def pause(self, partition: TopicPartition) -> None:
        """See `Log.pause`."""
        self._consumer.pause(partition)

    def resume(self, partition: TopicPartition) -> None:
        """See `Log.resume`."""
        self._consumer.resume(partition)

    def poll(self) -> Mapping[TopicPartition, Read]:
        """See `Log.poll`."""
        self._take_up_resumed()
        idle = len(self._consumer.paused()) == len(self._partitions)
        polled = self._consumer.poll(timeout_ms=PAUSED_POLL_MS if idle else POLL_MS)
        return {
            partition: Read(
                polled.get(partition, ()),
                self._consumer.position(partition),
                self._consumer.highwater(partition),
            )
            for partition in self._partitions
        }

    def _take_up_resumed(self) -> None:
        """Read on what a paused partition had left of an answer, if one was resumed.

        kafka-python (3.0.12) does so only if the place for it is None. But an answer that was read to its end
        stays there, and under load there always is another one; and the partition is not asked for as long as
        something of it is left: it was never read again (`tests/integration/test_consumer_pause.py`).
        """
        fetcher, paused = self._consumer._fetcher, self._consumer.paused()
        left = fetcher._paused_partition_records
        resumed = next((partition for partition in left if partition not in paused), None)
        if resumed is None:
            return
        current, fetcher._next_partition_records = fetcher._next_partition_records, left[resumed]
        del left[resumed]
        if current:
            # Its turn comes with the next poll.
            left[current.topic_partition] = current

    def close(self) -> None:
        """See `Log.close`."""
        self._admin.close()
        self._consumer.close(timeout_ms=1000)


def connect_log(bootstrap: str, group: str) -> KafkaLog:
    """Connect to Kafka.

    Args:
        bootstrap: Brokers, as in KAFKA_BOOTSTRAP.
        group: Consumer group; only its committed offsets are used.

    Raises:
        KafkaError: If no broker answers, and whatever else the client raises.
        UserError: Likewise, from the admin client.
    """
    batches.install()
    config = kafka.client_config(bootstrap)
    consumer = kafka.connect(
        KafkaConsumer,
        **config,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="none",
        enable_incremental_fetch_sessions=False,
        max_poll_records=MAX_POLL_RECORDS,
        fetch_max_bytes=8 << 20,
    )
    try:
        admin = kafka.connect_admin(bootstrap)
    except BaseException:
        consumer.close(timeout_ms=1000)
        raise
    return KafkaLog(config, consumer, admin)
