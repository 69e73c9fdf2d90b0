from __future__ import annotations

import math
import random
import tempfile
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cryptostream_dagster.transforms.books import BookBuilder, TickerBooks
from cryptostream_dagster.transforms.features import TickerFeatures, window_features
from cryptostream_dagster.transforms.raw import RawObject
from cryptostream_dagster.transforms.schema import DEPTH_BANDS_BPS, FEATURE_COLUMNS, depth_column
from cryptostream_dagster.transforms.storage import Storage, open_storage
from cryptostream_dagster.window import Window
from ingest_services.errors import UserError
from ingest_services.upbit.ticks import UNITS_PER_ONE, Ladder
from tests.feature_reference import BPS, ReferenceFeatures, read_full_book, reference_features
from tests.lake_builder import SEOUL, LakeBuilder, Level, Row, frame, instant

WINDOW = Window.at(instant("2025-02-02 16:05:00"))
T0, END = WINDOW.start_ms, WINDOW.end_ms
DEPTH = 15


def build(folder: Path, rows: list[Row]) -> tuple[Storage, list[TickerBooks]]:
    lake = LakeBuilder(folder / "raw")
    files = lake.commit(rows).files
    parquet = open_storage("PARQUET_URL", (folder / "parquet").as_uri())
    builder = BookBuilder(open_storage("RAW_URL", lake.url), parquet, DEPTH, SEOUL)
    objects = [RawObject(f.path, f.ticker, 1, f.rows, f.bytes, f.crc32c) for f in files]
    return parquet, builder.build(WINDOW, objects, {}).tickers


def features_of(folder: Path, rows: list[Row]) -> dict[str, TickerFeatures]:
    parquet, built = build(folder, rows)
    return {row.ticker: row for row in window_features(parquet, paths_of(built), WINDOW)}


def paths_of(built: list[TickerBooks]) -> list[str]:
    return [books.path for books in built if books.path]


def book(seconds: float, levels: list[Level], ticker: str = "BTC", stream_type: str = "REALTIME") -> Row:
    tms = T0 + round(seconds * 1000)
    return Row(frame(ticker, tms, levels, stream_type), max(tms, T0) * 1000 + 1)


def mean(total: Decimal | None, weight: int) -> Fraction | None:
    return None if total is None or not weight else Fraction(total) / weight


def near(found: Fraction | float | None, expected: Fraction | float | None, tolerance: float = 1e-8) -> bool:
    if found is None or expected is None:
        return found is expected
    return math.isclose(found, expected, rel_tol=tolerance, abs_tol=tolerance)


def assert_same(found: TickerFeatures, expected: ReferenceFeatures, why: str) -> None:
    weight = found.weight_ms
    assert (found.book_count, found.returns) == (expected.book_count, expected.returns), why
    assert near(mean(found.spread_ms, weight), expected.spread_bps), why
    for column, depth in expected.depths.items():
        assert near(mean(getattr(found, f"{column}_ms"), weight), depth), f"{column}: {why}"
    assert near(mean(found.imbalance_ms, found.imbalance_weight_ms), expected.imbalance), why
    assert near(None if found.volatility is None else float(found.volatility), expected.volatility, 1e-9), why
    sizes = (found.close_ask_size, found.close_bid_size)
    assert sizes[0] is not None
    assert sizes[1] is not None
    total = Fraction(sizes[0]) + Fraction(sizes[1])
    price = Fraction(found.close_ask) * Fraction(sizes[1]) + Fraction(found.close_bid) * Fraction(sizes[0])
    assert (price / total if total else None) == expected.microprice, why


