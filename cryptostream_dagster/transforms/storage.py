"""Where objects are read from and written to: one `pyarrow.fs` filesystem and a folder on it.

`file://` and `gs://` differ only in the filesystem that pyarrow makes of the URL, and in how long an answer
takes: who wants many objects of a bucket asks for many at a time (`CONNECTIONS`).
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

# Requests at once to a store that is not a folder of this machine; each of them waits more than it works.
CONNECTIONS = 16
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
class Stamp:
    """What tells an object from one that replaced it, without opening it: size and time of modification."""

    bytes: int
    mtime_ns: int


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

    @property
    def connections(self) -> int:
        """How many requests at once are worth a thread: a folder does not keep anybody waiting."""
        return 2 if self.is_local else CONNECTIONS

    def locate(self, path: str) -> str:
        """Return the full path on the filesystem."""
        return f"{self.root}/{path}"

    def read(self, path: str) -> Any:
        """Return an object's content, an Arrow buffer; None if it is not there.

        Raises:
            UserError: If it cannot be read.
        """
        try:
            with self.filesystem.open_input_stream(self.locate(path), compression=None) as stream:
                return stream.read_buffer()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failed(path, "read", error) from error

    def open(self, path: str) -> Any:
        """Return an object as a file to read anywhere in: of a bucket all of it comes with one request.

        Raises:
            FileNotFoundError: If it is not there.
            UserError: If it cannot be read.
        """
        import pyarrow as pa  # a slow import

        if self.is_local:
            return self.filesystem.open_input_file(self.locate(path))
        content = self.read(path)
        if content is None:
            raise FileNotFoundError("it is not there")
        return pa.BufferReader(content)

    def sizes(self, paths: Sequence[str]) -> list[int | None]:
        """Return the objects' sizes in bytes; None for one that is not there.

        Raises:
            UserError: If it cannot be known.
        """
        if self.is_local:
            infos = self.filesystem.get_file_info([self.locate(path) for path in paths])
            return [info.size if info.is_file else None for info in infos]
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return list(pool.map(self._size, paths))

    def write(self, path: str, data: Any) -> None:
        """Create an object or replace it whole; a reader sees the old or the new one, never a mixture.

        A local file is written beside its place and renamed. It is not synced to disk: Parquet can be built
        again from the raw lake, and a file that a power cut emptied no longer has the size on record.

        Args:
            path: The object.
            data: Anything with the buffer protocol.

        Raises:
            UserError: If it cannot be written.
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
            raise self._failed(path, "written", error) from error

    def delete(self, paths: Sequence[str]) -> None:
        """Delete objects that are there.

        Raises:
            UserError: If one cannot be deleted.
        """
        for path, size in zip(paths, self.sizes(paths), strict=True):
            if size is not None:
                try:
                    self.filesystem.delete_file(self.locate(path))
                except OSError as error:
                    raise self._failed(path, "deleted", error) from error

    def find(self, folder: str) -> list[str]:
        """Return the paths of all objects under a folder, in order; none if there is no such folder.

        Raises:
            UserError: If they cannot be listed.
        """
        return sorted(self.stamps(folder))

    def stamps(self, folder: str) -> dict[str, Stamp]:
        """Return all objects under a folder by path, with what tells each from one that replaces it.

        Raises:
            UserError: If they cannot be listed.
        """
        from pyarrow import fs  # a slow import

        try:
            found = self.filesystem.get_file_info(
                fs.FileSelector(self.locate(folder), recursive=True, allow_not_found=True)
            )
        except OSError as error:
            raise self._failed(folder, "listed", error) from error
        return {
            info.path.removeprefix(f"{self.root}/"): Stamp(info.size, info.mtime_ns)
            for info in found
            if info.is_file
        }

    def _size(self, path: str) -> int | None:
        try:
            info = self.filesystem.get_file_info(self.locate(path))
        except OSError as error:
            raise self._failed(path, "looked at", error) from error
        return info.size if info.is_file else None

    def _failed(self, path: str, what: str, error: OSError) -> UserError:
        where = f"{self.url}/{path}: cannot be {what}"
        if self.is_local:
            return UserError(f"{where}: {_line(error)}")
        bucket = self.root.partition("/")[0]
        if isinstance(error, PermissionError):
            return UserError(
                f"{where}: this account may not; docs/windows.md says what it must be allowed to do in the "
                f"bucket {bucket} ({_line(error)})"
            )
        if isinstance(error, FileNotFoundError):
            return UserError(f"{where}: there is no bucket {bucket}; create it, or name another")
        return UserError(f"{where}: {_line(error)}")


def open_storage(name: str, url: str) -> Storage:
    """Open the root at a URL.

    Args:
        name: Name of the setting, for messages.
        url: `file:///folder` or `gs://bucket/prefix`; another that pyarrow knows may work, too.

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


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
