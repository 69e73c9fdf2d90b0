"""Raw objects of a sealed window → one Parquet object per ticker.

Lines that do not fit the schema are quarantined and counted, duplicates removed and counted, and nothing else
is lost: sealed rows = written rows + duplicates + quarantined, each counted by itself, for every ticker, or
the build fails.

Work is done in batches of whole tickers, which share nothing: each thread has one, and the objects of the
next one are fetched meanwhile. An object is read once, and is in memory only.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from cryptostream_dagster.transforms.duck import open_duckdb
from cryptostream_dagster.transforms.raw import RawObject, read_lines
from cryptostream_dagster.transforms.schema import arrow_schema, book_columns
from cryptostream_dagster.transforms.storage import Storage
from cryptostream_dagster.window import Window
from ingest_services.errors import UserError
from ingest_services.upbit.markets import market_of

if TYPE_CHECKING:
    from cryptostream_dagster.transforms.rows import Lines, Rows

# A batch has no more rows unless one ticker has, which is never split: at the exchange's rates it has a few
# thousand. A chunk is what of a batch is text at once: 32 MB at depth 30. Two threads have three of each.
BATCH_ROWS = 16_000
CHUNK_ROWS = 16_000
# Of a ticker's lines in quarantine so many are told one by one; their number is always whole.
QUARANTINE_SHOWN = 20
# Columns that nearly always say one thing in an object.
_CONSTANT = ["market", "ticker", "stream_type", "level", "connection", "partition"]


@dataclass(frozen=True, slots=True)
class TickerBooks:
    """What became of one ticker's rows.

    Attributes:
        ticker: Canonical ticker.
        path: The Parquet object; empty if no row was left.
        bytes: Its size.
        sealed_rows: Lines in the raw objects, as their commits say.
        rows: Rows written.
        duplicates: Rows removed because the same book was there already.
        quarantined: Lines that do not fit the schema.
    """

    ticker: str
    path: str
    bytes: int
    sealed_rows: int
    rows: int
    duplicates: int
    quarantined: int


@dataclass(frozen=True, slots=True)
class QuarantinedLine:
    """A line that does not fit the schema; its bytes stay where they are.

    Attributes:
        ticker: Of its object.
        path: The raw object.
        line: Its number in the object, from 1.
        partition: Kafka partition; None if the line does not tell it.
        offset: Kafka offset, likewise.
        reason: Why it does not fit.
    """

    ticker: str
    path: str
    line: int
    partition: int | None
    offset: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class WindowBooks:
    """What became of a window's rows.

    Attributes:
        tickers: By ticker.
        quarantined: Of each ticker the first lines in quarantine, at most `QUARANTINE_SHOWN`.
    """

    tickers: list[TickerBooks]
    quarantined: list[QuarantinedLine]


@dataclass(frozen=True, slots=True)
class _Batch:
    """A batch that is ready to be written: tickers, and the bytes of their objects, by path."""

    tickers: list[TickerBooks]
    quarantined: list[QuarantinedLine]
    objects: dict[str, Any]


def parquet_path(ticker: str, window: Window, zone: ZoneInfo) -> str:
    """Return where a ticker's books of a window are, relative to PARQUET_URL; the path is in market time.

    Of an hour that a change of clocks repeats, the second pass says its offset: no two windows share a path.
    """
    start = window.local(zone)
    again = f"{start:%z}" if start.fold else ""
    return (
        f"ticker={ticker}/{start:year=%Y/month=%m/day=%d/hour=%H}/{ticker}-{start:%Y%m%d%H%M}{again}.parquet"
    )


class BookBuilder:
    """Builds windows with one set of limits.

    Args:
        raw: The raw lake.
        parquet: Where the objects go.
        depth: Levels per side.
        zone: The market's time zone.
        threads: Batches that are worked on at once.
        memory_mb: Of DuckDB, MiB.
        batch_rows: Rows of a batch.
        chunk_rows: Rows of a batch that are text at once.
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
        chunk_rows: int = CHUNK_ROWS,
    ) -> None:
        self._raw = raw
        self._parquet = parquet
        self._depth = depth
        self._zone = zone
        self._threads = threads
        self._memory_mb = memory_mb
        self._batch_rows = batch_rows
        self._chunk_rows = chunk_rows

    def build(
        self, window: Window, objects: Sequence[RawObject], provenance: Mapping[str, str]
    ) -> WindowBooks:
        """Write the window's Parquet objects, each replaced whole, once all of them are known to be right.

        Args:
            window: The window.
            objects: Its raw objects.
            provenance: Key-value pairs that go into every object's metadata. Nothing that changes from one
                build to the next may be among them: the same input gives the same bytes.

        Returns:
            What became of every ticker's lines.

        Raises:
            UserError: If an object is missing, is not what its commit says, or cannot be written.
            RuntimeError: If the rows do not add up, which is a fault of ours.
        """
        built: list[_Batch] = []
        pending: deque[Future[_Batch]] = deque()
        # Each batch's queries run in the thread that asks them.
        with (
            open_duckdb(1, self._memory_mb, None, in_order=True) as session,
            ThreadPoolExecutor(self._raw.connections) as readers,
            ThreadPoolExecutor(self._parquet.connections) as writers,
            ThreadPoolExecutor(self._threads) as builder,
        ):
            for batch in _batches(self._checked(objects), self._batch_rows):
                chunks = list(_chunks(batch, self._chunk_rows))
                first = self._fetch(readers, chunks[0])
                pending.append(
                    builder.submit(
                        self._build_batch, session.cursor(), window, chunks, first, readers, provenance
                    )
                )
                if len(pending) > self._threads:
                    built.append(pending.popleft().result())
            built += [future.result() for future in pending]
            # Not before: of a window with a bad object nothing is written. What waits is a tenth of the text.
            for ready in built:
                # A map's results raise what went wrong.
                list(writers.map(self._parquet.write, ready.objects.keys(), ready.objects.values()))
        # By ticker, because batches are.
        return WindowBooks(
            [ticker for ready in built for ticker in ready.tickers],
            [line for ready in built for line in ready.quarantined],
        )

    @cached_property
    def _schema(self) -> Any:
        return arrow_schema(book_columns(self._depth))

    def _checked(self, objects: Sequence[RawObject]) -> Sequence[RawObject]:
        """Return the objects if what they say of tickers is fit to be a path."""
        for item in objects:
            try:
                market_of(item.ticker)
            except ValueError as error:
                raise UserError(
                    f"{self._raw.url}/{item.path}: a commit says that it is of {error}"
                ) from error
        return objects

    def _fetch(self, readers: ThreadPoolExecutor, chunk: list[RawObject]) -> list[Future[Any]]:
        return [readers.submit(read_lines, self._raw, item) for item in chunk]

    def _build_batch(
        self,
        session: Any,
        window: Window,
        chunks: list[list[RawObject]],
        first: list[Future[Any]],
        readers: ThreadPoolExecutor,
        provenance: Mapping[str, str],
    ) -> _Batch:
        import numpy as np

        from cryptostream_dagster.transforms.rows import book_rows

        batch = [item for chunk in chunks for item in chunk]
        tickers = Counter[str]()
        for item in batch:
            tickers[item.ticker] += item.rows
        lines = self._type_batch(session, window, chunks, first, readers, list(tickers))
        rows = book_rows(lines, self._depth)
        # Each kind of line by itself, and for each ticker: nothing is what the others leave over.
        kinds = (rows.ticker, lines.ticker[rows.repeats], lines.ticker[rows.quarantined])
        counts = np.column_stack([np.bincount(kind, minlength=len(tickers)) for kind in kinds])
        table = self._table(list(tickers), rows)
        built: list[TickerBooks] = []
        encoded: dict[str, Any] = {}
        start = 0
        for (ticker, sealed), (kept, duplicates, bad) in zip(tickers.items(), counts.tolist(), strict=True):
            books = TickerBooks(ticker, "", 0, sealed, kept, duplicates, bad)
            _require_all(books)
            if kept:
                data = self._encode(books, table.slice(start, kept), provenance)
                start += kept
                books = replace(books, path=parquet_path(ticker, window, self._zone), bytes=data.size)
                encoded[books.path] = data
            built.append(books)
        return _Batch(built, _describe(batch, lines, rows), encoded)

    def _type_batch(
        self,
        session: Any,
        window: Window,
        chunks: list[list[RawObject]],
        first: list[Future[Any]],
        readers: ThreadPoolExecutor,
        tickers: list[str],
    ) -> Lines:
        """Return a batch's lines; the next chunk is fetched while one is typed."""
        import numpy as np
        import pyarrow as pa

        from cryptostream_dagster.transforms.arrow import texts_to_arrow
        from cryptostream_dagster.transforms.rows import Lines, type_lines

        markets = [market_of(ticker) for ticker in tickers]
        numbers = {ticker: number for number, ticker in enumerate(tickers)}
        typed, of_ticker, of_chain = [], [], []
        fetched = first
        for chunk, following in zip(chunks, [*chunks[1:], []], strict=True):
            line = pa.chunked_array([future.result() for future in fetched])
            fetched = self._fetch(readers, following)
            rows = [item.rows for item in chunk]
            ticker = np.repeat([numbers[item.ticker] for item in chunk], rows)
            market = texts_to_arrow(markets, ticker)
            typed.append(type_lines(session, line, market, window))
            of_ticker.append(ticker)
            of_chain.append(np.repeat([item.chain for item in chunk], rows))
        return Lines(pa.concat_tables(typed), np.concatenate(of_ticker), np.concatenate(of_chain))

    def _table(self, tickers: list[str], rows: Rows) -> Any:
        """Return rows as the schema has them."""
        import pyarrow as pa

        from cryptostream_dagster.transforms.arrow import texts_to_arrow

        columns = {
            "market": texts_to_arrow([market_of(ticker) for ticker in tickers], rows.ticker),
            "ticker": texts_to_arrow(tickers, rows.ticker),
            **dict(zip(rows.table.column_names, rows.table.columns, strict=True)),
        }
        return pa.table([columns[name] for name in self._schema.names], schema=self._schema)

    def _encode(self, books: TickerBooks, table: Any, provenance: Mapping[str, str]) -> Any:
        """Return the bytes of a ticker's object."""
        import pyarrow as pa
        from pyarrow import parquet

        told = {
            **provenance,
            "ticker": books.ticker,
            "duplicates": str(books.duplicates),
            "quarantined": str(books.quarantined),
        }
        schema = self._schema
        sink = pa.BufferOutputStream()
        with parquet.ParquetWriter(
            sink,
            schema,
            # A dictionary of what is nearly always the same is a few bytes: zstd would take longer to begin.
            # Of other numbers it is slower and larger: zstd sees what two books have in common.
            use_dictionary=_CONSTANT,
            compression={name: "none" if name in _CONSTANT else "zstd" for name in schema.names},
            # Parquet's own says all of it; Arrow's in base64 is 6 % of an object.
            store_schema=False,
        ) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({f"cryptostream.{name}": value for name, value in told.items()})
        return sink.getvalue()


