"""A feed: one subscription kept alive for ever over one socket after another.

The thread connects, subscribes with one message, and hands every frame with its time of receipt to the inbox.
Nothing else happens here to a frame. Whatever ends a connection, a normal close included, leads to the next.

Belongs here: the socket. Does not belong here: when to ping and to give up (`supervision.py`), what a frame
means.
"""

from __future__ import annotations

import enum
import secrets
import ssl
import struct
import threading
import time
from collections.abc import Iterable
from queue import SimpleQueue
from typing import cast

import structlog
import websocket
from websocket import ABNF

from ingest_services.producer.metrics import SectionStats
from ingest_services.producer.supervision import Action, Backoff, ConnectionLimiter, State, Watch
from ingest_services.upbit.markets import ticker_of
from ingest_services.upbit.request import subscription_request

CONNECT_TIMEOUT_S = 5.0
# How long a connection that we close may go on delivering what was on its way.
CLOSE_TIMEOUT_S = 1.0
READ_BYTES = 64 * 1024
# A read blocks no longer than this, so that pings, stalls and the end are looked at.
POLL_S = 0.2
# Frames that were read and not published yet. Beyond that reading waits (for the processor, never for Kafka).
INBOX_FRAMES = 8192
# A connection that lived this long was a good one: the next failure is the first of its kind.
GOOD_AFTER_S = 10.0
# Asked to slow down (429), or blocked for it (418): trying again at once makes the block grow.
SLOW_DOWN_S = {429: 5.0, 418: 30.0}

_log = structlog.get_logger()


class Signal(enum.Enum):
    """What comes through the inbox beside frames."""

    ALIVE = 0
    CLOSED = 1


class Connection:
    """One connection of one process: its name and what it subscribed to."""

    __slots__ = ("markets", "name", "tickers")

    def __init__(self, name: str, markets: Iterable[str]) -> None:
        self.name = name
        self.markets = tuple(markets)
        self.tickers = tuple(ticker_of(market) for market in self.markets)


# When it was received (µs since the epoch), on which connection, and the frame's bytes.
Item = tuple[int, Connection, bytes | Signal]
Inbox = SimpleQueue[Item]


