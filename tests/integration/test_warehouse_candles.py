from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cryptostream_dagster import steps
from cryptostream_dagster.resources import Platform
from cryptostream_dagster.transforms.books import BookBuilder
from cryptostream_dagster.transforms.schema import CANDLE_COLUMNS
from cryptostream_dagster.warehouse import queries
from cryptostream_dagster.warehouse.connection import connect
from cryptostream_dagster.warehouse.schema import claim_database, migrate, migrations
from cryptostream_dagster.window import Window
from ingest_services.errors import UserError
from ingest_services.lake.lines import decompress, read_line
from tests.lake_builder import Row, covered_minutes, frame, instant, ms
from tests.pipeline import Pipeline, open_pipeline, pipeline_settings
from tests.postgres_fixture import TestDatabase

START = instant("2025-02-02 16:05:00")
WINDOW = Window.at(START)
FAR = timedelta(hours=2)

COLUMNS = ", ".join(column.name for column in CANDLE_COLUMNS)
ALL_CANDLES = "SELECT * FROM ohlc_5m_ticker ORDER BY ticker, event_time"
ALL_TABLES = (
    ALL_CANDLES,
    "SELECT * FROM ohlc_5m_history ORDER BY ticker, event_time",
    "SELECT * FROM orderbook_features_5m ORDER BY ticker, event_time",
    "SELECT * FROM coverage_5m ORDER BY ticker, window_start",
    "SELECT * FROM parquet_file ORDER BY ticker, window_start",
    "SELECT * FROM seal ORDER BY window_start, version",
    "SELECT * FROM built ORDER BY window_start, asset",
)


@pytest.fixture
def pipeline(tmp_path: Path, database: TestDatabase) -> Iterator[Pipeline]:
    with open_pipeline(tmp_path, database) as opened:
        opened.lake.through(START + FAR)
        yield opened


def book(seconds: float, mid: float, ticker: str = "BTC", **options: Any) -> Row:
    tms = ms(START) + round(seconds * 1000)
    return Row(frame(ticker, tms, [(mid + 1, mid - 1, 1, 1)], **options), (tms + 50) * 1000)


def state(pipeline: Pipeline) -> list[list[tuple[Any, ...]]]:
    return [pipeline.query(text) for text in ALL_TABLES]


def test_migrations_run_once_in_order_and_twice_at_once(tmp_path: Path, database: TestDatabase) -> None:
    settings = pipeline_settings(tmp_path, database)
    results: list[list[str]] = []

    def run() -> None:
        with connect(settings) as connection:
            results.append(migrate(connection))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = [name for _, name, _ in migrations()]
    assert sorted(results, key=len) == [[], [], [], names]
    numbers = [number for number, _, _ in migrations()]
    assert numbers == sorted(set(numbers)), "two migrations have one number"


