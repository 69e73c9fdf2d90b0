"""Damaged inputs: nothing that is sent makes the frame reader, the heartbeat reader or the consumer raise.

`FUZZ_INPUTS` and `FUZZ_SEED` change how many and which; `make fuzz` tries a million.
"""

from __future__ import annotations

import base64
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from random import Random

import orjson
from hypothesis import given
from hypothesis import strategies as st

from ingest_services.consumer.entries import STAMPS_MS, read_record
from ingest_services.record import BOOK, HEARTBEAT, Envelope, Heartbeat, headers_of, read_headers
from ingest_services.upbit.frames import Book, ExchangeError, Frame, Garbage, Status, read_frame
from ingest_services.upbit.markets import ticker_of
from tests.frame_mutations import BOOKS, BROKEN, HEARTBEATS, NOW_MS, VALUES, WORDS, Mutator

INPUTS = int(os.environ.get("FUZZ_INPUTS", "200000"))
SEED = int(os.environ.get("FUZZ_SEED", "20250202"))
PARTS = 4  # each with a seed of its own, the same on every machine
HEADERS = {kind: headers_of(Envelope(kind, NOW_MS * 1000, "c-1")) for kind in (BOOK, HEARTBEAT)}


def check_frame(value: bytes) -> str:
    """Read a frame as producer and consumer do; return what the consumer made of it."""
    frame = read_frame(value)
    check_reading(frame)
    return check_record(value, BOOK, frame)


def check_reading(frame: Frame) -> None:
    if isinstance(frame, Book):
        assert type(frame.tms) is int
        assert frame.tms > 0
        assert ticker_of(frame.market) == frame.ticker
        assert frame.stream_type in {"SNAPSHOT", "REALTIME"}
    else:
        assert isinstance(frame, Status | ExchangeError | Garbage)


def check_record(value: bytes, kind: str, frame: Frame | None = None) -> str:
    """Read a record as the consumer does, and its line as everybody after it does."""
    entry = read_record(3, 7, NOW_MS, b"BTC", value, HEADERS[kind])
    assert entry.line[-1:] == b"\n"
    assert entry.line.find(b"\n") == entry.line.rfind(b"\n") == len(entry.line) - 1
    assert b"\r" not in entry.line
    assert entry.minute_ms % 60_000 == 0
    assert entry.offset == 7
    line = orjson.loads(entry.line)
    assert (line["partition"], line["offset"], line["connection"]) == (3, 7, "c-1")
    if entry.kind == "book":
        assert isinstance(frame, Book)
        assert (entry.ticker, entry.tms) == (frame.ticker, frame.tms)
        assert entry.tms in STAMPS_MS
        assert entry.tms <= NOW_MS + 5_000
        assert isinstance(line["book"], dict)
        assert entry.line.endswith(b',"book":' + value + b"}\n")
    elif entry.kind == "heartbeat":
        assert Heartbeat.from_json(line["heartbeat"]) == Heartbeat.decode(value)
    else:
        assert base64.b64decode(line["value"]) == value
        assert line["reason"]
    return entry.kind


