"""One client's WebSocket: what it says, and the bounded queue of what it is told.

The exchange's manners, in one place: a bad request gets an error frame and a close with 1000, a client that
does not read is dropped without a word, and so is one with no traffic in either direction for too long.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

import orjson
from aiohttp import ClientConnectionError, WSCloseCode, WSMsgType, web

from ingest_services.simulator.config import SimulatorConfig
from ingest_services.simulator.exchange import Exchange, Wish
from ingest_services.upbit.request import (
    LIST_SUBSCRIPTIONS,
    ListRequest,
    RequestError,
    SubscriptionRequest,
    parse_request,
    split_code,
)

# A history goes on when no more than this waits for the client.
_ROOM_BYTES = 512 * 1024
# After a request that replaces another, the wire still brought up to two frames of the old one.
_STALE_FRAMES = 2
_CLOSE_TIMEOUT_S = 2.0
_UP = b'{"status":"UP"}'


class Session:
    """One connected client."""

    def __init__(self, exchange: Exchange, config: SimulatorConfig) -> None:
        """Prepare for a socket; `serve` accepts it."""
        self.stream_format = "DEFAULT"
        self.gone = False
        self._exchange = exchange
        self._config = config
        self._request: SubscriptionRequest | None = None
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self._ws = web.WebSocketResponse(
            autoping=False, compress=False, timeout=_CLOSE_TIMEOUT_S, max_msg_size=1 << 20
        )
        self._last_traffic = 0.0

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        """Accept the socket and answer until it is closed."""
        await self._ws.prepare(request)
        self._transport = request.transport
        self._last_traffic = asyncio.get_running_loop().time()
        helpers = [asyncio.create_task(self._write()), asyncio.create_task(self._watch_idleness())]
        try:
            await self._listen(helpers)
        finally:
            self._exchange.leave(self)
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
        return self._ws

    def offer(self, frame: bytes) -> None:
        """Queue a frame; a client with too much unread is dropped."""
        if self.gone:
            return
        self._queued_bytes += len(frame)
        if self._queued_bytes > self._config.queue_bytes:
            self.drop()
            return
        self._queue.append(frame)
        self._filled.set()

    async def room(self) -> None:
        """Wait until little is queued; a client that takes nothing for too long is dropped."""
        while self._queued_bytes > _ROOM_BYTES and not self.gone:
            self._room.clear()
            try:
                async with asyncio.timeout(self._config.stall_timeout_s):
                    await self._room.wait()
            except TimeoutError:
                self.drop()

    def drop(self) -> None:
        """Cut the connection without a close frame."""
        self.gone = True
        self._queue.clear()
        self._queued_bytes = 0
        self._room.set()
        if self._transport is not None:
            self._transport.abort()

    async def _listen(self, helpers: list[asyncio.Task[None]]) -> None:
        async for message in self._ws:
            self._touch()
            if message.type is WSMsgType.PING:
                await self._send_control(message.data)
            elif message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                if message.data in ("PING", b"PING"):
                    if len(helpers) == 2:
                        helpers.append(asyncio.create_task(self._say_up()))
                    continue
                try:
                    self._answer(message.data)
                except RequestError as error:
                    await self._refuse(error)
                    return

    def _answer(self, text: str | bytes) -> None:
        request = parse_request(text)
        self.stream_format = request.format
        if isinstance(request, ListRequest):
            self.offer(self._list_subscriptions(request))
            return
        while len(self._queue) > _STALE_FRAMES:
            self._queued_bytes -= len(self._queue.pop())
        self._request = request
        self._exchange.subscribe(self, _wishes(request))

    def _list_subscriptions(self, request: ListRequest) -> bytes:
        short = request.format.startswith("SIMPLE")
        type_, codes, level = ("ty", "cds", "lv") if short else ("type", "codes", "level")
        method, result, ticket = ("mthd", "rslt", "tckt") if short else ("method", "result", "ticket")
        types = self._request.types if self._request is not None else ()
        answer = {
            method: LIST_SUBSCRIPTIONS,
            result: [{type_: t.type, codes: t.codes, level: t.level} for t in types],
            ticket: request.ticket,
        }
        return orjson.dumps([answer] if request.format.endswith("_LIST") else answer)

    async def _refuse(self, error: RequestError) -> None:
        self._exchange.leave(self)
        self._queue.clear()
        self._queued_bytes = 0
        frame = orjson.dumps({"error": {"name": error.name, "message": error.message}})
        with suppress(ClientConnectionError):
            await self._ws.send_bytes(frame)
            await self._ws.close(code=WSCloseCode.OK)

    async def _send_control(self, payload: bytes) -> None:
        with suppress(ClientConnectionError):
            await self._ws.pong(payload)

    async def _write(self) -> None:
        try:
            while True:
                while self._queue:
                    frame = self._queue.popleft()
                    await self._ws.send_bytes(frame)
                    self._touch()
                    self._queued_bytes = max(0, self._queued_bytes - len(frame))
                    if self._queued_bytes <= _ROOM_BYTES:
                        self._room.set()
                self._filled.clear()
                await self._filled.wait()
        except ClientConnectionError:
            # The reading side hears of it, too, and ends the session.
            self.drop()

    async def _say_up(self) -> None:
        while True:
            self.offer(_UP)
            await asyncio.sleep(self._config.status_interval_s)

    async def _watch_idleness(self) -> None:
        loop = asyncio.get_running_loop()
        while (left := self._last_traffic + self._config.idle_timeout_s - loop.time()) > 0:
            await asyncio.sleep(left)
        self.drop()

    def _touch(self) -> None:
        self._last_traffic = asyncio.get_running_loop().time()


def _wishes(request: SubscriptionRequest) -> dict[str, Wish]:
    wishes = {}
    for wanted in request.types:
        # Only order books are simulated, and no grouping of prices: what does not exist is met with silence.
        if wanted.type != "orderbook" or wanted.level:
            continue
        for code in wanted.codes:
            market, depth = split_code(code)
            wishes[market] = Wish(depth, snapshot=not wanted.only_realtime, realtime=not wanted.only_snapshot)
    return wishes
