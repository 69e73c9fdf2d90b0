"""Candles of trades that could have happened on the books that were published."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from ingest_services.simulator.books import SimulatedBook
from ingest_services.simulator.trades import Trades

START = 1_795_366_200_000
WINDOW_MS = 300_000
prices = st.integers(1, 10**12).map(lambda units: Decimal(units).scaleb(-8))
sides = st.none() | prices


def book(tms: int, ask: Decimal | None, bid: Decimal | None) -> SimulatedBook:
    return SimulatedBook("KRW-BTC", tms, "0.0", "0.0", [], [], [], [], ask, bid)


def trades_on(*books: SimulatedBook) -> Trades:
    trades = Trades()
    for each in books:
        trades.add(each)
    return trades


@given(st.lists(st.tuples(st.integers(0, 899_999), sides, sides), max_size=60, unique_by=lambda b: b[0]))
def test_a_candle_stays_between_the_least_bid_and_the_greatest_ask(
    told: list[tuple[int, Decimal | None, Decimal | None]],
) -> None:
    books = [book(START + offset, ask, bid) for offset, ask, bid in sorted(told, key=lambda b: b[0])]
    candles = list(trades_on(*books).candles("KRW-BTC", 200))
    assert [c.start_ms for c in candles] == sorted((c.start_ms for c in candles), reverse=True)
    for candle in candles:
        usable = [
            (b.tms, b.best_bid, b.best_ask)
            for b in books
            if b.best_ask is not None
            and b.best_bid is not None
            and b.best_bid <= b.best_ask
            and candle.start_ms <= b.tms < candle.start_ms + WINDOW_MS
        ]
        quotes = {quote for _, bid, ask in usable for quote in (bid, ask)}
        assert {candle.open, candle.high, candle.low, candle.close} <= quotes
        assert candle.low <= min(candle.open, candle.close) <= max(candle.open, candle.close) <= candle.high
        assert candle.last_ms in {tms for tms, _, _ in usable}
        assert candle.low * candle.volume <= candle.turnover <= candle.high * candle.volume


def test_some_books_see_a_trade_at_the_bid_some_at_the_ask_and_some_windows_none() -> None:
    busy = [book(START + n * 100, Decimal(11), Decimal(9)) for n in range(1000)]
    (candle,) = trades_on(*busy).candles("KRW-BTC", 200)
    assert (candle.low, candle.high) == (9, 11)
    quiet = [book(START + n * WINDOW_MS, Decimal(11), Decimal(9)) for n in range(200)]
    assert 20 < len(list(trades_on(*quiet).candles("KRW-BTC", 200))) < 150


def test_a_market_that_is_played_again_has_the_same_trades() -> None:
    books = [book(START + n * 100, Decimal(11 + n), Decimal(9)) for n in range(100)]
    trades = trades_on(*books[:50])
    trades.forget("KRW-BTC")
    for each in books:
        trades.add(each)
    assert list(trades.candles("KRW-BTC", 9)) == list(trades_on(*books).candles("KRW-BTC", 9))


def test_candles_end_before_an_instant_and_are_no_more_than_asked_for() -> None:
    trades = trades_on(*(book(START + n * 1000, Decimal(11), Decimal(9)) for n in range(3000)))
    starts = [candle.start_ms for candle in trades.candles("KRW-BTC", 200)]
    assert starts == [START + n * WINDOW_MS for n in reversed(range(10))]
    assert [c.start_ms for c in trades.candles("KRW-BTC", 2, START + WINDOW_MS)] == [START]
    assert [c.start_ms for c in trades.candles("KRW-BTC", 2)] == starts[:2]
    assert list(trades.candles("KRW-ETH", 2)) == []
