"""A lane: one idempotent Kafka producer on one partition, and what it sent that is not acknowledged yet.

Records of a lane are acknowledged in the order they were sent. kafka-python retries for ever under the same
sequence numbers, so an outage of the brokers duplicates nothing. When it gives a batch up all the same (the
broker forgot the producer, say), the lane breaks: its owner takes the unacknowledged records back and a new
producer is made in the background.

Belongs here: the only code that sends to Kafka. Does not belong here: what to do with records meanwhile.
"""

from __future__ import annotations

import enum
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import structlog
from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError

from ingest_services.backoff import Backoff
from ingest_services.kafka import client_config, connect
from ingest_services.producer.outgoing import Outgoing

LINGER_MS = 5
BATCH_BYTES = 256 * 1024
# In effect for ever: a record that was sent stays with its producer, and its sequence number, until its fate
# is known. What must survive meanwhile is on disk.
DELIVERY_TIMEOUT_MS = 10 * 365 * 24 * 3600 * 1000
# `send` blocks only while the topic's metadata is unknown; a lane that has to wait says so instead.
MAX_BLOCK_MS = 20
# A topic that is not in the brokers' metadata is not tried again for so long: each attempt waits for
# MAX_BLOCK_MS, and ends a segment of the spool.
UNKNOWN_TOPIC_S = 1.0
# Between a lane that broke and the next: brokers that refuse whatever is sent must not become a storm.
REMAKE_BASE_S, REMAKE_CAP_S = 0.1, 10.0
# What a record adds to its value: key, headers and the client's own objects.
RECORD_OVERHEAD_BYTES = 600

Tag = TypeVar("Tag")

_log = structlog.get_logger()


class Outcome(enum.Enum):
    """What became of one send."""

    SENT = 0
    NOT_READY = 1
    REFUSED = 2


class Sent(NamedTuple, Generic[Tag]):
    """A record on its way."""

    future: Any
    at_s: float
    record: Outgoing
    tag: Tag


def connect_producer(bootstrap: str) -> KafkaProducer:
    """Make an idempotent producer; blocks until a broker answers.

    Raises:
        KafkaError: If none does within the bound of `client_config`.
    """
    return connect(
        KafkaProducer,
        **client_config(bootstrap),
        acks="all",
        enable_idempotence=True,
        compression_type="zstd",
        linger_ms=LINGER_MS,
        batch_size=BATCH_BYTES,
        delivery_timeout_ms=DELIVERY_TIMEOUT_MS,
        max_block_ms=MAX_BLOCK_MS,
        metrics_enabled=False,
    )


