"""A run over a range: no window loses another, each is told apart, what is finished is left alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from cryptostream_dagster.assets import raw_orderbook
from cryptostream_dagster.assets.raw_orderbook import Patience
from cryptostream_dagster.assets.shell import BACKFILL_TAG, FORCE, FORCE_TAG, VERDICT
from cryptostream_dagster.backfill import plan, ranges
from cryptostream_dagster.catalog.outcome import failures_of_run
from cryptostream_dagster.catalog.retention import freeze_until
from cryptostream_dagster.window import Window
from tests.dagster_world import START, World, book, open_world
from tests.postgres_fixture import TestDatabase

KEYS = [f"2025-02-02T16:{minute:02}+0900" for minute in (5, 10, 15, 20)]
ASSETS = ("raw_orderbook", "orderbook_parquet", "ohlc_5m_ticker", "orderbook_features_5m")
BACKFILL = {BACKFILL_TAG: "ask"}
FORCED = {**BACKFILL, FORCE_TAG: FORCE}


@pytest.fixture
def world(tmp_path: Path, database: TestDatabase) -> Iterator[World]:
    with open_world(tmp_path, database) as opened:
        yield opened


def fill(world: World, windows: int = 4, through: datetime = START + timedelta(hours=1)) -> list[str]:
    """Commit a few books of each window; return the objects' paths."""
    rows = [book(300 * n + at, 100 + 7 * n + at) for n in range(windows) for at in (1, 2, 61)]
    rows += [book(300 * n + 2, 5, "ETH") for n in range(windows)]
    commit = world.lake.commit([*rows, rows[0]])
    world.lake.through(through)
    return [file.path for file in commit.files]


def windows(count: int) -> list[Window]:
    return [Window.at(START).shifted(n) for n in range(count)]


def verdicts(world: World) -> dict[str | None, bool]:
    """The newest result of the verdict for each partition."""
    key = dg.AssetCheckKey(dg.AssetKey("ohlc_5m_ticker"), VERDICT)
    history = world.instance.event_log_storage.get_asset_check_execution_history(key, limit=100)
    found: dict[str | None, bool] = {}
    for record in history:
        if record.status.value in {"SUCCEEDED", "FAILED"}:
            found.setdefault(record.partition, record.status.value == "SUCCEEDED")
    return found


def test_a_window_that_cannot_be_built_loses_none_of_the_others_and_is_named(world: World) -> None:
    paths = fill(world)
    bad = next(path for path in paths if "minute=11" in path and "ticker=BTC" in path)
    damaged = Path(world.lake.folder / bad)
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-3])
    good = [KEYS[0], KEYS[2], KEYS[3]]

    result = world.run(KEYS[0], KEYS[3])

    assert not result.success
    assert world.built("raw_orderbook") == set(KEYS)
    assert world.built("orderbook_parquet") == world.built("ohlc_5m_ticker") == set(good)
    assert [row[0] for row in world.query("SELECT DISTINCT event_time FROM ohlc_5m_ticker ORDER BY 1")] == [
        (START + timedelta(minutes=5 * n)) for n in (0, 2, 3)
    ]
    said = str(result.failure_data_for_node(f"ohlc_5m_ticker_{VERDICT}"))
    assert f"1 of 4 windows were not built, the others were:\\n{KEYS[1]}: " in said
    assert bad in said
    told = verdicts(world)
    assert {key: told[key] for key in KEYS} == dict.fromkeys(good, True) | {KEYS[1]: False}
    # The checks of the others are there, too: the failure stopped no step.
    check = dg.AssetCheckKey(dg.AssetKey("ohlc_5m_ticker"), "prices_in_order")
    history = world.instance.event_log_storage.get_asset_check_execution_history(check, limit=20)
    assert {record.partition for record in history if record.status.value == "SUCCEEDED"} >= set(good)
    with world.platform.connect() as connection:
        failures = failures_of_run(connection, result.run_id)
    assert {failure.window for failure in failures} == {Window.at(START).shifted(1)}
    assert [f.asset for f in failures] == ["orderbook_parquet", "ohlc_5m_ticker", "orderbook_features_5m"]
    assert len({failure.reason for failure in failures}) == 1

    damaged.write_bytes(whole)
    assert world.run(KEYS[0], KEYS[3], **BACKFILL).success
    assert world.built("ohlc_5m_ticker") == set(KEYS)
    assert world.query("SELECT * FROM window_failure") == []
    skipped = {key: "skipped" in world.materialization("ohlc_5m_ticker", key) for key in KEYS}
    assert skipped == dict.fromkeys(good, True) | {KEYS[1]: False}


def test_windows_that_are_not_complete_yet_hold_up_none_that_are(world: World) -> None:
    fill(world, through=Window.at(START).shifted(1).end)
    result = world.run(KEYS[0], KEYS[3])
    assert not result.success
    assert world.built("ohlc_5m_ticker") == set(KEYS[:2])
    said = str(result.failure_data_for_node(f"ohlc_5m_ticker_{VERDICT}"))
    assert "2 of 4 windows were not built" in said
    assert "minutes_through 2025-02-02 16:15+0900" in said


