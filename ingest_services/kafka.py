"""What producers, consumers and the command line share of Kafka: one client configuration and topics.

Belongs here: how a client finds the brokers, which topics exist and what identifies them. Does not belong
here: sending (`producer/`) and reading (`consumer/`) records.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError, UnknownTopicOrPartitionError
from kafka.net.compat import KafkaNetClient

from ingest_services.errors import UserError

CONNECT_TIMEOUT_S = 5.0
# A broker that comes back is found again within about a second; the client's own ceiling is 30 s.
RECONNECT_BACKOFF_MAX_MS = 1000
# Bounds how long a half-open connection to a broker goes unnoticed.
REQUEST_TIMEOUT_MS = 10_000

_TOPIC_ALREADY_EXISTS = 36
_TOO_FEW_BROKERS = 38

ClientT = TypeVar("ClientT")


class TopicMissing(UserError):  # noqa: N818 (named after what it says)
    """A topic that the broker does not have."""


class Unreachable(UserError):  # noqa: N818 (named after what it says)
    """No broker answers, or too few are there. That may pass; every other `UserError` here needs a person."""


def client_config(bootstrap: str) -> dict[str, Any]:
    """Return the settings that every Kafka client of this project shares.

    Args:
        bootstrap: Brokers, `host:port` separated by commas, as in KAFKA_BOOTSTRAP.
    """
    # The client logs every attempt on a broker that is away, several lines a second. Each service reports the
    # outage itself, once, in its own words.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    return {
        "bootstrap_servers": [server.strip() for server in bootstrap.split(",") if server.strip()],
        "client_id": "cryptostream",
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
        "reconnect_backoff_max_ms": RECONNECT_BACKOFF_MAX_MS,
        "bootstrap_timeout_ms": int(CONNECT_TIMEOUT_S * 1000),
        "kafka_client": _client_that_creates_no_topics,
    }


def _client_that_creates_no_topics(**config: Any) -> KafkaNetClient:
    # kafka-python 3.0 does not hand `allow_auto_create_topics` down to its metadata requests: a topic that is
    # gone would come back, with the broker's default partition count, because somebody asked where it is.
    client = KafkaNetClient(**config)
    client.cluster.config["allow_auto_create_topics"] = False
    return client


def connect(kind: Callable[..., ClientT], **config: Any) -> ClientT:
    """Make a Kafka client; if it cannot be made, nothing of it is left behind.

    kafka-python (3.0.12) leaves a thread and four descriptors behind for each client that found no broker: an
    outage of an hour ends a service that tries again every few seconds.

    Args:
        kind: `KafkaProducer`, `KafkaConsumer` or `KafkaAdminClient`.
        **config: As `client_config` gives it, and more.

    Raises:
        KafkaError: If no broker answers, and whatever else the client raises.
    """
    inner: list[KafkaNetClient] = []

    def make(**given: Any) -> KafkaNetClient:
        inner.append(_client_that_creates_no_topics(**given))
        return inner[-1]

    try:
        return kind(**{**config, "kafka_client": make})
    except BaseException:
        for client in inner:
            client.close()
        raise


def unreachable(bootstrap: str, error: object) -> Unreachable:
    """Return the one line that says that no broker answers."""
    return Unreachable(
        f"KAFKA_BOOTSTRAP={bootstrap}: no broker answers ({error or 'no reason given'}); "
        "is it running, and is the address right?"
    )


def connect_admin(bootstrap: str) -> KafkaAdminClient:
    """Connect an admin client; the caller closes it.

    Raises:
        Unreachable: If no broker answers within `CONNECT_TIMEOUT_S`.
        UserError: If the address is empty.
    """
    config = client_config(bootstrap)
    if not config["bootstrap_servers"]:
        raise UserError(f"KAFKA_BOOTSTRAP={bootstrap}: is empty; it must be host:port, several with commas")
    try:
        return connect(KafkaAdminClient, **config)
    except (KafkaError, OSError, ValueError) as error:
        raise unreachable(bootstrap, error) from error


@contextmanager
def open_admin(bootstrap: str) -> Iterator[KafkaAdminClient]:
    """Connect an admin client for the length of a `with` block.

    Raises:
        UserError: As `connect_admin`.
    """
    admin = connect_admin(bootstrap)
    try:
        yield admin
    finally:
        admin.close()


def create_topics(bootstrap: str, partitions: Mapping[str, int]) -> None:
    """Create the topics that do not exist yet, with exactly these partitions. Doing it again changes nothing.

    Args:
        bootstrap: Brokers, as in KAFKA_BOOTSTRAP.
        partitions: How many partitions each topic has.

    Raises:
        Unreachable: If no broker answers, or fewer than a topic has replicas: a cluster that comes up.
        UserError: If a topic cannot be created, or one exists with another count.
    """
    with open_admin(bootstrap) as admin:
        try:
            # The replication factor is left to the cluster: it says how the cluster is built, not the data.
            answer = admin.create_topics(
                {topic: {"num_partitions": count} for topic, count in partitions.items()},
                raise_errors=False,
            )
            for result in answer["topics"]:
                if result["error_code"] == _TOO_FEW_BROKERS:
                    raise Unreachable(
                        f"topic {result['name']}: KAFKA_BOOTSTRAP={bootstrap} has fewer brokers than a topic "
                        f"has replicas ({result['error_message']}); are they all running?"
                    )
                if result["error_code"] not in (0, _TOPIC_ALREADY_EXISTS):
                    raise UserError(
                        f"topic {result['name']}: cannot be created on KAFKA_BOOTSTRAP={bootstrap} "
                        f"({result['error_message'] or 'error ' + str(result['error_code'])})"
                    )
            admin.wait_for_topics(list(partitions))
        except KafkaError as error:
            raise unreachable(bootstrap, error) from error
        for topic, count in partitions.items():
            _, found = topic_id(admin, topic)
            if found != tuple(range(count)):
                raise UserError(
                    f"topic {topic} has {len(found)} partitions on KAFKA_BOOTSTRAP={bootstrap}, and "
                    f"producer.conf names {count}; name another topic_name, or make the sections fit"
                )


def topic_id(broker: str | KafkaAdminClient, topic: str) -> tuple[str, tuple[int, ...]]:
    """Return what identifies a topic: a topic that was deleted and made again has another id.

    Args:
        broker: Brokers as in KAFKA_BOOTSTRAP, or a connected admin client.
        topic: The topic's name.

    Returns:
        Its id, and its partition numbers in order.

    Raises:
        TopicMissing: If the broker does not have it.
        UserError: If `broker` is an address and no broker answers, or the broker knows no topic ids.
        KafkaError: If `broker` is a client and it gets no answer.
    """
    if isinstance(broker, str):
        with open_admin(broker) as admin:
            try:
                return topic_id(admin, topic)
            except KafkaError as error:
                raise unreachable(broker, error) from error
    for found in broker.describe_topics([topic]):
        if found["name"] != topic:
            continue
        if found["error_code"] == UnknownTopicOrPartitionError.errno:
            break
        if found["error_code"] != 0:
            raise KafkaError(f"topic {topic}: the broker answered with error {found['error_code']}")
        if not found.get("topic_id"):
            raise UserError(f"topic {topic}: the broker gives it no id; it must be Kafka 2.8 or newer")
        return str(found["topic_id"]), tuple(sorted(p["partition_index"] for p in found["partitions"]))
    raise TopicMissing(f"topic {topic} does not exist; create it with: cryptostream topic")
