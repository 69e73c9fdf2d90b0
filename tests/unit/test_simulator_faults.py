"""Faults as text, as JSON and as seeded schedules; what they make of books; who is let in."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_services.errors import UserError
from ingest_services.simulator.books import SimulatedBook
from ingest_services.simulator.commands import read_delay
from ingest_services.simulator.config import SimulatorConfig, many_tickers
from ingest_services.simulator.distortion import Distortion, Message, garbage, microsecond_stamp
from ingest_services.simulator.faults import (
    FAULTS,
    Fault,
    FaultError,
    Scheduled,
    chaos,
    read_fault,
    read_scheduled,
)
from ingest_services.simulator.gate import Gate, MessageLimit, SlidingLimit
from ingest_services.simulator.journal import Journal, frame_of, read_journal
from ingest_services.simulator.walk import Walk

NOW_MS = 1_795_366_000_123


# ── orders ────────────────────────────────────────


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_can_be_ordered_by_its_name_alone_or_with_a_market(name: str) -> None:
    order: dict[str, object] = {"fault": name}
    if any(parameter.required for parameter in FAULTS[name].parameters):
        with pytest.raises(FaultError, match="needs market"):
            read_fault(order)
        order["market"] = "BTC"
    fault = read_fault(order)
    assert fault.name == name
    assert read_fault(fault.as_json()) == fault
    if FAULTS[name].for_or_count:
        assert fault.number("for_s") == 10


@pytest.mark.parametrize(
    ("order", "complaint"),
    [
        (None, "must be an object"),
        ({"fault": ["drop"]}, "there is no fault"),
        ({"fault": "drop", "count": 1}, "there is no parameter 'count'; it takes flush"),
        ({"fault": "half-open", "x": 1}, "it takes none"),
        ({"fault": "drop", "flush": 1}, "true or false"),
        ({"fault": "garbage", "count": 1.5}, "a whole number"),
        ({"fault": "garbage", "count": True}, "a whole number"),
        ({"fault": "garbage", "count": "3"}, "a whole number"),
        ({"fault": "stall", "for_s": float("nan")}, "from 0.001"),
        ({"fault": "stall", "for_s": -1}, "from 0.001"),
        ({"fault": "stall-code", "market": "btc"}, "neither a ticker"),
        ({"fault": "list", "market": "EUR-BTC"}, "quote currency"),
        ({"fault": "close", "code": 999}, "from 1000"),
        ({"fault": "close", "code": 1015}, "none that a close frame may carry"),
        ({"fault": "refuse", "status": 500}, "one of 429, 418"),
        ({"fault": "refuse", "for_s": 1, "count": 1}, "exclude each other"),
        ({"fault": "error", "name": ""}, "not empty"),
        ({"fault": "drop", "ticket": ""}, "not empty"),
        ({"fault": "drop", "newest": False}, "must be true"),
        ({"fault": "list", "market": "NEW", "newest": True}, "takes no newest"),
    ],
)
def test_nonsense_is_named_in_one_line(order: object, complaint: str) -> None:
    with pytest.raises(FaultError) as caught:
        read_fault(order)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
parameter_names = sorted({p.name for kind in FAULTS.values() for p in kind.parameters})
orders = st.fixed_dictionaries(
    {"fault": st.sampled_from(sorted(FAULTS)) | json_values},
    optional=dict.fromkeys([*parameter_names, "ticket", "section", "newest", "x"], json_values),
)


@given(orders | json_values)
def test_no_order_can_do_worse_than_an_error(order: object) -> None:
    complaint = ""
    try:
        fault = read_fault(order)
    except FaultError as error:
        complaint = str(error)
    else:
        assert read_fault(fault.as_json()) == fault
    assert "\n" not in complaint
    assert len(complaint) < 500


def test_the_command_lines_form() -> None:
    assert read_scheduled("drop@30") == Scheduled(read_fault({"fault": "drop"}), 30.0)
    assert read_scheduled("stall-code:market=KRW-BTC,for_s=2@45.5+20") == Scheduled(
        read_fault({"fault": "stall-code", "market": "KRW-BTC", "for_s": 2}), 45.5, 20.0
    )
    assert read_scheduled("drop:flush=false,newest=true@0").fault.target == {"newest": True}
    assert read_scheduled("error:name=WRONG@FORMAT,section=p1@1").fault.values["name"] == "WRONG@FORMAT"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("drop", "does not say when"),
        ("drop@", "no number of seconds"),
        ("drop@soon", "no number of seconds"),
        ("drop@-1", "no number of seconds"),
        ("drop@1+", "no number of seconds"),
        ("drop@1+0", "too often"),
        ("@5", "there is no fault"),
        ("explode@5", "there is no fault 'explode'"),
        ("close:1001@5", "must be key=value"),
        ("close:code=x@5", "a whole number"),
        ("drop:flush=yes@5", "true or false"),
        ("delist@5", "needs market"),
    ],
)
def test_nonsense_on_the_command_line(text: str, complaint: str) -> None:
    with pytest.raises(FaultError) as caught:
        read_scheduled(text)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_docs_page_orders_every_fault_both_ways_and_has_the_right_parameters() -> None:
    page = (Path(__file__).parents[2] / "docs/simulator.md").read_text()
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| `")]
    told = {}
    for row in (row for row in rows if row[0].strip(" `") in FAULTS):
        name, parameters, _, scheduled, curl = (cell.strip().strip("`") for cell in row)
        assert read_scheduled(scheduled).fault.name == name
        assert read_fault(json.loads(curl)).name == name
        told[name] = {p.name for p in FAULTS[name].parameters if f"`{p.name}`" in f"`{parameters}`"}
    assert told == {name: {p.name for p in kind.parameters} for name, kind in FAULTS.items()}


@given(st.integers(0, 1000))
def test_chaos_is_the_same_for_the_same_seed_and_delists_only_what_it_listed(seed: int) -> None:
    def first() -> list[tuple[float, Fault]]:
        return list(islice(chaos(seed, 4.0, ["KRW-BTC", "KRW-ETH"]), 60))

    listed: set[str] = set()
    for pause_s, fault in first():
        assert 2.0 <= pause_s <= 6.0
        for_s = fault.number("for_s")
        assert for_s is None or for_s <= 2.0
        if fault.name == "list":
            assert fault.text("market") not in listed
            listed.add(fault.text("market"))
        if fault.name == "delist":
            listed.remove(fault.text("market"))
    assert first() == first()


def test_chaos_knows_every_fault() -> None:
    assert {fault.name for _, fault in islice(chaos(1, 10.0, ["KRW-BTC"]), 500)} == set(FAULTS)
    assert list(islice(chaos(1, 10.0, ["KRW-BTC"]), 20)) != list(islice(chaos(2, 10.0, ["KRW-BTC"]), 20))


# ── what becomes of the books ────────────────────────────────────────


class Clock:
    """A clock that is put forward by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def books(market: str, count: int) -> list[SimulatedBook]:
    walk = Walk(market, SimulatorConfig(history_minutes=0, one_sided_share=0), NOW_MS)
    walk.begin(NOW_MS)
    return [walk.step() for _ in range(count)]