def test_a_selection_without_the_verdict_fails_by_itself(world: World) -> None:
    fill(world, through=Window.at(START).end)
    job = world.defs.resolve_implicit_global_asset_job_def().get_subset(
        asset_selection={dg.AssetKey("raw_orderbook")}
    )
    tags = {"dagster/asset_partition_range_start": KEYS[0], "dagster/asset_partition_range_end": KEYS[1]}
    result = job.execute_in_process(
        instance=world.instance, tags=tags, raise_on_error=False, resources={"platform": world.platform}
    )
    assert not result.success
    assert world.built("raw_orderbook") == {KEYS[0]}
    assert "1 of 2 windows were not built" in str(result.failure_data_for_node("raw_orderbook"))


def test_a_range_gives_what_single_runs_give(world: World) -> None:
    fill(world)

    def outcome() -> tuple[dict[str, bytes], list[tuple[Any, ...]], dict[str, Any]]:
        root = Path(world.settings.parquet_url.removeprefix("file://"))
        objects = {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*.parquet"))}
        rows = world.query(
            "SELECT ticker, event_time, open_price, high_price, low_price, close_price, prev_close_price, "
            "twap_price, book_count, mean_spread_bps, version FROM ohlc_5m_ticker ORDER BY 1, 2"
        )
        volatile = {"sealed_at", "lag_s", "new", "superseded"}
        told = {
            (asset, key): {n: v for n, v in world.materialization(asset, key).items() if n not in volatile}
            for asset in ASSETS
            for key in KEYS
        }
        return objects, rows, told

    for key in KEYS:
        assert world.run(key).success
    singly = outcome()
    with world.platform.connect() as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    shutil.rmtree(world.settings.parquet_url.removeprefix("file://"))
    world.renew()
    assert world.run(KEYS[0], KEYS[3]).success
    ranged = outcome()
    assert len(singly[0]) == 8
    assert ranged[:2] == singly[:2]
    for window, told in ranged[2].items():  # the data version, too; pictures are for single runs alone
        assert told == {name: singly[2][window][name] for name in told}
    assert len({told["data_version"] for told in ranged[2].values()}) == 4


def test_a_backfill_leaves_alone_what_is_finished_and_reads_nothing_for_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(world)
    assert world.run(KEYS[0], KEYS[3]).success
    before = {(a, k): world.materialization(a, k) for a in ASSETS for k in KEYS}
    for minute in (world.lake.folder / "ticker=BTC").rglob("*.zst"):
        minute.unlink()
    import duckdb

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("DuckDB was opened")

    monkeypatch.setattr(duckdb, "connect", refuse)
    assert world.run(KEYS[0], KEYS[3], **BACKFILL).success
    after = {(a, k): world.materialization(a, k) for a in ASSETS for k in KEYS}
    # What people saw before they see still.
    assert after == {key: {**told, "skipped": True} for key, told in before.items()}
    # But what was told of another version is not told of this one.
    key = KEYS[0]
    other = {"dagster/data_version": "another"}
    world.instance.report_runless_asset_event(
        dg.AssetMaterialization("ohlc_5m_ticker", partition=key, metadata={"books": 99}, tags=other)
    )
    assert world.run(KEYS[0], KEYS[1], **BACKFILL).success
    told = world.materialization("ohlc_5m_ticker", key)
    kept = {name: before["ohlc_5m_ticker", key][name] for name in ("data_version", "version", "digest")}
    assert told == {**kept, "skipped": True}
    # A single window of a backfill, too; and without the raw objects nothing else could succeed.
    assert world.run(KEYS[0], **BACKFILL).success
    assert not world.run(KEYS[0], KEYS[3], **FORCED).success


def test_forced_a_backfill_builds_what_is_finished_once_more(world: World) -> None:
    fill(world)
    assert world.run(KEYS[0], KEYS[1]).success
    with world.platform.connect() as connection:
        connection.execute("UPDATE ohlc_5m_ticker SET close_price = 1")
    assert world.run(KEYS[0], KEYS[1], **BACKFILL).success
    assert {row[0] for row in world.query("SELECT close_price FROM ohlc_5m_ticker")} == {1}
    assert world.run(KEYS[0], KEYS[1], **FORCED).success
    assert 1 not in {row[0] for row in world.query("SELECT close_price FROM ohlc_5m_ticker")}
    assert world.materialization("orderbook_parquet", KEYS[0])["unchanged"] is False


def test_a_backfill_builds_what_grew_and_what_lost_its_parquet(world: World) -> None:
    fill(world)
    assert world.run(KEYS[0], KEYS[3]).success
    world.lake.commit([book(310, 500)])  # late, in the second window
    lost = next(Path(world.settings.parquet_url.removeprefix("file://")).rglob("BTC-202502021615.parquet"))
    lost.unlink()
    assert world.run(KEYS[0], KEYS[3], **BACKFILL).success
    assert lost.exists()
    assert [world.materialization("orderbook_parquet", key)["version"] for key in KEYS] == [1, 2, 1, 1]
    skipped = ["skipped" in world.materialization("orderbook_parquet", key) for key in KEYS]
    assert skipped == [True, False, False, True]


def test_a_run_that_was_killed_half_way_is_taken_up_where_it_was(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(world)
    from cryptostream_dagster import steps

    build = steps.parquet_step
    built: list[tuple[int, bool]] = []

    def die_at_the_third(*arguments: Any, **options: Any) -> steps.ParquetBuilt:
        if len(built) == 2:
            raise KeyboardInterrupt
        done = build(*arguments, **options)
        built.append((arguments[1].number - Window.at(START).number, done.written))
        return done

    monkeypatch.setattr(steps, "parquet_step", die_at_the_third)
    assert not world.run(KEYS[0], KEYS[3], **BACKFILL).success
    assert world.built("raw_orderbook") == set(KEYS)
    assert world.built("orderbook_parquet") == set(KEYS[:2])

    def go_on(*arguments: Any, **options: Any) -> steps.ParquetBuilt:
        done = build(*arguments, **options)
        built.append((arguments[1].number - Window.at(START).number, done.written))
        return done

    monkeypatch.setattr(steps, "parquet_step", go_on)
    assert world.run(KEYS[0], KEYS[3], **BACKFILL).success
    assert world.built("ohlc_5m_ticker") == set(KEYS)
    assert built == [(0, True), (1, True), (0, False), (1, False), (2, True), (3, True)]


def test_windows_whose_raw_data_has_expired_are_refused_one_by_one_and_keep_what_they_have(
    world: World,
) -> None:
    fill(world)
    assert world.run(KEYS[0]).success
    before = world.query("SELECT * FROM ohlc_5m_ticker ORDER BY ticker, event_time")
    with world.platform.connect() as connection:
        freeze_until(connection, START + timedelta(minutes=10))
        todo = plan(connection, world.settings, windows(4), ASSETS, datetime.now(UTC), force=False)
        forced = plan(connection, world.settings, windows(4), ASSETS, datetime.now(UTC), force=True)
    assert [len(part) for part in (todo.finished, todo.refused, todo.build)] == [1, 1, 2]
    assert (forced.finished, forced.refused) == ((), tuple(windows(2)))
    result = world.run(KEYS[0], KEYS[3], **FORCED)
    assert not result.success
    assert world.built("ohlc_5m_ticker") == {KEYS[0], KEYS[2], KEYS[3]}
    said = str(result.failure_data_for_node(f"ohlc_5m_ticker_{VERDICT}"))
    assert "2 of 4 windows were not built" in said
    assert "has expired" in said
    after = world.query(f"SELECT * FROM ohlc_5m_ticker WHERE event_time < '{START + timedelta(minutes=10)}'")
    assert sorted(after) == before


def test_a_backfill_asks_for_what_is_not_finished_alone(world: World) -> None:
    fill(world)
    assert world.run(KEYS[1], KEYS[2]).success
    lost = next(Path(world.settings.parquet_url.removeprefix("file://")).rglob("BTC-202502021615.parquet"))
    now = datetime.now(UTC)
    with world.platform.connect() as connection:
        todo = plan(connection, world.settings, windows(4), ASSETS, now, force=False)
        lost.unlink()
        without = plan(connection, world.settings, windows(4), ASSETS, now, force=False)
        more = plan(connection, world.settings, windows(4), [*ASSETS, "another"], now, force=False)
    first, second, third, fourth = windows(4)
    assert (todo.build, todo.finished) == ((first, fourth), (second, third))
    assert (without.build, without.finished) == ((first, third, fourth), (second,))
    assert more.finished == ()
    assert ranges(without.build) == [(first, first), (third, fourth)]


def test_postgres_going_away_ends_a_range_with_one_sentence(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(world)
    import psycopg

    asked = []

    def gone(*_: Any, **__: Any) -> None:
        asked.append(1)
        with psycopg.connect(world.dsn, autocommit=True) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            )
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr("cryptostream_dagster.steps.parquet_step", gone)
    result = world.run(KEYS[0], KEYS[3])
    assert not result.success
    assert "Postgres went away" in str(result.failure_data_for_node("orderbook_parquet"))
    assert len(asked) == 1


def test_a_run_waits_once_for_all_of_its_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(raw_orderbook.time, "monotonic", lambda: now)
    patience = Patience(120)
    now += 50
    assert patience.left_s() == 120  # nobody has waited yet
    now += 100
    assert patience.left_s() == 20
    now += 100
    assert patience.left_s() == 0
