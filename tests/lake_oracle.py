"""Reads a lake the way a stranger would, with none of the product's readers: commits, then what they name."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import zstandard
from crc32c import crc32c


@dataclass
class Oracle:
    """What the lake says it holds, of one chain and partition, or of one commit.

    Attributes:
        records: Value of every record by offset: the frame's or heartbeat's bytes, or the quarantined value.
        reasons: Why an offset is in quarantine.
        minutes: Folder of the object that holds an offset.
        missing: Offsets that commits declare missing.
        next: Where the chain, or the commit, ends.
        commits: How many commits it has.
        objects: How many objects they name.
    """

    records: dict[int, bytes | None] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    folders: dict[int, str] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)
    next: int = 0
    commits: int = 0
    objects: int = 0


def read_partition(root: Path, chain: int, partition: int, start: int = 0) -> Oracle:
    """Walk one partition's chain and check everything that a commit says about what it names."""
    found = Oracle(next=start)
    for commit in read_commits(root, chain, partition, start):
        found.records |= commit.records
        found.reasons |= commit.reasons
        found.folders |= commit.folders
        found.missing += commit.missing
        found.next = commit.next
        found.commits += 1
        found.objects += commit.objects
    assert sorted([*found.records, *found.missing]) == list(range(start, found.next))
    return found


def read_commits(root: Path, chain: int, partition: int, start: int = 0) -> Iterator[Oracle]:
    """Yield what each commit holds, one after another; only one is in memory."""
    folder = root / "_commits" / f"{chain:08d}" / f"{partition:04d}"
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    base = start
    for name in names:
        commit = json.loads((folder / name).read_text())
        assert name == f"{commit['base']:020d}.json"
        assert commit["base"] == base, f"chain is not linear at {base}: {name}"
        found = Oracle(next=commit["next"], commits=1)
        rows = 0
        for file in commit["files"]:
            data = (root / file["path"]).read_bytes()
            assert len(data) == file["bytes"]
            assert f"{crc32c(data):08x}" == file["crc32c"]
            content = zstandard.decompress(data) if file["path"].endswith(".zst") else data
            lines = content.splitlines()
            assert len(lines) == file["rows"]
            rows += len(lines)
            found.objects += 1
            for line in lines:
                _read_line(found, line, partition, Path(file["path"]))
        found.missing = [offset for start_, end in commit["missing"] for offset in range(start_, end)]
        assert rows + len(found.missing) == commit["next"] - commit["base"]
        assert sorted([*found.records, *found.missing]) == list(range(base, found.next))
        base = found.next
        yield found


def _read_line(found: Oracle, line: bytes, partition: int, path: Path) -> None:
    message = json.loads(line)
    offset = message["offset"]
    assert message["partition"] == partition
    assert offset not in found.records, f"offset {offset} twice"
    found.folders[offset] = str(path.parent)
    for kind in ("book", "heartbeat"):
        if kind in message:
            marker = b',"%s":' % kind.encode()
            found.records[offset] = line[line.index(marker) + len(marker) : -1]
            return
    value = message["value"]
    found.records[offset] = None if value is None else base64.b64decode(value)
    found.reasons[offset] = message["reason"]
