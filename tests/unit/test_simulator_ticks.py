"""Ladders: every price that an order may have, and no other."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_services.upbit.ticks import Ladder, to_units

QUOTES = ("KRW", "BTC", "USDT")


@given(st.sampled_from(QUOTES), st.integers(0, 200_000))
def test_rungs_and_prices_are_each_others_inverse(quote: str, rung: int) -> None:
    ladder = Ladder(quote)
    price = ladder.price(rung)
    assert price > 0
    assert ladder.rung(price) == rung
    assert ladder.rung(ladder.price(rung + 1) - 1) == rung
    assert ladder.price(rung + 1) - price == ladder.tick(price)
    assert price % ladder.tick(price) == 0


@pytest.mark.parametrize(
    ("quote", "price", "tick"),
    [
        ("KRW", "160000000", "1000"),
        ("KRW", "1000000", "1000"),
        ("KRW", "999500", "500"),
        ("KRW", "499900", "100"),
        ("KRW", "50000", "50"),
        ("KRW", "49990", "10"),
        ("KRW", "5000", "5"),
        ("KRW", "4999", "1"),
        ("KRW", "100", "1"),
        ("KRW", "99.9", "0.1"),
        ("KRW", "9.99", "0.01"),
        ("KRW", "0.999", "0.001"),
        ("KRW", "0.0137", "0.0001"),
        ("KRW", "0.00089", "0.000001"),
        ("BTC", "0.0345", "0.00000001"),
        ("USDT", "2.2", "0.001"),
        ("USDT", "110000", "0.01"),
    ],
)
def test_tick_sizes(quote: str, price: str, tick: str) -> None:
    assert Ladder(quote).tick(to_units(Decimal(price))) == to_units(Decimal(tick))


def test_there_is_nothing_below_the_lowest_price() -> None:
    with pytest.raises(ValueError, match="below"):
        Ladder("KRW").price(-1)
    assert Ladder("KRW").rung(0) == 0


def test_a_ninth_decimal_is_refused() -> None:
    with pytest.raises(ValueError, match="eight decimals"):
        to_units(Decimal("0.000000001"))
