"""Object stores behind one small interface: create if absent, get, list from a key, replace.

Data, commits and chains are only ever created; `replace` exists for the progress objects alone.

Belongs here: the interface, and the store in a folder. Does not belong here: other kinds of store (`gcs`),
and which kind a URL means (`stores`): they know this module, it knows none of them.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol, runtime_checkable
from urllib.parse import unquote, urlsplit

from ingest_services.errors import UserError

# Folders that are known to be durable. To forget them costs a few system calls; to remember all of them,
# 400 MB a day with the whole exchange.
MAX_SYNCED = 10_000
STAGED_FOR_S = 3600


class ObjectExists(Exception):  # noqa: N818 - an answer, not a failure
    """The path is taken: somebody, possibly this writer in a lost attempt, created it."""


class ObjectMissing(Exception):  # noqa: N818
    """There is no object at the path."""


class ObjectStore(Protocol):
    """What the lake needs of a store. Paths are relative to the store's root and use `/`.

    Every method raises OSError if the store fails (PermissionError if it refuses), and may be repeated: a
    write was then done whole or not at all, and nobody knows which. So a repeated `create` can meet its own
    object: who gets `ObjectExists` reads it and compares.

    Attributes:
        url: The store's root, for messages.
    """

    url: str

    def create(self, path: str, data: bytes) -> None:
        """Create an object, atomically and durably.

        Raises:
            ObjectExists: If the path is taken; the object there is unchanged.
        """

    def get(self, path: str) -> bytes:
        """Return an object's content.

        Raises:
            ObjectMissing: If there is none.
        """

    def list(self, prefix: str, start_after: str = "") -> Iterator[str]:
        """Yield the paths that begin with `prefix` and sort after `start_after`, in order."""

    def replace(self, path: str, data: bytes) -> None:
        """Create an object or replace it whole; a reader sees the old or the new one, never a mixture."""


@runtime_checkable
class DeletableStore(ObjectStore, Protocol):
    """A store from which objects can be removed: what `gc` needs, and nobody else is given."""

    def delete(self, path: str) -> None:
        """Remove an object; if it is gone already, nothing happens."""


class FolderStore:
    """A store on a local folder.

    An object is written beside the tree, synced, and hard-linked to its name (which fails if the name is
    taken) or renamed over it; then its folder is synced. A crash leaves an unnamed temporary file at most.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = root.as_uri()
        self._staging = root / ".staging"
        for left in self._staging.glob("*"):
            # What a killed writer left behind; a living one is done with its file in seconds, perhaps now.
            with suppress(FileNotFoundError):
                if left.stat().st_mtime < time.time() - STAGED_FOR_S:
                    left.unlink()
        self._synced: set[Path] = set()

    def create(self, path: str, data: bytes) -> None:
        """See `ObjectStore.create`."""
        target, staged = self._stage(path, data)
        try:
            os.link(staged, target)
        except FileExistsError as error:
            # What is said to exist must outlive a power cut; whoever made it may have failed before this.
            _sync_folder(target.parent)
            raise ObjectExists(path) from error
        except FileNotFoundError:
            self._synced.clear()  # somebody removed the folder
            raise
        finally:
            staged.unlink(missing_ok=True)
        _sync_folder(target.parent)

    def get(self, path: str) -> bytes:
        """See `ObjectStore.get`."""
        try:
            return self._locate(path).read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ObjectMissing(path) from error

    def list(self, prefix: str, start_after: str = "") -> Iterator[str]:
        """See `ObjectStore.list`."""
        folder, _, _ = prefix.rpartition("/")
        top = self._locate(folder) if folder else self.root
        for path in self._walk(top, folder):
            if path.startswith(prefix) and path > start_after:
                yield path

    def replace(self, path: str, data: bytes) -> None:
        """See `ObjectStore.replace`."""
        target, staged = self._stage(path, data)
        try:
            staged.replace(target)
        except BaseException as error:
            staged.unlink(missing_ok=True)
            if isinstance(error, FileNotFoundError):
                self._synced.clear()
            raise
        _sync_folder(target.parent)

    def delete(self, path: str) -> None:
        """See `DeletableStore.delete`."""
        # The folder stays: a writer that knows it as durable does not look again.
        self._locate(path).unlink(missing_ok=True)

    def _stage(self, path: str, data: bytes) -> tuple[Path, Path]:
        target = self._locate(path)
        self._make_folder(target.parent)
        self._make_folder(self._staging)
        staged = self._staging / secrets.token_hex(8)
        try:
            descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileNotFoundError:
            self._synced.clear()
            raise
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            staged.unlink()
            raise
        return target, staged

    def _locate(self, path: str) -> Path:
        require_path(path)
        return self.root.joinpath(*path.split("/"))

    def _make_folder(self, folder: Path) -> None:
        # A new folder is durable once its parent is synced; what this process made it need not look at again.
        if folder in self._synced:
            return
        if folder != self.root and self.root in folder.parents:
            self._make_folder(folder.parent)
            folder.mkdir(exist_ok=True)
            _sync_folder(folder.parent)
        else:
            _make_root(folder)
        if len(self._synced) >= MAX_SYNCED:
            self._synced.clear()
        self._synced.add(folder)

    def _walk(self, top: Path, prefix: str) -> Iterator[str]:
        try:
            with os.scandir(top) as scan:
                # A folder sorts as its name with the slash behind it: the order is that of whole paths.
                entries = sorted((e.name + "/" * e.is_dir(), Path(e.path)) for e in scan if e.name[0] != ".")
        except (FileNotFoundError, NotADirectoryError):
            return
        for name, entry in entries:
            path = f"{prefix}/{name}" if prefix else name
            if name.endswith("/"):
                yield from self._walk(entry, path[:-1])
            else:
                yield path


def require_path(path: str) -> None:
    """Check that a path is one in every store.

    Raises:
        ValueError: If a part of it is empty, or begins with a dot: a folder has files of its own there.
    """
    if any(part.startswith(".") or not part for part in path.split("/")):
        raise ValueError(f"{path!r} is not an object path")


def open_folder(url: str) -> FolderStore:
    """Open the store in a folder of this machine, which is made if it is not there.

    Args:
        url: `file:///folder`, with an absolute path.

    Raises:
        UserError: If the folder cannot be made or written.
    """
    root = Path(unquote(urlsplit(url).path))
    try:
        _make_root(root)
    except OSError as error:
        raise UserError(
            f"RAW_URL={url}: the folder cannot be made ({error.strerror}: {error.filename})"
        ) from error
    if not os.access(root, os.W_OK | os.X_OK):
        raise UserError(f"RAW_URL={url}: the folder cannot be written; change its owner or choose another")
    return FolderStore(root)


def _make_root(root: Path) -> None:
    missing = [folder for folder in (root, *root.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)
    if not root.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(root))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
