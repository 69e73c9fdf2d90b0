"""When our candles and the exchange's agree: mid is not trade, and what is unknown is not wrong."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from cryptostream_dagster.warehouse.agreement import Candle, compare, compare_all, describe, distance_bps
from cryptostream_dagster.window import Window
from ingest_services.upbit.rest import RestCandle, RestError

WINDOW = Window.at(datetime(2025, 2, 2, 7, 5, tzinfo=UTC))


def ours(
    low: float = 1000, high: float = 1010, spread_bps: float = 10, n: int = 0, ticker: str = "BTC"
) -> Candle:
    return Candle(ticker, f"KRW-{ticker}", WINDOW.shifted(n), low, high, spread_bps)


def theirs(low: float, high: float, n: int = 0) -> RestCandle:
    return RestCandle(WINDOW.shifted(n).start, low, high, low, high)


@pytest.mark.parametrize(
    ("low", "high", "apart"),
    [
        (1002, 1008, False),  # not every mid is traded at
        (990, 1020, False),  # an order swept through levels that were gone before a book was published
        (1010.5, 1012, False),  # bought at the ask, half a spread above the highest mid
        (998, 999.5, False),
        (1012, 1013, True),
        (990, 998, True),
    ],
)
def test_what_was_traded_overlaps_the_mids_made_wider_by_the_spread(
    low: float, high: float, apart: bool
) -> None:
    assert (distance_bps(ours(), theirs(low, high)) > 0) == apart


def test_the_distance_is_in_basis_points_of_the_price() -> None:
    assert distance_bps(ours(100, 100, 0), theirs(101, 102)) == pytest.approx(100)
    assert distance_bps(ours(100, 100, 50), theirs(101, 102)) == pytest.approx(50)
    assert distance_bps(ours(100, 100, 0), theirs(97, 98)) == pytest.approx(200)


def test_windows_are_compared_with_their_own_and_without_a_trade_they_are_unknown() -> None:
    mine = [ours(n=n) for n in range(3)]
    found = compare("BTC", mine, [theirs(2000, 2000, n=9), theirs(1005, 1006), theirs(1020, 1030, n=2)])
    assert (found.compared, found.unknown, list(found.apart)) == (2, 1, [WINDOW.shifted(2)])


def test_the_worst_is_named_first() -> None:
    mine = [ours(ticker="A"), ours(ticker="B"), ours(ticker="C")]
    prices = {"KRW-A": 1020.0, "KRW-B": 1100.0, "KRW-C": 1005.0}
    found = compare_all(mine, lambda market, _: [theirs(prices[market], prices[market])])
    assert describe(found) == "B: 1 windows, up to 886 bps apart; A: 1 windows, up to 89.5 bps apart"


def test_nobody_is_asked_twice_who_does_not_answer() -> None:
    asked: list[str] = []

    def silent(market: str, _: int) -> list[RestCandle]:
        asked.append(market)
        raise RestError("https://api: timed out", {"KRW-A": 404, "KRW-B": None}[market])

    mine = [ours(ticker="A"), ours(ticker="B"), ours(ticker="C")]
    found = compare_all(mine, silent)
    assert asked == ["KRW-A", "KRW-B"]  # A is gone, which says nothing of B; B got no answer
    assert [(c.compared, c.unknown, c.apart) for c in found] == [(0, 1, {})] * 3
    assert describe(found) == "unknown: https://api: timed out"
    assert describe([]) == "unknown: there is no candle of ours of which all was listened to"


def test_what_agrees_says_how_much_was_compared() -> None:
    found = [compare("BTC", [ours(), ours(n=1)], [theirs(1005, 1006)])]
    assert describe(found) == "1 windows of 1 tickers agree, 1 unknown"
