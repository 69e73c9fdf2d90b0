"""A webhook on loopback that remembers what it was told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET = "T000-B000-secret"


class Webhook:
    """What was posted, and what is answered."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.status = 200
        self.url = ""


@contextmanager
def open_webhook() -> Iterator[Webhook]:
    """Serve until the end of the block."""
    webhook = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert (self.headers["Content-Type"], list(body)) == ("application/json", ["text"])
            webhook.told.append(body["text"])
            self.send_response(webhook.status)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        webhook.url = f"http://127.0.0.1:{server.server_port}/services/{SECRET}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield webhook
        finally:
            server.shutdown()
            thread.join()
