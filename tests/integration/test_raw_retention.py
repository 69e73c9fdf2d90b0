"""Frozen windows: refused, never emptied; and a catalog that forgets without forgetting what it needs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cryptostream_dagster.catalog import retention
from cryptostream_dagster.catalog.reconcile import find_candidates
from cryptostream_dagster.catalog.retention import Frozen, freeze_until, frozen_until, prune
from cryptostream_dagster.catalog.sync import sync
from cryptostream_dagster.expire import expire
from cryptostream_dagster.questions import QUESTIONS, Ground
from cryptostream_dagster.window import Window
from ingest_services.errors import UserError
from tests.lake_builder import Row, covered_minutes, frame, instant
from tests.pipeline import Pipeline, open_pipeline
from tests.postgres_fixture import TestDatabase

OLD = Window.at(instant("2025-02-02 16:05:00"))
YOUNG = OLD.shifted(5 * 288)


@pytest.fixture
def pipeline(tmp_path: Path, database: TestDatabase) -> Iterator[Pipeline]:
    with open_pipeline(tmp_path, database) as opened:
        yield opened


def book(window: Window, seconds: float, mid: float, ticker: str = "BTC") -> Row:
    tms = window.start_ms + round(seconds * 1000)
    return Row(frame(ticker, tms, [(mid + 1, mid - 1, 1, 1)]), (tms + 50) * 1000)


def expire_the_old(pipeline: Pipeline) -> datetime:
    """Set the retention so that raw data from before the young window's day has expired; return now."""
    now = datetime.now(UTC)
    days = (now - YOUNG.start).days + 2
    pipeline.settings = pipeline.settings.model_copy(update={"raw_retention_days": days})
    return now


def built(pipeline: Pipeline) -> list[tuple[Any, ...]]:
    return pipeline.query(
        "SELECT ticker, event_time, close_price, version, built_at FROM ohlc_5m_ticker ORDER BY 1, 2"
    )


def parquet_bytes(pipeline: Pipeline, window: Window) -> dict[str, bytes]:
    root = Path(pipeline.settings.parquet_url.removeprefix("file://"))
    paths = [
        path
        for (path,) in pipeline.query("SELECT path FROM parquet_file WHERE window_start = %s", window.start)
    ]
    return {path: (root / path).read_bytes() for path in paths}


def two_built_windows(pipeline: Pipeline) -> None:
    beats = covered_minutes(OLD.start, 5, "BTC", "ETH")
    pipeline.lake.commit([book(OLD, 0, 100)], beats, committed=OLD.end)
    pipeline.lake.commit([book(OLD, 60, 110, "ETH")], committed=OLD.end)
    pipeline.lake.commit([book(YOUNG, 0, 200)], covered_minutes(YOUNG.start, 5, "BTC", "ETH"))
    pipeline.lake.through(YOUNG.end)
    for window in (OLD, YOUNG):
        pipeline.build(window)


def test_a_window_whose_raw_data_has_expired_is_refused_and_stays_as_it_was_built(pipeline: Pipeline) -> None:
    two_built_windows(pipeline)
    before, files = built(pipeline), parquet_bytes(pipeline, OLD)
    pipeline.lake.commit([book(OLD, 30, 150)])  # late: it would be another version
    expire_the_old(pipeline)
    for file in (pipeline.lake.folder / "ticker=BTC").rglob("*16/minute=0*/*.zst"):
        file.unlink()
    with pytest.raises(
        Frozen, match=r"2025-02-02 16:05\+0900 is frozen: raw data from before .* has expired"
    ):
        pipeline.seal(OLD)
    assert not pipeline.parquet(OLD).written  # there already: nothing is asked of the raw data
    pipeline.candles(OLD)  # from Parquet, which is there
    assert (built(pipeline), parquet_bytes(pipeline, OLD)) == (before, files)
    assert pipeline.value("SELECT max(version) FROM seal WHERE window_start = %s", OLD.start) == 1
    # Parquet that was lost cannot be made again, and the refusal leaves the rest alone.
    for path in files:
        (Path(pipeline.settings.parquet_url.removeprefix("file://")) / path).unlink()
    with pytest.raises(Frozen):
        pipeline.parquet(OLD)
    assert built(pipeline) == before
    pipeline.build(YOUNG)  # not frozen


