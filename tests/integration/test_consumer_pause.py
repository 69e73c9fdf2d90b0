"""A partition that was paused is read on when it is resumed, whatever the others do meanwhile."""

from __future__ import annotations

from contextlib import closing

import pytest
from kafka import KafkaProducer, TopicPartition

from ingest_services import kafka
from ingest_services.consumer.log import MAX_POLL_RECORDS, connect_log
from tests.broker import Broker

RECORDS = 3 * MAX_POLL_RECORDS


@pytest.mark.parametrize("beside", [0, 20 * RECORDS], ids=["idle", "busy"])
def test_a_partition_paused_in_the_middle_of_an_answer_is_read_on(broker: Broker, beside: int) -> None:
    topic = broker.topic(2)
    one, other = TopicPartition(topic, 0), TopicPartition(topic, 1)
    producer = KafkaProducer(**kafka.client_config(broker.bootstrap), acks="all", linger_ms=5)
    for partition, count in ((0, RECORDS), (1, beside)):
        for number in range(count):
            producer.send(topic, b"%d" % number, partition=partition)
    producer.close()
    found: dict[TopicPartition, list[bytes | None]] = {one: [], other: []}
    with closing(connect_log(broker.bootstrap, "g")) as log:
        log.begin({one: 0, other: 0})

        def read(polls: int) -> None:
            for _ in range(polls):
                for partition, read in log.poll().items():
                    found[partition] += [record.value for record in read.records]

        while not found[one]:
            read(1)
        log.pause(one)
        before = len(found[one])
        # Long enough for an idle partition to answer.
        read(20)
        assert len(found[one]) == before < RECORDS
        log.resume(one)
        while len(found[other]) < beside // 2:
            read(1)
        for _ in range(100):
            if len(found[one]) < RECORDS:
                read(1)
        assert found[one] == [b"%d" % number for number in range(RECORDS)]
        assert found[other] == [b"%d" % number for number in range(len(found[other]))]
