"""What a replay selects, in which order and at which pace; a lake that is damaged is named."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from ingest_services.errors import UserError
from ingest_services.lake import chain as chains
from ingest_services.lake import layout
from ingest_services.lake.lines import Line
from ingest_services.tools.replay import Range, paced, read_range
from tests.lake_builder import LakeBuilder, Row, frame, heartbeat, instant, ms

START = instant("2025-02-02 16:05:00")
SECOND = timedelta(seconds=1)


def row(second: float, ticker: str = "BTC", late_s: float = 0.005) -> Row:
    tms = ms(START) + int(second * 1000)
    return Row(frame(ticker, tms, [(101, 100, 1, 1)]), tms * 1000 + int(late_s * 1e6))


def replayed(lake: LakeBuilder, begin_s: float, end_s: float, *tickers: str) -> list[Line]:
    at_us = ms(START) * 1000
    wanted = Range(at_us + int(begin_s * 1e6), at_us + int(end_s * 1e6), frozenset(tickers))
    return list(read_range(lake.store, wanted))


@pytest.fixture
def lake(tmp_path: Path) -> LakeBuilder:
    """Two partitions; the last commit of the first holds what came an hour late."""
    builder = LakeBuilder(tmp_path / "raw", partitions=2, since=START)
    builder.commit([row(1), row(3), row(2, "ETH")], committed=START + 5 * SECOND)
    builder.commit(
        [row(11), row(12)],
        [heartbeat(START, START + 9 * SECOND, "BTC")],
        [Row(b"?", ms(START) * 1000 + 12_500_000)],
        committed=START + 15 * SECOND,
    )
    builder.commit([row(4, late_s=3600)], committed=START + 3605 * SECOND)
    builder.commit([row(2.5, "XRP"), row(11.5, "XRP")], partition=1, committed=START + 15 * SECOND)
    return builder


def test_what_was_received_in_the_range_comes_in_the_order_of_each_log(lake: LakeBuilder) -> None:
    found = replayed(lake, 0, 100)
    assert [(line.partition, line.offset) for line in found if line.partition == 0] == [
        (0, offset) for offset in range(7)
    ]
    assert [(line.partition, line.offset) for line in found if line.partition == 1] == [(1, 0), (1, 1)]
    assert {line.kind for line in found} == {"book", "heartbeat", "quarantine"}


def test_a_range_is_of_receipt_however_old_the_book_and_its_end_is_not_in_it(lake: LakeBuilder) -> None:
    assert [line.offset for line in replayed(lake, 3600, 3700)] == [7]
    assert [line.offset for line in replayed(lake, 1.005, 2.005)] == [0]
    assert replayed(lake, 500, 600) == []


def test_of_some_tickers_come_their_books_alone(lake: LakeBuilder) -> None:
    assert [(line.partition, line.offset) for line in replayed(lake, 0, 100, "ETH", "XRP")] == [
        (0, 2),
        (1, 0),
        (1, 1),
    ]


def test_nothing_beyond_a_hole_or_a_chains_end_is_replayed(lake: LakeBuilder) -> None:
    chains.open_chain(lake.store, "orderbook", "topic-2", {0: 0, 1: 0}, lambda: {0: 0, 1: 0}, ms(START))
    (first, second) = chains.read_chains(lake.store)
    assert second.predecessor == first.number
    # Sealed, and replayed as before.
    assert len(replayed(lake, 0, 100)) == 9
    (lake.folder / layout.commit_path(1, 0, 3)).unlink()
    assert [line.offset for line in replayed(lake, 0, 4000) if line.partition == 0] == [0, 1, 2]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: path.unlink(), "is gone, and a commit names it; run: cryptostream audit"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is damaged; run: cryptostream audit"),
    ],
)
def test_an_object_that_is_not_what_its_commit_says_is_named_and_not_passed_over(
    lake: LakeBuilder, damage: object, told: str
) -> None:
    path = next(lake.store.list("ticker=ETH/"))
    damage(lake.folder / path)  # type: ignore[operator]
    with pytest.raises(UserError, match=f"{path}: {told}"):
        replayed(lake, 0, 100)


@dataclass
class Time:
    """A clock that goes on when somebody waits."""

    now_s: float = 100.0

    def wait(self, seconds: float) -> None:
        assert seconds > 0
        self.now_s += seconds


@pytest.mark.parametrize("speed", [0.5, 1.0, 4.0])
def test_the_pace_is_that_of_receipt_times_the_speed(lake: LakeBuilder, speed: float) -> None:
    time, sent_s = Time(), []
    books = [line for line in replayed(lake, 0, 100) if line.partition == 1]
    for _ in paced(books, speed, lambda: time.now_s, time.wait):
        sent_s.append(time.now_s)
        # What it takes to send one does not add up.
        time.now_s += 0.25
    assert sent_s == [100.0, pytest.approx(100.0 + 9 / speed)]


def test_as_fast_as_possible_waits_for_nothing(lake: LakeBuilder) -> None:
    lines = replayed(lake, 0, 100)
    assert list(paced(lines, 0, lambda: 0.0, lambda seconds: pytest.fail("waited"))) == lines
