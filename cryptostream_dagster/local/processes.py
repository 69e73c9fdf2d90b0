"""Child processes: started each in a session of its own, stopped in order, and never left behind.

Belongs here: processes in general. Does not belong here: which ones the platform needs (`local_stack`).

Three nets under each other: a stop in order with a deadline, after which whole process groups are killed; a
reaper process that does the same once its supervisor is gone without a word; and the list of children on
disk, by which the next start finds what even that missed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import psutil

FIRST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 30.0
STEADY_AFTER_S = 60.0
LEFTOVER_PATIENCE_S = 5.0
_POLL_S = 0.02
# psutil computes a process's start time from the machine's boot time, which the kernel tells in whole seconds
# and moves when the clock is set: two processes can see it a second apart and more.
_START_TOLERANCE_S = 5.0


@dataclass(frozen=True)
class Program:
    """What to run and how it wants to be stopped.

    Attributes:
        name: Its name in the status view. Several of a kind are told apart by what follows a hyphen.
        command: The command line.
        environment: All of its environment.
        log: File that takes its output, appended.
        stop_after: Kinds of programs that must have ended before this one is asked to.
        stop_within_s: Seconds it gets for that; then its process group is killed.
        whole_group: Whether the request to stop goes to its process group and not to its leader alone.
        vital: Whether the stack is of no use once it died; others are started again.
        again: Makes the command line for that, where it is another one than the first.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    stop_after: frozenset[str] = frozenset()
    stop_within_s: float = 4.0
    whole_group: bool = False
    vital: bool = False
    again: Callable[[], Sequence[str]] | None = None

    @property
    def kind(self) -> str:
        """The name without its number."""
        return self.name.partition("-")[0]


