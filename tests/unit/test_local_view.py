"""The view says whose data it is and what is unknown; the demo's comparison misses nothing."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from rich.console import Console

from cryptostream_dagster.local.status import Status
from cryptostream_dagster.local.view import as_line, as_panel
from cryptostream_dagster.local_demo import Difference, Key, Prices, compare, read_truth
from cryptostream_dagster.warehouse.queries import Candle

SEOUL = ZoneInfo("Asia/Seoul")


def rendered(status: Status) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(as_panel(status, SEOUL))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("source", "words"), [("simulator", "SIMULATED DATA, not a market"), ("upbit", "LIVE data from Upbit")]
)
def test_the_view_says_whose_data_it_is(source: str, words: str) -> None:
    assert words in rendered(Status(source))
    assert source in as_line(Status(source), SEOUL)


def test_the_view_shows_numbers_on_the_market_clock_and_children_in_trouble() -> None:
    start = datetime(2025, 2, 2, 7, 5, tzinfo=UTC)
    status = Status(
        "simulator",
        url="http://127.0.0.1:3000",
        frames_per_s=12.34,
        records=12345,
        lag=0,
        last_window=start,
        windows=6,
        candles=[Candle("BTC", start, Decimal("95000500.0000000000"), 612)],
        children={"broker": "running", "producer": "restarting"},
    )
    panel, line = rendered(status), as_line(status, SEOUL)
    for text in (
        "http://127.0.0.1:3000",
        "12.3",
        "12,345",
        "16:05",
        "95000500 ",
        "612",
        "producer restarting",
    ):
        assert text in panel
    assert "records in the lake 12,345" in line
    assert "last window 2025-02-02 16:05 KST" in line
    assert "(producer restarting)" in line


def test_what_is_unknown_is_not_zero() -> None:
    line = as_line(Status("upbit"), SEOUL)
    assert "frames/s -" in line
    assert "broker lag -" in line


def prices(close: str = "1", books: int = 5) -> Prices:
    return Prices(Decimal(1), Decimal(2), Decimal(1), Decimal(close), books)


def test_the_demo_finds_wrong_missing_and_extra_candles_in_built_windows_only() -> None:
    same, wrong, missing, extra, unbuilt = (Key(300_000, name) for name in "ABCDE")
    unbuilt = Key(600_000, "E")
    built = {same: prices("1.50"), wrong: prices(books=4), extra: prices()}
    truth = {same: prices("1.5"), wrong: prices(), missing: prices(), unbuilt: prices()}
    assert compare(built, truth, [300_000]) == [
        Difference(wrong, prices(books=4), prices()),
        Difference(missing, None, prices()),
        Difference(extra, prices(), None),
    ]


def test_the_truth_is_read_digit_for_digit() -> None:
    candle = {"ticker": "BTC", "market": "KRW-BTC", "window_start_ms": 300000, "book_count": 2}
    values = {"open": "0.1", "high": "95000500.5", "low": "0.00000001", "close": "3"}
    assert read_truth({"candles": [candle | values]}) == {
        Key(300_000, "BTC"): Prices(
            Decimal("0.1"), Decimal("95000500.5"), Decimal("0.00000001"), Decimal(3), 2
        )
    }
