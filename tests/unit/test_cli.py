"""The command line has the commands of what is installed; the ingest half needs nothing of the other."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest
from typer.testing import CliRunner

from ingest_services import cli

INGEST = {"buckets", "topic", "produce", "consume", "health", "simulate", "audit", "gc", "replay", "retire"}
DAGSTER = {"dev", "demo", "migrate", "chart", "status", "expire"}


def commands() -> set[str]:
    return {
        str(command.callback.__name__) for command in cli.build_app().registered_commands if command.callback
    }


def test_every_package_that_is_installed_whole_brings_its_commands() -> None:
    assert commands() >= INGEST | DAGSTER


def test_without_dagster_its_commands_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def distribution(name: str) -> metadata.Distribution:
        if name.startswith("dagster"):
            raise metadata.PackageNotFoundError(name)
        return metadata.distribution(name)

    monkeypatch.setattr(cli, "distribution", distribution)
    assert commands() == INGEST


def test_the_ingest_half_runs_where_nothing_of_the_other_half_can_be_imported() -> None:
    script = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"cryptostream_dagster", "dagster", "psycopg", "duckdb", "pandas"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import ingest_services.commands, ingest_services.producer.service, ingest_services.consumer.service
import ingest_services.simulator.server
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_names_what_it_is() -> None:
    shown = CliRunner().invoke(cli.build_app(), ["--help"])
    assert shown.exit_code == 0
    assert "research-grade" in shown.output
