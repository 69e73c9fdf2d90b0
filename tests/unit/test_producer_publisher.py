"""What a publisher claims, and takes back, whatever comes through the inbox and whatever the outbox keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ingest_services.lake.coverage import Interval, covered_intervals
from ingest_services.producer import publisher as publisher_module
from ingest_services.producer.feed import Connection, Dead, Inbox, Item, Proven, Signal
from ingest_services.producer.metrics import SectionStats
from ingest_services.producer.outbox import Outbox
from ingest_services.producer.outgoing import Outgoing
from ingest_services.producer.publisher import FLUSH_TIMEOUT_S, Publisher
from ingest_services.producer.spool import Spool
from ingest_services.record import BOOK, HEARTBEAT, Heartbeat
from tests.scripted_exchange import book
from tests.unit.test_producer_outbox import FakeLane

SECOND = 1_000_000
START = 1_738_480_560 * SECOND  # a full minute


class Kept:
    """An outbox that keeps everything but what it is told to refuse."""

    waiting = False

    def __init__(self, on_lost: Callable[[Outgoing], None], refuses: Callable[[Outgoing], bool]) -> None:
        self.records: list[Outgoing] = []
        self.losing = False
        self._on_lost = on_lost
        self._refuses = refuses

    def put(self, record: Outgoing, now_s: float) -> None:
        if self._refuses(record):
            self._on_lost(record)
        else:
            self.records.append(record)

    def pump(self, now_s: float) -> None:
        pass

    def finish(self, deadline_s: float) -> bool:
        return True


def publish(
    items: Iterable[Item], refuses: Callable[[Outgoing], bool] = lambda record: False
) -> dict[str, list[Interval]]:
    """Put items through a publisher, stop it, and return what it claims."""
    inbox: Inbox = Inbox()
    for item in items:
        inbox.put(item)
    publisher = Publisher("s", inbox, SectionStats("s"), lambda _, on_lost: Kept(on_lost, refuses))  # type: ignore[arg-type,return-value]
    publisher.stop()
    publisher.run()
    assert not publisher.failed
    return claims(publisher.outbox.records)  # type: ignore[attr-defined]


def claims(records: Iterable[Outgoing]) -> dict[str, list[Interval]]:
    return covered_intervals(
        Heartbeat.decode(record.value)
        for record in records
        if dict(record.headers)["kind"] == HEARTBEAT.encode()
    )


def frame(at_us: int, market: str = "KRW-BTC") -> bytes:
    return book(market, at_us // 1000)


def test_a_proof_from_before_a_frame_that_nobody_can_read_says_nothing_about_it() -> None:
    connection = Connection("s-1", ["KRW-BTC"])
    spoiled_us = START + 4 * SECOND
    claimed = publish(
        [
            (START, connection, Signal.ALIVE),
            (START + SECOND, connection, frame(START + SECOND)),
            (START + 2 * SECOND, connection, b"spoiled"),
            (spoiled_us, connection, b"spoiled as well"),
            # Asked for between the two.
            (START + 5 * SECOND, connection, Proven({"BTC": START + 3 * SECOND})),
            (START + 6 * SECOND, connection, frame(START + 6 * SECOND)),
            (START + 7 * SECOND, connection, Signal.ALIVE),
            (START + 7 * SECOND, connection, Signal.STOPPED),
        ]
    )
    assert claimed["BTC"] == [
        (START + SECOND, START + 2 * SECOND),
        (START + 6 * SECOND, START + 7 * SECOND),
    ]


def test_a_connection_whose_end_nobody_told_claims_no_more_than_one_that_broke() -> None:
    connection = Connection("s-1", ["KRW-BTC", "KRW-ETH"])
    items: list[Item] = [(START, connection, Signal.ALIVE)]
    for tenth in range(300):
        at_us = START + tenth * SECOND // 10
        items.append((at_us, connection, frame(at_us, "KRW-ETH")))
        if tenth < 100:
            items.append((at_us, connection, frame(at_us)))
    last_us = START + 99 * SECOND // 10
    claimed = publish(items)
    assert claimed["BTC"] == [(START, last_us)], "it had long fallen silent, unproven"
    assert claimed["ETH"][-1][1] == START + 299 * SECOND // 10


def test_a_ticker_that_speaks_again_after_a_silence_nobody_answered_for_has_a_hole() -> None:
    connection = Connection("s-1", ["KRW-BTC", "KRW-ETH"])

    def items() -> Iterable[Item]:
        yield START, connection, Signal.ALIVE
        for tenth in range(500):
            at_us = START + tenth * SECOND // 10
            yield at_us, connection, frame(at_us, "KRW-ETH")
            if not 100 <= tenth < 400:
                yield at_us, connection, frame(at_us)
            if tenth == 200:
                connection.silences.leave_open(["BTC"])
        yield START + 50 * SECOND, connection, Signal.ALIVE
        yield START + 50 * SECOND, connection, Signal.STOPPED

    inbox: Inbox = Inbox()
    publisher = Publisher("s", inbox, SectionStats("s"), lambda _, on_lost: Kept(on_lost, lambda r: False))  # type: ignore[arg-type,return-value]
    for item in items():
        publisher._take(*item, 0.0)
    claimed = claims(publisher.outbox.records)  # type: ignore[attr-defined]
    assert claimed["BTC"] == [
        (START, START + 99 * SECOND // 10),
        (START + 40 * SECOND, START + 50 * SECOND),
    ]
    assert claimed["ETH"] == [(START, START + 50 * SECOND)]


def test_what_could_not_be_taken_back_is_taken_back_later() -> None:
    connection = Connection("s-1", ["KRW-BTC"])
    refusals = iter([True])

    def refuses_the_first_hole(record: Outgoing) -> bool:
        return b'"holes"' in record.value and next(refusals, False)

    items: list[Item] = [(START, connection, Signal.ALIVE)]
    items += [(START + n * SECOND, connection, frame(START + n * SECOND)) for n in range(30)]
    items += [(START + 30 * SECOND, connection, Dead({"BTC": START + 10 * SECOND}))]
    claimed = publish(items, refuses_the_first_hole)
    assert not next(refusals, False), "it was tried"
    assert claimed["BTC"] == [(START, START + 10 * SECOND)]


def test_claims_that_stay_untrue_are_said_so() -> None:
    connection = Connection("s-1", ["KRW-BTC"])
    items: list[Item] = [(START, connection, Signal.ALIVE)]
    items += [(START + n * SECOND, connection, frame(START + n * SECOND)) for n in range(30)]
    items += [(START + 30 * SECOND, connection, Dead({"BTC": START + 10 * SECOND}))]
    with capture_logs() as logs:
        publish(items, lambda record: b'"holes"' in record.value)
    assert [line["event"] for line in logs] == ["claims_not_taken_back"]


def test_a_full_spool_holds_a_hole_up_until_there_is_room(tmp_path: Path) -> None:
    kafka: list[Outgoing] = []
    live, backlog = FakeLane(kafka), FakeLane(kafka)
    stats = SectionStats("s")
    spool = Spool(tmp_path, "s", limit_bytes=400)
    publisher = Publisher(
        "s",
        Inbox(),
        stats,
        lambda on_resume, on_lost: Outbox(live, lambda: backlog, spool, stats, on_resume, on_lost),  # type: ignore[arg-type,return-value]
    )
    connection = Connection("s-1", ["KRW-BTC"])
    publisher._take(START, connection, Signal.ALIVE, 0.0)
    for n in range(30):
        publisher._take(START + n * SECOND, connection, frame(START + n * SECOND), 0.0)
    publisher.outbox.pump(0.0)
    live.ready = False
    while not stats.lost:
        publisher._take(START + 30 * SECOND, connection, frame(START + 30 * SECOND), 0.0)
    publisher._take(START + 31 * SECOND, connection, Dead({"BTC": START + 10 * SECOND}), 0.0)
    assert publisher.outbox.losing
    live.ready = True
    publisher.outbox.pump(0.0)
    publisher.stop()
    publisher.run()
    assert claims(kafka)["BTC"][0] == (START, START + 10 * SECOND)


def test_no_heartbeat_overtakes_what_is_still_in_the_spool(tmp_path: Path) -> None:
    kafka: list[Outgoing] = []
    live, backlog = FakeLane(kafka), FakeLane(kafka)
    stats = SectionStats("s")
    publisher = Publisher(
        "s",
        Inbox(),
        stats,
        lambda on_resume, on_lost: Outbox(
            live, lambda: backlog, Spool(tmp_path, "s"), stats, on_resume, on_lost
        ),  # type: ignore[arg-type,return-value]
    )
    connection = Connection("s-1", ["KRW-BTC"])
    publisher._take(START, connection, Signal.ALIVE, 0.0)
    for n in range(30):
        live.ready = not 5 <= n < 10
        if n == 10:
            backlog.answers = 0
            publisher.outbox.pump(0.0)
        publisher._take(START + n * SECOND, connection, frame(START + n * SECOND), 0.0)
    publisher.outbox.pump(0.0)
    # If this process dies now, who reads Kafka has everything but what is in the spool, and no claim to it.
    waiting = [START + n * SECOND for n in range(5, 10)]
    assert not {record.received_us for record in kafka} & set(waiting)
    spans = claims(kafka)["BTC"]
    assert spans[-1][1] > START + 20 * SECOND
    assert not [at_us for at_us in waiting if any(a <= at_us < b for a, b in spans)]
    backlog.answers = 1 << 30
    publisher.stop()
    publisher.run()
    assert claims(kafka)["BTC"] == [(START, START + 29 * SECOND)]


@pytest.mark.parametrize("late", [False, True])
def test_a_loss_that_is_noticed_late_is_taken_back(late: bool) -> None:
    connection = Connection("s-1", ["KRW-BTC"])
    lost: list[Outgoing] = []
    inbox: Inbox = Inbox()
    publisher = Publisher("s", inbox, SectionStats("s"), lambda _, on_lost: Kept(on_lost, lambda r: False))  # type: ignore[arg-type,return-value]
    publisher._take(START, connection, Signal.ALIVE, 0.0)
    for n in range(10):
        publisher._take(START + n * SECOND, connection, frame(START + n * SECOND), 0.0)
        if n == (9 if late else 5):
            lost = [r for r in publisher.outbox.records if r.received_us == START + 5 * SECOND]  # type: ignore[attr-defined]
            publisher._lose(lost[0])
    publisher._take(START + 12 * SECOND, connection, frame(START + 12 * SECOND), 0.0)
    publisher.stop()
    publisher.run()
    claimed = claims(publisher.outbox.records)  # type: ignore[attr-defined]
    assert len(lost) == 1
    assert claimed["BTC"][0] == (START, START + 5 * SECOND)
    assert claimed["BTC"][1:] == [] if late else [(START + 6 * SECOND, START + 12 * SECOND)]


def carrying() -> tuple[Publisher, Callable[[int], None]]:
    """Return a publisher whose outbox keeps everything, and what tells it that a second's frame is lost."""
    publisher = Publisher("s", Inbox(), SectionStats("s"), lambda _, on_lost: Kept(on_lost, lambda r: False))  # type: ignore[arg-type,return-value]

    def lose(second: int) -> None:
        (record,) = (
            r
            for r in publisher.outbox.records  # type: ignore[attr-defined]
            if r.received_us == START + second * SECOND and dict(r.headers)["kind"] == BOOK.encode()
        )
        publisher.outbox.records.remove(record)  # type: ignore[attr-defined]
        publisher._lose(record)

    return publisher, lose


