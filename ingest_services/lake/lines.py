"""One line of a raw object: the untouched bytes of a record, wrapped, spliced rather than re-serialised."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Literal

import orjson
import zstandard

# Lines that are handed to the compressor at once: the whole object need not be in memory twice.
PIECE = 64
# Uploads are many, because they wait for the store; to pack takes the processor, and megabytes of tables for
# each that is at it. Level 3 is the library's default: twice the speed of 6 for 4 % more bytes on order
# books.
_COMPRESSORS: SimpleQueue[zstandard.ZstdCompressor] = SimpleQueue()
for _ in range(os.cpu_count() or 1):
    _COMPRESSORS.put(zstandard.ZstdCompressor(level=3))


def book_line(partition: int, offset: int, received_us: int, connection: str, frame: bytes) -> bytes:
    """Wrap a frame that is one JSON value without a line break."""
    return _open(partition, offset, received_us, connection) + b',"book":' + frame + b"}\n"


def heartbeat_line(partition: int, offset: int, received_us: int, connection: str, value: bytes) -> bytes:
    """Wrap a heartbeat's value."""
    return _open(partition, offset, received_us, connection) + b',"heartbeat":' + value + b"}\n"


def quarantine_line(
    partition: int,
    offset: int,
    received_us: int,
    connection: str,
    reason: str,
    key: bytes | None,
    value: bytes | None,
) -> bytes:
    """Wrap a record that is not understood: its key and value in base64, and why."""
    rest = orjson.dumps({"reason": reason, "key": _encode(key), "value": _encode(value)})
    return _open(partition, offset, received_us, connection) + b"," + rest[1:] + b"\n"


_SPLICED: tuple[Literal["book", "heartbeat"], ...] = ("book", "heartbeat")


@dataclass(frozen=True, slots=True)
class Line:
    """What one line says.

    Attributes:
        kind: `book`, `heartbeat` or `quarantine`.
        partition: Kafka partition.
        offset: Kafka offset.
        received_us: Receive time, µs since the epoch.
        connection: The connection that received it.
        value: The record's value, untouched.
        key: The record's key, of what is in quarantine; it is not kept of the others.
        reason: Why it is in quarantine; empty for the others.
    """

    kind: Literal["book", "heartbeat", "quarantine"]
    partition: int
    offset: int
    received_us: int
    connection: str
    value: bytes | None
    key: bytes | None = None
    reason: str = ""


def read_line(line: bytes) -> Line:
    """Undo `book_line`, `heartbeat_line` and `quarantine_line`; the line break may be missing.

    Raises:
        ValueError: If it is no line of a raw object.
    """
    line = line.rstrip(b"\n")
    try:
        message = orjson.loads(line)
        partition, offset, received_us = (message[name] for name in ("partition", "offset", "received_us"))
        connection = message["connection"]
        typed = all(type(number) is int for number in (partition, offset, received_us))
        kind = next((kind for kind in _SPLICED if kind in message), None)
        if kind is not None:
            # In the JSON text of the connection's name a quote is escaped: the first one is the marker.
            marker = b',"%s":' % kind.encode()
            value = line[line.index(marker) + len(marker) : -1]
            read = Line(kind, partition, offset, received_us, connection, value)
        else:
            key, kept = _decode(message["key"]), _decode(message["value"])
            read = Line(
                "quarantine", partition, offset, received_us, connection, kept, key, str(message["reason"])
            )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a line of a raw object: {error!r}") from error
    if not typed or not isinstance(connection, str):
        raise ValueError("not a line of a raw object: partition, offset, time or connection of another type")
    return read


def _decode(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text, validate=True)


def pack(content: Sequence[bytes], suffix: str) -> bytes:
    """Return an object's content, compressed as its suffix says; the frame header holds the content's size.

    Args:
        content: The lines.
        suffix: One of `layout.SUFFIXES`' values, or a path that ends in it.
    """
    if not suffix.endswith(".zst"):
        return b"".join(content)
    compressor = _COMPRESSORS.get()
    try:
        packing = compressor.compressobj(size=sum(map(len, content)))
        packed = [
            packing.compress(b"".join(content[start : start + PIECE]))
            for start in range(0, len(content), PIECE)
        ]
        return b"".join((*packed, packing.flush()))
    finally:
        _COMPRESSORS.put(compressor)


def decompress(path: str, data: bytes) -> bytes:
    """Undo `pack`, by the path's ending.

    Raises:
        zstandard.ZstdError: If the object is damaged.
    """
    return zstandard.decompress(data) if path.endswith(".zst") else data


def _open(partition: int, offset: int, received_us: int, connection: str) -> bytes:
    return b'{"partition":%d,"offset":%d,"received_us":%d,"connection":%s' % (
        partition,
        offset,
        received_us,
        orjson.dumps(connection),
    )


def _encode(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode("ascii")
