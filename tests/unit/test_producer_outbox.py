"""Where each record goes when Kafka takes it, delays it, refuses it or is gone, and that none goes unseen."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from ingest_services.producer import outbox as outbox_module
from ingest_services.producer.coverage import CoverageTracker
from ingest_services.producer.lane import Outcome, Sent
from ingest_services.producer.metrics import SectionStats
from ingest_services.producer.outbox import Outbox
from ingest_services.producer.outgoing import Outgoing
from ingest_services.producer.spool import MAGIC, Spool, read_segment
from ingest_services.record import BOOK, HEARTBEAT, Envelope, Heartbeat, headers_of

START_US = 1_700_000_000_000_000


class FakeLane:
    """A lane whose Kafka does what a test says: acknowledges so many, refuses these, is away, gives up."""

    def __init__(self, kafka: list[Outgoing]) -> None:
        self.kafka = kafka
        self.ready = True
        self.broken = False
        self.closed = False
        self.answers = 1 << 30
        self.refused: set[bytes] = set()
        self.sent: deque[Sent[Any]] = deque()

    @property
    def bytes(self) -> int:
        return sum(len(sent.record.value) for sent in self.sent)

    def oldest_s(self, now_s: float) -> float:
        return now_s - self.sent[0].at_s if self.sent else 0.0

    def send(self, record: Outgoing, tag: Any, now_s: float) -> Outcome:
        if record.value in self.refused:
            return Outcome.REFUSED
        if not self.ready:
            return Outcome.NOT_READY
        self.sent.append(Sent(None, now_s, record, tag))
        return Outcome.SENT

    def acknowledged(self) -> Iterator[Sent[Any]]:
        for _ in range(min(self.answers, len(self.sent))):
            first = self.sent.popleft()
            self.kafka.append(first.record)
            yield first

    def take_back(self) -> list[Sent[Any]]:
        back = list(self.sent)
        self.sent.clear()
        self.broken = False
        return back

    def close(self) -> None:
        self.closed = True


class Run:
    """An outbox between two fake lanes and a real spool."""

    def __init__(self, folder: Path, limit_bytes: int = 1 << 30) -> None:
        self.kafka: list[Outgoing] = []
        self.live = FakeLane(self.kafka)
        self.backlog = FakeLane(self.kafka)
        self.spool = Spool(folder, "s", limit_bytes=limit_bytes, segment_bytes=400)
        self.stats = SectionStats("s")
        self.lost: list[Outgoing] = []
        self.now_s = time.monotonic()
        self.outbox = Outbox(
            self.live,  # type: ignore[arg-type]
            lambda: self.backlog,  # type: ignore[arg-type,return-value]
            self.spool,
            self.stats,
            list,
            self.lost.append,
        )

    def put(self, *numbers: int, size: int = 50) -> list[Outgoing]:
        records = [Outgoing(START_US + n, b"BTC", [("kind", b"book")], b"%0*d" % (size, n)) for n in numbers]
        for record in records:
            self.outbox.put(record, self.now_s)
        return records

    def pump(self, later_s: float = 0.0) -> None:
        self.now_s += later_s
        self.outbox.pump(self.now_s)

    def go_away(self) -> None:
        self.live.answers = self.backlog.answers = 0

    def come_back(self) -> None:
        self.live.answers = self.backlog.answers = 1 << 30


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_what_waited_is_delivered_in_order_with_its_stamps_while_new_records_go_straight(run: Run) -> None:
    before = run.put(*range(5))
    run.pump()
    run.go_away()
    on_their_way = run.put(*range(5, 10))
    run.pump(later_s=outbox_module.PATIENCE_S + 0.1)
    assert run.stats.spooling
    waited = run.put(*range(10, 40))
    run.come_back()
    run.pump()
    assert not run.stats.spooling
    run.backlog.answers = 1
    straight: list[Outgoing] = []
    while run.stats.spool_bytes:
        assert run.spool.pending or run.backlog.sent
        straight += run.put(1000 + len(straight))
        run.pump()
        # Nothing that comes now stands behind what waited.
        assert run.kafka.count(straight[-1]) == 1 or straight[-1] in [s.record for s in run.live.sent]
    run.pump()
    assert [r for r in run.kafka if r.received_us < START_US + 1000] == [*before, *on_their_way, *waited]
    assert [r for r in run.kafka if r.received_us >= START_US + 1000] == straight
    assert run.kafka.index(straight[0]) < run.kafka.index(waited[-1])
    assert run.backlog.closed
    assert (run.stats.spool_records, run.stats.spool_oldest_us, run.lost) == (0, 0, [])
    assert run.stats.published == run.stats.acknowledged == len(run.kafka)


def test_depth_and_age_are_told_while_kafka_is_away(run: Run) -> None:
    run.go_away()
    run.put(1, 2, 3)
    run.pump(later_s=outbox_module.PATIENCE_S + 0.1)
    run.put(4, 5)
    run.pump(later_s=1.0)
    assert run.stats.spool_records == 5
    assert run.stats.spool_oldest_us == START_US + 1
    assert run.stats.spool_bytes == sum(path.stat().st_size for path in run.spool._home.rglob("*.spool"))


def test_a_record_that_kafka_refuses_from_the_spool_is_lost_in_the_open_and_holds_nothing_up(
    run: Run,
) -> None:
    run.live.ready = False
    records = run.put(*range(6))
    run.backlog.refused = {records[2].value, records[5].value}
    run.live.ready = True
    run.backlog.answers = 0
    for _ in range(3):
        run.pump()
    # What stands before it in the spool is not forgotten with it.
    assert run.lost == []
    assert run.stats.spool_records == 6
    run.backlog.answers = 1 << 30
    for _ in range(10):
        run.pump()
    assert run.kafka == [record for record in records if record.value not in run.backlog.refused]
    assert run.lost == [records[2], records[5]]
    assert run.stats.lost == 2
    assert run.stats.published == run.stats.acknowledged == 4
    assert run.stats.spool_bytes == 0
    assert run.backlog.closed


def test_a_full_spool_loses_the_newest_counts_each_and_tells_coverage_of_each(tmp_path: Path) -> None:
    run = Run(tmp_path, limit_bytes=2000)
    run.live.ready = False
    with capture_logs() as logs:
        records = run.put(*range(100))
    kept = run.stats.spooled
    assert 10 < kept < 30
    assert run.stats.lost == 100 - kept
    assert run.lost == records[kept:]
    assert [line["event"] for line in logs] == ["spooling", "spool_full"]
    run.live.ready = True
    with capture_logs() as logs:
        run.pump()
        run.pump()
        run.live.ready = False
        run.put(200)
    assert run.kafka == records[:kept]
    assert {"event": "records_lost", "log_level": "error", "section": "s", "records": 100 - kept} in logs


def test_losses_are_told_at_the_end_if_there_is_no_more_room(tmp_path: Path) -> None:
    run = Run(tmp_path, limit_bytes=500)
    run.live.ready = False
    run.put(*range(20))
    with capture_logs() as logs:
        assert not run.outbox.finish(time.monotonic())
    told = [line for line in logs if line["event"] == "records_lost"]
    assert [line["records"] for line in told] == [run.stats.lost]
    assert run.stats.lost > 0


def test_what_a_broken_lane_had_is_delivered_once_from_the_copy(run: Run) -> None:
    run.go_away()
    records = run.put(*range(10))
    run.pump(later_s=outbox_module.PATIENCE_S + 0.1)
    run.live.answers = 4
    run.pump()
    assert run.kafka == records[:4]
    run.live.answers = 0
    run.live.broken = True
    run.pump()
    run.come_back()
    for _ in range(3):
        run.pump()
    assert run.kafka == records
    assert run.stats.spool_bytes == 0


def test_too_much_at_once_waits_for_the_client_and_does_not_go_to_disk(run: Run) -> None:
    run.live.answers = 1
    records = run.put(*range(40), size=100_000)
    run.pump()
    assert run.live.bytes <= outbox_module.CROWDED_BYTES
    assert not run.stats.spooling
    run.live.answers = 1 << 30
    run.pump()
    assert run.kafka == records
    assert run.stats.spooled == 0


def test_a_kafka_that_does_not_answer_holds_nobody_back(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "LIVE_BYTES", 4_000_000)
    run.go_away()
    run.now_s -= outbox_module.GIVE_WAY_S
    run.put(*range(30), size=100_000)
    monkeypatch.setattr(outbox_module.time, "sleep", lambda seconds: pytest.fail("it waited"))
    run.pump(later_s=outbox_module.GIVE_WAY_S)
    assert not run.stats.spooling
    run.put(*range(30, 41), size=100_000)
    run.pump()
    assert run.stats.spooling
    assert run.stats.spool_records == 41


def test_a_record_too_large_for_kafka_is_refused_at_once(run: Run) -> None:
    record = Outgoing(START_US, b"", [], bytes(outbox_module.VALUE_BYTES + 1))
    run.outbox.put(record, run.now_s)
    assert run.lost == [record]
    assert (run.stats.lost, run.stats.published, run.kafka) == (1, 0, [])


# ---- what the disk spoils


def collect(connection: str, start_us: int) -> list[Outgoing]:
    """What a publisher makes of 60 books of three tickers: the books, with their heartbeats behind them."""
    records = []
    tickers = ("BTC", "ETH", "XRP")
    tracker = CoverageTracker("s", connection, tickers, start_us, every_us=10_000)

    def tell(at_us: int, heartbeat: Heartbeat | None) -> None:
        if heartbeat is not None:
            headers = headers_of(Envelope(HEARTBEAT, at_us, connection))
            records.append(Outgoing(at_us, b"s", headers, heartbeat.encode()))

    for number in range(60):
        at_us = start_us + number * 1000
        # XRP is quiet: its next book is long in coming.
        ticker = "XRP" if number in (2, 50) else tickers[number % 2]
        tell(at_us, tracker.receive(at_us, ticker))
        headers = headers_of(Envelope(BOOK, at_us, connection, 1, "REALTIME"))
        records.append(Outgoing(at_us, ticker.encode(), headers, b"%d" % number * 10))
    tell(start_us + 60_000, tracker.finish())
    return records


def claims(records: list[Outgoing]) -> list[tuple[str, int, int]]:
    """Return ticker, from and to of each span that the heartbeats among the records claim."""
    return [
        (ticker, span.from_us, span.to_us)
        for record in records
        if dict(record.headers)["kind"] == HEARTBEAT.encode()
        for span in Heartbeat.decode(record.value).covered
        for ticker in span.tickers
    ]


def deliver(folder: Path) -> list[Outgoing]:
    """Let another process deliver what a folder holds."""
    run = Run(folder)
    while run.spool.pending or run.backlog.sent:
        run.pump()
    assert run.outbox.finish(time.monotonic() + 5)
    return run.kafka


def spool(folder: Path, records: list[Outgoing]) -> list[Path]:
    """Let a process spool records and end; return its segments."""
    run = Run(folder)
    run.live.ready = False
    for record in records:
        run.outbox.put(record, run.now_s)
    run.outbox.finish(time.monotonic())
    return sorted(folder.rglob("*.spool"))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_nobody_claims_the_time_of_a_frame_that_the_disk_spoiled(data: st.DataObject) -> None:
    records = collect("s-1", START_US)
    with TemporaryDirectory() as name:
        folder = Path(name)
        segments = spool(folder, records)
        assert len(segments) > 10
        # Not the last segment: a tail that is cut off takes the heartbeats that spoke of it along.
        path = data.draw(st.sampled_from(segments[:-1]))
        content = bytearray(path.read_bytes())
        if data.draw(st.booleans()):
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        else:
            at = data.draw(st.integers(0, len(content) - 1))
            # A segment that ends where a record does looks whole. It is synced before the next one is begun.
            assume(at not in {len(MAGIC), *(end for _, end in read_segment(bytes(content))[0])})
            content[at:] = bytes(len(content) - at) if data.draw(st.booleans()) else b""
        path.write_bytes(content)
        delivered = deliver(folder)
    kept = {record.received_us for record in delivered if record.key != b"s"}
    lost = [record for record in records if record.key != b"s" and record.received_us not in kept]
    told = claims(delivered)
    for record in lost:
        ticker = record.key.decode()
        again_us = min(
            (r.received_us for r in delivered if r.key == record.key and r.received_us > record.received_us),
            default=1 << 63,
        )
        for _, from_us, to_us in (claim for claim in told if claim[0] == ticker):
            assert to_us <= record.received_us or from_us >= again_us, (record.received_us - START_US, told)
    # Nothing is claimed that was not claimed before, and what lies in front of the damage still is.
    was = claims(records)
    for ticker, from_us, to_us in told:
        assert any(t == ticker and a <= from_us and to_us <= b for t, a, b in was)
    if lost:
        before = bisect_left([record.received_us for record in delivered], lost[0].received_us)
        before_it = claims(delivered[:before])
        assert before_it == was[: len(before_it)]


def test_a_spool_that_is_whole_comes_out_to_the_byte(tmp_path: Path) -> None:
    records = collect("s-1", START_US)
    spool(tmp_path, records)
    assert deliver(tmp_path) == records


def test_damage_in_one_process_s_spool_takes_nothing_from_another_s(tmp_path: Path) -> None:
    first, second = collect("s-1", START_US), collect("s-2", START_US + 10_000_000)
    torn = spool(tmp_path / "a", first)[-1]
    spool(tmp_path / "b", second)
    torn.write_bytes(torn.read_bytes()[:-3])
    for home in (tmp_path / "b" / "s").iterdir():
        if home.is_dir():
            home.rename(tmp_path / "a" / "s" / home.name)
    delivered = deliver(tmp_path / "a")
    assert delivered[-len(second) :] == second
    assert first[: len(delivered) - len(second)] == delivered[: -len(second)]
