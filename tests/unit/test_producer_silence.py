"""Quiet or dead: the decisions, without threads and sockets."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_services.producer.silence import (
    ANSWER_US,
    GRACE_US,
    OVERDUE_US,
    SNAPSHOT_BOUND_US,
    Silences,
    Verdict,
    same_levels,
)
from ingest_services.upbit.rest import RestBook

SECOND = 1_000_000
START = 1_700_000_000_000_000


def frame(*levels: tuple[float, float, float, float]) -> bytes:
    names = ("ap", "as", "bp", "bs")
    return orjson.dumps({"obu": [dict(zip(names, level, strict=True)) for level in levels]})


ONE = (101.0, 1.0, 100.0, 2.0)
TWO = (102.0, 3.0, 99.0, 4.0)


def opened(*tickers: str) -> Silences:
    silences = Silences(tickers)
    silences.alive(START)
    return silences


def heard(silences: Silences, ticker: str, at_us: int, tms: int = 1000) -> None:
    silences.message(at_us)
    silences.book(ticker, at_us, tms, frame(ONE))


def test_a_ticker_without_a_snapshot_is_overdue_after_the_bound() -> None:
    silences = opened("BTC", "ETH")
    heard(silences, "BTC", START + SECOND)
    assert silences.overdue(START + SNAPSHOT_BOUND_US - 1) == []
    assert silences.overdue(START + SNAPSHOT_BOUND_US) == ["ETH"]
    assert silences.unheard() == ("ETH",)


def test_settled_when_all_have_delivered_or_the_bound_has_passed() -> None:
    silences = Silences(["BTC", "ETH"])
    assert not silences.settled
    silences.alive(START)
    heard(silences, "BTC", START + 1)
    assert not silences.settled
    silences.alive(START + SNAPSHOT_BOUND_US)
    assert silences.settled
    quick = opened("BTC")
    heard(quick, "BTC", START + 1)
    assert quick.settled


@given(st.integers(1, 120_000), st.integers(80, 200))
def test_usual_is_learned_from_the_ticker_s_own_pace(gap_ms: int, count: int) -> None:
    silences = opened("BTC")
    at = START
    for _ in range(count):
        at += gap_ms * 1000
        heard(silences, "BTC", at)
    least, most = OVERDUE_US
    assert silences.overdue(at + least) == []
    assert silences.overdue(at + most + 1) == ["BTC"]
    if gap_ms * 1000 * 10 < least // 2:
        assert silences.overdue(at + least + SECOND) == ["BTC"], "a busy ticker is looked at within seconds"
    if gap_ms * 1000 * 10 > most:
        assert silences.overdue(at + most) == [], "a quiet one is not asked about all the time"


def test_what_is_usual_with_a_ticker_is_known_on_its_next_connection() -> None:
    silences = opened("BTC", "NEW", "GONE")
    at = START
    for n in range(200):
        at += SECOND // 10
        heard(silences, "BTC", at)
        if n < 5:
            heard(silences, "NEW", at)
    # One on which nobody came to speak, and one on which all of them have.
    last = Silences(["BTC", "NEW", "OTHER"], Silences(["NEW", "BTC"], silences))
    last.alive(at)
    for ticker in ("BTC", "NEW", "OTHER"):
        heard(last, ticker, at)
    assert last.overdue(at + OVERDUE_US[0] + 1) == ["BTC"]
    assert last.overdue(at + OVERDUE_US[1] + 1) == ["BTC", "NEW", "OTHER"]


def test_the_same_book_is_quiet_and_not_asked_about_again_at_once() -> None:
    silences = opened("BTC")
    heard(silences, "BTC", START + SECOND)
    now = START + 62 * SECOND
    silences.alive(now)
    assert silences.overdue(now) == ["BTC"]
    assert silences.judge("BTC", RestBook(1000, (ONE,)), now, now + 1) is Verdict.QUIET
    assert silences.overdue(now + 59 * SECOND) == []
    assert silences.overdue(now + 61 * SECOND) == ["BTC"]
    assert silences.dead() == {}


def test_a_newer_stamp_on_the_same_levels_is_quiet() -> None:
    # A change below the depth that we subscribed to.
    silences = opened("BTC")
    heard(silences, "BTC", START + SECOND)
    now = START + 62 * SECOND
    assert silences.judge("BTC", RestBook(2000, (ONE, TWO)), now, now + 1) is Verdict.QUIET


def test_a_newer_book_is_dead_only_when_everything_received_was_looked_at() -> None:
    silences = opened("BTC")
    heard(silences, "BTC", START + SECOND)
    now = START + 62 * SECOND
    assert silences.judge("BTC", RestBook(2000, (TWO,)), now, now) is Verdict.SUSPECT
    assert silences.overdue(now + 1000 * SECOND) == [], "it is being watched already"
    silences.alive(now + GRACE_US - 1)
    assert silences.dead() == {}, "the book may be on its way"
    silences.alive(now + GRACE_US)
    assert silences.dead() == {"BTC": START + SECOND}
    assert silences.dead() == {}, "told once"


def test_a_suspect_whose_book_arrives_is_acquitted() -> None:
    silences = opened("BTC")
    heard(silences, "BTC", START + SECOND)
    now = START + 62 * SECOND
    silences.judge("BTC", RestBook(2000, (TWO,)), now, now)
    heard(silences, "BTC", now + SECOND, 2000)
    silences.alive(now + 2 * GRACE_US)
    assert silences.dead() == {}


def test_an_older_book_that_arrives_acquits_nobody() -> None:
    silences = opened("BTC")
    heard(silences, "BTC", START + SECOND)
    now = START + 62 * SECOND
    silences.judge("BTC", RestBook(2000, (TWO,)), now, now)
    heard(silences, "BTC", now + SECOND, 1500)
    silences.alive(now + GRACE_US)
    assert silences.dead() == {"BTC": now + SECOND}


def test_the_last_proof_is_where_the_hole_begins() -> None:
    silences = opened("BTC")
    heard(silences, "BTC", START + SECOND)
    quiet = START + 62 * SECOND
    silences.judge("BTC", RestBook(1000, (ONE,)), quiet, quiet)
    later = quiet + 61 * SECOND
    silences.judge("BTC", RestBook(2000, (TWO,)), later, later)
    silences.alive(later + GRACE_US)
    assert silences.dead() == {"BTC": quiet}


def test_a_listed_market_that_never_delivered_is_dead_without_a_claim_to_take_back() -> None:
    silences = opened("BTC")
    now = START + SNAPSHOT_BOUND_US
    assert silences.judge("BTC", RestBook(1, (ONE,)), now, now) is Verdict.SUSPECT
    silences.alive(now + GRACE_US)
    assert silences.dead() == {"BTC": 0}


def test_an_unknown_code_is_left_alone_for_a_while() -> None:
    silences = opened("XXX")
    now = START + SNAPSHOT_BOUND_US
    silences.excuse("XXX", now)
    assert silences.overdue(now + 59 * SECOND) == []
    assert silences.overdue(now + 60 * SECOND) == ["XXX"]


def test_a_frame_nobody_could_read_puts_everyone_in_doubt_until_it_is_compared() -> None:
    silences = opened("BTC", "ETH")
    heard(silences, "BTC", START + SECOND)
    heard(silences, "ETH", START + SECOND)
    doubt = START + 2 * SECOND
    silences.doubt(doubt)
    heard(silences, "ETH", START + 3 * SECOND)
    now = START + SECOND + OVERDUE_US[0] + 1
    assert silences.overdue(now) == ["BTC"], "a later book answers for itself"
    # The question was asked before the frame came: the answer says nothing about it.
    assert silences.judge("BTC", RestBook(1000, (ONE,)), doubt, now) is Verdict.UNANSWERED
    assert silences.judge("BTC", RestBook(1000, (ONE,)), now, now) is Verdict.QUIET
    assert silences.overdue(now + 30 * SECOND) == []


def test_what_cannot_be_vouched_for_at_an_end_that_we_did_not_ask_for() -> None:
    silences = opened("BTC", "ETH", "XXX")
    heard(silences, "BTC", START + SECOND)
    heard(silences, "ETH", START + 4 * SECOND)
    silences.alive(START + 9 * SECOND)
    assert silences.doubtful(by_us=False) == {"BTC": START + 4 * SECOND, "ETH": START + 4 * SECOND}
    assert silences.doubtful(by_us=True) == {}


def test_an_overdue_ticker_is_in_doubt_at_any_end() -> None:
    silences = opened("BTC", "ETH")
    at = START
    for _ in range(200):
        at += SECOND // 10
        heard(silences, "BTC", at)
        heard(silences, "ETH", at)
    last = at
    for _ in range(60):
        at += SECOND // 10
        heard(silences, "ETH", at)
    assert silences.doubtful(by_us=True) == {"BTC": last}
    assert silences.doubtful(by_us=False) == {"BTC": last, "ETH": at}


def test_a_newer_connection_that_has_nothing_newer_is_proof() -> None:
    old, new = opened("BTC", "ETH"), opened("BTC", "ETH")
    at = START
    for _ in range(200):
        at += SECOND // 10
        heard(old, "BTC", at, 1000)
        heard(old, "ETH", at, 1000)
    later = at + 30 * SECOND
    heard(new, "BTC", later, 1000)
    heard(new, "ETH", later, 1001)
    old.compare(new)
    heard(old, "BTC", later, 1000)
    assert old.doubtful(by_us=True) == {"ETH": at}


def test_a_connection_that_is_behind_a_newer_one_when_we_close_it_has_missed_something() -> None:
    old, new = opened("BTC", "ETH"), opened("BTC", "ETH")
    for ticker in ("BTC", "ETH"):
        heard(old, ticker, START + SECOND, 1000)
        heard(new, ticker, START + 2 * SECOND, 1500)
    old.compare(new)
    # Ethereum's book was only on its way.
    heard(old, "ETH", START + 2 * SECOND + 1000, 1500)
    assert old.doubtful(by_us=True) == {"BTC": START + SECOND}


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        ((ONE, TWO), (ONE, TWO), True),
        ((ONE,), (ONE, TWO), True),
        ((ONE, (0.0, 0.0, 0.0, 0.0)), (ONE,), True),
        ((ONE, TWO), (ONE,), False),
        ((ONE,), (TWO,), False),
    ],
)
def test_books_are_compared_as_deep_as_ours_goes(ours: tuple, theirs: tuple, same: bool) -> None:
    assert same_levels(frame(*ours), RestBook(1, theirs)) is same


def test_a_default_format_frame_is_compared_as_well() -> None:
    names = ("ask_price", "ask_size", "bid_price", "bid_size")
    default = orjson.dumps({"orderbook_units": [dict(zip(names, ONE, strict=True))]})
    assert same_levels(default, RestBook(1, (ONE,)))


@pytest.mark.parametrize("units", [[{}], [None], ["x"], [{"ap": None, "as": 1, "bp": 1, "bs": 1}], [1]])
def test_levels_that_cannot_be_read_are_not_the_same(units: object) -> None:
    assert not same_levels(orjson.dumps({"obu": units}), RestBook(1, (ONE,)))


def test_a_clock_set_back_hides_nobody_s_silence() -> None:
    silences = opened("BTC", "ETH")
    at = START
    for _ in range(100):
        at += SECOND // 10
        heard(silences, "BTC", at)
        heard(silences, "ETH", at)
    at -= 3600 * SECOND
    set_back = at
    for _ in range(50):
        at += SECOND // 10
        heard(silences, "ETH", at)
    assert silences.overdue(at) == ["BTC"]
    found = silences.doubtful(by_us=True)
    assert list(found) == ["BTC"]
    assert found["BTC"] <= set_back + SECOND


def test_a_verdict_that_is_on_its_way_at_the_end_is_not_forgotten() -> None:
    silences = opened("BTC", "ETH")
    heard(silences, "BTC", START + SECOND)
    now = START + 62 * SECOND
    silences.judge("BTC", RestBook(2000, (TWO,)), now, now)
    heard(silences, "ETH", now + GRACE_US)
    assert silences.dead() == {"BTC": START + SECOND}
    # The connection ends before anybody is told.
    assert silences.doubtful(by_us=False)["BTC"] == START + SECOND
    assert silences.doubtful(by_us=True)["BTC"] == START + SECOND


def test_a_book_whose_stamp_is_not_believed_proves_nothing_about_another_connection() -> None:
    old, new = opened("BTC"), opened("BTC")
    at = START
    for _ in range(200):
        at += SECOND // 10
        heard(old, "BTC", at, 1000)
    later = at + 30 * SECOND
    heard(new, "BTC", later, 0)
    old.compare(new)
    old.alive(later)
    assert old.doubtful(by_us=True) == {"BTC": at}


def test_a_silence_is_answered_for_by_the_exchange_or_by_nobody() -> None:
    silences = opened("BTC", "ETH")
    at = START
    for _ in range(200):
        at += SECOND // 10
        heard(silences, "BTC", at)
        heard(silences, "ETH", at)
    later = at + 7 * SECOND
    assert silences.returned("BTC", later) == 0, "the answer may still come"
    silences.leave_open(["BTC", "ETH"])
    assert silences.returned("BTC", at + SECOND) == 0, "not longer than usual"
    assert silences.returned("BTC", later) == at
    silences.judge("ETH", RestBook(1000, (ONE,)), later - SECOND, later)
    assert silences.returned("ETH", later) == 0, "the next question was answered"
    heard(silences, "BTC", later)
    assert silences.returned("BTC", later + 7 * SECOND) == 0, "another silence, another question"
    assert silences.returned("XXX", later) == 0


def test_an_answer_that_does_not_come_in_time_is_none() -> None:
    silences = opened("BTC")
    at = START
    for _ in range(200):
        at += SECOND // 10
        heard(silences, "BTC", at)
    assert silences.returned("BTC", at + OVERDUE_US[0] + ANSWER_US) == 0
    late = at + OVERDUE_US[0] + ANSWER_US + 1
    assert silences.returned("BTC", late) == at, "it may have been dead, and have come back"
    silences.judge("BTC", RestBook(1000, (ONE,)), late - SECOND, late)
    assert silences.returned("BTC", late) == 0


def test_who_is_not_answered_for_is_abandoned_unless_the_exchange_does_not_know_it() -> None:
    silences = opened("BTC", "GONE", "NEW")
    at = START
    for _ in range(200):
        at += SECOND // 10
        heard(silences, "BTC", at)
        heard(silences, "GONE", at)
    silences.excuse("GONE", at + OVERDUE_US[0])
    for second in range((OVERDUE_US[0] + ANSWER_US) // SECOND + 1):
        silences.alive(at + second * SECOND)
    assert silences.abandoned() == []
    silences.alive(at + OVERDUE_US[0] + ANSWER_US + 1)
    assert silences.abandoned() == ["BTC"]
    silences.judge("BTC", RestBook(1000, (ONE,)), at + 7 * SECOND, at + 7 * SECOND)
    assert silences.abandoned() == []


def test_when_we_did_not_listen_nobody_in_particular_was_silent() -> None:
    silences = opened("BTC", "ETH")
    at = START
    for _ in range(200):
        at += SECOND // 10
        heard(silences, "ETH", at)
        if at <= START + 18 * SECOND:
            heard(silences, "BTC", at)
    # The process was stopped for 20 s; then it reads what the kernel kept.
    awake = at + 20 * SECOND
    heard(silences, "ETH", awake)
    assert silences.returned("BTC", awake) == 0
    assert silences.abandoned() == []
    later = awake + OVERDUE_US[0] + ANSWER_US
    for tenth in range(1, (later - awake) * 10 // SECOND + 1):
        heard(silences, "ETH", awake + tenth * SECOND // 10)
    assert silences.returned("BTC", later) == START + 18 * SECOND, "2 s before that, and 8 s after it"
    assert silences.abandoned() == ["BTC"]


def test_an_answer_older_than_what_we_have_proves_nothing() -> None:
    silences = opened("BTC")
    heard(silences, "BTC", START + SECOND, 5000)
    now = START + 62 * SECOND
    silences.alive(now)
    assert silences.judge("BTC", RestBook(4000, (TWO,)), now, now + 1) is Verdict.UNANSWERED
    assert silences.returned("BTC", now + 1000 * SECOND) == START + SECOND
    assert silences.doubtful(by_us=True) == {}, "not longer than is usual with it"
    assert silences.judge("BTC", RestBook(4000, (ONE,)), now, now + 1) is Verdict.QUIET, "the same book"
    assert silences.returned("BTC", now + SECOND) == 0


def test_an_answer_older_than_a_book_that_came_meanwhile_says_nothing() -> None:
    silences = opened("BTC")
    heard(silences, "BTC", START + SECOND, 5000)
    now = START + 62 * SECOND
    heard(silences, "BTC", now + 10, 6000)
    assert silences.judge("BTC", RestBook(5000, (TWO,)), now, now + 20) is Verdict.UNANSWERED
    assert silences.returned("BTC", now + 60 * SECOND) == 0, "nobody has to answer for it: it spoke"
