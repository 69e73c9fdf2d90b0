"""The exchange's public REST API, as far as order books need it, and its candles of trades."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import orjson
from aiohttp import web

from ingest_services.simulator.books import number_text
from ingest_services.simulator.exchange import Exchange
from ingest_services.simulator.trades import TradeCandle
from ingest_services.upbit.request import DEPTHS
from ingest_services.upbit.rest import SIMULATOR
from ingest_services.upbit.ticks import UNITS_PER_ONE, Ladder

REQUESTS_PER_S = 10
CANDLES_AT_ONCE = 200
_CANDLE_MINUTES = 5
_KST = timezone(timedelta(hours=9))
_CAUTIONS = (
    "PRICE_FLUCTUATIONS",
    "TRADING_VOLUME_SOARING",
    "DEPOSIT_AMOUNT_SOARING",
    "GLOBAL_PRICE_DIFFERENCES",
    "CONCENTRATION_OF_SMALL_ACCOUNTS",
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RestApi:
    """Handlers of `/v1/…`; every group of them has its own limit of requests a second."""

    def __init__(self, exchange: Exchange) -> None:
        """Serve an exchange's books."""
        self._exchange = exchange
        self._used: dict[str, tuple[int, int]] = {}

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.get("/v1/market/all", self._limited("market", self._market_all)),
            web.get("/v1/orderbook", self._limited("orderbook", self._orderbook)),
            web.get("/v1/orderbook/instruments", self._limited("orderbook", self._instruments)),
            web.get(f"/v1/candles/minutes/{_CANDLE_MINUTES}", self._limited("candles", self._candles)),
        ]

    def _limited(self, group: str, handler: Callable[[web.Request], web.Response]) -> Handler:
        async def limited(request: web.Request) -> web.StreamResponse:
            second = int(time.monotonic())
            since, used = self._used.get(group, (second, 0))
            used = used + 1 if since == second else 1
            self._used[group] = (second, used)
            # The real 429 has a body that is not JSON.
            response = (
                web.Response(status=429, text="Too many API requests.")
                if used > REQUESTS_PER_S
                else handler(request)
            )
            response.headers["Server"] = SIMULATOR
            response.headers["Remaining-Req"] = f"group={group}; min=600; sec={max(0, REQUESTS_PER_S - used)}"
            return response

        return limited

    def _market_all(self, request: web.Request) -> web.Response:
        details = request.query.get("is_details", request.query.get("isDetails", "")).lower() == "true"
        markets: list[dict[str, object]] = []
        for market in self._exchange.feeds:
            base = market.partition("-")[2]
            entry: dict[str, object] = {"market": market, "korean_name": base, "english_name": base}
            if details:
                entry["market_event"] = {"warning": False, "caution": dict.fromkeys(_CAUTIONS, False)}
            markets.append(entry)
        return _json(markets)

    def _orderbook(self, request: web.Request) -> web.Response:
        codes = _codes(request)
        if not codes:
            return _error(400, 400, "Missing request parameter error. Check the required parameters!")
        if any(code not in self._exchange.feeds for code in codes):
            return _error(404, 404, "Code not found")
        try:
            depth = int(request.query.get("count", DEPTHS[-1]))
        except ValueError:
            return _error(400, 400, "Type mismatch error. Check the parameters type!")
        return _json(
            [self._exchange.feeds[code].current.rest(max(1, min(depth, DEPTHS[-1]))) for code in codes]
        )

    def _instruments(self, request: web.Request) -> web.Response:
        codes = _codes(request) or list(self._exchange.feeds)
        if any(code not in self._exchange.feeds for code in codes):
            return _error(404, 404, "Code not found")
        return _json([self._instrument(code) for code in codes])

    def _candles(self, request: web.Request) -> web.Response:
        market = request.query.get("market", "")
        if not market:
            return _error(400, 400, "Missing request parameter error. Check the required parameters!")
        if market not in self._exchange.feeds:
            return _error(404, 404, "Code not found")
        try:
            count = int(request.query.get("count", 1))
            before_ms = _instant_ms(request.query.get("to", ""))
        except ValueError:
            return _error(400, 400, "Type mismatch error. Check the parameters type!")
        count = max(1, min(count, CANDLES_AT_ONCE))
        candles = self._exchange.trades.candles(market, count, before_ms)
        return _json([_candle(market, candle) for candle in candles])

    def _instrument(self, market: str) -> dict[str, object]:
        quote = market.partition("-")[0]
        current = self._exchange.feeds[market].current
        price = current.best_bid or current.best_ask or 0
        whole, fraction = divmod(Ladder(quote).tick(int(price * UNITS_PER_ONE)), UNITS_PER_ONE)
        tick = f"{whole}.{fraction:08d}".rstrip("0").rstrip(".")
        return {"market": market, "quote_currency": quote, "tick_size": tick, "supported_levels": ["0"]}


def _instant_ms(text: str) -> int | None:
    """Read `to`: ISO 8601, in UTC unless it says otherwise; None if it is empty.

    Raises:
        ValueError: If it is not.
    """
    if not text:
        return None
    moment = datetime.fromisoformat(text)
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _candle(market: str, candle: TradeCandle) -> dict[str, object]:
    start = datetime.fromtimestamp(candle.start_ms / 1000, UTC)
    return {
        "market": market,
        "candle_date_time_utc": f"{start:%Y-%m-%dT%H:%M:%S}",
        "candle_date_time_kst": f"{start.astimezone(_KST):%Y-%m-%dT%H:%M:%S}",
        "opening_price": _number(candle.open),
        "high_price": _number(candle.high),
        "low_price": _number(candle.low),
        "trade_price": _number(candle.close),
        "timestamp": candle.last_ms,
        "candle_acc_trade_price": _number(candle.turnover),
        "candle_acc_trade_volume": _number(candle.volume),
        "unit": _CANDLE_MINUTES,
    }


def _number(value: Decimal) -> orjson.Fragment:
    return orjson.Fragment(number_text(int(value * UNITS_PER_ONE)))


def _codes(request: web.Request) -> list[str]:
    return [code for code in request.query.get("markets", "").split(",") if code]


def _json(content: object) -> web.Response:
    return web.Response(body=orjson.dumps(content), content_type="application/json")


def _error(status: int, name: int | str, message: str) -> web.Response:
    response = _json({"error": {"name": name, "message": message}})
    response.set_status(status)
    return response
