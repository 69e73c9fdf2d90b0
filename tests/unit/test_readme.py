"""The README says what is: every setting is in its table, every command it names exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cryptostream_dagster.settings import PipelineSettings
from cryptostream_dagster.transforms.schema import CANDLE_COLUMNS, book_columns
from ingest_services import config

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The README's code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def shell_lines() -> list[list[str]]:
    lines = (line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines())
    return [shlex.split(line) for line in lines if line]


def settings_rows() -> dict[str, str]:
    rows = re.findall(r"^\| `([A-Z_]+)` \|[^|]*\|([^|]*)\|", README, re.MULTILINE)
    return {name: default.strip().strip("`") for name, default in rows}


def test_every_setting_is_in_the_table_with_its_default() -> None:
    assert set(settings_rows()) == {name.upper() for name in PipelineSettings.model_fields}
    for name, default in settings_rows().items():
        value = PipelineSettings.model_fields[name.lower()].default
        if isinstance(value, int | float | str) and not str(value).startswith("file://"):
            assert default == str(value), name


@pytest.mark.parametrize("words", [w for w in shell_lines() if w[0] == "make"], ids=" ".join)
def test_every_make_target_of_the_readme_exists(words: list[str]) -> None:
    done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [w for w in shell_lines() if w[0] == "cryptostream"], ids=" ".join)
def test_every_command_and_option_of_the_readme_exists(words: list[str]) -> None:
    command = [sys.executable, "-m", "ingest_services", words[1], "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    for option in (word for word in words if word.startswith("--")):
        assert option in done.stdout


def test_the_conf_files_of_the_readme_fit_each_other(tmp_path: Path) -> None:
    for block in blocks("ini"):
        (tmp_path / block.splitlines()[0].removeprefix("# ")).write_text(block)
    partitions = config.partitions_of(config.read_producers(tmp_path / "producer.conf"))
    consumers = config.read_consumers(tmp_path / "consumer.conf")
    config.require_consumers(partitions, consumers, tmp_path / "consumer.conf")


def test_the_files_that_the_readme_and_docs_link_to_exist() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_table_of_the_candles_columns_is_the_declared_one() -> None:
    page = (ROOT / "docs" / "candles.md").read_text()
    assert re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", page, re.MULTILINE) == [
        (column.name, f"{column.kind}, may be NULL" if column.nullable else column.kind, column.description)
        for column in CANDLE_COLUMNS
    ]


def test_the_table_of_the_parquet_columns_is_the_declared_schema() -> None:
    table = README.split("one object per ticker and window, replaced whole:")[1].split("\n## ")[0]
    found = re.findall(r"^\| `(.+)` \| (.+) \| (.+) \|$", table, re.MULTILINE)
    declared = []
    for column in book_columns(PipelineSettings.model_fields["depth"].default):
        # The levels are told once for each side, by their first.
        level = re.fullmatch(r"(?:ask|bid)_(?:price|size)(\d+)", column.name)
        if level is None or level[1] == "1":
            kind = f"{column.kind}, may be NULL" if column.nullable else column.kind
            declared.append((f"{column.name} …" if level else column.name, kind, column.description))
    assert found == declared
