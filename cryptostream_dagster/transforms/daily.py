"""A closed day's Parquet objects of a ticker → one file: the rows of the windows one after the other.

Belongs here: writing such a file, and reading back what it holds of which window. Does not belong here: which
days are closed or want writing (`catalog.days`), Postgres, Dagster. The page is docs/daily.md.

A file says of each window which object its rows are from: version, size, and when it was last modified.
Whoever has both roots can tell without a third party whether that object is still the one that is there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import orjson

from cryptostream_dagster.day import Day
from cryptostream_dagster.transforms.books import parquet_path
from cryptostream_dagster.transforms.duck import open_duckdb
from cryptostream_dagster.transforms.storage import CONNECTIONS, Stamp, Storage
from cryptostream_dagster.window import Window
from ingest_services.errors import UserError

# A row group ends with the window that reaches this many rows, so that no window lies in two. Reading five
# minutes costs about one group, and the footer stays small beside the data.
GROUP_ROWS = 8192

_PREFIX = b"cryptostream."


@dataclass(frozen=True, slots=True)
class Part:
    """A window's object of a ticker, as it was recorded when it was built.

    Attributes:
        window: The window.
        path: The object, relative to PARQUET_URL.
        version: Version of the seal that it was built from.
        digest: That seal's digest.
        rows: Its rows.
        bytes: Its size.
    """

    window: Window
    path: str
    version: int
    digest: str
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Held:
    """What a daily file holds of one window: rows [first_row, first_row + rows) of the file.

    Attributes:
        window: The window.
        version: Version of the object that they are from.
        first_row: Number of the first one.
        rows: How many.
        stamp: Of the object that they are from.
    """

    window: Window
    version: int
    first_row: int
    rows: int
    stamp: Stamp


class DayChangedError(UserError):
    """A window of the day was built again while the day was being written."""


def daily_path(ticker: str, day: Day) -> str:
    """Return where a ticker's file of a day is, relative to DAILY_URL."""
    return f"ticker={ticker}/{day.date:year=%Y/month=%m}/{ticker}-{day.date:%Y%m%d}.parquet"


def window_stamps(parquet: Storage, ticker: str, day: Day) -> dict[str, Stamp]:
    """Return the windows' objects of a ticker and day by path relative to PARQUET_URL: one listing.

    Raises:
        UserError: If they cannot be listed.
    """
    folder = parquet_path(ticker, Window(day.start), day.zone).rpartition("/hour=")[0]
    # What a writer has beside its place for a moment is no object yet.
    return {path: stamp for path, stamp in parquet.stamps(folder).items() if path.endswith(".parquet")}


def where_rows_are(
    ticker: str,
    windows: Iterable[Window],
    reader: DayReader | None,
    stamps: Mapping[str, Stamp],
    zone: ZoneInfo,
) -> list[tuple[Window, Window] | str]:
    """Say where to read the books of some windows of a day, each exactly once.

    A window is read from the daily file if that holds it, and its object is the very one that the file was
    made from, or is not there (any more, or in this copy). Otherwise from its object: it was built since.

    Args:
        ticker: Canonical ticker.
        windows: In order.
        reader: The day's file; None: there is none.
        stamps: The windows' objects, listed after the file was opened.
        zone: The market's time zone.

    Returns:
        In order of time: the first and the last window of a stretch of the daily file, or an object's path.
    """
    pieces: list[tuple[Window, Window] | str] = []
    for window in windows:
        path = parquet_path(ticker, window, zone)
        stamp = stamps.get(path)
        held = reader.held.get(window) if reader else None
        if held is not None and stamp in (None, held.stamp):
            last = pieces[-1] if pieces else None
            pieces[-1:] = [(last[0], window)] if isinstance(last, tuple) else [*pieces[-1:], (window, window)]
        elif stamp is not None:
            pieces.append(path)
    return pieces


