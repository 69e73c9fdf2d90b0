"""`/simulator/…`: what a test or a person may ask the simulator, and no client could ask the exchange."""

from __future__ import annotations

from collections.abc import Callable

import orjson
from aiohttp import web

from ingest_services.simulator.exchange import Exchange, now_ms
from ingest_services.simulator.faults import FaultError, read_fault
from ingest_services.simulator.feed import WINDOW_MS
from ingest_services.simulator.injection import Injector
from ingest_services.simulator.journal import Journal


class ControlApi:
    """Handlers of `/simulator/…`."""

    def __init__(
        self,
        exchange: Exchange,
        injector: Injector,
        journal: Journal | None,
        count_clients: Callable[[], int],
    ) -> None:
        """Tell about an exchange, and take orders for faults.

        Args:
            exchange: The exchange.
            injector: Puts faults into effect.
            journal: The journal, if one is kept.
            count_clients: Returns how many sockets are open.
        """
        self._exchange = exchange
        self._injector = injector
        self._journal = journal
        self._count_clients = count_clients

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.get("/simulator/truth", self._truth),
            web.get("/simulator/health", self._health),
            web.post("/simulator/fault", self._strike),
            web.get("/simulator/faults", self._faults),
            web.get("/simulator/journal", self._read_journal),
        ]

    async def _truth(self, request: web.Request) -> web.Response:
        try:
            window_s = int(request.query.get("window_s", WINDOW_MS // 1000))
            candles = list(self._exchange.truth.candles(window_s))
        except ValueError as error:
            return web.Response(status=400, text=str(error))
        return _json(
            {
                "candles": candles,
                "books_published": self._exchange.truth.books_published,
                "history": self._exchange.history(),
                "now_ms": now_ms(),
            }
        )

    async def _health(self, request: web.Request) -> web.Response:  # noqa: ARG002
        return _json(
            {
                "state": "ok",
                "clients": self._count_clients(),
                "history_done": self._exchange.history_done,
                "markets": len(self._exchange.feeds),
                "markets_live": self._exchange.markets_live,
            }
        )

    async def _strike(self, request: web.Request) -> web.Response:
        try:
            order = orjson.loads(await request.read())
        except orjson.JSONDecodeError:
            return _bad('the order must be JSON like {"fault": "drop"}')
        try:
            tickets = self._injector.strike(read_fault(order), "control")
        except FaultError as error:
            return _bad(str(error))
        return _json({"applied_to": tickets})

    async def _faults(self, request: web.Request) -> web.Response:  # noqa: ARG002
        return _json(self._injector.report())

    async def _read_journal(self, request: web.Request) -> web.Response:
        if self._journal is None or not self._journal.in_memory:
            return web.Response(
                status=404, text="no journal is kept in memory: start with --journal-memory\n"
            )
        lines = self._journal.lines(request.query.get("ticket"), request.query.get("kind"))
        return web.Response(body=b"".join(lines), content_type="application/x-ndjson")


def _bad(text: str) -> web.Response:
    return web.Response(status=400, text=f"{text}\n")


def _json(content: object) -> web.Response:
    return web.Response(body=orjson.dumps(content), content_type="application/json")
