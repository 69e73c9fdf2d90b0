"""Who else takes over, and who says what is wrong: consumers as processes, told apart by what they serve."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import orjson

from cryptostream_dagster.local.ports import free_port
from ingest_services import kafka
from ingest_services.lake import chain as chains
from ingest_services.lake import layout
from ingest_services.lake.store import FolderStore
from tests.integration.test_consumer_lake import (  # noqa: F401
    MINUTE_MS,
    Pipe,
    assert_exactly_once,
    book_records,
    pipe,
    wait_for,
)

# What is more than the smallest budget, so that it is cut by its size and not by the clock.
MANY = 8_000
LEVEL = b'{"ap":101.0,"bp":100.0,"as":1.0,"bs":7.9276e-4},'


@dataclass
class Watched:
    """A consumer that serves its metrics."""

    process: subprocess.Popen[bytes]
    port: int

    def reasons(self) -> list[str] | None:
        """What its health says is wrong; None if it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=30) as answer:
                return list(orjson.loads(answer.read())["reasons"])
        except OSError:
            return None

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as answer:
            return str(answer.read().decode())

    def committed(self) -> float:
        """How many commits it made itself."""
        values = (
            line.split()[-1] for line in self.metrics().splitlines() if "consumer_commits_total{" in line
        )
        return sum(map(float, values))


@contextmanager
def consuming(pipe: Pipe, *sections: str) -> Iterator[Watched]:  # noqa: F811
    port = free_port()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "ingest_services",
            "consume",
            *(sections or ("--all",)),
            "--metrics-port",
            str(port),
        ],
        env={**pipe.environment(), "MEMORY_BUDGET_MB": "16"},
        cwd=pipe.root,
        stderr=(pipe.root / "consumer.log").open("ab"),
    )
    pipe.consumers.append(process)
    begun = len(sections) or pipe.partitions
    before = pipe.log().count("carrying")
    watched = Watched(process, port)
    wait_for(lambda: pipe.log().count("carrying") >= before + begun, "the consumer to begin", 60)
    yield watched


def large_books() -> list[tuple]:
    """Books that are more than a consumer may hold."""
    levels = b'"obu":[' + LEVEL * 40
    return [(p, value.replace(b'"obu":[', levels), headers) for p, value, headers in book_records(MANY)]


def test_when_the_first_of_two_is_killed_the_second_goes_on_by_itself(pipe: Pipe) -> None:  # noqa: F811
    store = FolderStore(pipe.lake)

    def tails() -> list[int]:
        (chain,) = chains.read_chains(store)
        return [chains.find_tail(store, chain, number) for number in range(pipe.partitions)]

    pipe.send(large_books())
    with ExitStack() as running:
        first = running.enter_context(consuming(pipe))
        # Before there is anybody to be quicker.
        wait_for(lambda: first.committed() > 0, "the first to commit")
        second = running.enter_context(consuming(pipe))
        first.process.kill()
        first.process.wait()
        behind = tails()
        pipe.send(large_books())
        wait_for(lambda: sum(tails()) > sum(behind), "the second to commit", 120)
        wait_for(lambda: second.committed() > 0, "it to say so")
        assert second.process.poll() is None
        # It was there all the time, and did not have to begin anew.
        assert pipe.log().count('"carrying"') == 2 * pipe.partitions
        assert pipe.stop(second.process) == 0, pipe.log()
    assert_exactly_once(pipe)


def test_a_partition_that_nobody_carries_is_named_until_somebody_does(pipe: Pipe) -> None:  # noqa: F811
    store = FolderStore(pipe.lake)
    layout.claim_lake(store, "simulator", "Asia/Seoul")
    topic_id, _ = kafka.topic_id(pipe.broker.bootstrap, pipe.topic)
    log, long_ago_ms = {0: 0, 1: 0}, time.time_ns() // 1_000_000 - 20 * MINUTE_MS
    chains.open_chain(store, pipe.topic, topic_id, log, lambda: log, long_ago_ms)
    with consuming(pipe, "gcs_consumer0") as first:
        told = f"topic {pipe.topic} partition 1: nobody has carried it"

        def named() -> bool:
            reasons = first.reasons()
            return reasons is not None and len(reasons) == 1 and reasons[0].startswith(told)

        wait_for(named, "the alarm, and that for its own partition to end", 60)
        assert f'claim_behind_seconds{{partition="1",topic="{pipe.topic}"}} 1' in first.metrics()
        with consuming(pipe, "gcs_consumer1"):
            wait_for(lambda: first.reasons() == [], "the alarm to end", 60)
    assert '"event": "alarm"' in pipe.log()
    assert "alarm is over" in pipe.log()


def test_a_store_that_fails_is_named_with_its_cause_until_it_works(pipe: Pipe) -> None:  # noqa: F811
    pipe.lake.mkdir()
    obstacle = pipe.lake / "ticker=T1"
    obstacle.write_text("a file where a folder should be")
    pipe.send(book_records(300))
    with consuming(pipe) as consumer:
        wait_for(
            lambda: any("the store fails (upload: " in r for r in consumer.reasons() or ()), "the alarm", 60
        )
        (line,) = (line for line in consumer.metrics().splitlines() if "store_retries_total{" in line)
        assert 'what="upload"' in line
        assert 'cause="E' in line
        obstacle.unlink()
        wait_for(lambda: consumer.reasons() == [], "the alarm to end", 60)
        assert "upload_seconds_count" in consumer.metrics()
        assert pipe.stop(consumer.process) == 0, pipe.log()
    assert_exactly_once(pipe)


def test_a_topic_that_goes_away_is_named(pipe: Pipe) -> None:  # noqa: F811
    with consuming(pipe) as consumer:
        admin = kafka.connect_admin(pipe.broker.bootstrap)
        try:
            admin.delete_topics([pipe.topic])
        finally:
            admin.close()
        told = f"cannot carry (topic {pipe.topic} does not exist"
        wait_for(lambda: any(told in reason for reason in consumer.reasons() or ()), "the alarm", 60)
        kafka.create_topics(pipe.broker.bootstrap, {pipe.topic: 2})
        wait_for(lambda: consumer.reasons() == [], "the alarm to end", 60)
