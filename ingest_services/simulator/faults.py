"""What can go wrong, by name: the faults, their parameters, and schedules of them.

Pure: text or JSON in, values out. Who suffers a fault and how is `injection`, `distortion` and `session`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ingest_services.upbit.markets import QUOTES, market_of
from ingest_services.upbit.request import ERROR_NAMES

Value = int | float | str | bool

DEFAULT_FOR_S = 10.0
_MAX_COUNT = 1_000_000
_MAX_SECONDS = 86_400.0
_TARGETS: Mapping[str, type] = {"ticket": str, "section": str, "newest": bool}


class FaultError(ValueError):
    """An order for a fault that cannot be carried out, in one line."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a fault.

    Attributes:
        name: Its key.
        kind: `int`, `float`, `str` or `bool`.
        meaning: One line for people.
        default: Its value if it is not given; None leaves it out.
        required: Whether it must be given.
        low: Smallest number.
        high: Largest number.
        choices: What it may be, if that is a list.
    """

    name: str
    kind: type
    meaning: str
    default: Value | None = None
    required: bool = False
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[Value, ...] = ()


@dataclass(frozen=True, slots=True)
class FaultKind:
    """A fault that can be asked for.

    Attributes:
        name: Its word.
        meaning: One line for people.
        parameters: What it takes.
        whole_exchange: It is no connection's fault: it takes no `ticket`, `section` or `newest`.
        for_or_count: It lasts `for_s` seconds or `count` times; if neither is given, `DEFAULT_FOR_S`.
    """

    name: str
    meaning: str
    parameters: tuple[Parameter, ...] = ()
    whole_exchange: bool = False
    for_or_count: bool = False


def _count(of: str, default: int | None = 1) -> Parameter:
    return Parameter("count", int, f"how many {of}", default, low=1, high=_MAX_COUNT)


def _for_s(meaning: str, default: float | None = None) -> Parameter:
    return Parameter("for_s", float, meaning, default, low=0.001, high=_MAX_SECONDS)


_MARKET = Parameter("market", str, "market code or ticker", required=True)
_LASTS = _for_s(f"how many seconds it lasts; {DEFAULT_FOR_S:g} if there is no count")

FAULTS: Mapping[str, FaultKind] = {
    kind.name: kind
    for kind in (
        FaultKind(
            "drop",
            "the connection is reset (TCP RST) without a close frame",
            (Parameter("flush", bool, "what was written before arrives first; false cuts at once", True),),
        ),
        FaultKind(
            "stall",
            "the socket stays open and answers pings, but no data message comes: no frames, no UP",
            (_for_s("how many seconds; without it, until the connection ends"),),
        ),
        FaultKind(
            "stall-code",
            "one market is silent on the connection, until the client subscribes anew",
            (_MARKET, _for_s("how many seconds at most; without it, until the client subscribes anew")),
        ),
        FaultKind("half-open", "nothing comes any more, not even a pong, and nothing is read"),
        FaultKind(
            "close",
            "the exchange closes the connection",
            (
                Parameter(
                    "code",
                    int,
                    "close code; 1006 ends it (FIN) without a close frame",
                    1000,
                    low=1000,
                    high=4999,
                ),
            ),
        ),
        FaultKind(
            "error",
            "an error frame, then a close with 1000",
            (
                Parameter("name", str, "the error's name", "INVALID_PARAM"),
                Parameter("message", str, "the error's message", "The simulator was asked for this error."),
            ),
        ),
        FaultKind(
            "garbage",
            "messages that are no JSON come between the books",
            (_count("messages"),),
        ),
        FaultKind(
            "truncate",
            "the next frames are cut in the middle, and delivered as whole messages",
            (_count("frames"),),
        ),
        FaultKind("duplicate", "each of the next frames comes twice", (_count("frames"),)),
        FaultKind(
            "reorder",
            "each of the next frames comes after the next one of its market: the two swap places",
            (_count("pairs"),),
        ),
        FaultKind(
            "microseconds",
            "stamps are in microseconds, as in August 2023",
            (_LASTS, _count("frames", None)),
            for_or_count=True,
        ),
        FaultKind(
            "future",
            "stamps lie in the future",
            (_count("frames"), Parameter("by_ms", int, "by how many ms", 60_000, low=1, high=10**12)),
        ),
        FaultKind(
            "default-format",
            "frames come in DEFAULT format, whatever was asked for",
            (_LASTS, _count("frames", None)),
            for_or_count=True,
        ),
        FaultKind(
            "slow",
            "the exchange trickles: a frame comes in pieces, and pongs wait for its end",
            (
                Parameter("bytes_per_s", int, "bytes a second", 1000, low=1, high=10**9),
                _for_s("how many seconds it lasts", DEFAULT_FOR_S),
            ),
        ),
        FaultKind(
            "refuse",
            "handshakes, REST requests or both are refused",
            (
                Parameter("status", int, "the status", 429, choices=(429, 418)),
                Parameter("where", str, "what is refused", "both", choices=("ws", "rest", "both")),
                _LASTS,
                _count("requests", None),
            ),
            whole_exchange=True,
            for_or_count=True,
        ),
        FaultKind(
            "rest-down",
            "REST answers 503 with a page that is no JSON",
            (_LASTS, _count("requests", None)),
            whole_exchange=True,
            for_or_count=True,
        ),
        FaultKind(
            "list",
            "a new market: REST tells it, and it can be subscribed to",
            (_MARKET,),
            whole_exchange=True,
        ),
        FaultKind(
            "delist",
            "a market disappears from REST and its books stop; sockets stay open and silent for it",
            (_MARKET,),
            whole_exchange=True,
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Fault:
    """An order: which fault, how, and on whom.

    Attributes:
        name: A key of `FAULTS`.
        values: Its parameters, defaults filled in.
        target: `ticket` (what the ticket starts with), `section` (the ticket is it, or it and a hyphen and
            more) or `newest`; empty means every open connection.
    """

    name: str
    values: Mapping[str, Value] = field(default_factory=dict)
    target: Mapping[str, Value] = field(default_factory=dict)

    @property
    def whole_exchange(self) -> bool:
        """Whether it is no connection's fault."""
        return FAULTS[self.name].whole_exchange

    def whole(self, name: str) -> int:
        """Return a parameter that is a whole number."""
        return int(self.values[name])

    def number(self, name: str) -> float | None:
        """Return a parameter that is a number; None if it was left out."""
        value = self.values.get(name)
        return None if value is None else float(value)

    def text(self, name: str) -> str:
        """Return a parameter that is text."""
        return str(self.values[name])

    def as_json(self) -> dict[str, Value]:
        """Return what `read_fault` reads."""
        return {"fault": self.name, **self.values, **self.target}


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A fault and when it strikes: `at_s` seconds after the start, then every `every_s` if that is given."""

    fault: Fault
    at_s: float
    every_s: float | None = None


def read_fault(order: object) -> Fault:
    """Read an order as JSON has it: `{"fault": "close", "code": 1001, "section": "upbit_producer1"}`.

    Raises:
        FaultError: Saying what is wrong with it.
    """
    if not isinstance(order, dict):
        raise FaultError('the order must be an object like {"fault": "drop"}')
    if "fault" not in order:
        raise FaultError(f"the order names no fault; there are {', '.join(FAULTS)}")
    name = order["fault"]
    kind = FAULTS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise FaultError(f"there is no fault {_short(name)}; there are {', '.join(FAULTS)}")
    given = {key: value for key, value in order.items() if key != "fault"}
    target = {key: given.pop(key) for key in _TARGETS if key in given}
    if target and kind.whole_exchange:
        raise FaultError(f"{kind.name} is the whole exchange's: it takes no {next(iter(target))}")
    if len(target) > 1:
        raise FaultError(f"{kind.name}: {' and '.join(target)} exclude each other")
    for key, value in target.items():
        if type(value) is not _TARGETS[key] or not value:
            wanted = "true" if _TARGETS[key] is bool else "text that is not empty"
            raise FaultError(f"{kind.name}: {key} must be {wanted}")
    return Fault(kind.name, _read_values(kind, given), target)


def read_scheduled(text: str) -> Scheduled:
    """Read an order as the command line has it: `close:code=1001,newest=true@30` or `drop@30+20`.

    Raises:
        FaultError: Saying what is wrong with it.
    """
    order, at, times = text.rpartition("@")
    if not at:
        raise FaultError(f"{text!r} does not say when: add @ and the seconds after the start, like {text}@30")
    first, plus, every = times.partition("+")
    at_s = _seconds(text, first)
    every_s = _seconds(text, every) if plus else None
    if every_s == 0:
        raise FaultError(f"{text!r}: every 0 seconds is too often")
    name, _, parameters = order.partition(":")
    given: dict[str, object] = {"fault": name}
    kinds = {**_TARGETS, **{p.name: p.kind for p in FAULTS[name].parameters}} if name in FAULTS else {}
    for part in filter(None, parameters.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise FaultError(f"{text!r}: {part!r} must be key=value")
        given[key] = _converted(value, kinds.get(key, str))
    return Scheduled(read_fault(given), at_s, every_s)


def chaos(seed: int, every_s: float, markets: Sequence[str]) -> Iterator[tuple[float, Fault]]:
    """Yield pauses (seconds) and faults for ever; the same arguments give the same ones.

    Args:
        seed: Seed.
        every_s: Seconds between two faults, on average; what lasts for a time lasts at most half as long.
        markets: Market codes that may fall silent. Only markets that it listed itself are delisted.
    """
    rng = random.Random(f"chaos:{seed}")  # noqa: S311
    names = list(_CHAOS_WEIGHTS)
    weights = list(_CHAOS_WEIGHTS.values())
    listed: list[str] = []
    number = 0
    while True:
        pause_s = round(every_s * rng.uniform(0.5, 1.5), 3)
        name = rng.choices(names, weights)[0]
        if name == "delist" and not listed:
            name = "list"
        values: dict[str, object] = {"fault": name}
        if name == "list":
            number += 1
            values["market"] = f"KRW-NEW{number}"
            listed.append(f"KRW-NEW{number}")
        elif name == "delist":
            values["market"] = listed.pop(rng.randrange(len(listed)))
        else:
            values.update(_chaotic_values(rng, name, every_s, markets))
        yield pause_s, read_fault(values)


_CHAOS_WEIGHTS = {
    "drop": 6,
    "stall": 4,
    "stall-code": 4,
    "half-open": 3,
    "close": 6,
    "error": 3,
    "garbage": 3,
    "truncate": 3,
    "duplicate": 3,
    "reorder": 3,
    "microseconds": 2,
    "future": 2,
    "default-format": 2,
    "slow": 2,
    "refuse": 3,
    "rest-down": 2,
    "list": 2,
    "delist": 2,
}
_CHAOS_CODES = (1000, 1001, 1006, 1011)


def _chaotic_values(
    rng: random.Random, name: str, every_s: float, markets: Sequence[str]
) -> dict[str, object]:
    values: dict[str, object] = {}
    for parameter in FAULTS[name].parameters:
        match parameter.name:
            case "for_s":
                # A stall that is never over is the harder one: every second is.
                if name in ("stall", "stall-code") and rng.random() < 0.5:
                    continue
                values["for_s"] = round(max(0.05, every_s * rng.uniform(0.1, 0.5)), 3)
            case "count":
                if not FAULTS[name].for_or_count:
                    values["count"] = rng.randint(1, 20)
            case "market":
                values["market"] = rng.choice(markets)
            case "code":
                values["code"] = rng.choice(_CHAOS_CODES)
            case "name":
                values["name"] = rng.choice(ERROR_NAMES)
            case "flush":
                values["flush"] = rng.random() < 0.7
            case "status" | "where":
                values[parameter.name] = rng.choice(parameter.choices)
            case "bytes_per_s":
                values["bytes_per_s"] = rng.randint(2_000, 50_000)
            case "by_ms":
                values["by_ms"] = rng.randint(1_000, 3_600_000)
    return values


def _read_values(kind: FaultKind, given: Mapping[str, object]) -> dict[str, Value]:
    known = {parameter.name for parameter in kind.parameters}
    for key in given:
        if key not in known:
            takes = f"it takes {', '.join(sorted(known))}" if known else "it takes none"
            raise FaultError(f"{kind.name}: there is no parameter {_short(key)}; {takes}")
    values: dict[str, Value] = {}
    for parameter in kind.parameters:
        if parameter.name in given:
            values[parameter.name] = _checked(kind, parameter, given[parameter.name])
        elif parameter.required:
            raise FaultError(f"{kind.name}: needs {parameter.name}, a {parameter.meaning}")
        elif parameter.default is not None:
            values[parameter.name] = parameter.default
    if kind.for_or_count:
        if "for_s" in values and "count" in values:
            raise FaultError(f"{kind.name}: for_s and count exclude each other")
        if "count" not in values:
            values.setdefault("for_s", DEFAULT_FOR_S)
    return values


def _checked(kind: FaultKind, parameter: Parameter, value: object) -> Value:
    where = f"{kind.name}: {parameter.name}"
    if parameter.choices and (value not in parameter.choices or isinstance(value, bool)):
        raise FaultError(f"{where} must be one of {', '.join(map(str, parameter.choices))}")
    if parameter.kind is bool:
        if not isinstance(value, bool):
            raise FaultError(f"{where} must be true or false")
        return value
    if parameter.kind is str:
        if not isinstance(value, str) or not value:
            raise FaultError(f"{where} must be text that is not empty")
        return _market(where, value) if parameter.name == "market" else value
    wanted = "a whole number" if parameter.kind is int else "a number"
    if isinstance(value, bool) or not isinstance(value, int if parameter.kind is int else (int, float)):
        raise FaultError(f"{where} must be {wanted}")
    # NaN is in no range.
    if not parameter.low <= value <= parameter.high:
        raise FaultError(f"{where} must be from {parameter.low:g} to {parameter.high:g}")
    if parameter.name == "code" and not _may_close_with(int(value)):
        raise FaultError(f"{where} {value} is none that a close frame may carry, nor 1006")
    return parameter.kind(value)  # type: ignore[no-any-return]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _market(where: str, value: str) -> str:
    try:
        market = market_of(value)
    except ValueError as error:
        raise FaultError(f"{where}: {error}") from error
    if market.partition("-")[0] not in QUOTES:
        raise FaultError(f"{where}: the quote currency must be one of {', '.join(QUOTES)}")
    return market


def _may_close_with(code: int) -> bool:
    """RFC 6455, 7.4; and 1006, which is the name of a close without one."""
    return 3000 <= code <= 4999 or (1000 <= code <= 1014 and code not in (1004, 1005))


def _seconds(text: str, part: str) -> float:
    try:
        seconds = float(part)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= _MAX_SECONDS * 365:
        raise FaultError(f"{text!r}: {part!r} is no number of seconds")
    return seconds


def _converted(value: str, kind: type) -> Value:
    """Read text as a kind; what cannot be read stays text, and `read_fault` says what is wrong with it."""
    if kind is bool:
        return {"true": True, "false": False}.get(value, value)
    if kind in (int, float):
        try:
            return int(value) if kind is int else float(value)
        except ValueError:
            return value
    return value
