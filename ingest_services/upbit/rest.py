"""The exchange's REST API, asked politely: one client for the whole process.

Belongs here: requests, their pace, and what an answer means. Does not belong here: what is done about it.
"""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from http.client import HTTPException, HTTPResponse, IncompleteRead
from typing import Any, NamedTuple

import orjson

from ingest_services.backoff import Backoff
from ingest_services.upbit.frames import exchange_ms
from ingest_services.upbit.markets import ticker_of

TIMEOUT_S = 5.0
# The timeout is one for each piece of an answer; the whole of it gets this long, and no more than so much.
ANSWER_S = 15.0
ANSWER_BYTES = 32 * 1024 * 1024
READ_BYTES = 64 * 1024
# Upbit takes 10 requests a second in each group. We need one every few seconds; other programs may share the
# address.
EVERY_S = 0.25
# After 429 comes 418, with a block that grows for as long as one goes on asking.
SLOW_DOWN_S = {429: 5.0, 418: 60.0}
BLOCK_CAP_S = 600.0
# How a simulator signs its answers: what it says must not pass for the exchange's.
SIMULATOR = "cryptostream-simulator"


class RestError(Exception):
    """The exchange did not answer, or not with what was asked for.

    Attributes:
        status: HTTP status; None if there was no answer.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class RestBook(NamedTuple):
    """A book as `/v1/orderbook` tells it.

    Attributes:
        tms: Its stamp, ms since the epoch.
        levels: (ask price, ask size, bid price, bid size), best first.
    """

    tms: int
    levels: tuple[tuple[float, float, float, float], ...]


class RestMarket(NamedTuple):
    """A market as the exchange lists it.

    Attributes:
        market: Its code, KRW-BTC.
        korean_name: Of the coin.
        english_name: Of the coin.
        warning: The exchange calls it a market that needs care.
        cautions: The exchange's names of the cautions that are in force, in order.
        tick_size: Step between prices at its present price; None if that is not told.
    """

    market: str
    korean_name: str
    english_name: str
    warning: bool
    cautions: tuple[str, ...]
    tick_size: Decimal | None


class RestCandle(NamedTuple):
    """A 5-minute candle of trades.

    Attributes:
        start: Start of its window, an aware instant in UTC.
        open: Price of the first trade.
        high: Highest price.
        low: Lowest price.
        close: Price of the last trade.
    """

    start: datetime
    open: float
    high: float
    low: float
    close: float


class Rest:
    """Asks one exchange; may be used by several threads."""

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Ask nothing yet.

        Args:
            url: The exchange's REST endpoint.
            clock: Monotonic clock, seconds.
        """
        self.url = url.rstrip("/")
        self._clock = clock
        self._lock = threading.Lock()
        self._free_s = 0.0
        self._blocks = Backoff(base_s=1.0, cap_s=BLOCK_CAP_S)
        self.waited_s = 0.0
        self.refused = 0
        # Of the last answer; a simulator says that it is one, and no exchange does.
        self.simulated = False

    def markets(self) -> tuple[str, ...]:
        """Return the codes of all markets, in order.

        What is no market code is left out: one odd name must not keep the other markets from being followed.

        Raises:
            RestError: If they cannot be had. An empty answer is none: an exchange without markets is a fault,
                and must not end every subscription.
        """
        answer = self._get("/v1/market/all")
        try:
            codes = sorted(code for code in {entry["market"] for entry in answer} if _is_market(code))
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            raise RestError(f"{self.url}/v1/market/all: no list of markets ({error!r})") from error
        if not codes:
            raise RestError(f"{self.url}/v1/market/all: no market at all")
        return tuple(codes)

    def listing(self) -> tuple[RestMarket, ...]:
        """Return all markets with what the exchange says of them, by code; two requests.

        What is no market code is left out.

        Raises:
            RestError: If they cannot be had, or there is none.
        """
        answer = self._get("/v1/market/all?is_details=true")
        try:
            entries = {entry["market"]: entry for entry in answer if _is_market(entry["market"])}
            if not entries:
                raise RestError(f"{self.url}/v1/market/all: no market at all")
            ticks = self._tick_sizes(entries)
            return tuple(
                RestMarket(
                    code,
                    str(entry["korean_name"]),
                    str(entry["english_name"]),
                    bool(entry["market_event"]["warning"]),
                    tuple(sorted(name for name, on in entry["market_event"]["caution"].items() if on)),
                    ticks.get(code),
                )
                for code, entry in sorted(entries.items())
            )
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise RestError(f"{self.url}/v1/market/all: no list of markets ({error!r})") from error

    def _tick_sizes(self, markets: Iterable[str]) -> dict[str, Decimal]:
        query = urllib.parse.urlencode({"markets": ",".join(markets)}, safe=",")
        answer = self._get(f"/v1/orderbook/instruments?{query}")
        try:
            return {entry["market"]: Decimal(entry["tick_size"]) for entry in answer}
        except (TypeError, KeyError, ValueError, InvalidOperation) as error:
            raise RestError(f"{self.url}/v1/orderbook/instruments: no tick sizes ({error!r})") from error

    def books(self, markets: Iterable[str]) -> dict[str, RestBook]:
        """Return the present books of some markets; one call, however many.

        Raises:
            RestError: If they cannot be had; with status 404 if one of the codes does not exist.
        """
        query = urllib.parse.urlencode({"markets": ",".join(markets)}, safe=",")
        answer = self._get(f"/v1/orderbook?{query}")
        try:
            return {
                book["market"]: RestBook(
                    exchange_ms(int(book["timestamp"])),
                    tuple(
                        (
                            float(unit["ask_price"]),
                            float(unit["ask_size"]),
                            float(unit["bid_price"]),
                            float(unit["bid_size"]),
                        )
                        for unit in book["orderbook_units"]
                    ),
                )
                for book in answer
            }
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            raise RestError(f"{self.url}/v1/orderbook: no order books ({error!r})") from error

    def candles(self, market: str, count: int) -> list[RestCandle]:
        """Return a market's newest 5-minute candles of trades, the running one included, newest first.

        A window without a trade has none.

        Args:
            market: Its code, KRW-BTC.
            count: How many at most; the exchange gives 200.

        Raises:
            RestError: If they cannot be had; with status 404 if there is no such market.
        """
        query = urllib.parse.urlencode({"market": market, "count": count})
        answer = self._get(f"/v1/candles/minutes/5?{query}")
        try:
            return [
                RestCandle(
                    datetime.fromisoformat(candle["candle_date_time_utc"]).replace(tzinfo=UTC),
                    float(candle["opening_price"]),
                    float(candle["high_price"]),
                    float(candle["low_price"]),
                    float(candle["trade_price"]),
                )
                for candle in answer
            ]
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            raise RestError(f"{self.url}/v1/candles: no candles ({error!r})") from error

    def _get(self, path: str) -> Any:
        self._take_turn()
        url = self.url + path
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:  # noqa: S310 (a setting, not input)
                answer = orjson.loads(_read(response))
                self.simulated = response.headers.get("Server") == SIMULATOR
        except urllib.error.HTTPError as error:
            with error:
                if error.code in SLOW_DOWN_S:
                    self._slow_down(SLOW_DOWN_S[error.code])
                raise RestError(f"{url}: HTTP {error.code}", error.code) from error
        except (OSError, HTTPException, ValueError) as error:
            raise RestError(f"{url}: {error}") from error
        with self._lock:
            self._blocks.reset()
        return answer

    def _take_turn(self) -> None:
        with self._lock:
            now_s = self._clock()
            if self._free_s - now_s > TIMEOUT_S:
                raise RestError(
                    f"{self.url}: asked us to slow down; asking again in {self._free_s - now_s:.0f} s"
                )
            delay_s = max(0.0, self._free_s - now_s)
            self._free_s = max(self._free_s, now_s) + EVERY_S
            self.waited_s += delay_s
        if delay_s:
            time.sleep(delay_s)

    def _slow_down(self, at_least_s: float) -> None:
        with self._lock:
            self.refused += 1
            self._free_s = self._clock() + self._blocks.next_s(at_least_s)


def _read(response: HTTPResponse) -> bytes:
    """Return the whole body of an answer.

    Raises:
        TimeoutError: If it trickles in.
        ValueError: If it is larger than any answer of the exchange.
        HTTPException: If it is cut off.
    """
    until_s = time.monotonic() + ANSWER_S
    body = bytearray()
    while piece := response.read1(READ_BYTES):
        body += piece
        if len(body) > ANSWER_BYTES:
            raise ValueError(f"the answer has more than {ANSWER_BYTES} bytes")
        if time.monotonic() > until_s:
            raise TimeoutError(f"the answer was not whole after {ANSWER_S:.0f} s")
    if response.length:
        raise IncompleteRead(bytes(body), response.length)
    return bytes(body)


def _is_market(code: str) -> bool:
    try:
        ticker_of(code)
    except ValueError:
        return False
    return True
