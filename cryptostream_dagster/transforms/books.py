"""Raw objects of a sealed window → one Parquet object per ticker.

Lines that do not fit the schema are rejected and counted, duplicates removed and counted, and nothing else is
lost: sealed rows = written rows + duplicates + rejected, each counted by itself, for every ticker, or the
build fails.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from crc32c import crc32c

from cryptostream_dagster.sql import load_sql
from cryptostream_dagster.transforms.duck import open_duckdb
from cryptostream_dagster.transforms.schema import arrow_schema, book_columns, level_columns
from cryptostream_dagster.transforms.storage import ObjectGone, Storage
from cryptostream_dagster.window import Window
from ingest_services.errors import UserError

# Rows that are in memory at once: bounds a run whatever the window holds. A ticker is never split; at the
# exchange's rates one has a few thousand rows.
BATCH_ROWS = 100_000

_PACKAGE = "cryptostream_dagster.transforms"


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


@dataclass(frozen=True, slots=True)
class TickerBooks:
    """What became of one ticker's rows.

    Attributes:
        ticker: Canonical ticker.
        path: The Parquet object; empty if no row was left.
        bytes: Its size.
        sealed_rows: Lines in the raw objects.
        rows: Rows written.
        duplicates: Rows removed because the same book was there already.
        rejected: Lines that do not fit the schema.
    """

    ticker: str
    path: str
    bytes: int
    sealed_rows: int
    rows: int
    duplicates: int
    rejected: int


class _Counts(NamedTuple):
    """What a ticker's lines are, as counted before the rows are made."""

    ticker: str
    sealed_rows: int
    rejected: int
    duplicates: int


def parquet_path(ticker: str, window: Window, zone: ZoneInfo) -> str:
    """Return where a ticker's books of a window are, relative to PARQUET_URL; the path is in market time."""
    start = window.local(zone)
    return f"ticker={ticker}/{start:year=%Y/month=%m/day=%d/hour=%H}/{ticker}-{start:%Y%m%d%H%M}.parquet"


