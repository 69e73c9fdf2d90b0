"""Raw objects of a sealed window: read once, checked against their commits, and handed on as lines.

Belongs here: what an object must be. Does not belong here: what its lines mean (`rows`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import zstandard
from crc32c import crc32c

from cryptostream_dagster.transforms.storage import ObjectGone, Storage
from ingest_services.errors import UserError
from ingest_services.lake.lines import decompress

_BREAK = ord("\n")


@dataclass(frozen=True, slots=True)
class RawObject:
    """A raw object of the window.

    Attributes:
        path: In the raw lake.
        ticker: Canonical ticker.
        chain: Chain of the commit that names it; part of the rows' order.
        rows: Lines that the commit says it has.
        bytes: Its size, as the commit says.
        crc32c: Of the object as stored, 8 hex digits, as the commit says.
    """

    path: str
    ticker: str
    chain: int
    rows: int
    bytes: int
    crc32c: str


def read_lines(raw: Storage, item: RawObject) -> Any:
    """Return an object's lines.

    Returns:
        An Arrow array of text over the object's content as it was read; a line that is not UTF-8 is NULL. The
        objects of a window are not put together: to copy them costs more than to type them piece by piece.

    Raises:
        ObjectGone: If it is missing.
        UserError: If it cannot be read, or has not the size, the checksum and the lines that its commit says.
    """
    import numpy as np
    import pyarrow as pa

    stored = raw.read(item.path)
    where = f"{raw.url}/{item.path}"
    if stored is None:
        raise ObjectGone(raw.url, item.path)
    if len(stored) != item.bytes:
        raise _altered(where, f"has {len(stored)} bytes, its commit says {item.bytes}")
    if (found := f"{crc32c(stored):08x}") != item.crc32c:
        raise _altered(where, f"has crc32c {found}, its commit says {item.crc32c}")
    try:
        content = decompress(item.path, stored)
    except zstandard.ZstdError as error:
        raise UserError(f"{where}: cannot be decompressed: {error}") from error
    breaks = np.flatnonzero(np.frombuffer(content, np.uint8) == _BREAK)
    offsets = np.zeros(len(breaks) + 1, np.int64)
    offsets[1:] = breaks + 1
    if len(breaks) != item.rows or offsets[-1] != len(content):
        raise UserError(
            f"{where}: has {len(breaks)} whole lines and {len(content) - offsets[-1]} bytes after them, "
            f"its commit says {item.rows} lines"
        )
    lines = pa.LargeStringArray.from_buffers(len(breaks), pa.py_buffer(offsets), pa.py_buffer(content))
    try:
        lines.validate(full=True)
    except pa.ArrowInvalid:
        return pa.array(map(_text, bytes(content).split(b"\n")[:-1]), pa.large_string())
    return lines


def _altered(where: str, what: str) -> UserError:
    """Say what is wrong with an object that is not what was written, and what to do."""
    return UserError(
        f"{where}: {what}. It was altered since: bring back what was written, then materialize the window "
        "again; until then it stays as it was built"
    )


def _text(line: bytes) -> str | None:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return None
