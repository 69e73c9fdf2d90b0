"""The consumer on Google Cloud Storage: kills, rivals, a failing store. The oracle gets a copy."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest

from ingest_services.lake import chain as chains
from ingest_services.lake.gcs import GcsStore
from tests.broker import Broker
from tests.fake_gcs import FakeGcs, Proxy, Request, open_gcs_store, running_proxy, uploads
from tests.integration.test_consumer_lake import (
    MINUTE_MS,
    Pipe,
    assert_exactly_once,
    book_records,
    orphans,
    wait_for,
)
from tests.integration.test_object_stores import require_writers_requests
from tests.lake_oracle import Oracle


@dataclass
class GcsPipe(Pipe):
    """A pipe whose lake is in a bucket; its folder is a copy, made anew for each look."""

    server: FakeGcs | None = None
    proxy: Proxy | None = None
    bucket: str = ""

    def environment(self) -> dict[str, str]:
        assert self.proxy is not None
        return {
            **super().environment(),
            "RAW_URL": f"gs://{self.bucket}/raw",
            "STORAGE_EMULATOR_HOST": self.proxy.url,
        }

    def mirror(self) -> None:
        assert self.server is not None
        self.server.mirror(self.bucket, self.root)

    def read(self, chain: int = 1) -> list[Oracle]:
        self.mirror()
        return super().read(chain)

    @property
    def store(self) -> GcsStore:
        assert self.server is not None
        return open_gcs_store(self.server.url, self.bucket, "raw")


@pytest.fixture
def pipe(broker: Broker, gcs: FakeGcs, tmp_path: Path) -> Iterator[GcsPipe]:
    with running_proxy(gcs) as proxy:
        running = GcsPipe(broker, tmp_path, broker.topic(2), 2, server=gcs, proxy=proxy, bucket=gcs.bucket())
        yield running
        for consumer in running.consumers:
            if consumer.poll() is None:
                consumer.kill()
                consumer.wait()


def count_uploads(pipe: GcsPipe) -> int:
    assert pipe.proxy is not None
    return sum(1 for request in list(pipe.proxy.requests) if uploads(request) and "/ticker=" in request.name)


def both_carry(pipe: GcsPipe, since: int = 0) -> Callable[[], bool]:
    return lambda: pipe.log().count("carrying", since) == 2


def test_sigterm_commits_everything_and_a_writer_asks_for_nothing_that_it_may_not(pipe: GcsPipe) -> None:
    assert pipe.proxy is not None
    pipe.send(book_records(500))
    consumer = pipe.consume()
    now_ms = time.time_ns() // 1_000_000

    def through() -> bool:
        claims = [chains.read_progress(pipe.store, 1, number) for number in range(2)]
        return all(claim and claim.minutes_through_ms >= now_ms - now_ms % MINUTE_MS for claim in claims)

    wait_for(both_carry(pipe), "the consumer to begin")
    wait_for(through, "both partitions to be through the last minute")
    pipe.send(book_records(100))
    assert pipe.stop(consumer) == 0, pipe.log()
    assert_exactly_once(pipe)
    again = pipe.consume()
    wait_for(lambda: pipe.log().count("carrying") == 4, "the next consumer to begin")
    assert pipe.stop(again) == 0, pipe.log()
    require_writers_requests(pipe.proxy.requests, pipe.bucket, "raw/")
    kinds = {
        (r.method, "_progress/" in r.name, r.query.get("ifGenerationMatch")) for r in pipe.proxy.requests
    }
    assert {("POST", True, None), ("POST", False, "0")} <= kinds


def test_kill_9_at_any_moment_loses_nothing_and_repeats_nothing(pipe: GcsPipe) -> None:
    seed = random.randrange(2**32)
    dice = random.Random(seed)
    torn = 0
    for _ in range(25):
        pipe.send(book_records(600, tickers=60))
        before, sent, log_size = len(orphans(pipe)), count_uploads(pipe), len(pipe.log())
        consumer = pipe.consume()
        wait_for(both_carry(pipe, log_size), "the consumer to begin")
        # Minutes that are over are cut at once, what is left of them at SIGTERM; into the uploads of either.
        consumer.terminate()
        wait_for(lambda: count_uploads(pipe) > sent, "an upload")  # noqa: B023
        time.sleep(dice.choice([0.0, dice.uniform(0.0, 0.2)]))
        consumer.kill()
        consumer.wait()
        pipe.mirror()
        torn += len(orphans(pipe)) > before
        if torn == 3:
            break
    assert torn == 3, f"seed {seed}: the kills missed every upload; the test proved nothing"
    log_size = len(pipe.log())
    last = pipe.consume()
    wait_for(both_carry(pipe, log_size), "the last to begin")
    assert pipe.stop(last) == 0, f"seed {seed}: {pipe.log()}"
    try:
        assert_exactly_once(pipe)
    except AssertionError as error:
        raise AssertionError(f"seed {seed}") from error


def test_two_writers_before_a_store_that_loses_answers_and_fails_are_harmless(pipe: GcsPipe) -> None:
    seed = random.randrange(2**32)
    dice = random.Random(seed)
    assert pipe.proxy is not None

    def unlucky(request: Request) -> bool:
        # The lake's name is written before anything else, and there a failure is told at once.
        return uploads(request) and not request.name.endswith("lake.json") and dice.random() < 0.04

    for kind in ("lost", "lost", "reset", 429, 503):
        pipe.proxy.fault(kind, unlucky, times=10_000)
    pipe.proxy.fault("lost", lambda request: uploads(request) and "/_commits/" in request.name, times=4)
    first, second = pipe.consume(), pipe.consume()
    for part in range(5):
        pipe.send(book_records(400, at_ms=time.time_ns() // 1_000_000 - part * MINUTE_MS))
        time.sleep(0.4)
    wait_for(lambda: pipe.log().count("carrying") >= 4, "both to begin")
    assert pipe.stop(first) == 0, f"seed {seed}: {pipe.log()}"
    assert pipe.stop(second) == 0, f"seed {seed}: {pipe.log()}"
    assert_exactly_once(pipe)
    lost = sum(fault.done for fault in pipe.proxy.faults)
    assert lost >= 4, f"seed {seed}: nothing went wrong; the test proved nothing"
    require_writers_requests(pipe.proxy.requests, pipe.bucket, "raw/")


def test_a_store_that_hangs_keeps_no_consumer_from_ending_and_loses_nothing(pipe: GcsPipe) -> None:
    assert pipe.proxy is not None
    pipe.send(book_records(300))
    consumer = pipe.consume()
    wait_for(both_carry(pipe), "the consumer to begin")
    hanging = pipe.proxy.fault("hang", lambda request: True, times=10_000)
    consumer.terminate()
    # It raises if it has not ended after 15 s; ten are promised, and no test is judged by the clock.
    assert consumer.wait(15) in (0, 1), pipe.log()
    hanging.times = 0
    pipe.proxy.released.set()
    successor = pipe.consume()
    wait_for(lambda: pipe.log().count("carrying") == 4, "the next consumer to begin")
    assert pipe.stop(successor) == 0, pipe.log()
    assert_exactly_once(pipe)


def test_a_bucket_that_is_not_there_is_one_line_and_status_2(pipe: GcsPipe) -> None:
    pipe.bucket = "nowhere"
    consumer = pipe.consume()
    assert consumer.wait(60) == 2
    assert "there is no bucket nowhere" in pipe.log()
    assert "Traceback" not in pipe.log()


def test_the_lake_says_whose_it_is_on_this_store_too(pipe: GcsPipe) -> None:
    pipe.store.create("lake.json", orjson.dumps({"format": 1, "source": "upbit", "time_zone": "Asia/Seoul"}))
    assert pipe.consume().wait(60) == 2
    assert "never share a lake" in pipe.log()
    assert list(pipe.store.list("")) == ["lake.json"]