def distorted(*orders: dict[str, object], clock: Callable[[], float] | None = None) -> Distortion:
    distortion = Distortion(clock or Clock())
    for order in orders:
        distortion.order(read_fault(order))
    return distortion


def through(distortion: Distortion, told: list[SimulatedBook]) -> list[Message]:
    return [m for book in told for m in distortion.messages(book, "SIMPLE", 5, "REALTIME")]


def plain(told: list[SimulatedBook]) -> list[bytes]:
    return [book.encode("SIMPLE", 5, "REALTIME") for book in told]


def test_without_a_fault_nothing_changes() -> None:
    told = books("KRW-BTC", 5)
    distortion = distorted()
    assert not distortion.active
    assert [m.data for m in through(distortion, told)] == plain(told)


def test_counts_run_out() -> None:
    told = books("KRW-BTC", 6)
    for name in ("truncate", "duplicate", "reorder", "microseconds", "future", "default-format"):
        distortion = distorted({"fault": name, "count": 2})
        assert distortion.active
        assert [m.data for m in through(distortion, told)] != plain(told)
        assert not distortion.active, name
        assert [m.data for m in through(distortion, told)] == plain(told)


@given(st.integers(1, 6), st.lists(st.sampled_from(["KRW-A", "KRW-B", "KRW-C"]), max_size=30))
def test_a_reordered_frame_comes_right_after_the_next_one_of_its_market(
    pairs: int, markets: list[str]
) -> None:
    streams = {market: iter(books(market, len(markets))) for market in set(markets)}
    told = [next(streams[market]) for market in markets]
    distortion = distorted({"fault": "reorder", "count": pairs})
    sent = through(distortion, told)
    waiting = distortion.overtaken()
    assert sorted(m.data for m in sent + waiting) == sorted(plain(told)), "none is lost, none is added"
    for market in set(markets):
        stamps = [m.tms for m in sent if m.market == market]
        index = 0
        while index < len(stamps) - 1:
            if stamps[index] > stamps[index + 1]:
                assert index + 2 == len(stamps) or stamps[index + 2] > stamps[index], "neighbours swapped"
                index += 1
            index += 1


