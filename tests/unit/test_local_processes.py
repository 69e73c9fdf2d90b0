"""Children end in order, at the deadline at the latest, and never outlive a killed supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cryptostream_dagster.local import processes
from cryptostream_dagster.local.processes import Child, Program

# Says when it was asked to stop, and takes its time about it.
POLITE = """
import signal, sys, time
def leave(*_):
    print("asked", time.monotonic(), flush=True)
    time.sleep(float(sys.argv[2]))
    print("ends", time.monotonic(), flush=True)
    raise SystemExit(0)
signal.signal(signal.SIGTERM, leave)
print("ready", time.monotonic(), flush=True)
time.sleep(60)
"""
DEAF = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
subprocess.Popen([sys.executable, "-c", child])
time.sleep(60)
"""


def start(tmp_path: Path, name: str, source: str, *arguments: str, **options: object) -> Child:
    log = tmp_path / f"{name}.log"
    program = Program(
        name,
        [sys.executable, "-c", source, name, *arguments],
        dict(os.environ),
        log,
        **options,  # type: ignore[arg-type]
    )
    seen = log.read_text().count("ready") if log.exists() else 0
    child = Child.start(program)
    until(lambda: log.read_text().count("ready") > seen, 10)
    return child


def until(condition, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_children_stop_in_order_and_independent_ones_at_the_same_time(tmp_path: Path) -> None:
    producer = start(tmp_path, "producer", POLITE, "0.3")
    consumer = start(tmp_path, "consumer", POLITE, "0.3", stop_after=frozenset({"producer"}))
    webserver = start(tmp_path, "webserver", POLITE, "0.3")

    began = time.monotonic()
    killed = processes.stop_in_order([consumer, webserver, producer], began + 8)

    assert killed == []
    assert moments(tmp_path, "producer")["ends"] < moments(tmp_path, "consumer")["asked"]
    assert moments(tmp_path, "webserver")["asked"] < moments(tmp_path, "producer")["ends"]


def moments(tmp_path: Path, name: str) -> dict[str, float]:
    """When a polite child was ready, asked to stop, and at its end; seconds of the monotonic clock."""
    lines = (tmp_path / f"{name}.log").read_text().splitlines()
    return {word: float(moment) for word, moment in map(str.split, lines)}


def test_a_child_that_does_not_follow_is_killed_with_what_it_started(tmp_path: Path) -> None:
    child = start(tmp_path, "deaf", DEAF, stop_within_s=0.3)
    family = [child.process.pid, *(p.pid for p in psutil.Process(child.process.pid).children(recursive=True))]
    assert len(family) == 2

    killed = processes.stop_in_order([child], time.monotonic() + 8)

    assert killed == ["deaf"]
    until(lambda: not any(map(alive, family)), 20)


def test_at_the_deadline_everything_is_killed_even_what_was_not_asked_yet(tmp_path: Path) -> None:
    first = start(tmp_path, "first", DEAF, stop_within_s=60)
    second = start(tmp_path, "second", POLITE, "0", stop_after=frozenset({"first"}))
    began = time.monotonic()
    assert sorted(processes.stop_in_order([first, second], began + 0.5)) == ["first", "second"]


def test_a_child_that_keeps_dying_is_started_again_ever_more_slowly(tmp_path: Path) -> None:
    child = start(tmp_path, "brief", "print('ready', flush=True)")
    delays = []
    for _ in range(7):
        until(lambda: not child.alive, 20)
        delays.append(child.died())
        child.restart()
    child.kill()
    assert delays == [1, 2, 4, 8, 16, 30, 30]


def test_a_child_may_be_started_again_with_another_command_line(tmp_path: Path) -> None:
    def again() -> list[str]:
        return [sys.executable, "-c", "print('no history')"]

    child = start(tmp_path, "brief", "print('ready', flush=True)", again=again)
    until(lambda: not child.alive, 20)
    child.restart()
    until(lambda: not child.alive, 20)
    assert (tmp_path / "brief.log").read_text().splitlines() == ["ready", "no history"]


def test_leftovers_are_found_by_session_and_strangers_are_left_alone(tmp_path: Path) -> None:
    listing = tmp_path / "pids.json"
    deaf = start(tmp_path, "deaf", DEAF)
    grandchild = psutil.Process(deaf.process.pid).children()[0].pid
    stranger = start(tmp_path, "stranger", POLITE, "0")
    processes.write_list(listing, {"deaf": deaf.process.pid, "stranger": stranger.process.pid})
    # The stranger has the number of one of ours, but was started at another time.
    recorded = psutil.Process(stranger.process.pid).create_time()
    listing.write_text(listing.read_text().replace(str(recorded), str(recorded - 1000)))
    # What one of ours started is ours even after it ended itself.
    os.kill(deaf.process.pid, signal.SIGKILL)
    deaf.process.wait()

    try:
        assert processes.end_leftovers(listing, patience_s=0.3) == ["deaf"]
        assert not alive(grandchild)
        assert stranger.alive
        assert not listing.exists()
        assert processes.end_leftovers(listing) == []
    finally:
        stranger.kill()


SUPERVISOR = """
import os, sys, time
from pathlib import Path
from cryptostream_dagster.local.processes import Child, Program, Reaper, write_list
folder = Path(sys.argv[1])
reaper = Reaper(folder / "pids.json", folder / "reaper.log")
command = [sys.executable, "-c", "import time; time.sleep(60)"]
child = Child.start(Program("child", command, dict(os.environ), folder / "child.log"))
write_list(folder / "pids.json", {"child": child.process.pid})
print(child.process.pid, reaper._process.pid, flush=True)
time.sleep(60)
"""


def test_children_do_not_outlive_a_killed_supervisor(tmp_path: Path) -> None:
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert supervisor.stdout is not None
    child, reaper = map(int, supervisor.stdout.readline().split())
    assert alive(child)
    supervisor.kill()
    supervisor.wait()
    until(lambda: not alive(child) and not alive(reaper), 20)
    supervisor.stdout.close()


@pytest.mark.parametrize("torn", ["", "{", "null"])
def test_a_torn_list_of_children_stops_nobody(tmp_path: Path, torn: str) -> None:
    listing = tmp_path / "pids.json"
    listing.write_text(torn)
    assert processes.end_leftovers(listing) == []
