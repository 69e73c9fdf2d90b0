"""The two paths to the exchange, WebSocket and REST: what malformed, slow and untrusted ones come to."""

from __future__ import annotations

import base64
import hashlib
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_services.producer import feed
from ingest_services.upbit import rest
from ingest_services.upbit.rest import Rest, RestError
from tests.broker import Broker
from tests.integration.test_producer_service import books, producing, read_all, section, settings_for
from tests.scripted_exchange import book, scripted_exchange, wait_until

Answer = tuple[int, bytes]


@contextmanager
def answering(*answers: Answer, tls: ssl.SSLContext | None = None) -> Iterator[tuple[int, list[str]]]:
    """Answer requests one by one, the last answer for ever; yields the port and the paths asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers[min(len(asked), len(answers) - 1)]
            asked.append(self.path)
            self.send_response(status)
            # One byte more than there is: a body that is cut off.
            self.send_header("Content-Length", str(len(body) + (status == 206)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port, asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


MARKETS = b'[{"market":"KRW-BTC"},{"market":"BTC-ETH"}]'
BOOKS = (
    b'[{"market":"KRW-BTC","timestamp":1700000000000,"orderbook_units":'
    b'[{"ask_price":1.5,"bid_price":1,"ask_size":2E-3,"bid_size":4}]}]'
)


def test_markets_and_books_are_read() -> None:
    with answering((200, MARKETS), (200, BOOKS)) as (port, asked):
        client = Rest(f"http://127.0.0.1:{port}/")
        assert client.markets() == ("BTC-ETH", "KRW-BTC")
        books = client.books(["KRW-BTC", "KRW-ETH"])
    assert books["KRW-BTC"].tms == 1_700_000_000_000
    assert books["KRW-BTC"].levels == ((1.5, 0.002, 1.0, 4.0),)
    assert asked == ["/v1/market/all", "/v1/orderbook?markets=KRW-BTC,KRW-ETH"]


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b""),
        (200, b"<html>"),
        (200, b"[]"),
        (200, b"{}"),
        (200, b"null"),
        (200, b"[1]"),
        (200, b'[{"name":"x"}]'),
        (200, b'[{"market":"krw-btc"}]'),
        (200, b'[{"market":["KRW-BTC"]}]'),
        (200, b'[{"market":7}]'),
        (200, b'[{"market":"KRW-BTC"}'),
        (206, MARKETS),
        (404, b'{"error":{"name":404,"message":"Code not found"}}'),
        (429, b"Too many API requests."),
        (418, b"blocked"),
        (500, b""),
        (503, b"<html>down</html>"),
    ],
)
def test_whatever_else_the_exchange_answers_is_one_error(status: int, body: bytes) -> None:
    with answering((status, body)) as (port, _):
        with pytest.raises(RestError) as raised:
            Rest(f"http://127.0.0.1:{port}").markets()
        assert str(raised.value).startswith(f"http://127.0.0.1:{port}/v1/market/all: ")
        assert raised.value.status == (status if status >= 400 else None)


def test_nobody_there_is_the_same_error() -> None:
    with pytest.raises(RestError, match=r"127\.0\.0\.1:1/v1/market/all"):
        Rest("http://127.0.0.1:1").markets()


def test_an_exchange_that_accepts_and_says_nothing_is_waited_for_within_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rest, "TIMEOUT_S", 0.3)
    release = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            release.wait(20)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(RestError, match="timed out"):
            Rest(f"http://127.0.0.1:{server.server_port}").markets()
    finally:
        release.set()
        server.shutdown()
        server.server_close()


@contextmanager
def pouring(piece: bytes, every_s: float) -> Iterator[str]:
    """Answer every question with pieces of a body, for ever; yields the URL."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                while not over.wait(every_s):
                    self.wfile.write(piece)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        over.set()
        server.shutdown()
        server.server_close()


def test_an_answer_that_trickles_in_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "ANSWER_S", 0.5)
    with pouring(b" ", 0.05) as url, pytest.raises(RestError, match="not whole"):
        Rest(url).markets()


def test_an_answer_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "ANSWER_BYTES", 1 << 20)
    with pouring(b" " * 65536, 0.0) as url, pytest.raises(RestError, match="more than"):
        Rest(url).markets()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "market",
                    "timestamp",
                    "orderbook_units",
                    "ask_price",
                    "bid_price",
                    "ask_size",
                    "bid_size",
                    "x",
                ]
            ),
            children | st.just("KRW-BTC"),
            max_size=7,
        )
    ),
    max_leaves=25,
)


@given(json_values)
def test_any_json_is_an_answer_or_one_error(value: Any) -> None:
    client = Rest("http://exchange")
    client._get = lambda path: value  # type: ignore[method-assign]
    for ask in (client.markets, lambda: client.books(["KRW-BTC"])):
        with suppress(RestError):
            ask()


def test_who_was_told_to_slow_down_does_not_even_ask() -> None:
    now = 1000.0
    with answering((418, b"blocked"), (200, MARKETS)) as (port, asked):
        client = Rest(f"http://127.0.0.1:{port}", clock=lambda: now)
        with pytest.raises(RestError) as raised:
            client.markets()
        assert raised.value.status == 418
        for _ in range(5):
            with pytest.raises(RestError, match="asked us to slow down"):
                client.markets()
        assert len(asked) == 1
        assert client.refused == 1
        now += 61.0
        assert client.markets()


