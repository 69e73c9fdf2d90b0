"""A feed: one subscription kept alive for ever over one socket after another.

The thread connects, subscribes with one message, and hands every frame with its time of receipt to the inbox.
Nothing else happens here to a frame. Whatever ends a connection, a normal close included, leads to the next.

Belongs here: the socket. Does not belong here: when to ping and to give up (`supervision.py`), what a frame
means.
"""

from __future__ import annotations

import enum
import math
import secrets
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import NamedTuple, cast

import structlog
import websocket
from websocket import ABNF

from ingest_services.backoff import Backoff
from ingest_services.producer.metrics import SectionStats
from ingest_services.producer.silence import Silences
from ingest_services.producer.supervision import (
    Action,
    ConnectionLimiter,
    MessageLimiter,
    State,
    Supervision,
    Watch,
    pause,
)
from ingest_services.upbit.frames import Book, read_frame
from ingest_services.upbit.markets import ticker_of
from ingest_services.upbit.request import PING, subscription_request

CONNECT_TIMEOUT_S = 5.0
# How long a connection that we close may go on delivering what was on its way.
CLOSE_TIMEOUT_S = 1.0
READ_BYTES = 64 * 1024
# A read blocks no longer than this, so that pings, stalls and the end are looked at.
POLL_S = 0.2
# Frames that were read and not published yet. Beyond that reading waits (for the processor, never for Kafka).
INBOX_FRAMES = 8192
# What was read at once came at one moment; the order in which it stood is kept in the stamps, which run ahead
# of the clock by a µs each. A clock that is further back than that was set back.
STAMPS_AHEAD_US = 10_000
# Asked to slow down (429), or blocked for it (418): trying again at once makes the block grow, whoever tries.
SLOW_DOWN_S = {429: 5.0, 418: 30.0}

_log = structlog.get_logger()


class Signal(enum.Enum):
    """What comes through the inbox beside frames.

    ALIVE: something came that proves that all before it has. ENDED: the connection ended, and not by us.
    STOPPED: we ended it.
    """

    ALIVE = 0
    ENDED = 1
    STOPPED = 2


class Dead(NamedTuple):
    """Subscriptions that were found dead: what was claimed for them since then was not covered.

    Attributes:
        since_us: By ticker, up to when it had certainly not missed anything, µs since the epoch.
    """

    since_us: dict[str, int]


class Proven(NamedTuple):
    """Tickers that were compared with the exchange's present books and have not missed anything.

    Attributes:
        since_us: By ticker, when the comparison was asked for, µs since the epoch.
    """

    since_us: dict[str, int]


class Connection:
    """One connection of one process: its name, what it subscribed to, and how its tickers were heard."""

    __slots__ = ("markets", "name", "silences", "tickers")

    def __init__(self, name: str, markets: Iterable[str], before: Connection | None = None) -> None:
        self.name = name
        self.markets = tuple(markets)
        self.tickers = tuple(ticker_of(market) for market in self.markets)
        self.silences: Silences = Silences(self.tickers, before.silences if before else None)


# When it was received (µs since the epoch), on which connection, and the frame's bytes.
Item = tuple[int, Connection, bytes | Signal | Dead | Proven]
Inbox = SimpleQueue[Item]


class _Socket(websocket.WebSocket):
    """Reads as much as there is at once, and remembers when.

    The library asks the operating system three times for each frame, and each time another thread may take
    the interpreter. `received_ns` is the moment at which the last piece of the current frame came in. The
    library's own timeout is one for each piece: `until_s` (monotonic clock) also ends the reading of a frame
    that trickles in; it goes on where it was with the next read.
    """

    received_ns = 0
    until_s = math.inf
    _ahead = b""
    _at = 0

    def _recv(self, size: int) -> bytes:
        if self._at >= len(self._ahead):
            if time.monotonic() >= self.until_s:
                raise websocket.WebSocketTimeoutException("the frame is not whole yet")
            self._ahead = super()._recv(READ_BYTES)  # type: ignore[no-untyped-call]
            self.received_ns = time.time_ns()
            self._at = 0
        piece = self._ahead[self._at : self._at + size]
        self._at += len(piece)
        return piece


def _open(url: str) -> _Socket:
    return cast(
        _Socket,
        websocket.create_connection(
            url,
            timeout=CONNECT_TIMEOUT_S,
            class_=_Socket,
            suppress_origin=True,
            skip_utf8_validation=True,
            enable_multithread=False,
        ),
    )