def test_times_run_out() -> None:
    clock = Clock()
    (book,) = books("KRW-BTC", 1)
    distortion = distorted({"fault": "microseconds", "for_s": 5}, clock=clock)
    assert json.loads(through(distortion, [book])[0].data)["tms"] == microsecond_stamp(book.tms)
    clock.now += 5
    assert not distortion.active
    assert json.loads(through(distortion, [book])[0].data)["tms"] == book.tms


def test_a_stall_ends_with_its_time_and_a_stalled_code_with_a_subscription() -> None:
    clock = Clock()
    distortion = distorted(
        {"fault": "stall", "for_s": 5}, {"fault": "stall-code", "market": "B"}, clock=clock
    )
    assert distortion.silence("KRW-A") == distortion.silence() == "stall"
    clock.now += 5
    assert distortion.silence("KRW-A") is None
    assert distortion.silence("KRW-B") == "stall-code"
    assert distortion.silence() is None
    clock.now += 1e9
    assert distortion.silence("KRW-B") == "stall-code"
    distortion.subscribed()
    assert distortion.silence("KRW-B") is None
    assert not distortion.active
    forever = distorted({"fault": "stall"}, {"fault": "stall", "for_s": 1}, clock=clock)
    clock.now += 1e9
    forever.subscribed()
    assert forever.silence("KRW-A") == "stall"


def test_faults_add_up() -> None:
    told = books("KRW-BTC", 3)
    distortion = distorted(
        {"fault": "default-format", "count": 1},
        {"fault": "future", "count": 1, "by_ms": 7000},
        {"fault": "duplicate", "count": 1},
    )
    sent = through(distortion, told)
    assert [m.what for m in sent] == ["book", "duplicate", "book", "book"]
    assert sent[0].data == sent[1].data
    assert json.loads(sent[0].data)["timestamp"] == told[0].tms + 7000
    assert {m.tms for m in sent} == {book.tms for book in told}


def test_garbage_is_never_json() -> None:
    rubbish = [message.data for message in garbage(50, start=3)]
    for data in rubbish:
        with pytest.raises(ValueError, match=r".*"):
            json.loads(data)
    assert all(a != b for a, b in pairwise(rubbish))


# ── the gate ────────────────────────────────────────


@given(st.lists(st.floats(0, 3), max_size=40), st.integers(1, 6))
def test_a_sliding_limit_lets_no_span_hold_more_and_refuses_no_sooner(
    pauses: list[float], count: int
) -> None:
    limit = SlidingLimit(count, 2.0)
    now = 0.0
    passed: list[float] = []
    for pause in pauses:
        now += pause
        within = [at for at in passed if now - at < 2.0]
        assert limit.take(now) == (len(within) < count)
        if len(within) < count:
            passed.append(now)


def test_messages_have_a_limit_a_second_and_one_a_minute() -> None:
    limit = MessageLimit()
    assert [limit.take(0.0) for _ in range(6)] == [True] * 5 + [False]
    limit = MessageLimit()
    taken = [limit.take(number / 4) for number in range(200)]
    assert taken.index(False) == 100


