"""Which markets ALL-KRW means: listings act at once, delistings twice, nonsense never; what is remembered."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_services.errors import UserError
from ingest_services.producer import feed, keeper, markets, silence
from ingest_services.producer.markets import Listing, MarketFollower, MarketMemory, first_markets, markets_of
from ingest_services.producer.metrics import MarketList, SectionStats
from ingest_services.upbit.rest import RestError

URL = "http://127.0.0.1:1"
KRW = tuple(f"KRW-{code}" for code in "ABCDEFGH")


class Rest:
    """An exchange that answers what a test says; at its end it stops the follower."""

    def __init__(self, *answers: tuple[str, ...] | Exception) -> None:
        self.answers = list(answers)
        self.at_end: Callable[[], None] = lambda: None

    def markets(self) -> tuple[str, ...]:
        answer = self.answers.pop(0)
        if not self.answers:
            self.at_end()
        if isinstance(answer, Exception):
            raise answer
        return answer


def follow(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    known: tuple[str, ...],
    *answers: tuple[str, ...] | Exception,
) -> tuple[list[tuple[str, ...]], SectionStats, MarketMemory]:
    """Let a follower hear some answers; return the changes that it reported."""
    for name in ("FOLLOW_EVERY_S", "CONFIRM_S", "RETRY_BASE_S"):
        monkeypatch.setattr(markets, name, 0.0)
    stats = SectionStats("s", market_list=MarketList.FOLLOWED if known else MarketList.UNKNOWN)
    memory = MarketMemory(folder, "s", URL, "KRW")
    changes: list[tuple[str, ...]] = []
    rest = Rest(*answers)
    follower = MarketFollower(rest, "KRW", known, memory, stats, changes.append)  # type: ignore[arg-type]
    rest.at_end = follower.stop
    follower.run()
    return changes, stats, memory


def test_a_quote_is_the_first_part_of_a_code() -> None:
    assert markets_of(["KRW-B", "BTC-KRW", "USDT-A", "KRW-A", "KRW-B"], "KRW") == ("KRW-A", "KRW-B")


def test_a_listing_acts_at_once_and_a_delisting_at_the_second_answer() -> None:
    listing = Listing(KRW)
    told = (*KRW[1:], "KRW-NEW")
    assert listing.take(told) == ((*KRW, "KRW-NEW"), True, True)
    assert listing.take(told) == (tuple(sorted(told)), False, True)


def test_a_change_is_followed_within_a_minute() -> None:
    connected_s = keeper.TURN_S + feed.CONNECT_TIMEOUT_S + silence.SNAPSHOT_BOUND_US / 1e6
    assert (
        markets.FOLLOW_EVERY_S + markets.CONFIRM_S + connected_s + keeper.TURN_S + feed.CLOSE_TIMEOUT_S < 60
    )


def test_a_hiccup_ends_nothing() -> None:
    listing = Listing(KRW)
    assert listing.take(KRW[1:]).markets == KRW
    assert listing.take(KRW) == (KRW, False, True)
    # It is forgotten: the next time it takes two answers again.
    assert listing.take(KRW[1:]).markets == KRW
    assert listing.take((*KRW[:1], *KRW[2:])).markets == KRW


@pytest.mark.parametrize("told", [(), KRW[:3], ("KRW-X", "KRW-Y", "KRW-Z")])
def test_an_answer_without_most_markets_is_none(told: tuple[str, ...]) -> None:
    listing = Listing(KRW)
    for _ in range(5):
        assert listing.take(told) == (KRW, False, False)
    assert listing.take(KRW).believed


def test_the_first_answer_is_taken_as_it_is() -> None:
    assert Listing(()).take(KRW) == (KRW, False, True)


@given(st.lists(st.sets(st.sampled_from(KRW)), max_size=12))
def test_nothing_is_dropped_that_two_answers_in_a_row_did_not_agree_on(answers: list[set[str]]) -> None:
    listing = Listing(KRW)
    before: set[str] = set(KRW)
    last: set[str] = set(KRW)
    for told in answers:
        now = set(listing.take(tuple(sorted(told))).markets)
        dropped = before - now
        assert not dropped & (told | last)
        assert now
        before, last = now, told


def test_a_follower_reports_changes_and_remembers_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changes, stats, memory = follow(
        monkeypatch, tmp_path, KRW, KRW, (*KRW, "KRW-NEW", "BTC-X"), RestError("away"), KRW, KRW
    )
    assert changes == [(*KRW, "KRW-NEW"), KRW]
    assert memory.load() == KRW
    assert stats.market_list is MarketList.FOLLOWED
    assert stats.markets_read_us


def test_a_follower_without_a_list_asks_until_it_has_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changes, stats, memory = follow(monkeypatch, tmp_path, (), *[RestError("HTTP 418", 418)] * 4, KRW)
    assert changes == [KRW]
    assert memory.load() == KRW
    assert stats.market_list is MarketList.FOLLOWED


def test_a_follower_survives_what_it_did_not_expect(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    changes, _, _ = follow(monkeypatch, tmp_path, KRW, RuntimeError("what?"), (*KRW, "KRW-NEW"))
    assert changes == [(*KRW, "KRW-NEW")]


def test_a_follower_keeps_its_list_against_nonsense(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    changes, stats, _ = follow(monkeypatch, tmp_path, KRW, KRW[:2], ("BTC-ETH",), KRW[:2])
    assert changes == []
    assert stats.market_list is MarketList.DISTRUSTED


# ---- at the start


def test_the_exchange_decides_what_a_start_begins_with(tmp_path: Path) -> None:
    memory = MarketMemory(tmp_path, "s", URL, "KRW")
    stats = SectionStats("s")
    memory.save(KRW)
    assert first_markets(memory, "KRW", ("BTC-A", "KRW-A"), stats) == ("KRW-A",)
    assert stats.market_list is MarketList.FOLLOWED
    assert memory.load() == ("KRW-A",)


def test_an_exchange_without_such_markets_is_one_line(tmp_path: Path) -> None:
    memory = MarketMemory(tmp_path, "s", URL, "KRW")
    with pytest.raises(UserError, match=r"\[s\] tickers=ALL-KRW: .*tells 1 markets, and no KRW market"):
        first_markets(memory, "KRW", ("BTC-A",), SectionStats("s"))


def test_without_the_exchange_the_last_list_counts(tmp_path: Path) -> None:
    memory = MarketMemory(tmp_path, "s", URL, "KRW")
    stats = SectionStats("s")
    assert first_markets(memory, "KRW", (), stats) == ()
    assert stats.market_list is MarketList.UNKNOWN
    memory.save(KRW)
    assert first_markets(memory, "KRW", (), stats) == KRW
    assert stats.market_list is MarketList.REMEMBERED


@pytest.mark.parametrize("other", [("s", "http://other", "KRW"), ("s", URL, "BTC"), ("t", URL, "KRW")])
def test_another_list_is_not_ours(tmp_path: Path, other: tuple[str, str, str]) -> None:
    MarketMemory(tmp_path, *other).save(KRW)
    assert MarketMemory(tmp_path, "s", URL, "KRW").load() == ()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"\xff",
        b"{}",
        b'{"rest_url":"http://127.0.0.1:1","quote":"KRW","markets":["../x"]}',
        b'{"rest_url":"http://127.0.0.1:1","quote":"KRW","markets":[1]}',
        b'{"rest_url":"http://127.0.0.1:1","quote":"KRW","markets":7}',
    ],
)
def test_a_damaged_memory_is_none(tmp_path: Path, content: bytes) -> None:
    memory = MarketMemory(tmp_path, "s", URL, "KRW")
    memory.path.parent.mkdir(parents=True)
    memory.path.write_bytes(content)
    assert memory.load() == ()


def test_a_disk_that_refuses_costs_only_the_memory(tmp_path: Path) -> None:
    memory = MarketMemory(tmp_path, "s", URL, "KRW")
    memory.save(KRW)
    (memory.path.parent / f"markets.{os.getpid()}.new").mkdir()
    memory.save(KRW[:4])
    assert memory.load() == KRW


def test_a_memory_is_no_spool(tmp_path: Path) -> None:
    from ingest_services.producer.spool import Spool

    memory = MarketMemory(tmp_path, "s", URL, "KRW")
    memory.save(KRW)
    spool = Spool(tmp_path, "s")
    assert (spool.adopt(), spool.bytes) == (0, 0)
    spool.close()
    assert memory.load() == KRW
