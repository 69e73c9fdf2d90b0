"""A lane whose Kafka refuses, fails and comes back: it is made again, patiently, for ever."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from kafka.errors import InvalidTimestampError, KafkaError, KafkaTimeoutError

from ingest_services.producer import lane as lane_module
from ingest_services.producer.lane import Lane, Outcome
from ingest_services.producer.outgoing import Outgoing
from tests.scripted_exchange import wait_until


class Answer:
    """What kafka-python's future tells."""

    def __init__(self, exception: KafkaError | None) -> None:
        self.is_done = True
        self.exception = exception

    def failed(self) -> bool:
        return self.exception is not None


class Client:
    """A Kafka client on a partition that is there; each record is answered at once."""

    def __init__(self, refuses: KafkaError | None = None) -> None:
        self.refuses = refuses
        self.stamps: list[int] = []
        self._sender = self

    def partitions_for(self, topic: str) -> set[int]:
        return {0}

    def send(self, topic: str, *, timestamp_ms: int, **_: Any) -> Answer:
        self.stamps.append(timestamp_ms)
        if isinstance(self.refuses, KafkaTimeoutError):
            raise self.refuses
        return Answer(self.refuses)

    def force_close(self) -> None:
        pass

    def close(self, timeout: float) -> None:
        pass


RECORD = Outgoing(1_700_000_000_000_000, b"BTC", [], b"{}")


@contextmanager
def lane_over(monkeypatch: pytest.MonkeyPatch, make: Callable[[], Client]) -> Iterator[Lane[None]]:
    monkeypatch.setattr(lane_module, "connect_producer", lambda bootstrap: make())
    lane: Lane[None] = Lane("nowhere:1", "t", 0, "lane")
    try:
        yield lane
    finally:
        lane.close()


def test_brokers_that_refuse_whatever_is_sent_are_not_stormed(monkeypatch: pytest.MonkeyPatch) -> None:
    delays: list[float] = []
    begin = Lane._begin_making

    def note(lane: Lane[None], delay_s: float) -> None:
        delays.append(delay_s)
        begin(lane, 0.0)

    monkeypatch.setattr(Lane, "_begin_making", note)
    refusing = Client(InvalidTimestampError("no"))
    with lane_over(monkeypatch, lambda: refusing) as lane:
        for _ in range(12):
            wait_until(lambda: lane.ready, "the next producer")
            assert lane.send(RECORD, None, 0.0) is Outcome.SENT
            assert list(lane.acknowledged()) == []
            assert [back.record for back in lane.take_back()] == [RECORD]
        assert delays[0] == 0.0, "the first is made at once"
        assert all(later > before for before, later in zip(delays[1:6:2], delays[3:8:2], strict=False))
        assert lane_module.REMAKE_CAP_S / 2 <= delays[-1] <= lane_module.REMAKE_CAP_S
        # One record that Kafka takes, and the next failure is the first of its kind.
        refusing.refuses = None
        wait_until(lambda: lane.ready, "a producer")
        lane.send(RECORD, None, 0.0)
        assert len(list(lane.acknowledged())) == 1
        lane.take_back()
        assert delays[-1] <= lane_module.REMAKE_BASE_S


def test_a_record_stamped_by_a_clock_that_was_ahead_is_none_that_brokers_refuse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = Client()
    with lane_over(monkeypatch, lambda: client) as lane:
        wait_until(lambda: lane.ready, "the producer")
        lane.send(RECORD, None, 0.0)
        lane.send(RECORD._replace(received_us=time.time_ns() // 1000 + 7_200_000_000), None, 0.0)
    assert client.stamps[0] == RECORD.received_us // 1000
    assert client.stamps[1] <= time.time_ns() // 1_000_000


def test_a_client_that_fails_in_an_unforeseen_way_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    failures = iter([RuntimeError("can't start new thread"), AssertionError("who knows")])

    def make() -> Client:
        for failure in failures:
            raise failure
        return Client()

    with lane_over(monkeypatch, make) as lane:
        assert lane.wait_ready(20)


def test_a_topic_that_is_gone_is_not_tried_with_every_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_module, "UNKNOWN_TOPIC_S", 3600.0)
    client = Client(KafkaTimeoutError("no metadata"))
    with lane_over(monkeypatch, lambda: client) as lane:
        wait_until(lambda: lane.ready, "the producer")
        for _ in range(10):
            assert lane.send(RECORD, None, 0.0) is Outcome.NOT_READY
        assert len(client.stamps) == 1, "each attempt blocks for a moment"
        assert not lane.ready
    monkeypatch.setattr(lane_module, "UNKNOWN_TOPIC_S", 0.0)
    with lane_over(monkeypatch, lambda: client) as lane:
        wait_until(lambda: lane.ready, "the producer")
        lane.send(RECORD, None, 0.0)
        client.refuses = None
        assert lane.send(RECORD, None, 0.0) is Outcome.SENT, "and then it is tried again"
