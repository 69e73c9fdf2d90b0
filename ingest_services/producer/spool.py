"""The spool: records on disk while Kafka cannot take them. A bounded log of segment files, read in order.

    <spool_dir>/<section>/<process>/lock                     held (flock) for as long as the process lives
                                    000000000007.spool       segments, read by number
                                    000000000007.cursor      how much of that segment Kafka has
    <spool_dir>/<section>/lock                               held while folders are made, adopted and removed

A segment is a magic line and then records: length, CRC-32C, bytes. A record whose end is missing (the process
was killed, the power was cut) ends its segment; one whose checksum is wrong is skipped. Both are counted.
Each record is handed to the kernel as it comes, so it survives the process; `sync` makes it survive the
machine, its file's name in the folder included, and is called once a second and when a segment is closed: a
power cut costs a second at most, and that at the end, behind every heartbeat that is kept. Damage elsewhere
is told with the next record.

Two processes of one section never share a folder. A folder whose lock is free belonged to a process that is
gone: the next one adopts and delivers it. After a SIGKILL the records between the last cursor and what Kafka
acknowledged are delivered once more. A section that is no longer in `producer.conf` has no next process:
`warn_of_orphans` names what it left.

Belongs here: bytes and files. Does not belong here: when to spool, and what the bytes mean, but for the first
eight of a record: they say when it was received (`Outgoing.pack`).
"""

from __future__ import annotations

import fcntl
import os
import secrets
import struct
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote

import structlog
from crc32c import crc32c

from ingest_services.errors import UserError

MAGIC = b"cryptostream spool 1\n"
SEGMENT_BYTES = 4 * 1024 * 1024
SPOOL_BYTES = 4 * 1024**3
SYNC_EVERY_S = 1.0
_FRAME = struct.Struct("<II")
_CURSOR = struct.Struct("<QI")
_STAMP = struct.Struct("<Q")

_log = structlog.get_logger()


class SpoolFull(Exception):  # noqa: N818 (named after what it says)
    """The record was not kept: the bound is reached, or the disk refused it."""


@dataclass(slots=True, eq=False)
class Segment:
    """A closed segment file, waiting to be delivered.

    Attributes:
        path: The file.
        size: Its length, bytes.
        cursor: Offset up to which Kafka has it.
        records: How many of its records Kafka has not; 0 before another process's segment is read.
        oldest_us: When the first of them was received, µs since the epoch; 0 if it cannot be told.
    """

    path: Path
    size: int
    cursor: int = 0
    records: int = 0
    oldest_us: int = 0


@dataclass(frozen=True, slots=True)
class Spooled:
    """A record that was read from the spool.

    Attributes:
        payload: The record.
        segment: Where it was.
        end: Where it ended there.
        damaged_since_us: If records were lost in front of it, when the last whole one before those was
            received, µs since the epoch, 0 if that is unknown; None if none were.
    """

    payload: bytes
    segment: Segment
    end: int
    damaged_since_us: int | None = None


@dataclass(slots=True, eq=False)
class _Folder:
    path: Path
    lock: int


@dataclass(slots=True)
class _Loaded:
    segment: Segment
    records: deque[tuple[bytes, int]] = field(default_factory=deque)
    last_end: int = 0
    damaged_since_us: dict[int, int] = field(default_factory=dict)


def read_segment(data: bytes) -> tuple[list[tuple[bytes, int]], int]:
    """Read a segment file's records.

    Args:
        data: The file's content; may be cut off or damaged anywhere.

    Returns:
        The whole records in order, each with the offset of its end; and how many bytes were damaged.
    """
    if not data.startswith(MAGIC):
        return [], len(data)
    records: list[tuple[bytes, int]] = []
    at = len(MAGIC)
    damaged = 0
    while at < len(data):
        if at + _FRAME.size > len(data):
            damaged += len(data) - at
            break
        length, checksum = _FRAME.unpack_from(data, at)
        end = at + _FRAME.size + length
        if length == 0 or end > len(data):
            damaged += len(data) - at
            break
        payload = data[at + _FRAME.size : end]
        if crc32c(payload) == checksum:
            records.append((payload, end))
        else:
            damaged += end - at
        at = end
    return records, damaged


