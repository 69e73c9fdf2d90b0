"""Raw objects of a sealed window: read once, checked against their commits, and handed on as lines.

Belongs here: what an object must be. Does not belong here: what its lines mean (`lines`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import zstandard
from crc32c import crc32c

from cryptostream_dagster.transforms.storage import ObjectGone, Storage
from ingest_services.errors import UserError
from ingest_services.lake.lines import decompress


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


def read_object(raw: Storage, item: RawObject) -> bytes:
    """Return an object's content, decompressed.

    Raises:
        ObjectGone: If it is missing.
        UserError: If it cannot be read, or has not the size and checksum that its commit says.
    """
    stored = raw.read(item.path)
    if stored is None:
        raise ObjectGone(raw.url, item.path)
    if len(stored) != item.bytes:
        raise UserError(f"{raw.url}/{item.path}: has {len(stored)} bytes, its commit says {item.bytes}")
    if (found := f"{crc32c(stored):08x}") != item.crc32c:
        raise UserError(f"{raw.url}/{item.path}: has crc32c {found}, its commit says {item.crc32c}")
    try:
        return decompress(item.path, stored)
    except zstandard.ZstdError as error:
        raise UserError(f"{raw.url}/{item.path}: cannot be decompressed: {error}") from error


def line_array(raw: Storage, items: Sequence[RawObject], contents: Sequence[bytes]) -> Any:
    """Return the lines of some objects, one after the other.

    Args:
        raw: The lake, for messages.
        items: The objects.
        contents: Of each, what `read_object` returned.

    Returns:
        An Arrow array of text, with the line breaks; a line that is not UTF-8 is NULL.

    Raises:
        UserError: If an object has not as many lines as its commit says.
    """
    import numpy as np
    import pyarrow as pa

    lengths: list[int] = []
    for item, content in zip(items, contents, strict=True):
        # Of the pieces the last is what follows the last line break: nothing.
        *found, rest = map(len, content.split(b"\n"))
        if rest or len(found) != item.rows:
            raise UserError(
                f"{raw.url}/{item.path}: has {len(found)} whole lines and {rest} bytes after them, "
                f"its commit says {item.rows} lines"
            )
        lengths += found
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(np.array(lengths, np.int64) + 1, out=offsets[1:])
    whole = b"".join(contents)
    array = pa.LargeStringArray.from_buffers(len(lengths), pa.py_buffer(offsets), pa.py_buffer(whole))
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        return pa.array(map(_text, whole.split(b"\n")[:-1]), pa.large_string())
    return array


def _text(line: bytes) -> str | None:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return None