def test_requests_are_spread_over_time() -> None:
    with answering((200, MARKETS)) as (port, asked):
        client = Rest(f"http://127.0.0.1:{port}")
        began = time.monotonic()
        threads = [threading.Thread(target=client.markets) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - began >= 4 * rest.EVERY_S
        assert len(asked) == 5
        assert client.waited_s > 0


# ---- TLS


@pytest.fixture(scope="module")
def impostor(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """Return a certificate that nobody vouches for."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed: it makes the certificate that must be refused")
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "cert.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    make = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *subject]
    subprocess.run([*make, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def test_an_impostor_is_not_believed_over_rest(impostor: ssl.SSLContext) -> None:
    with (
        answering((200, MARKETS), tls=impostor) as (port, asked),
        pytest.raises(RestError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        Rest(f"https://127.0.0.1:{port}").markets()
    assert asked == []


def test_an_impostor_is_not_believed_over_the_websocket(
    impostor: ssl.SSLContext, broker: Broker, tmp_path: Path
) -> None:
    with answering((101, b""), tls=impostor) as (port, asked), scripted_exchange() as exchange:
        settings = settings_for(exchange, broker.bootstrap, tmp_path).model_copy(
            update={"upbit_ws_url": f"wss://127.0.0.1:{port}/websocket/v1"}
        )
        with producing([section(broker.topic(), "KRW-BTC")], settings) as running:
            wait_until(lambda: running.stats[0].reconnects["connect_failed"] >= 2, "two refusals")
            assert running.stats[0].connected == 0
    assert asked == []


# ---- the WebSocket


@pytest.mark.parametrize(
    ("status", "cause"), [(429, "status_429"), (418, "status_418"), (403, "status_403"), (200, "status_200")]
)
def test_a_refused_handshake_is_a_cause_with_its_status(
    broker: Broker, tmp_path: Path, status: int, cause: str
) -> None:
    with scripted_exchange() as exchange:
        exchange.refuse_with = status
        with producing(
            [section(broker.topic(), "KRW-BTC")], settings_for(exchange, broker.bootstrap, tmp_path)
        ) as running:
            wait_until(lambda: running.stats[0].reconnects[cause] == 1, "the refusal")


def test_the_limits_of_the_exchange_are_never_asked_for_twice() -> None:
    assert feed.SLOW_DOWN_S[418] > feed.SLOW_DOWN_S[429] > 1.0


def messages_in(said: bytes) -> int:
    """Return how many whole messages of a client there are: masked, and shorter than 64 KiB."""
    count = at = 0
    while len(said) >= at + 4:
        length, head = said[at + 1] & 0x7F, 2 + 4
        if length == 126:
            length, head = int.from_bytes(said[at + 2 : at + 4], "big"), 4 + 4
        at += head + length
        count += at <= len(said)
    return count


@contextmanager
def speaking(*streams: bytes) -> Iterator[tuple[int, list[int]]]:
    """Accept WebSockets and send each connection its stream of raw bytes; the last one for ever."""
    listener = socket.create_server(("127.0.0.1", 0))
    connections: list[int] = []

    def serve() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                request = client.recv(65536).decode()
                key = next(
                    line for line in request.split("\r\n") if line.startswith("Sec-WebSocket-Key")
                ).split()[1]
                digest = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
                client.sendall(
                    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n"
                )
                client.sendall(streams[min(len(connections), len(streams) - 1)])
                connections.append(1)
                # A client that cannot say what it wants any more does not read what was said to it.
                client.settimeout(10)
                with suppress(OSError):
                    said = b""
                    while messages_in(said) < 2 and (piece := client.recv(65536)):
                        said += piece
                client.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], connections
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


GOOD = book("KRW-BTC", 1_700_000_000_000, 1, "SNAPSHOT")
WHOLE = bytes([0x82, 126, *len(GOOD).to_bytes(2, "big")]) + GOOD


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(b"\x83\x01x", id="reserved opcode"),
        pytest.param(b"\xc2\x01x", id="reserved bit"),
        pytest.param(b"\x82\xff" + b"\xff" * 8 + b"x" * 1000, id="a length of 2^64 - 1"),
        pytest.param(b"\x82\x7e\x10\x00" + b"x" * 100, id="cut off in a frame"),
        pytest.param(b"\x82", id="cut off in a header"),
        pytest.param(b"\x09\x01x", id="a fragmented ping"),
        pytest.param(b"\x89\x7e\x00\x80" + b"x" * 128, id="a ping too long"),
        pytest.param(b"\x80\x01x", id="a continuation of nothing"),
        pytest.param(b"\x88\x01x", id="a close of one byte"),
        pytest.param(b"\x88\x02\x00\x00", id="a close with code 0"),
        pytest.param(b"\x88\x00", id="a close without a code"),
        pytest.param(b"\x82\x81\x00\x00\x00\x00x", id="a masked frame"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n" * 50, id="not a WebSocket"),
        pytest.param(b"\x81\x04\xff\xfe\xfd\xfc", id="text that is no UTF-8"),
        pytest.param(b"\x82\x00", id="an empty frame"),
    ],
)
def test_whatever_comes_over_the_wire_the_next_connection_follows(
    broker: Broker, tmp_path: Path, stream: bytes
) -> None:
    topic = broker.topic()
    with speaking(WHOLE + stream, WHOLE) as (port, connections), scripted_exchange() as exchange:
        settings = settings_for(exchange, broker.bootstrap, tmp_path).model_copy(
            update={"upbit_ws_url": f"ws://127.0.0.1:{port}/websocket/v1"}
        )
        with producing([section(topic, "KRW-BTC")], settings) as running:
            wait_until(lambda: len(connections) >= 3, "the next connections")
            assert not running.failed
        assert running.stats[0].reconnects["feed_failed"] == 0, "a cause has a name"
    kept = [record for record in books(read_all(broker.bootstrap, topic)) if record.value == GOOD]
    assert len(kept) >= 2, "what was whole is kept, before it and after"