def fuzz(samples: list[bytes], count: int, check: Callable[[bytes], str]) -> Counter[str]:
    """Check many inputs, on every processor; a failure names the seed and the input."""
    seeds = range(SEED, SEED + PARTS)
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        parts = [pool.submit(fuzz_part, samples, -(-count // PARTS), check, seed) for seed in seeds]
        return sum((part.result() for part in parts), Counter[str]())


def fuzz_part(samples: list[bytes], count: int, check: Callable[[bytes], str], seed: int) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    for number, value in enumerate(Mutator(samples, seed).inputs(count)):
        try:
            outcomes[check(value)] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, input {number}: {error!r} for {value!r}") from error
    return outcomes


def test_damaged_frames_raise_nothing_and_each_has_an_outcome() -> None:
    outcomes = fuzz(BOOKS + WORDS, INPUTS, check_frame)
    assert set(outcomes) == {"book", "quarantine"}
    # Enough of each: a fuzzer that only makes garbage proves little.
    assert min(outcomes.values()) > INPUTS // 10, outcomes


def heartbeat(value: bytes) -> str:
    with suppress(ValueError):
        Heartbeat.decode(value)
    return check_record(value, HEARTBEAT)


def test_damaged_heartbeats_raise_nothing_but_that_they_are_none() -> None:
    outcomes = fuzz(HEARTBEATS, INPUTS // 10, heartbeat)
    assert set(outcomes) == {"heartbeat", "quarantine"}
    assert min(outcomes.values()) > INPUTS // 100, outcomes


def test_damaged_headers_raise_nothing() -> None:
    random = Random(SEED)
    plain = [*HEADERS[BOOK], *HEADERS[HEARTBEAT], ("tms", b"1738480567123"), ("stream_type", b"REALTIME")]
    pool = [
        *VALUES,
        *BROKEN,
        *(value for _, value in plain),
        b"\xff\xfe",
        b"9" * 19,
        b"9" * 20,
        b"\xef\xbc\x91",  # a full-width digit
        b" 1",
        b"1_0",
    ]
    for number in range(INPUTS // 10):
        headers: list[tuple[str, bytes | None]] = [
            (random.choice([name, name, "", "x"]), random.choice([value, random.choice(pool), None]))
            for name, value in random.sample(plain, random.randrange(len(plain)))
        ]
        stamp = random.choice([-1, 0, NOW_MS, 10**13, 2**63 - 1, -(2**63)])
        try:
            envelope = read_headers(headers, stamp)
            assert envelope.kind in {BOOK, HEARTBEAT}
            assert envelope.tms is None or envelope.tms >= 0
            entry = read_record(0, 1, stamp, None, random.choice(BOOKS + HEARTBEATS), headers)
            assert orjson.loads(entry.line)["received_us"] == entry.received_us
            assert entry.received_us // 1000 in STAMPS_MS
            assert entry.minute_ms % 60_000 == 0
        except Exception as error:
            raise AssertionError(f"seed {SEED}, input {number}: {error!r} for {headers}, {stamp}") from error


leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10)
    | st.sampled_from(["KRW-BTC", "REALTIME", "SNAPSHOT", "BTC", NOW_MS, NOW_MS * 1000])
)
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
)
SIMPLE = orjson.loads(BOOKS[0])
DEFAULT = orjson.loads(BOOKS[1])
BEAT = orjson.loads(HEARTBEATS[-1])


@given(
    base=st.sampled_from([{}, SIMPLE, DEFAULT]),
    changes=st.dictionaries(st.sampled_from([*SIMPLE, *DEFAULT, "error", "status", "x"]), trees, max_size=3),
    gone=st.sets(st.sampled_from([*SIMPLE, *DEFAULT]), max_size=2),
)
def test_a_frame_of_any_structure_is_read(
    base: dict[str, object], changes: dict[str, object], gone: set[str]
) -> None:
    message = {key: value for key, value in (base | changes).items() if key not in gone}
    check_frame(_json(message))


@given(trees)
def test_any_json_is_read(tree: object) -> None:
    check_frame(_json(tree))
    heartbeat(_json(tree))


@given(
    st.dictionaries(st.sampled_from([*BEAT, "x"]), trees, max_size=2),
    trees,
    st.sampled_from(["covered", "holes"]),
)
def test_a_heartbeat_of_any_structure_is_read(changes: dict[str, object], tree: object, field: str) -> None:
    heartbeat(_json(BEAT | changes))
    heartbeat(_json(BEAT | {field: [*BEAT[field], tree]}))
    heartbeat(_json(BEAT | {field: [BEAT[field][0] | {"tickers": tree, "from_us": tree}]}))


def _json(tree: object) -> bytes:
    import json  # numbers beyond 64 bits, which orjson does not write

    return json.dumps(tree).encode()
