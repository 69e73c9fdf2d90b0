"""Dagster as it is deployed: a code server and the daemon as processes of their own, Postgres as storage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import dagster as dg

from cryptostream_dagster.local.ports import LOOPBACK, answers, free_port
from cryptostream_dagster.local_stack import instance as local_instance
from cryptostream_dagster.settings import PipelineSettings
from tests.postgres_fixture import TestDatabase
from tests.stack import clean_environment, until

ROOT = Path(__file__).parents[1]
# The backfill daemon's pace is a constant of Dagster's: half a minute, too long for a test.
DAEMON = (
    "import dagster._daemon.controller as controller; controller.DEFAULT_DAEMON_INTERVAL_SECONDS = 1; "
    "from dagster._daemon.__main__ import main; main()"
)


class DagsterProcesses:
    """Started, stopped and killed at will; the instance outlives them."""

    def __init__(self, folder: Path, database: TestDatabase, settings: PipelineSettings) -> None:
        self.home = folder / "dagster"
        self.home.mkdir()
        self.port = free_port()
        given = settings.model_dump(mode="json", exclude_none=True)
        self.environment = {
            **clean_environment(),
            **{name.upper(): str(value) for name, value in given.items()},
            **database.environment,
            "DAGSTER_HOME": str(self.home),
            "PYTHONPATH": str(ROOT),
        }
        (self.home / "dagster.yaml").write_text(json.dumps(local_instance(database, database.name)))
        location = {"host": LOOPBACK, "port": self.port, "location_name": "cryptostream"}
        self.workspace = self.home / "workspace.yaml"
        self.workspace.write_text(json.dumps({"load_from": [{"grpc_server": location}]}))
        self.log = self.home / "log"
        self.code: subprocess.Popen[bytes] | None = None
        self.daemon: subprocess.Popen[bytes] | None = None

    def start_code(self) -> None:
        command = ["-m", "cryptostream_dagster.code_server", "--host", LOOPBACK, "--port", str(self.port)]
        command += ["--module-name", "cryptostream_dagster.definitions", "--location-name", "cryptostream"]
        self.code = self._launch(*command, "--use-python-environment-entry-point")
        until(lambda: answers(self.port), 120, self.said)

    def start(self) -> None:
        self.start_code()
        self.daemon = self._launch("-c", DAEMON, "run", "-w", str(self.workspace))

    def stop(self) -> None:
        """End both and everything that they launched, as a machine that is switched off in order does."""
        for process in (self.daemon, self.code):
            if process is not None and process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for process in (self.daemon, self.code):
            if process is not None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(20)
                self._kill(process)
        self.code = self.daemon = None

    def kill_code(self) -> None:
        """Kill the code server and the runs in its group, as the local stack and a container do."""
        assert self.code is not None
        self._kill(self.code)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run `cryptostream ...` beside them."""
        return subprocess.run(
            [sys.executable, "-m", "ingest_services", *command],
            env=self.environment,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    def said(self) -> str:
        return self.log.read_text(errors="replace")[-5000:]

    @contextmanager
    def instance(self) -> Iterator[dg.DagsterInstance]:
        with dg.DagsterInstance.from_config(str(self.home)) as opened:
            yield opened

    def _launch(self, *arguments: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *arguments],
                env=self.environment,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @staticmethod
    def _kill(process: subprocess.Popen[bytes]) -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def dagster_processes(
    folder: Path, database: TestDatabase, settings: PipelineSettings
) -> Iterator[DagsterProcesses]:
    processes = DagsterProcesses(folder, database, settings)
    try:
        yield processes
    finally:
        processes.stop()
