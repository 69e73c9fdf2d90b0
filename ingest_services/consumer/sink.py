"""From a batch to committed objects: upload everything, then create the commit, then publish the claim."""

from __future__ import annotations

import errno
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TypeVar
from zoneinfo import ZoneInfo

import structlog
from crc32c import crc32c

from ingest_services.consumer import metrics
from ingest_services.consumer.buffer import Batch
from ingest_services.consumer.clock import Clock
from ingest_services.consumer.entries import Entry
from ingest_services.lake import chain as chains
from ingest_services.lake import layout, lines
from ingest_services.lake.chain import Commit, CommitFile, FileKind, Progress
from ingest_services.lake.store import ObjectExists, ObjectStore

MAX_BACKOFF_S = 10.0

ResultT = TypeVar("ResultT")


class Stopped(Exception):  # noqa: N818 - an answer, not a failure
    """The process is ending and the store did not recover in time; what is not committed stays in Kafka."""


@dataclass(frozen=True)
class Sink:
    """Where batches go.

    Attributes:
        store: The raw lake.
        zone: The market's time zone, for paths.
        suffix: Ending of object names, which says how they are compressed.
        uploads: Runs uploads in parallel, so bounds their number.
        on_retry: Called with what was done whenever the store failed and is tried again.
        gave_up: Set when there is no more time to wait for the store.
        clock: What time it is.
        failing: What the store fails at now, and how; told by the process's health.
    """

    store: ObjectStore
    zone: ZoneInfo
    suffix: str
    uploads: Executor
    on_retry: Callable[[str], None]
    gave_up: threading.Event
    clock: Clock = field(default_factory=Clock)
    failing: dict[str, str] = field(default_factory=dict)

    def commit(self, chain: int, partition: int, batch: Batch, still_ours: Callable[[], None]) -> Commit:
        """Write a batch's objects, then its commit.

        Args:
            chain: Number of the chain.
            partition: Kafka partition.
            batch: What to commit.
            still_ours: Called right before the commit; raises if the topic is another one by now.

        Returns:
            The commit, as it stands in the lake.

        Raises:
            Fenced: If another writer committed at this offset first.
            Stopped: If the store failed until the process had to end.
        """
        token = secrets.token_hex(4)
        grouped: dict[tuple[FileKind, str, int], list[Entry]] = {}
        for entry in batch.entries:
            grouped.setdefault((entry.kind, entry.ticker, entry.minute_ms), []).append(entry)
        uploads = [
            self.uploads.submit(self._upload, partition, batch.base, token, *name, entries)
            for name, entries in grouped.items()
        ]
        files = tuple(upload.result() for upload in uploads)
        commit = Commit(
            chain=chain,
            partition=partition,
            base=batch.base,
            next=batch.next,
            token=token,
            files=files,
            books=_rows(files, "book"),
            heartbeats=_rows(files, "heartbeat"),
            quarantined=_rows(files, "quarantine"),
            missing=batch.missing,
            committed_ms=self.clock.now_ms(),
        )
        still_ours()
        self.persist("commit", lambda: chains.write_commit(self.store, commit))
        return commit

    def claim(self, progress: Progress) -> None:
        """Publish a claim.

        Raises:
            Stopped: As `commit`.
        """
        self.persist("progress", lambda: chains.write_progress(self.store, progress))

    def _upload(
        self,
        partition: int,
        base: int,
        token: str,
        kind: FileKind,
        ticker: str,
        minute_ms: int,
        entries: list[Entry],
    ) -> CommitFile:
        stamps = [entry.tms for entry in entries if entry.tms is not None]
        place = (partition, base, token, self.zone, self.suffix)
        if kind == "book":
            path = layout.book_path(ticker, minute_ms, min(stamps), *place)
        else:
            path = layout.side_path(
                {"heartbeat": "coverage", "quarantine": "quarantine"}[kind], minute_ms, *place
            )
        data = lines.pack([entry.line for entry in entries], self.suffix)
        with metrics.UPLOAD_SECONDS.time():
            self.persist("upload", lambda: self._create(path, data))
        return CommitFile(
            kind=kind,
            path=path,
            ticker=ticker,
            minute_ms=minute_ms,
            rows=len(entries),
            bytes=len(data),
            crc32c=f"{crc32c(data):08x}",
            min_tms=min(stamps, default=None),
            max_tms=max(stamps, default=None),
            min_received_us=min(entry.received_us for entry in entries),
            max_received_us=max(entry.received_us for entry in entries),
        )

    def _create(self, path: str, data: bytes) -> None:
        try:
            self.store.create(path, data)
        except ObjectExists:
            # The name holds this attempt's random token, so it is ours: the answer to an upload was lost.
            if self.store.get(path) != data:
                raise

    def persist(self, what: str, operation: Callable[[], ResultT]) -> ResultT:
        """Do something with the store, again and again if it fails.

        Args:
            what: Names it, for logs and metrics.
            operation: What to do; safe to repeat.

        Raises:
            Stopped: If the store failed until the process had to end.
        """
        backoff_s = 0.1
        while True:
            try:
                done = operation()
            except OSError as error:
                structlog.get_logger().warning("store failed, trying again", what=what, error=str(error))
                self.on_retry(what)
                metrics.RETRIES.labels(what, _cause_of(error)).inc()
                self.failing[what] = str(error)
                if self.gave_up.wait(backoff_s):
                    raise Stopped(f"{what}: {error}") from error
                backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)
            else:
                self.failing.pop(what, None)
                return done


def _cause_of(error: OSError) -> str:
    """Return a short name of what went wrong: ENOSPC, TooManyRequests, ReadTimeout."""
    if error.errno is not None:
        return errno.errorcode.get(error.errno, "other")
    return type(error.__cause__ or error).__name__


def _rows(files: tuple[CommitFile, ...], kind: FileKind) -> int:
    return sum(file.rows for file in files if file.kind == kind)
