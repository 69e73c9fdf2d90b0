"""`make` sets itself up once, again when the lock changes, and never takes half a setup for a whole one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Stands for the interpreter: writes down what it is asked, and makes a .venv with itself in it.
INTERPRETER = """#!/bin/sh
echo "$*" >> calls
case "$*" in
    "-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    *--require-hashes*) test ! -e broken-download ;;
esac
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements.lock").write_text("")
    (tmp_path / "pyproject.toml").write_text("")
    interpreter = tmp_path / "interpreter"
    interpreter.write_text(INTERPRETER)
    interpreter.chmod(0o755)
    return tmp_path


def make(clone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        check=False,
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
    )


def install(clone: Path) -> subprocess.CompletedProcess[str]:
    return make(clone, "install", f"PYTHON={clone / 'interpreter'}")


def calls(clone: Path) -> list[str]:
    file = clone / "calls"
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return [line for line in lines if not line.startswith("-c") and "pip --version" not in line]


def test_a_fresh_clone_sets_itself_up_and_a_second_call_does_nothing(clone: Path) -> None:
    assert install(clone).returncode == 0
    made, locked, editable = calls(clone)
    assert made == "-m venv --clear .venv"
    assert "--require-hashes --no-deps -r requirements.lock" in locked
    assert "--no-deps --no-build-isolation -e ." in editable
    assert install(clone).returncode == 0
    assert calls(clone) == []


@pytest.mark.parametrize("changed", ["requirements.lock", "pyproject.toml"])
def test_a_changed_lock_is_installed_into_the_same_environment(clone: Path, changed: str) -> None:
    install(clone)
    stamp = (clone / ".venv" / ".installed").stat().st_mtime
    os.utime(clone / changed, (stamp + 1, stamp + 1))
    calls(clone)
    assert install(clone).returncode == 0
    assert [call.split()[1] for call in calls(clone)] == ["pip", "pip"]


def test_a_setup_that_failed_half_way_is_done_again(clone: Path) -> None:
    (clone / "broken-download").touch()
    assert install(clone).returncode != 0
    assert not (clone / ".venv" / ".installed").exists()
    (clone / "broken-download").unlink()
    calls(clone)
    assert install(clone).returncode == 0
    assert len(calls(clone)) == 2


@pytest.mark.parametrize("python", ["", "/bin/false", "no-such-interpreter"])
def test_an_unusable_interpreter_is_one_clear_line(clone: Path, python: str) -> None:
    done = make(clone, "install", f"PYTHON={python}")
    assert done.returncode != 0
    error = next(line for line in done.stderr.splitlines() if line.startswith("error:"))
    assert f"PYTHON='{python}'" in error
    assert "3.11" in error
    assert not (clone / ".venv" / ".installed").exists()


def test_plain_make_says_what_there_is(clone: Path) -> None:
    assert "make demo" in make(clone).stdout
