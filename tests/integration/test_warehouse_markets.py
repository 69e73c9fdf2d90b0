"""`market`: what the exchange told of its markets, poll by poll, the delisted ones included."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest

from cryptostream_dagster.assets.market import poll_key
from cryptostream_dagster.client import Client
from cryptostream_dagster.definitions import build_defs
from cryptostream_dagster.resources import Platform
from cryptostream_dagster.transforms.schema import MARKET_COLUMNS
from cryptostream_dagster.warehouse.markets import (
    BELIEVE_AFTER,
    MarketsKept,
    believable,
    keep_markets,
    poll_markets,
)
from ingest_services.errors import UserError
from ingest_services.simulator.server import Simulator
from ingest_services.upbit import rest as rest_module
from ingest_services.upbit.rest import Rest, RestMarket
from tests.pipeline import pipeline_settings
from tests.postgres_fixture import TestDatabase
from tests.simulator_thread import order, serving

NOON = datetime(2026, 2, 2, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
BTC = RestMarket("KRW-BTC", "비트코인", "Bitcoin", False, (), Decimal(1000))
ETH = RestMarket("KRW-ETH", "이더리움", "Ethereum", False, (), Decimal(500))
XRP = RestMarket("USDT-XRP", "리플", "Ripple", False, (), Decimal("0.001"))


@pytest.fixture
def warehouse(tmp_path: Path, database: TestDatabase) -> Iterator[psycopg.Connection]:
    with Platform(pipeline_settings(tmp_path, database)).connect() as connection:
        yield connection


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with serving(tickers=("BTC", "ETH", "XRP"), history_minutes=0) as running:
        yield running


def rows(connection: psycopg.Connection, text: str, *arguments: object) -> list[tuple[Any, ...]]:
    return connection.execute(text, arguments or None).fetchall()  # type: ignore[arg-type]


def listed_at(connection: psycopg.Connection, at: datetime) -> list[str]:
    """Which markets there were, asked later: the question that survivorship bias gets wrong."""
    query = (
        "SELECT market FROM market_known WHERE listed AND valid_from <= %s AND coalesce(valid_to > %s, true) "
        "ORDER BY 1"
    )
    return [market for (market,) in rows(connection, query, at, at)]


def test_the_table_has_the_declared_columns(warehouse: psycopg.Connection) -> None:
    found = rows(
        warehouse,
        "SELECT column_name FROM information_schema.columns WHERE table_name = 'market' "
        "ORDER BY ordinal_position",
    )
    assert [name for (name,) in found] == [column.name for column in MARKET_COLUMNS]


def test_listings_and_delistings_are_followed_and_nothing_is_forgotten(
    warehouse: psycopg.Connection, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        rest_module, "EVERY_S", 0.12
    )  # the simulator takes ten a second, as the exchange does
    rest = Rest(simulator.rest_url)

    def poll() -> MarketsKept:
        return poll_markets(warehouse, rest, "simulator")

    first = poll()
    assert (first.listed, first.new, first.changed) == (3, ("KRW-BTC", "KRW-ETH", "KRW-XRP"), 0)
    assert rows(
        warehouse, "SELECT ticker, english_name, warning, cautions, tick_size FROM market ORDER BY 1"
    )[0] == ("BTC", "BTC", False, [], 1000)
    order(simulator, "list", market="KRW-NEW")
    order(simulator, "delist", market="KRW-XRP")
    second = poll()
    assert (second.listed, second.new, second.changed, second.delisted) == (
        3,
        ("KRW-NEW",),
        1,
        ("KRW-XRP",),
    )
    assert poll() == MarketsKept(3, (), 0, ())
    ((gone, seen_first, seen_last, unlisted_from),) = rows(
        warehouse,
        "SELECT listed, first_seen, last_seen, valid_from FROM market WHERE market = 'KRW-XRP'",
    )
    assert not gone
    assert seen_first == seen_last < unlisted_from
    order(simulator, "list", market="KRW-XRP")
    assert poll().changed == 1
    query = "SELECT listed, first_seen FROM market WHERE market = 'KRW-XRP'"
    assert rows(warehouse, query) == [(True, seen_first)]
    assert listed_at(warehouse, seen_first) == ["KRW-BTC", "KRW-ETH", "KRW-XRP"]
    assert listed_at(warehouse, unlisted_from) == ["KRW-BTC", "KRW-ETH", "KRW-NEW"]
    assert listed_at(warehouse, datetime.now(UTC)) == ["KRW-BTC", "KRW-ETH", "KRW-NEW", "KRW-XRP"]


def test_a_market_that_one_answer_leaves_out_is_not_delisted(warehouse: psycopg.Connection) -> None:
    class Hiccup:
        simulated = True
        url = "http://exchange"
        answers = iter([(BTC, ETH, XRP), (BTC, ETH), (BTC, ETH, XRP)])

        def listing(self) -> tuple[RestMarket, ...]:
            return next(self.answers)

    rest: Any = Hiccup()
    poll_markets(warehouse, rest, "simulator")
    assert poll_markets(warehouse, rest, "simulator") == MarketsKept(3, (), 0, ())


def test_what_changes_is_never_overwritten_unseen(warehouse: psycopg.Connection) -> None:
    changed = [
        BTC._replace(english_name="Bitcoin (new)"),
        BTC._replace(english_name="Bitcoin (new)", warning=True, cautions=("PRICE_FLUCTUATIONS",)),
        BTC._replace(english_name="Bitcoin (new)", warning=True, tick_size=None),
    ]
    for n, market in enumerate((BTC, BTC, *changed)):
        kept = keep_markets(warehouse, [market, ETH], NOON + n * HOUR)
        assert kept.changed == (n > 1)
    names = "english_name, warning, cautions, tick_size, valid_from, valid_to"
    assert rows(warehouse, f"SELECT {names} FROM market_known WHERE ticker = 'BTC' ORDER BY valid_from") == [
        ("Bitcoin", False, [], 1000, NOON, NOON + 2 * HOUR),
        ("Bitcoin (new)", False, [], 1000, NOON + 2 * HOUR, NOON + 3 * HOUR),
        ("Bitcoin (new)", True, ["PRICE_FLUCTUATIONS"], 1000, NOON + 3 * HOUR, NOON + 4 * HOUR),
        ("Bitcoin (new)", True, [], None, NOON + 4 * HOUR, None),
    ]
    # Until when the old name was seen is on record, too: the change was between the two polls.
    query = "SELECT first_seen, last_seen FROM market_history ORDER BY valid_to LIMIT 1"
    assert rows(warehouse, query) == [(NOON, NOON + HOUR)]
    assert rows(warehouse, "SELECT first_seen, last_seen, valid_from FROM market WHERE ticker = 'ETH'") == [
        (NOON, NOON + 4 * HOUR, NOON)
    ]


def test_the_client_tells_the_markets_of_any_moment(
    warehouse: psycopg.Connection, tmp_path: Path, database: TestDatabase
) -> None:
    keep_markets(warehouse, [BTC, ETH], NOON)
    keep_markets(warehouse, [BTC, XRP], NOON + HOUR)
    with Client(pipeline_settings(tmp_path, database)) as client:
        now, then = client.markets(), client.markets(NOON)
        assert dict(now["listed"]) == {"KRW-BTC": True, "KRW-ETH": False, "USDT-XRP": True}
        assert dict(then["listed"]) == {"KRW-BTC": True, "KRW-ETH": True}
        assert then["tick_size"].tolist() == [1000, 500]
        assert now.loc["USDT-XRP", "first_seen"] == NOON + HOUR
        assert client.markets(NOON - HOUR).empty


def test_what_was_said_earlier_does_not_replace_what_was_said_later(warehouse: psycopg.Connection) -> None:
    keep_markets(warehouse, [BTC, ETH], NOON)
    before = rows(warehouse, "SELECT * FROM market ORDER BY 1")
    late = [BTC._replace(warning=True), XRP]
    assert keep_markets(warehouse, late, NOON - HOUR) == MarketsKept(2, (), 0, ())
    assert rows(warehouse, "SELECT * FROM market ORDER BY 1") == before


def test_an_answer_without_most_of_the_markets_is_not_believed_for_a_day(
    warehouse: psycopg.Connection,
) -> None:
    keep_markets(warehouse, [BTC, ETH, XRP], NOON)
    before = rows(warehouse, "SELECT * FROM market ORDER BY 1")
    with pytest.raises(UserError, match=r"names 1 of the 3 markets .* not believed before 2026-02-03 12:00"):
        keep_markets(warehouse, [BTC], NOON + HOUR)
    assert rows(warehouse, "SELECT * FROM market ORDER BY 1") == before
    assert keep_markets(warehouse, [BTC], NOON + BELIEVE_AFTER).delisted == ("KRW-ETH", "USDT-XRP")


def test_half_of_the_markets_may_go_at_once() -> None:
    assert believable(2, 1, HOUR)
    assert believable(0, 0, HOUR)
    assert not believable(3, 2, BELIEVE_AFTER - HOUR)
    assert believable(3, 3, BELIEVE_AFTER)


@contextmanager
def refusing(status: int) -> Iterator[tuple[str, list[str]]]:
    """An exchange that answers nothing but this; yields its address and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(status)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# After a 429 the client waits a little and may ask again; a 418 forbids it for a minute.
