"""Dagster's servers as processes: a code server with a module's definitions, the webserver, the daemon."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cryptostream_dagster.local.ports import LOOPBACK, answers, free_port
from load.stack import ended

OURS = "cryptostream_dagster.definitions"


@contextmanager
def code_server(home: Path, environment: Mapping[str, str], module: str = OURS) -> Iterator[Path]:
    """Run a code server; give a workspace.yaml that names it.

    Args:
        home: The instance's folder, where the file goes.
        environment: Of the process.
        module: With the definitions.
    """
    port = free_port()
    workspace = home / f"workspace-{port}.yaml"
    location = {"host": LOOPBACK, "port": port, "location_name": "cryptostream"}
    workspace.write_text(json.dumps({"load_from": [{"grpc_server": location}]}))
    command = ["dagster", "api", "grpc", "-h", LOOPBACK, "-p", str(port), "--module-name", module]
    with _launched([*command, "--location-name", "cryptostream"], environment, lambda: answers(port)):
        yield workspace


@contextmanager
def webserver(home: Path, environment: Mapping[str, str], module: str = OURS) -> Iterator[str]:
    """Run a code server and a webserver; give the URL to which queries go."""
    port = free_port()
    with ExitStack() as servers:
        workspace = servers.enter_context(code_server(home, environment, module))
        command = ["dagster_webserver", "-h", LOOPBACK, "-p", str(port), "-w", str(workspace)]
        servers.enter_context(_launched(command, environment, lambda: answers(port)))
        yield f"http://{LOOPBACK}:{port}/graphql"


@contextmanager
def daemon(home: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """Run a code server and the daemon, which launches the runs that are asked for."""
    with (
        code_server(home, environment) as workspace,
        _launched(["dagster._daemon", "run", "-w", str(workspace)], environment, lambda: True),
    ):
        yield


@contextmanager
def _launched(
    command: list[str], environment: Mapping[str, str], is_up: Callable[[], bool], timeout_s: float = 120
) -> Iterator[None]:
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        [sys.executable, "-m", *command], env=dict(environment), stdout=quiet, stderr=quiet
    )
    with ended(process):
        deadline = time.monotonic() + timeout_s
        while not is_up():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{' '.join(command[:3])} did not start")
            time.sleep(0.1)
        yield