class BookBuilder:
    """Builds windows with one set of limits.

    Args:
        raw: The raw lake.
        parquet: Where the objects go.
        depth: Levels per side.
        zone: The market's time zone.
        threads: Of DuckDB and of the writers.
        memory_mb: Of DuckDB, MiB.
        batch_rows: Rows in memory at once.
    """

    def __init__(
        self,
        raw: Storage,
        parquet: Storage,
        depth: int,
        zone: ZoneInfo,
        threads: int = 2,
        memory_mb: int = 1024,
        batch_rows: int = BATCH_ROWS,
    ) -> None:
        self._raw = raw
        self._parquet = parquet
        self._depth = depth
        self._zone = zone
        self._threads = threads
        self._memory_mb = memory_mb
        self._batch_rows = batch_rows

    def build(
        self, window: Window, objects: Sequence[RawObject], provenance: Mapping[str, str]
    ) -> list[TickerBooks]:
        """Write the window's Parquet objects, each replaced whole.

        Args:
            window: The window.
            objects: Its raw objects.
            provenance: Key-value pairs that go into every object's metadata. Nothing that changes from one
                build to the next may be among them: the same input gives the same bytes.

        Returns:
            One entry per ticker, by ticker.

        Raises:
            UserError: If an object is missing, is not what its commit says, or cannot be written.
            RuntimeError: If the rows do not add up, which is a fault of ours.
        """
        results: list[TickerBooks] = []
        with (
            tempfile.TemporaryDirectory(prefix="cryptostream-") as scratch,
            ThreadPoolExecutor(self._threads) as writers,
        ):
            session = open_duckdb(self._threads, self._memory_mb, Path(scratch) / "spill")
            try:
                pending: list[Future[TickerBooks]] = []
                for number, batch in enumerate(_batches(objects, self._batch_rows)):
                    folder = Path(scratch) / f"raw-{number}"
                    folder.mkdir()
                    written = self._build_batch(session, window, batch, folder)
                    # One batch is written while the next is read; never more than that.
                    results += [future.result() for future in pending]
                    pending = [
                        writers.submit(self._write_ticker, window, table, counts, provenance)
                        for counts, table in written
                    ]
                results += [future.result() for future in pending]
            finally:
                session.close()
        return sorted(results, key=lambda result: result.ticker)

    def _build_batch(
        self, session: Any, window: Window, batch: list[RawObject], folder: Path
    ) -> list[tuple[_Counts, Any]]:
        """Return for each ticker of a batch what its lines are, and its table."""
        self._check_sizes(batch)
        files = self._raw.fetch([item.path for item in batch], folder)
        self._check_contents(batch, files)
        self._load(session, window, batch, [str(file) for file in files])
        names = ", ".join(column.name for column in level_columns(self._depth))
        session.execute(load_sql(_PACKAGE, "repeats").format(level_names=names))
        counts = [_Counts(*row) for row in session.execute(load_sql(_PACKAGE, "count_lines")).fetchall()]
        books = session.sql(load_sql(_PACKAGE, "books").format(level_names=names)).to_arrow_table()
        session.execute("DROP TABLE line; DROP TABLE repeat")
        return [(count, _rows_of(books, count.ticker)) for count in counts]

    def _load(self, session: Any, window: Window, batch: list[RawObject], files: list[str]) -> None:
        import duckdb
        import pyarrow as pa

        session.register(
            "object",
            pa.table(
                {
                    "file": files,
                    "number": list(range(len(files))),
                    "ticker": [item.ticker for item in batch],
                    "chain": [item.chain for item in batch],
                }
            ),
        )
        query = load_sql(_PACKAGE, "lines").format(levels=",\n    ".join(_level_expressions(self._depth)))
        try:
            session.execute(query, {"files": files, "start_ms": window.start_ms, "end_ms": window.end_ms})
        except duckdb.Error as error:
            if isinstance(error, duckdb.OutOfMemoryException):
                raise
            raise UserError(f"{self._raw.url}: {' '.join(str(error).split())}") from error
        found = dict(session.execute("SELECT object_number, count(*) FROM line GROUP BY 1").fetchall())
        session.unregister("object")
        for number, item in enumerate(batch):
            if found.get(number, 0) != item.rows:
                raise UserError(
                    f"{self._raw.url}/{item.path}: has {found.get(number, 0)} lines, "
                    f"its commit says {item.rows}"
                )

    def _check_sizes(self, batch: list[RawObject]) -> None:
        for item, size in zip(batch, self._raw.sizes([item.path for item in batch]), strict=True):
            if size is None:
                raise ObjectGone(self._raw.url, item.path)
            if size != item.bytes:
                raise UserError(
                    f"{self._raw.url}/{item.path}: has {size} bytes, its commit says {item.bytes}"
                )

    def _check_contents(self, batch: list[RawObject], files: list[Path]) -> None:
        # One object at a time in memory; a gigabyte takes about a second.
        for item, file in zip(batch, files, strict=True):
            try:
                found = f"{crc32c(file.read_bytes()):08x}"
            except OSError as error:
                raise UserError(f"{self._raw.url}/{item.path}: cannot be read: {error}") from error
            if found != item.crc32c:
                raise UserError(
                    f"{self._raw.url}/{item.path}: has crc32c {found}, its commit says {item.crc32c}"
                )

    def _write_ticker(
        self, window: Window, table: Any, counts: _Counts, provenance: Mapping[str, str]
    ) -> TickerBooks:
        import pyarrow as pa
        from pyarrow import parquet

        ticker, sealed_rows, rejected, duplicates = counts
        if sealed_rows != table.num_rows + duplicates + rejected:
            raise RuntimeError(
                f"{ticker}: {sealed_rows} sealed rows are not {table.num_rows} written + {duplicates} "
                f"duplicates + {rejected} rejected: rows were lost on the way to Parquet"
            )
        path, size = "", 0
        if table.num_rows:
            path = parquet_path(ticker, window, self._zone)
            metadata = {
                **provenance,
                "ticker": ticker,
                "duplicates": str(duplicates),
                "rejected": str(rejected),
            }
            table = table.cast(self._schema(metadata))
            sink = pa.BufferOutputStream()
            parquet.write_table(table, sink, compression="zstd", write_statistics=True)
            data = sink.getvalue()
            size = data.size
            self._parquet.write(path, data)
        return TickerBooks(ticker, path, size, sealed_rows, table.num_rows, duplicates, rejected)

    def _schema(self, metadata: Mapping[str, str]) -> Any:
        named = {f"cryptostream.{name}": value for name, value in metadata.items()}
        return arrow_schema(book_columns(self._depth), named)


def _batches(objects: Sequence[RawObject], most_rows: int) -> Iterator[list[RawObject]]:
    """Cut objects into batches of whole tickers with at most so many rows, or one ticker."""
    batch: list[RawObject] = []
    rows = 0
    by_ticker = sorted(objects, key=lambda item: (item.ticker, item.path))
    for _, group in groupby(by_ticker, key=lambda item: item.ticker):
        items = list(group)
        more = sum(item.rows for item in items)
        if batch and rows + more > most_rows:
            yield batch
            batch, rows = [], 0
        batch += items
        rows += more
    if batch:
        yield batch


def _level_expressions(depth: int) -> list[str]:
    """Return SQL for the level columns: NULL where the book has no such level, or only padding."""
    expressions = []
    for level in range(1, depth + 1):
        for side, price, size in (("ask", "ap", "as"), ("bid", "bp", "bs")):
            unit = f"units[{level}]"
            padding = f'{unit}.{price} = 0 AND {unit}."{size}" = 0'
            for what, field in (("price", price), ("size", size)):
                expressions.append(
                    f'CASE WHEN {padding} THEN NULL ELSE {unit}."{field}" END AS {side}_{what}{level}'
                )
    return expressions


def _rows_of(books: Any, ticker: str) -> Any:
    """Return a ticker's slice of a table that is sorted by ticker."""
    import pyarrow.compute as pc

    index = pc.index(books["ticker"], ticker).as_py()
    if index < 0:
        return books.slice(0, 0)
    length = pc.sum(pc.equal(books["ticker"], ticker)).as_py()
    return books.slice(index, length)
