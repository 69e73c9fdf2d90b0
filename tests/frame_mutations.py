"""Frames as the exchange sends them, and what damage can make of them: by tokens, by bytes, by nesting."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from random import Random
from typing import TypeVar

from ingest_services.record import Heartbeat, Span
from tests.lake_builder import frame

NOW_MS = 1_738_480_567_123
LEVELS = [(101 + n, 100 - n, 0.5 + n, 1.5) for n in range(15)]

BOOKS = [
    frame("BTC", NOW_MS, LEVELS[:1]),
    frame("BTC", NOW_MS, LEVELS[:1], default_format=True),
    frame(
        "USDT-ETH", NOW_MS * 1000 + 7, [("1.16539E8", "7.9276E-4", 1, 2), (0, 99, 0, 3)], "SNAPSHOT", level=10
    ),
    frame("BTC-XRP", NOW_MS - 600_000, [], "SNAPSHOT"),
    frame("BTC", NOW_MS, LEVELS),
]
WORDS = [
    b'{"status":"UP"}',
    b'{"error":{"message":"no such code","name":"NO_CODES"}}',
    b'{"error":{"name":404,"message":"x"}}',
    b"[" + BOOKS[0] + b"," + BOOKS[1] + b"]",
    b'{"method":"LIST_SUBSCRIPTIONS","result":[{"type":"orderbook","codes":["KRW-BTC.15"]}],"ticket":"t"}',
]
HEARTBEATS = [
    Heartbeat(
        "upbit_producer1", "c-1", ("BTC", "USDT-ETH"), (Span(us, us + 9_000_000, ("BTC",)),), holes
    ).encode()
    for us in ((NOW_MS - 20_000) * 1000, (NOW_MS - 90_000) * 1000)
    for holes in ((), (Span(us, us + 1, ("BTC", "USDT-ETH")),))
]

# In place of a value: each is JSON.
VALUES = [
    *b"0 -0 -1 1 1.5 1e5 1E-400 1e308 9007199254740993 9223372036854775807".split(),
    *b"9223372036854775808 18446744073709551615 18446744073709551616".split(),
    *b"1738480567123 1738480567123456 1738480567.123".split(),
    *(b"9" * n for n in (14, 15, 16, 30, 400, 5000)),
    *b"true false null".split(),
    *b'"" "0" "KRW-BTC" "krw-btc" "KRW-" "KRW-BTC.15" "KRW\\u002dBTC" "../../x-Y"'.split(),
    *b'"REALTIME" "SNAPSHOT" "realtime" "\\u0000" "\\ud83d\\ude00" "\x7f"'.split(),
    b'"' + b"A" * 3000 + b'"',
    b'"KRW-' + b"A" * 21 + b'"',
    '"비트코인-BTC"'.encode(),
    *b'[] {} [{}] [[]] [null] {"error":1}'.split(),
    *(b"[" * n + b"]" * n for n in (50, 1000, 1022, 1023, 5000)),
    b'{"a":' * 1010 + b"1" + b"}" * 1010,
]
# In place of anything.
BROKEN = [
    *b"1e999 NaN Infinity -Infinity nan 0x1f 01 +1 .5 1. - undefined None".split(),
    *b'"\\ud800" "\\udc00\\ud800" "\\" "\x00" "\xff" "\xed\xa0\x80"'.split(b" "),
    b"[" * 2000,
    *b"{ } [ ] : , \" ' \\ /* // # \x00 \xef\xbb\xbf \xc3 \xe2\x80\xa8".split(b" "),
    b"\n",
    b"\r",
    b"",
]
KEYS = [
    *b'"ty" "cd" "tms" "tas" "tbs" "obu" "st" "lv" "ap" "bp"'.split(),
    *b'"type" "code" "timestamp" "orderbook_units" "stream_type" "level"'.split(),
    *b'"error" "status" "name" "message" "t\\u006ds" "TMS" "" "offset" "book" "received_us"'.split(),
    *b'"section" "connection" "subscribed" "covered" "holes" "from_us" "to_us" "tickers"'.split(),
]
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[-+.\w]+|[^\w\s]|\s+')
_SIGNS = {*(b"%c" % sign for sign in b"{}[]:,")}
T = TypeVar("T")


class Mutator:
    """Makes inputs out of samples; the same seed makes the same inputs."""

    def __init__(self, samples: list[bytes], seed: int) -> None:
        self._random = Random(seed)
        self._samples = samples
        self._tokens = [_TOKEN.findall(sample) for sample in samples]
        words = [[n for n, token in enumerate(tokens) if token not in _SIGNS] for tokens in self._tokens]
        self._keys = [
            [n for n in found if tokens[n + 1 : n + 2] == [b":"]]
            for tokens, found in zip(self._tokens, words, strict=True)
        ]
        self._values = [sorted({*found} - {*keys}) for found, keys in zip(words, self._keys, strict=True)]
        self._ways: list[Callable[[bytes], bytes]] = [
            self._flip_bits,
            self._flip_bits,
            self._truncate,
            self._splice,
            self._repeat,
            self._drop,
            self._insert,
            self._repeat_key,
            self._nest,
        ]

    def inputs(self, count: int) -> Iterator[bytes]:
        random, ways = self._random.random, self._ways
        for _ in range(count):
            value = self._swap_tokens()
            # Most stay well-formed but for the tokens, so that they get past the parser.
            while random() < 0.3:
                value = ways[int(random() * len(ways))](value)
            yield value

    def _pick(self, pool: list[T]) -> T:
        return pool[int(self._random.random() * len(pool))]

    def _at(self, value: bytes) -> int:
        return int(self._random.random() * (len(value) + 1))

    def _swap_tokens(self) -> bytes:
        random = self._random.random
        number = int(random() ** 2 * len(self._tokens))
        tokens = self._tokens[number].copy()
        for _ in range(int(random() * 4)):
            way = random()
            if way < 0.25:
                tokens[self._pick(self._keys[number])] = self._pick(KEYS)
            elif way < 0.9:
                tokens[self._pick(self._values[number])] = self._pick(VALUES)
            else:
                tokens[int(random() * len(tokens))] = self._pick(BROKEN)
        return b"".join(tokens)

    def _flip_bits(self, value: bytes) -> bytes:
        changed = bytearray(value or b"{")
        for _ in range(1 + int(self._random.random() * 3)):
            changed[int(self._random.random() * len(changed))] ^= 1 << int(self._random.random() * 8)
        return bytes(changed)

    def _truncate(self, value: bytes) -> bytes:
        at = self._at(value)
        return value[:at] if self._random.random() < 0.7 else value[at:]

    def _splice(self, value: bytes) -> bytes:
        other = self._pick(self._samples)
        return value[: self._at(value)] + other[self._at(other) :]

    def _repeat(self, value: bytes) -> bytes:
        start, end = sorted((self._at(value), self._at(value)))
        return value[:end] + value[start:]

    def _drop(self, value: bytes) -> bytes:
        start, end = sorted((self._at(value), self._at(value)))
        return value[:start] + value[end:]

    def _insert(self, value: bytes) -> bytes:
        at = self._at(value)
        return value[:at] + self._pick(BROKEN) + value[at:]

    def _repeat_key(self, value: bytes) -> bytes:
        more = self._pick(KEYS) + b":" + self._pick(VALUES)
        if self._random.random() < 0.5:
            return value.replace(b"{", b"{" + more + b",", 1)
        return value[:-1] + b"," + more + b"}"

    def _nest(self, value: bytes) -> bytes:
        deep = 1 + int(self._random.random() ** 3 * 1100)
        if self._random.random() < 0.5:
            return b"[" * deep + value + b"]" * deep
        return value[:-1] + b',"x":' + b"[" * deep + b"]" * deep + b"}"