class _Socket(websocket.WebSocket):
    """Reads as much as there is at once, and remembers when.

    The library asks the operating system three times for each frame, and each time another thread may take
    the interpreter. `received_ns` is the moment at which the last piece of the current frame came in.
    """

    received_ns = 0
    _ahead = b""
    _at = 0

    def _recv(self, size: int) -> bytes:
        if self._at >= len(self._ahead):
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
            backoff: Between connections.
        """
        super().__init__(name=f"{section}-feed", daemon=True)
        self._section = section
        self._markets = tuple(markets)
        self._url = url
        self._depth = depth
        self._inbox = inbox
        self._limiter = limiter
        self._stats = stats
        self._backoff = backoff or Backoff()
        self._stopping = threading.Event()
        self._run_name = secrets.token_hex(3)
        self.live = threading.Event()

    def stop(self) -> None:
        """End the connection in good order; `join` waits for it."""
        self._stopping.set()

    def run(self) -> None:
        """Connect, read until the connection ends, back off, and again."""
        number = 0
        while not self._stopping.is_set():
            self._enter(State.CONNECTING)
            self._stats.limiter_wait_s += self._limiter.wait(self._stopping)
            if self._stopping.is_set():
                break
            number += 1
            connection = Connection(f"{self._section}-{self._run_name}-{number}", self._markets)
            began_s = time.monotonic()
            try:
                cause, at_least_s = self._connect(connection)
            except Exception:  # noqa: BLE001 (nothing that comes over the wire may end a feed)
                _log.exception("feed_failed", section=self._section, connection=connection.name)
                cause, at_least_s = "feed_failed", 1.0
            if self._stopping.is_set():
                break
            if time.monotonic() - began_s >= GOOD_AFTER_S:
                self._backoff.reset()
            delay_s = self._backoff.next_s(at_least_s)
            self._stats.reconnects[cause] += 1
            _log.warning(
                "disconnected",
                section=self._section,
                connection=connection.name,
                cause=cause,
                retry_in_s=round(delay_s, 2),
            )
            self._enter(State.BACKING_OFF)
            self._stopping.wait(delay_s)

    def _connect(self, connection: Connection) -> tuple[str, float]:
        """Live one connection; return why it ended and how long to wait at least."""
        try:
            socket = _open(self._url)
        except websocket.WebSocketBadStatusException as error:
            return f"status_{error.status_code}", SLOW_DOWN_S.get(error.status_code, 0.0)
        except (websocket.WebSocketException, OSError, ValueError) as error:
            _log.info("connect_failed", section=self._section, url=self._url, error=str(error))
            return "connect_failed", 0.0
        try:
            socket.send(subscription_request(connection.name, connection.markets, self._depth))
            self._stats.connected += 1
            self._enter(State.SUBSCRIBED)
            self._inbox.put((time.time_ns() // 1000, connection, Signal.ALIVE))
            return self._read(socket, connection), 0.0
        except websocket.WebSocketConnectionClosedException:
            return "closed_1006", 0.0
        except websocket.WebSocketProtocolException as error:
            _log.warning("protocol_error", connection=connection.name, error=str(error))
            return "protocol_error", 0.0
        except (websocket.WebSocketException, ssl.SSLError, OSError) as error:
            _log.info("socket_failed", connection=connection.name, error=str(error))
            return "socket_failed", 0.0
        finally:
            self._inbox.put((time.time_ns() // 1000, connection, Signal.CLOSED))
            socket.shutdown()  # type: ignore[no-untyped-call]

    def _read(self, socket: _Socket, connection: Connection) -> str:
        watch = Watch(time.monotonic(), time.time())
        close_s: float | None = None
        socket.settimeout(POLL_S)
        while True:
            now_s = time.monotonic()
            if close_s is not None:
                if now_s >= close_s:
                    return "stopped"
            elif self._stopping.is_set():
                # What is on its way to us is still read: the exchange's own close comes behind it.
                socket.send(struct.pack("!H", websocket.STATUS_NORMAL), ABNF.OPCODE_CLOSE)
                close_s = now_s + CLOSE_TIMEOUT_S
            else:
                action = watch.due(now_s, time.time())
                if action is Action.GIVE_UP:
                    self._enter(State.STALLED)
                    return "stalled"
                if action is Action.PING:
                    socket.ping()
            try:
                opcode, frame = socket.recv_data_frame(control_frame=True)
            except websocket.WebSocketTimeoutException:
                continue
            watch.heard(time.monotonic())
            if opcode == ABNF.OPCODE_CLOSE:
                # Whatever was sent before it has arrived: as good a proof as a pong.
                self._hand_over(socket.received_ns // 1000, connection, Signal.ALIVE)
                code = struct.unpack_from("!H", frame.data)[0] if len(frame.data) >= 2 else 1005
                return f"closed_{code}"
            is_frame = opcode in (ABNF.OPCODE_BINARY, ABNF.OPCODE_TEXT)
            self._hand_over(socket.received_ns // 1000, connection, frame.data if is_frame else Signal.ALIVE)

    def _hand_over(self, received_us: int, connection: Connection, data: bytes | Signal) -> None:
        stats = self._stats
        stats.last_received_us = received_us
        self._inbox.put((received_us, connection, data))
        if isinstance(data, Signal):
            return
        stats.frames += 1
        stats.bytes += len(data)
        if not self.live.is_set() or stats.state is not State.LIVE:
            self.live.set()
            self._enter(State.LIVE)
        if self._inbox.qsize() > INBOX_FRAMES:
            self._wait_for_room()

    def _wait_for_room(self) -> None:
        # The exchange's bytes wait in the kernel meanwhile, and so nothing is thrown away here.
        began_s = time.monotonic()
        while self._inbox.qsize() > INBOX_FRAMES // 2:
            time.sleep(0.001)
        self._stats.backpressure_s += time.monotonic() - began_s

    def _enter(self, state: State) -> None:
        # A feed that was told to stop may have a successor, whose state it is then.
        if self._stats.state is not state and not self._stopping.is_set():
            _log.debug("state", section=self._section, was=self._stats.state.value, now=state.value)
            self._stats.state = state
