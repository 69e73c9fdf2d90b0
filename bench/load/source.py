"""A WebSocket server that sends prepared frames at a chosen pace to whoever subscribes; a process of its own.

A raw socket, and frames that are put together from pieces: it takes little away from what is measured. What
it is not: an exchange (`cryptostream simulate` is).

    source.py --pace 1000 --count 30000      prints {"port": …} at once, {"sent": …} after each connection

Numbering goes on from one connection to the next, so a frame's serial is unique in one run.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import select
import socket
import struct
import sys
import time
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[1]))

from load.frames import Frames

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_BURST = 128


def accept(connection: socket.socket) -> None:
    """Shake hands and read the subscription."""
    request = b""
    while b"\r\n\r\n" not in request:
        request += connection.recv(4096)
    key = next(
        line.split(b":", 1)[1].strip()
        for line in request.split(b"\r\n")
        if line.lower().startswith(b"sec-websocket-key:")
    )
    answer = base64.b64encode(hashlib.sha1(key + _GUID).digest())
    connection.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + answer + b"\r\n\r\n"
    )


class Client:
    """One connection: frames out, control frames and the subscription in."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.subscribed = False
        self.gone = False
        self._received = bytearray()

    def read(self, timeout_s: float) -> None:
        """Take what the client says, if it says something in that time."""
        if not select.select([self.connection], [], [], timeout_s)[0]:
            return
        try:
            data = self.connection.recv(65536)
        except OSError:
            data = b""
        if not data:
            self.gone = True
        self._received += data
        while (message := self._message()) is not None:
            opcode, payload = message
            if opcode in (1, 2):
                self.subscribed = True
            elif opcode == 9:
                self.send(bytes((0x8A, len(payload))) + payload)
            elif opcode == 8:
                self.send(bytes((0x88, len(payload))) + payload)
                self.gone = True

    def send(self, data: bytes) -> bool:
        try:
            self.connection.sendall(data)
        except OSError:
            self.gone = True
        return not self.gone

    def _message(self) -> tuple[int, bytes] | None:
        data = self._received
        if len(data) < 2:
            return None
        length, at = data[1] & 0x7F, 2
        if length == 126:
            length, at = int.from_bytes(data[2:4], "big"), 4
        elif length == 127:
            length, at = int.from_bytes(data[2:10], "big"), 10
        if len(data) < at + 4 + length:
            return None
        mask = (bytes(data[at : at + 4]) * (length // 4 + 1))[:length]
        payload = bytes(a ^ b for a, b in zip(data[at + 4 : at + 4 + length], mask, strict=True))
        opcode = data[0] & 0x0F
        del data[: at + 4 + length]
        return opcode, payload


def websocket_frame(payload: bytes) -> bytes:
    return struct.pack("!BBH", 0x82, 126, len(payload)) + payload


class Source:
    """Sends to one client at a time."""

    def __init__(self, frames: Frames, pace: float, count: int) -> None:
        self._frames = frames
        self._pace = pace
        self._count = count
        self._next = 0

    def serve(self, connection: socket.socket) -> None:
        """Send until all is sent or the client goes; then answer until it goes."""
        accept(connection)
        client = Client(connection)
        while not (client.subscribed or client.gone):
            client.read(1.0)
        first, began_s = self._next, time.monotonic()
        while not client.gone:
            due = self._count
            if self._pace:
                due = min(due, first + int((time.monotonic() - began_s) * self._pace) + 1)
            if self._next < due:
                burst = min(due - self._next, _BURST)
                tms = time.time_ns() // 1_000_000
                frame = self._frames.frame
                data = b"".join(
                    [websocket_frame(frame(serial, tms)) for serial in range(self._next, self._next + burst)]
                )
                if not client.send(data):
                    # Part of it may have arrived: whole frames of it are in Kafka, and no other is missing.
                    break
                self._next += burst
                client.read(0)
            elif self._next >= self._count:
                client.read(0.5)
            else:
                client.read(max(0.0, began_s + (self._next - first) / self._pace - time.monotonic()))
        print(json.dumps({"sent": self._next, "seconds": time.monotonic() - began_s}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pace", type=float, default=0.0, help="frames/s; 0 is as fast as they are taken")
    parser.add_argument("--count", type=int, required=True, help="frames in all")
    arguments = parser.parse_args()
    source = Source(Frames(), arguments.pace, arguments.count)
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(json.dumps({"port": server.getsockname()[1]}), flush=True)
        while True:
            connection, _ = server.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with connection:
                source.serve(connection)


if __name__ == "__main__":
    main()
