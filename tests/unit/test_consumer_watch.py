"""A partition that is nobody's is named, from when it is until it is not."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from ingest_services.consumer import metrics
from ingest_services.consumer.buffer import Buffer
from ingest_services.consumer.clock import Clock
from ingest_services.consumer.entries import read_record
from ingest_services.consumer.sink import _cause_of
from ingest_services.consumer.watch import Watch
from ingest_services.lake import chain as chains
from tests.lake_builder import LakeBuilder, instant, ms

START = instant("2025-02-02 16:05:00")
MINUTE = timedelta(minutes=1)


@pytest.fixture
def lake(tmp_path: Path) -> LakeBuilder:
    return LakeBuilder(tmp_path / "raw", partitions=3, since=START)


def watch(lake: LakeBuilder, minutes: float) -> Watch:
    at_ms = ms(START + minutes * MINUTE)
    made = Watch(lake.store, ["orderbook", "orderbook", "not-there"], Clock(now_ms=lambda: at_ms))
    made.look()
    return made


def test_a_partition_whose_claim_stands_still_is_named(lake: LakeBuilder) -> None:
    lake.through(START + 9 * MINUTE, 0, 1)
    (reason,) = watch(lake, 10).reasons
    assert reason.startswith("topic orderbook partition 2: nobody has carried it for 10 minutes")
    assert "consumer.conf" in reason
    told = generate_latest(metrics.REGISTRY).decode()
    assert 'claim_behind_seconds{partition="2",topic="orderbook"} 600.0' in told
    lake.through(START + 9 * MINUTE, 2)
    assert watch(lake, 10).reasons == ()


def test_a_chain_that_was_just_opened_is_nobodys_fault(lake: LakeBuilder) -> None:
    assert watch(lake, 5).reasons == ()
    assert len(watch(lake, 5.1).reasons) == 3


def test_partitions_that_were_added_are_watched_and_those_of_closed_chains_are_not(lake: LakeBuilder) -> None:
    log = dict.fromkeys(range(4), 0)
    second = chains.open_chain(lake.store, "orderbook", "topic-1", log, lambda: log, ms(START + 60 * MINUTE))
    for partition in range(3):
        claim = chains.Progress(second.number, partition, 0, ms(START + 69 * MINUTE), ms(START + 69 * MINUTE))
        chains.write_progress(lake.store, claim)
    (reason,) = watch(lake, 70).reasons
    assert "partition 3" in reason


def test_a_retired_topic_is_named(lake: LakeBuilder) -> None:
    chain = chains.read_chains(lake.store)[0]
    chains.retire(lake.store, chain, {0: 0, 1: 0, 2: 0}, ms(START), "retired")
    (reason,) = watch(lake, 99).reasons
    assert "was retired" in reason


def test_the_oldest_entry_of_a_buffer_is_known() -> None:
    buffer = Buffer(0)
    assert buffer.oldest_us is None
    for offset, received_ms in enumerate((1_738_480_567_123, 1_738_480_567_124)):
        buffer.append(read_record(0, offset, received_ms, None, b"x", []))
    assert buffer.oldest_us == 1_738_480_567_123_000
    batch = buffer.take(1, 10, 1 << 20)
    assert batch is not None
    assert batch.entries[0].reason == "not JSON"
    assert buffer.oldest_us == 1_738_480_567_124_000


def test_causes_have_short_names() -> None:
    assert _cause_of(OSError(28, "No space left on device")) == "ENOSPC"
    assert _cause_of(OSError("what the library said")) == "OSError"
    chained = OSError("the store did not answer")
    chained.__cause__ = TimeoutError("slow")
    assert _cause_of(chained) == "TimeoutError"
