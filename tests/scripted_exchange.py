"""An exchange that does exactly what a test tells it: WebSocket and market list on one loopback port."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import orjson
from aiohttp import WSMsgType, web


def book(market: str, tms: int, serial: int = 0, stream_type: str = "REALTIME") -> bytes:
    """Return a frame as the exchange writes it; the serial makes its bytes unique."""
    return orjson.dumps(
        {
            "ty": "orderbook",
            "cd": market,
            "tms": tms,
            "tas": 1.5,
            "tbs": 2.5,
            "obu": [{"ap": 100.0 + serial, "bp": 99.0, "as": 1.5, "bs": 2.5}],
            "st": stream_type,
            "lv": 0,
        }
    )


def _rest(market: str, book: dict[str, Any]) -> dict[str, Any]:
    names = {"ap": "ask_price", "as": "ask_size", "bp": "bid_price", "bs": "bid_size"}
    return {
        "market": market,
        "timestamp": book["tms"],
        "orderbook_units": [{names[name]: value for name, value in unit.items()} for unit in book["obu"]],
    }


class ScriptedExchange:
    """Controls are called from the test's thread; everything else lives in the server's own."""

    def __init__(self) -> None:
        self.port = 0
        self.markets = ["KRW-BTC", "KRW-ETH"]
        self.bookless: set[str] = set()
        self.requests: list[list[dict[str, Any]]] = []
        self.origins: list[str | None] = []
        self.sent: list[bytes] = []
        self.snapshots = True
        self.answers_pings = True
        self.says_up = True
        self.books: dict[str, bytes] = {}
        self.silent_codes: set[str] = set()
        self.deaf_from: int | None = None
        self.rest_refuses_with: int | None = None
        self.rest_asked_s: list[float] = []
        self.refuse_with: int | None = None
        self.ended = 0
        self._clients: list[web.WebSocketResponse] = []
        self._loop = asyncio.new_event_loop()

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/websocket/v1"

    @property
    def rest_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def clients(self) -> int:
        return len(self._clients)

    def send(self, *frames: bytes) -> None:
        """Send frames to everybody who is subscribed."""
        self._call(self._send(frames))

    def close(self, code: int = 1000) -> None:
        """Close all sockets in good order."""
        self._call(self._close(code))

    def reset(self) -> None:
        """Cut all connections without a word."""
        self._call(self._reset())

    def wait_for(self, condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
        wait_until(condition, what, timeout_s)

    # ---- in the server's thread

    def _call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    async def _send(self, frames: tuple[bytes, ...]) -> None:
        for frame in frames:
            self._remember(frame)
        for client in self._clients[: None if self.deaf_from is None else self.deaf_from - 1]:
            for frame in frames:
                await client.send_bytes(frame)
                self.sent.append(frame)

    def _snapshot(self, market: str) -> bytes:
        """Return the present book, as the REST API tells it; a new one if there is none yet."""
        if market in self.books:
            return self.books[market].replace(b'"REALTIME"', b'"SNAPSHOT"')
        frame = book(market, int(time.time() * 1000), len(self.sent), "SNAPSHOT")
        self._remember(frame)
        return frame

    def _remember(self, frame: bytes) -> None:
        with suppress(orjson.JSONDecodeError, KeyError, TypeError):
            self.books[orjson.loads(frame)["cd"]] = frame

    async def _close(self, code: int) -> None:
        for client in list(self._clients):
            await client.close(code=code)

    async def _reset(self) -> None:
        for client in list(self._clients):
            assert client._req is not None
            assert client._req.transport is not None
            client._req.transport.abort()

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        self.origins.append(request.headers.get("Origin"))
        if self.refuse_with is not None:
            return web.Response(status=self.refuse_with, text="no")
        socket = web.WebSocketResponse(autoping=False)
        await socket.prepare(request)
        ups: list[asyncio.Task[None]] = []
        try:
            async for message in socket:
                if message.type is WSMsgType.PING:
                    if self.answers_pings:
                        await socket.pong(message.data)
                elif message.data == "PING":
                    ups.append(asyncio.create_task(self._say_up(socket)))
                elif message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                    asked = orjson.loads(message.data)
                    self.requests.append(asked)
                    if self.snapshots:
                        for code in asked[1]["codes"]:
                            market = code.rsplit(".", 1)[0]
                            if market in self.silent_codes:
                                continue
                            frame = self._snapshot(market)
                            await socket.send_bytes(frame)
                            self.sent.append(frame)
                    self._clients.append(socket)
        finally:
            for up in ups:
                up.cancel()
            if socket in self._clients:
                self._clients.remove(socket)
            self.ended += 1
        return socket

    async def _say_up(self, socket: web.WebSocketResponse) -> None:
        with suppress(ConnectionError):
            while self.says_up:
                await socket.send_bytes(b'{"status":"UP"}')
                await asyncio.sleep(10)

    async def _orderbook(self, request: web.Request) -> web.Response:
        self.rest_asked_s.append(time.monotonic())
        if self.rest_refuses_with is not None:
            return web.json_response({"error": {"name": "no"}}, status=self.rest_refuses_with)
        codes = request.query["markets"].split(",")
        if not set(codes) <= set(self.markets) - self.bookless:
            return web.json_response({"error": {"name": 404, "message": "Code not found"}}, status=404)
        return web.json_response([_rest(code, orjson.loads(self.books[code])) for code in codes])

    async def _market_all(self, request: web.Request) -> web.Response:
        return web.json_response([{"market": market} for market in self.markets])

    async def _serve(self, started: threading.Event, stop: asyncio.Event) -> None:
        app = web.Application()
        app.router.add_get("/websocket/v1", self._socket)
        app.router.add_get("/v1/market/all", self._market_all)
        app.router.add_get("/v1/orderbook", self._orderbook)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port)
        await site.start()
        self.port = runner.addresses[0][1]
        started.set()
        await stop.wait()
        await self._reset()
        await runner.cleanup()


@contextmanager
def scripted_exchange() -> Iterator[ScriptedExchange]:
    exchange = ScriptedExchange()
    started, stop = threading.Event(), asyncio.Event()
    thread = threading.Thread(
        target=lambda: exchange._loop.run_until_complete(exchange._serve(started, stop)), daemon=True
    )
    thread.start()
    assert started.wait(10)
    try:
        yield exchange
    finally:
        exchange._loop.call_soon_threadsafe(stop.set)
        thread.join(10)


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 30.0) -> None:
    """Wait for something to become true, or fail naming it."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for: {what}"
        time.sleep(0.01)
