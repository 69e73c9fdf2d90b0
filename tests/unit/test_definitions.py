"""What Dagster is given, compared with what was agreed on."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from cryptostream_dagster.definitions import build_defs
from cryptostream_dagster.questions import QUESTIONS
from cryptostream_dagster.settings import PipelineSettings
from tests.definitions_snapshot import FILE, snapshot

ROOT = Path(__file__).parents[2]


def test_nothing_in_the_definitions_changes_unseen() -> None:
    agreed, found = FILE.read_text(encoding="utf-8").splitlines(), snapshot().splitlines()
    difference = "\n".join(difflib.unified_diff(agreed, found, "agreed", "found", lineterm=""))
    assert not difference, (
        f"{difference}\n\nIf this is meant, write {FILE.name} anew: python -m tests.definitions_snapshot"
    )


def test_every_asset_says_what_it_is_and_whose() -> None:
    graph = build_defs(PipelineSettings(_env_file=None)).resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        said = (node.description, node.owners, node.group_name != "default", node.kinds)
        assert all(said), f"{key.to_user_string()}: {said}"
        if node.is_executable:
            (code,) = node.metadata["dagster/code_references"].code_references
            file = Path(code.file_path).relative_to(ROOT)
            assert f'name="{key.to_user_string()}"' in (ROOT / file).read_text(), code
    for key in graph.asset_check_keys:
        assert graph.get_check_spec(key).description, key


def test_every_check_is_on_the_page_of_checks_once() -> None:
    page = (ROOT / "docs" / "checks.md").read_text()
    graph = build_defs(PipelineSettings(_env_file=None)).resolve_asset_graph()
    assert [key.name for key in graph.asset_check_keys if f"`{key.name}`" not in page] == []
    asset, listed = "", []
    for row in re.findall(r"^\| (?:`(\w+)` )?\| `(\w+)` \|.*?\| (warns )?\|$", page, re.MULTILINE):
        asset = row[0] or asset
        listed.append((asset, row[1], bool(row[2])))
    assert listed == [(question.asset, question.name, question.warns) for question in QUESTIONS]