class Lane(Generic[Tag]):
    """Sends to one partition; used by one thread."""

    def __init__(self, bootstrap: str, topic: str, partition: int, name: str) -> None:
        """Describe a lane; it is ready once its producer is made, which begins at once in the background.

        Args:
            bootstrap: Brokers, as in KAFKA_BOOTSTRAP.
            topic: Topic.
            partition: Partition.
            name: For the log.
        """
        self._bootstrap = bootstrap
        self._topic = topic
        self._partition = partition
        self._name = name
        self._producer: KafkaProducer | None = None
        self._made: deque[KafkaProducer] = deque(maxlen=1)
        self._arrived = threading.Event()
        self._closing = threading.Event()
        self._unready_until_s = 0.0
        self._breaks = Backoff(REMAKE_BASE_S, REMAKE_CAP_S)
        self.sent: deque[Sent[Tag]] = deque()
        self.bytes = 0
        self.broken = False
        self._begin_making(0.0)

    @property
    def ready(self) -> bool:
        """Whether records can be sent now."""
        if self._producer is None and self._made and not self.broken:
            self._producer = self._made.popleft()
        return self._producer is not None and time.monotonic() >= self._unready_until_s

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until records can be sent; return whether they can."""
        self._arrived.wait(timeout_s)
        return self.ready

    def oldest_s(self, now_s: float) -> float:
        """Return for how long the oldest record has been on its way, seconds (monotonic clock)."""
        return now_s - self.sent[0].at_s if self.sent else 0.0

    def send(self, record: Outgoing, tag: Tag, now_s: float) -> Outcome:
        """Hand a record to Kafka without waiting for anything.

        Args:
            record: The record.
            tag: Comes back with the acknowledgement.
            now_s: Monotonic clock.
        """
        if not self.ready:
            return Outcome.NOT_READY
        assert self._producer is not None
        try:
            future = self._producer.send(
                self._topic,
                value=record.value,
                key=record.key,
                headers=record.headers,
                partition=self._partition,
                # Brokers refuse stamps in the future. `received_us` stays what it was, even if the clock was
                # ahead; the spool must not wait for that hour.
                timestamp_ms=min(record.received_us // 1000, time.time_ns() // 1_000_000),
            )
        except MessageSizeTooLargeError:
            return Outcome.REFUSED
        except (KafkaTimeoutError, ValueError):
            # The topic or the partition is not in the brokers' metadata at this moment.
            self._unready_until_s = time.monotonic() + UNKNOWN_TOPIC_S
            return Outcome.NOT_READY
        self.sent.append(Sent(future, now_s, record, tag))
        self.bytes += len(record.value) + RECORD_OVERHEAD_BYTES
        return Outcome.SENT

    def acknowledged(self) -> Iterator[Sent[Tag]]:
        """Yield, in order, what Kafka acknowledged since the last call; stops and breaks at a failure."""
        while self.sent and self.sent[0].future.is_done:
            first = self.sent[0]
            if first.future.failed():
                self._break(first.future.exception)
                return
            self.sent.popleft()
            self.bytes -= len(first.record.value) + RECORD_OVERHEAD_BYTES
            self._breaks.reset()
            yield first

    def take_back(self) -> list[Sent[Tag]]:
        """Return what a broken lane had not got acknowledged, in order, and begin again."""
        back = list(self.sent)
        self.sent.clear()
        self.bytes = 0
        self.broken = False
        self._begin_making(self._breaks.next_s())
        return back

    def close(self) -> None:
        """Give everything up at once; what was not acknowledged may or may not arrive."""
        self._closing.set()
        while self._made:
            _discard(self._made.popleft())
        if self._producer is not None:
            _discard(self._producer)
            self._producer = None

    def _break(self, reason: object) -> None:
        _log.warning("kafka_gave_up", lane=self._name, reason=repr(reason), unacknowledged=len(self.sent))
        self.broken = True
        if self._producer is not None:
            _discard(self._producer)
            self._producer = None

    def _begin_making(self, delay_s: float) -> None:
        threading.Thread(
            target=self._make, args=(delay_s,), name=f"{self._name}-connect", daemon=True
        ).start()

    def _make(self, delay_s: float) -> None:
        backoff = Backoff(base_s=0.1, cap_s=2.0)
        self._closing.wait(delay_s)
        while not self._closing.is_set():
            try:
                producer = connect_producer(self._bootstrap)
            except (KafkaError, OSError) as error:
                _log.debug("kafka_not_reached", lane=self._name, error=str(error))
            except Exception:  # noqa: BLE001 (a lane that nobody makes any more would spool for ever)
                _log.exception("kafka_client_failed", lane=self._name)
            else:
                if self._partition_known(producer):
                    self._made.append(producer)
                    self._arrived.set()
                    if self._closing.is_set():
                        _discard(producer)
                    return
                _discard(producer)
            self._closing.wait(backoff.next_s())

    def _partition_known(self, producer: KafkaProducer) -> bool:
        # `partitions_for` waits at most MAX_BLOCK_MS; the answer to its own request comes in that time or in
        # the next.
        for _ in range(100):
            try:
                return self._partition in producer.partitions_for(self._topic)
            except KafkaTimeoutError:
                if self._closing.wait(0.05):
                    return False
            except KafkaError:
                return False
        return False


def _discard(producer: KafkaProducer) -> None:
    # `close` would first wait for the batches that are being given up, and raise if they do not finish: the
    # sender has to be told before. Nothing public does.
    producer._sender.force_close()
    threading.Thread(target=_close, args=(producer,), name="kafka-close", daemon=True).start()


def _close(producer: KafkaProducer) -> None:
    try:
        producer.close(timeout=1)
    except KafkaError as error:
        _log.debug("kafka_close", error=str(error))