def test_expired_objects_are_deleted_when_their_windows_are_built_and_frozen(pipeline: Pipeline) -> None:
    two_built_windows(pipeline)
    now = expire_the_old(pipeline)
    before = built(pipeline)

    def run(**options: bool) -> tuple[int, bool]:
        done = expire(pipeline.connection, pipeline.lake.store, pipeline.settings, now, **options)
        return done.objects, done.deleted

    def paths() -> set[str]:
        return set(pipeline.lake.store.list(""))

    there = paths()
    assert run(delete=False) == (7, False)  # two of books, five of heartbeats
    assert paths() == there
    pipeline.lake.commit([book(OLD, 30, 150)])  # late, and not built
    with pytest.raises(UserError, match=r"that are not built.*: 1, the first 2025-02-02 16:05"):
        run(delete=True)
    there = paths()
    assert run(delete=True, unbuilt=True) == (8, True)
    gone = there - paths()
    assert len(gone) == 8
    assert all("/day=02/" in path for path in gone)
    assert any("/day=07/" in path for path in paths())
    assert {path for path in there if path.startswith("_")} <= paths()  # chains, commits, claims
    assert not (pipeline.lake.folder / "ticker=BTC/year=2025/month=02/day=02").exists()
    assert run(delete=True) == (0, True)
    with pytest.raises(Frozen):
        pipeline.seal(OLD)
    pipeline.build(YOUNG)
    assert built(pipeline) == before


def test_nothing_expires_unless_somebody_says_when(pipeline: Pipeline) -> None:
    with pytest.raises(UserError, match="RAW_RETENTION_DAYS is not set"):
        expire(pipeline.connection, pipeline.lake.store, pipeline.settings, datetime.now(UTC), delete=True)


def test_a_window_of_which_an_object_is_gone_is_never_built_from_less(pipeline: Pipeline) -> None:
    two_built_windows(pipeline)
    before, files = built(pipeline), parquet_bytes(pipeline, OLD)
    (gone,) = (pipeline.lake.folder / "ticker=ETH").rglob("*.zst")
    data = gone.read_bytes()
    gone.unlink()
    pipeline.lake.commit([book(OLD, 30, 150)])
    with pytest.raises(Frozen, match=r"is frozen: .*ticker=ETH.* is not there; what was built from it stays"):
        pipeline.seal(OLD)
    assert pipeline.value("SELECT max(version) FROM seal WHERE window_start = %s", OLD.start) == 1
    assert find_candidates(pipeline.connection, OLD.start) == []  # the sensor does not ask for it
    assert (built(pipeline), parquet_bytes(pipeline, OLD)) == (before, files)
    with pytest.raises(Frozen):
        pipeline.seal(OLD)
    gone.write_bytes(data)
    sealed, _, candles = pipeline.build(OLD)
    assert (sealed.seal.version, candles.version) == (2, 2)
    assert pipeline.value("SELECT count(*) FROM lake_window WHERE gone_path IS NOT NULL") == 0


def test_a_window_that_was_never_built_and_has_lost_an_object_is_not_asked_for_again(
    pipeline: Pipeline,
) -> None:
    pipeline.lake.commit([book(OLD, 0, 100), book(OLD, 60, 110, "ETH")])
    pipeline.lake.through(OLD.end)
    pipeline.seal(OLD)
    (gone,) = (pipeline.lake.folder / "ticker=ETH").rglob("*.zst")
    data = gone.read_bytes()
    gone.unlink()
    with pytest.raises(Frozen):
        pipeline.parquet(OLD)
    assert find_candidates(pipeline.connection, OLD.start) == []
    gone.write_bytes(data)
    # Who materializes again what failed, and that alone, takes the mark off, too.
    pipeline.parquet(OLD)
    assert [candidate.window for candidate in find_candidates(pipeline.connection, OLD.start)] == [OLD]
    pipeline.build(OLD)
    assert find_candidates(pipeline.connection, OLD.start) == []
    assert pipeline.value("SELECT count(*) FROM ohlc_5m_ticker") == 2


