"""A producer as a process of its own, the way it is deployed; and peers that hang."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import orjson

from ingest_services import monitor
from tests.scripted_exchange import wait_until

SECTION = "[{name}]\ntopic_name={topic}\npartition_number=0\ntickers={tickers}\n"
# The promise is 10 s; a machine that is busy with other tests is slower.
EXIT_S = 30.0


class ProducerProcess:
    """`cryptostream produce --all --metrics-port …`, with its log in a file."""

    def __init__(
        self,
        folder: Path,
        *,
        topic: str,
        tickers: Mapping[str, str],
        bootstrap: str,
        ws_url: str,
        rest_url: str,
        port: int,
        stderr: Any = None,
    ) -> None:
        (folder / "producer.conf").write_text(
            "".join(SECTION.format(name=name, topic=topic, tickers=of) for name, of in tickers.items())
        )
        self.port = port
        self.spool = folder / "spool"
        self.log_path = folder / "producer.log"
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ingest_services", "produce", "--all", "--metrics-port", str(port)],
                env={
                    **os.environ,
                    "PYTHONPATH": str(Path(__file__).parents[1]),
                    "PRODUCER_CONF": str(folder / "producer.conf"),
                    "KAFKA_BOOTSTRAP": bootstrap,
                    "UPBIT_WS_URL": ws_url,
                    "UPBIT_REST_URL": rest_url,
                    "SPOOL_DIR": str(self.spool),
                },
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log if stderr is None else stderr,
            )

    def log(self, event: str) -> list[dict[str, Any]]:
        """Return the log lines of one event."""
        lines = [orjson.loads(line) for line in self.log_path.read_bytes().splitlines() if line[:1] == b"{"]
        return [line for line in lines if line["event"] == event]

    def health(self) -> tuple[bool, str]:
        return monitor.ask(self.port)

    def wait_for(self, status: str, *words: str) -> str:
        """Wait until `/health` begins with a status and has some words; return its line."""
        seen = [""]

        def there() -> bool:
            assert self.process.poll() is None, self.log_path.read_text()
            seen[0] = self.health()[1]
            return seen[0].startswith(status) and all(word in seen[0] for word in words)

        try:
            wait_until(there, f"{status} {words}", 60)
        except AssertionError as error:
            raise AssertionError(f"{error}; the last was: {seen[0]}\n{self.log_path.read_text()}") from None
        return seen[0]

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(EXIT_S)


@contextmanager
def producer_process(folder: Path, **settings: Any) -> Iterator[ProducerProcess]:
    """Run a producer; it is killed at the end if it still runs."""
    running = ProducerProcess(folder, **settings)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
        running.process.wait()


class MarketServer:
    """The REST API's list of markets, or silence, or a refusal."""

    def __init__(self, port: int = 0) -> None:
        self.markets = ["KRW-BTC", "KRW-ETH"]
        self.status = 200
        self.hangs = threading.Event()
        self.asked = 0
        self.release = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                if outer.hangs.is_set():
                    outer.release.wait(120)
                    return
                body = orjson.dumps([{"market": market} for market in outer.markets])
                self.send_response(outer.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def market_server(port: int = 0) -> Iterator[MarketServer]:
    server = MarketServer(port)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def exchange_that_never_closes(frame: bytes) -> Iterator[str]:
    """A WebSocket that sends one frame, reads on, and answers nothing, not even a close; yields its URL."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(client: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += client.recv(4096)
        key = next(line for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
        digest = hashlib.sha1(key.split(b":")[1].strip() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        client.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n"
        )
        client.sendall(bytes([0x82, 126]) + len(frame).to_bytes(2, "big") + frame)
        try:
            while client.recv(4096):
                pass
        except OSError:
            return

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"ws://127.0.0.1:{listener.getsockname()[1]}/websocket/v1"
    finally:
        listener.close()
