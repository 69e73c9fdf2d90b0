"""The publisher: from the inbox to the outbox. It reads each frame once, and keeps the coverage.

A thread per section. Frames of one connection are published in the order in which they were received, and
heartbeats among them, each behind the frames that it vouches for.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from queue import Empty

import structlog

from ingest_services.producer.coverage import CoverageTracker
from ingest_services.producer.feed import Connection, Dead, Inbox, Proven, Signal
from ingest_services.producer.metrics import SectionStats
from ingest_services.producer.outbox import Outbox
from ingest_services.producer.outgoing import Outgoing
from ingest_services.record import BOOK, CLOCK_TOLERANCE_MS, HEARTBEAT, Envelope, Heartbeat, headers_of
from ingest_services.upbit.frames import REALTIME, Book, Garbage, Status, read_frame

BATCH = 512
# Acknowledgements are collected this often while some are awaited and nothing is received.
WAITING_POLL_S = 0.005
IDLE_POLL_S = 0.25
FLUSH_TIMEOUT_S = 5.0
# Of so many connections that ended, records may still be on their way to Kafka, and be lost there.
ENDED_CONNECTIONS = 32

_log = structlog.get_logger()


class Publisher(threading.Thread):
    """Publishes what one section receives."""

    def __init__(
        self,
        section: str,
        inbox: Inbox,
        stats: SectionStats,
        make_outbox: Callable[[Callable[[], list[Outgoing]], Callable[[Outgoing], None]], Outbox],
    ) -> None:
        """Describe a publisher; `start` begins it.

        Args:
            section: Producer section.
            inbox: Where frames come from.
            stats: The section's numbers.
            make_outbox: Makes the outbox, given what it calls when records go straight again, and when one
                was lost.
        """
        super().__init__(name=f"{section}-publisher", daemon=True)
        self._section = section
        self._inbox = inbox
        self._stats = stats
        self._trackers: dict[str, tuple[Connection, CoverageTracker]] = {}
        self._ended: dict[str, CoverageTracker] = {}
        self._unkept: list[Outgoing] = []
        self._stopping = threading.Event()
        self._flush_by_s = math.inf
        self._now_us = 0
        self.outbox = make_outbox(self._cut, self._lose)
        self.failed = False
        self.drained = False

    def stop(self) -> None:
        """Publish what is in the inbox, flush, and end, `FLUSH_TIMEOUT_S` from now; `join` waits for it."""
        self._flush_by_s = time.monotonic() + FLUSH_TIMEOUT_S
        self._stopping.set()

    def run(self) -> None:
        """Publish until stopped. A fault of ours is seen by the service, which then ends the process."""
        try:
            self._run()
        except Exception:  # noqa: BLE001 (it must not die unseen)
            _log.exception("publisher_failed", section=self._section)
            self.failed = True

    def _run(self) -> None:
        inbox, outbox = self._inbox, self.outbox
        while True:
            try:
                item = inbox.get(timeout=WAITING_POLL_S if outbox.waiting else IDLE_POLL_S)
            except Empty:
                if self._stopping.is_set():
                    break
            else:
                now_s = time.monotonic()
                self._take(*item, now_s)
                for _ in range(BATCH):
                    if inbox.empty():
                        break
                    self._take(*inbox.get_nowait(), now_s)
            now_s = time.monotonic()
            self._stats.publisher_turn_s = now_s
            outbox.pump(now_s)
            if self._unkept and not outbox.losing:
                self._take_back_again(now_s)
        # Of these connections nobody told the end in time.
        for connection, tracker in list(self._trackers.values()):
            self._end(connection, tracker, by_us=False, now_s=time.monotonic())
        self._take_back_again(time.monotonic())
        self.drained = outbox.finish(self._flush_by_s)
        if self._unkept:
            _log.error("claims_not_taken_back", section=self._section, heartbeats=len(self._unkept))

    def _take(
        self, at_us: int, connection: Connection, data: bytes | Signal | Dead | Proven, now_s: float
    ) -> None:
        self._now_us = at_us
        _, tracker = self._trackers.get(connection.name, (connection, None))
        if tracker is None:
            if isinstance(data, Dead | Proven):
                # The connection has ended meanwhile, and its end took back what was in doubt.
                return
            tracker = CoverageTracker(self._section, connection.name, connection.tickers, at_us)
            self._trackers[connection.name] = connection, tracker
        if isinstance(data, bytes):
            self._take_frame(at_us, connection, tracker, data, now_s)
        elif isinstance(data, Proven):
            tracker.prove(data.since_us)
        elif isinstance(data, Dead):
            self._take_back(tracker, data.since_us, now_s)
        else:
            connection.silences.alive(at_us)
            if data is Signal.ALIVE:
                self._tell(tracker.receive(at_us), now_s)
            else:
                self._end(connection, tracker, by_us=data is Signal.STOPPED, now_s=now_s)

    def _end(self, connection: Connection, tracker: CoverageTracker, *, by_us: bool, now_s: float) -> None:
        self._take_back(tracker, connection.silences.doubtful(by_us), now_s)
        self._tell(tracker.finish(), now_s)
        del self._trackers[connection.name]
        self._ended[connection.name] = tracker
        if len(self._ended) > ENDED_CONNECTIONS:
            del self._ended[next(iter(self._ended))]

    def _take_frame(
        self, at_us: int, connection: Connection, tracker: CoverageTracker, data: bytes, now_s: float
    ) -> None:
        frame = read_frame(data)
        if isinstance(frame, Book):
            ticker = frame.ticker
            connection.silences.message(at_us)
            proof_us = connection.silences.returned(ticker, at_us)
            if proof_us:
                self._take_back(tracker, {ticker: proof_us}, now_s)
            self._tell(tracker.receive(at_us, ticker), now_s)
            self._note(at_us, connection, frame, data)
            headers = headers_of(Envelope(BOOK, at_us, connection.name, frame.tms, frame.stream_type))
            self.outbox.put(Outgoing(at_us, ticker.encode(), headers, data), now_s)
            return
        self._tell(tracker.receive(at_us), now_s)
        if isinstance(frame, Status):
            connection.silences.message(at_us)
            self._stats.status_frames += 1
            return
        # An error, or garbage, may be the last word of a connection that had long fallen silent: it does not
        # speak for the stream.
        connection.silences.alive(at_us)
        if isinstance(frame, Garbage):
            # Published all the same: the consumer quarantines the bytes with the reason. It may have been
            # anyone's book, so nobody's is known any more until the next one.
            self._stats.garbage += 1
            headers = headers_of(Envelope(BOOK, at_us, connection.name))
            self.outbox.put(Outgoing(at_us, b"", headers, data), now_s)
            tracker.doubt(at_us)
            connection.silences.doubt(at_us)
        else:
            self._stats.error_frames += 1
            _log.error("exchange_error", connection=connection.name, name=frame.name, message=frame.message)

    def _take_back(self, tracker: CoverageTracker, since_us: Mapping[str, int], now_s: float) -> None:
        for heartbeat in tracker.retract(since_us):
            self._count_holes(heartbeat)
            self._tell(heartbeat, now_s)

    def _take_back_again(self, now_s: float) -> None:
        unkept, self._unkept = self._unkept, []
        for record in unkept:
            self.outbox.put(record, now_s)

    def _count_holes(self, heartbeat: Heartbeat) -> None:
        self._stats.holes_s += sum(
            len(hole.tickers) * (hole.to_us - hole.from_us) / 1e6 for hole in heartbeat.holes
        )

    def _note(self, at_us: int, connection: Connection, book: Book, frame: bytes) -> None:
        """Keep what the section tells about its books."""
        stats = self._stats
        stats.last_frame_us[book.ticker] = at_us
        delay_s = at_us / 1e6 - book.tms / 1e3
        in_future = delay_s < -CLOCK_TOLERANCE_MS / 1e3
        # A stamp of tomorrow would make every book until then look old.
        connection.silences.book(book.ticker, at_us, 0 if in_future else book.tms, frame)
        if in_future:
            stats.future_stamps += 1
        if book.microseconds:
            stats.microsecond_stamps += 1
        if book.stream_type == REALTIME:
            stats.observe_delay(delay_s)

    def _tell(self, heartbeat: Heartbeat | None, now_s: float) -> None:
        if heartbeat is not None:
            self.outbox.put(self._pack(heartbeat), now_s)

    def _cut(self) -> list[Outgoing]:
        return [self._pack(tracker.cut()) for _, tracker in self._trackers.values()]

    def _lose(self, record: Outgoing) -> None:
        """Take note of a record that was not kept, or that may yet be lost."""
        headers = dict(record.headers)
        if headers["kind"] == HEARTBEAT.encode():
            # What it claims is claimed by nobody now. What it takes back is still to be taken back.
            if Heartbeat.decode(record.value).holes:
                self._unkept.append(record)
            return
        name = headers["connection"].decode()
        _, tracker = self._trackers.get(name, (None, self._ended.get(name)))
        if tracker is not None:
            for heartbeat in tracker.lose(record.received_us, record.key.decode() or None):
                self._count_holes(heartbeat)
                self._unkept.append(self._pack(heartbeat))

    def _pack(self, heartbeat: Heartbeat) -> Outgoing:
        self._stats.heartbeats += 1
        headers = headers_of(Envelope(HEARTBEAT, self._now_us, heartbeat.connection))
        return Outgoing(self._now_us, self._section.encode(), headers, heartbeat.encode())
