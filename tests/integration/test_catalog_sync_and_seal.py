from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cryptostream_dagster.catalog import sync as sync_module
from cryptostream_dagster.catalog.complete import Incomplete, behind, complete_until, wait_until_complete
from cryptostream_dagster.catalog.coverage import window_coverage
from cryptostream_dagster.catalog.reconcile import (
    Request,
    enter_empty_windows,
    find_candidates,
    note_requests,
)
from cryptostream_dagster.catalog.seal import newest_seal, sealed_files
from cryptostream_dagster.catalog.sync import sync
from cryptostream_dagster.questions import QUESTIONS, Ground
from cryptostream_dagster.window import Window
from ingest_services.errors import UserError
from ingest_services.lake import chain as chains
from ingest_services.lake.audit import BrokerLog
from ingest_services.tools.retire import retire_topic, take_up_topic
from tests.lake_builder import SEOUL, LakeBuilder, Row, covered_minutes, frame, heartbeat, hole, instant, ms
from tests.pipeline import Pipeline, open_pipeline
from tests.postgres_fixture import TestDatabase

START = instant("2025-02-02 16:05:00")
WINDOW = Window.at(START)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def pipeline(tmp_path: Path, database: TestDatabase) -> Iterator[Pipeline]:
    with open_pipeline(tmp_path, database, partitions=2) as opened:
        yield opened


def book(seconds: float = 0, ticker: str = "BTC", received: datetime | None = None, **options: Any) -> Row:
    tms = ms(START) + round(seconds * 1000)
    return Row(
        frame(ticker, tms, [(101, 100, 1, 1)], **options), (ms(received) if received else tms + 50) * 1000
    )


def test_each_commit_is_taken_once_and_the_cursor_moves_with_it(pipeline: Pipeline) -> None:
    for n in range(120):
        pipeline.lake.commit([book(n)])
    pipeline.lake.commit([book(0, "ETH")], partition=1)
    for _ in range(2):
        assert sync(pipeline.connection, pipeline.lake.store)
        assert pipeline.value("SELECT count(*) FROM lake_commit") == 121
        assert pipeline.value("SELECT count(*) FROM lake_file") == 121
        assert pipeline.query("SELECT partition, next_offset FROM lake_partition ORDER BY 1") == [
            (0, 120),
            (1, 1),
        ]
        assert pipeline.value("SELECT rows FROM lake_window WHERE window_start = %s", START) == 121
    pipeline.lake.commit([book(120)])
    sync(pipeline.connection, pipeline.lake.store)
    assert pipeline.value("SELECT count(*) FROM lake_commit") == 122


