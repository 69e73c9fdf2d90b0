"""What the broker says of a topic's log now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from ingest_services import kafka
from ingest_services.consumer.watermark import log_ends
from ingest_services.lake.audit import BrokerLog

TIMEOUT_S = 10.0


def ask_logs(bootstrap: str, topics: Sequence[str]) -> Mapping[str, BrokerLog | None]:
    """Ask where the logs of some topics begin and end.

    Args:
        bootstrap: Brokers, as in KAFKA_BOOTSTRAP.
        topics: Names of topics.

    Returns:
        By topic; None for one that the broker does not have.

    Raises:
        UserError: If no broker answers.
    """
    config = kafka.client_config(bootstrap)
    found: dict[str, BrokerLog | None] = {}
    with kafka.open_admin(bootstrap) as admin:
        try:
            consumer = kafka.connect(KafkaConsumer, **config, group_id=None, enable_auto_commit=False)
            try:
                for topic in topics:
                    try:
                        topic_id, numbers = kafka.topic_id(admin, topic)
                    except kafka.TopicMissing:
                        found[topic] = None
                        continue
                    tps = [TopicPartition(topic, number) for number in numbers]
                    starts = consumer.beginning_offsets(tps, timeout_ms=TIMEOUT_S * 1000)
                    ends = log_ends(config, starts, TIMEOUT_S)
                    found[topic] = BrokerLog(
                        topic_id,
                        {tp.partition: offset for tp, offset in starts.items()},
                        {tp.partition: offset for tp, offset in ends.items()},
                    )
            finally:
                consumer.close()
        except KafkaError as error:
            raise kafka.unreachable(bootstrap, error) from error
    return found
