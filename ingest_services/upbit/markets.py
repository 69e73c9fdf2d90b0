"""Market codes and tickers: `KRW-BTC` is the market, `BTC` its canonical ticker.

The seed named KRW markets by their base currency alone; other quotes keep the full code (`USDT-BTC`).
"""

from __future__ import annotations

import re

DEFAULT_QUOTE = "KRW"
QUOTES = ("KRW", "BTC", "USDT")

_CODE = re.compile(r"[A-Z0-9]{1,20}")
_MARKET = re.compile(r"[A-Z0-9]{1,20}-[A-Z0-9]{1,20}")


def ticker_of(market: str) -> str:
    """Return the canonical ticker of a market code.

    Args:
        market: An exchange market code, quote first: `KRW-BTC`.

    Raises:
        ValueError: If it is not a market code. A ticker becomes part of object paths, so nothing but
            capital letters and digits passes.
    """
    if not _MARKET.fullmatch(market):
        raise ValueError(f"{market!r} is not a market code like KRW-BTC")
    quote, base = market.split("-")
    return base if quote == DEFAULT_QUOTE else market


def market_of(ticker: str) -> str:
    """Return the market code that a ticker, in either spelling, means: `BTC` and `KRW-BTC` are `KRW-BTC`.

    Raises:
        ValueError: If it is neither a base currency nor a market code.
    """
    if _CODE.fullmatch(ticker):
        return f"{DEFAULT_QUOTE}-{ticker}"
    if _MARKET.fullmatch(ticker):
        return ticker
    raise ValueError(f"{ticker!r} is neither a ticker like BTC nor a market code like USDT-BTC")
