"""Which kind of store a URL means: where a lake is opened."""

from __future__ import annotations

from urllib.parse import urlsplit

from ingest_services.errors import UserError
from ingest_services.lake.store import ObjectStore, open_folder


def open_store(url: str) -> ObjectStore:
    """Open the store at a URL (`RAW_URL`).

    Args:
        url: `file:///folder` or `gs://bucket/prefix`.

    Raises:
        UserError: If the URL is of no kind that is known, or the store there cannot be used.
    """
    parts = urlsplit(url)
    if parts.scheme == "gs":
        # Google's library takes a second to load; who has a folder need not wait for it.
        from ingest_services.lake.gcs import open_gcs

        return open_gcs(url)
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        return open_folder(url)
    raise UserError(f"RAW_URL={url}: must be file:///folder with an absolute path, or gs://bucket/prefix")
