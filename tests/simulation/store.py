"""A store in memory, strongly consistent, and a client of it that meets every fault of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ingest_services.lake.store import ObjectExists, ObjectMissing
from tests.simulation.scheduler import Process, Scheduler


@dataclass
class MemoryStore:
    """The objects; whoever watches is told of every effect, at the moment it becomes visible."""

    url: str = "memory:"
    objects: dict[str, bytes] = field(default_factory=dict)
    watch: Callable[[str, bytes], None] = lambda path, data: None

    def create(self, path: str, data: bytes) -> None:
        if path in self.objects:
            raise ObjectExists(path)
        self.put(path, data)

    def get(self, path: str) -> bytes:
        try:
            return self.objects[path]
        except KeyError:
            raise ObjectMissing(path) from None

    def list(self, prefix: str, start_after: str = "") -> Iterator[str]:
        return iter(sorted(p for p in self.objects if p.startswith(prefix) and p > start_after))

    def replace(self, path: str, data: bytes) -> None:
        self.put(path, data)

    def put(self, path: str, data: bytes) -> None:
        self.watch(path, data)
        self.objects[path] = data


@dataclass
class Faults:
    """How often the store fails one request.

    Attributes:
        refused: 429, 500 or a reset before anything happened.
        lost: It happened, and the answer was lost.
        delayed: Nobody answers in time, and it happens later.
    """

    refused: float = 0.0
    lost: float = 0.0
    delayed: float = 0.0


class Client:
    """One process's way to the store."""

    url = "memory:"

    def __init__(self, scheduler: Scheduler, process: Process, store: MemoryStore, faults: Faults) -> None:
        self._scheduler = scheduler
        self._process = process
        self._store = store
        self._faults = faults

    def create(self, path: str, data: bytes) -> None:
        self._call(f"create {path}", lambda: self._store.create(path, data), delayable=True)

    def get(self, path: str) -> bytes:
        return self._call(f"get {path}", lambda: self._store.get(path))

    def list(self, prefix: str, start_after: str = "") -> Iterator[str]:
        return self._call(f"list {prefix}", lambda: self._store.list(prefix, start_after))

    def replace(self, path: str, data: bytes) -> None:
        self._call(f"replace {path}", lambda: self._store.replace(path, data), delayable=True)

    def _call(self, what: str, effect: Callable[[], Any], *, delayable: bool = False) -> Any:
        scheduler, process, faults = self._scheduler, self._process, self._faults
        scheduler.io(process, f"before {what}", weight=4)
        luck = scheduler.dice.random()
        if luck < faults.refused:
            scheduler.note(process.name, f"refused: {what}")
            raise OSError(scheduler.dice.choice(("429", "500", "connection reset")))
        luck -= faults.refused
        if delayable and luck < faults.delayed:
            scheduler.note(process.name, f"delayed: {what}")
            scheduler.after(scheduler.dice.random() * 30_000, lambda: self._happen_late(what, effect))
            raise OSError("timed out")
        luck -= faults.delayed
        try:
            answer = effect()
            said = ""
        except (ObjectExists, ObjectMissing) as error:
            answer = error
            said = f" -> {type(error).__name__}"
        scheduler.note(process.name, what + said)
        if luck < faults.lost:
            scheduler.note(process.name, f"answer lost: {what}")
            raise OSError("connection reset")
        scheduler.io(process, f"after {what}", weight=4)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _happen_late(self, what: str, effect: Callable[[], Any]) -> None:
        try:
            effect()
        except (ObjectExists, ObjectMissing):
            return
        self._scheduler.note("store", f"late: {what}")