class Spool:
    """One process's spool of one section, and those that it adopted."""

    def __init__(
        self, root: Path, section: str, *, limit_bytes: int = SPOOL_BYTES, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        """Make a folder of its own and adopt what dead processes of the section left.

        Args:
            root: SPOOL_DIR.
            section: Producer section.
            limit_bytes: Bound on everything this spool holds on disk.
            segment_bytes: A segment is closed at this size.

        Raises:
            UserError: If the folder cannot be made or written.
        """
        self._home = root / quote(section, safe="")
        self._limit_bytes = limit_bytes
        self._segment_bytes = segment_bytes
        self._queue: deque[Segment] = deque()
        self._folders: list[_Folder] = []
        self._loaded: _Loaded | None = None
        self._unread: deque[_Loaded] = deque()
        self._writing: int | None = None
        self._writing_path = Path()
        self._writing_size = 0
        self._writing_records = 0
        self._writing_since_us = 0
        self._unsynced = False
        self._synced_s = 0.0
        self._number = 0
        self._held: set[Segment] = set()
        # By folder: when its newest record that was read was received, µs; and whether damage came behind it.
        self._read_to: dict[Path, tuple[int, bool]] = {}
        self.bytes = 0
        self.records = 0
        self.damaged_bytes = 0
        try:
            self._home.mkdir(parents=True, exist_ok=True)
            with self._house_lock():
                path = self._home / f"{time.time_ns():020d}-{secrets.token_hex(4)}"
                path.mkdir()
                for folder in (self._home, root):
                    _sync_folder(folder)
                lock = _try_lock(path / "lock")
                if lock is None:
                    raise UserError(f"SPOOL_DIR={root}: another process took the new folder {path}")
                self._own = _Folder(path, lock)
            self.adopt()
        except OSError as error:
            raise UserError(f"SPOOL_DIR={root}: cannot be written ({error})") from error

    @property
    def oldest_us(self) -> int:
        """When its oldest record was received, µs since the epoch, to a segment; 0 if there is none."""
        stamps = [segment.oldest_us for segment in self._held if segment.oldest_us]
        if self._writing is not None and self._writing_since_us:
            stamps.append(self._writing_since_us)
        return min(stamps, default=0)

    # ---- writing

    def append(self, payload: bytes) -> None:
        """Keep one record.

        Raises:
            SpoolFull: If it was not kept.
        """
        frame = _FRAME.pack(len(payload), crc32c(payload)) + payload
        if self.bytes + len(frame) + len(MAGIC) > self._limit_bytes:
            raise SpoolFull(f"the spool holds its {self._limit_bytes} bytes")
        try:
            if self._writing is None:
                self._open_segment()
            self._write(frame)
        except OSError as error:
            self._take_back()
            raise SpoolFull(str(error)) from error
        self._writing_records += 1
        self._writing_since_us = self._writing_since_us or _stamp(payload)
        self.records += 1
        if self._writing_size >= self._segment_bytes:
            self.close_segment()

    def close_segment(self) -> None:
        """End the segment that is being written, if any: it is ready for delivery."""
        segment = self._seal()
        if segment is not None:
            self._queue.append(segment)

    def write_apart(self, payloads: Iterable[bytes]) -> Segment | None:
        """Write records into a segment of their own that is not delivered unless it is released.

        For records that are on their way to Kafka and must survive this process meanwhile.

        Returns:
            The segment, or None if there are no records or they could not all be kept.
        """
        self.close_segment()
        whole = self._segment_bytes
        self._segment_bytes = 1 << 62
        try:
            for payload in payloads:
                self.append(payload)
        except SpoolFull:
            segment = self._seal()
            if segment is not None:
                self.drop(segment)
            return None
        finally:
            self._segment_bytes = whole
        return self._seal()

    def release(self, segment: Segment, skip: int) -> None:
        """Deliver a segment written apart after all, without its first `skip` records, in its old place."""
        try:
            if skip:
                records, damaged = read_segment(segment.path.read_bytes())
                # Rather twice than never: which of them are damaged cannot be told.
                if not damaged and records:
                    segment.cursor = records[min(skip, len(records)) - 1][1]
        except OSError as error:
            _log.error("spool_unreadable", path=str(segment.path), error=str(error))
        later = [s for s in self._queue if s.path.parent == segment.path.parent and s.path > segment.path]
        self._queue.insert(self._queue.index(later[0]) if later else len(self._queue), segment)

    def drop(self, segment: Segment) -> None:
        """Forget a segment whose records Kafka has."""
        _remove(segment.path)
        _remove(segment.path.with_suffix(".cursor"))
        self._forget(segment)

    def sync(self, now_s: float, *, force: bool = False) -> None:
        """Make what was written survive the machine, at most once a second.

        Args:
            now_s: Monotonic clock.
            force: Whatever the clock says.
        """
        if self._unsynced and (force or now_s - self._synced_s >= SYNC_EVERY_S):
            # A disk that refuses is asked again in a second.
            self._synced_s = now_s
            if self._writing is not None:
                os.fsync(self._writing)
            self._unsynced = False

    # ---- reading

    @property
    def pending(self) -> bool:
        """Whether there is something to read now."""
        return bool(self._unread) or bool(self._queue)

    def read(self) -> Spooled | None:
        """Return the next record to deliver; None if there is none now."""
        while True:
            if self._loaded is None or not self._loaded.records:
                if not self._load():
                    return None
                continue
            payload, end = self._loaded.records.popleft()
            return Spooled(payload, self._loaded.segment, end, self._loaded.damaged_since_us.get(end))

    def acknowledge(self, spooled: Spooled) -> None:
        """Take note that Kafka has a record; records are acknowledged in the order they were read."""
        spooled.segment.cursor = spooled.end
        spooled.segment.records -= 1
        self.records -= 1
        while self._unread and self._unread[0].segment.cursor >= self._unread[0].last_end:
            done = self._unread.popleft()
            if done is self._loaded:
                self._loaded = None
            self.drop(done.segment)
            self._clear_adopted()

    def rewind(self) -> None:
        """Read again from the first record that was not acknowledged."""
        for loaded in reversed(self._unread):
            self._queue.appendleft(loaded.segment)
        self._unread.clear()
        self._loaded = None

    def save_cursors(self) -> None:
        """Write down how much of each segment Kafka has, so that the next process begins there."""
        for segment in [*(loaded.segment for loaded in self._unread), *self._queue]:
            if segment.cursor:
                content = _CURSOR.pack(segment.cursor, crc32c(segment.cursor.to_bytes(8, "little")))
                temporary = segment.path.with_suffix(".new")
                temporary.write_bytes(content)
                temporary.replace(segment.path.with_suffix(".cursor"))

    # ---- folders

    def adopt(self) -> int:
        """Take over the folders of dead processes; return how many bytes that added."""
        before = self.bytes
        with self._house_lock():
            mine = {self._own.path, *(folder.path for folder in self._folders)}
            for path in sorted(self._home.iterdir()):
                if path in mine or not path.is_dir():
                    continue
                lock = _try_lock(path / "lock")
                if lock is None:
                    continue
                folder = _Folder(path, lock)
                try:
                    segments = _find_segments(path)
                except OSError:
                    # With our lock on it nobody would try again.
                    os.close(lock)
                    raise
                if segments:
                    self._folders.append(folder)
                    self._queue.extend(segments)
                    self._held.update(segments)
                    self.bytes += sum(segment.size for segment in segments)
                else:
                    _remove_folder(folder)
        return self.bytes - before

    def close(self) -> None:
        """Close all files and free all folders; what was not delivered waits there for the next process."""
        self.close_segment()
        try:
            self.save_cursors()
        except OSError as error:
            # A full disk, say: what Kafka has of the first segments is delivered once more.
            _log.warning("spool_cursor_not_saved", path=str(self._home), error=str(error))
        with self._house_lock():
            for folder in [self._own, *self._folders]:
                if any(folder.path.glob("*.spool")):
                    os.close(folder.lock)
                else:
                    _remove_folder(folder)
        self._folders.clear()

    def _clear_adopted(self) -> None:
        waiting = {segment.path.parent for segment in self._queue}
        waiting.update(loaded.segment.path.parent for loaded in self._unread)
        empty = [folder for folder in self._folders if folder.path not in waiting]
        if empty:
            with self._house_lock():
                for folder in empty:
                    _remove_folder(folder)
            self._folders = [folder for folder in self._folders if folder.path in waiting]

    @contextmanager
    def _house_lock(self) -> Iterator[None]:
        descriptor = os.open(self._home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    # ---- segments

    def _open_segment(self) -> None:
        self._number += 1
        self._writing_path = self._own.path / f"{self._number:012d}.spool"
        self._writing = os.open(
            self._writing_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644
        )
        self._writing_size = self._writing_records = self._writing_since_us = 0
        self._write(MAGIC)
        _sync_folder(self._own.path)

    def _write(self, data: bytes) -> None:
        assert self._writing is not None
        written = os.write(self._writing, data)
        if written != len(data):
            raise OSError(f"only {written} of {len(data)} bytes could be written")
        self._writing_size += len(data)
        self.bytes += len(data)
        self._unsynced = True

    def _take_back(self) -> None:
        # Whatever part of the record got to the disk goes again: a record is there whole or not at all.
        if self._writing is None:
            return
        if self._writing_size == 0:
            os.close(self._writing)
            self._writing = None
            _remove(self._writing_path)
            return
        try:
            os.ftruncate(self._writing, self._writing_size)
        except OSError:
            # Then the piece stays, as the last thing in its segment: readers stop there.
            self.close_segment()

    def _seal(self) -> Segment | None:
        if self._writing is None:
            return None
        try:
            os.fsync(self._writing)
        except OSError as error:
            _log.warning("spool_sync_failed", path=str(self._writing_path), error=str(error))
        os.close(self._writing)
        self._writing = None
        self._unsynced = False
        segment = Segment(
            self._writing_path,
            self._writing_size,
            records=self._writing_records,
            oldest_us=self._writing_since_us,
        )
        self._held.add(segment)
        return segment

    def _forget(self, segment: Segment) -> None:
        self._held.discard(segment)
        self.bytes -= segment.size
        self.records -= segment.records

    def _load(self) -> bool:
        if not self._queue:
            return False
        segment = self._queue.popleft()
        try:
            data = segment.path.read_bytes()
        except OSError as error:
            # The segment stays where it is, for the next process and for a person.
            _log.error("spool_unreadable", path=str(segment.path), error=str(error))
            self._forget(segment)
            self._read_to[segment.path.parent] = self._read_to.get(segment.path.parent, (0, True))[0], True
            return True
        records, damaged = read_segment(data)
        if damaged and segment.cursor == 0:
            _log.warning("spool_damaged", path=str(segment.path), bytes=damaged, records=len(records))
            self.damaged_bytes += damaged
        wanted = deque(record for record in records if record[1] > segment.cursor)
        self.records += len(wanted) - segment.records
        segment.records = len(wanted)
        damaged_since_us = self._find_damage(segment, records)
        if not wanted:
            self.drop(segment)
            self._clear_adopted()
            return True
        segment.oldest_us = _stamp(wanted[0][0])
        self._loaded = _Loaded(segment, wanted, wanted[-1][1], damaged_since_us)
        self._unread.append(self._loaded)
        return True

    def _find_damage(self, segment: Segment, records: list[tuple[bytes, int]]) -> dict[int, int]:
        """Return, by the end of each wanted record behind damage, when the last whole one in front came.

        What is damaged at a segment's end stands in front of the next segment of the same folder.
        """
        folder = segment.path.parent
        last_us, damaged = self._read_to.get(folder, (0, False))
        since_us = last_us
        found: dict[int, int] = {}
        at = len(MAGIC)
        for payload, end in records:
            if not damaged and end - _FRAME.size - len(payload) != at:
                damaged, since_us = True, last_us
            # Damage in front of the cursor is still in front of what is delivered from there on.
            if damaged and end > segment.cursor:
                found[end] = since_us
                damaged = False
            at, last_us = end, _stamp(payload)
        self._read_to[folder] = (since_us, True) if damaged else (last_us, at != segment.size)
        return found


def warn_of_orphans(root: Path, sections: Iterable[str]) -> None:
    """Log what waits in the spools of sections that nobody runs any more: it would wait for ever, unseen.

    Args:
        root: SPOOL_DIR.
        sections: All sections of `producer.conf`.
    """
    known = {quote(section, safe="") for section in sections}
    for lock in sorted(root.glob("*/lock")):
        home = lock.parent
        if home.name in known:
            continue
        try:
            size = sum(path.stat().st_size for path in home.glob("*/*.spool") if not _is_locked(path.parent))
        except OSError as error:
            _log.warning("spool_unreadable", path=str(home), error=str(error))
            continue
        if size:
            _log.warning(
                "spool_orphaned",
                folder=str(home),
                bytes=size,
                what_to_do="these frames are not in Kafka: bring the section "
                f"[{unquote(home.name)}] back into producer.conf until they are delivered, "
                "or remove the folder to give them up",
            )


def _find_segments(folder: Path) -> list[Segment]:
    segments = []
    for path in sorted(folder.glob("*.spool")):
        cursor = _read_cursor(path.with_suffix(".cursor"))
        segments.append(Segment(path, path.stat().st_size, cursor, oldest_us=_read_oldest(path, cursor)))
    return segments


def _read_oldest(path: Path, cursor: int) -> int:
    with path.open("rb") as file:
        file.seek(max(cursor, len(MAGIC)))
        head = file.read(_FRAME.size)
        if len(head) < _FRAME.size:
            return 0
        length, checksum = _FRAME.unpack(head)
        payload = file.read(min(length, path.stat().st_size))
    # The file's time is that of its newest record: at least that old is what cannot be read.
    return _stamp(payload) if crc32c(payload) == checksum else int(path.stat().st_mtime * 1e6)


def _stamp(payload: bytes) -> int:
    return int(_STAMP.unpack_from(payload)[0]) if len(payload) >= _STAMP.size else 0


def _is_locked(folder: Path) -> bool:
    lock = _try_lock(folder / "lock")
    if lock is not None:
        os.close(lock)
    return lock is None


def _read_cursor(path: Path) -> int:
    try:
        offset, checksum = _CURSOR.unpack(path.read_bytes())
    except (FileNotFoundError, struct.error):
        return 0
    return int(offset) if crc32c(offset.to_bytes(8, "little")) == checksum else 0


def _try_lock(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _sync_folder(path: Path) -> None:
    # fsync of a file does not promise that its name survives a power cut. Not every file system can do it.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        _log.warning("spool_sync_failed", path=str(path), error=str(error))


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("spool_not_removed", path=str(path), error=str(error))


def _remove_folder(folder: _Folder) -> None:
    for path in [*folder.path.glob("*.cursor"), *folder.path.glob("*.new"), folder.path / "lock"]:
        _remove(path)
    os.close(folder.lock)
    try:
        folder.path.rmdir()
    except OSError as error:
        _log.warning("spool_not_removed", path=str(folder.path), error=str(error))
