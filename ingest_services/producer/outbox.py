"""The outbox: where every record of a section goes, and where none is lost silently.

    healthy     put ──▶ live lane ──▶ Kafka              spool ──▶ backlog lane ──▶ Kafka (what is left of it)
    unhealthy   put ──▶ spool                            live lane: waits for the fate of what it sent

* The live lane is unhealthy when its oldest record waits for more than `PATIENCE_S`, when too much waits, or
  when it has no producer. What it has sent and not got acknowledged is then copied to the spool, apart: if
  this process dies, the copy is delivered by the next one; if Kafka acknowledges, the copy is dropped; if the
  lane breaks, the copy is delivered.
* It is healthy again when it is ready and nothing of it is on its way. From then on new records go straight
  to Kafka, while the backlog lane delivers the spool, in order and with its original timestamps.
* Behind every change of way stands a heartbeat: `on_resume` gives those that end what is in the spool.

Used by one thread, which a Kafka that is slow or gone never blocks: that sends records to the spool. Only
when more comes at once than this processor can hand over does it wait for a moment (`CROWDED_BYTES`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import structlog

from ingest_services.producer.damage import DamageRecord
from ingest_services.producer.lane import Lane, Outcome, Sent
from ingest_services.producer.metrics import SectionStats
from ingest_services.producer.outgoing import Outgoing
from ingest_services.producer.spool import Segment, Spool, Spooled, SpoolFull

PATIENCE_S = 1.0
# Above the one, and while Kafka answers within the other (it takes 8 MB/s then, three times the exchange's
# peak), the processor is short, not Kafka, and Kafka's client gets it to itself until it has caught up.
# Without, the live lane goes to disk and back in turns, for a tenth less throughput and twice the memory.
CROWDED_BYTES = 2 * 1024 * 1024
GIVE_WAY_S = 0.25
LIVE_BYTES = 24 * 1024 * 1024
BACKLOG_BYTES = 4 * 1024 * 1024
BACKLOG_PER_PUMP = 256
ADOPT_EVERY_S = 10.0
CURSOR_EVERY_S = 1.0
# Brokers take a mebibyte a record; a book of 30 levels has 3 kB.
VALUE_BYTES = 900_000
_POLL_S = 0.005
_GIVE_WAY_POLL_S = 0.002

_log = structlog.get_logger()


class Outbox:
    """Carries the records of one section to Kafka, by way of the disk if it has to."""

    def __init__(
        self,
        live: Lane[None],
        make_backlog: Callable[[], Lane[Spooled]],
        spool: Spool,
        stats: SectionStats,
        on_resume: Callable[[], Iterable[Outgoing]],
        on_lost: Callable[[Outgoing], None],
    ) -> None:
        """Put an outbox together.

        Args:
            live: The lane for what is received now.
            make_backlog: Makes the lane for the spool; called when there is something in it.
            spool: Where records wait.
            stats: Numbers to keep.
            on_resume: Gives the heartbeats that go last into the spool, when records go straight again.
            on_lost: Called with each record that was not kept, or that may yet be lost: coverage must not
                claim it.
        """
        self._live = live
        self._make_backlog = make_backlog
        self._backlog: Lane[Spooled] | None = None
        self._spool = spool
        self._stats = stats
        self._on_resume = on_resume
        self._on_lost = on_lost
        self._copy: Segment | None = None
        self._copied = 0
        self._unsent: tuple[Spooled, Outgoing] | None = None
        self._losing = 0
        self._damage = DamageRecord()
        self._adopted_s = self._cursor_s = time.monotonic()

    @property
    def waiting(self) -> bool:
        """Whether an acknowledgement is awaited."""
        return bool(self._live.sent) or bool(self._backlog and self._backlog.sent)

    @property
    def losing(self) -> bool:
        """Whether records would be lost now: they go to the spool, and it did not take the last one."""
        return self._stats.spooling and self._losing > 0

    def put(self, record: Outgoing, now_s: float) -> None:
        """Take one record.

        Args:
            record: The record.
            now_s: Monotonic clock.
        """
        if len(record.value) > VALUE_BYTES:
            self._refuse(record)
            return
        if not self._stats.spooling:
            outcome = self._live.send(record, None, now_s)
            if outcome is Outcome.SENT:
                self._stats.published += 1
                return
            if outcome is Outcome.REFUSED:
                self._refuse(record)
                return
            self._begin_spooling("not ready")
        self._keep(record)

    def pump(self, now_s: float) -> None:
        """Collect acknowledgements, judge the live lane, and deliver from the spool.

        Args:
            now_s: Monotonic clock.
        """
        self._collect_live()
        now_s = self._give_way(now_s)
        if self._stats.spooling:
            if self._live.ready and not self._live.sent:
                self._resume()
        elif self._live.oldest_s(now_s) > PATIENCE_S:
            self._begin_spooling("no acknowledgement")
        elif self._live.bytes > LIVE_BYTES:
            self._begin_spooling("too much unacknowledged")
        self._deliver(now_s)
        self._look_after_spool(now_s)

    def finish(self, deadline_s: float) -> bool:
        """Deliver what can be delivered until a deadline (monotonic clock), then close.

        Returns:
            Whether everything was delivered. What was not is in the spool.
        """
        while True:
            now_s = time.monotonic()
            self.pump(now_s)
            spool_done = not self._stats.spooling and not self._spool.pending and self._unsent is None
            if (spool_done and not self.waiting) or now_s >= deadline_s:
                break
            time.sleep(_POLL_S)
        self._tell_losses()
        if self._live.sent and self._copy is None:
            self._copy_live()
        if self._copy is not None:
            self._spool.release(self._copy, self._copied)
        self._spool.rewind()
        self._tell_depth()
        self._stats.spool_oldest_us = self._spool.oldest_us
        self._spool.close()
        self._live.close()
        if self._backlog is not None:
            self._backlog.close()
        return spool_done and not self.waiting

    # ---- the live lane

    def _give_way(self, now_s: float) -> float:
        live = self._live
        while not self._stats.spooling and live.bytes > CROWDED_BYTES and live.oldest_s(now_s) < GIVE_WAY_S:
            time.sleep(_GIVE_WAY_POLL_S)
            self._collect_live()
            now_s = time.monotonic()
        return now_s

    def _collect_live(self) -> None:
        stats = self._stats
        count = 0
        now_us = 0
        for sent in self._live.acknowledged():
            now_us = now_us or time.time_ns() // 1000
            stats.observe_latency((now_us - sent.record.received_us) / 1e6)
            count += 1
        stats.acknowledged += count
        if self._copy is not None:
            self._copied += count
            if not self._live.sent:
                self._spool.drop(self._copy)
                self._copy = None
        if self._live.broken:
            if not stats.spooling:
                self._begin_spooling("gave up")
            if self._copy is not None:
                self._spool.release(self._copy, self._copied)
                self._copy = None
                self._live.take_back()
            else:
                for back in self._live.take_back():
                    self._keep(back.record)

    def _begin_spooling(self, why: str) -> None:
        _log.warning("spooling", section=self._stats.section, why=why, unacknowledged=len(self._live.sent))
        self._stats.spooling = True
        self._copy_live()

    def _copy_live(self) -> None:
        sent = self._live.sent
        self._copied = 0
        self._copy = self._spool.write_apart(each.record.pack() for each in sent) if sent else None
        if sent and self._copy is None:
            # They are still on their way to Kafka, but nothing saves them if that fails.
            _log.error("spool_full", section=self._stats.section, uncopied=len(sent))
            for each in sent:
                self._on_lost(each.record)

    def _resume(self) -> None:
        for record in self._on_resume():
            self._keep(record)
        self._spool.close_segment()
        self._stats.spooling = False
        _log.info("kafka_is_back", section=self._stats.section, spool_bytes=self._spool.bytes)

    # ---- the spool

    def _keep(self, record: Outgoing) -> None:
        try:
            self._spool.append(record.pack())
        except SpoolFull as error:
            self._stats.lost += 1
            self._on_lost(record)
            if not self._losing:
                _log.error("spool_full", section=self._stats.section, reason=str(error))
            self._losing += 1
            return
        self._stats.spooled += 1
        self._tell_losses()

    def _tell_losses(self) -> None:
        if self._losing:
            _log.error("records_lost", section=self._stats.section, records=self._losing)
            self._losing = 0

    def _refuse(self, record: Outgoing) -> None:
        _log.error("record_too_large", section=self._stats.section, bytes=len(record.value))
        self._stats.lost += 1
        self._on_lost(record)

    def _deliver(self, now_s: float) -> None:
        if self._backlog is None:
            if self._stats.spooling or not self._spool.pending:
                return
            self._backlog = self._make_backlog()
        lane = self._backlog
        for sent in lane.acknowledged():
            self._delivered(sent)
        if lane.broken:
            lane.take_back()
            self._unsent = None
            self._spool.rewind()
        if self._stats.spooling:
            return
        for _ in range(BACKLOG_PER_PUMP):
            if lane.bytes >= BACKLOG_BYTES:
                return
            self._unsent = self._unsent or self._read_spool()
            if self._unsent is None:
                break
            spooled, record = self._unsent
            outcome = lane.send(record, spooled, now_s)
            if outcome is Outcome.REFUSED and not lane.sent:
                # The spool forgets records in order: this one's turn has come.
                self._refuse(record)
                self._spool.acknowledge(spooled)
            elif outcome is Outcome.SENT:
                self._stats.published += 1
            else:
                return
            self._unsent = None
        if not lane.sent and self._unsent is None and not self._spool.pending:
            lane.close()
            self._backlog = None
            self._damage = DamageRecord()
            _log.info("spool_delivered", section=self._stats.section)

    def _read_spool(self) -> tuple[Spooled, Outgoing] | None:
        spooled = self._spool.read()
        if spooled is None:
            return None
        if spooled.damaged_since_us is not None:
            self._damage.lost_after(spooled.damaged_since_us)
        return spooled, self._damage.correct(Outgoing.unpack(spooled.payload))

    def _delivered(self, sent: Sent[Spooled]) -> None:
        self._stats.acknowledged += 1
        self._spool.acknowledge(sent.tag)

    def _look_after_spool(self, now_s: float) -> None:
        try:
            self._spool.sync(now_s)
            if now_s - self._cursor_s >= CURSOR_EVERY_S:
                self._cursor_s = now_s
                self._stats.spool_oldest_us = self._spool.oldest_us
                self._spool.save_cursors()
            if now_s - self._adopted_s >= ADOPT_EVERY_S:
                self._adopted_s = now_s
                adopted = self._spool.adopt()
                if adopted:
                    _log.info("spool_adopted", section=self._stats.section, bytes=adopted)
        except OSError as error:
            _log.error("spool_failed", section=self._stats.section, error=str(error))
        self._tell_depth()
        self._stats.spool_damaged_bytes = self._spool.damaged_bytes

    def _tell_depth(self) -> None:
        self._stats.spool_bytes = self._spool.bytes
        self._stats.spool_records = self._spool.records
        if not self._spool.bytes:
            self._stats.spool_oldest_us = 0
