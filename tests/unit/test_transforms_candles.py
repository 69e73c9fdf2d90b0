from __future__ import annotations

import random
import tempfile
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cryptostream_dagster.transforms.books import BookBuilder
from cryptostream_dagster.transforms.candles import TickerCandle, candles_query, window_candles
from cryptostream_dagster.transforms.raw import RawObject
from cryptostream_dagster.transforms.storage import open_storage
from cryptostream_dagster.window import Window
from ingest_services.errors import UserError
from ingest_services.upbit.ticks import UNITS_PER_ONE, Ladder
from tests.candle_reference import ReferenceCandle, read_book, reference_candles
from tests.lake_builder import SEOUL, LakeBuilder, Level, Row, frame, instant

START = instant("2025-02-02 16:05:00")
WINDOW = Window.at(START)
T0, END = WINDOW.start_ms, WINDOW.end_ms


def candles_of(folder: Path, rows: list[Row], threads: int = 2) -> dict[str, TickerCandle]:
    lake = LakeBuilder(folder / "raw")
    files = lake.commit(rows).files
    parquet = open_storage("PARQUET_URL", (folder / "parquet").as_uri())
    builder = BookBuilder(open_storage("RAW_URL", lake.url), parquet, 5, SEOUL)
    objects = [RawObject(f.path, f.ticker, 1, f.rows, f.bytes, f.crc32c) for f in files]
    built = builder.build(WINDOW, objects, {})
    paths = [result.path for result in built.tickers if result.path]
    return {candle.ticker: candle for candle in window_candles(parquet, paths, WINDOW, threads)}


def assert_same(candle: TickerCandle, reference: ReferenceCandle) -> None:
    assert (candle.open, candle.high, candle.low, candle.close) == (
        reference.open,
        reference.high,
        reference.low,
        reference.close,
    )
    assert (
        candle.book_count,
        candle.first_ms,
        candle.last_ms,
        candle.one_sided_count,
        candle.crossed_count,
    ) == (
        reference.book_count,
        reference.first_ms,
        reference.last_ms,
        reference.one_sided,
        reference.crossed,
    )
    if reference.twap is None or reference.spread_bps is None:
        assert candle.weight_ms == 0
    else:
        assert Fraction(candle.mid_ms) / candle.weight_ms == reference.twap
        assert abs(Fraction(candle.spread_ms) / candle.weight_ms - reference.spread_bps) < Fraction(1, 10**8)


def price_text(rng: random.Random, price: Decimal) -> str:
    """Write a price in one of the ways in which the exchange writes numbers."""
    digits = f"{price:f}".rstrip("0").rstrip(".") if "." in f"{price:f}" else f"{price:f}"
    return rng.choice([digits, f"{digits}.0" if "." not in digits else digits, f"{price.normalize():E}"])


def random_rows(rng: random.Random) -> list[Row]:
    """Return books of some tickers on the exchange's tick grid, with all that goes wrong with books."""
    rows = []
    for ticker, quote in (
        ("AAA", "KRW"),
        ("BBB", "KRW"),
        ("CCC", "KRW"),
        ("BTC-D", "BTC"),
        ("USDT-E", "USDT"),
    ):
        ladder = Ladder(quote)
        low = rng.choice([1, 10**3, 10**5, 10**7, 10**9, 10**11, 10**13, 10**15, 10**16])
        rung = ladder.rung(low * rng.randint(1, 9)) if quote != "BTC" else rng.randint(10, 10**8)
        for _ in range(rng.randint(0, 12)):
            rung = max(3, rung + rng.randint(-3, 3))
            ask = Decimal(ladder.price(rung + rng.randint(0, 2))) / UNITS_PER_ONE
            bid = Decimal(ladder.price(max(0, rung - rng.randint(0, 2)))) / UNITS_PER_ONE
            if rng.random() < 0.1:
                ask, bid = bid, ask
            levels: list[Level] = [
                (
                    "0" if rng.random() < 0.05 else price_text(rng, ask),
                    "0" if rng.random() < 0.05 else price_text(rng, bid),
                    rng.choice(["0", "7.9276E-4", "1"]),
                    rng.choice(["0", "12.5"]),
                )
            ]
            # Snapshots may be older than the window; few distinct stamps, so that some occur twice.
            snapshot = rng.random() < 0.3
            tms = T0 + rng.randrange(-600_000 if snapshot else 0, 300_000, 20_000)
            received_us = (max(tms, T0) + rng.randint(1, 500)) * 1000
            if received_us // 1000 >= END:
                received_us = (END - 1) * 1000
            stamp = tms * 1000 + 7 if rng.random() < 0.1 else tms
            kind = "SNAPSHOT" if snapshot else "REALTIME"
            value = frame(ticker, stamp, levels, kind, level=rng.choice([0, 0, 0, 0, 10_000]))
            rows += [Row(value, received_us)] * rng.choice([1, 1, 1, 2])
    return rows


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32))
def test_candles_are_those_of_a_plain_reference_to_the_last_digit(seed: int) -> None:
    rows = random_rows(random.Random(seed))
    if not rows:
        return
    with tempfile.TemporaryDirectory() as folder:
        found = candles_of(Path(folder), rows)
    books = [
        read_book(ticker_of_frame(row), row.received_us, offset, row.frame) for offset, row in enumerate(rows)
    ]
    expected = reference_candles(books, T0, END)
    assert {t for t, candle in found.items() if candle.book_count} == set(expected), f"seed {seed}"
    for ticker, reference in expected.items():
        assert_same(found[ticker], reference)


def ticker_of_frame(row: Row) -> str:
    from ingest_services.upbit.frames import Book, read_frame

    book = read_frame(row.frame)
    assert isinstance(book, Book)
    return book.ticker


