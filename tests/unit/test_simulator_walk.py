"""The walk: books as the exchange's rules allow them, and the same ones for the same seed."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise

from hypothesis import given, note
from hypothesis import strategies as st

from ingest_services.simulator.books import SimulatedBook, number_text
from ingest_services.simulator.config import SimulatorConfig
from ingest_services.simulator.walk import Walk

NOW_MS = 1_795_366_000_123
MARKETS = (
    "KRW-BTC",
    "KRW-XRP",
    "KRW-DOGE",
    "KRW-PEPE",
    "KRW-BTT",
    "KRW-NEW",
    "BTC-ETH",
    "BTC-PEPE",
    "USDT-XRP",
)
ORDINARY = SimulatorConfig(history_minutes=0, one_sided_share=0, crossed_share=0)

# FACTS, KRW, written down once more and independently of the code: (from, tick).
KRW_TICKS = [
    (1_000_000, 1000),
    (500_000, 500),
    (100_000, 100),
    (50_000, 50),
    (10_000, 10),
    (5_000, 5),
    (100, 1),
    (10, Decimal("0.1")),
    (1, Decimal("0.01")),
    (Decimal("0.1"), Decimal("0.001")),
    (Decimal("0.01"), Decimal("0.0001")),
    (Decimal("0.001"), Decimal("0.00001")),
    (Decimal("0.0001"), Decimal("0.000001")),
]

seeds = st.integers(0, 10_000)
markets = st.sampled_from(MARKETS)


def walked(market: str, config: SimulatorConfig, steps: int) -> list[SimulatedBook]:
    walk = Walk(market, config, NOW_MS)
    walk.begin(NOW_MS)
    return [walk.step() for _ in range(steps)]


def levels(frame: bytes) -> list[tuple[Decimal, Decimal, Decimal, Decimal]]:
    units = json.loads(frame, parse_float=Decimal, parse_int=Decimal)["obu"]
    return [(unit["ap"], unit["bp"], unit["as"], unit["bs"]) for unit in units]


def krw_tick(price: Decimal) -> Decimal:
    return Decimal(next(tick for low, tick in KRW_TICKS if price >= low))


@given(seeds, st.sampled_from([m for m in MARKETS if m.startswith("KRW")]))
def test_every_krw_price_is_on_its_tick(seed: int, market: str) -> None:
    for book in walked(market, replace(ORDINARY, seed=seed), 30):
        for ask, bid, _, _ in levels(book.encode("SIMPLE", 30, "REALTIME")):
            for price in filter(None, (ask, bid)):
                note(f"{market} seed {seed}: {price}")
                assert price % krw_tick(price) == 0


@given(seeds, markets)
def test_sides_are_ordered_padded_with_zeros_at_the_end_and_not_crossed(seed: int, market: str) -> None:
    for book in walked(market, replace(ORDINARY, seed=seed, thin_share=1), 30):
        rows = levels(book.encode("SIMPLE", 30, "REALTIME"))
        asks = [(ask, size) for ask, _, size, _ in rows]
        bids = [(bid, size) for _, bid, _, size in rows]
        for side, descending in ((asks, False), (bids, True)):
            real = [(price, size) for price, size in side if price]
            assert side == real + [(0, 0)] * (len(rows) - len(real)), "padding stands only at the end"
            assert all(size > 0 for _, size in real)
            prices = [price for price, _ in real]
            assert len(set(prices)) == len(prices)
            assert prices == sorted(prices, reverse=descending)
        assert asks[0][0] > bids[0][0] > 0
        assert any(row[0] and row[1] for row in rows)


@given(seeds, markets)
def test_totals_are_the_sums_of_the_sizes(seed: int, market: str) -> None:
    for book in walked(market, replace(ORDINARY, seed=seed), 5):
        frame = book.encode("SIMPLE", 30, "REALTIME")
        message = json.loads(frame, parse_float=Decimal, parse_int=Decimal)
        rows = levels(frame)
        assert message["tas"] == sum(row[2] for row in rows)
        assert message["tbs"] == sum(row[3] for row in rows)


@given(seeds, markets, st.sampled_from([0.5, 2.0, 100.0, 500.0]))
def test_stamps_strictly_increase_at_about_the_rate(seed: int, market: str, rate: float) -> None:
    stamps = [book.tms for book in walked(market, replace(ORDINARY, seed=seed, rate=rate), 200)]
    assert all(later > earlier for earlier, later in pairwise(stamps))
    assert stamps[0] >= NOW_MS
    seconds = (stamps[-1] - stamps[0]) / 1000
    assert 0.8 < 199 / seconds / rate < 1.25


@given(seeds, markets)
def test_begun_again_a_walk_gives_the_same_bytes(seed: int, market: str) -> None:
    walk = Walk(market, SimulatorConfig(seed=seed), NOW_MS)
    walk.begin(NOW_MS)
    first = [walk.step().encode("SIMPLE", 15, "REALTIME") for _ in range(20)]
    walk.begin(NOW_MS + 3_600_000)
    assert [walk.step().encode("SIMPLE", 15, "REALTIME") for _ in range(20)] == first


def test_another_seed_and_another_market_walk_elsewhere() -> None:
    texts = {
        walked("KRW-BTC", replace(ORDINARY, seed=seed), 1)[0].encode("SIMPLE", 1, "REALTIME")
        for seed in range(5)
    }
    assert len(texts) == 5


def test_a_history_starts_at_the_window_of_its_oldest_instant() -> None:
    walk = Walk("KRW-BTC", SimulatorConfig(history_minutes=30), NOW_MS)
    walk.begin(NOW_MS)
    assert walk.from_ms == (NOW_MS - 1_800_000) // 300_000 * 300_000
    assert walk.from_ms <= walk.step().tms < walk.from_ms + 1000


def test_the_opening_book_is_older_than_the_window_it_opens_in() -> None:
    walk = Walk("KRW-BTC", ORDINARY, NOW_MS)
    walk.begin(NOW_MS)
    assert walk.current.tms == NOW_MS // 300_000 * 300_000 - 1


def test_odd_books_are_rare_but_there() -> None:
    config = SimulatorConfig(history_minutes=0)
    books = [book for market in MARKETS for book in walked(market, config, 1500)]
    one_sided = [b for b in books if b.best_ask is None or b.best_bid is None]
    crossed = [
        b for b in books if b.best_ask is not None and b.best_bid is not None and b.best_bid >= b.best_ask
    ]
    assert 0 < len(one_sided) < len(books) * 0.01
    assert 0 < len(crossed) < len(books) * 0.005
    assert any(b.best_ask is None for b in one_sided)
    assert any(b.best_bid is None for b in one_sided)
    empty = next(b for b in one_sided if b.best_ask is None)
    rows = levels(empty.encode("SIMPLE", 5, "REALTIME"))
    assert all(ask == 0 and size == 0 for ask, _, size, _ in rows)
    assert rows[0][1] == empty.best_bid


@given(st.integers(0, 10**16))
def test_a_number_keeps_its_value_and_is_written_like_javas(units: int) -> None:
    text = number_text(units)
    value = Decimal(units) / 10**8
    assert Decimal(text) == value
    assert ("E" in text) == (value != 0 and not Decimal("0.001") <= value < 10**7)
    mantissa = text.partition("E")[0]
    assert "." in mantissa
    assert not mantissa.startswith(".")


def test_numbers_that_were_seen_on_the_wire() -> None:
    assert number_text(79276) == "7.9276E-4"
    assert number_text(116539000 * 10**8) == "1.16539E8"
    assert number_text(99) == "9.9E-7"
    assert number_text(127 * 10**8) == "127.0"
    assert number_text(0) == "0.0"


def test_formats_carry_the_same_book() -> None:
    book = walked("KRW-ETH", ORDINARY, 3)[-1]
    simple = json.loads(book.encode("SIMPLE", 5, "SNAPSHOT"))
    default = json.loads(book.encode("DEFAULT", 5, "SNAPSHOT"))
    assert list(simple) == ["ty", "cd", "tms", "tas", "tbs", "obu", "st", "lv"]
    assert list(default) == [
        "type",
        "code",
        "timestamp",
        "total_ask_size",
        "total_bid_size",
        "orderbook_units",
        "stream_type",
        "level",
    ]
    assert list(simple["obu"][0]) == ["ap", "bp", "as", "bs"]
    assert list(default["orderbook_units"][0]) == ["ask_price", "bid_price", "ask_size", "bid_size"]
    assert [list(u.values()) for u in simple["obu"]] == [list(u.values()) for u in default["orderbook_units"]]
    assert [v for k, v in simple.items() if k != "obu"] == [
        v for k, v in default.items() if k != "orderbook_units"
    ]
    assert json.loads(book.encode("SIMPLE_LIST", 5, "SNAPSHOT")) == [simple]
    assert json.loads(book.encode("JSON_LIST", 5, "SNAPSHOT")) == [default]
