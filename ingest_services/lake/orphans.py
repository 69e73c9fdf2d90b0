"""Objects that no commit names, and their removal: `docs/tools.md`.

A torn attempt leaves objects that nobody ever names. One may go only when it is certain that no commit can
name it any more: its slot is taken for ever by another (`Slots.judge`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from ingest_services.lake.slots import Slots, Verdict, judge_objects
from ingest_services.lake.store import DeletableStore, ObjectStore

MAX_LISTED = 1000
READERS = 16


@dataclass
class Leftovers:
    """What `gc` found.

    Attributes:
        named: Objects that a commit names.
        in_flight: Objects whose slot is still free: a batch under way, or a torn one of late.
        orphans: Objects that nobody can name any more, by room.
        removed: How many of those were removed.
        foreign: How many paths are not understood.
        foreign_paths: The first thousand of those.
    """

    named: int = 0
    in_flight: int = 0
    orphans: Counter[str] = field(default_factory=Counter)
    removed: int = 0
    foreign: int = 0
    foreign_paths: list[str] = field(default_factory=list)


def find_leftovers(store: ObjectStore, on_orphan: Callable[[str], None] = lambda _: None) -> Leftovers:
    """Look through all objects of a lake. It may be written to meanwhile.

    Args:
        store: The lake.
        on_orphan: Called with the path of every orphan, as it is found.

    Raises:
        UserError: If a chain or a commit cannot be understood; then nothing is certain.
    """
    found = Leftovers()
    with ThreadPoolExecutor(READERS, "gc") as readers:
        slots = Slots(store, readers)
        for path, name, verdict in judge_objects(slots, store.list("")):
            if verdict is Verdict.NAMED:
                found.named += 1
            elif verdict is Verdict.IN_FLIGHT:
                found.in_flight += 1
            elif verdict is Verdict.ORPHAN and name is not None:
                found.orphans[name.room] += 1
                on_orphan(path)
            else:
                found.foreign += 1
                if len(found.foreign_paths) < MAX_LISTED:
                    found.foreign_paths.append(path)
    return found


def remove_orphans(store: DeletableStore, on_orphan: Callable[[str], None] = lambda _: None) -> Leftovers:
    """Remove what `find_leftovers` calls orphans, and nothing else.

    Args:
        store: The lake.
        on_orphan: Called with the path of every object that was removed.

    Raises:
        UserError: As `find_leftovers`.
    """

    def remove(path: str) -> None:
        store.delete(path)
        on_orphan(path)

    found = find_leftovers(store, remove)
    found.removed = found.orphans.total()
    return found