def random_rows(rng: random.Random) -> list[Row]:
    """Return books of all shapes on the exchange's tick grid: thin, one-sided, crossed, locked, sizeless."""
    rows = []
    for ticker, quote in (("AAA", "KRW"), ("BBB", "KRW"), ("BTC-D", "BTC"), ("USDT-E", "USDT")):
        ladder = Ladder(quote)
        # Where a tick is a hundredth of a basis point as well as where it is a hundred.
        low = rng.choice([10**3, 10**5, 10**7, 10**9, 10**11, 10**13, 10**15, 10**16])
        rung = ladder.rung(low * rng.randint(1, 9)) if quote != "BTC" else rng.randint(100, 10**8)
        for _ in range(rng.randint(0, 12)):
            rung = max(3, rung + rng.randint(-3, 3))
            gap = rng.choice([-1, 0, 1, 1, 1, 2, 7])
            stride = rng.choice([1, 1, 2, 20])
            asks, bids = (rng.choice([0, 1, 3, DEPTH, DEPTH, DEPTH, DEPTH]) for _ in range(2))
            levels: list[Level] = []
            for level in range(max(asks, bids)):
                ask, bid = rung + gap + level * stride, rung - level * stride
                sizes = [f"{rng.choice([0, 1, 10**-4, 7.9276, 12.5, 10**9]):.8f}" for _ in range(2)]
                no_ask, no_bid = level >= asks, level >= bids or bid < 0
                levels.append(
                    (
                        "0" if no_ask else price_text(ladder, ask),
                        "0" if no_bid else price_text(ladder, bid),
                        "0" if no_ask else sizes[0],
                        "0" if no_bid else sizes[1],
                    )
                )
            snapshot = rng.random() < 0.3
            # Few distinct stamps, so that some occur twice, and some on full seconds.
            tms = T0 + rng.randrange(-600_000 if snapshot else 0, 300_000, rng.choice([500, 20_000]))
            received_us = min(max(tms, T0) + rng.randint(1, 500), END - 1) * 1000
            value = frame(ticker, tms, levels, "SNAPSHOT" if snapshot else "REALTIME")
            rows += [Row(value, received_us)] * rng.choice([1, 1, 1, 2])
    return rows


def price_text(ladder: Ladder, rung: int) -> str:
    return f"{Decimal(ladder.price(max(rung, 0))) / UNITS_PER_ONE:f}"


@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32))
def test_features_are_those_of_a_plain_reference(seed: int) -> None:
    rows = random_rows(random.Random(seed))
    if not rows:
        return
    with tempfile.TemporaryDirectory() as folder:
        found = features_of(Path(folder), rows)
    books = [
        read_full_book(ticker_of_frame(row), row.received_us, offset, row.frame)
        for offset, row in enumerate(rows)
    ]
    expected = reference_features(books, T0, END)
    assert set(found) == set(expected), f"seed {seed}"
    for ticker, reference in expected.items():
        assert_same(found[ticker], reference, f"{ticker}, seed {seed}")


def ticker_of_frame(row: Row) -> str:
    from ingest_services.upbit.frames import Book, read_frame

    read = read_frame(row.frame)
    assert isinstance(read, Book)
    return read.ticker


def test_the_reference_and_the_columns_speak_of_the_same_bands() -> None:
    assert BPS == DEPTH_BANDS_BPS
    columns = {column.name for column in FEATURE_COLUMNS}
    assert {depth_column(side, bps) for bps in BPS for side in ("ask", "bid")} <= columns


def test_depth_is_the_sum_of_the_sizes_within_the_band_edge_included(tmp_path: Path) -> None:
    # Mid 10,000: the edges are 10,010 and 9,990, and 10,050 and 9,950.
    levels: list[Level] = [(10_005, 9_995, 1, 2), (10_010, 9_990, 10, 20), (10_011, 9_900, 100, 200)]
    found = features_of(tmp_path, [book(0, levels)])["BTC"]
    assert (found.ask_depth_10bps_ms, found.bid_depth_10bps_ms) == (11 * 300_000, 22 * 300_000)
    assert (found.ask_depth_50bps_ms, found.bid_depth_50bps_ms) == (None, 22 * 300_000)


