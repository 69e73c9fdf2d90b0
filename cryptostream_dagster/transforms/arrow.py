"""Between Arrow and numpy, without a copy and without pandas.

`pa.array`, `pa.scalar`, Arrow's `to_numpy`, and what goes by way of them, import pandas, to ask whether what
they were given is one of its own: 0.2 s between a window's end and its candles, in which all threads wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Numbers = npt.NDArray[Any]


def to_arrow(kind: Any, values: Numbers, bits: Numbers | None = None) -> Any:
    """Return numbers as an Arrow array.

    Args:
        kind: Arrow's type, of as many bytes as numpy's.
        values: In one piece.
        bits: Which of them are not NULL, eight a byte, the first the lowest; None: all of them.
    """
    return pa.Array.from_buffers(
        kind, len(values), [None if bits is None else pa.py_buffer(bits), pa.py_buffer(values)]
    )


def texts_to_arrow(texts: Sequence[str], which: Numbers) -> Any:
    """Return texts, chosen by their numbers, as an Arrow array."""
    encoded = [text.encode() for text in texts]
    ends = np.zeros(len(texts) + 1, np.int32)
    ends[1:] = np.cumsum([len(text) for text in encoded])
    once = pa.StringArray.from_buffers(len(texts), pa.py_buffer(ends), pa.py_buffer(b"".join(encoded)))
    return once.take(to_arrow(pa.int64(), which))


def to_numpy(array: Any) -> Numbers:
    """Return the numbers of an Arrow array; what is in place of NULL is none of them."""
    values = array.buffers()[1]
    bare = pa.Array.from_buffers(array.type, len(array), [None, values], offset=array.offset)
    return np.from_dlpack(bare)


def is_there(array: Any) -> Numbers:
    """Return which values of an Arrow array are not NULL."""
    if array.null_count == 0:
        return np.ones(len(array), bool)
    bits = np.frombuffer(array.buffers()[0], np.uint8)
    start = array.offset
    return np.unpackbits(bits, count=start + len(array), bitorder="little")[start:].astype(bool)
