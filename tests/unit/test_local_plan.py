"""Which programs a stack starts, and with which settings: told without starting any."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml
from rich.console import Console

from cryptostream_dagster import local_stack
from cryptostream_dagster.jobs import DAILY, KIND_TAG, RECONCILE
from cryptostream_dagster.local.postgres import EmbeddedPostgres
from cryptostream_dagster.local.state import StateFolder
from cryptostream_dagster.local.view import PlainView
from cryptostream_dagster.local_stack import Options, Stack, dev, exchange_settings, instance
from cryptostream_dagster.settings import PipelineSettings
from ingest_services.settings import IngestSettings, load_settings

ROOT = Path(__file__).parents[2]


class Planned(Stack):
    """Writes down what it would start."""

    def __init__(self, root: Path, options: Options) -> None:
        super().__init__(StateFolder(root), options, PlainView(Console(file=io.StringIO()), ZoneInfo("UTC")))
        self.commands: dict[str, Sequence[str]] = {}
        self.again: dict[str, Callable[[], Sequence[str]]] = {}
        self._start(load_settings(PipelineSettings))

    @property
    def dsn(self) -> str:
        return "postgresql://nobody@127.0.0.1:1/nothing"

    @property
    def settings(self) -> Mapping[str, str]:
        return self._settings

    def _launch(self, name: str, command: list[str], **how: Any) -> None:
        self.commands[name] = command
        if "again" in how:
            self.again[name] = how["again"]

    def _run_errand(self, command: str) -> None:
        pass

    def _wait_for(self, *_: object) -> None:
        pass

    def _start_postgres(self) -> None:
        self.state.write_env(self._settings)

    def _start_dagster(self) -> None:
        pass


def value_of(command: Sequence[str], option: str) -> str:
    return command[command.index(option) + 1]


@pytest.fixture(autouse=True)
def _leftovers_of_a_simulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell and a `.env` in which somebody tried a simulator of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UPBIT_WS_URL", "ws://127.0.0.1:8765/websocket/v1")
    (tmp_path / ".env").write_text("UPBIT_REST_URL=http://127.0.0.1:8765\n")


def test_live_is_the_real_exchange_whatever_was_left_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = Planned(tmp_path / "state", Options(live=True, any_ports=True))
    assert set(stack.commands) == {"broker", "producer", "consumer"}
    for name, value in stack.settings.items():
        monkeypatch.setenv(name, value)
    child = load_settings(IngestSettings)
    assert child.source == "upbit"
    assert child.upbit_ws_url == "wss://api.upbit.com/websocket/v1"
    assert child.upbit_rest_url == "https://api.upbit.com"


def test_the_simulator_is_asked_by_everything_that_asks_the_exchange(tmp_path: Path) -> None:
    stack = Planned(tmp_path / "state", Options(any_ports=True))
    port = int(value_of(stack.commands["simulator"], "--port"))
    assert stack.settings["SOURCE"] == "simulator"
    assert stack.settings.items() >= exchange_settings(port).items()
    assert exchange_settings(port)["UPBIT_WS_URL"] == f"ws://127.0.0.1:{port}/websocket/v1"


def test_a_simulator_that_is_started_again_plays_no_history_and_another_walk(tmp_path: Path) -> None:
    stack = Planned(tmp_path / "state", Options(history_minutes=30, any_ports=True))
    commands = [stack.commands["simulator"], stack.again["simulator"](), stack.again["simulator"]()]
    assert [value_of(command, "--history-minutes") for command in commands] == ["30", "0", "0"]
    assert len({value_of(command, "--seed") for command in commands}) == 3


def test_clients_in_another_shell_get_the_zone_and_the_depth_of_the_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARKET_TIME_ZONE", "Europe/Berlin")
    monkeypatch.setenv("DEPTH", "5")
    lines = Planned(tmp_path / "state", Options(any_ports=True)).state.env_file.read_text().splitlines()
    assert {"MARKET_TIME_ZONE='Europe/Berlin'", "DEPTH='5'"} <= set(lines)


@pytest.mark.parametrize(
    ("live", "folder", "words"),
    [(True, "live", "LIVE data from Upbit"), (False, "sim", "SIMULATED DATA, not a market")],
)
def test_real_and_simulated_data_live_in_folders_of_their_own_and_the_first_line_says_which(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    live: bool,
    folder: str,
    words: str,
) -> None:
    monkeypatch.setattr(local_stack.Stack, "run", lambda self, until: None)
    dev(None, Options(live=live))
    state = tmp_path / ".cryptostream" / folder
    assert capsys.readouterr().out.splitlines()[0] == f"{words}; state in {state}"
    assert [path.name for path in state.parent.iterdir()] == [folder]


def test_the_live_window_finds_a_free_slot_in_every_instance(tmp_path: Path) -> None:
    (tmp_path / "postgres.password").write_text("secret")
    ours = instance(EmbeddedPostgres(tmp_path / "postgres", 1))
    root = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    for home in (ours, root):
        runs = home["concurrency"]["runs"]
        limits = runs["tag_concurrency_limits"]
        assert [(limit["key"], limit.get("value")) for limit in limits] == [
            (KIND_TAG, RECONCILE),
            (KIND_TAG, DAILY),
            ("dagster/backfill", None),
        ]
        assert sum(limit["limit"] for limit in limits) < runs["max_concurrent_runs"]
