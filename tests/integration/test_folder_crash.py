"""A folder store through a crash at every single step, and what a power cut may not take back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ingest_services.lake.store import FolderStore, ObjectExists, ObjectMissing

OLD, NEW = b"old" * 1000, b"new" * 2000
# Dies, without any cleaning up, right before the n-th system call that changes something.
CHILD = """
import os, sys
from pathlib import Path
from ingest_services.lake.store import FolderStore

root, operation, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
store = FolderStore(root)
left = steps

def step(*_):
    global left
    left -= 1
    if left < 0:
        os._exit(9)

def watch(event, arguments):
    writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if writing or event in ("os.link", "os.remove", "os.rename", "os.mkdir"):
        step()

fsync, os.fsync = os.fsync, lambda descriptor: (step(), fsync(descriptor))[1]
sys.addaudithook(watch)
getattr(store, operation)("_commits/1/a.json", b"new" * 2000)
"""


def die_at(root: Path, operation: str, step: int) -> bool:
    """Do something in a process that dies at a step; return whether it had come that far."""
    run = subprocess.run(
        [sys.executable, "-c", CHILD, str(root), operation, str(step)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode in (0, 9), run.stderr
    return run.returncode == 9


def test_a_create_that_dies_at_any_step_left_the_whole_object_or_none(tmp_path: Path) -> None:
    step, seen = 0, set()
    while die_at(tmp_path / str(step), "create", step):
        store = FolderStore(tmp_path / str(step))
        there = list(store.list(""))
        seen.add(len(there))
        assert there in ([], ["_commits/1/a.json"]), f"step {step}"
        try:
            store.create("_commits/1/a.json", NEW)
        except ObjectExists:
            assert there, f"step {step}"
        assert store.get("_commits/1/a.json") == NEW, f"step {step}"
        assert list(store.list("")) == ["_commits/1/a.json"], f"step {step}"
        step += 1
    assert step > 10
    assert seen == {0, 1}, "the steps did not lie around the link; the test proved nothing"


def test_a_replace_that_dies_at_any_step_left_the_old_or_the_new_object(tmp_path: Path) -> None:
    step, seen = 0, set()
    while True:
        store = FolderStore(tmp_path / str(step))
        store.create("_commits/1/a.json", OLD)
        if not die_at(tmp_path / str(step), "replace", step):
            break
        seen.add(store.get("_commits/1/a.json"))
        assert list(store.list("")) == ["_commits/1/a.json"], f"step {step}"
        step += 1
    assert seen == {OLD, NEW}, f"{step} steps"


class Journal:
    """What was made, and what was synced, in order, by inode."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, int]] = []
        fsync, link, mkdir, replace = os.fsync, os.link, os.mkdir, os.replace

        def noted_fsync(descriptor: int) -> None:
            fsync(descriptor)
            self.events.append(("fsync", os.fstat(descriptor).st_ino))

        def noted_link(source: Path, target: Path) -> None:
            self.events.append(("named", source.stat().st_ino))
            link(source, target)

        def noted_replace(source: Path, target: Path) -> None:
            self.events.append(("named", Path(source).stat().st_ino))
            replace(source, target)

        def noted_mkdir(path: Path, mode: int = 0o777) -> None:
            mkdir(path, mode)
            self.events.append(("made", Path(path).parent.stat().st_ino))

        patch.setattr(os, "fsync", noted_fsync)
        patch.setattr(os, "link", noted_link)
        patch.setattr(os, "mkdir", noted_mkdir)
        patch.setattr(os, "replace", noted_replace)


@pytest.mark.parametrize("operation", ["create", "replace"])
def test_what_is_said_to_be_done_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    journal = Journal(monkeypatch)
    store = FolderStore(tmp_path / "new/raw")
    getattr(store, operation)("a/b/c.json", NEW)
    target = tmp_path / "new/raw/a/b/c.json"
    inode, folder = target.stat().st_ino, target.parent.stat().st_ino
    events = journal.events
    named = events.index(("named", inode))
    assert ("fsync", inode) in events[:named]
    assert ("fsync", folder) in events[named:]
    # Every folder that was made is in its parent for good before anything is named in it.
    for index, event in enumerate(events):
        if event[0] == "made":
            assert ("fsync", event[1]) in events[index:named], f"{event} of {events}"


def test_what_is_said_to_exist_is_on_the_disk_whoever_made_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FolderStore(tmp_path)
    store.create("a/b", NEW)
    journal = Journal(monkeypatch)
    with pytest.raises(ObjectExists):
        store.create("a/b", NEW)
    assert journal.events[-1] == ("fsync", (tmp_path / "a").stat().st_ino)


@pytest.mark.parametrize("operation", ["create", "replace"])
@pytest.mark.parametrize("failing", ["fsync", "link", "mkdir"])
def test_a_failure_is_an_error_that_can_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, failing: str
) -> None:
    for step in range(12):
        store, left = FolderStore(tmp_path / str(step)), [step]
        with monkeypatch.context() as patch:
            real = getattr(os, failing)

            def fail(*arguments: object, real: object = real, left: list[int] = left) -> object:
                left[0] -= 1
                if left[0] == -1:
                    raise OSError(28, "No space left on device")
                return real(*arguments)  # type: ignore[operator]

            patch.setattr(os, failing, fail)
            try:
                getattr(store, operation)("a/b", NEW)
            except OSError:
                assert left[0] < 0
        try:
            getattr(store, operation)("a/b", NEW)
        except ObjectExists:
            assert operation == "create"
        assert store.get("a/b") == NEW
        assert not list((store.root / ".staging").iterdir())


def test_a_folder_that_somebody_removed_is_made_again_at_the_next_try(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    for operation in (store.create, store.replace):
        operation("day=1/a", b"")
        (tmp_path / "day=1/a").unlink()
        for folder in ("day=1", ".staging"):
            (tmp_path / folder).rmdir()
            with pytest.raises(FileNotFoundError):
                operation("day=1/a", NEW)
            operation("day=1/a", NEW)
            assert store.get("day=1/a") == NEW
            (tmp_path / "day=1/a").unlink()
        with pytest.raises(ObjectMissing):
            store.get("day=1/a")