def test_a_mean_depth_is_unknown_if_one_book_that_prevailed_ended_sooner(tmp_path: Path) -> None:
    deep: list[Level] = [(10_005, 9_995, 1, 2), (10_100, 9_900, 1, 2)]
    shallow: list[Level] = [(10_005, 9_995, 1, 2)]
    known = [book(0, deep), book(100, shallow), book(100, deep, "ETH"), book(0, shallow, "ETH")]
    found = features_of(tmp_path, known)
    assert {found[t].ask_depth_10bps_ms for t in ("BTC", "ETH")} == {None}
    # One that was in force for no time at all says nothing.
    rows = [book(0, deep), book(100, shallow), book(100, deep)]
    rows = [replace(row, received_us=T0 * 1000 + n) for n, row in enumerate(rows)]
    again = features_of(tmp_path / "again", rows)
    assert again["BTC"].ask_depth_10bps_ms == 300_000


def test_means_weigh_by_the_time_in_force_and_crossed_books_are_not(tmp_path: Path) -> None:
    rows = [
        book(0, [(101, 99, 1, 3)]),  # imbalance 1/2, spread 200 bps
        book(100, [(99, 101, 1, 1)]),
        book(200, [(101, 99, 3, 1)]),  # imbalance -1/2
        book(250, [(101, 99, 0, 0)]),  # no imbalance at all
    ]
    found = features_of(tmp_path, rows)["BTC"]
    assert (found.weight_ms, found.imbalance_weight_ms, found.book_count) == (200_000, 150_000, 3)
    assert found.spread_ms == 200 * 200_000
    assert found.imbalance_ms == Decimal("0.5") * 100_000 - Decimal("0.5") * 50_000
    assert (found.close_ask_size, found.close_bid_size) == (0, 0)


def test_volatility_is_sampled_at_full_seconds_from_the_first_mid_on(tmp_path: Path) -> None:
    rows = [
        book(10.2, [(101, 99, 1, 1)]),
        book(11.0, [(201, 199, 1, 1)]),  # the sample at 11 s; 100 was never sampled
        book(20.1, [(901, 899, 1, 1)]),  # gone before the next full second
        book(20.9, [(101, 99, 1, 1)]),
        book(299.5, [(201, 199, 1, 1)]),  # the sample at the window's end
    ]
    found = features_of(tmp_path, rows)["BTC"]
    assert found.returns == 289
    assert found.volatility is not None
    assert math.isclose(float(found.volatility), math.sqrt(2 * math.log(2) ** 2), abs_tol=1e-12)
    still = features_of(tmp_path / "still", [book(0, [(101, 99, 1, 1)])])["BTC"]
    assert (still.returns, still.volatility) == (300, 0)
    late = features_of(tmp_path / "late", [book(299.5, [(101, 99, 1, 1)])])["BTC"]
    assert (late.returns, late.volatility) == (0, None)


def test_threads_and_the_order_of_the_objects_change_nothing(tmp_path: Path) -> None:
    rows = [row for seed in range(8) for row in random_rows(random.Random(seed))]
    parquet, built = build(tmp_path, rows)
    whole = window_features(parquet, paths_of(built), WINDOW, threads=4)
    assert len(whole) == 4
    assert window_features(parquet, paths_of(built)[::-1], WINDOW, threads=1) == whole


def test_a_size_beyond_all_measure_is_unknown_and_stops_nothing(tmp_path: Path) -> None:
    deep: Level = (10_100, 9_900, 1, 1)
    rows = [book(0, [(10_001, 9_999, 1e300, 1), deep]), book(0, [(10_001, 9_999, 1, 1), deep], "ETH")]
    found = features_of(tmp_path, rows)
    assert (found["BTC"].close_ask_size, found["BTC"].close_bid_size) == (None, 1)
    assert (found["BTC"].ask_depth_50bps_ms, found["BTC"].bid_depth_50bps_ms) == (None, 300_000)
    assert found["ETH"].ask_depth_50bps_ms == 300_000


def test_no_parquet_gives_no_features_and_a_broken_one_says_so(tmp_path: Path) -> None:
    parquet = open_storage("PARQUET_URL", tmp_path.as_uri())
    assert window_features(parquet, [], WINDOW) == []
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="cannot be read"):
        window_features(parquet, ["a.parquet"], WINDOW)