@pytest.mark.parametrize("end", [Signal.ENDED, Signal.STOPPED])
def test_a_loss_that_is_noticed_when_its_connection_has_ended_is_taken_back(end: Signal) -> None:
    connection = Connection("s-1", ["KRW-BTC", "KRW-ETH"])
    publisher, lose = carrying()
    publisher._take(START, connection, Signal.ALIVE, 0.0)
    for n in range(30):
        market = "KRW-ETH" if n % 2 else "KRW-BTC"
        publisher._take(START + n * SECOND, connection, frame(START + n * SECOND, market), 0.0)
    publisher._take(START + 30 * SECOND, connection, end, 0.0)
    lose(10)
    lose(20)
    publisher.stop()
    publisher.run()
    claimed = claims(publisher.outbox.records)  # type: ignore[attr-defined]
    assert claimed["BTC"] == [(START, START + 10 * SECOND)]
    assert claimed["ETH"][-1][1] >= START + 29 * SECOND


def test_a_loss_from_before_a_claim_was_taken_back_is_taken_back_as_well() -> None:
    connection = Connection("s-1", ["KRW-BTC"])
    publisher, lose = carrying()
    publisher._take(START, connection, Signal.ALIVE, 0.0)
    for n in range(20):
        publisher._take(START + n * SECOND, connection, frame(START + n * SECOND), 0.0)
    publisher._take(START + 20 * SECOND, connection, Dead({"BTC": START + 12 * SECOND}), 0.0)
    lose(5)
    publisher.stop()
    publisher.run()
    assert claims(publisher.outbox.records)["BTC"] == [(START, START + 5 * SECOND)]  # type: ignore[attr-defined]


def test_many_losses_that_are_noticed_late_are_told_once() -> None:
    connection = Connection("s-1", ["KRW-BTC"])
    publisher, lose = carrying()
    publisher._take(START, connection, Signal.ALIVE, 0.0)
    for n in range(50):
        publisher._take(START + n * SECOND, connection, frame(START + n * SECOND), 0.0)
    for n in range(10, 30):
        lose(n)
    assert len(publisher._unkept) == 1


def test_what_takes_long_to_publish_leaves_less_time_to_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    deadlines: list[float] = []
    monkeypatch.setattr(Kept, "finish", lambda self, deadline_s: not deadlines.append(deadline_s))
    publisher, _ = carrying()
    publisher.stop()
    asked_s = publisher_module.time.monotonic()
    monkeypatch.setattr(publisher_module, "IDLE_POLL_S", 0.5)
    publisher.run()
    assert deadlines[0] <= asked_s + FLUSH_TIMEOUT_S
