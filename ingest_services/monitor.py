"""What a process of the ingest half serves about itself on one port: `/metrics` and `/health`.

Belongs here: the server, the question from the command line, and what any process tells. Does not belong
here: what a producer or a consumer measures (`producer/metrics.py`, `consumer/metrics.py`).
"""

from __future__ import annotations

import enum
import os
import signal
import socketserver
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

import orjson
import structlog
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from ingest_services import logs
from ingest_services.errors import UserError

LOOPBACK = "127.0.0.1"
# Somebody who connects and asks nothing holds a thread no longer than this.
REQUEST_TIMEOUT_S = 10.0
ASK_TIMEOUT_S = 5.0
# A process that was stopped for a while, with its machine, says once that it has failed.
ASK_AGAIN_S = 5.0
# A process of ours ends within ten seconds of a signal, if it hears it.
END_S = 12.0

_log = structlog.get_logger()


class Status(enum.StrEnum):
    """How a process is.

    OK: it does what it is for. DEGRADED: something that it needs is away or wrong, and starting it anew would
    not help. FAILED: a part of it ended or is stuck, and starting it anew may help.
    """

    OK = "ok"
    DEGRADED = "degraded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Health:
    """What `/health` answers.

    Attributes:
        failed: Why the process has failed; empty if it has not.
        degraded: What it lacks, and cannot help.
        sections: Figures by section, JSON types only.
    """

    failed: tuple[str, ...] = ()
    degraded: tuple[str, ...] = ()
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def status(self) -> Status:
        """The worst that is the case."""
        if self.failed:
            return Status.FAILED
        return Status.DEGRADED if self.degraded else Status.OK

    @property
    def code(self) -> HTTPStatus:
        """The HTTP status: an error only where a new start may help."""
        return HTTPStatus.SERVICE_UNAVAILABLE if self.failed else HTTPStatus.OK

    def encode(self) -> bytes:
        """Return it as JSON."""
        return orjson.dumps(
            {
                "status": self.status.value,
                "pid": os.getpid(),
                "reasons": [*self.failed, *self.degraded],
                "sections": self.sections,
            },
            option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE,
        )


class _ProcessExtras(Collector):
    """What prometheus_client's `ProcessCollector` leaves out."""

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "cryptostream_process_threads", "Threads of the process.", threading.active_count()
        )
        yield CounterMetricFamily(
            "cryptostream_process_log_lines_lost",
            "Log lines that could not be written.",
            logs.lost_lines(),
        )


def make_registry(*collectors: Collector) -> CollectorRegistry:
    """Return a registry with some collectors, and what every process tells: memory, threads, files."""
    registry = CollectorRegistry()
    for collector in [*collectors, _ProcessExtras()]:
        registry.register(collector)
    ProcessCollector(registry=registry)
    return registry


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__((host, port), handler)

    def handle_error(self, *_: Any) -> None:
        """Say it in one line: who asked went away, or the answer could not be made."""
        _log.warning("monitor_request_failed", exc_info=True)


class Monitor:
    """A running server; see `serve`."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self.port: int = server.server_address[1]
        threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="monitor", daemon=True
        ).start()

    def close(self) -> None:
        """Serve no more, and free the port."""
        self._server.shutdown()
        self._server.server_close()


def serve(
    registry: CollectorRegistry, health: Callable[[], Health], port: int, host: str = LOOPBACK
) -> Monitor:
    """Serve `/metrics` and `/health`.

    Args:
        registry: What `/metrics` tells.
        health: Asked for every `/health`; it may raise, which counts as failed.
        port: The port; 0 for any that is free.
        host: The address; METRICS_HOST.

    Returns:
        The running server; the caller closes it.

    Raises:
        UserError: If the port is taken, or the address is none of this machine.
    """

    class Handler(BaseHTTPRequestHandler):
        server_version = "cryptostream"
        sys_version = ""
        timeout = REQUEST_TIMEOUT_S

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            if path == "/metrics":
                encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                self._answer(HTTPStatus.OK, content_type, encode(registry))
            elif path == "/health":
                found = _ask(health)
                self._answer(found.code, "application/json", found.encode())
            else:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"/metrics or /health\n")

        def log_message(self, *_: Any) -> None:
            """Say nothing: a question every few seconds is no event."""

        def _answer(self, code: HTTPStatus, content_type: str, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    try:
        return Monitor(_Server(host, port, Handler))
    except OSError as error:
        raise UserError(
            f"--metrics-port {port}: cannot listen on METRICS_HOST={host} ({error.strerror or error}); "
            "is another process using it?"
        ) from error


def ask(port: int, timeout_s: float = ASK_TIMEOUT_S) -> tuple[bool, str]:
    """Ask a process on this machine how it is.

    Args:
        port: Its `--metrics-port`.
        timeout_s: How long to wait for an answer, seconds.

    Returns:
        Whether it is alive (ok or degraded), and one line for a person.
    """
    alive, line, _ = _question(port, timeout_s)
    return alive, line


def end_failed(port: int, again_s: float = ASK_AGAIN_S, end_s: float = END_S) -> tuple[bool, str]:
    """Ask as `ask` does, and end a process that says twice that it has failed: whoever restarts it then does.

    Args:
        port: Its `--metrics-port`; on this machine, or in this container.
        again_s: How long after the first answer to ask again, seconds.
        end_s: How long it has to end in order, seconds; then it is killed.

    Returns:
        As `ask`.
    """
    alive, line, pid = _question(port, ASK_TIMEOUT_S)
    if alive or pid is None:
        return alive, line
    time.sleep(again_s)
    alive, line, same = _question(port, ASK_TIMEOUT_S)
    if alive or same != pid:
        return alive, line
    until_s = time.monotonic() + end_s
    try:
        os.kill(pid, signal.SIGTERM)
        while time.monotonic() < until_s:
            time.sleep(0.1)
            os.kill(pid, 0)
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    return False, f"{line}; it was ended"


def _question(port: int, timeout_s: float) -> tuple[bool, str, int | None]:
    url = f"http://{LOOPBACK}:{port}/health"
    try:
        try:
            with urllib.request.urlopen(url, timeout=timeout_s) as answer:
                body = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                body = error.read()
        told = orjson.loads(body)
        status = Status(told["status"])
        reasons = [str(reason) for reason in told["reasons"]]
        pid = int(told["pid"])
    except (OSError, HTTPException) as error:
        return False, f"{Status.FAILED}: {url}: {getattr(error, 'reason', error)}", None
    except (ValueError, TypeError, KeyError):
        return False, f"{Status.FAILED}: {url}: something else answers there", None
    line = "; ".join(" ".join(reason.split()) for reason in reasons)
    return status is not Status.FAILED, f"{status}: {line}" if line else str(status), pid


def _ask(health: Callable[[], Health]) -> Health:
    try:
        return health()
    except Exception as error:  # noqa: BLE001 (whatever is wrong with it, somebody has to be told)
        _log.exception("health_failed")
        return Health(failed=(f"health cannot be told: {error!r}",))
