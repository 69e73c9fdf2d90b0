"""What the carrier asks of Kafka, where a broker that is well would not show it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.errors import GroupAuthorizationFailedError, KafkaError, KafkaTimeoutError

from ingest_services.consumer.log import PAUSED_POLL_MS, POLL_MS, KafkaLog


class NoCoordinator:
    """A consumer whose group has nobody to ask."""

    def __init__(self, error: type[KafkaError]) -> None:
        self.error = error
        self.asked = 0

    def committed(self, partition: TopicPartition, timeout_ms: float) -> int:
        self.asked += 1
        raise self.error


@pytest.mark.parametrize("error", [KafkaTimeoutError, GroupAuthorizationFailedError])
def test_a_hint_that_is_not_to_be_had_is_waited_for_once_and_not_for_each_partition(
    error: type[KafkaError],
) -> None:
    consumer: Any = NoCoordinator(error)
    admin: Any = None
    log = KafkaLog({}, consumer, admin)
    assert [log.hint(TopicPartition("t", number)) for number in range(64)] == [None] * 64
    assert consumer.asked == 1


class AllPaused:
    """A consumer that is told how long to wait for records."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.halted: set[TopicPartition] = set()
        self._fetcher = SimpleNamespace(_paused_partition_records={})

    def assign(self, partitions: list[TopicPartition]) -> None:
        pass

    def seek(self, partition: TopicPartition, offset: int) -> None:
        pass

    def pause(self, partition: TopicPartition) -> None:
        self.halted.add(partition)

    def paused(self) -> set[TopicPartition]:
        return self.halted

    def poll(self, timeout_ms: float) -> dict[TopicPartition, list[object]]:
        self.waits.append(timeout_ms)
        return {}

    def position(self, partition: TopicPartition) -> int:
        return 0

    def highwater(self, partition: TopicPartition) -> int:
        return 0


def test_while_nothing_can_come_a_commit_that_ends_is_not_kept_waiting() -> None:
    consumer: Any = AllPaused()
    admin: Any = None
    log = KafkaLog({}, consumer, admin)
    one, other = TopicPartition("t", 0), TopicPartition("t", 1)
    log.begin({one: 0, other: 0})
    for partition in (one, other):
        log.pause(partition)
        log.poll()
    assert consumer.waits == [POLL_MS, PAUSED_POLL_MS]
