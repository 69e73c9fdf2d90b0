"""What the carrier asks of Kafka, where a broker that is well would not show it."""

from __future__ import annotations

from typing import Any

import pytest
from kafka import TopicPartition
from kafka.errors import GroupAuthorizationFailedError, KafkaError, KafkaTimeoutError

from ingest_services.consumer.log import KafkaLog


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
