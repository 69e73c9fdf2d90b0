"""Reading the Parquet objects of a window: each is fetched once, many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cryptostream_dagster.transforms.storage import CONNECTIONS, Storage
from ingest_services.errors import UserError


def read_books(
    parquet: Storage, paths: Sequence[str], columns: Sequence[str] | None = None, digest: str | None = None
) -> Any:
    """Read objects into one Arrow table: in the order of the paths, each one's rows in its own order.

    Args:
        parquet: Where the objects are.
        paths: At least one.
        columns: Those that are wanted; all by default.
        digest: Of the seal that they must have been built from; None: any.

    Returns:
        The table, without the objects' metadata. A column that some objects do not have is NULL there.

    Raises:
        UserError: If an object is missing, is no Parquet, or was built from something else.
    """
    import pyarrow as pa
    from pyarrow import parquet as pq

    def read(path: str) -> Any:
        try:
            with parquet.open(path) as source, pq.ParquetFile(source) as file:
                found = (file.metadata.metadata or {}).get(b"cryptostream.digest", b"").decode()
                if digest is not None and found != digest:
                    raise UserError(
                        f"{parquet.url}/{path}: was built from another seal ({found[:12]}, not "
                        f"{digest[:12]}); materialize orderbook_parquet again"
                    )
                return file.read(columns, use_threads=False).replace_schema_metadata()
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"{parquet.url}/{path}: cannot be read ({' '.join(str(error).split())}); "
                "materialize orderbook_parquet again"
            ) from error

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return pa.concat_tables(pool.map(read, paths), promote_options="permissive")
