"""A connection's transport: ways to cut it, and how much of what was written the client's machine has.

Knows bytes and sockets, no protocol but the header of a WebSocket message.
"""

from __future__ import annotations

import array
import asyncio
import socket
import struct
import sys
from collections import deque

_OUTQ = 0x5411  # SIOCOUTQ of Linux: bytes in the send queue that were not acknowledged
_TCP_CLOSE = 7
_TCP_CLOSE_WAIT = 8
# More than this is never unacknowledged: the kernel's send buffer and the transport's own are smaller.
_TRACKED_BYTES = 64 << 20


def binary_header(length: int) -> bytes:
    """Return what stands before a binary WebSocket message of so many bytes (RFC 6455, 5.2)."""
    if length < 126:
        return struct.pack("!BB", 0x82, length)
    if length < 1 << 16:
        return struct.pack("!BBH", 0x82, 126, length)
    return struct.pack("!BBQ", 0x82, 127, length)


class Wire:
    """One TCP connection, as the server sees it."""

    def __init__(self, transport: asyncio.Transport, *, track: bool) -> None:
        """Take an accepted connection on which nothing was written since the handshake.

        Args:
            transport: Its transport.
            track: Remember where each message ends, for `acknowledged`.
        """
        self._transport = transport
        self._socket: socket.socket = transport.get_extra_info("socket")
        self._track = track
        self._written = 0
        # (bytes written up to its end, serial)
        self._ends: deque[tuple[int, int]] = deque()
        self._last_known = 0

    @property
    def closing(self) -> bool:
        """Whether nothing can be written any more."""
        return self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Write bytes as they are; `wrote` is to be told of them at the end of their message."""
        self._transport.write(data)

    def wrote(self, size: int, serial: int | None = None) -> None:
        """Hear that a message was written.

        Args:
            size: Its bytes, header included.
            serial: Its number; None for a pong.
        """
        if not self._track:
            return
        self._written += size
        if serial is None:
            return
        self._ends.append((self._written, serial))
        while self._ends[0][0] < self._written - _TRACKED_BYTES:
            self._last_known = self._ends.popleft()[1]

    def unacknowledged_bytes(self) -> int:
        """Return how many of the bytes that were written the client's machine has not acknowledged.

        Elsewhere than on Linux, or once the socket is closed, that is not known, and the answer is what the
        transport holds back.
        """
        waiting = self._transport.get_write_buffer_size()
        return waiting + (self._send_queue() or 0)

    def acknowledged(self) -> int | None:
        """Return the last serial of which the client's machine acknowledged every byte; None if not known."""
        if not self._track or (queued := self._send_queue()) is None:
            return None
        arrived = self._written - queued - self._transport.get_write_buffer_size()
        last = self._last_known
        for end, serial in self._ends:
            if end > arrived:
                break
            last = serial
        return last

    def stop_reading(self) -> None:
        """Leave whatever the client sends in the kernel."""
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def peer_is_gone(self) -> bool:
        """Tell whether the client has closed its end, as far as the kernel can say (Linux)."""
        if self._transport.is_closing() or self._socket.fileno() < 0:
            return True
        if sys.platform != "linux":
            return False
        state = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        return state in (_TCP_CLOSE, _TCP_CLOSE_WAIT)

    def cut(self) -> None:
        """End the connection with a FIN: what the kernel has still arrives, nothing after it."""
        self._transport.abort()

    def reset(self) -> None:
        """End the connection with an RST."""
        if not self._transport.is_closing() and self._socket.fileno() >= 0:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def _send_queue(self) -> int | None:
        if sys.platform != "linux" or self._socket.fileno() < 0:
            return None
        import fcntl

        size = array.array("i", [0])
        try:
            fcntl.ioctl(self._socket.fileno(), _OUTQ, size)
        except OSError:
            return None
        return size[0]
