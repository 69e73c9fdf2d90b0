"""Each promise that a check makes is broken once, and the check says so: by name, by detail, by window."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest
from dagster._core.storage.event_log.base import PartitionKeyFilter
from pyarrow import parquet as pq

from cryptostream_dagster.assets.shell import VERDICT
from cryptostream_dagster.jobs import RANGE_END_TAG, RANGE_START_TAG
from cryptostream_dagster.questions import QUESTIONS
from tests.dagster_world import KEYS, START, WINDOW, World, book, open_world
from tests.lake_builder import Row, covered_minutes, frame, heartbeat, ms
from tests.postgres_fixture import TestDatabase

Told = dict[tuple[str, str, str], tuple[bool, Any]]


@pytest.fixture
def world(tmp_path: Path, database: TestDatabase) -> Iterator[World]:
    with open_world(tmp_path, database) as opened:
        yield opened


def told(result: dg.ExecuteInProcessResult) -> Told:
    """What each check said of each window: asset, name and partition key → passed, detail."""
    return {
        (evaluation.asset_key.to_user_string(), evaluation.check_name, evaluation.partition or ""): (
            evaluation.passed,
            evaluation.metadata["detail"].value if "detail" in evaluation.metadata else None,
        )
        for evaluation in result.get_asset_check_evaluations()
    }


def check_again(world: World, first: str, last: str | None = None) -> dg.ExecuteInProcessResult:
    """Run the checks alone, as the UI does when a person asks for them."""
    job = world.defs.resolve_job_def("build_windows")
    keys = {dg.AssetCheckKey(dg.AssetKey(q.asset), q.name) for q in QUESTIONS}
    only = job.get_subset(asset_check_selection=keys)
    tags = {RANGE_START_TAG: first, RANGE_END_TAG: last} if last else {}
    return only.execute_in_process(instance=world.instance, partition_key=None if last else first, tags=tags)


def break_everything_in_the_second_window(world: World) -> None:
    second = WINDOW.shifted(1).start
    for ticker, column, value in (("BTC", "bid_size1", -3.0), ("ETH", "exchange_time", START)):
        (path,) = Path(world.settings.parquet_url.removeprefix("file://")).rglob(f"{ticker}-*1610.parquet")
        table = pq.read_table(path, partitioning=None)
        number = table.schema.get_field_index(column)
        field = table.schema.field(column)
        array = pa.array([value] * table.num_rows, field.type)
        table = table.set_column(number, field, array)
        # One row more than was written, in BTC's.
        pq.write_table(pa.concat_tables([table, table.slice(0, ticker == "BTC")]), path)
    with world.platform.connect() as connection:
        for statement in (
            "UPDATE ohlc_5m_ticker SET low_price = 200, first_book_at = event_time - interval '1 s' "
            "WHERE event_time = %s AND ticker = 'BTC'",
            "UPDATE ohlc_5m_ticker SET coverage_ratio = 1.5, twap_price = -1 "
            "WHERE event_time = %s AND ticker = 'ETH'",
            "UPDATE coverage_5m SET book_count = 7, crossed_count = 2 "
            "WHERE window_start = %s AND ticker = 'ETH'",
            "UPDATE coverage_5m SET coverage_ratio = 0.5 WHERE window_start = %s",
            "UPDATE orderbook_features_5m SET imbalance = 2, book_count = 9 "
            "WHERE event_time = %s AND ticker = 'BTC'",
            "UPDATE parquet_file SET duplicates = 3 WHERE window_start = %s AND ticker = 'BTC'",
        ):
            connection.execute(statement, (second,))
        # The commit with the second window's books: one more than it has offsets, two of them missing.
        connection.execute("UPDATE lake_commit SET missing = 2, books = books - 1 WHERE base_offset = 3")


BROKEN = {
    ("raw_orderbook", "offsets_contiguous"): "chain 1 partition 0: 2 offsets",
    ("raw_orderbook", "commits_add_up"): "chain 1 partition 0 commit 3: 2 records",
    ("raw_orderbook", "listened"): "mean coverage 0.5; worst: BTC 0.5, ETH 0.5",
    ("orderbook_parquet", "rows_add_up"): (
        "BTC: sealed 2, accounted for 5; BTC-202502021610.parquet: holds 3 rows, 2 were written"
    ),
    ("orderbook_parquet", "as_declared"): "BTC-202502021610.parquet: bid_size1 is -3.0, not >= 0",
    ("orderbook_parquet", "times_in_window"): (
        "ETH-202502021610.parquet: stamped 2025-02-02 07:05:00+00:00 to 2025-02-02 07:05:00+00:00, "
        "received 2025-02-02 07:10:09.050000+00:00 to 2025-02-02 07:10:09.050000+00:00"
    ),
    ("ohlc_5m_ticker", "prices_in_order"): "BTC",
    ("ohlc_5m_ticker", "books_have_candles"): "ETH",
    ("ohlc_5m_ticker", "as_declared"): "ETH: twap_price, coverage_ratio",
    ("ohlc_5m_ticker", "times_in_window"): "BTC",
    ("ohlc_5m_ticker", "no_crossed_books"): "ETH 2",
    ("orderbook_features_5m", "as_declared"): "BTC: imbalance",
    ("orderbook_features_5m", "candles_have_features"): "BTC",
}


def test_every_check_fails_in_the_window_whose_promise_is_broken_and_in_no_other(world: World) -> None:
    assert set(BROKEN) == {(q.asset, q.name) for q in QUESTIONS}
    for n in range(3):
        rows = [book(300 * n, 100), book(300 * n + 60, 110), book(300 * n + 9, 5, "ETH")]
        world.lake.commit(rows)
    world.lake.commit(heartbeats=covered_minutes(START, 15, "BTC", "ETH"))
    world.lake.through(WINDOW.shifted(3).start)

    # One run, three windows: each is told apart.
    built = world.run(KEYS[0], KEYS[2])
    assert built.success
    verdict = ("ohlc_5m_ticker", VERDICT)
    assert told(built) == {(*check, key): (True, None) for check in [*BROKEN, verdict] for key in KEYS}

    break_everything_in_the_second_window(world)
    ranged = told(check_again(world, KEYS[0], KEYS[2]))
    alone = told(check_again(world, KEYS[1]))
    for check, detail in BROKEN.items():
        assert ranged[*check, KEYS[1]] == alone[*check, KEYS[1]] == (False, detail)
        for other in (KEYS[0], KEYS[2]):
            # When a missing record was received nobody knows: its neighbours share the doubt.
            assert ranged[*check, other][0] == (check[1] != "offsets_contiguous"), (check, other)

    # And so it is in Dagster's storage, by window.
    for asset, name in BROKEN:
        (record,) = world.instance.event_log_storage.get_asset_check_execution_history(
            dg.AssetCheckKey(dg.AssetKey(asset), name),
            limit=1,
            partition_filter=PartitionKeyFilter(key=KEYS[1]),
        )
        assert record.status.value == "FAILED"


def test_a_crossed_book_is_counted_and_warned_of(world: World) -> None:
    crossed = Row(frame("BTC", ms(START) + 500, [(99, 101, 1, 1)]), (ms(START) + 550) * 1000)
    world.lake.commit([book(0, 100), crossed])
    world.lake.through(WINDOW.end)
    result = world.run(KEYS[0])
    assert result.success
    (warning,) = (e for e in result.get_asset_check_evaluations() if not e.passed)
    assert (warning.check_name, warning.severity) == ("no_crossed_books", dg.AssetCheckSeverity.WARN)
    assert (warning.metadata["violations"].value, warning.metadata["detail"].value) == (1, "BTC 1")


def test_a_window_in_which_too_little_was_listened_to_warns_and_names_the_worst(world: World) -> None:
    beats = covered_minutes(WINDOW.end, 5, *(f"T{n}" for n in range(200)))
    beats.append(heartbeat(WINDOW.end, WINDOW.end + timedelta(minutes=1), "BTC", section="upbit_producer2"))
    world.lake.commit([book(0, 100), book(301, 100)], beats)
    world.lake.through(START + timedelta(hours=1))
    evaluations = []
    for key in KEYS:
        result = world.run(key)
        assert result.success  # a warning, not an error
        evaluations += [e for e in result.get_asset_check_evaluations() if e.check_name == "listened"]
    assert [(e.passed, e.severity) for e in evaluations] == [
        (passed, dg.AssetCheckSeverity.WARN) for passed in (True, True, False)
    ]
    unknown, well, silent = (e.metadata.get("detail") for e in evaluations)
    assert unknown is not None
    assert unknown.value == "unknown: no heartbeat is that old"
    assert well is None  # one of 201 tickers has 0.2: the mean is 0.996
    assert silent is not None
    assert str(silent.value).startswith("mean coverage 0; worst: BTC 0, T0 0, ")
    assert evaluations[2].metadata["violations"].value == 201