def test_limits_are_kept_only_when_asked_for() -> None:
    gate = Gate(Clock(), limits=False)
    assert all(gate.refuse("ws", "a", "https://x") is None for _ in range(50))


def test_connections_origins_and_blocks_are_counted_by_address() -> None:
    clock = Clock()
    gate = Gate(clock, limits=True)
    answers = [gate.refuse("ws", "a", None) for _ in range(6)]
    assert [a and a.status for a in answers] == [None] * 5 + [429]
    assert gate.refuse("ws", "b", None) is None
    assert gate.refuse("rest", "c", "https://x") is None
    assert gate.refuse("rest", "c", "https://x") is not None
    assert gate.refuse("rest", "c", None) is None
    blocked_s = []
    for _ in range(3):
        for _ in range(5):
            assert gate.refuse("rest", "d", None) is None
            gate.refused("d")
        began = clock.now
        while (refusal := gate.refuse("rest", "d", None)) is not None:
            assert refusal.status == 418
            clock.now += 0.25
        blocked_s.append(clock.now - began)
    assert blocked_s == [1.0, 2.0, 4.0], "a growing block"
    for _ in range(20):
        clock.now += 10
        gate.refused("e")
        assert gate.refuse("rest", "e", None) is None, "patience comes back"


def test_ordered_refusals_end_with_their_number_or_their_time() -> None:
    clock = Clock()
    gate = Gate(clock, limits=False)
    gate.order(read_fault({"fault": "refuse", "status": 418, "where": "ws", "count": 2}))
    gate.order(read_fault({"fault": "rest-down", "for_s": 3}))
    told = [gate.refuse(where, "a", None) for where in ("ws", "rest", "ws", "ws")]
    assert [refusal and refusal.status for refusal in told] == [418, 503, 418, None]
    clock.now += 3
    assert gate.refuse("rest", "a", None) is None


# ── the journal and the rest ────────────────────────────────────────


@given(st.binary(max_size=60))
def test_a_frame_comes_out_of_the_journal_byte_for_byte(frame: bytes) -> None:
    journal = Journal(in_memory=True)
    journal.sent(1, 1, "garbage", "", 0, frame)
    (line,) = journal.lines()
    assert frame_of(json.loads(line)) == frame


def test_a_journal_file_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.opened(1)
    journal.requested(1, "me")
    journal.subscribed(1, ["KRW-A"], "SIMPLE")
    journal.published("KRW-A", 5)
    journal.sent(1, 1, "book", "KRW-A", 5, b"{}")
    journal.ended(1, "reset", 1, 1)
    with path.open("ab") as file:
        file.write(b'{"half a li')
    lines = read_journal(path)
    kinds = ["opened", "requested", "subscribed", "published", "sent", "ended"]
    assert [line["kind"] for line in lines] == kinds
    assert [line.get("ticket") for line in lines] == ["", "me", "me", None, "me", "me"]
    assert list(journal.lines()) == []
    journal.close()


def test_a_journal_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--journal .*none.j: cannot be written"):
        Journal(tmp_path / "none" / "j")


def test_the_whole_exchange_has_the_exchanges_proportions() -> None:
    tickers = many_tickers(855)
    assert SimulatorConfig(tickers=tickers).markets() == tickers
    counts = [sum(ticker.startswith(quote) for ticker in tickers) for quote in ("KRW-", "BTC-", "USDT-")]
    assert counts == [289, 328, 238]
    for count in (1, 2, 3, 10, 2000):
        assert len(SimulatorConfig(tickers=many_tickers(count)).markets()) == count
    with pytest.raises(UserError, match="--markets 0"):
        many_tickers(0)


def test_delays_are_read_as_one_or_two_numbers() -> None:
    assert read_delay("0") == (0, 0)
    assert read_delay("250") == (250, 250)
    assert read_delay("170-350") == (170, 350)
    for text in ("", "fast", "1-x", "-5"):
        with pytest.raises(UserError, match="--snapshot-delay"):
            read_delay(text)
