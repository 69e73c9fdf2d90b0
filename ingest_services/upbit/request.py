"""The subscription request: one JSON array that replaces everything the socket was subscribed to before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import orjson

# Anything else in a code's suffix silently becomes 30.
DEPTHS = (1, 5, 15, 30)
FORMATS = ("DEFAULT", "SIMPLE", "JSON_LIST", "SIMPLE_LIST")
ERROR_NAMES = ("INVALID_AUTH", "WRONG_FORMAT", "NO_TICKET", "NO_TYPE", "NO_CODES", "INVALID_PARAM")
LIST_SUBSCRIPTIONS = "LIST_SUBSCRIPTIONS"
# As a text message it starts `{"status":"UP"}` every ten seconds.
PING = b"PING"

_PUBLIC_TYPES = ("ticker", "trade", "orderbook")
_PUBLIC_PREFIX = "candle."
_PRIVATE_TYPES = ("myOrder", "myAsset")


class RequestError(Exception):
    """A request that the exchange answers with an error frame and a close.

    Attributes:
        name: One of `ERROR_NAMES`.
        message: What the exchange says with it.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name
        self.message = message


@dataclass(frozen=True, slots=True)
class TypeRequest:
    """One `{"type": …}` object of a request.

    Attributes:
        type: `orderbook` or another stream.
        codes: Market codes exactly as they were sent, depth suffix included; `split_code` reads them.
        level: Price grouping; 0 is none.
        only_snapshot: Nothing after the snapshot is wanted.
        only_realtime: No snapshot is wanted.
    """

    type: str
    codes: tuple[str, ...]
    level: float
    only_snapshot: bool
    only_realtime: bool


@dataclass(frozen=True, slots=True)
class SubscriptionRequest:
    """A request that replaces everything its socket was subscribed to."""

    ticket: str
    types: tuple[TypeRequest, ...]
    format: str


@dataclass(frozen=True, slots=True)
class ListRequest:
    """A question what the socket is subscribed to; its format becomes the live stream's format, too."""

    ticket: str
    format: str


def split_code(code: str) -> tuple[str, int]:
    """Split a code into its market and its depth: `KRW-BTC.5` is (`KRW-BTC`, 5); other suffixes are 30."""
    market, _, suffix = code.partition(".")
    return market, next((depth for depth in DEPTHS if suffix == str(depth)), DEPTHS[-1])


def parse_request(text: str | bytes) -> SubscriptionRequest | ListRequest:
    """Read a request as the exchange does.

    Checked in this order: JSON array of objects, ticket, format, type (or method), codes. Whether a code
    exists is not checked: the exchange answers an unknown one with silence.

    Raises:
        RequestError: With the name and message that the exchange sends before it closes the socket.
    """
    fields = _read_fields(text)
    ticket = next((field["ticket"] for field in fields if "ticket" in field), None)
    if not isinstance(ticket, str) or not ticket:
        raise RequestError("NO_TICKET", "The ticket does not exist or is invalid.")
    stream_format = next((field["format"] for field in fields if "format" in field), FORMATS[0])
    if stream_format not in FORMATS:
        raise RequestError("INVALID_PARAM", f"format {stream_format} is not supported.")
    method = next((field["method"] for field in fields if "method" in field), None)
    if method is not None:
        if method != LIST_SUBSCRIPTIONS:
            raise RequestError("INVALID_PARAM", f"method {method} is not supported.")
        return ListRequest(ticket, str(stream_format))
    types = tuple(_read_type(field) for field in fields if "type" in field)
    if not types:
        raise RequestError("NO_TYPE", "The type field does not exist.")
    return SubscriptionRequest(ticket, types, str(stream_format))


def _read_fields(text: str | bytes) -> list[dict[str, object]]:
    try:
        fields = orjson.loads(text)
    except orjson.JSONDecodeError:
        fields = None
    if not isinstance(fields, list) or not fields or not all(isinstance(field, dict) for field in fields):
        raise RequestError("WRONG_FORMAT", "The format is incorrect.")
    return fields


def _read_type(field: dict[str, object]) -> TypeRequest:
    kind = field["type"]
    if kind in _PRIVATE_TYPES:
        raise RequestError("INVALID_AUTH", "Authentication information is incorrect.")
    if not isinstance(kind, str) or not (kind in _PUBLIC_TYPES or kind.startswith(_PUBLIC_PREFIX)):
        raise RequestError("INVALID_PARAM", f"type {kind} is not supported.")
    if "codes" not in field:
        raise RequestError("NO_CODES", "The codes field does not exist.")
    codes = field["codes"]
    if not isinstance(codes, list) or not codes or not all(isinstance(code, str) for code in codes):
        raise RequestError("INVALID_PARAM", "The codes field is empty.")
    level = field.get("level", 0)
    if isinstance(level, bool) or not isinstance(level, int | float):
        raise RequestError("INVALID_PARAM", f"level {level} is not supported.")
    return TypeRequest(
        kind,
        tuple(codes),
        level,
        only_snapshot=field.get("is_only_snapshot") is True,
        only_realtime=field.get("is_only_realtime") is True,
    )


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
