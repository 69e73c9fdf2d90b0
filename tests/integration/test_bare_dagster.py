"""Plain `dagster dev` in a clone: the asset graph loads with no service, no setting and no DAGSTER_HOME."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.stack import clean_environment

ROOT = Path(__file__).parents[2]


def test_the_workspace_loads_with_nothing_set_and_says_which_settings_a_run_needs() -> None:
    environment = {name: value for name, value in clean_environment().items() if name != "DAGSTER_HOME"}
    done = subprocess.run(
        [sys.executable, "-m", "dagster", "definitions", "validate", "-w", "workspace.yaml"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "POSTGRES_HOST, POSTGRES_USER, POSTGRES_DB not set" in done.stdout
    assert "Validation successful for code location cryptostream" in done.stdout