@dataclass
class Child:
    """A program and the process that runs it now, if one does.

    Attributes:
        program: What it runs.
        process: The latest process.
        started: When it was started, seconds of the monotonic clock.
        deaths: How often it died unasked since it last ran for `STEADY_AFTER_S`.
        restart_at: When it is to be started again, seconds of the monotonic clock.
    """

    program: Program
    process: subprocess.Popen[bytes]
    started: float = field(default_factory=time.monotonic)
    deaths: int = 0
    restart_at: float | None = None

    @classmethod
    def start(cls, program: Program) -> Child:
        """Start a program.

        Raises:
            OSError: If it cannot be executed, or its log not be written.
        """
        return cls(program, _launch(program))

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self.process.poll() is None

    @property
    def resident_bytes(self) -> int:
        """Memory that its process takes now; 0 if it does not run."""
        try:
            return int(psutil.Process(self.process.pid).memory_info().rss)
        except psutil.NoSuchProcess:
            return 0

    def died(self) -> float:
        """Note that it died unasked; return the seconds to wait before it is started again."""
        now = time.monotonic()
        self.deaths = 1 if now - self.started > STEADY_AFTER_S else self.deaths + 1
        delay: float = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (self.deaths - 1))
        self.restart_at = now + delay
        kill_group(self.process.pid)
        return delay

    def restart(self) -> None:
        """Start it again."""
        if self.program.again is not None:
            self.program = replace(self.program, command=self.program.again())
        self.process = _launch(self.program)
        self.started = time.monotonic()
        self.restart_at = None

    def ask_to_stop(self) -> None:
        """Send SIGTERM."""
        if self.alive:
            with suppress(ProcessLookupError):
                send = os.killpg if self.program.whole_group else os.kill
                send(self.process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Kill its process group, whatever is left of it, and collect its status."""
        kill_group(self.process.pid)
        self.process.wait()


def _launch(program: Program) -> subprocess.Popen[bytes]:
    with program.log.open("ab") as log:
        return subprocess.Popen(
            list(program.command),
            env=dict(program.environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C in the terminal is for the supervisor, which stops its children in order.
            start_new_session=True,
        )


def stop_in_order(children: Iterable[Child], deadline: float) -> list[str]:
    """Stop children, each once those that it must outlive have ended; independent ones at the same time.

    Args:
        children: Some of them may have ended already.
        deadline: Seconds of the monotonic clock at which everything that is left is killed.

    Returns:
        The names of those that had to be killed.
    """
    waiting = {child.program.name: child for child in children}
    asked: dict[str, float] = {}
    killed: list[str] = []
    while waiting:
        now = time.monotonic()
        for name, child in list(waiting.items()):
            kinds = {other.program.kind for other in waiting.values()}
            if child.alive and name not in asked and not child.program.stop_after & kinds:
                child.ask_to_stop()
                asked[name] = now
            overdue = now >= deadline or now >= asked.get(name, now) + child.program.stop_within_s
            if child.alive and not overdue:
                continue
            if child.alive:
                killed.append(name)
            child.kill()
            del waiting[name]
        if waiting:
            time.sleep(_POLL_S)
    return killed


def kill_group(leader: int) -> None:
    """Kill every process of a group; nothing happens if there is none."""
    with suppress(ProcessLookupError, PermissionError):  # macOS answers EPERM for a group of zombies
        os.killpg(leader, signal.SIGKILL)


def write_list(path: Path, pids: Mapping[str, int]) -> None:
    """Write down which processes are ours, so that `end_leftovers` finds them.

    Args:
        path: The list; replaced whole.
        pids: Session leaders by name.
    """
    entries = []
    for name, pid in pids.items():
        with suppress(psutil.NoSuchProcess):
            entries.append({"name": name, "pid": pid, "started": psutil.Process(pid).create_time()})
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(entries), encoding="utf-8")
    fresh.replace(path)


def end_leftovers(path: Path, patience_s: float = LEFTOVER_PATIENCE_S) -> list[str]:
    """End what a supervisor that was killed left running: SIGTERM, and SIGKILL for who does not follow.

    A process is ours if it is a session leader of the list, by process id and start time, or belongs to the
    session of one. A number that was given to a stranger since is left alone.

    Args:
        path: The list that `write_list` wrote; it is emptied.
        patience_s: Seconds between SIGTERM and SIGKILL.

    Returns:
        The names of the programs that were still running.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except ValueError:
        entries = []  # torn by a full disk: nothing can be told from it
    found: dict[int, str] = {}
    for entry in entries or []:
        for process in _session(entry["pid"], entry["started"]):
            found[process.pid] = entry["name"]
            with suppress(psutil.NoSuchProcess):
                process.terminate()
    _, stubborn = psutil.wait_procs(_existing(found), timeout=patience_s)
    for process in stubborn:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(stubborn, timeout=1)
    path.unlink(missing_ok=True)
    return sorted(set(found.values()))


def _session(leader: int, started: float) -> list[psutil.Process]:
    try:
        process = psutil.Process(leader)
        if abs(process.create_time() - started) > _START_TOLERANCE_S:
            return []
    except psutil.NoSuchProcess:
        pass  # It ended, but what it started may run on in its session.
    members = []
    for other in psutil.process_iter():
        with suppress(OSError, psutil.Error):
            if os.getsid(other.pid) == leader and other.create_time() >= started - _START_TOLERANCE_S:
                members.append(other)
    return members


def _existing(pids: Collection[int]) -> list[psutil.Process]:
    processes = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            processes.append(psutil.Process(pid))
    return processes


class Reaper:
    """A process that ends the listed children once its supervisor is gone, however that came about.

    It waits for the end of a pipe whose other end the supervisor alone holds.

    Args:
        listing: The list that `write_list` writes.
        log: Where its output goes.
    """

    def __init__(self, listing: Path, log: Path) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cryptostream_dagster.local.reaper", str(listing)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def dismiss(self) -> None:
        """Let it go; the list must be empty by now."""
        pipe: IO[bytes] | None = self._process.stdin
        if pipe is not None:
            pipe.close()
        self._process.wait()