def _require_all(books: TickerBooks) -> None:
    if books.sealed_rows != books.rows + books.duplicates + books.quarantined:
        raise RuntimeError(
            f"{books.ticker}: {books.sealed_rows} sealed rows are not {books.rows} written + "
            f"{books.duplicates} duplicates + {books.quarantined} quarantined: "
            "rows were lost on the way to Parquet"
        )


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


def _chunks(batch: Sequence[RawObject], most_rows: int) -> Iterator[list[RawObject]]:
    """Cut a batch into chunks of whole objects with at most so many rows, or one object."""
    chunk: list[RawObject] = []
    rows = 0
    for item in batch:
        if chunk and rows + item.rows > most_rows:
            yield chunk
            chunk, rows = [], 0
        chunk.append(item)
        rows += item.rows
    yield chunk


def _describe(batch: list[RawObject], lines: Lines, rows: Rows) -> list[QuarantinedLine]:
    """Return of each ticker the first lines in quarantine: by path, then line."""
    import numpy as np

    found: list[QuarantinedLine] = []
    ends = np.cumsum([item.rows for item in batch])
    shown: dict[str, int] = {}
    for at, reason in zip(rows.quarantined.tolist(), rows.reasons, strict=True):
        number = int(np.searchsorted(ends, at, side="right"))
        item = batch[number]
        shown[item.ticker] = shown.get(item.ticker, 0) + 1
        if shown[item.ticker] <= QUARANTINE_SHOWN:
            line = at - int(ends[number]) + item.rows + 1
            partition, offset = (lines.table.column(name)[at].as_py() for name in ("partition", "offset"))
            found.append(QuarantinedLine(item.ticker, item.path, line, partition, offset, reason))
    return found