@pytest.mark.parametrize(("status", "said"), [(429, ["HTTP 429"]), (418, ["HTTP 418", "slow down"])])
def test_an_exchange_that_refuses_is_one_line_and_is_not_asked_again(
    warehouse: psycopg.Connection, status: int, said: list[str]
) -> None:
    keep_markets(warehouse, [BTC, ETH], NOON)
    before = rows(warehouse, "SELECT * FROM market ORDER BY 1")
    with refusing(status) as (url, asked):
        rest = Rest(url)
        for expected in said:
            with pytest.raises(UserError, match=expected) as caught:
                poll_markets(warehouse, rest, "simulator")
            assert "\n" not in str(caught.value)
        assert len(asked) == 1
    assert rows(warehouse, "SELECT * FROM market ORDER BY 1") == before


def test_a_simulator_s_markets_and_the_exchange_s_never_mix(
    warehouse: psycopg.Connection, simulator: Simulator
) -> None:
    with pytest.raises(UserError, match="is a simulator, the warehouse holds data of source upbit"):
        poll_markets(warehouse, Rest(simulator.rest_url), "upbit")
    assert rows(warehouse, "SELECT count(*) FROM market") == [(0,)]


def test_it_is_asked_for_at_once_and_then_once_an_hour_at_three_past(
    tmp_path: Path, database: TestDatabase
) -> None:
    settings = pipeline_settings(tmp_path, database)
    defs = build_defs(settings)
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        context = dg.build_sensor_context(instance=instance, definitions=defs)
        due = {poll_key(datetime.now(UTC))}
        tick = defs.resolve_sensor_def("markets").evaluate_tick(context)
        due.add(poll_key(datetime.now(UTC)))
    assert {request.run_key for request in tick.run_requests or []} <= due
    assert len(tick.run_requests or []) == 1
    # Dagster launches a key once.
    keys = [poll_key(NOON + timedelta(minutes=minutes)) for minutes in range(-10, 63)]
    changes = [minute - 10 for minute in range(1, len(keys)) if keys[minute] != keys[minute - 1]]
    assert changes == [3]


def test_the_asset_polls_and_tells(tmp_path: Path, database: TestDatabase, simulator: Simulator) -> None:
    settings = pipeline_settings(tmp_path, database, upbit_rest_url=simulator.rest_url)
    home = tmp_path / "dagster"
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        job = build_defs(settings).resolve_job_def("poll_markets")
        assert job.execute_in_process(instance=instance).success
        event = instance.get_latest_materialization_event(dg.AssetKey("market"))
        assert event is not None
        assert event.asset_materialization is not None
        metadata = {name: value.value for name, value in event.asset_materialization.metadata.items()}
        assert (metadata["dagster/row_count"], metadata["listed"], metadata["new"]) == (3, 3, 3)
        away = settings.model_copy(update={"upbit_rest_url": "http://127.0.0.1:9"})
        job = build_defs(away).resolve_job_def("poll_markets")
        result = job.execute_in_process(instance=instance, raise_on_error=False)
        assert "the markets stay as they are" in str(result.failure_data_for_node("market"))