@pytest.mark.parametrize("quote", ["KRW", "BTC", "USDT"])
def test_every_mid_on_the_tick_grid_is_exact(quote: str) -> None:
    """(ask + bid) / 2 of the exchange's decimals survives the doubles, over the whole range of prices."""
    import duckdb

    rng = random.Random(20250202)
    ladder = Ladder(quote)
    rungs = [rng.randint(0, 10 ** rng.randint(1, 9)) for _ in range(20_000)] if quote == "BTC" else []
    if not rungs:
        rungs = [ladder.rung(rng.randint(1, 10 ** rng.randint(1, 17))) for _ in range(20_000)]
    pairs = [
        (ladder.price(r + rng.randint(0, 30)), ladder.price(max(0, r - rng.randint(0, 30)))) for r in rungs
    ]
    exact = [(Decimal(a) + Decimal(b)) / 2 / UNITS_PER_ONE for a, b in pairs]
    import pyarrow as pa

    books = pa.table(
        {
            "ticker": [str(n) for n in range(len(pairs))],
            "market": ["KRW-X"] * len(pairs),
            "exchange_time": pa.array([T0] * len(pairs), pa.timestamp("ms", "UTC")),
            "ask_price1": [float(Decimal(a) / UNITS_PER_ONE) for a, _ in pairs],
            "bid_price1": [float(Decimal(b) / UNITS_PER_ONE) for _, b in pairs],
            "level": [0.0] * len(pairs),
            "row_number": list(range(len(pairs))),
        }
    )
    session = duckdb.connect()
    session.register("book", books)
    rows = session.execute(candles_query(), {"start_ms": T0, "end_ms": END}).fetchall()
    found = {int(row[0]): row[2] for row in rows}
    assert [found[n] for n in range(len(pairs))] == exact


def book_row(tms: int, ask: float, bid: float, stream_type: str = "REALTIME") -> Row:
    return Row(frame("BTC", tms, [(ask, bid, 1, 1)], stream_type), max(tms, T0) * 1000 + 1)


def test_an_older_snapshot_prevails_from_the_start_but_is_no_event(tmp_path: Path) -> None:
    rows = [book_row(T0 - 60_000, 11, 9, "SNAPSHOT"), book_row(T0 + 100_000, 21, 19)]
    candle = candles_of(tmp_path, rows)["BTC"]
    assert (candle.open, candle.book_count, candle.first_ms) == (20, 1, T0 + 100_000)
    assert (candle.mid_ms, candle.weight_ms) == (10 * 100_000 + 20 * 200_000, 300_000)


def test_while_a_book_is_one_sided_or_crossed_no_mid_prevails(tmp_path: Path) -> None:
    rows = [
        book_row(T0, 11, 9),
        book_row(T0 + 100_000, 0, 9),
        book_row(T0 + 150_000, 21, 19),
        book_row(T0 + 200_000, 19, 21),
    ]
    candle = candles_of(tmp_path, rows)["BTC"]
    assert (candle.one_sided_count, candle.crossed_count, candle.book_count) == (1, 1, 2)
    assert (candle.mid_ms, candle.weight_ms) == (10 * 100_000 + 20 * 50_000, 150_000)


def test_a_book_of_grouped_prices_is_in_no_candle_and_ends_no_other(tmp_path: Path) -> None:
    grouped = Row(frame("BTC", T0 + 100_000, [(20, 0.5, 1, 1)], level=10), (T0 + 100_000) * 1000 + 1)
    candle = candles_of(tmp_path, [book_row(T0, 11, 9), grouped])["BTC"]
    assert (candle.high, candle.low, candle.close, candle.book_count) == (10, 10, 10, 1)
    assert (candle.mid_ms, candle.weight_ms) == (10 * 300_000, 300_000)


def test_a_locked_book_is_usable(tmp_path: Path) -> None:
    candle = candles_of(tmp_path, [book_row(T0, 10, 10)])["BTC"]
    assert (candle.open, candle.spread_ms, candle.book_count) == (10, 0, 1)


def test_a_ticker_without_an_event_has_no_price(tmp_path: Path) -> None:
    candle = candles_of(tmp_path, [book_row(T0 - 1, 11, 9, "SNAPSHOT")])["BTC"]
    assert (candle.open, candle.book_count) == (None, 0)


def test_an_absurd_price_is_no_side_of_a_book(tmp_path: Path) -> None:
    candle = candles_of(tmp_path, [book_row(T0, 1e300, 9), book_row(T0 + 1, -5, 9)])["BTC"]
    assert (candle.book_count, candle.one_sided_count) == (0, 2)


def test_the_window_is_half_open(tmp_path: Path) -> None:
    rows = [book_row(T0, 11, 9), book_row(END - 1, 21, 19)]
    # Stamped a moment after the end by the exchange's clock, received before it by ours.
    rows.append(Row(frame("BTC", END, [(99, 98, 1, 1)], "SNAPSHOT"), (END - 1) * 1000))
    candle = candles_of(tmp_path, rows)["BTC"]
    assert (candle.book_count, candle.close, candle.last_ms) == (2, 20, END - 1)


def test_tickers_that_look_like_numbers_stay_what_they_are(tmp_path: Path) -> None:
    rows = [Row(frame(ticker, T0, [(11, 9, 1, 1)]), T0 * 1000 + 1) for ticker in ("1", "007", "1E5")]
    assert list(candles_of(tmp_path, rows)) == ["007", "1", "1E5"]


def test_no_parquet_gives_no_candle_and_a_broken_one_says_so(tmp_path: Path) -> None:
    parquet = open_storage("PARQUET_URL", tmp_path.as_uri())
    assert window_candles(parquet, [], WINDOW) == []
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="cannot be read"):
        window_candles(parquet, ["a.parquet"], WINDOW)
