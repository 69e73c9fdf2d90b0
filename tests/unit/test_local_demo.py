"""`make demo` says what differs, in words and in its exit status, and leaves nothing behind."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cryptostream_dagster import local_demo
from cryptostream_dagster.local.state import StateFolder
from cryptostream_dagster.local_demo import WINDOWS, Key, Prices, demo
from cryptostream_dagster.local_stack import WINDOW_S, Options
from ingest_services import cli
from ingest_services.errors import UserError

TRUE = {Key(n * WINDOW_S * 1000, "BTC"): Prices(*map(Decimal, (1, 3, 1, 2)), 600) for n in range(WINDOWS)}
WRONG = Key(WINDOW_S * 1000, "BTC")


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[Key, Prices]:
    """What the fake stack's warehouse holds at its end; its simulator's truth is `TRUE`."""
    built = dict(TRUE)

    class FakeStack:
        source = "simulator"
        dsn = ""
        ports = {"simulator": 0}  # noqa: RUF012 - a fake
        ready_at = time.monotonic()

        def __init__(self, state: StateFolder, options: Options, view: object) -> None:
            assert state.root.parent == tmp_path
            state.log("consumer").write_text("the last words of the consumer")

        def run(self, until: Callable[[Any], bool]) -> None:
            assert until(self)

    def truth(url: str) -> dict[str, Any]:
        end = WINDOWS * WINDOW_S * 1000
        candles = [
            {
                "window_start_ms": key.window_ms,
                "ticker": key.ticker,
                "book_count": true.books,
                **{name: str(getattr(true, name)) for name in ("open", "high", "low", "close")},
            }
            for key, true in TRUE.items()
        ]
        return {"now_ms": end, "history": {"to_ms": end}, "candles": candles}

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(local_demo, "Stack", FakeStack)
    monkeypatch.setattr(local_demo, "read_candles", lambda dsn: built)
    monkeypatch.setattr(local_demo, "fetch_json", truth)
    return built


def test_candles_that_are_the_truth_are_status_0(
    built: dict[Key, Prices], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo(30, keep=False) == 0
    said = capsys.readouterr().out
    assert "3 candles of 3 windows from 1,800 books" in said
    assert "all exactly equal" in said
    assert list(tmp_path.iterdir()) == []


def test_a_candle_that_is_not_the_truth_is_status_1_and_is_told(
    built: dict[Key, Prices], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built[WRONG] = built[WRONG]._replace(close=Decimal("2.0000000001"))
    assert demo(30, keep=False) == 1
    said = capsys.readouterr().out
    assert "1 of them differ" in said
    told = next(line for line in said.splitlines() if line.startswith("BTC 300000: built "))
    assert "close=Decimal('2.0000000001')" in told.partition("truth")[0]
    assert "close=Decimal('2')" in told.partition("truth")[2]
    assert list(tmp_path.iterdir()) == []


def test_a_stack_that_fails_shows_its_logs_and_leaves_nothing(
    built: dict[Key, Prices],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_: object, until: object) -> None:
        raise UserError("the broker: not there")

    monkeypatch.setattr(local_demo.Stack, "run", fail)
    with pytest.raises(UserError, match="the broker"):
        demo(30, keep=False)
    assert "the last words of the consumer" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_what_is_to_be_kept_is_kept(built: dict[Key, Prices], tmp_path: Path) -> None:
    assert demo(30, keep=True) == 0
    (kept,) = tmp_path.iterdir()
    assert (kept / "logs" / "consumer.log").exists()


def test_a_history_too_short_for_the_demo_is_refused_before_it_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(local_demo, "demo", lambda minutes, **_: asked.append(minutes) or 0)
    least = WINDOWS * WINDOW_S // 60
    run, app = CliRunner().invoke, cli.build_app()
    assert run(app, ["demo", "--history-minutes", str(least - 1)]).exit_code == 2
    assert run(app, ["demo", "--history-minutes", str(least)]).exit_code == 0
    assert asked == [least]


def test_a_live_window_is_waited_for_and_its_delay_is_told(
    built: dict[Key, Prices], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    live = Key(WINDOWS * WINDOW_S * 1000, "BTC")
    end = live.window_ms + WINDOW_S * 1000
    history = local_demo.fetch_json("")
    assert history is not None
    candle = {**history["candles"][0], "window_start_ms": live.window_ms}
    answer = {**history, "now_ms": end + 1, "candles": [*history["candles"], candle]}
    monkeypatch.setattr(local_demo, "fetch_json", lambda url: answer)
    monkeypatch.setattr(local_demo, "read_delays", lambda dsn: {live.window_ms: 8.25})
    with pytest.raises(AssertionError):
        demo(30, live_windows=1, keep=False)
    built[live] = TRUE[Key(0, "BTC")]
    assert demo(30, live_windows=1, keep=False) == 0
    assert "candles 8.2 s after its end" in capsys.readouterr().out
