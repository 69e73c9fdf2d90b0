"""`/simulator/…`: what a test may ask the simulator and no client could ask the exchange.

Faults (a dropped connection, a stalled one, garbage) are to be ordered here once they exist.
"""

from __future__ import annotations

from collections.abc import Callable

import orjson
from aiohttp import web

from ingest_services.simulator.exchange import Exchange, now_ms
from ingest_services.simulator.feed import WINDOW_MS


class ControlApi:
    """Handlers of `/simulator/…`."""

    def __init__(self, exchange: Exchange, count_clients: Callable[[], int]) -> None:
        """Tell about an exchange.

        Args:
            exchange: The exchange.
            count_clients: Returns how many sockets are open.
        """
        self._exchange = exchange
        self._count_clients = count_clients

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [web.get("/simulator/truth", self._truth), web.get("/simulator/health", self._health)]

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


def _json(content: object) -> web.Response:
    return web.Response(body=orjson.dumps(content), content_type="application/json")
