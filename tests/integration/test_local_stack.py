"""`make dev`: candles without anyone touching anything, nothing but loopback, nothing left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import orjson
import psutil
import pytest
from rich.console import Console

from cryptostream_dagster import local_stack as stack_module
from cryptostream_dagster.client import Client
from cryptostream_dagster.local.ports import LOOPBACK
from cryptostream_dagster.local.state import StateFolder
from cryptostream_dagster.local.status import fetch_json
from cryptostream_dagster.local.view import PlainView
from cryptostream_dagster.local_stack import Options, Stack
from ingest_services.lake import chain as chains
from ingest_services.lake.lines import decompress
from ingest_services.lake.stores import open_store
from tests.stack import TICKERS, LocalStack, clean_environment, until

CANDLES_WITHIN_S = 60
STOP_WITHIN_S = 10
NOWHERE = {"POSTGRES_HOST": LOOPBACK, "POSTGRES_PORT": "1", "POSTGRES_USER": "u", "POSTGRES_DB": "d"}


def alive(processes: list[psutil.Process]) -> list[str]:
    left = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                left.append(" ".join(process.cmdline()))
        except psutil.NoSuchProcess:
            continue
    return left


def wait_for_candles(stack: LocalStack) -> None:
    with Client.from_state(stack.state) as client:
        until(
            lambda: all(len(client.candles(ticker)) >= 3 for ticker in TICKERS), CANDLES_WITHIN_S, stack.said
        )


def test_first_candles_come_within_a_minute_and_the_client_finds_them(local_stack: LocalStack) -> None:
    wait_for_candles(local_stack)
    with Client.from_state(local_stack.state) as client:
        candles = client.candles("BTC")
        assert candles.attrs["source"] == "simulator"
        first = candles.index[0]
        books = client.books("BTC", first, candles.index[1])
        assert len(books) >= candles["book_count"].iloc[0] > 300
        mid = sum(Decimal(str(books[column].iloc[0])) for column in ("ask_price1", "bid_price1")) / 2
        assert mid == client.candles("BTC", exact=True)["open_price"].iloc[0]


def test_a_new_stack_has_its_markets_without_waiting_for_an_hour(local_stack: LocalStack) -> None:
    with Client.from_state(local_stack.state) as client:
        until(lambda: len(client.markets()) == len(TICKERS), CANDLES_WITHIN_S, local_stack.said)
        assert client.markets()["listed"].all()


def test_a_chart_can_be_drawn_while_the_stack_runs(local_stack: LocalStack, tmp_path: Path) -> None:
    wait_for_candles(local_stack)
    out = tmp_path / "btc.png"
    command = ["chart", "BTC", "--state", str(local_stack.state), "--out", str(out)]
    subprocess.run([sys.executable, "-m", "ingest_services", *command], check=True)
    assert out.read_bytes().startswith(b"\x89PNG")


def test_status_finds_whatever_the_stack_runs(local_stack: LocalStack) -> None:
    wait_for_candles(local_stack)
    told: dict[str, Any] = {}

    def all_is_well() -> bool:
        command = ["status", "--state", str(local_stack.state), "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "ingest_services", *command], capture_output=True, text=True, check=False
        )
        assert done.returncode in {0, 1}, done.stderr
        told.update(json.loads(done.stdout))
        return all(service["well"] for service in told["services"])

    until(all_is_well, 60, lambda: json.dumps(told, indent=1))  # daemons are heard of within half a minute
    kinds = [service["name"].partition(" :")[0] for service in told["services"]]
    assert kinds[:3] == ["producer", "consumer", "Dagster"]
    assert {"daemon scheduler", "daemon sensor", "lake", "warehouse"} <= set(kinds)
    daemons = [service["detail"] for service in told["services"] if service["name"].startswith("daemon")]
    assert all(re.fullmatch(r"heard \d+ s ago", detail) for detail in daemons), daemons
    assert {claim["partition"] for claim in told["claims"]} == {0, 1}
    assert told["windows"]


def test_nothing_listens_on_anything_but_loopback(local_stack: LocalStack) -> None:
    listening = set()
    for process in local_stack.family():
        with suppress(psutil.NoSuchProcess):  # a run that just ended
            sockets = process.net_connections("inet")
            listening |= {socket.laddr for socket in sockets if socket.status == psutil.CONN_LISTEN}
    assert len(listening) >= 7
    assert all(ip_address(ip.removeprefix("::ffff:")).is_loopback for ip, _ in listening), listening


def test_a_second_copy_is_told_who_runs_already(local_stack: LocalStack) -> None:
    assert local_stack.process is not None
    second = subprocess.run(local_stack.command(), capture_output=True, text=True, check=False)
    assert second.returncode == 2
    assert f"process {local_stack.process.pid}, Dagster at {local_stack.url()}" in second.stderr
    assert not local_stack.ended()


def test_children_of_a_killed_stack_end(local_stack: LocalStack) -> None:
    assert local_stack.process is not None
    family = local_stack.family()
    local_stack.process.kill()
    local_stack.wait(5)
    until(lambda: alive(family) == [], STOP_WITHIN_S, lambda: str(alive(family)))


def test_ctrl_c_leaves_nothing_and_the_next_start_goes_on(local_stack: LocalStack) -> None:
    # The stack before this one was killed: that, too, is only another start.
    wait_for_candles(local_stack)
    with Client.from_state(local_stack.state) as client:
        before = client.candles("BTC", exact=True)
    store = open_store((local_stack.state / "raw").as_uri())
    known = len(chains.read_chains(store))
    url = local_stack.url()
    family = local_stack.family()
    assert len(family) >= 9

    status, seconds = local_stack.stop(signal.SIGINT)

    assert status == 0
    assert seconds < STOP_WITHIN_S
    assert alive(family) == []
    assert "had to kill" not in local_stack.said()

    local_stack.start()
    assert local_stack.url() == url
    with Client.from_state(local_stack.state) as client:
        after = client.candles("BTC", exact=True)
    assert after.loc[before.index, "close_price"].equals(before["close_price"])
    until(lambda: len(chains.read_chains(store)) == known + 1, 20)


def test_what_dies_is_started_again_with_no_second_history_and_a_broker_that_dies_ends_the_stack(
    local_stack: LocalStack,
) -> None:
    simulator = local_stack.pids()["simulator"]
    command = psutil.Process(simulator).cmdline()
    os.kill(simulator, signal.SIGKILL)
    producer = local_stack.pids()["producer"]
    os.kill(producer, signal.SIGKILL)
    until(lambda: "producer ended with SIGKILL" in local_stack.said(), 5)
    until(lambda: local_stack.pids().get("producer") not in (None, producer), 10)
    until(lambda: local_stack.pids().get("simulator") not in (None, simulator), 10)
    again = psutil.Process(local_stack.pids()["simulator"]).cmdline()
    assert again[again.index("--history-minutes") + 1] == "0"
    # Another walk: the same one from its beginning would be the same prices at another time.
    assert again[again.index("--seed") + 1] != command[command.index("--seed") + 1]

    family = local_stack.family()
    os.kill(local_stack.pids()["broker"], signal.SIGKILL)
    assert local_stack.wait(STOP_WITHIN_S) == 2
    assert "error: broker ended with SIGKILL" in local_stack.said()
    assert "broker.log" in local_stack.said()
    assert alive(family) == []


def run_dev(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ingest_services", "dev", *options],
        cwd=folder,
        env=clean_environment() | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def only_error(done: subprocess.CompletedProcess[str]) -> str:
    """The one line; nothing was started."""
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def test_a_malformed_env_file_is_one_line_that_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("DEPTH=seven\n")
    line = only_error(run_dev(tmp_path))
    assert "DEPTH" in line
    assert "seven" in line
    assert not list((tmp_path / ".cryptostream").rglob("pids.json"))


def test_a_state_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "file/state" in only_error(run_dev(tmp_path, "--state", "file/state"))


@pytest.mark.parametrize(
    ("conf", "words"),
    [
        ("[upbit_producer1]\ntopic_name=t\npartition_number=0\ntickers=BTC,BTC\n", "KRW-BTC is named twice"),
        ("[upbit_producer1]\ntopic_name=t\npartition_number=1\ntickers=BTC\n", "partition_number 0"),
        ("[upbit_producer1]\ntopic_name=t\npartition=0\ntickers=BTC\n", "unknown key"),
    ],
)
def test_a_wrong_section_is_one_line_before_anything_starts(tmp_path: Path, conf: str, words: str) -> None:
    state = StateFolder(tmp_path / "state")
    state.producer_conf.write_text(conf)
    line = only_error(run_dev(tmp_path, "--state", str(state.root)))
    assert words in line
    assert not state.postgres.exists()
    assert not state.pids.exists()


@pytest.mark.parametrize(
    ("command", "settings", "words"),
    [
        ("migrate", NOWHERE, "Postgres at 127.0.0.1:1"),
        ("migrate", {}, "POSTGRES_HOST"),
        ("topic", {"KAFKA_BOOTSTRAP": f"{LOOPBACK}:1"}, "127.0.0.1:1"),
    ],
)  # fmt: skip
def test_services_that_are_not_there_are_one_line(
    tmp_path: Path, command: str, settings: dict[str, str], words: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ingest_services", command],
        cwd=tmp_path,
        env=clean_environment() | settings,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert words in only_error(done)


def lake_stamps(state: StateFolder) -> dict[str, set[int]]:
    """The stamps of all two-sided, uncrossed books of the lake, by ticker; read through the commit chain."""
    store = open_store(state.raw.as_uri())
    stamps: dict[str, set[int]] = defaultdict(set)
    for chain in chains.read_chains(store):
        for partition in chain.partitions:
            for commit in chains.commits_from(store, chain.number, partition, chain.start[partition]):
                for file in (file for file in commit.files if file.kind == "book"):
                    for line in decompress(file.path, store.get(file.path)).splitlines():
                        book = orjson.loads(line)["book"]
                        if book["obu"] and book["obu"][0]["ap"] >= book["obu"][0]["bp"] > 0:
                            stamps[file.ticker].add(int(book["tms"]))
    return stamps


def test_moving_on_to_a_fresh_broker_loses_no_book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moves again and again: every book that the simulator published is in the lake, in several chains."""
    monkeypatch.setattr(stack_module, "is_quiet", lambda _now: True)
    monkeypatch.setattr(Stack, "_start_dagster", lambda _self: None)
    monkeypatch.setattr(
        stack_module, "fetch_json", lambda url: {} if "server_info" in url else fetch_json(url)
    )
    state = StateFolder(tmp_path / "state")
    said: list[str] = []

    class View(PlainView):
        def say(self, line: str) -> None:
            said.append(line)

    truth: dict[str, Any] = {}

    def moved_twice(stack: Stack) -> bool:
        if said.count("moved on") == 2 and stack.options.broker_limit_mib == 1:
            stack.options = replace(stack.options, broker_limit_mib=10_000)
            time.sleep(1)
        if said.count("moved on") < 2:
            return False
        truth.update(fetch_json(f"http://{LOOPBACK}:{stack.ports['simulator']}/simulator/truth?window_s=300"))
        return True

    options = Options(history_minutes=5, rate=20, broker_limit_mib=1, any_ports=True)
    Stack(state, options, View(Console(), ZoneInfo("Asia/Seoul"))).run(until=moved_twice)

    stamps = lake_stamps(state)
    assert len(truth["candles"]) >= 2 * 5
    for candle in truth["candles"]:
        window = range(candle["window_start_ms"], candle["last_book_ms"] + 1)
        found = sum(stamp in window for stamp in stamps[candle["ticker"]])
        assert found == candle["book_count"], candle
    assert len(chains.read_chains(open_store(state.raw.as_uri()))) == 3