def test_a_sync_that_dies_leaves_cursor_and_rows_together(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(60):
        pipeline.lake.commit([book(n)])
    insert = sync_module._insert

    def die_later(*arguments: Any) -> None:
        insert(*arguments)
        if pipeline.value("SELECT count(*) FROM lake_commit") > 50:
            raise KeyboardInterrupt

    monkeypatch.setattr(sync_module, "_insert", die_later)
    with pytest.raises(KeyboardInterrupt):
        sync(pipeline.connection, pipeline.lake.store)
    assert pipeline.value("SELECT max(next_offset) FROM lake_commit") == 50
    assert pipeline.value("SELECT next_offset FROM lake_partition WHERE partition = 0") == 50
    monkeypatch.undo()
    sync(pipeline.connection, pipeline.lake.store)
    assert pipeline.value("SELECT count(*) FROM lake_file") == 60


def test_two_syncs_at_once_take_each_commit_once(
    pipeline: Pipeline, tmp_path: Path, database: TestDatabase
) -> None:
    for n in range(150):
        pipeline.lake.commit([book(n % 290)], partition=n % 2)
    failures: list[BaseException] = []

    def run() -> None:
        from cryptostream_dagster.warehouse.connection import connect

        try:
            with connect(pipeline.settings) as connection:
                sync(connection, pipeline.lake.store)
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert pipeline.value("SELECT count(*) FROM lake_file") == 150
    assert pipeline.value("SELECT sum(rows)::int FROM lake_window") == 150


def test_a_sync_stops_when_its_time_is_up_and_goes_on_later(pipeline: Pipeline) -> None:
    for n in range(120):
        pipeline.lake.commit([book(n)])
    assert not sync(pipeline.connection, pipeline.lake.store, budget_s=0)
    assert 0 < pipeline.value("SELECT count(*) FROM lake_commit") < 120
    assert sync(pipeline.connection, pipeline.lake.store, budget_s=60)
    assert pipeline.value("SELECT count(*) FROM lake_commit") == 120


def test_a_database_of_another_lake_is_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    sync(pipeline.connection, pipeline.lake.store)
    other = LakeBuilder(tmp_path / "other", topic_id="another-topic")
    with pytest.raises(UserError, match="belongs to another lake"):
        sync(pipeline.connection, other.store)


def test_a_window_is_complete_when_every_partition_is_through(pipeline: Pipeline) -> None:
    lake, connection = pipeline.lake, pipeline.connection
    sync(connection, lake.store)
    assert complete_until(connection) is None
    lake.commit([book()])
    lake.through(WINDOW.end, 0)
    lake.through(WINDOW.end - MINUTE, 1)
    sync(connection, lake.store)
    assert [(b.chain, b.partition) for b in behind(connection, WINDOW.end)] == [(1, 1)]
    assert complete_until(connection) == WINDOW.end - MINUTE
    lake.through(WINDOW.end, 1)
    sync(connection, lake.store)
    assert behind(connection, WINDOW.end) == []


def test_a_claim_counts_only_when_its_commits_are_in_the_catalog(pipeline: Pipeline) -> None:
    lake, connection = pipeline.lake, pipeline.connection
    lake.commit([book()])
    lake.through(WINDOW.end)
    ahead = chains.Progress(1, 0, 99, ms(WINDOW.end + MINUTE), ms(WINDOW.end))
    chains.write_progress(lake.store, ahead)
    sync(connection, lake.store)
    assert [b.partition for b in behind(connection, WINDOW.end)] == [0]


def test_waiting_ends_when_the_last_partition_arrives(pipeline: Pipeline) -> None:
    lake = pipeline.lake
    lake.through(WINDOW.end, 0)

    def arrive() -> None:
        lake.commit([book()], partition=1)
        lake.through(WINDOW.end, 1)

    timer = threading.Timer(0.3, arrive)
    timer.start()
    wait_until_complete(pipeline.connection, lake.store, WINDOW, SEOUL, timeout_s=20)
    timer.join()
    assert pipeline.value("SELECT count(*) FROM lake_file") == 1


def test_a_window_that_does_not_complete_says_who_is_behind(pipeline: Pipeline) -> None:
    lake = pipeline.lake
    lake.through(WINDOW.start, 0, reported=datetime.now(UTC) - timedelta(seconds=90))
    with pytest.raises(Incomplete) as caught:
        wait_until_complete(pipeline.connection, lake.store, WINDOW, SEOUL, timeout_s=0)
    text = str(caught.value)
    assert text == (
        "window 2025-02-02 16:05+0900 is not complete: "
        "chain 1 (orderbook) partition 0: minutes_through 2025-02-02 16:05+0900, reported 90 s ago; "
        "chain 1 (orderbook) partition 1: no consumer has reported progress yet. "
        "Is each one's consumer running? The window is built once they are through"
    )


def test_a_closed_chain_is_over_once_its_commits_are_in(pipeline: Pipeline) -> None:
    lake, connection = pipeline.lake, pipeline.connection
    lake.commit([book()])
    second = chains.open_chain(
        lake.store, "orderbook", "topic-2", {0: 0, 1: 0}, lambda: {0: 0, 1: 0}, ms(START)
    )
    assert second.predecessor == 1
    for partition in (0, 1):
        chains.write_progress(lake.store, chains.Progress(2, partition, 0, ms(WINDOW.end), ms(WINDOW.end)))
    sync(connection, lake.store)
    # Nobody will ever report on chain 1 again, and nobody has to.
    assert behind(connection, WINDOW.end) == []


def test_a_chain_that_is_closed_while_a_window_waits_for_it_ends_the_wait(pipeline: Pipeline) -> None:
    lake, connection = pipeline.lake, pipeline.connection
    lake.commit([book()])

    def close() -> None:
        log = {0: 0, 1: 0}
        chains.open_chain(lake.store, "orderbook", "topic-2", log, lambda: log, ms(START))
        for partition in log:
            claim = chains.Progress(2, partition, 0, ms(WINDOW.end), ms(WINDOW.end))
            chains.write_progress(lake.store, claim)

    later = threading.Timer(1.0, close)
    later.start()
    wait_until_complete(connection, lake.store, WINDOW, SEOUL, timeout_s=15)
    later.join()


def test_windows_become_complete_again_once_a_topic_that_was_given_up_is_retired(pipeline: Pipeline) -> None:
    lake, connection = pipeline.lake, pipeline.connection
    lake.commit([book()])
    log = {0: 0}
    other = chains.open_chain(lake.store, "books-2", "topic-2", log, lambda: log, ms(START))
    for window_end in (WINDOW.end, WINDOW.end + 60 * MINUTE):
        claim = chains.Progress(other.number, 0, 0, ms(window_end), ms(window_end))
        chains.write_progress(lake.store, claim)
    later = Window.at(WINDOW.end + 55 * MINUTE)
    # Nobody reads the old topic any more, and nobody can know that nothing more will come.
    with pytest.raises(Incomplete, match=r"chain 1 \(orderbook\) partition 0"):
        wait_until_complete(connection, lake.store, later, SEOUL, timeout_s=0)

    def retire() -> None:
        retire_topic(lake.store, "orderbook", lambda: None, ms(WINDOW.end))

    soon = threading.Timer(0.5, retire)
    soon.start()
    wait_until_complete(connection, lake.store, later, SEOUL, timeout_s=20)
    soon.join()
    assert complete_until(connection) == WINDOW.end + 60 * MINUTE
    assert pipeline.value("SELECT count(*) FROM lake_file") == 1
    # Taken up again, it is waited for again.
    fits = BrokerLog("topic-1", {0: 0, 1: 0}, {0: 1, 1: 0})
    again = take_up_topic(lake.store, "orderbook", lambda: fits, ms(WINDOW.end))
    assert again.start == {0: 1, 1: 0}
    sync(connection, lake.store)
    assert [(b.chain, b.partition) for b in behind(connection, WINDOW.end)] == [
        (again.number, 0),
        (again.number, 1),
    ]


def test_with_every_topic_retired_what_there_is_can_be_built(pipeline: Pipeline) -> None:
    lake, connection = pipeline.lake, pipeline.connection
    lake.commit([book()])
    retire_topic(lake.store, "orderbook", lambda: None, ms(WINDOW.start + MINUTE))
    wait_until_complete(connection, lake.store, WINDOW, SEOUL, timeout_s=0)
    assert complete_until(connection) == WINDOW.end


@pytest.mark.parametrize("taken_in_before", [True, False])
def test_what_a_late_writer_adds_beyond_a_chains_end_does_not_count(
    pipeline: Pipeline, taken_in_before: bool
) -> None:
    lake, connection = pipeline.lake, pipeline.connection
    lake.commit([book()])
    tails = {0: 1, 1: 0}
    lake.commit([book(1)])  # committed by one who has not heard of the new chain
    if taken_in_before:
        sync(connection, lake.store)
    before = pipeline.value("SELECT coalesce(max(revision), 0) FROM lake_window")
    path = "_chains/00000002.json"
    second = chains.Chain(2, "orderbook", "topic-2", (0, 1), {0: 0, 1: 0}, ms(START), 1, tails, "test")
    lake.store.create(path, chains._encode(second))
    sync(connection, lake.store)
    assert pipeline.query("SELECT base_offset FROM lake_commit") == [(0,)]
    assert pipeline.value("SELECT count(*) FROM lake_file") == 1
    assert pipeline.query("SELECT rows, revision > %s FROM lake_window", before) == [(1, True)]


def test_the_same_files_give_the_same_seal_and_more_files_the_next_version(pipeline: Pipeline) -> None:
    lake = pipeline.lake
    lake.commit([book(), book(400)], [heartbeat(START, START + MINUTE, "BTC")])
    lake.through(WINDOW.end + 5 * MINUTE)
    first = pipeline.seal(WINDOW).seal
    assert (first.version, first.rows, first.files, first.tickers) == (1, 1, 1, 1)
    assert pipeline.seal(WINDOW).seal == first
    # A heartbeat changes no version.
    lake.commit(heartbeats=[heartbeat(START + MINUTE, START + 2 * MINUTE, "BTC")])
    assert pipeline.seal(WINDOW).seal.version == 1
    lake.commit([book(30, "ETH", received=WINDOW.end + MINUTE)])
    second = pipeline.seal(WINDOW).seal
    assert (second.version, second.rows, second.tickers, second.late_rows) == (2, 2, 2, 1)
    assert second.digest != first.digest
    assert len(sealed_files(pipeline.connection, first)) == 1
    assert newest_seal(pipeline.connection, WINDOW) == second


def test_quarantined_records_are_counted_and_change_no_version(pipeline: Pipeline) -> None:
    lake = pipeline.lake

    def bad(seconds: float) -> Row:
        return Row(b"not a book", (ms(START) + round(seconds * 1000)) * 1000)

    lake.commit([book()], quarantine=[bad(1), bad(299), bad(300)])
    lake.through(WINDOW.end)
    first = pipeline.seal(WINDOW).seal
    assert (first.version, first.rows, first.quarantined) == (1, 1, 2)
    lake.commit(quarantine=[bad(100)], partition=1)
    again = pipeline.seal(WINDOW).seal
    assert (again.version, again.digest, again.quarantined) == (1, first.digest, 3)


def test_coverage_is_unknown_before_the_first_heartbeat_and_zero_in_silence(pipeline: Pipeline) -> None:
    lake = pipeline.lake
    later = WINDOW.shifted(2)
    beats = covered_minutes(WINDOW.end, 3, "BTC", "ETH")
    beats.append(heartbeat(WINDOW.end + 3 * MINUTE, WINDOW.end + 3.5 * MINUTE, "BTC"))
    lake.commit([book(), book(301, "XRP")], beats)
    lake.through(later.end)
    unknown, partial, silent = (pipeline.seal(w).coverage for w in (WINDOW, WINDOW.shifted(1), later))
    assert (unknown.mean, unknown.least) == (None, None)
    assert partial.ratios == {"BTC": 0.7, "ETH": 0.6}
    assert (silent.mean, silent.ratios) == (0.0, {"BTC": 0.0})
    rows = pipeline.query(
        "SELECT ticker, window_start = %s, subscribed, coverage_ratio, source "
        "FROM coverage_5m ORDER BY 2 DESC, 1, window_start",
        START,
    )
    assert rows == [
        ("BTC", True, False, None, "simulator"),
        ("BTC", False, True, 0.7, "simulator"),
        ("BTC", False, True, 0.0, "simulator"),
        ("ETH", False, True, 0.6, "simulator"),
        ("XRP", False, False, 0.0, "simulator"),
    ]
    assert window_coverage(pipeline.connection, lake.store, WINDOW) == unknown


def ratios(pipeline: Pipeline, window: Window) -> dict[str, float | None]:
    """Seal a window and return the rows that it has in `coverage_5m`."""
    pipeline.seal(window)
    return dict(
        pipeline.query(
            "SELECT ticker, coverage_ratio FROM coverage_5m WHERE subscribed AND window_start = %s",
            window.start,
        )
    )


def test_silence_is_zero_for_whoever_was_subscribed_last_in_whatever_order_windows_are_sealed(
    pipeline: Pipeline,
) -> None:
    lake = pipeline.lake
    other = {"section": "upbit_producer2"}
    lake.commit(heartbeats=[heartbeat(START, START + MINUTE, "XRP", **other)], partition=1)
    lake.commit(heartbeats=covered_minutes(START, 1, "BTC", "ETH", "OLD"))
    # OLD is delisted, and the section ends at once; then the other one falls silent, too.
    lake.commit(heartbeats=covered_minutes(WINDOW.end, 5, "BTC", "ETH"))
    lake.through(WINDOW.shifted(3000).end)
    # The newest first: nothing was sealed before the silent ones.
    for silent in (WINDOW.shifted(2000), WINDOW.shifted(2)):
        assert ratios(pipeline, silent) == {"BTC": 0.0, "ETH": 0.0, "XRP": 0.0}
    assert ratios(pipeline, WINDOW.shifted(1)) == {"BTC": 1.0, "ETH": 1.0, "XRP": 0.0}
    assert ratios(pipeline, WINDOW) == {"BTC": 0.2, "ETH": 0.2, "OLD": 0.2, "XRP": 0.2}
    # Who was not heard for a week is not expected any more; the mean says that nobody listened.
    assert ratios(pipeline, WINDOW.shifted(2500)) == {}
    assert pipeline.seal(WINDOW.shifted(2500)).coverage.mean == 0.0


def test_a_heartbeat_that_comes_late_takes_back_what_was_carried_forward(pipeline: Pipeline) -> None:
    lake = pipeline.lake
    lake.commit(heartbeats=covered_minutes(START, 5, "BTC", "OLD"))
    silent = WINDOW.shifted(1)
    lake.through(silent.end)
    assert ratios(pipeline, silent) == {"BTC": 0.0, "OLD": 0.0}
    lake.commit(heartbeats=covered_minutes(silent.start, 5, "BTC"))
    assert ratios(pipeline, silent) == {"BTC": 1.0}


def test_of_a_sections_heartbeats_the_one_received_last_says_what_it_is_subscribed_to(
    pipeline: Pipeline,
) -> None:
    lake = pipeline.lake
    lake.commit(heartbeats=[heartbeat(START + MINUTE, START + 2 * MINUTE, "BTC")])
    lake.commit(heartbeats=[heartbeat(START, START + MINUTE, "BTC", "OLD")])  # it waited in the spool
    silent = WINDOW.shifted(1)
    lake.through(silent.end)
    assert ratios(pipeline, silent) == {"BTC": 0.0}


HALF = timedelta(seconds=30)
LATE = WINDOW.end + 40 * MINUTE


def test_a_hole_that_is_found_out_late_is_written_to_coverage_and_candles_of_the_same_version(
    pipeline: Pipeline,
) -> None:
    lake, since = pipeline.lake, instant("2025-02-02 00:00:00")

    def told() -> list[tuple[Any, ...]]:
        return pipeline.query(
            "SELECT c.ticker, c.coverage_ratio, o.coverage_ratio, o.version FROM coverage_5m AS c "
            "JOIN ohlc_5m_ticker AS o ON o.ticker = c.ticker AND o.event_time = c.window_start ORDER BY 1"
        )

    def behind_now() -> bool:
        sync(pipeline.connection, lake.store)
        return WINDOW in {c.window for c in find_candidates(pipeline.connection, since)}

    beats = covered_minutes(START, 5, "BTC", "ETH")
    lake.commit([book(1), book(1, "ETH")], [*beats, *covered_minutes(WINDOW.end, 1, "BTC", "ETH")])
    lake.through(WINDOW.shifted(1).end)
    (first, *_) = pipeline.build(WINDOW)
    assert told() == [("BTC", 1.0, 1.0, 1), ("ETH", 1.0, 1.0, 1)]
    assert not behind_now()

    silent = hole(START + MINUTE - HALF / 2, START + MINUTE, "BTC", found_out=LATE, subscribed=("BTC", "ETH"))
    more = hole(START + MINUTE, START + MINUTE + HALF / 2, "BTC", found_out=LATE, subscribed=("BTC", "ETH"))
    lake.commit(heartbeats=[silent, more])
    assert behind_now()
    (again, *_) = pipeline.build(WINDOW)
    assert told() == [("BTC", 0.9, 0.9, 1), ("ETH", 1.0, 1.0, 1)]
    assert (again.seal.version, again.seal.digest) == (first.seal.version, first.seal.digest)
    history = "SELECT ticker, coverage_ratio, version FROM ohlc_5m_history ORDER BY valid_to"
    assert pipeline.query(history) == [("BTC", 1.0, 1)]
    assert not behind_now()

    # Another connection had heard half of what this one missed; its heartbeats waited in a spool.
    lake.commit(heartbeats=[heartbeat(START + MINUTE, START + 2 * MINUTE, "BTC", connection=2)])
    assert behind_now()
    pipeline.build(WINDOW)
    assert told() == [("BTC", 0.95, 0.95, 1), ("ETH", 1.0, 1.0, 1)]


def test_a_hole_that_another_connection_covered_is_none(pipeline: Pipeline) -> None:
    lake = pipeline.lake
    # The hole is in the catalog before what it takes back: order does not matter.
    lake.commit(heartbeats=[hole(START, START + HALF, "BTC", found_out=LATE)], partition=1)
    lake.commit(heartbeats=covered_minutes(START, 5, "BTC"))
    lake.through(WINDOW.end)
    assert ratios(pipeline, WINDOW) == {"BTC": 0.9}
    lake.commit(heartbeats=covered_minutes(START, 1, "BTC", connection=2))
    assert ratios(pipeline, WINDOW) == {"BTC": 1.0}


@pytest.mark.parametrize("first", ["hole", "claims"])
def test_a_hole_says_nothing_about_what_its_section_is_subscribed_to(pipeline: Pipeline, first: str) -> None:
    lake = pipeline.lake
    old = heartbeat(START, START + MINUTE, "BTC", "OLD")
    new = heartbeat(START + MINUTE, WINDOW.end, "BTC", connection=2)
    late = hole(START, START + HALF, "BTC", found_out=LATE, subscribed=("BTC", "OLD"))
    for heartbeats in ([late], [old, new]) if first == "hole" else ([old, new], [late]):
        lake.commit(heartbeats=heartbeats)
    lake.through(WINDOW.shifted(2).end)
    assert ratios(pipeline, WINDOW.shifted(1)) == {"BTC": 0.0}
    assert ratios(pipeline, WINDOW) == {"BTC": 0.9, "OLD": 0.2}


def test_a_section_of_which_a_window_holds_a_hole_alone_was_not_heard_in_it(pipeline: Pipeline) -> None:
    # Ours never takes back what it did not claim; whoever does, does not make others' absence unseen.
    lake = pipeline.lake
    lake.commit(heartbeats=covered_minutes(START, 5, "BTC", "ETH"))
    stray = hole(WINDOW.end, WINDOW.end + HALF, "BTC", found_out=LATE)
    lake.commit(heartbeats=[stray])
    lake.through(WINDOW.shifted(2).end)
    assert ratios(pipeline, WINDOW.shifted(1)) == {"BTC": 0.0, "ETH": 0.0}
    assert ratios(pipeline, WINDOW.shifted(2)) == {"BTC": 0.0, "ETH": 0.0}


def test_of_heartbeats_in_one_object_the_one_received_last_counts_though_the_log_has_it_first(
    pipeline: Pipeline,
) -> None:
    lake = pipeline.lake
    new = heartbeat(START + HALF, START + MINUTE, "BTC", connection=2)
    spooled = heartbeat(START, START + HALF, "BTC", "OLD")
    lake.commit(heartbeats=[new, spooled])
    lake.through(WINDOW.shifted(1).end)
    assert ratios(pipeline, WINDOW.shifted(1)) == {"BTC": 0.0}


def test_the_same_frames_from_two_producers_are_one_row_each_and_covered_by_either(
    pipeline: Pipeline,
) -> None:
    lake, names = pipeline.lake, ("upbit_producer1-aaaaaa-1", "upbit_producer1-bbbbbb-1")
    frames = [frame("BTC", ms(START) + n * 1000, [(101 + n % 3, 100, 1, 1)]) for n in range(299)]
    one, other = (
        [Row(value, (ms(START) + n * 1000 + 50 + late) * 1000, "BTC", name) for n, value in enumerate(frames)]
        for name, late in zip(names, (0, 7), strict=True)
    )
    # One is killed a minute before the end; the other begins after one and a half.
    mixed = [row for pair in zip(one[90:240], other[90:240], strict=True) for row in reversed(pair)]
    lake.commit(
        [*one[:90], *mixed, *other[240:]],
        [
            *covered_minutes(START, 4, "BTC"),
            heartbeat(START + 3 * HALF, START + 2 * MINUTE, "BTC", connection=2),
            *covered_minutes(START + 2 * MINUTE, 3, "BTC", connection=2),
        ],
    )
    lake.through(WINDOW.end)
    _, parquet, candles = pipeline.build(WINDOW)
    (result,) = parquet.tickers
    assert (result.sealed_rows, result.rows, result.duplicates, result.quarantined) == (449, 299, 150, 0)
    (candle,) = candles.candles
    assert candle.book_count == 299
    assert ratios(pipeline, WINDOW) == {"BTC": 1.0}
    path = Path(pipeline.settings.parquet_url.removeprefix("file://")) / result.path
    table = pq.ParquetFile(path).read(["exchange_time", "connection"]).to_pylist()
    assert [ms(row["exchange_time"]) for row in table] == [ms(START) + n * 1000 for n in range(299)]
    # Of two the one that was received first stays, whatever the order in the log.
    assert [row["connection"] for row in table] == [names[0]] * 240 + [names[1]] * 59


def test_a_heartbeat_object_that_is_gone_fails_its_own_window_only(pipeline: Pipeline) -> None:
    lake = pipeline.lake
    (gone,) = lake.commit([book()], covered_minutes(START, 1, "OLD")).files[1:]
    (lake.folder / gone.path).unlink()
    lake.commit(heartbeats=covered_minutes(WINDOW.end, 5, "BTC"))
    lake.through(WINDOW.shifted(1).end)
    assert ratios(pipeline, WINDOW.shifted(1)) == {"BTC": 1.0}
    with pytest.raises(UserError, match="not there"):
        pipeline.seal(WINDOW)


def test_candidates_are_the_windows_whose_built_state_is_behind(pipeline: Pipeline) -> None:
    lake, connection = pipeline.lake, pipeline.connection
    since = instant("2025-02-02 00:00:00")

    def candidates() -> list[tuple[int, int]]:
        return [(c.window.number - WINDOW.number, c.rows) for c in find_candidates(connection, since)]

    lake.commit([book(), book(301), book(-7200)])
    lake.through(WINDOW.shifted(3).start)
    sync(connection, lake.store)
    assert candidates() == [(1, 1), (0, 1), (-24, 1)]
    newest = find_candidates(connection, since)[0]
    with connection.transaction(force_rollback=True):
        # What failed before never holds up what was not tried, however many there are.
        note_requests(connection, [Request((newest,), 1)])
        assert candidates() == [(0, 1), (-24, 1), (1, 1)]
    # Silent windows count from when the lake began (15:00) on, whether they have an object or not.
    enter_empty_windows(connection, complete_until(connection))
    enter_empty_windows(connection, complete_until(connection))
    assert candidates() == [(2, 0), (1, 1), (0, 1), *((n, 0) for n in range(-1, -14, -1)), (-24, 1)]
    pipeline.build(WINDOW)
    pipeline.build(WINDOW.shifted(2))
    assert (0, 1) not in candidates()
    assert (2, 0) not in candidates()
    lake.commit([book(5)])
    sync(connection, lake.store)
    assert (0, 2) in candidates()
    pipeline.build(WINDOW)
    # A heartbeat that was late only refreshes coverage, but it does that.
    lake.commit(heartbeats=[heartbeat(START, START + MINUTE, "BTC")])
    sync(connection, lake.store)
    assert (0, 2) in candidates()
    pipeline.build(WINDOW)
    assert (0, 2) not in candidates()
    assert pipeline.query("SELECT version, coverage_ratio FROM ohlc_5m_ticker") == [(2, 0.2)]
    assert pipeline.query("SELECT coverage_ratio FROM ohlc_5m_history WHERE version = 2") == [(None,)]


def test_a_reconnect_of_the_whole_exchange_rebuilds_no_window(pipeline: Pipeline) -> None:
    """A snapshot each of all 855 tickers, of books that changed minutes ago, hours ago, or just now."""
    lake, connection = pipeline.lake, pipeline.connection
    since = instant("2025-02-02 16:05:00")
    tickers = [f"T{number}" for number in range(855)]
    lake.commit([book(300 * n + 5, ticker) for n in range(3) for ticker in tickers[:3]])
    lake.through(WINDOW.shifted(3).start)
    for n in range(3):
        pipeline.build(WINDOW.shifted(n))
    sync(connection, lake.store)
    assert find_candidates(connection, since) == []
    before = pipeline.query("SELECT window_start, revision FROM lake_window ORDER BY 1")

    received = START + 16 * MINUTE  # in the fourth window
    stamps = (880, 310, -7200, 959)  # seconds from the start of the first
    lake.commit(
        [book(stamps[n % 4], ticker, received, stream_type="SNAPSHOT") for n, ticker in enumerate(tickers)]
    )
    lake.through(WINDOW.shifted(4).start)
    sync(connection, lake.store)
    assert [c.window for c in find_candidates(connection, since)] == [WINDOW.shifted(3)]
    after = pipeline.query("SELECT window_start, revision FROM lake_window ORDER BY 1")
    assert after[: len(before)] == before


def offsets_missing(pipeline: Pipeline, *windows: int) -> list[int]:
    """Ask the check `offsets_contiguous` about windows, counted from the first."""
    (question,) = (q for q in QUESTIONS if q.name == "offsets_contiguous")
    ground = Ground(pipeline.connection, pipeline.settings)
    return [question.ask(ground, WINDOW.shifted(n)).violations for n in windows]


def test_a_window_whose_every_record_was_lost_is_no_window_without_a_hole(pipeline: Pipeline) -> None:
    lake = pipeline.lake
    lake.commit([book(10)])
    lake.commit([book(10)], partition=1)
    # All of the windows 1 and 2 was gone from the broker before it was read.
    lake.commit(missing=7, committed=START + 15 * MINUTE)
    lake.commit([book(910), book(1500)])
    lake.through(WINDOW.shifted(6).end)
    pipeline.seal(WINDOW.shifted(1))
    assert offsets_missing(pipeline, -1, 0, 1, 2, 3, 4, 5) == [0, 7, 7, 7, 7, 0, 0]


def test_what_is_missing_at_a_chains_end_counts_until_its_commit(pipeline: Pipeline) -> None:
    lake = pipeline.lake
    lake.commit([book(10)])
    lake.commit([book(610)], missing=3, committed=START + 16 * MINUTE)
    lake.commit([book(10)], partition=1)
    sync(pipeline.connection, lake.store)
    assert offsets_missing(pipeline, -1, 0, 1, 2, 3, 4) == [0, 3, 3, 3, 3, 0]


def test_a_commit_that_the_catalog_lost_is_a_hole(pipeline: Pipeline) -> None:
    lake = pipeline.lake
    for second in (10, 310, 320, 610):
        lake.commit([book(second)])
    sync(pipeline.connection, lake.store)
    assert offsets_missing(pipeline, 0, 1, 2) == [0, 0, 0]
    pipeline.connection.execute("DELETE FROM lake_commit WHERE base_offset = 1")
    assert offsets_missing(pipeline, 0, 1, 2) == [0, 1, 0]
