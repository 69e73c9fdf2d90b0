"""One small server: /metrics and /health, and the question from the command line."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import orjson
import pytest
from typer.testing import CliRunner

from ingest_services import cli, monitor
from ingest_services.errors import UserError
from ingest_services.monitor import Health, Monitor

OK = Health(sections={"s": {"state": "live"}})
DEGRADED = Health(degraded=("s: silent: XXX", "s: spooling"))
FAILED = Health(failed=("s: the feed ended",), degraded=("s: silent: XXX",))


@contextmanager
def serving(health: Callable[[], Health]) -> Iterator[Monitor]:
    server = monitor.serve(monitor.make_registry(), health, 0)
    try:
        yield server
    finally:
        server.close()


def get(port: int, path: str) -> tuple[int, str, bytes]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read()


@pytest.mark.parametrize(
    ("health", "code", "status", "reasons"),
    [
        (OK, 200, "ok", []),
        (DEGRADED, 200, "degraded", ["s: silent: XXX", "s: spooling"]),
        (FAILED, 503, "failed", ["s: the feed ended", "s: silent: XXX"]),
    ],
)
def test_only_what_a_new_start_may_cure_is_an_error(
    health: Health, code: int, status: str, reasons: list[str]
) -> None:
    with serving(lambda: health) as server:
        answered, kind, body = get(server.port, "/health")
    assert (answered, kind) == (code, "application/json")
    assert orjson.loads(body) == {
        "status": status,
        "pid": os.getpid(),
        "reasons": reasons,
        "sections": dict(health.sections),
    }


def test_metrics_come_in_the_format_that_is_asked_for() -> None:
    with serving(lambda: OK) as server:
        code, kind, body = get(server.port, "/metrics?x=1")
        asked = urllib.request.Request(
            f"http://127.0.0.1:{server.port}/metrics", headers={"Accept": "application/openmetrics-text"}
        )
        with urllib.request.urlopen(asked) as answer:
            open_metrics = answer.read()
    assert (code, kind.split(";")[0]) == (200, "text/plain")
    assert b"\ncryptostream_process_threads " in body
    assert b"\nprocess_resident_memory_bytes " in body
    assert open_metrics.endswith(b"# EOF\n")


def test_anything_else_is_not_there() -> None:
    with serving(lambda: OK) as server:
        assert get(server.port, "/")[0] == 404
        assert get(server.port, "/health/x")[0] == 404


def test_health_that_cannot_be_told_is_failed() -> None:
    def broken() -> Health:
        raise RuntimeError("no idea")

    with serving(broken) as server:
        code, _, body = get(server.port, "/health")
    assert code == 503
    assert "no idea" in orjson.loads(body)["reasons"][0]


def test_somebody_who_asks_nothing_or_nonsense_holds_nobody_up() -> None:
    with serving(lambda: OK) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as silent:
            with socket.create_connection(("127.0.0.1", server.port)) as rude:
                rude.sendall(b"\x00\xff\r\n\r\n")
            assert get(server.port, "/health")[0] == 200
            silent.close()
        assert get(server.port, "/health")[0] == 200


def test_a_closed_server_frees_its_port_and_a_taken_one_is_one_line() -> None:
    with serving(lambda: OK) as server:
        port = server.port
        with pytest.raises(
            UserError, match=f"--metrics-port {port}: cannot listen on METRICS_HOST=127.0.0.1"
        ):
            monitor.serve(monitor.make_registry(), lambda: OK, port)
    monitor.serve(monitor.make_registry(), lambda: OK, port).close()


def test_the_command_says_it_in_one_line_and_its_status() -> None:
    runner = CliRunner()
    for health, status, line in (
        (OK, 0, "ok\n"),
        (DEGRADED, 0, "degraded: s: silent: XXX; s: spooling\n"),
        (FAILED, 1, "failed: s: the feed ended; s: silent: XXX\n"),
    ):
        with serving(lambda health=health: health) as server:
            done = runner.invoke(cli.build_app(), ["health", "--port", str(server.port)])
        assert (done.exit_code, done.stdout) == (status, line)
    gone = runner.invoke(cli.build_app(), ["health", "--port", str(server.port)])
    assert gone.exit_code == 1
    assert gone.stdout.startswith(f"failed: http://127.0.0.1:{server.port}/health: ")
    assert len(gone.stdout.splitlines()) == 1


def test_another_program_on_the_port_is_not_healthy() -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"fine":true}')

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        assert monitor.ask(server.server_port) == (
            False,
            f"failed: http://127.0.0.1:{server.server_port}/health: something else answers there",
        )
        server.shutdown()


# A process that says how it is, one answer after the other, and hears a signal or does not.
SERVING = """
import itertools, signal, sys, threading
from ingest_services import monitor
from ingest_services.monitor import Health
# Said either way: what is ignored is inherited, as jobs of a shell ignore SIGINT, and Dagster then SIGTERM.
signal.signal(signal.SIGTERM, signal.SIG_IGN if sys.argv[1] == "deaf" else signal.SIG_DFL)
kinds = {"failed": Health(failed=("stuck",)), "degraded": Health(degraded=("slow",))}
answers = itertools.chain((kinds[word] for word in sys.argv[2:-1]), itertools.repeat(kinds[sys.argv[-1]]))
print(monitor.serve(monitor.make_registry(), lambda: next(answers), 0).port, flush=True)
threading.Event().wait()
"""


@pytest.mark.parametrize(
    ("words", "ended_by"),
    [
        (["hears", "failed"], signal.SIGTERM),
        (["deaf", "failed"], signal.SIGKILL),
        # It was stopped for a while, with its machine.
        (["hears", "failed", "degraded"], None),
        (["hears", "degraded"], None),
    ],
)
def test_what_has_failed_is_ended_for_whoever_restarts_it(words: list[str], ended_by: int | None) -> None:
    process = subprocess.Popen([sys.executable, "-c", SERVING, *words], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        # A process that has ended is there until somebody waits for it.
        threading.Thread(target=process.wait, daemon=True).start()
        # Only who does not hear is ended soon: on a busy machine the others take their time.
        alive, line = monitor.end_failed(port, again_s=0.05, end_s=0.5 if "deaf" in words else 20)
        if ended_by is None:
            assert alive
            assert line == "degraded: slow"
            assert process.poll() is None
        else:
            assert (alive, line) == (False, "failed: stuck; it was ended")
            assert process.wait(20) == -ended_by
    finally:
        process.kill()
        process.communicate()
