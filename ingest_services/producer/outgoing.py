"""One record on its way to Kafka, and its form on disk while it has to wait."""

from __future__ import annotations

import struct
from typing import NamedTuple

from ingest_services.record import Headers

_FIXED = struct.Struct("<QHB")
_HEADER = struct.Struct("<BH")


class Outgoing(NamedTuple):
    """A Kafka record before it has an offset.

    Attributes:
        received_us: When it was received (a heartbeat: made), µs since the epoch; in ms, its timestamp.
        key: Ticker; empty for garbage; a heartbeat's section.
        headers: As `record.headers_of` makes them.
        value: The frame's bytes, or the heartbeat's.
    """

    received_us: int
    key: bytes
    headers: Headers
    value: bytes

    def pack(self) -> bytes:
        """Return the record as bytes for the spool."""
        parts = [_FIXED.pack(self.received_us, len(self.key), len(self.headers)), self.key]
        for name, content in self.headers:
            encoded = name.encode()
            parts += (_HEADER.pack(len(encoded), len(content)), encoded, content)
        parts.append(self.value)
        return b"".join(parts)

    @classmethod
    def unpack(cls, packed: bytes) -> Outgoing:
        """Read what `pack` made. The spool's checksum vouches for the bytes."""
        received_us, key_length, count = _FIXED.unpack_from(packed)
        at = _FIXED.size
        key, at = packed[at : at + key_length], at + key_length
        headers: Headers = []
        for _ in range(count):
            name_length, content_length = _HEADER.unpack_from(packed, at)
            at += _HEADER.size
            name, at = packed[at : at + name_length].decode(), at + name_length
            content, at = packed[at : at + content_length], at + content_length
            headers.append((name, content))
        return cls(received_us, key, headers, packed[at:])