class Feed(threading.Thread):
    """Keeps one section's subscription to a fixed set of markets alive until it is stopped."""

    def __init__(
        self,
        section: str,
        markets: Iterable[str],
        *,
        url: str,
        depth: int,
        inbox: Inbox,
        limiter: ConnectionLimiter,
        stats: SectionStats,
        on_state: Callable[[Feed, State], None],
        backoff: Backoff | None = None,
    ) -> None:
        """Describe a feed; `start` begins it.

        Args:
            section: Producer section.
            markets: Market codes.
            url: The exchange's WebSocket endpoint.
            depth: Levels per side.
            inbox: Where frames go.
            limiter: The exchange's limit on new connections, shared by all feeds of the process.
            stats: The section's numbers.
            on_state: Called, in the feed's thread, with each new state.
            backoff: Between connections.
        """
        super().__init__(name=f"{section}-feed", daemon=True)
        self.markets = tuple(markets)
        self.connection: Connection | None = None
        self._before: Connection | None = None
        self._section = section
        self._url = url
        self._depth = depth
        self._inbox = inbox
        self._limiter = limiter
        self._stats = stats
        self._on_state = on_state
        self._supervision = Supervision(backoff, self._changed)
        self._stopping = threading.Event()
        self._run_name = secrets.token_hex(3)
        self._connection_name = ""

    @property
    def state(self) -> State:
        """Where the connection stands."""
        return self._supervision.state

    def follow(self, feed: Feed) -> None:
        """Take over from another feed what is usual with its tickers; before `start`."""
        self._before = feed._before

    def stop(self) -> None:
        """End the connection in good order; `join` waits for it."""
        self._stopping.set()

    def run(self) -> None:
        """Connect, read until the connection ends, back off, and again."""
        number = 0
        while not self._stopping.is_set():
            self._supervision.enter(State.CONNECTING)
            self._came_round()
            self._stats.limiter_wait_s += self._limiter.wait(self._stopping, self._came_round)
            if self._stopping.is_set():
                break
            number += 1
            name = f"{self._section}-{self._run_name}-{number}"
            connection = Connection(name, self.markets, self._before)
            self._connection_name = name
            self._before = connection
            try:
                cause, at_least_s = self._connect(connection)
            except Exception:  # noqa: BLE001 (nothing that comes over the wire may end a feed)
                _log.exception("feed_failed", section=self._section, connection=connection.name)
                cause, at_least_s = "feed_failed", 1.0
            if self._stopping.is_set():
                break
            self._stats.reconnects[cause] += 1
            delay_s = self._supervision.ended(cause, time.monotonic(), at_least_s)
            _log.warning(
                "disconnected",
                section=self._section,
                connection=connection.name,
                cause=cause,
                retry_in_s=round(delay_s, 2),
            )
            pause(self._stopping, delay_s, self._came_round)
        self._supervision.enter(State.STOPPED)

    def _came_round(self) -> None:
        self._stats.feed_turn_s = time.monotonic()

    def _connect(self, connection: Connection) -> tuple[str, float]:
        """Live one connection; return why it ended and how long to wait at least."""
        try:
            socket = _open(self._url)
        except websocket.WebSocketBadStatusException as error:
            at_least_s = SLOW_DOWN_S.get(error.status_code, 0.0)
            return f"status_{error.status_code}", self._limiter.refused(at_least_s) if at_least_s else 0.0
        except (websocket.WebSocketException, OSError, ValueError) as error:
            _log.info("connect_failed", section=self._section, url=self._url, error=str(error))
            return "connect_failed", 0.0
        self._limiter.accepted()
        try:
            messages = MessageLimiter()
            _send(socket, messages, subscription_request(connection.name, connection.markets, self._depth))
            _send(socket, messages, PING)
            self._stats.connected += 1
            self._supervision.subscribed(time.monotonic())
            self._inbox.put((time.time_ns() // 1000, connection, Signal.ALIVE))
            self.connection = connection
            return self._read(socket, connection, messages), 0.0
        except websocket.WebSocketConnectionClosedException:
            return "closed_1006", 0.0
        except websocket.WebSocketProtocolException as error:
            _log.warning("protocol_error", connection=connection.name, error=str(error))
            return "protocol_error", 0.0
        except (websocket.WebSocketException, ssl.SSLError, OSError) as error:
            _log.info("socket_failed", connection=connection.name, error=str(error))
            return "socket_failed", 0.0
        finally:
            self.connection = None
            end = Signal.STOPPED if self._stopping.is_set() else Signal.ENDED
            self._inbox.put((time.time_ns() // 1000, connection, end))
            socket.shutdown()  # type: ignore[no-untyped-call]

    def _read(self, socket: _Socket, connection: Connection, messages: MessageLimiter) -> str:
        watch = Watch(time.monotonic(), time.time())
        close_s: float | None = None
        doomed_s: float | None = None
        received_us = 0
        socket.settimeout(POLL_S)
        while True:
            now_s = time.monotonic()
            self._stats.feed_turn_s = now_s
            if close_s is not None:
                if now_s >= close_s:
                    return "stopped"
            elif self._stopping.is_set():
                # What is on its way to us is still read: the exchange's own close comes behind it.
                socket.send(struct.pack("!H", websocket.STATUS_NORMAL), ABNF.OPCODE_CLOSE)
                close_s = now_s + CLOSE_TIMEOUT_S
            else:
                action = watch.due(now_s, time.time())
                if action is not Action.GIVE_UP:
                    doomed_s = None
                elif doomed_s is None:
                    # If it was we who did not come to read (the process was stopped, the machine slept, the
                    # disk hung), the exchange's frames wait in the kernel, and no silence is proven.
                    doomed_s = now_s
                elif now_s - doomed_s >= POLL_S:
                    self._supervision.enter(State.STALLED)
                    return "stalled"
                _do(action, socket, messages, now_s)
            socket.until_s = time.monotonic() + POLL_S
            try:
                opcode, frame = socket.recv_data_frame(control_frame=True)
            except websocket.WebSocketTimeoutException:
                continue
            received_us = next_stamp(socket.received_ns // 1000, received_us)
            if opcode in (ABNF.OPCODE_BINARY, ABNF.OPCODE_TEXT):
                watch.message(time.monotonic())
                self._hand_over(received_us, connection, frame.data)
                continue
            watch.heard(time.monotonic())
            # A close frame, too, proves that whatever was sent before it has arrived.
            self._stats.last_received_us = received_us
            self._inbox.put((received_us, connection, Signal.ALIVE))
            if opcode == ABNF.OPCODE_CLOSE:
                code = struct.unpack_from("!H", frame.data)[0] if len(frame.data) >= 2 else 1005
                return f"closed_{code}"

    def _hand_over(self, received_us: int, connection: Connection, frame: bytes) -> None:
        stats = self._stats
        stats.last_received_us = received_us
        self._inbox.put((received_us, connection, frame))
        stats.frames += 1
        stats.bytes += len(frame)
        if self._supervision.state is State.SUBSCRIBED and isinstance(read_frame(frame), Book):
            self._supervision.enter(State.LIVE)
        if self._inbox.qsize() > INBOX_FRAMES:
            self._wait_for_room()

    def _wait_for_room(self) -> None:
        # The exchange's bytes wait in the kernel meanwhile, and so nothing is thrown away here.
        began_s = time.monotonic()
        while self._inbox.qsize() > INBOX_FRAMES // 2:
            time.sleep(0.001)
        self._stats.backpressure_s += time.monotonic() - began_s

    def _changed(self, was: State, now: State, cause: str) -> None:
        _log.info(
            "state",
            section=self._section,
            connection=self._connection_name,
            was=was.value,
            now=now.value,
            **({"cause": cause} if cause else {}),
        )
        self._on_state(self, now)


def next_stamp(read_us: int, last_us: int) -> int:
    """Return the stamp of what was read at a moment, later than the last one's on its connection.

    Args:
        read_us: When it was read, µs since the epoch.
        last_us: The stamp of what came before it; 0 if nothing did.
    """
    return read_us if read_us > last_us or last_us - read_us > STAMPS_AHEAD_US else last_us + 1


def _do(action: Action, socket: _Socket, messages: MessageLimiter, now_s: float) -> None:
    if action is Action.PING and messages.take(now_s):
        socket.ping()
    elif action is Action.ASK_UP:
        _send(socket, messages, PING)


def _send(socket: _Socket, messages: MessageLimiter, text: bytes) -> None:
    if messages.take(time.monotonic()):
        socket.send(text)
