"""The truth: exact candles of every book that was published."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_services.simulator.books import SimulatedBook
from ingest_services.simulator.truth import Truth, decimal_text

START = 1_795_366_200_000
prices = st.integers(1, 10**12).map(lambda units: Decimal(units).scaleb(-8))
sides = st.none() | prices


def book(tms: int, ask: Decimal | None, bid: Decimal | None, market: str = "KRW-BTC") -> SimulatedBook:
    return SimulatedBook(market, tms, "0.0", "0.0", [], [], [], [], ask, bid)


@given(
    st.lists(st.tuples(st.integers(0, 899_999), sides, sides), max_size=40, unique_by=lambda b: b[0]),
    st.sampled_from([300, 900]),
)
def test_candles_equal_a_plain_recomputation_in_fractions(
    told: list[tuple[int, Decimal | None, Decimal | None]], window_s: int
) -> None:
    truth = Truth()
    for offset, ask, bid in told:
        truth.add(book(START + offset, ask, bid))
    expected = []
    for start in range(START - START % (window_s * 1000), START + 900_000, window_s * 1000):
        mids = [
            (START + offset, (Fraction(ask) + Fraction(bid)) / 2)
            for offset, ask, bid in sorted(told, key=lambda b: b[0])
            if ask is not None
            and bid is not None
            and bid <= ask
            and start <= START + offset < start + window_s * 1000
        ]
        if mids:
            values = [mid for _, mid in mids]
            expected.append(
                (start, values[0], max(values), min(values), values[-1], len(mids), mids[0][0], mids[-1][0])
            )
    found = [
        (
            c["window_start_ms"],
            *(Fraction(str(c[key])) for key in ("open", "high", "low", "close")),
            c["book_count"],
            c["first_book_ms"],
            c["last_book_ms"],
        )
        for c in truth.candles(window_s)
    ]
    assert found == expected
    assert truth.books_published == len(told)


def test_books_without_a_mid_are_excluded_and_counted() -> None:
    truth = Truth()
    truth.add(book(START, Decimal(2), None))
    assert not list(truth.candles())
    truth.add(book(START + 1, Decimal(2), Decimal(3)))
    truth.add(book(START + 2, Decimal("3.5"), Decimal(3)))
    (candle,) = truth.candles()
    assert (candle["book_count"], candle["excluded_count"], candle["open"]) == (1, 2, "3.25")
    assert candle["first_book_ms"] == START + 2


def test_a_locked_book_has_a_mid() -> None:
    truth = Truth()
    truth.add(book(START, Decimal(3), Decimal(3)))
    (candle,) = truth.candles()
    assert (candle["book_count"], candle["open"]) == (1, "3")


def test_a_market_can_be_forgotten_alone() -> None:
    truth = Truth()
    truth.add(book(START, Decimal(3), Decimal(2)))
    truth.add(book(START, Decimal(3), Decimal(2), "USDT-BTC"))
    truth.forget("KRW-BTC")
    assert [(c["ticker"], c["market"]) for c in truth.candles()] == [("USDT-BTC", "USDT-BTC")]


@pytest.mark.parametrize("window_s", [0, -300, 60, 301])
def test_other_windows_are_refused(window_s: int) -> None:
    with pytest.raises(ValueError, match="300"):
        list(Truth().candles(window_s))


@given(prices)
def test_decimals_are_written_plainly_and_without_loss(value: Decimal) -> None:
    text = decimal_text(value)
    assert Decimal(text) == value
    assert "E" not in text
    assert not ("." in text and text.endswith(("0", ".")))
