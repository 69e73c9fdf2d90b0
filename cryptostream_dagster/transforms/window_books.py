"""A query over the Parquet of a window: DuckDB reads the columns that it needs, and no others."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cryptostream_dagster.sql import load_sql
from cryptostream_dagster.transforms.duck import open_duckdb
from cryptostream_dagster.transforms.storage import CONNECTIONS, Storage
from cryptostream_dagster.window import Window
from ingest_services.errors import UserError

_PACKAGE = "cryptostream_dagster.transforms"


def query_window_books(
    parquet: Storage,
    paths: Sequence[str],
    window: Window,
    query: Callable[[Sequence[str]], str],
    threads: int,
    memory_mb: int,
    digest: str | None = None,
) -> list[tuple[Any, ...]]:
    """Ask something of a window's books.

    Args:
        parquet: Where the objects are.
        paths: The window's objects, one per ticker.
        window: The window.
        query: Makes the query from the names of the objects' columns. It is over the view `book`: their rows,
            with `row_number` as the order within a ticker, which is more than the columns alone could say;
            its parameters are `start_ms` and `end_ms`.
        threads: Of DuckDB.
        memory_mb: Of DuckDB, MiB.
        digest: Of the seal that the objects must have been built from; None: any.

    Returns:
        The query's rows; none if there are no objects.

    Raises:
        UserError: If an object is missing, is no Parquet, or was built from another seal.
    """
    if not paths:
        return []
    import duckdb

    files: list[str] = []
    with tempfile.TemporaryDirectory(prefix="cryptostream-") as scratch:
        folder = Path(scratch)
        session = open_duckdb(threads, memory_mb, folder / "spill")
        try:
            # A footer is read once: for the digest, and for the query.
            session.execute("SET parquet_metadata_cache = true")
            files = _local_files(parquet, paths, folder)
            _check_digest(session, parquet, dict(zip(files, paths, strict=True)), digest)
            # The folders' names are for people and globs; the file itself says all of it.
            book = session.read_parquet(files, file_row_number=True, hive_partitioning=False)
            book.project("* RENAME (file_row_number AS row_number)").create_view("book")
            arguments = {"start_ms": window.start_ms, "end_ms": window.end_ms}
            rows: list[tuple[Any, ...]] = session.execute(query(book.columns), arguments).fetchall()
        except duckdb.Error as error:
            if isinstance(error, duckdb.OutOfMemoryException):
                raise
            reason = " ".join(str(error).split())
            named = [path for file, path in zip(files, paths, strict=False) if file in reason]
            what = f"{parquet.url}/{named[0]}" if named else f"{parquet.url}, window {window.start:%H:%M} UTC"
            raise UserError(
                f"{what}: cannot be read ({reason}); materialize orderbook_parquet again"
            ) from error
        finally:
            session.close()
    return rows


def weighed_books(measures: Sequence[str] = ()) -> str:
    """Return the head of a query over `book`: each row as `weighed`, judged, with the time it was in force.

    Args:
        measures: More columns, as SQL over the book's columns and its `mid`.
    """
    more = "".join(f",\n        {measure}" for measure in measures)
    return load_sql(_PACKAGE, "weighed").format(measures=more)


def _local_files(parquet: Storage, paths: Sequence[str], folder: Path) -> list[str]:
    """Return files of this machine with the objects' contents, in order; those of a bucket are copied."""
    if parquet.is_local:
        return [parquet.locate(path) for path in paths]

    def fetch(path: str) -> str:
        content = parquet.read(path)
        if content is None:
            raise UserError(f"{parquet.url}/{path}: is not there; materialize orderbook_parquet again")
        file = folder / path.rpartition("/")[2]
        file.write_bytes(content)
        return str(file)

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return list(pool.map(fetch, paths))


def _check_digest(session: Any, parquet: Storage, paths: dict[str, str], digest: str | None) -> None:
    """Make sure that every file was built from the seal of this digest.

    Raises:
        UserError: If one was not.
    """
    if digest is None:
        return
    found: dict[str, str] = dict(
        session.execute(load_sql(_PACKAGE, "digests"), {"files": list(paths)}).fetchall()
    )
    for file, path in paths.items():
        if found.get(file) != digest:
            raise UserError(
                f"{parquet.url}/{path}: was built from another seal ({found.get(file, '')[:12]}, not "
                f"{digest[:12]}); materialize orderbook_parquet again"
            )
