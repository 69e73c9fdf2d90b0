"""One feed on real sockets: what it hears when it comes late to listen, and what it does not wait for."""

from __future__ import annotations

import base64
import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise

import pytest

from ingest_services.producer import supervision
from ingest_services.producer.feed import STAMPS_AHEAD_US, Feed, Inbox, Item, next_stamp
from ingest_services.producer.metrics import SectionStats
from ingest_services.producer.supervision import ConnectionLimiter
from tests.scripted_exchange import book, scripted_exchange, wait_until


class Pausing(Inbox):
    """An inbox at which the feed stands still once, as if its process had been stopped."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.pause_s = 0.0

    def put(self, item: Item, block: bool = True, timeout: float | None = None) -> None:
        self.items.append(item)
        if self.pause_s and isinstance(item[2], bytes):
            pause_s, self.pause_s = self.pause_s, 0.0
            time.sleep(pause_s)

    @property
    def frames(self) -> list[bytes]:
        return [data for _, _, data in self.items if isinstance(data, bytes) and b'"cd"' in data]


@contextmanager
def feeding(url: str, inbox: Inbox, limiter: ConnectionLimiter | None = None) -> Iterator[SectionStats]:
    stats = SectionStats("s")
    feed = Feed(
        "s",
        ["KRW-BTC"],
        url=url,
        depth=15,
        inbox=inbox,
        limiter=limiter or ConnectionLimiter(),
        stats=stats,
        on_state=lambda feed, state: None,
    )
    feed.start()
    try:
        yield stats
    finally:
        feed.stop()
        feed.join(10)
        assert not feed.is_alive()


def test_what_came_while_nobody_listened_was_received(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "STALL_S", 1.0)
    monkeypatch.setattr(supervision, "KEEPALIVE_S", 0.1)
    inbox = Pausing()
    with scripted_exchange() as exchange, feeding(exchange.ws_url, inbox) as stats:
        wait_until(lambda: exchange.clients == 1, "a subscription")
        inbox.pause_s = 2.0
        for serial in range(50):
            exchange.send(book("KRW-BTC", 1000 + serial, serial))
            time.sleep(0.005)
        wait_until(lambda: len(inbox.frames) >= 51, "the frames")
        assert inbox.frames == exchange.sent
        assert not stats.reconnects, "the exchange was not silent: we were"


def test_what_is_read_at_once_keeps_its_order_in_its_stamps() -> None:
    inbox = Pausing()
    with scripted_exchange() as exchange, feeding(exchange.ws_url, inbox):
        wait_until(lambda: exchange.clients == 1, "a subscription")
        inbox.pause_s = 0.3
        for serial in range(100):
            exchange.send(book("KRW-BTC", 1000 + serial, serial))
        wait_until(lambda: len(inbox.frames) >= 101, "the frames")
    stamps = [at_us for at_us, _, data in inbox.items if isinstance(data, bytes)]
    assert all(later > earlier for earlier, later in pairwise(stamps))


def test_a_clock_that_was_set_back_is_believed() -> None:
    assert next_stamp(1_000_000, 0) == 1_000_000
    assert next_stamp(1_000_000, 1_000_000) == 1_000_001
    assert next_stamp(1_000_000, 1_000_300) == 1_000_301
    assert next_stamp(1_000_000, 1_000_000 + STAMPS_AHEAD_US + 1) == 1_000_000


@contextmanager
def dripping(first: bytes, drop: bytes) -> Iterator[str]:
    """Accept WebSockets, send each some raw bytes, and then a drop every 20 ms for ever; yields the URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def drip(client: socket.socket) -> None:
        request = client.recv(65536).decode()
        key = next(line for line in request.split("\r\n") if line.startswith("Sec-WebSocket-Key")).split()[1]
        digest = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
        with suppress(OSError):
            client.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n" + first
            )
            while not over.wait(0.02):
                client.sendall(drop)
        client.close()

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=drip, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"ws://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


@pytest.mark.parametrize(
    ("first", "drop"),
    [
        pytest.param(b"\x82\x7f" + (1 << 40).to_bytes(8, "big"), b"x", id="a frame that never becomes whole"),
        pytest.param(b"", b"\x89\x00", id="pings, and no frame"),
    ],
)
def test_a_socket_that_drips_and_tells_nothing_is_given_up(
    monkeypatch: pytest.MonkeyPatch, first: bytes, drop: bytes
) -> None:
    monkeypatch.setattr(supervision, "FIRST_MESSAGE_S", 1.0)
    with dripping(first, drop) as url, feeding(url, Inbox()) as stats:
        wait_until(lambda: stats.reconnects["stalled"] >= 1, "the end of it")


@pytest.mark.parametrize("status", [429, 418])
def test_a_refusal_of_one_section_holds_back_the_others(status: int) -> None:
    limiter = ConnectionLimiter()
    with scripted_exchange() as exchange:
        exchange.refuse_with = status
        with feeding(exchange.ws_url, Inbox(), limiter) as one:
            wait_until(lambda: one.reconnects[f"status_{status}"] == 1, "the refusal")
            with feeding(exchange.ws_url, Inbox(), limiter) as other:
                time.sleep(1.0)
                assert len(exchange.origins) == 1, "the exchange counts by address"
                assert not other.reconnects
