"""What Parquet objects hold, as their footers tell it: a few kilobytes an object, whatever its rows.

Belongs here: whether the objects of a window are what `schema.py` declares and have the rows that were
written, and whether their times are the window's. Does not belong here: what was written, which the warehouse
knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

from cryptostream_dagster.transforms.schema import Column, arrow_schema, book_columns
from cryptostream_dagster.transforms.storage import Storage
from cryptostream_dagster.window import Window

# Requests at once, where the objects are not files of this machine.
_THREADS = 16


@dataclass(frozen=True, slots=True)
class Footer:
    """What the end of an object says.

    Attributes:
        path: The object, relative to its root.
        metadata: A `pyarrow.parquet.FileMetaData`; None if it cannot be read.
        fault: Why not.
    """

    path: str
    metadata: Any
    fault: str = ""


def read_footers(parquet: Storage, paths: Sequence[str]) -> list[Footer]:
    """Return the objects' footers, in order; one that cannot be read is one that says so."""
    import pyarrow as pa
    from pyarrow import dataset

    # By way of a fragment: `parquet.read_metadata` holds up all threads while it asks a bucket for a size.
    objects = dataset.ParquetFileFormat()

    def read(path: str) -> Footer:
        try:
            fragment = objects.make_fragment(parquet.locate(path), filesystem=parquet.filesystem)
            fragment.ensure_complete_metadata()
            return Footer(path, fragment.metadata)
        except (OSError, pa.ArrowException) as error:
            return Footer(path, None, f"cannot be read ({' '.join(str(error).split())})")

    if parquet.is_local:
        return [read(path) for path in paths]
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(read, paths))


def undeclared(footers: Sequence[Footer]) -> list[str]:
    """Return what is not as declared, a sentence an object: `BTC-….parquet: bid_size1 is -3, not >= 0`.

    Which columns there are, of which kind, and where NULL may be is the file's own schema; the bounds are
    compared with the least and the greatest value of every row group.
    """
    found = []
    for footer in footers:
        faults = [footer.fault] if footer.metadata is None else _faults(footer.metadata)
        if faults:
            found.append(f"{_name(footer.path)}: {', '.join(faults)}")
    return found


def miscounted(footers: Sequence[Footer], written: Mapping[str, int]) -> list[str]:
    """Return the objects that do not hold the rows that were written, a sentence each.

    Args:
        footers: Of the objects.
        written: Rows by path.
    """
    found = []
    for footer in footers:
        name, expected = _name(footer.path), written[footer.path]
        if footer.metadata is None:
            found.append(f"{name}: {footer.fault}")
        elif footer.metadata.num_rows != expected:
            found.append(f"{name}: holds {footer.metadata.num_rows} rows, {expected} were written")
    return found


def outside(parquet: Storage, footers: Sequence[Footer], window: Window) -> list[str]:
    """Return the objects with a book that is not of the window, a sentence each.

    A REALTIME book is of the window that its stamp lies in, a SNAPSHOT of the one in which it was received:
    its stamp may be minutes old. Where both are in one object, the footer may not be able to tell; then the
    three columns are read.
    """
    found = []
    for footer in footers:
        if footer.metadata is None:
            found.append(f"{_name(footer.path)}: {footer.fault}")
            continue
        strays = _strays(parquet, footer, window)
        if strays:
            found.append(f"{_name(footer.path)}: {strays}")
    return found


def _faults(metadata: Any) -> list[str]:
    schema = metadata.schema.to_arrow_schema()
    try:
        # As many levels as the object was written with: DEPTH may be another by now.
        declared, bounded = _declared(int((schema.metadata or {})[b"cryptostream.depth"]))
    except (KeyError, ValueError):
        return ["does not say how deep its books are: no object of ours"]
    if not schema.equals(declared):
        return ["has other columns than the declared ones"]
    faults = []
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for number, column in bounded:
            statistics = row_group.column(number).statistics
            if statistics is None or not statistics.has_min_max:
                continue  # nothing but NULL
            for value in (statistics.min, statistics.max):
                if not _fits(value, column):
                    # + 0: statistics call a least value of 0 "-0.0".
                    shown = value + 0 if isinstance(value, float) else value
                    faults.append(f"{column.name} is {shown}, not {' and '.join(column.bounds)}")
                    break
    return faults


@cache
def _declared(depth: int) -> tuple[Any, list[tuple[int, Column]]]:
    columns = book_columns(depth)
    return arrow_schema(columns), [(n, column) for n, column in enumerate(columns) if column.bounds]


def _fits(value: Any, column: Column) -> bool:
    if column.one_of:
        return value in column.one_of
    return not (
        (column.above is not None and value <= column.above)
        or (column.least is not None and value < column.least)
        or (column.most is not None and value > column.most)
    )


def _strays(parquet: Storage, footer: Footer, window: Window) -> str:
    kinds, stamps, received = (_range(footer.metadata, name) for name in _TIMES)
    if kinds is None or stamps is None or received is None:
        return "no row, or no statistics"

    def within(times: tuple[Any, Any]) -> bool:
        return bool(window.start <= times[0] and times[1] < window.end)

    if within(stamps) and within(received):
        return ""
    if kinds == ("REALTIME", "REALTIME"):
        strays = not within(stamps)
    elif kinds == ("SNAPSHOT", "SNAPSHOT"):
        strays = not within(received)
    else:
        strays = _count_strays(parquet, footer.path, window) > 0
    return f"stamped {stamps[0]} to {stamps[1]}, received {received[0]} to {received[1]}" if strays else ""


_TIMES = ("stream_type", "exchange_time", "received_time")


def _range(metadata: Any, name: str) -> tuple[Any, Any] | None:
    number = metadata.schema.names.index(name) if name in metadata.schema.names else -1
    ranges = [
        (statistics.min, statistics.max)
        for group in range(metadata.num_row_groups if number >= 0 else 0)
        if (statistics := metadata.row_group(group).column(number).statistics) and statistics.has_min_max
    ]
    return (min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else None


def _count_strays(parquet: Storage, path: str, window: Window) -> int:
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import parquet as pq

    table = pq.read_table(
        parquet.locate(path), columns=list(_TIMES), filesystem=parquet.filesystem, partitioning=None
    )
    kinds, stamps, received = (table[name] for name in _TIMES)
    times = pc.if_else(pc.equal(kinds, "REALTIME"), stamps, received)
    start, end = (pa.scalar(time, times.type) for time in (window.start, window.end))
    within = pc.and_(pc.greater_equal(times, start), pc.less(times, end))
    return int(pc.sum(pc.invert(within)).as_py() or 0)


def _name(path: str) -> str:
    return path.rpartition("/")[2]