class DayWriter:
    """Writes daily files with one set of limits; may be used by several threads at once.

    Args:
        parquet: Where the windows' objects are.
        daily: Where the files go.
        memory_mb: Of one file's DuckDB session, MiB.
        group_rows: Rows after which a row group ends.
    """

    def __init__(
        self, parquet: Storage, daily: Storage, memory_mb: int = 256, group_rows: int = GROUP_ROWS
    ) -> None:
        self._parquet = parquet
        self._daily = daily
        self._memory_mb = memory_mb
        self._group_rows = group_rows

    def write(self, ticker: str, day: Day, parts: Sequence[Part], provenance: Mapping[str, str]) -> int:
        """Write a ticker's file of a day, replaced whole; a row group is in memory at a time.

        Args:
            ticker: Canonical ticker.
            day: The day.
            parts: Its windows' objects, in order of time; at least one.
            provenance: Key-value pairs that go into the file's metadata.

        Returns:
            The file's size in bytes.

        Raises:
            DayChangedError: If an object was built again since `parts` were read.
            UserError: If an object is missing or is not what was recorded, or the file cannot be written.
        """
        before = window_stamps(self._parquet, ticker, day)
        for part in parts:
            self._check(part, before.get(part.path))
        metadata = {
            **provenance,
            "ticker": ticker,
            "day": str(day),
            "time_zone": day.zone.key,
            "day_start": day.start.isoformat(),
            "day_end": day.end.isoformat(),
            "windows": _write_held(parts, before),
        }
        with tempfile.TemporaryDirectory(prefix="cryptostream-") as scratch:
            file = Path(scratch) / "day.parquet"
            self._write_local(file, parts, metadata, Path(scratch))
            # Whoever replaces an object replaces its stamp: what was read is what was listed, or it shows.
            if window_stamps(self._parquet, ticker, day) != before:
                raise DayChangedError(
                    f"{ticker} {day}: a window was built again while the day was being written"
                )
            size = file.stat().st_size
            self._put(daily_path(ticker, day), file)
        return size

    def _check(self, part: Part, stamp: Stamp | None) -> None:
        if stamp is None or stamp.bytes != part.bytes:
            found = (
                "is not there" if stamp is None else f"has {stamp.bytes} bytes, {part.bytes} were recorded"
            )
            raise UserError(
                f"{self._parquet.url}/{part.path}: {found}; materialize orderbook_parquet of its window again"
            )

    def _put(self, path: str, file: Path) -> None:
        import pyarrow as pa

        # Mapped, not read: a busy ticker's day is larger than what should be in memory at a time.
        with pa.memory_map(str(file)) as mapped:
            self._daily.write(path, mapped.read_buffer())

    def _write_local(
        self, file: Path, parts: Sequence[Part], metadata: Mapping[str, str], scratch: Path
    ) -> None:
        import pyarrow as pa

        session = open_duckdb(1, self._memory_mb, scratch / "spill", in_order=True)
        try:
            # Nearly always once: again where DEPTH went up in the course of the day.
            schema: Any = None
            while (wider := self._try(session, file, parts, metadata, schema, scratch)) is not schema:
                schema = wider
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{self._parquet.url}: {' '.join(str(error).split())}") from error
        finally:
            session.close()

    def _try(
        self,
        session: Any,
        file: Path,
        parts: Sequence[Part],
        metadata: Mapping[str, str],
        schema: Any,
        scratch: Path,
    ) -> Any:
        """Write with a schema and return it; or return a wider one as soon as a window needs that."""
        from pyarrow import parquet

        texts: list[str] = []
        writer = None
        try:
            for group in _groups(parts, self._group_rows):
                with tempfile.TemporaryDirectory(dir=scratch) as folder:
                    files = self._fetch(group, Path(folder))
                    wider = self._merged(schema, group, files)
                    if wider is not schema:
                        return wider
                    table = self._read(session, group, files)
                if writer is None:
                    texts = [field.name for field in schema if str(field.type) == "string"]
                    described = schema.with_metadata(
                        {_PREFIX + name.encode(): value for name, value in metadata.items()}
                    )
                    # Prices and sizes hardly repeat: a dictionary of them costs time and space.
                    writer = parquet.ParquetWriter(
                        file, described, compression="zstd", use_dictionary=texts, write_statistics=True
                    )
                writer.write_table(_fit(table, described), row_group_size=max(table.num_rows, 1))
        finally:
            if writer is not None:
                writer.close()
        return schema

    def _fetch(self, group: Sequence[Part], into: Path) -> list[Path]:
        """Return files of this machine with the objects' contents."""
        if self._parquet.is_local:
            return [Path(self._parquet.locate(part.path)) for part in group]

        def fetch(part: Part) -> Path:
            file = into / part.path.rpartition("/")[2]
            content = self._parquet.read(part.path)
            if content is not None:  # one that went away is missed by whoever reads it next
                file.write_bytes(content)
            return file

        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return list(pool.map(fetch, group))

    def _merged(self, schema: Any, group: Sequence[Part], files: Sequence[Path]) -> Any:
        """Return a schema that also these files fit: the given one if it does. Checks whose they are."""
        from pyarrow import parquet

        for part, file in zip(group, files, strict=True):
            try:
                found = parquet.read_schema(file)
            except FileNotFoundError as error:
                raise DayChangedError(f"{self._parquet.url}/{part.path}: went away meanwhile") from error
            except (OSError, ValueError) as error:
                raise UserError(
                    f"{self._parquet.url}/{part.path}: is no Parquet ({' '.join(str(error).split())}); "
                    "materialize orderbook_parquet of its window again"
                ) from error
            metadata = found.metadata or {}
            if metadata.get(_PREFIX + b"digest") != part.digest.encode():
                raise DayChangedError(
                    f"{self._parquet.url}/{part.path}: is not of version {part.version}: its window was "
                    "built again meanwhile"
                )
            schema = _wider(schema, found.remove_metadata())
        return schema

    def _read(self, session: Any, group: Sequence[Part], files: Sequence[Path]) -> Any:
        import duckdb

        # DuckDB takes a quarter of Arrow's time over many small files. What folders are called is no data,
        # and would replace the columns of that name.
        query = "FROM read_parquet($files, hive_partitioning = false, union_by_name = true)"
        try:
            table = session.sql(query, params={"files": [str(file) for file in files]}).to_arrow_table()
        except duckdb.Error as error:
            if isinstance(error, duckdb.OutOfMemoryException):
                raise
            raise UserError(f"{self._parquet.url}: {' '.join(str(error).split())}") from error
        expected = sum(part.rows for part in group)
        if table.num_rows != expected:
            raise DayChangedError(
                f"{self._parquet.url}/{group[0].path} and {len(group) - 1} more have {table.num_rows} rows, "
                f"{expected} were recorded"
            )
        return table