def test_the_catalog_forgets_what_is_frozen_and_answers_as_before_for_the_rest(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = YOUNG.shifted(-1)  # the last heartbeat before it is forgotten with the old window
    for n in range(4):
        pipeline.lake.commit([book(OLD, n, 100)], committed=OLD.end)
    two_built_windows(pipeline)
    pipeline.lake.commit([book(silent, 0, 100)], missing=2)
    pipeline.lake.through(silent.end)
    pipeline.build(silent)
    pipeline.lake.commit([book(OLD, 30, 150)])  # late, after everything
    sync(pipeline.connection, pipeline.lake.store)

    def answers() -> list[object]:
        ground = Ground(pipeline.connection, pipeline.settings)
        found: list[object] = [
            question.ask(ground, window) for window in (YOUNG, silent) for question in QUESTIONS
        ]
        found.append(pipeline.query("SELECT * FROM coverage_5m ORDER BY window_start, ticker"))
        found.append(pipeline.query("SELECT * FROM seal ORDER BY window_start"))
        found.append(pipeline.query("SELECT * FROM built ORDER BY window_start, asset"))
        found.append(pipeline.query("SELECT * FROM parquet_file ORDER BY window_start, ticker"))
        return found

    before = answers()
    now = expire_the_old(pipeline)
    monkeypatch.setattr(retention, "_COMMITS_A_STEP", 2)
    assert not prune(pipeline.connection, pipeline.settings, now, budget_s=0).done  # its time was up
    assert prune(pipeline.connection, pipeline.settings, now, budget_s=60).done
    pruned = prune(pipeline.connection, pipeline.settings, now, budget_s=60)
    assert (pruned.commits, pruned.done) == (0, True)  # nothing is left to do
    assert pipeline.query("SELECT min(base_offset) FROM lake_commit") == [(10,)]
    assert pipeline.query("SELECT min(base_offset) FROM lake_file WHERE kind = 'book'") == [(10,)]
    assert pipeline.value("SELECT count(*) FROM seal_file WHERE window_start < %s", silent.start) == 0
    assert answers() == before
    pipeline.build(YOUNG)
    pipeline.build(silent)  # nobody was heard in it, and that is still known
    assert answers() == before


def test_commits_go_up_to_the_one_before_the_first_that_is_needed(pipeline: Pipeline) -> None:
    for n in range(6):
        window = OLD if n < 4 else YOUNG
        # The third names something of a window that is not frozen, whenever it was made.
        rows = [book(window, n, 100), *([book(YOUNG, 9, 100)] if n == 2 else [])]
        pipeline.lake.commit(rows, committed=OLD.end)
    sync(pipeline.connection, pipeline.lake.store)
    now = expire_the_old(pipeline)
    assert prune(pipeline.connection, pipeline.settings, now, budget_s=60).done
    assert pipeline.query("SELECT base_offset FROM lake_commit ORDER BY 1") == [(1,), (2,), (4,), (5,), (6,)]


def test_quarantined_lines_go_with_the_raw_objects_that_they_are_of(pipeline: Pipeline) -> None:
    two_built_windows(pipeline)
    for window in (OLD, YOUNG):
        pipeline.lake.commit([Row(b"7", window.start_ms * 1000, "BTC")], committed=window.end)
        pipeline.build(window)
    told = "SELECT window_start FROM quarantined_line ORDER BY 1"
    assert pipeline.query(told) == [(OLD.start,), (YOUNG.start,)]
    counted = "SELECT window_start, quarantined FROM parquet_file WHERE ticker = 'BTC' ORDER BY 1"
    before = pipeline.query(counted)
    now = expire_the_old(pipeline)
    assert prune(pipeline.connection, pipeline.settings, now, budget_s=60).done
    assert pipeline.query(told) == [(YOUNG.start,)]
    assert pipeline.query(counted) == before


def test_what_was_forgotten_stays_frozen_when_the_setting_is_taken_back(pipeline: Pipeline) -> None:
    two_built_windows(pipeline)
    kept_for_ever = pipeline.settings
    now = expire_the_old(pipeline)
    prune(pipeline.connection, pipeline.settings, now, budget_s=60)
    # The catalog is pruned a day later than windows are frozen: what the setting says counts as well.
    retention_days = pipeline.settings.raw_retention
    assert retention_days is not None
    assert frozen_until(pipeline.connection, pipeline.settings, now) == now - retention_days
    pipeline.settings = kept_for_ever
    with pytest.raises(Frozen):
        pipeline.seal(OLD)
    until = frozen_until(pipeline.connection, kept_for_ever, now)
    assert until is not None
    assert OLD.end <= until <= YOUNG.start
    freeze_until(pipeline.connection, until - timedelta(days=9))  # never back
    assert frozen_until(pipeline.connection, kept_for_ever, now) == until


def test_raw_data_is_kept_for_ever_unless_somebody_says_otherwise(pipeline: Pipeline) -> None:
    two_built_windows(pipeline)
    assert frozen_until(pipeline.connection, pipeline.settings, datetime.now(UTC)) is None
    pruned = prune(pipeline.connection, pipeline.settings, datetime.now(UTC), budget_s=60)
    assert (pruned.until, pruned.commits) == (None, 0)
