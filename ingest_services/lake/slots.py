"""Which slots of which chain are taken, and by whose token: tells what an object belongs to by its name.

An object's name says partition, base and token, and no chain. A re-created topic has the same partitions and
offsets again, so an object is looked for in every chain that has its partition: where it is named, the token
is that of the commit at its base.

What is remembered is twelve bytes a commit.
"""

from __future__ import annotations

import enum
import zlib
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from ingest_services.lake import chain as chains
from ingest_services.lake import layout
from ingest_services.lake.chain import Chain, Commit
from ingest_services.lake.layout import DataPath
from ingest_services.lake.store import ObjectStore

READ_AHEAD = 64

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class Verdict(enum.Enum):
    """What an object is, by its name."""

    NAMED = "named"
    IN_FLIGHT = "in flight"
    ORPHAN = "orphan"
    FOREIGN = "foreign"


@dataclass
class Taken:
    """The slots of one partition of one chain.

    Attributes:
        start: The first slot.
        tail: The slot that is free; below it every slot is taken for ever, or is none.
        end: Where the chain was closed: no commit from here on counts. None while it is open.
    """

    start: int
    tail: int
    end: int | None = None
    _bases: array[int] = field(default_factory=lambda: array("q"))
    _tokens: array[int] = field(default_factory=lambda: array("I"))

    def add(self, commit: Commit) -> None:
        """Remember a commit; they come in the order of their bases."""
        self._bases.append(commit.base)
        self._tokens.append(_digest(commit.token))
        if commit.base == self.tail:
            self.tail = commit.next

    def has(self, base: int, token: str) -> bool:
        """Return whether the commit at a base has a token; one mistake in four thousand million says yes."""
        at = bisect_left(self._bases, base)
        return at < len(self._bases) and self._bases[at] == base and self._tokens[at] == _digest(token)


class Slots:
    """The taken slots of a lake's chains."""

    def __init__(self, store: ObjectStore, readers: Executor) -> None:
        """Begin with nothing known; `readers` read commits in parallel."""
        self._store = store
        self._readers = readers
        self._last_chain = ""
        self._taken: dict[int, dict[int, Taken]] = {}

    def know(self, chain: Chain) -> None:
        """Take note of a chain, whose commits the caller adds."""
        self._last_chain = max(self._last_chain, layout.chain_path(chain.number))
        for partition in chain.partitions:
            start = chain.start[partition]
            self._taken.setdefault(partition, {}).setdefault(chain.number, Taken(start, start))
        for partition, end in chain.predecessor_end.items():
            closed = self._taken.get(partition, {}).get(chain.predecessor or 0)
            if closed is not None:
                closed.end = end

    def of(self, chain: int, partition: int) -> Taken:
        """Return the slots of a chain's partition."""
        return self._taken[partition][chain]

    def refresh(self) -> None:
        """Read the chains that were opened since, with all their commits."""
        for path in list(self._store.list(layout.CHAINS, self._last_chain)):
            chain = chains.read_chain(self._store, path)
            self.know(chain)
            for partition in chain.partitions:
                taken = self.of(chain.number, partition)
                for commit in read_commits(self._store, self._readers, chain.number, partition):
                    taken.add(commit)

    def judge(self, name: DataPath) -> Verdict:
        """Tell what an object is; its path must have been listed before the last `refresh`.

        Whoever writes an object opened its chain before, so a chain that could still name it is known. Below
        a tail every slot is taken for ever: an object with another token than the slot's can never be named.
        Beyond the end of a closed chain a slot does not count for ever.
        """
        known = [taken for taken in self._taken.get(name.partition, {}).values() if name.base >= taken.start]
        if not known:
            return Verdict.FOREIGN
        if any(taken.has(name.base, name.token) for taken in known):
            return Verdict.NAMED
        if any(taken.end is None and name.base >= taken.tail for taken in known):
            return Verdict.IN_FLIGHT
        return Verdict.ORPHAN


def judge_objects(
    slots: Slots, paths: Iterable[str], chunk: int = 1000
) -> Iterator[tuple[str, DataPath | None, Verdict]]:
    """Tell what every object of a lake is: its path, what the path says, and the verdict.

    What the lake keeps beside data objects (chains, commits, claims, `lake.json`) is left out.

    Args:
        slots: The slots that are known; chains that are opened meanwhile are added.
        paths: The paths, as they are listed.
        chunk: How many to judge at a time: for each, new chains are looked for.
    """
    own = (layout.CHAINS, layout.COMMITS, layout.PROGRESS)
    listed = (path for path in paths if path != layout.LAKE_FILE and not path.startswith(own))
    while listing := list(islice(listed, chunk)):
        slots.refresh()
        for path in listing:
            name = layout.read_data_path(path)
            yield path, name, Verdict.FOREIGN if name is None else slots.judge(name)


def read_commits(
    store: ObjectStore, readers: Executor, chain: int, partition: int, start_after: str = ""
) -> Iterator[Commit]:
    """Yield every commit object of a partition in the order of bases, whether they join up or not.

    Raises:
        UserError: If one cannot be understood.
    """
    bases = (
        int(path.rpartition("/")[2].removesuffix(".json"))
        for path in store.list(layout.commits_prefix(chain, partition), start_after)
    )
    return in_order(readers, lambda base: chains.read_commit(store, chain, partition, base), bases)


def in_order(
    executor: Executor, function: Callable[[ItemT], ResultT], items: Iterable[ItemT], ahead: int = READ_AHEAD
) -> Iterator[ResultT]:
    """Yield a function's results in the order of its arguments, computed in parallel some way ahead."""
    running: deque[Future[ResultT]] = deque()
    try:
        for item in items:
            running.append(executor.submit(function, item))
            if len(running) >= ahead:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        for future in running:
            future.cancel()


def _digest(token: str) -> int:
    return zlib.crc32(token.encode())
