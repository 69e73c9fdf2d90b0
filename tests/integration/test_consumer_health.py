"""`/health` of a consumer: alive is a carrier that comes round; one that ended needs a new start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import orjson

from cryptostream_dagster.local.ports import free_port
from ingest_services import monitor
from ingest_services.consumer.metrics import POLLED_S, ConsumerHealth
from ingest_services.monitor import Status
from tests.broker import Broker
from tests.scripted_exchange import wait_until


@dataclass
class Carrier:
    names: tuple[str, ...]
    polled_s: float
    trouble: str = ""


def test_a_carrier_that_ended_is_failed_and_one_that_waits_is_degraded() -> None:
    now_s = time.monotonic()
    judge = ConsumerHealth(now_s)
    assert judge().status is Status.OK
    going: Future[None] = Future()
    judge.watch(Carrier(("a", "b"), now_s), going)
    judge.watch(Carrier(("c",), 0.0), Future())
    found = judge()
    assert (found.status, set(found.sections)) == (Status.OK, {"a", "b", "c"})
    judge.watch(Carrier(("d",), now_s - POLLED_S - 1), Future())
    assert judge().degraded == ("d: nothing was read for 16 s; is the broker or the store away?",)
    judge.watch(Carrier(("e",), now_s, "cannot carry (topic t does not exist)"), Future())
    assert judge().degraded[1] == "e: cannot carry (topic t does not exist)"
    going.set_result(None)
    assert judge().failed == ("a, b: its thread ended",)
    judge.ending = True
    assert judge().status is Status.DEGRADED


def test_what_else_is_wrong_is_told_for_as_long_as_it_is() -> None:
    alarms: list[str] = []
    judge = ConsumerHealth(time.monotonic(), lambda: alarms)
    judge.watch(Carrier(("a",), time.monotonic()), Future())
    alarms.append("the store fails (upload: No space left on device)")
    assert (judge().status, judge().degraded) == (Status.DEGRADED, tuple(alarms))
    alarms.clear()
    assert judge().status is Status.OK


def test_a_consumer_tells_how_it_is(broker: Broker, tmp_path: Path) -> None:
    topic = broker.topic(1)
    (tmp_path / "consumer.conf").write_text(
        f"[gcs_consumer1]\ntopic_name={topic}\npartition_number=0\ngroup_name=g\n"
    )
    port = free_port()
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "CONSUMER_CONF": str(tmp_path / "consumer.conf"),
        "KAFKA_BOOTSTRAP": broker.bootstrap,
        "RAW_URL": (tmp_path / "raw").as_uri(),
    }
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ingest_services", "consume", "--all", "--metrics-port", str(port)],
            env=environment,
            cwd=tmp_path,
            stderr=log,
        )
    try:
        wait_until(lambda: monitor.ask(port) == (True, "ok"), "health", 60)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
            told = orjson.loads(answer.read())
        assert set(told["sections"]) == {"gcs_consumer1"}
        assert told["sections"]["gcs_consumer1"]["polled_age_s"] >= 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, (tmp_path / "log").read_text()
    finally:
        process.kill()
        process.wait()
