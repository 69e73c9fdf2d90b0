"""The subscription request: one JSON array that replaces everything the socket was subscribed to before."""

from __future__ import annotations

from collections.abc import Iterable

import orjson

# Anything else in a code's suffix silently becomes 30.
DEPTHS = (1, 5, 15, 30)
FORMATS = ("DEFAULT", "SIMPLE", "JSON_LIST", "SIMPLE_LIST")
ERROR_NAMES = ("INVALID_AUTH", "WRONG_FORMAT", "NO_TICKET", "NO_TYPE", "NO_CODES", "INVALID_PARAM")


def subscription_request(ticket: str, markets: Iterable[str], depth: int) -> bytes:
    """Build the request that subscribes a socket to the order books of some markets, in SIMPLE format.

    Args:
        ticket: Any string that names the requester; the exchange echoes it nowhere.
        markets: Market codes. All of them go into this one message: a second message would replace the first.
        depth: Levels per side, one of `DEPTHS`.

    Raises:
        ValueError: If the depth is none that the exchange knows, or there is no market.
    """
    if depth not in DEPTHS:
        raise ValueError(f"depth {depth} is none of {DEPTHS}; the exchange would silently send 30")
    codes = [f"{market}.{depth}" for market in markets]
    if not codes:
        raise ValueError("no markets to subscribe to")
    return orjson.dumps([{"ticket": ticket}, {"type": "orderbook", "codes": codes}, {"format": "SIMPLE"}])
