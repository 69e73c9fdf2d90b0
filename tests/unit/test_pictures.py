"""Pictures are well-formed whatever is drawn, and small: they live in the event log for ever."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote
from xml.etree import ElementTree as ET
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from cryptostream_dagster.pictures import MOST_BYTES, Bar, Quote, as_markdown, day_picture, window_picture

ZONE = ZoneInfo("Asia/Seoul")
START = datetime(2025, 2, 1, 15, tzinfo=UTC)
DAY = timedelta(days=1)
FIVE = timedelta(minutes=5)
SVG = "{http://www.w3.org/2000/svg}"

prices = st.floats(1e-8, 1e9, allow_nan=False)
spreads = st.none() | st.floats(0, 1e4)


@st.composite
def days(draw: st.DrawFn) -> list[Bar]:
    bars = []
    for number in sorted(draw(st.sets(st.integers(0, 287), min_size=1, max_size=30))):
        first, second, third, fourth = sorted(draw(st.lists(prices, min_size=4, max_size=4)))
        up = draw(st.booleans())
        body = (second, third) if up else (third, second)
        bars.append(Bar(START + number * FIVE, body[0], fourth, first, body[1], draw(spreads)))
    return bars


def paths(svg: str) -> str:
    root = ET.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    return " ".join(path.get("d", "") for path in root.iter(f"{SVG}path"))


def inside(svg: str) -> bool:
    numbers = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", paths(svg))]
    return all(-1 <= number <= 560 for number in numbers)


@given(days())
def test_any_day_is_drawn_within_its_frame(bars: list[Bar]) -> None:
    svg = day_picture("A & <B>", bars, START, START + DAY, FIVE, ZONE)
    assert inside(svg)
    # A wick and a body for each candle, a bar for each known spread, and the frame's four lines.
    known = sum(bar.spread_bps is not None for bar in bars)
    assert paths(svg).count("M") == 2 * len(bars) + known + 4
    assert "A &amp; &lt;B&gt;" in svg


@given(
    st.lists(st.tuples(st.floats(0, 299.9), prices, st.floats(0, 10)), min_size=1, max_size=50), st.booleans()
)
def test_any_window_is_drawn_within_its_frame(drawn: list[tuple[float, float, float]], flat: bool) -> None:
    quotes = [
        Quote(START + timedelta(seconds=second), bid, bid if flat else bid * (1 + wider))
        for second, bid, wider in sorted(drawn)
    ]
    svg = window_picture("BTC", quotes, START, START + FIVE, ZONE)
    assert inside(svg)
    seconds = {int(second // 2) for second, _, _ in drawn}
    assert paths(svg).count("M") == len(seconds) + 2 + 4


def test_the_largest_pictures_stay_below_their_bound() -> None:
    day = DAY + timedelta(hours=1)  # clocks go back
    bars = [
        Bar(START + n * FIVE, 123456789.12345 + n % 7, 987654321.98765, 1.2345678901, 5e8, n % 11 + 0.123456)
        for n in range(300)
    ]
    quotes = [
        Quote(START + timedelta(milliseconds=100 * n), 1e8 + n * 37 % 1999, 1e8 + 2000 + n * 53 % 1999)
        for n in range(3000)
    ]
    for svg in (
        day_picture("BTC-A-LONG-ONE", bars, START, START + day, FIVE, ZONE),
        window_picture("BTC-A-LONG-ONE", quotes, START, START + FIVE, ZONE),
    ):
        assert len(as_markdown(svg, "x").encode()) <= MOST_BYTES


def test_the_markdown_is_one_image_that_brings_its_own_data() -> None:
    svg = day_picture("BTC (simulated)", [Bar(START, 1, 2, 0.5, 1.5, None)], START, START + DAY, FIVE, ZONE)
    match = re.fullmatch(r"!\[BTC\]\(data:image/svg\+xml,([^\s()<>\"]+)\)", as_markdown(svg, "BTC"))
    assert match is not None
    assert unquote(match[1]) == svg


def test_a_day_says_when_on_the_markets_clock_and_how_high() -> None:
    bars = [Bar(START, 1500, 2500.5, 1000, 2000, 3.25)]
    root = ET.fromstring(day_picture("BTC", bars, START, START + DAY, FIVE, ZONE))
    assert [element.text for element in root if element.text] == [
        "BTC",
        "2,500.5",
        "1,000",
        "3.25 bps",
        "spread",
        "00:00",
        "06:00",
        "12:00",
        "18:00",
        "00:00",
    ]
