"""The simulator as one server: WebSocket, REST, truth, control and faults behind one port."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Coroutine, Mapping
from dataclasses import replace

from aiohttp import web

from ingest_services.errors import UserError
from ingest_services.simulator.config import SimulatorConfig
from ingest_services.simulator.control import ControlApi
from ingest_services.simulator.exchange import Exchange, now_ms
from ingest_services.simulator.feed import Feed
from ingest_services.simulator.gate import Gate
from ingest_services.simulator.injection import Injector
from ingest_services.simulator.journal import Journal
from ingest_services.simulator.playback import read_recording, recording_feeds
from ingest_services.simulator.rest import Handler, RestApi
from ingest_services.simulator.session import Session
from ingest_services.simulator.walk import Walk

_JOURNAL_FLUSH_S = 0.2


class Simulator:
    """A local Upbit.

    `async with Simulator(config) as simulator:` serves on `simulator.ws_url` and `simulator.rest_url`.
    """

    def __init__(self, config: SimulatorConfig) -> None:
        """Check the settings and read the recording, if there is one.

        Raises:
            UserError: If a setting or the recording is wrong.
        """
        config.validate()
        self.config = config
        feeds = _feeds(config)
        self.journal = (
            Journal(config.journal, in_memory=config.journal_in_memory)
            if config.journal is not None or config.journal_in_memory
            else None
        )
        self.exchange = Exchange(feeds, journal=self.journal)
        self._gate = Gate(time.monotonic, limits=config.limits)
        self._sessions: set[Session] = set()
        self._connections = 0
        self.injector = Injector(self.exchange, self._gate, self._sessions, self._new_feed, self.journal)
        self._publisher: asyncio.Task[None] | None = None
        self._troublemakers: list[asyncio.Task[None]] = []
        self._runner: web.AppRunner | None = None
        self.port = config.port

    @property
    def rest_url(self) -> str:
        """Base address of the REST API."""
        return f"http://{self.config.host}:{self.port}"

    @property
    def ws_url(self) -> str:
        """Address of the WebSocket."""
        return f"ws://{self.config.host}:{self.port}/websocket/v1"

    async def start(self) -> None:
        """Listen.

        Raises:
            UserError: If the port is in use or may not be opened.
        """
        app = web.Application(middlewares=[self._at_the_gate])
        app.add_routes([web.get("/websocket/v1", self._websocket)])
        app.add_routes(RestApi(self.exchange).routes())
        app.add_routes(
            ControlApi(self.exchange, self.injector, self.journal, lambda: len(self._sessions)).routes()
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self.config.host, self.config.port).start()
        except OSError as error:
            await self._runner.cleanup()
            what = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be opened ({error.strerror})"
            raise UserError(
                f"--port {self.config.port}: {what} on {self.config.host}; take another, or 0 for a free one"
            ) from error
        self.port = self._runner.addresses[0][1]
        self._publisher = asyncio.create_task(self.exchange.run())
        self._troublemakers = [asyncio.create_task(trouble) for trouble in self._troubles()]

    async def wait(self) -> None:
        """Wait for the end of the publishing of books, which has none but a failure or `stop`."""
        assert self._publisher is not None, "not started"
        await self._publisher

    def _troubles(self) -> list[Coroutine[None, None, None]]:
        troubles = [self.injector.follow(scheduled) for scheduled in self.config.faults]
        if self.config.chaos_seed is not None:
            troubles.append(self.injector.rage(self.config.chaos_seed, self.config.chaos_every_s))
        if self.journal is not None:
            troubles.append(_keep_flushing(self.journal))
        return troubles

    async def stop(self) -> None:
        """Cut every connection and close the port."""
        tasks = [*self._troublemakers, *([self._publisher] if self._publisher is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for session in list(self._sessions):
            session.drop("stopped")
        if self._runner is not None:
            await self._runner.cleanup()
        if self.journal is not None:
            self.journal.close()

    async def __aenter__(self) -> Simulator:
        """Start."""
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop."""
        await self.stop()

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        self._connections += 1
        session = Session(self._connections, self.exchange, self.config, self.journal)
        self._sessions.add(session)
        try:
            return await session.serve(request)
        finally:
            self._sessions.discard(session)

    @web.middleware
    async def _at_the_gate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        where = _guarded(request.path)
        if where is None:
            return await handler(request)
        address = request.remote or ""
        refusal = self._gate.refuse(where, address, request.headers.get("Origin"))
        if refusal is not None:
            if where == "rest" and refusal.status == 429:
                self._gate.refused(address)
            return web.Response(status=refusal.status, text=refusal.text)
        response = await handler(request)
        if where == "rest" and response.status == 429:
            self._gate.refused(address)
        return response

    def _new_feed(self, market: str) -> Feed:
        # A market that has just been listed has no past.
        return Walk(market, replace(self.config, history_minutes=0), now_ms())


def _feeds(config: SimulatorConfig) -> Mapping[str, Feed]:
    if config.playback is not None:
        books = read_recording(config.playback)
        return recording_feeds(books, speed=config.speed, shift=config.shift, loop=config.loop)
    now = now_ms()
    return {market: Walk(market, config, now) for market in config.markets()}


def _guarded(path: str) -> str | None:
    if path.startswith("/websocket/"):
        return "ws"
    return "rest" if path.startswith("/v1/") else None


async def _keep_flushing(journal: Journal) -> None:
    while True:
        await asyncio.sleep(_JOURNAL_FLUSH_S)
        journal.flush()
