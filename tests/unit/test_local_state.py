"""A state folder belongs to one stack at a time, remembers, and keeps what a person edited."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from dotenv import dotenv_values

from cryptostream_dagster.local import ports
from cryptostream_dagster.local.state import Memory, StateFolder
from ingest_services import config
from ingest_services.errors import UserError

HOLDER = """
import sys, time
from pathlib import Path
from cryptostream_dagster.local.state import StateFolder
state = StateFolder(Path(sys.argv[1]))
with state.held():
    state.announce("http://127.0.0.1:3000")
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_stack_is_told_who_holds_the_folder_and_a_killed_holder_holds_nothing(
    tmp_path: Path,
) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    state = StateFolder(tmp_path)
    with (
        pytest.raises(UserError, match=rf"process {holder.pid}, Dagster at http://127.0.0.1:3000"),
        state.held(),
    ):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with state.held():
        pass


def test_memory_survives_and_nonsense_in_it_is_named(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    assert state.remember() == Memory()
    state.write_memory(Memory(ports={"dagster": 3001}, partitions_start="2025-01-01T00:00+0900"))
    assert state.remember() == Memory({"dagster": 3001}, "2025-01-01T00:00+0900")
    (tmp_path / "memory.json").write_text("{")
    with pytest.raises(UserError, match=r"memory\.json: cannot be understood"):
        state.remember()


def test_the_generated_sections_are_valid_and_an_edited_file_is_kept(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    state.write_conf()
    partitions = config.partitions_of(config.read_producers(state.producer_conf))
    config.require_consumers(partitions, config.read_consumers(state.consumer_conf), state.consumer_conf)
    assert partitions == {"orderbook": 2}
    state.producer_conf.write_text("mine")
    state.write_conf()
    assert state.producer_conf.read_text() == "mine"


def test_the_env_file_reads_back_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    settings = {"RAW_URL": "file:///a folder/raw#1", "POSTGRES_PASSWORD": "a$b=c"}
    state.write_env(settings)
    assert dotenv_values(state.env_file, interpolate=False) == settings
    assert state.env_file.stat().st_mode & 0o077 == 0


def test_a_state_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        StateFolder(tmp_path / "file" / "state")


def test_a_state_folder_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    StateFolder(tmp_path)
    tmp_path.chmod(0o500)
    if os.geteuid() == 0:  # root may write everywhere
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="cannot be written"):
        StateFolder(tmp_path)


def test_a_port_is_the_remembered_one_else_the_usual_one_else_the_next() -> None:
    first = ports.choose({"a": 0}, {})["a"]
    assert ports.choose({"a": first}, {}) == {"a": first}
    assert ports.choose({"a": 1}, {"a": first}) == {"a": first}
    with socket.create_server((ports.LOOPBACK, first)):
        taken = ports.choose({"a": first, "b": first}, {"a": first})
        assert first < taken["a"] < taken["b"]