def test_a_migration_that_comes_after_one_with_a_greater_number_is_applied(
    tmp_path: Path, database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryptostream_dagster.warehouse import schema

    ours = migrations()
    tenth = (9010, "9010_tenth.sql", "CREATE TABLE tenth (x int)")
    twentieth = (9020, "9020_twentieth.sql", "CREATE TABLE twentieth (x int)")
    with connect(pipeline_settings(tmp_path, database)) as connection:
        for known, expected in (
            ([*ours, twentieth], [*(name for _, name, _ in ours), "9020_twentieth.sql"]),
            ([*ours, tenth, twentieth], ["9010_tenth.sql"]),
            ([*ours, tenth, twentieth], []),
        ):
            monkeypatch.setattr(schema, "migrations", lambda known=known: known)
            assert migrate(connection) == expected
        # One that went back to a program without the file in between would write what it does not know.
        monkeypatch.setattr(schema, "migrations", lambda: [*ours, twentieth])
        with pytest.raises(UserError, match=r"has 9010_tenth.sql, which .* newer"):
            migrate(connection)


def test_a_migration_that_fails_leaves_nothing_behind(
    tmp_path: Path, database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryptostream_dagster.warehouse import schema

    broken = [*migrations(), (99, "0099_broken.sql", "CREATE TABLE half (x int); SELECT 1 / 0")]
    monkeypatch.setattr(schema, "migrations", lambda: broken)
    with connect(pipeline_settings(tmp_path, database)) as connection:
        with pytest.raises(psycopg.errors.DivisionByZero):
            migrate(connection)
        assert connection.execute("SELECT to_regclass('half'), to_regclass('seal')").fetchone() == (
            None,
            None,
        )


def test_a_database_that_is_newer_or_of_another_source_is_refused(
    tmp_path: Path, database: TestDatabase
) -> None:
    settings = pipeline_settings(tmp_path, database)
    with Platform(settings).connect() as connection:
        with pytest.raises(UserError, match="never share a database"):
            claim_database(connection, "upbit", "Asia/Seoul")
        connection.execute("INSERT INTO schema_migration (version, name) VALUES (1000, 'future')")
    with pytest.raises(UserError, match="newer"), Platform(settings).connect():
        pass


def test_an_unreachable_server_is_one_line(tmp_path: Path, database: TestDatabase) -> None:
    settings = pipeline_settings(tmp_path, database, postgres_port=1)
    with pytest.raises(UserError, match=r"Postgres at 127.0.0.1:1 .*POSTGRES_HOST") as caught:
        connect(settings)
    assert database.password not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_window_becomes_candles(pipeline: Pipeline) -> None:
    pipeline.lake.commit(
        [book(0, 100), book(60, 110), book(120, 90), book(240, 95), book(10, 7, "ETH")],
        covered_minutes(START, 5, "BTC"),
    )
    pipeline.build(WINDOW)
    rows = pipeline.query(
        "SELECT ticker, market, event_time, event_date::text, open_price, high_price, low_price, "
        "close_price, prev_close_price, twap_price, book_count, coverage_ratio, version "
        "FROM ohlc_5m_ticker ORDER BY ticker"
    )
    twap = Decimal(100 * 60 + 110 * 60 + 90 * 120 + 95 * 60) / 300
    assert rows[0] == ("BTC", "KRW-BTC", START, "2025-02-02", 100, 110, 90, 95, None, twap, 4, 1.0, 1)
    assert rows[1][:2] == ("ETH", "KRW-ETH")
    assert rows[1][-2:] == (0.0, 1)
    assert pipeline.query("SELECT ticker, book_count FROM coverage_5m ORDER BY 1") == [("BTC", 4), ("ETH", 1)]


def test_building_again_changes_nothing(pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline.lake.commit([book(n, 100 + n, t) for n in range(9) for t in ("BTC", "ETH")])
    pipeline.build(WINDOW)
    before = state(pipeline)
    objects = {path: path.stat().st_mtime_ns for path in (tmp_path / "parquet").rglob("*.parquet")}
    _, parquet, candles = pipeline.build(WINDOW)
    assert not parquet.written
    assert candles.written is not None
    assert (candles.written.new, candles.written.superseded) == (0, 0)
    assert state(pipeline) == before
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "parquet").rglob("*.parquet")} == objects


def test_two_builders_at_once_change_nothing_either(pipeline: Pipeline) -> None:
    pipeline.lake.commit([book(n, 100 + n, t) for n in range(9) for t in ("BTC", "ETH", "XRP")])
    failures: list[BaseException] = []
    written: list[bool] = []

    def run() -> None:
        try:
            with connect(pipeline.settings) as connection:
                other = Pipeline(pipeline.settings, pipeline.lake, connection)
                for window in (WINDOW, WINDOW.shifted(1)):
                    _, parquet, _ = other.build(window)
                    written.append(parquet.written)
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sum(written) == 2
    assert pipeline.value("SELECT count(*) FROM ohlc_5m_ticker") == 3
    assert pipeline.value("SELECT count(*) FROM ohlc_5m_history") == 0
    assert pipeline.value("SELECT count(*) FROM seal") == 2


def test_a_window_that_grew_is_built_anew_and_the_old_candle_is_history(pipeline: Pipeline) -> None:
    pipeline.lake.commit([book(0, 100), book(10, 50, "ETH")])
    pipeline.build(WINDOW)
    (old,) = pipeline.query(f"SELECT {COLUMNS} FROM ohlc_5m_ticker WHERE ticker = 'BTC'")
    built_at = pipeline.value("SELECT built_at FROM ohlc_5m_ticker WHERE ticker = 'BTC'")
    pipeline.lake.commit([book(100, 130)])
    sealed, parquet, candles = pipeline.build(WINDOW)
    assert (sealed.seal.version, parquet.version, candles.version) == (2, 2, 2)
    assert pipeline.query(
        "SELECT ticker, close_price, book_count, version FROM ohlc_5m_ticker ORDER BY 1"
    ) == [
        ("BTC", 130, 2, 2),
        ("ETH", 50, 1, 1),  # took its values with version 1, and keeps them
    ]
    (history,) = pipeline.query(f"SELECT {COLUMNS}, valid_from, valid_to FROM ohlc_5m_history")
    *values, valid_from, valid_to = history
    assert tuple(values) == old
    assert valid_from == built_at
    assert valid_to == pipeline.value("SELECT built_at FROM ohlc_5m_ticker WHERE ticker = 'BTC'")
    assert pipeline.query("SELECT asset, version FROM built ORDER BY 1") == [
        ("ohlc_5m_ticker", 2),
        ("orderbook_features_5m", 2),
        ("orderbook_parquet", 2),
    ]


def test_an_older_build_never_replaces_a_newer_one(pipeline: Pipeline) -> None:
    pipeline.lake.commit([book(0, 100)])
    pipeline.build(WINDOW)
    # As if another run had written version 5 while this one was computing.
    pipeline.query(
        "INSERT INTO seal SELECT window_start, 5, 'x', revision, coverage_revision, sealed_at, files, rows, "
        "bytes, tickers, late_rows, quarantined FROM seal RETURNING 1"
    )
    pipeline.query("UPDATE built SET version = 5 WHERE asset = 'ohlc_5m_ticker' RETURNING 1")
    pipeline.query("UPDATE ohlc_5m_ticker SET close_price = 7, version = 5 RETURNING 1")
    built = pipeline.candles(WINDOW)
    assert built.written is None
    assert pipeline.query("SELECT close_price, version FROM ohlc_5m_ticker") == [(7, 5)]


def test_prev_close_is_the_window_before_whichever_is_built_first(
    pipeline: Pipeline, tmp_path: Path, database: TestDatabase
) -> None:
    rows = [book(0, 100), book(300, 200), book(600, 300), book(900, 400, "ETH")]
    pipeline.lake.commit(rows)
    windows = [WINDOW.shifted(n) for n in range(4)]
    for number in (2, 0, 1, 3):
        pipeline.build(windows[number])
    query = "SELECT ticker, close_price, prev_close_price FROM ohlc_5m_ticker ORDER BY event_time"
    expected = [("BTC", 100, None), ("BTC", 200, 100), ("BTC", 300, 200), ("ETH", 400, None)]
    assert pipeline.query(query) == expected
    # The correction is on record: first nothing was known of the window before.
    assert pipeline.query("SELECT close_price, prev_close_price FROM ohlc_5m_history") == [(300, None)]


@pytest.mark.parametrize("first", [0, 1])
def test_writers_of_neighbouring_windows_wait_for_each_other(pipeline: Pipeline, first: int) -> None:
    """Neither sees what the other has not committed: one of the two must come later, and see it."""
    pipeline.lake.commit([book(0, 100), book(300, 200)])
    windows = [WINDOW, WINDOW.shifted(1)]
    for window in windows:
        pipeline.seal(window)
        pipeline.parquet(window)
    with connect(pipeline.settings) as one, connect(pipeline.settings) as other:
        other.autocommit = True
        later = threading.Thread(
            target=steps.candle_step, args=(other, windows[1 - first], pipeline.settings), daemon=True
        )
        with one.transaction():
            steps.candle_step(one, windows[first], pipeline.settings)
            later.start()
            waiting = (
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            while later.is_alive() and not pipeline.value(waiting):
                later.join(0.01)
        later.join()
    prices = "SELECT close_price, prev_close_price FROM ohlc_5m_ticker ORDER BY event_time"
    assert pipeline.query(prices) == [(100, None), (200, 100)]


def test_the_questions_of_the_status_view(pipeline: Pipeline) -> None:
    assert queries.last_built_window(pipeline.connection) is None
    pipeline.lake.commit([book(0, 100), book(300, 200), book(0, 5, "ETH")])
    for n in (1, 0):
        pipeline.build(WINDOW.shifted(n))
    assert queries.last_built_window(pipeline.connection) == WINDOW.shifted(1)
    newest = queries.newest_candles(pipeline.connection)
    assert [(candle.ticker, candle.close_price) for candle in newest] == [("BTC", 200), ("ETH", 5)]
    assert queries.windows_built_since(pipeline.connection, START) == 2
    assert queries.windows_built_since(pipeline.connection, WINDOW.end) == 1
    # A window of silence is built, too.
    pipeline.build(WINDOW.shifted(2))
    assert queries.last_built_window(pipeline.connection) == WINDOW.shifted(2)
    assert queries.newest_candles(pipeline.connection) == newest


def test_the_status_view_never_reads_the_whole_candle_table(pipeline: Pipeline) -> None:
    pipeline.lake.commit([book(0, 100)])
    pipeline.build(WINDOW)
    connection = pipeline.connection
    connection.execute(
        "INSERT INTO ohlc_5m_ticker SELECT ticker, market, event_time - n * interval '10 s', event_date, "
        "1, 1, 1, 1, NULL, NULL, 1, now(), now(), NULL, NULL, 1, now() "
        "FROM ohlc_5m_ticker, generate_series(1, 9999) AS n"
    )
    connection.execute("ANALYZE")
    filled = pipeline.value("SELECT DISTINCT tableoid::regclass::text FROM ohlc_5m_ticker")
    plans: list[str] = []

    class Explained:
        def execute(self, text: str, arguments: object = None) -> Any:
            plans.append(str(connection.execute("EXPLAIN " + text, arguments).fetchall()))  # type: ignore[call-overload]
            return connection.execute(text, arguments)  # type: ignore[call-overload]

    for question in (queries.last_built_window, queries.newest_candles):
        question(Explained())  # type: ignore[operator]
    queries.windows_built_since(Explained(), START)  # type: ignore[arg-type]
    assert len(plans) == 3
    assert not [plan for plan in plans if f"Seq Scan on {filled}" in plan]


def test_parquet_that_was_lost_is_written_again(pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline.lake.commit([book(0, 100), book(0, 5, "ETH")])
    pipeline.build(WINDOW)
    before = state(pipeline)
    lost = next((tmp_path / "parquet").rglob("BTC-*.parquet"))
    whole = lost.read_bytes()
    lost.write_bytes(b"")
    with pytest.raises(UserError, match="not what was recorded"):
        pipeline.candles(WINDOW)
    assert pipeline.parquet(WINDOW).written
    assert lost.read_bytes() == whole
    pipeline.candles(WINDOW)
    assert state(pipeline) == before


@pytest.mark.parametrize("damage", ["cut short", "zeroed", "of another seal"])
def test_damaged_parquet_gives_no_candles_and_is_named(
    pipeline: Pipeline, tmp_path: Path, damage: str
) -> None:
    pipeline.lake.commit([book(0, 100), book(0, 5, "ETH")])
    pipeline.build(WINDOW)
    before = state(pipeline)
    file = next((tmp_path / "parquet").rglob("BTC-*.parquet"))
    whole = file.read_bytes()
    if damage == "cut short":
        file.write_bytes(whole[: len(whole) // 2])
    elif damage == "zeroed":
        file.write_bytes(bytes(len(whole)))
    else:
        # What a build of a newer version leaves that was cut off between two objects; as long as the old one.
        digest = pipeline.value("SELECT digest FROM seal").encode()
        file.write_bytes(whole.replace(digest, digest[::-1]))
        assert file.read_bytes() != whole
    with pytest.raises(UserError, match="materialize orderbook_parquet again") as caught:
        pipeline.candles(WINDOW)
    # The first is seen before anything is read: by its size.
    assert damage == "cut short" or f"{pipeline.settings.parquet_url}/ticker=BTC/" in str(caught.value)
    file.write_bytes(b"")
    assert pipeline.parquet(WINDOW).written
    assert file.read_bytes() == whole
    pipeline.candles(WINDOW)
    assert state(pipeline) == before


def test_lines_in_quarantine_can_be_asked_for_and_are_replaced_with_the_window(pipeline: Pipeline) -> None:
    unfit = [Row(b'{"cd":"KRW-BTC","tms":%d}' % ms(START), ms(START) * 1000, "BTC"), Row(b"7", 1, "BTC")]
    unfit[1].received_us = ms(START) * 1000
    pipeline.lake.commit([book(0, 100), book(0, 100), *unfit])
    pipeline.build(WINDOW)
    counts = "SELECT ticker, sealed_rows, rows, duplicates, quarantined FROM parquet_file"
    assert pipeline.query(counts) == [("BTC", 4, 1, 1, 2)]
    told = 'SELECT window_start, ticker, partition, "offset", reason FROM quarantined_line ORDER BY "offset"'
    assert pipeline.query(told) == [
        (START, "BTC", 0, 2, "unknown stream type"),
        (START, "BTC", 0, 3, "market missing or of another type"),
    ]
    # The bytes are where it says.
    for path, number, offset in pipeline.query('SELECT path, line, "offset" FROM quarantined_line'):
        lines = decompress(path, pipeline.lake.store.get(path)).split(b"\n")
        assert read_line(lines[number - 1]).value == unfit[offset - 2].frame
    pipeline.lake.commit([Row(b"8", ms(START) * 1000, "ETH")])
    pipeline.build(WINDOW)
    assert [row[1:4] for row in pipeline.query(told)] == [("BTC", 0, 2), ("BTC", 0, 3), ("ETH", 0, 4)]
    assert pipeline.query(f"{counts} WHERE ticker = 'ETH'") == [("ETH", 1, 0, 0, 1)]


def test_steps_out_of_order_say_what_is_missing(pipeline: Pipeline) -> None:
    with pytest.raises(UserError, match="materialize raw_orderbook first"):
        pipeline.parquet(WINDOW)
    with pytest.raises(UserError, match="materialize orderbook_parquet first"):
        pipeline.candles(WINDOW)


def test_a_window_of_silence_is_built_and_says_so(pipeline: Pipeline) -> None:
    sealed, parquet, candles = pipeline.build(WINDOW)
    assert (sealed.seal.rows, parquet.tickers, candles.candles) == (0, [], [])
    assert queries.last_built_window(pipeline.connection) == WINDOW


def test_a_postgres_that_goes_away_in_the_middle_leaves_the_old_state(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.lake.commit([book(0, 100)])
    pipeline.build(WINDOW)
    before = pipeline.query(ALL_CANDLES)
    pipeline.lake.commit([book(1, 120)])
    pipeline.seal(WINDOW)
    pipeline.parquet(WINDOW)
    write = steps.write_candles

    def cut_off(connection: psycopg.Connection, *arguments: Any) -> Any:
        result = write(connection, *arguments)
        with connect(pipeline.settings) as other:
            other.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))
        return result

    monkeypatch.setattr(steps, "write_candles", cut_off)
    with connect(pipeline.settings) as doomed, pytest.raises(psycopg.OperationalError):
        Pipeline(pipeline.settings, pipeline.lake, doomed).candles(WINDOW)
    monkeypatch.undo()
    assert pipeline.query(ALL_CANDLES) == before
    pipeline.candles(WINDOW)
    assert pipeline.value("SELECT close_price FROM ohlc_5m_ticker") == 120


def test_a_postgres_that_goes_away_while_parquet_is_written_leaves_a_window_that_can_be_built(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.lake.commit([book(0, 100)])
    pipeline.build(WINDOW)
    before = state(pipeline)
    pipeline.lake.commit([book(1, 120)])
    pipeline.seal(WINDOW)
    build = BookBuilder.build
    with connect(pipeline.settings) as doomed:

        def cut_off(builder: BookBuilder, *arguments: Any) -> Any:
            result = build(builder, *arguments)
            pipeline.connection.execute("SELECT pg_terminate_backend(%s)", (doomed.info.backend_pid,))
            return result

        monkeypatch.setattr(BookBuilder, "build", cut_off)
        with pytest.raises(psycopg.OperationalError):
            Pipeline(pipeline.settings, pipeline.lake, doomed).parquet(WINDOW)
        monkeypatch.undo()
    # The tables are as they were, the Parquet is not: nobody makes candles of the one with the other.
    assert state(pipeline)[3] == before[3]
    with pytest.raises(UserError, match="materialize orderbook_parquet again"):
        pipeline.candles(WINDOW)
    assert pipeline.parquet(WINDOW).version == 2
    pipeline.candles(WINDOW)
    assert pipeline.query("SELECT close_price, book_count FROM ohlc_5m_ticker") == [(120, 2)]
