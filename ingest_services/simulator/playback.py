"""Recorded frames as feeds: the bytes go out as they came in, with their own stamps or moved to the present.

A recording is JSON lines of `received_us` (when the recorder got the frame, µs since the epoch) and `frame`
(its exact text). All markets of a recording share one clock, which starts when anyone first subscribes; who
asks for a market later first gets what has been due since, so nothing of the recording is lost to anybody.

Shifted means: every stamp is moved by the same whole number of seconds, the largest for which no frame is
sent before its own `received_us`. At the recorded pace the recording then starts now; played faster, or as
fast as possible, it ends now: a stamp in the future would be refused by whoever reads it. Nothing else in the
bytes changes, and the digits of a second stay as they were recorded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

import orjson

from ingest_services.errors import UserError
from ingest_services.simulator.books import restamped
from ingest_services.simulator.feed import window_start
from ingest_services.upbit.frames import MICROSECOND_STAMP_FROM, SNAPSHOT, Book, read_frame

_REST_NAMES = {"ap": "ask_price", "bp": "bid_price", "as": "ask_size", "bs": "bid_size"}


@dataclass(frozen=True, slots=True)
class RecordedBook:
    """One line of a recording.

    Attributes:
        line: Its line in the file.
        received_us: When it was recorded, µs since the epoch.
        market: Market code.
        tms: Its stamp, ms since the epoch.
        stream_type: `SNAPSHOT` or `REALTIME`.
        best_ask: Price of the first ask, None if it is padding.
        best_bid: Price of the first bid, None if it is padding.
        frame: The bytes.
        repeated: The same market, stamp and numbers stood in an earlier line.
    """

    line: int
    received_us: int
    market: str
    tms: int
    stream_type: str
    best_ask: Decimal | None
    best_bid: Decimal | None
    frame: bytes
    repeated: bool

    def encode(self, stream_format: str, depth: int, stream_type: str) -> bytes:  # noqa: ARG002
        """Return the bytes as recorded, whatever format and depth were asked for."""
        return self.frame

    def rest(self, depth: int) -> dict[str, object]:
        """Return the book as `/v1/orderbook` tells it."""
        message = orjson.loads(self.frame)
        units = message.get("obu", message.get("orderbook_units"))[:depth]
        return {
            "market": self.market,
            "timestamp": self.tms,
            "total_ask_size": message.get("tas", message.get("total_ask_size")),
            "total_bid_size": message.get("tbs", message.get("total_bid_size")),
            "orderbook_units": [{_REST_NAMES.get(k, k): v for k, v in unit.items()} for unit in units],
            "level": message.get("lv", message.get("level", 0)),
        }

    def is_event(self, now_ms: int) -> bool:
        """Tell whether it counts for a candle if it is sent now.

        A repeated book does not, nor does a snapshot of a book that last changed in an earlier window.
        """
        if self.repeated:
            return False
        return self.stream_type != SNAPSHOT or window_start(self.tms) == window_start(now_ms)

    def shifted(self, seconds: int) -> RecordedBook:
        """Return it with every stamp moved."""
        if not seconds:
            return self
        return replace(
            self,
            received_us=self.received_us + seconds * 1_000_000,
            tms=self.tms + seconds * 1000,
            frame=restamped(self.frame, lambda stamp: _moved(stamp, seconds)),
        )


class RecordingClock:
    """When each frame of a recording is due, and by how much its stamps are moved."""

    def __init__(self, books: Sequence[RecordedBook], *, speed: float, shift: bool, loop: bool) -> None:
        """Take a recording's extent.

        Args:
            books: Every frame, in the order of the file.
            speed: Times the recorded pace; 0 makes everything due at once.
            shift: Move the stamps to the present.
            loop: Begin again a second after the end; needs `shift`.
        """
        self._first_us = min(book.received_us for book in books)
        self._last_us = max(book.received_us for book in books)
        # A stamp normally precedes its receipt; a recorder's clock may have been slow, though.
        newest_us = max(self._last_us, 1000 * max(book.tms for book in books))
        oldest_us = min(self._first_us, 1000 * min(book.tms for book in books))
        self._lead_us = max(0, *(1000 * book.tms - book.received_us for book in books))
        self._speed = speed
        self._shift = shift
        self.loop = loop
        # A round's stamps must all lie after those of the round before.
        self._round_s = -(-(newest_us - oldest_us) // 1_000_000) + 1
        self._start_ms: int | None = None
        self._seconds = 0

    @property
    def start_ms(self) -> int:
        """When it started, ms since the epoch; the first frame's own time before that."""
        return self._first_us // 1000 if self._start_ms is None else self._start_ms

    def start(self, now_ms: int) -> None:
        """Start, if it has not started yet."""
        if self._start_ms is not None:
            return
        self._start_ms = now_ms
        if self._shift:
            played_us = (self._last_us - self._first_us) / self._speed if self._speed else 0
            room_us = min(now_ms * 1000 - self._first_us, now_ms * 1000 + played_us - self._last_us)
            self._seconds = int((room_us - self._lead_us) // 1_000_000)

    def at(self, book: RecordedBook, round_number: int) -> tuple[int, RecordedBook]:
        """Return when a frame is due in a round, ms since the epoch, and the frame as it is sent then."""
        moved = self._seconds + round_number * self._round_s
        if not self._speed:
            return self.start_ms, book.shifted(moved)
        since_us = (
            book.received_us - self._first_us + round_number * self._round_s * 1_000_000
        ) / self._speed
        # Rounded up, so that a stamp is never in the future by a fraction of a millisecond.
        return self.start_ms + int(-(-since_us // 1000)), book.shifted(moved)


class RecordingFeed:
    """The recorded frames of one market."""

    has_snapshots = False

    def __init__(self, books: Sequence[RecordedBook], clock: RecordingClock) -> None:
        """Stand before the first of a market's frames (at least one, in the order of the file)."""
        self.market = books[0].market
        self._books = books
        self._clock = clock
        self._next = 0
        self._current = books[0]
        self._prepared: tuple[int, RecordedBook] | None = None

    @property
    def from_ms(self) -> int:
        """When the recording started to play, ms since the epoch."""
        return self._clock.start_ms

    @property
    def current(self) -> RecordedBook:
        """The newest frame that was sent; before that, the first as it was recorded."""
        return self._current

    @property
    def due_ms(self) -> int | None:
        """When the next frame is due; None after the last."""
        return None if self._prepared is None else self._prepared[0]

    @property
    def place(self) -> int:
        """The next frame's line: frames that are due together go out in the order of the file."""
        return self._books[self._next % len(self._books)].line

    def begin(self, now_ms: int) -> None:
        """Go to the first frame; the first market to begin starts the recording's clock."""
        self._clock.start(now_ms)
        self._next = 0
        self._prepare()

    def step(self) -> RecordedBook:
        """Return the next frame."""
        assert self._prepared is not None, "stepped past the end of a recording"
        self._current = self._prepared[1]
        self._next += 1
        self._prepare()
        return self._current

    def _prepare(self) -> None:
        round_number, index = divmod(self._next, len(self._books))
        over = round_number > 0 and not self._clock.loop
        self._prepared = None if over else self._clock.at(self._books[index], round_number)


def read_recording(path: Path) -> list[RecordedBook]:
    """Read a recording; it is held in memory whole.

    Raises:
        UserError: Naming file and line, if the file cannot be read, is empty, or a line is not a JSON object
            with a whole `received_us` and a `frame` that is an order book.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"--playback {path}: cannot be read ({error.strerror or error})") from error
    seen: set[object] = set()
    books = [
        _read_line(path, number, line, seen) for number, line in enumerate(lines, start=1) if line.strip()
    ]
    if not books:
        raise UserError(f"--playback {path}: is empty; it needs JSON lines with received_us and frame")
    return books


def recording_feeds(
    books: Iterable[RecordedBook], *, speed: float, shift: bool, loop: bool
) -> dict[str, RecordingFeed]:
    """Return a recording's feeds by market, on one clock."""
    books = list(books)
    clock = RecordingClock(books, speed=speed, shift=shift, loop=loop)
    by_market: dict[str, list[RecordedBook]] = {}
    for book in books:
        by_market.setdefault(book.market, []).append(book)
    return {market: RecordingFeed(own, clock) for market, own in by_market.items()}


def _read_line(path: Path, number: int, line: bytes, seen: set[object]) -> RecordedBook:
    where = f"{path}, line {number}"
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise UserError(f"{where}: is not JSON ({error})") from error
    if not isinstance(record, dict):
        raise UserError(f"{where}: must be an object with received_us and frame")
    for key, kind, wanted in (("received_us", int, "a whole number (µs)"), ("frame", str, "a string")):
        if key not in record:
            raise UserError(f"{where}: has no {key}")
        if type(record[key]) is not kind:
            raise UserError(f"{where}: {key} must be {wanted}")
    frame = record["frame"].encode()
    book = read_frame(frame)
    if not isinstance(book, Book):
        reason = getattr(book, "reason", "no order book")
        raise UserError(f"{where}: frame cannot be played ({reason})")
    # Read again with exact decimals: the truth is compared digit by digit.
    message = json.loads(frame, parse_float=Decimal, parse_int=Decimal)
    units = message["obu"] if "obu" in message else message["orderbook_units"]
    simple = "obu" in message
    names = ("ap", "bp", "as", "bs") if simple else ("ask_price", "bid_price", "ask_size", "bid_size")
    try:
        levels = tuple(tuple(unit[name] + 0 for name in names) for unit in units)
    except (TypeError, KeyError) as error:
        raise UserError(f"{where}: frame has a level without {', '.join(names)}") from error
    totals = (
        message.get("tas" if simple else "total_ask_size"),
        message.get("tbs" if simple else "total_bid_size"),
    )
    content = (book.market, book.tms, message.get("lv" if simple else "level"), totals, levels)
    repeated = content in seen
    seen.add(content)
    best_ask, best_bid = (levels[0][0], levels[0][1]) if levels else (Decimal(0), Decimal(0))
    return RecordedBook(
        number,
        record["received_us"],
        book.market,
        book.tms,
        book.stream_type,
        best_ask or None,
        best_bid or None,
        frame,
        repeated,
    )


def _moved(stamp: int, seconds: int) -> int:
    per_second = 1_000_000 if stamp >= MICROSECOND_STAMP_FROM else 1000
    return stamp + seconds * per_second