class DayReader:
    """A daily file, opened for reading.

    Args:
        file: A `pyarrow.parquet.ParquetFile`.
        url: Where it is, for messages.

    Raises:
        UserError: If it is no daily file.
    """

    def __init__(self, file: Any, url: str) -> None:
        self._file = file
        self._url = url
        metadata = file.schema_arrow.metadata or {}
        try:
            self.held = {held.window: held for held in _read_held(metadata[_PREFIX + b"windows"])}
        except (KeyError, ValueError, TypeError) as error:
            raise _unreadable(url, "is no daily file of ours") from error

    @classmethod
    def open(cls, daily: Storage, ticker: str, day: Day) -> DayReader | None:
        """Open a ticker's file of a day; None if there is none.

        Raises:
            UserError: If it cannot be read or is no daily file.
        """
        import pyarrow as pa
        from pyarrow import parquet

        path = daily_path(ticker, day)
        try:
            file = parquet.ParquetFile(daily.filesystem.open_input_file(daily.locate(path)))
        except FileNotFoundError:
            return None
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(f"{daily.url}/{path}", error) from error
        return cls(file, f"{daily.url}/{path}")

    def read(self, first: Window, last: Window) -> Any:
        """Return the rows from one window that it holds to another; reads only their row groups.

        Raises:
            UserError: If they cannot be read.
        """
        import pyarrow as pa

        begin = self.held[first].first_row
        end = self.held[last].first_row + self.held[last].rows
        groups, start, skipped = [], 0, 0
        for number in range(self._file.num_row_groups):
            stop = start + self._file.metadata.row_group(number).num_rows
            if stop <= begin:
                skipped = stop
            elif start < end:
                groups.append(number)
            start = stop
        try:
            table = self._file.read_row_groups(groups)
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(self._url, error) from error
        return table.slice(begin - skipped, end - begin).replace_schema_metadata()

    def close(self) -> None:
        """Close the file."""
        self._file.close(force=True)


def _unreadable(url: str, why: object) -> UserError:
    return UserError(f"{url}: {' '.join(str(why).split())}; materialize orderbook_daily of its day again")


def _groups(parts: Sequence[Part], least_rows: int) -> Iterator[list[Part]]:
    """Cut windows into row groups: each ends with the window that reaches so many rows."""
    group: list[Part] = []
    rows = 0
    for part in parts:
        group.append(part)
        rows += part.rows
        if rows >= least_rows:
            yield group
            group, rows = [], 0
    if group:
        yield group


def _wider(schema: Any, other: Any) -> Any:
    """Return a schema with the columns of both, in the order of the one that has more."""
    import pyarrow as pa

    if schema is None:
        return other
    if set(other.names) <= set(schema.names):
        return schema
    one, two = (other, schema) if len(other) > len(schema) else (schema, other)
    return pa.unify_schemas([one, two])


def _fit(table: Any, schema: Any) -> Any:
    """Return a table with exactly a schema's columns; those that it has not are NULL."""
    import pyarrow as pa

    columns = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _write_held(parts: Sequence[Part], stamps: Mapping[str, Stamp]) -> str:
    # By column, and the rows' numbers left to the reader: of a quiet ticker this is most of the file.
    held: dict[str, list[int]] = {
        "start": [part.window.start_ms // 1000 for part in parts],
        "version": [part.version for part in parts],
        "rows": [part.rows for part in parts],
        "bytes": [part.bytes for part in parts],
        "mtime_ns": [stamps[part.path].mtime_ns for part in parts],
    }
    return orjson.dumps(held).decode()


def _read_held(text: bytes) -> Iterator[Held]:
    held = orjson.loads(text)
    columns = [held[name] for name in ("start", "version", "rows", "bytes", "mtime_ns")]
    row = 0
    for start, version, rows, size, mtime_ns in zip(*columns, strict=True):
        window = Window(datetime.fromtimestamp(start, UTC))
        yield Held(window, version, row, rows, Stamp(size, mtime_ns))
        row += rows


__all__ = [
    "DayChangedError",
    "DayReader",
    "DayWriter",
    "Held",
    "Part",
    "daily_path",
    "where_rows_are",
    "window_stamps",
]
