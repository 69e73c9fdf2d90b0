"""The simulator as one server: WebSocket, REST, truth and control behind one port."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Mapping

from aiohttp import web

from ingest_services.errors import UserError
from ingest_services.simulator.config import SimulatorConfig
from ingest_services.simulator.control import ControlApi
from ingest_services.simulator.exchange import Exchange, now_ms
from ingest_services.simulator.feed import Feed
from ingest_services.simulator.playback import read_recording, recording_feeds
from ingest_services.simulator.rest import RestApi
from ingest_services.simulator.session import Session
from ingest_services.simulator.walk import Walk


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
        self.exchange = Exchange(_feeds(config))
        self._sessions: set[Session] = set()
        self._publisher: asyncio.Task[None] | None = None
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
        app = web.Application()
        app.add_routes([web.get("/websocket/v1", self._websocket)])
        app.add_routes(RestApi(self.exchange).routes())
        app.add_routes(ControlApi(self.exchange, lambda: len(self._sessions)).routes())
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

    async def wait(self) -> None:
        """Wait for the end of the publishing of books, which has none but a failure or `stop`."""
        assert self._publisher is not None, "not started"
        await self._publisher

    async def stop(self) -> None:
        """Cut every connection and close the port."""
        if self._publisher is not None:
            self._publisher.cancel()
            await asyncio.gather(self._publisher, return_exceptions=True)
        for session in list(self._sessions):
            session.drop()
        if self._runner is not None:
            await self._runner.cleanup()

    async def __aenter__(self) -> Simulator:
        """Start."""
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop."""
        await self.stop()

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        session = Session(self.exchange, self.config)
        self._sessions.add(session)
        try:
            return await session.serve(request)
        finally:
            self._sessions.discard(session)


def _feeds(config: SimulatorConfig) -> Mapping[str, Feed]:
    if config.playback is not None:
        books = read_recording(config.playback)
        return recording_feeds(books, speed=config.speed, shift=config.shift, loop=config.loop)
    now = now_ms()
    return {market: Walk(market, config, now) for market in config.markets()}
