"""What was published, what was written to each socket, what was withheld, and how each connection ended.

The oracle of a chaos test: one JSON line for each, in the order in which they happened. A simulator without a
journal has none of this: no call, no memory. The lines are described in `docs/simulator.md`.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import orjson

from ingest_services.errors import UserError

_FILE_BUFFER = 1 << 20


class Journal:
    """Lines in a file, in memory, or both."""

    def __init__(self, path: Path | None = None, *, in_memory: bool = False) -> None:
        """Open the file; one of the same name is overwritten.

        Raises:
            UserError: If it cannot be written.
        """
        self.in_memory = in_memory
        # Connection (0: none's), kind and line.
        self._lines: list[tuple[int, str, bytes]] = []
        self._tickets: dict[int, str] = {}
        self._file: BinaryIO | None = None
        if path is not None:
            try:
                self._file = path.open("wb", buffering=_FILE_BUFFER)
            except OSError as error:
                raise UserError(f"--journal {path}: cannot be written ({error.strerror})") from error

    def published(self, market: str, tms: int) -> None:
        """A book came into the world, whoever is told of it."""
        self._write(0, "published", {"market": market, "tms": tms})

    def opened(self, connection: int) -> None:
        """A socket was accepted."""
        self._write(connection, "opened", {})

    def requested(self, connection: int, ticket: str) -> None:
        """A request for books came: those of the request before are told no more."""
        self._tickets[connection] = ticket
        self._write(connection, "requested", {})

    def subscribed(self, connection: int, codes: Sequence[str], stream_format: str) -> None:
        """The request took effect: from here on every book of its codes is sent or withheld."""
        self._write(connection, "subscribed", {"codes": codes, "format": stream_format})

    def left(self, connection: int) -> None:
        """The end of a connection has begun: it is told of no book any more."""
        self._write(connection, "left", {})

    def sent(self, connection: int, serial: int, what: str, market: str, tms: int, frame: bytes) -> None:
        """A data message was handed to the transport.

        Args:
            connection: Number of the connection.
            serial: 1, 2, 3 … for each data message of the connection.
            what: `book`, `duplicate`, `truncated`, `garbage`, `status`, `list` or `error`.
            market: Market code; empty if it is no book.
            tms: The book's stamp, ms since the epoch, whatever the frame says; 0 if it is no book.
            frame: The exact bytes.
        """
        fields: dict[str, object] = {"serial": serial, "what": what}
        if market:
            fields |= {"market": market, "tms": tms}
        try:
            fields["frame"] = frame.decode()
        except UnicodeDecodeError:
            fields["frame_base64"] = base64.b64encode(frame).decode()
        self._write(connection, "sent", fields)

    def withheld(self, connection: int, why: str, what: str, market: str, tms: int) -> None:
        """A message that would have been sent never will be."""
        fields: dict[str, object] = {"why": why, "what": what}
        if market:
            fields |= {"market": market, "tms": tms}
        self._write(connection, "withheld", fields)

    def ended(self, connection: int, how: str, sent: int, acknowledged: int | None) -> None:
        """A connection is over.

        Args:
            connection: Number of the connection.
            how: In words.
            sent: Serial of the last message that was written.
            acknowledged: Serial up to which the client's machine had acknowledged every byte when the end
                began; None if that is not known.
        """
        self._write(connection, "ended", {"how": how, "sent": sent, "acknowledged": acknowledged})
        self.flush()

    def fault(self, fault: Mapping[str, object], by: str, connections: Sequence[int]) -> None:
        """A fault struck some connections."""
        self._write(0, "fault", {"fault": fault, "by": by, "connections": connections})
        self.flush()

    def flush(self) -> None:
        """Hand the lines to the operating system."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Close the file; what comes after that is kept in memory only."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def lines(self, ticket: str | None = None, kind: str | None = None) -> Iterator[bytes]:
        """Yield the lines that are in memory.

        Args:
            ticket: Only of connections whose (last) ticket starts with this.
            kind: Only of this kind.
        """
        for connection, of_kind, line in self._lines:
            if kind is not None and of_kind != kind:
                continue
            if ticket is not None and not (
                connection and self._tickets.get(connection, "").startswith(ticket)
            ):
                continue
            yield line

    def _write(self, connection: int, kind: str, fields: dict[str, object]) -> None:
        head: dict[str, object] = {"at_us": time.time_ns() // 1000, "kind": kind}
        if connection:
            head |= {"connection": connection, "ticket": self._tickets.get(connection, "")}
        line = orjson.dumps(head | fields, option=orjson.OPT_APPEND_NEWLINE)
        if self._file is not None:
            self._file.write(line)
        if self.in_memory:
            self._lines.append((connection, kind, line))


def frame_of(line: Mapping[str, object]) -> bytes:
    """Return the exact bytes of a `sent` line."""
    if "frame_base64" in line:
        return base64.b64decode(str(line["frame_base64"]))
    return str(line["frame"]).encode()


def read_journal(path: Path) -> list[dict[str, object]]:
    """Read a journal's file; a last line that was not written to its end is left out."""
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    return [orjson.loads(line) for line in whole.split(b"\n") if line]
