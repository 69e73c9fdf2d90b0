"""One client's WebSocket: what it says, the bounded queue of what it is told, and how it ends.

The exchange's manners, in one place: a bad request gets an error frame and a close with 1000, a client that
does not read is dropped without a word, and so is one with no traffic in either direction for too long.
So are the faults of a connection as such: a reset, a close, silence on the wire, a trickle. What faults do to
the books on their way is `distortion`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress

import orjson
from aiohttp import ClientConnectionError, WSCloseCode, WSMsgType, web

from ingest_services.simulator.books import Publication
from ingest_services.simulator.config import SimulatorConfig
from ingest_services.simulator.distortion import Distortion, Message, garbage
from ingest_services.simulator.exchange import Exchange, Wish
from ingest_services.simulator.faults import Fault
from ingest_services.simulator.gate import MessageLimit
from ingest_services.simulator.journal import Journal
from ingest_services.simulator.wire import Wire, binary_header
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
# A connection that is about to be cut waits so long for the client to acknowledge what was written.
_FLUSH_S = 0.15
_FLUSH_POLL_S = 0.001
_PEER_POLL_S = 0.1
_PIECES_PER_S = 20


class Session:
    """One connected client."""

    def __init__(
        self, number: int, exchange: Exchange, config: SimulatorConfig, journal: Journal | None = None
    ) -> None:
        """Prepare for a socket; `serve` accepts it.

        Args:
            number: Names the connection in the journal.
            exchange: Whose books it is told.
            config: Limits and times.
            journal: Is told of everything that is written or withheld.
        """
        self.number = number
        self.ticket = ""
        self.stream_format = "DEFAULT"
        self.gone = False
        self._exchange = exchange
        self._config = config
        self._journal = journal
        self._request: SubscriptionRequest | None = None
        self._queue: deque[Message] = deque()
        self._queued_bytes = 0
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._ws = web.WebSocketResponse(
            autoping=False, compress=False, timeout=_CLOSE_TIMEOUT_S, max_msg_size=1 << 20
        )
        self._wire: Wire | None = None
        self._serial = 0
        self._last_traffic = 0.0
        self._messages = MessageLimit() if config.limits else None
        self._delay: asyncio.TimerHandle | None = None
        # None as long as no fault lies on the books: then they go the short way.
        self._distortion: Distortion | None = None
        self._garbage_sent = 0
        self._slow: tuple[int, float] | None = None
        # Held while a frame is half written, when nothing else may be.
        self._frame = asyncio.Lock()
        self._half_open = False
        self._left = False
        self._how: str | None = None
        self._acknowledged: int | None = None
        self._ending: asyncio.Task[None] | None = None

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        """Accept the socket and answer until it is closed."""
        await self._ws.prepare(request)
        assert request.transport is not None, "just accepted"
        self._wire = Wire(request.transport, track=self._journal is not None)
        self._last_traffic = asyncio.get_running_loop().time()
        if self._journal is not None:
            self._journal.opened(self.number)
        helpers = [asyncio.create_task(self._write()), asyncio.create_task(self._watch_idleness())]
        try:
            await self._listen(helpers)
            if self._ending is not None:
                # The end that was ordered is still going on, and it is the one that closes the socket.
                await self._ending
        finally:
            self.gone = True
            self._leave_for_good()
            if self._how is None:
                code = self._ws.close_code
                lost = code is None or code == WSCloseCode.ABNORMAL_CLOSURE
                self._how = "client lost" if lost else f"client closed {code}"
            self._withhold_queue("ended")
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            if self._journal is not None:
                self._journal.ended(self.number, self._how, self._serial, self._acknowledged)
        return self._ws

    def tell(self, book: Publication, depth: int, stream_type: str) -> None:
        """Queue a book's frame, or what the faults on this connection make of it."""
        distortion = self._distortion
        if distortion is None:
            self.offer(
                Message(book.encode(self.stream_format, depth, stream_type), "book", book.market, book.tms)
            )
            return
        if (why := distortion.silence(book.market)) is not None:
            self._withhold(Message(b"", "book", book.market, book.tms), why)
        else:
            for message in distortion.messages(book, self.stream_format, depth, stream_type):
                self.offer(message)
        if not distortion.active:
            self._distortion = None

    def offer(self, message: Message) -> None:
        """Queue a message; a client with too much unread is dropped."""
        if self.gone:
            self._withhold(message, "ended")
            return
        self._queued_bytes += len(message.data)
        if self._queued_bytes > self._config.queue_bytes:
            self._withhold(message, "ended")
            self.drop("overflow")
            return
        self._queue.append(message)
        self._filled.set()

    async def room(self) -> None:
        """Wait until little is queued; a client that takes nothing for too long is dropped."""
        while self._queued_bytes > _ROOM_BYTES and not self.gone:
            self._room.clear()
            try:
                async with asyncio.timeout(self._config.stall_timeout_s):
                    await self._room.wait()
            except TimeoutError:
                self.drop("overflow")

    def drop(self, how: str | None = None) -> None:
        """Cut the connection without a close frame (FIN).

        Args:
            how: Why, for the journal; None leaves that to what the socket says.
        """
        self._stop_telling(how)
        if self._wire is not None:
            self._measure()
            self._wire.cut()

    # ── faults ────────────────────────────────────────

    def suffer(self, fault: Fault) -> bool:
        """Take a fault upon itself.

        Returns:
            Whether it could: a connection that is ending already takes no more.
        """
        if self.gone or self._wire is None:
            return False
        if (end := self._end_of(fault)) is not None:
            self._begin_to_end(*end)
        elif fault.name == "slow":
            for_s = fault.number("for_s") or 0.0
            self._slow = (fault.whole("bytes_per_s"), asyncio.get_running_loop().time() + for_s)
        elif fault.name == "garbage":
            for rubbish in garbage(fault.whole("count"), self._garbage_sent):
                self._garbage_sent += 1
                self._offer_unless_stalled(rubbish)
        else:
            self._distort(fault)
        return True

    def _end_of(self, fault: Fault) -> tuple[str, Coroutine[None, None, None]] | None:
        """Return in what words and how a fault ends the connection; None if it does not."""
        match fault.name:
            case "drop":
                return "reset", self._reset(flush=bool(fault.values["flush"]))
            case "close" if fault.whole("code") == WSCloseCode.ABNORMAL_CLOSURE:
                return "close 1006", self._finish()
            case "close":
                return f"close {fault.whole('code')}", self._close(fault.whole("code"))
            case "error":
                name, message = fault.text("name"), fault.text("message")
                return f"error {name}", self._close_with_error(name, message)
            case "half-open":
                return "half-open", self._vanish()
        return None

    def _distort(self, fault: Fault) -> None:
        if self._distortion is None:
            self._distortion = Distortion(time.monotonic)
        self._distortion.order(fault)
        if fault.name == "stall":
            self._withhold_queue("stall")
        elif fault.name == "stall-code":
            self._withhold_queue("stall-code", fault.text("market"))

    def _begin_to_end(self, how: str, end: Coroutine[None, None, None]) -> None:
        self._stop_telling(how)
        self._leave_for_good()
        self._ending = asyncio.create_task(end)

    def _stop_telling(self, how: str | None) -> None:
        """Whatever has not been written yet never will be."""
        self.gone = True
        if self._how is None:
            self._how = how
        self._withhold_queue("ended")
        self._room.set()

    def _leave(self) -> None:
        if self._delay is not None:
            self._delay.cancel()
        self._exchange.leave(self)

    def _leave_for_good(self) -> None:
        self._leave()
        if self._journal is not None and not self._left:
            self._journal.left(self.number)
        self._left = True

    def _measure(self) -> None:
        if self._acknowledged is None and self._wire is not None:
            self._acknowledged = self._wire.acknowledged()

    async def _flush(self) -> None:
        """Wait until the client's machine has all that was written, or until it has had its time."""
        assert self._wire is not None
        with suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_S):
                async with self._frame:
                    pass
                while self._wire.unacknowledged_bytes():
                    await asyncio.sleep(_FLUSH_POLL_S)
        self._measure()

    async def _reset(self, *, flush: bool) -> None:
        assert self._wire is not None
        if flush:
            await self._flush()
        self._measure()
        self._wire.reset()

    async def _finish(self) -> None:
        assert self._wire is not None
        await self._flush()
        self._wire.cut()

    async def _close(self, code: int) -> None:
        await self._flush()
        with suppress(ClientConnectionError):
            await self._ws.close(code=code)

    async def _close_with_error(self, name: str, message: str) -> None:
        frame = orjson.dumps({"error": {"name": name, "message": message}})
        with suppress(ClientConnectionError):
            async with self._frame:
                self._slow = None
                await self._put(Message(frame, "error"))
        await self._close(WSCloseCode.OK)

    async def _vanish(self) -> None:
        """Say nothing and read nothing until the client has given up, however long that takes."""
        assert self._wire is not None
        self._half_open = True
        self._wire.stop_reading()
        await self._flush()
        while not self._wire.peer_is_gone():
            await asyncio.sleep(_PEER_POLL_S)
        self._wire.cut()

    def _offer_unless_stalled(self, message: Message) -> None:
        why = self._distortion.silence() if self._distortion is not None else None
        if why is None:
            self.offer(message)
        else:
            self._withhold(message, why)

    def _withhold(self, message: Message, why: str) -> None:
        if self._journal is not None:
            self._journal.withheld(self.number, why, message.what, message.market, message.tms)

    def _withhold_queue(self, why: str, market: str | None = None) -> None:
        """Throw away what waits, of one market or of all."""
        doomed = [m for m in self._queue if market is None or m.market == market]
        if market is None:
            self._queue.clear()
            self._queued_bytes = 0
            if self._distortion is not None:
                doomed += self._distortion.overtaken()
        else:
            self._queue = deque(m for m in self._queue if m.market != market)
            self._queued_bytes -= sum(len(m.data) for m in doomed)
        for message in doomed:
            self._withhold(message, why)

    # ── what the client says ────────────────────────────────────────

    async def _listen(self, helpers: list[asyncio.Task[None]]) -> None:
        async for message in self._ws:
            self._touch()
            if self.gone:
                continue
            if message.type is WSMsgType.PING:
                await self._pong(message.data)
            elif message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                if self._messages is not None and not self._messages.take(time.monotonic()):
                    # How the exchange does it was not observed; it cuts what it does not like.
                    self.drop("limit")
                    return
                if message.data in ("PING", b"PING"):
                    if len(helpers) == 2:
                        helpers.append(asyncio.create_task(self._say_up()))
                    continue
                try:
                    self._answer(message.data)
                except RequestError as error:
                    self._begin_to_end(
                        f"error {error.name}", self._close_with_error(error.name, error.message)
                    )
                    return

    def _answer(self, text: str | bytes) -> None:
        request = parse_request(text)
        self.stream_format = request.format
        if isinstance(request, ListRequest):
            self._offer_unless_stalled(Message(self._list_subscriptions(request), "list"))
            return
        while len(self._queue) > _STALE_FRAMES:
            stale = self._queue.pop()
            self._queued_bytes -= len(stale.data)
            self._withhold(stale, "replaced")
        self._request = request
        self.ticket = request.ticket
        if self._distortion is not None:
            self._distortion.subscribed()
            for waiting in self._distortion.overtaken():
                self._withhold(waiting, "replaced")
        if self._journal is not None:
            self._journal.requested(self.number, self.ticket)
        low, high = self._config.snapshot_delay_ms
        if not high:
            self._subscribe(request)
            return
        self._leave()
        delay_s = random.uniform(low, high) / 1000  # noqa: S311
        self._delay = asyncio.get_running_loop().call_later(delay_s, self._subscribe, request)

    def _subscribe(self, request: SubscriptionRequest) -> None:
        if self._journal is not None:
            codes = [code for wanted in request.types for code in wanted.codes]
            self._journal.subscribed(self.number, codes, request.format)
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

    async def _pong(self, payload: bytes) -> None:
        async with self._frame:
            if self.gone or self._wire is None:
                return
            with suppress(ClientConnectionError):
                self._wire.wrote(len(binary_header(len(payload))) + len(payload))
                await self._ws.pong(payload)

    # ── what the client is told ────────────────────────────────────────

    async def _write(self) -> None:
        try:
            while True:
                while self._queue:
                    message = self._queue.popleft()
                    await self._put(message)
                    self._touch()
                    self._queued_bytes = max(0, self._queued_bytes - len(message.data))
                    if self._queued_bytes <= _ROOM_BYTES:
                        self._room.set()
                self._filled.clear()
                await self._filled.wait()
        except ClientConnectionError:
            # The reading side hears of it, too, and ends the session.
            if not self._ws.closed:
                self.drop()

    async def _put(self, message: Message) -> None:
        """Write a message and enter it in the journal.

        Raises:
            ClientConnectionError: If the connection is closed.
        """
        wire = self._wire
        assert wire is not None
        if self._ws.closed or wire.closing:
            self._withhold(message, "ended")
            raise ClientConnectionError
        data = message.data
        if self._slow is not None and asyncio.get_running_loop().time() < self._slow[1]:
            whole = False
            try:
                whole = await self._trickle(message)
            finally:
                # Cancelled, too: then the connection is over.
                if whole:
                    self._record(message)
                else:
                    self._withhold(message, "cut")
            if not whole:
                raise ClientConnectionError
            return
        # Nothing comes between this and the write, which is the first thing that the call below does.
        self._record(message)
        await self._ws.send_bytes(data)

    def _record(self, message: Message) -> None:
        self._serial += 1
        if self._journal is not None and self._wire is not None:
            data = message.data
            self._journal.sent(self.number, self._serial, message.what, message.market, message.tms, data)
            self._wire.wrote(len(binary_header(len(data))) + len(data), self._serial)

    async def _trickle(self, message: Message) -> bool:
        """Write a message in pieces; return whether all of it was written."""
        assert self._wire is not None
        loop = asyncio.get_running_loop()
        rest = binary_header(len(message.data)) + message.data
        async with self._frame:
            while rest and self._slow is not None and not self._wire.closing:
                bytes_per_s, until = self._slow
                hurry = self.gone or loop.time() >= until
                piece = rest if hurry else rest[: max(1, bytes_per_s // _PIECES_PER_S)]
                rest = rest[len(piece) :]
                self._wire.write(piece)
                if rest:
                    await asyncio.sleep(len(piece) / bytes_per_s)
        return not rest

    async def _say_up(self) -> None:
        while True:
            self._offer_unless_stalled(Message(_UP, "status"))
            await asyncio.sleep(self._config.status_interval_s)

    async def _watch_idleness(self) -> None:
        loop = asyncio.get_running_loop()
        while (left := self._last_traffic + self._config.idle_timeout_s - loop.time()) > 0:
            await asyncio.sleep(left)
        if not self._half_open:
            self.drop("idle")

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
