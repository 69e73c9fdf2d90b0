"""What analysts get: frames on the market's clock, floats or exact digits, and never a mix of sources."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, get_args
from zoneinfo import ZoneInfo

import matplotlib.pyplot as plt
import pandas as pd
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cryptostream_dagster import chart, client
from cryptostream_dagster.client import Client
from cryptostream_dagster.local.state import StateFolder
from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.warehouse import schema
from cryptostream_dagster.window import Window
from ingest_services.errors import UserError
from tests.postgres_fixture import TestDatabase

SEOUL = ZoneInfo("Asia/Seoul")
START = datetime(2025, 2, 2, 7, 0, tzinfo=UTC)  # 16:00 in Seoul
STEP = timedelta(minutes=5)


@pytest.fixture
def settings(database: TestDatabase, tmp_path: Path) -> PipelineSettings:
    values = {name.lower(): value for name, value in database.environment.items()}
    settings = PipelineSettings(source="simulator", parquet_url=tmp_path.as_uri(), **values)  # type: ignore[arg-type]
    with psycopg.connect(database.dsn) as connection:
        schema.migrate(connection)
        schema.ensure_partitions(connection, Window(START), settings.zone)
        for number in range(4):
            price = Decimal("95000000.1234567891") + number
            connection.execute(
                "INSERT INTO ohlc_5m_ticker (ticker, market, event_time, event_date, open_price, high_price,"
                " low_price, close_price, book_count, first_book_at, last_book_at, version, built_at)"
                " VALUES ('BTC', 'KRW-BTC', %s, '2025-02-02', %s, %s, %s, %s, 7, now(), now(), 1, now())",
                (START + number * STEP, price, price + 1, price - 1, price),
            )
    return settings


@pytest.fixture
def ours(settings: PipelineSettings) -> Iterator[Client]:
    with Client(settings) as opened:
        yield opened


def write_books(root: Path, start: datetime, times: list[datetime]) -> None:
    local = start.astimezone(SEOUL)
    path = root / f"ticker=BTC/{local:year=%Y/month=%m/day=%d/hour=%H}/BTC-{local:%Y%m%d%H%M}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    stamps = pa.array(times, pa.timestamp("ms", tz="UTC"))
    table = {"exchange_time": stamps, "ticker": ["BTC"] * len(times), "ask_size1": [0.5] * len(times)}
    pq.write_table(pa.table(table), path)


def test_candles_are_on_the_market_clock_and_end_is_exclusive(ours: Client) -> None:
    frame = ours.candles("BTC", "2025-02-02 16:05", "2025-02-02 16:15")
    assert list(frame.index) == [
        pd.Timestamp("2025-02-02 16:05", tz=SEOUL),
        pd.Timestamp("2025-02-02 16:10", tz=SEOUL),
    ]
    assert str(frame.index.dtype) == "datetime64[ns, Asia/Seoul]"
    assert frame.attrs == {"ticker": "BTC", "source": "simulator"}


@pytest.mark.parametrize("start", ["2025-02-02T07:10Z", START + 2 * STEP, datetime(2025, 2, 2, 16, 10)])
def test_moments_are_strings_or_datetimes_and_naive_ones_are_market_time(ours: Client, start: object) -> None:
    assert len(ours.candles("BTC", start)) == 2  # type: ignore[arg-type]


def test_both_spellings_of_a_market_are_one_and_an_unknown_one_has_no_candles(ours: Client) -> None:
    assert len(ours.candles("KRW-BTC")) == len(ours.candles("btc")) == 4
    nothing = ours.candles("ETH")
    assert nothing.empty
    assert "close_price" in nothing.columns


def test_prices_are_floats_or_exact(ours: Client) -> None:
    assert ours.candles("BTC")["close_price"].dtype == "float64"
    assert ours.candles("BTC")["twap_price"].dtype == "float64"
    assert ours.candles("BTC", exact=True)["close_price"].iloc[0] == Decimal("95000000.1234567891")


def test_books_come_from_every_window_of_the_range_over_midnight(
    settings: PipelineSettings, tmp_path: Path
) -> None:
    midnight = datetime(2025, 2, 2, 15, 0, tzinfo=UTC)
    for number in range(-2, 2):
        start = midnight + number * STEP
        write_books(tmp_path, start, [start + timedelta(seconds=s) for s in (0, 100, 299)])
    ours = Client(settings)
    frame = ours.books("BTC", "2025-02-02 23:56", "2025-02-03 00:01:40")
    stamps = [f"{moment:%d %H:%M:%S}" for moment in frame.index]
    assert stamps == ["02 23:56:40", "02 23:59:59", "03 00:00:00"]
    assert frame["ask_size1"].dtype == "float64"
    assert ours.books("ETH", midnight, midnight + STEP).empty
    assert ours.books("BTC", "2030-01-01", "2030-01-02").empty


# Of each candle: window, price, since when it was known, until when (None: still).
KNOWN = [
    (0, 10, "16:06", "17:00"),
    (0, 11, "17:00", None),
    (1, 20, "16:11", None),
    (3, 40, "16:21", None),
]


@pytest.fixture
def known(settings: PipelineSettings, database: TestDatabase) -> Iterator[Client]:
    """Candles of ETH, one of which was superseded, and the coverage of their windows."""
    day = "2025-02-02 "
    with psycopg.connect(database.dsn) as connection:
        schema.claim_database(connection, "simulator", "Asia/Seoul")
        for number, price, since, until in KNOWN:
            start = START + number * STEP
            candle = ["ETH", "KRW-ETH", start, "2025-02-02", *[price] * 4, 3, start, start, 0.5, 1]
            moments = [datetime.fromisoformat(day + m).replace(tzinfo=SEOUL) for m in (since, until) if m]
            names = (
                "ticker, market, event_time, event_date, open_price, high_price, low_price, close_price, "
                "book_count, first_book_at, last_book_at, coverage_ratio, version, built_at"
            )
            table = "ohlc_5m_ticker"
            if until:
                table, names = "ohlc_5m_history", f"{names}, valid_from, valid_to"
                moments.insert(0, moments[0])
            values = [*candle, *moments]
            connection.execute(
                f"INSERT INTO {table} ({names}) VALUES ({', '.join(['%s'] * len(values))})",  # type: ignore[arg-type]
                values,
            )
        for number in range(4):
            start = START + number * STEP
            connection.execute(
                "INSERT INTO lake_window (window_start, built_at) VALUES (%s, now())", (start,)
            )
            for ticker, ratio in (("BTC", None), ("ETH", number / 4)):
                connection.execute(
                    "INSERT INTO coverage_5m (ticker, window_start, source, subscribed, coverage_ratio, "
                    "book_count) VALUES (%s, %s, 'simulator', true, %s, 3)",
                    (ticker, start, ratio),
                )
        connection.execute("INSERT INTO ticker VALUES ('ETH', 'KRW-ETH', %s, %s)", (START, START + 3 * STEP))
    with Client(settings) as opened:
        yield opened


def prices(frame: pd.DataFrame) -> dict[str, float]:
    return {f"{moment:%H:%M}": price for moment, price in frame["close_price"].items()}


@pytest.mark.parametrize(
    ("asof", "expected"),
    [
        ("2025-02-02 16:05", {}),
        ("2025-02-02 16:06", {"16:00": 10}),
        ("2025-02-02 16:59:59", {"16:00": 10, "16:05": 20, "16:15": 40}),
        ("2025-02-02 17:00", {"16:00": 11, "16:05": 20, "16:15": 40}),
        (None, {"16:00": 11, "16:05": 20, "16:15": 40}),
    ],
)
def test_candles_as_of_a_moment_are_what_was_known_then(
    known: Client, asof: str | None, expected: dict[str, float]
) -> None:
    found = known.candles("ETH", asof=asof)
    assert prices(found) == expected
    assert list(found.columns) == list(known.candles("ETH").columns)
    later = {start: price for start, price in expected.items() if start >= "16:05"}
    assert prices(known.candles("ETH", "2025-02-02 16:05", asof=asof)) == later
    before = {start: price for start, price in expected.items() if start < "16:15"}
    assert prices(known.candles("ETH", end="2025-02-02 16:15", asof=asof)) == before


def test_the_filled_series_has_every_window_and_says_what_was_carried(known: Client) -> None:
    filled = known.candles("ETH", filled=True)
    assert prices(filled) == {"16:00": 11, "16:05": 20, "16:10": 20, "16:15": 40}
    assert filled["carried_forward"].tolist() == [False, False, True, False]
    assert filled["carried_from"].tolist()[2] == pd.Timestamp("2025-02-02 16:05", tz=SEOUL)
    assert prices(known.candles("ETH", "2025-02-02 16:10", "2025-02-02 16:15", filled=True)) == {"16:10": 20}


def test_hours_and_days_are_those_of_the_market_clock(known: Client) -> None:
    hours = known.candles("ETH", freq="1h")
    assert list(hours.index) == [pd.Timestamp("2025-02-02 16:00", tz=SEOUL)]
    assert hours[["open_price", "high_price", "low_price", "close_price", "windows"]].values.tolist() == [
        [11, 40, 11, 40, 3]
    ]
    days = known.candles("ETH", freq="1d")
    assert list(days.index) == [pd.Timestamp("2025-02-02", tz=SEOUL)]
    assert str(days.index.dtype) == "datetime64[ns, Asia/Seoul]"
    assert days["book_count"].tolist() == [9]
    for freq, end in (("1h", "2025-02-02 16:00"), ("1d", "2025-02-02")):
        assert known.candles("ETH", end=end, freq=freq).empty  # type: ignore[arg-type]
        assert len(known.candles("ETH", end, freq=freq)) == 1  # type: ignore[arg-type]


def test_coverage_is_a_frame_of_one_ticker_or_of_all(known: Client) -> None:
    ours = known.coverage("ETH", "2025-02-02 16:05", "2025-02-02 16:15")
    assert list(ours.index) == [pd.Timestamp(f"2025-02-02 16:{m}", tz=SEOUL) for m in ("05", "10")]
    assert ours["coverage_ratio"].tolist() == [0.25, 0.5]
    assert ours.attrs == {"ticker": "ETH", "source": "simulator"}
    everybody = known.coverage()
    assert everybody["ticker"].tolist() == ["BTC", "ETH"] * 4
    unknown = everybody[everybody["ticker"] == "BTC"]["coverage_ratio"]
    assert unknown.dtype == "float64"
    assert unknown.isna().all()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"freq": "7min"}, "freq='7min' is none of 5min, 1h, 1d"),
        ({"freq": "1h", "filled": True}, "only one of freq, asof and filled"),
        ({"asof": "2025-02-02", "filled": True}, "only one of freq, asof and filled"),
        ({"asof": "soon"}, "'soon' is no moment"),
    ],
)
def test_what_cannot_be_answered_is_one_clear_line(ours: Client, how: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        ours.candles("BTC", **how)


@pytest.mark.parametrize(("ticker", "start"), [("B T C", None), ("BTC", "yesterday-ish")])
def test_nonsense_is_one_clear_line(ours: Client, ticker: str, start: str | None) -> None:
    with pytest.raises(UserError, match=r"B T C|yesterday-ish"):
        ours.candles(ticker, start)


def test_a_server_that_is_not_there_is_one_clear_line(settings: PipelineSettings) -> None:
    gone = settings.model_copy(update={"postgres_port": 1})
    with pytest.raises(UserError, match=r"Postgres at 127\.0\.0\.1:1 "):
        Client(gone).candles("BTC")


def test_a_local_stack_is_found_without_a_word_unless_there_are_two(
    settings: PipelineSettings, database: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("POSTGRES_HOST", "PARQUET_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="no local stack was started here"):
        client.candles("BTC")
    found = database.environment | {"SOURCE": "simulator", "PARQUET_URL": settings.parquet_url}
    StateFolder(Path(".cryptostream/sim")).write_env(found)
    assert len(client.candles("BTC")) == 4
    assert client.books("BTC", START, START + STEP).empty
    StateFolder(Path(".cryptostream/live")).write_env(found | {"SOURCE": "upbit"})
    both = r"\.cryptostream/live and \.cryptostream/sim and {}: say which with Client\.from_state"
    with pytest.raises(UserError, match=both.format("none of them runs")):
        client.candles("BTC")
    with StateFolder(Path(".cryptostream/live")).held():
        assert client.candles("BTC").attrs["source"] == "upbit"
        with (
            StateFolder(Path(".cryptostream/sim")).held(),
            pytest.raises(UserError, match=both.format("all of them run")),
        ):
            client.candles("BTC")
    with StateFolder(Path(".cryptostream/sim")).held():
        assert client.candles("BTC").attrs["source"] == "simulator"
    with Client.from_state(".cryptostream/live") as live:
        assert live.candles("BTC").attrs["source"] == "upbit"
    with pytest.raises(UserError, match="was a local stack ever started"):
        Client.from_state("nowhere")


def test_a_client_has_the_zone_of_its_stack_whatever_the_shell_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARKET_TIME_ZONE", "America/New_York")
    StateFolder(tmp_path).write_env({"MARKET_TIME_ZONE": "Europe/Berlin"})
    assert Client.from_state(tmp_path).settings.market_time_zone == "Europe/Berlin"


def test_a_malformed_value_of_a_stack_is_one_line_that_names_file_key_and_value(tmp_path: Path) -> None:
    StateFolder(tmp_path).write_env({"POSTGRES_PORT": "many"})
    with pytest.raises(UserError) as refused:
        Client.from_state(tmp_path)
    line = str(refused.value)
    assert line.startswith(f"{tmp_path / 'env'}: POSTGRES_PORT='many': ")
    assert len(line.splitlines()) == 1


def test_whose_candles_they_are_is_what_the_database_says(
    settings: PipelineSettings, database: TestDatabase
) -> None:
    with psycopg.connect(database.dsn) as connection:
        schema.claim_database(connection, "simulator", "Asia/Seoul")
    with Client(settings.model_copy(update={"source": "upbit"})) as mistaken:
        assert mistaken.candles("BTC").attrs["source"] == "simulator"


def test_settings_in_the_environment_come_before_a_local_stack(
    database: TestDatabase, settings: PipelineSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    StateFolder(Path(".cryptostream/sim")).write_env(database.environment | {"SOURCE": "simulator"})
    for name, value in database.environment.items():
        monkeypatch.setenv(name, value)
    assert client.candles("BTC").attrs["source"] == "upbit"


def test_a_chart_is_a_picture(ours: Client, tmp_path: Path) -> None:
    path = chart.draw(ours, "BTC", None, None, tmp_path / "chart.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="there is no candle"):
        chart.draw(ours, "ETH", None, None, tmp_path / "none.png")
    with pytest.raises(UserError, match="cannot be written"):
        chart.draw(ours, "BTC", None, None, tmp_path / "no-folder" / "chart.png")


def test_a_chart_of_hours_or_days_says_so(known: Client, tmp_path: Path) -> None:
    hours = chart.plot(known.candles("ETH", freq="1h"), "Asia/Seoul", "1h")
    assert hours.get_suptitle().startswith("ETH, 1-hour candles of the mid price")
    plt.close(hours)
    pictures = [
        chart.draw(known, "ETH", None, None, tmp_path / f"{freq}.png", freq).read_bytes()
        for freq in get_args(client.Freq)[::2]
    ]
    assert len(set(pictures)) == 2


@pytest.mark.parametrize(
    ("source", "title", "watermarks"),
    [("simulator", "simulated data", ["SIMULATED DATA"]), ("upbit", "source: Upbit", [])],
)
def test_a_chart_says_whose_data_it_shows(
    settings: PipelineSettings, source: Literal["simulator", "upbit"], title: str, watermarks: list[str]
) -> None:
    with Client(settings.model_copy(update={"source": source})) as theirs:
        frame = theirs.candles("BTC")
    figure = chart.plot(frame, "Asia/Seoul")
    assert figure.get_suptitle().splitlines() == [
        "BTC, 5-minute candles of the mid price (quotes, not trades)",
        f"2025-02-02 16:00 to 2025-02-02 16:15 Asia/Seoul, {title}",
    ]
    written = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert [text for text in written if text] == watermarks
    plt.close(figure)
