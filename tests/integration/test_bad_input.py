"""Bad input: one clear line with file, key and value, a non-zero exit, nothing left half-started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.broker import Broker

PRODUCER = "[upbit_producer1]\ntopic_name={topic}\npartition_number={partition}\ntickers={tickers}\n"
CONSUMER = "[gcs_consumer1]\ntopic_name={topic}\npartition_number={partition}\ngroup_name=g\n"


def run(tmp_path: Path, *arguments: str, **settings: str) -> tuple[int, str]:
    """Run the command line; return its exit status and stderr."""
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.run(
        [sys.executable, "-m", "ingest_services", *arguments],
        env={
            **environment,
            "PRODUCER_CONF": str(tmp_path / "producer.conf"),
            "CONSUMER_CONF": str(tmp_path / "consumer.conf"),
            "RAW_URL": (tmp_path / "raw").as_uri(),
            "SPOOL_DIR": str(tmp_path / "spool"),
            "SOURCE": "simulator",
            **settings,
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


def conf(
    tmp_path: Path, topic: str = "orderbook", partition: int = 0, tickers: str = "BTC", reads: int = 0
) -> None:
    (tmp_path / "producer.conf").write_text(
        PRODUCER.format(topic=topic, partition=partition, tickers=tickers)
    )
    (tmp_path / "consumer.conf").write_text(CONSUMER.format(topic=topic, partition=reads))


def assert_one_line(stderr: str, *parts: str) -> None:
    lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, stderr
    assert "Traceback" not in stderr
    for part in parts:
        assert part in lines[0]


@pytest.mark.parametrize("command", ["produce", "consume"])
def test_an_unknown_section(tmp_path: Path, command: str) -> None:
    conf(tmp_path)
    status, stderr = run(tmp_path, command, "nobody")
    assert status == 2
    assert_one_line(stderr, f"{command.removesuffix('e')}er.conf", "[nobody]", "it has")


def test_a_ticker_twice_in_one_section(tmp_path: Path) -> None:
    conf(tmp_path, tickers="BTC,KRW-BTC")
    status, stderr = run(tmp_path, "produce", "--all")
    assert status == 2
    assert_one_line(stderr, "producer.conf", "[upbit_producer1]", "tickers", "KRW-BTC is named twice")


def test_a_malformed_env_value(tmp_path: Path) -> None:
    conf(tmp_path)
    (tmp_path / ".env").write_text("LATENESS_S=soon\n")
    status, stderr = run(tmp_path, "consume", "--all")
    assert status == 2
    assert_one_line(stderr, "LATENESS_S", "'soon'", ".env")


# A producer begins without one: see test_producer_start.py.
@pytest.mark.parametrize("command", [["topic"], ["consume", "--all"]])
def test_a_broker_that_does_not_answer(tmp_path: Path, command: list[str]) -> None:
    conf(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        status, stderr = run(tmp_path, *command, KAFKA_BOOTSTRAP=address)
    assert status == 2
    assert_one_line(stderr, f"KAFKA_BOOTSTRAP={address}", "no broker answers")
    assert not (tmp_path / "raw" / "lake.json").exists()


@pytest.mark.parametrize("command", ["produce", "consume"])
def test_a_topic_that_does_not_exist(tmp_path: Path, broker: Broker, command: str) -> None:
    conf(tmp_path, topic="nowhere")
    status, stderr = run(tmp_path, command, "--all", KAFKA_BOOTSTRAP=broker.bootstrap)
    assert status == 2
    assert_one_line(stderr, "topic nowhere does not exist", "cryptostream topic")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("KAFKA_BOOTSTRAP", "no such host", "is not host:port"),
        ("KAFKA_BOOTSTRAP", "", "is not host:port"),
        ("UPBIT_WS_URL", "https://api.upbit.com/websocket/v1", "a URL like wss://host"),
        ("UPBIT_WS_URL", "api.upbit.com", "a URL like wss://host"),
        ("UPBIT_REST_URL", "ws://api.upbit.com", "a URL like https://host"),
        ("DEPTH", "7", "1, 5, 15 or 30"),
        ("SPOOL_DIR", "", "is empty"),
        ("PRODUCER_CONF", "/nowhere/producer.conf", "cannot be read"),
    ],
)
def test_a_producer_that_was_given_a_malformed_setting(
    tmp_path: Path, name: str, value: str, says: str
) -> None:
    conf(tmp_path)
    status, stderr = run(tmp_path, "produce", "--all", **{name: value})
    assert status == 2
    assert_one_line(stderr, value, says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "name one or more sections"),
        (("upbit_producer1", "--all"), "name one or more sections"),
        (("--all", "upbit_producer9"), "name one or more sections"),
    ],
)
def test_a_producer_that_was_not_told_what_to_run(
    tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    conf(tmp_path)
    status, stderr = run(tmp_path, "produce", *arguments)
    assert status == 2
    assert_one_line(stderr, says)


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http"])
@pytest.mark.parametrize("command", [("produce", "--all", "--metrics-port"), ("health", "--port")])
def test_a_port_that_is_none(tmp_path: Path, command: tuple[str, ...], port: str) -> None:
    conf(tmp_path)
    status, stderr = run(tmp_path, *command, port)
    assert status == 2
    assert command[-1] in stderr
    assert "Traceback" not in stderr


def test_a_partition_that_the_topic_does_not_have(tmp_path: Path, broker: Broker) -> None:
    topic = broker.topic(1)
    (tmp_path / "producer.conf").write_text(
        PRODUCER.format(topic=topic, partition=0, tickers="BTC")
        + PRODUCER.replace("producer1", "producer2").format(topic=topic, partition=1, tickers="ETH")
    )
    status, stderr = run(tmp_path, "produce", "--all", KAFKA_BOOTSTRAP=broker.bootstrap)
    assert status == 2
    assert_one_line(
        stderr,
        "producer.conf",
        "[upbit_producer2]",
        "partition_number=1",
        f"topic {topic} has partitions 0 to 0",
    )
    assert not (tmp_path / "spool").exists()


def test_a_spool_folder_that_is_a_file(tmp_path: Path, broker: Broker) -> None:
    conf(tmp_path, topic=broker.topic(1))
    (tmp_path / "spool").write_text("")
    status, stderr = run(tmp_path, "produce", "--all", KAFKA_BOOTSTRAP=broker.bootstrap)
    assert status == 2
    assert_one_line(stderr, f"SPOOL_DIR={tmp_path / 'spool'}", "cannot be written")


def test_a_partition_out_of_range(tmp_path: Path, broker: Broker) -> None:
    topic = broker.topic(1)
    conf(tmp_path, topic=topic, partition=0, reads=7)
    status, stderr = run(tmp_path, "consume", "--all", KAFKA_BOOTSTRAP=broker.bootstrap)
    assert status == 2
    assert_one_line(stderr, "consumer.conf", "[gcs_consumer1]", "partition_number=7", "partitions 0 to 0")


def test_a_partition_that_nobody_reads(tmp_path: Path, broker: Broker) -> None:
    conf(tmp_path, topic=broker.topic(2))
    status, stderr = run(tmp_path, "consume", "--all", KAFKA_BOOTSTRAP=broker.bootstrap)
    assert status == 2
    assert_one_line(stderr, "consumer.conf", "partition 1", "has no consumer section")


def test_a_topic_with_another_number_of_partitions(tmp_path: Path, broker: Broker) -> None:
    conf(tmp_path, topic=broker.topic(3))
    status, stderr = run(tmp_path, "topic", KAFKA_BOOTSTRAP=broker.bootstrap)
    assert status == 2
    assert_one_line(stderr, "has 3 partitions", "producer.conf names 1")


@pytest.mark.parametrize("command", ["produce", "consume"])
def test_a_metrics_port_in_use(tmp_path: Path, broker: Broker, command: str) -> None:
    conf(tmp_path, topic=broker.topic(1))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        status, stderr = run(
            tmp_path, command, "--all", "--metrics-port", port, KAFKA_BOOTSTRAP=broker.bootstrap
        )
    assert status == 2
    assert_one_line(stderr, port)


def test_a_lake_folder_that_cannot_be_made(tmp_path: Path, broker: Broker) -> None:
    conf(tmp_path, topic=broker.topic(1))
    (tmp_path / "file").write_text("")
    url = (tmp_path / "file" / "raw").as_uri()
    status, stderr = run(tmp_path, "consume", "--all", KAFKA_BOOTSTRAP=broker.bootstrap, RAW_URL=url)
    assert status == 2
    assert_one_line(stderr, f"RAW_URL={url}")


@pytest.mark.parametrize(
    ("content", "where"),
    [(None, "recording.jsonl"), ("{}\n", "line 1"), ('{"received_us":1,"frame":"x"}\n', "line 1")],
)
def test_a_broken_playback_file(tmp_path: Path, content: str | None, where: str) -> None:
    path = tmp_path / "recording.jsonl"
    if content is not None:
        path.write_text(content)
    status, stderr = run(tmp_path, "simulate", "--port", "0", "--playback", str(path))
    assert status == 2
    assert_one_line(stderr, "recording.jsonl", where)


def test_a_simulator_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        status, stderr = run(tmp_path, "simulate", "--port", port)
    assert status == 2
    assert_one_line(stderr, port)
