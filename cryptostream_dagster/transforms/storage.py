"""Where objects are read from and written to: one `pyarrow.fs` filesystem and a folder on it.

`file://` and `gs://` differ only in the filesystem that pyarrow makes of the URL, and in one thing: DuckDB
reads local files itself, while objects elsewhere are fetched first, many at a time.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ingest_services.errors import UserError

_FETCH_THREADS = 16
# pyarrow's own is a quarter of an hour: longer than a window.
_RETRY_FOR = timedelta(seconds=30)


class ObjectGone(UserError):  # noqa: N818 - an answer, not a failure
    """An object that a commit names is not there (any more).

    Args:
        url: The storage's root.
        path: The object.
    """

    def __init__(self, url: str, path: str) -> None:
        super().__init__(f"{url}/{path}: a commit names it, but it is not there")
        self.path = path


@dataclass(frozen=True, slots=True)
class Storage:
    """A root for objects.

    Attributes:
        url: As in the settings, for messages.
        filesystem: A `pyarrow.fs.FileSystem`.
        root: Folder on it.
    """

    url: str
    filesystem: Any
    root: str

    @property
    def is_local(self) -> bool:
        """Whether the objects are files of this machine."""
        return bool(self.filesystem.type_name == "local")

    def locate(self, path: str) -> str:
        """Return the full path on the filesystem."""
        return f"{self.root}/{path}"

    def fetch(self, paths: Sequence[str], into: Path) -> list[Path]:
        """Return files of this machine with the objects' contents, in order.

        Args:
            paths: Objects.
            into: An empty folder for copies; not used where the objects are local files already.

        Raises:
            UserError: If an object is missing or cannot be read.
        """
        if self.is_local:
            return [Path(self.locate(path)) for path in paths]
        targets = [into / f"{number:06d}-{path.rpartition('/')[2]}" for number, path in enumerate(paths)]
        with ThreadPoolExecutor(_FETCH_THREADS) as pool:
            list(pool.map(self._fetch_one, paths, targets))
        return targets

    def sizes(self, paths: Sequence[str]) -> list[int | None]:
        """Return the objects' sizes in bytes; None for one that is not there."""
        infos = self.filesystem.get_file_info([self.locate(path) for path in paths])
        return [info.size if info.is_file else None for info in infos]

    def write(self, path: str, data: Any) -> None:
        """Create an object or replace it whole; a reader sees the old or the new one, never a mixture.

        A local file is written beside its place and renamed. It is not synced to disk: Parquet can be built
        again from the raw lake, and a file that a power cut emptied no longer has the size on record.

        Args:
            path: The object.
            data: Anything with the buffer protocol.
        """
        target = self.locate(path)
        try:
            if not self.is_local:
                with self.filesystem.open_output_stream(target) as stream:
                    stream.write(data)
                return
            beside = f"{target.rpartition('/')[0]}/.{secrets.token_hex(6)}.tmp"
            self.filesystem.create_dir(target.rpartition("/")[0], recursive=True)
            try:
                with self.filesystem.open_output_stream(beside) as stream:
                    stream.write(data)
                self.filesystem.move(beside, target)
            except BaseException:
                Path(beside).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise UserError(f"{self.url}/{path}: cannot be written: {error}") from error

    def delete(self, paths: Sequence[str]) -> None:
        """Delete objects that are there."""
        for path, size in zip(paths, self.sizes(paths), strict=True):
            if size is not None:
                self.filesystem.delete_file(self.locate(path))

    def _fetch_one(self, path: str, target: Path) -> None:
        try:
            with self.filesystem.open_input_stream(self.locate(path), compression=None) as stream:
                target.write_bytes(stream.read())
        except OSError as error:
            raise UserError(f"{self.url}/{path}: cannot be read: {error}") from error


def open_storage(name: str, url: str) -> Storage:
    """Open the root at a URL.

    Args:
        name: Name of the setting, for messages.
        url: `file:///folder`, or any other URL that pyarrow knows.

    Raises:
        UserError: If pyarrow can make nothing of it.
    """
    from pyarrow import fs  # a slow import

    try:
        filesystem, root = fs.FileSystem.from_uri(url)
        if url.startswith("gs://"):
            filesystem = _open_gcs()
    except (ValueError, OSError, NotImplementedError) as error:
        raise UserError(f"{name}={url}: {error}") from error
    return Storage(url, filesystem, root.rstrip("/"))


def _open_gcs() -> Any:
    """Return pyarrow's view of Google Cloud Storage, with the machine's own credentials.

    As the raw lake's store does, it asks the server that `STORAGE_EMULATOR_HOST` names, if it is set; pyarrow
    by itself does not look at that variable.
    """
    from pyarrow import fs

    emulator = urlsplit(os.environ.get("STORAGE_EMULATOR_HOST", ""))
    if not emulator.netloc:
        return fs.GcsFileSystem(retry_time_limit=_RETRY_FOR)
    return fs.GcsFileSystem(
        anonymous=True,
        scheme=emulator.scheme,
        endpoint_override=emulator.netloc,
        retry_time_limit=_RETRY_FOR,
    )
