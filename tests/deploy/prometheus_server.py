"""Prometheus itself, with the configuration of the compose files, on processes of this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml

from cryptostream_dagster.local.ports import LOOPBACK, free_port
from cryptostream_dagster.local.status import fetch_json
from tests.deploy.compose import DOCKER, resolve


def require(program: str) -> str:
    """Return the path of a program of Prometheus', or skip the test; in CI it fails."""
    path = shutil.which(program)
    if path is None:
        missing = f"no {program} on this machine (Debian: apt install prometheus)"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return path


@dataclass(frozen=True)
class Prometheus:
    """A running server."""

    url: str

    def ask(self, path: str, **arguments: str) -> Any:
        told = fetch_json(f"{self.url}/api/v1/{path}?{urlencode(arguments)}")
        assert told is not None, f"Prometheus refuses {path} {arguments}"
        assert told["status"] == "success", told
        return told["data"]

    def series(self, expression: str) -> list[dict[str, str]]:
        """Return the labels of every series that an expression has now."""
        return [found["metric"] for found in self.ask("query", query=expression)["result"]]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextmanager
def running_prometheus(folder: Path, ports: Mapping[str, int]) -> Iterator[Prometheus]:
    """Run Prometheus with compose.yml for the length of a `with` block.

    Args:
        folder: For its data.
        ports: By job of the configuration, where the process is; Compose's names lead nowhere here.
    """
    configuration = yaml.safe_load((DOCKER / "prometheus" / "compose.yml").read_text())
    configuration["global"] = dict.fromkeys(configuration["global"], "1s")
    configuration["rule_files"] = [str(DOCKER / "prometheus" / "rules.yml")]
    jobs = {job["job_name"]: job for job in configuration["scrape_configs"]}
    assert jobs.keys() == ports.keys()
    for name, job in jobs.items():
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [f"{LOOPBACK}:{ports[name]}"]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    port = free_port()
    given = resolve("compose.yaml", DOCKER / "env.example")["services"]["prometheus"]
    options = [
        option.replace("/etc/prometheus/", f"{folder}/").replace("=/prometheus", f"={folder / 'prometheus'}")
        for option in given["command"]
    ]
    ready = given["healthcheck"]["test"][-1].replace("127.0.0.1:9090", f"{LOOPBACK}:{port}")
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [require("prometheus"), *options, f"--web.listen-address={LOOPBACK}:{port}"],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    server = Prometheus(f"http://{LOOPBACK}:{port}")
    try:
        deadline = time.monotonic() + 60
        # Rates want two looks at every target.
        while not _answers(ready) or len(server.series("count_over_time(up[1m]) >= 3")) < len(ports):
            assert process.poll() is None, (folder / "prometheus.log").read_text()[-2000:]
            assert time.monotonic() < deadline, (folder / "prometheus.log").read_text()[-2000:]
            time.sleep(0.2)
        yield server
    finally:
        process.terminate()
        process.wait(20)
