"""Which markets `tickers=ALL-KRW` means, now: read from the exchange's REST API, and followed.

Belongs here: asking and following. Does not belong here: what is done about a change.
"""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException

import orjson
import structlog

from ingest_services.errors import UserError
from ingest_services.upbit.markets import ticker_of

TIMEOUT_S = 5.0
TRIES = 3
FOLLOW_EVERY_S = 30.0

_log = structlog.get_logger()


class MarketsUnknown(Exception):  # noqa: N818 (named after what it says)
    """The exchange did not say which markets there are."""


def fetch_markets(rest_url: str, quote: str) -> tuple[str, ...]:
    """Return the codes of all markets of a quote, in order.

    Args:
        rest_url: The exchange's REST endpoint.
        quote: `KRW`, `BTC` or `USDT`.

    Raises:
        MarketsUnknown: If it does not answer, or not with markets. An empty answer is none: an exchange
            without markets is a fault, and must not end every subscription.
    """
    url = f"{rest_url.rstrip('/')}/v1/market/all"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:  # noqa: S310 (a setting, not input)
            answer = orjson.loads(response.read())
        codes = sorted({entry["market"] for entry in answer if entry["market"].startswith(f"{quote}-")})
        for code in codes:
            ticker_of(code)
    except (OSError, HTTPException, ValueError, TypeError, KeyError, AttributeError) as error:
        raise MarketsUnknown(f"{url}: {error}") from error
    if not codes:
        raise MarketsUnknown(f"{url}: no {quote} market among {len(answer)}")
    return tuple(codes)


def discover(rest_url: str, quote: str) -> tuple[str, ...]:
    """Return all markets of a quote at the start of a service.

    Raises:
        UserError: If the exchange cannot be asked.
    """
    pause = threading.Event()
    for attempt in range(1, TRIES + 1):
        try:
            return fetch_markets(rest_url, quote)
        except MarketsUnknown as error:
            if attempt == TRIES:
                raise UserError(
                    f"UPBIT_REST_URL={rest_url}: cannot find out what tickers=ALL-{quote} means ({error})"
                ) from error
            pause.wait(0.5 * attempt)
    raise AssertionError("unreachable")


class MarketFollower(threading.Thread):
    """Asks again every `FOLLOW_EVERY_S` and reports a change."""

    def __init__(
        self,
        rest_url: str,
        quote: str,
        markets: tuple[str, ...],
        on_change: Callable[[tuple[str, ...]], None],
        every_s: float = FOLLOW_EVERY_S,
    ) -> None:
        """Describe a follower; `start` begins it.

        Args:
            rest_url: The exchange's REST endpoint.
            quote: `KRW`, `BTC` or `USDT`.
            markets: What is subscribed to now.
            on_change: Called, in this thread, with all markets when they differ from before.
            every_s: Seconds between questions.
        """
        super().__init__(name=f"markets-{quote}", daemon=True)
        self._rest_url = rest_url
        self._quote = quote
        self._markets = markets
        self._on_change = on_change
        self._every_s = every_s
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Ask no more."""
        self._stopping.set()

    def run(self) -> None:
        """Ask until stopped; an exchange that does not answer changes nothing."""
        while not self._stopping.wait(self._every_s):
            try:
                markets = fetch_markets(self._rest_url, self._quote)
            except MarketsUnknown as error:
                _log.warning("markets_unknown", quote=self._quote, error=str(error))
                continue
            if markets == self._markets:
                continue
            _log.info(
                "markets_changed",
                quote=self._quote,
                listed=sorted(set(markets) - set(self._markets)),
                delisted=sorted(set(self._markets) - set(markets)),
            )
            self._markets = markets
            self._on_change(markets)
