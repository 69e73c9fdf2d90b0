"""The commit chain: which offsets are in the lake, in which objects. `docs/commit-chain.md` is the protocol.

A writer creates only the slot at which its chain ends; whoever creates it first owns those offsets. A reader
believes nothing but what a commit names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal

import orjson

from ingest_services.errors import UserError
from ingest_services.lake import layout
from ingest_services.lake.store import ObjectExists, ObjectMissing, ObjectStore

FileKind = Literal["book", "heartbeat", "quarantine"]

# Commits that are read one by one to come to a tail; where there are more, to list them is quicker.
MAX_WALK = 100


@dataclass(frozen=True, slots=True)
class Chain:
    """A run of one topic's log: topic id and generation.

    Attributes:
        number: The chain's number in this lake.
        topic: Kafka topic name.
        topic_id: The topic's id; a re-created topic has another.
        partitions: The partitions that are expected to report.
        start: First offset of each partition in this chain.
        since_ms: When the chain was opened, ms since the epoch.
        predecessor: The chain of the same topic that this one closes.
        predecessor_end: Where the predecessor ends, by partition; nothing more comes on it.
        reason: Why it was opened, for people.

    A chain without partitions is a **retirement**: the topic was given up. It closes its predecessor, and
    nothing is ever committed to it.
    """

    number: int
    topic: str
    topic_id: str
    partitions: tuple[int, ...]
    start: dict[int, int]
    since_ms: int
    predecessor: int | None
    predecessor_end: dict[int, int]
    reason: str

    @property
    def retires(self) -> bool:
        """Whether it is a retirement."""
        return not self.partitions


@dataclass(frozen=True, slots=True)
class CommitFile:
    """An object that a commit names.

    Attributes:
        kind: `book`, `heartbeat` or `quarantine`.
        path: Its path in the lake.
        ticker: Canonical ticker of books; empty for the others.
        minute_ms: Start of the minute that its rows belong to, ms since the epoch.
        rows: Lines.
        bytes: Size of the object as stored.
        crc32c: Of the object as stored, 8 hex digits.
        min_tms: Smallest exchange stamp, ms; None where the kind has none.
        max_tms: Largest exchange stamp, ms.
        min_received_us: First receive time, µs.
        max_received_us: Last receive time, µs.
    """

    kind: FileKind
    path: str
    ticker: str
    minute_ms: int
    rows: int
    bytes: int
    crc32c: str
    min_tms: int | None
    max_tms: int | None
    min_received_us: int
    max_received_us: int


@dataclass(frozen=True, slots=True)
class Commit:
    """Offsets [base, next) of a partition, and the objects that hold them.

    books + heartbeats + quarantined + the missing offsets = next - base.

    A commit without offsets is a **seal**: who closes a chain takes the slot at which it ends, so that nobody
    can commit behind that end.

    Attributes:
        chain: Number of the chain.
        partition: Kafka partition.
        base: First offset.
        next: First offset of the next commit.
        token: Random token of the attempt; tells a lost response from a lost race.
        files: What it names.
        books: Records that are books.
        heartbeats: Records that are heartbeats.
        quarantined: Records that are kept, but not understood.
        missing: Ranges [from, to) of offsets that the broker no longer had or never gave.
        committed_ms: When the writer made it, ms since the epoch.
    """

    chain: int
    partition: int
    base: int
    next: int
    token: str
    files: tuple[CommitFile, ...]
    books: int
    heartbeats: int
    quarantined: int
    missing: tuple[tuple[int, int], ...]
    committed_ms: int

    def __post_init__(self) -> None:
        missing = sum(end - start for start, end in self.missing)
        if self.books + self.heartbeats + self.quarantined + missing != self.next - self.base:
            raise ValueError(f"commit {self.chain}/{self.partition}/{self.base} does not add up: {self}")

    @property
    def seals(self) -> bool:
        """Whether it is a seal."""
        return self.next == self.base


@dataclass(frozen=True, slots=True)
class Progress:
    """What a partition's consumer claims; true for ever, so readers take the largest.

    Attributes:
        chain: Number of the chain.
        partition: Kafka partition.
        next: Committed up to this offset.
        minutes_through_ms: End of the last minute of which everything that the log held is committed, ms.
        at_ms: When it was claimed, ms since the epoch.
        last: Where the newest commit that its writer knew begins; None if it knew of none. It proves nothing:
            `find_tail` looks whether the commit is there.
    """

    chain: int
    partition: int
    next: int
    minutes_through_ms: int
    at_ms: int
    last: int | None = None


class Fenced(Exception):  # noqa: N818 - an answer, not a failure
    """Another writer owns the slot: forget what is buffered and go on at the tail."""


class Sealed(Exception):  # noqa: N818 - an answer, not a failure
    """The slot is taken by a seal: the chain ends there. Forget what is buffered, look for the next one."""


class Retired(UserError):  # noqa: N818 (named after what it says)
    """The topic was given up: nobody writes to the lake from it until it is taken up again."""


def read_chains(store: ObjectStore) -> list[Chain]:
    """Return all chains of the lake, by number."""
    return [read_chain(store, path) for path in store.list(layout.CHAINS)]


def current_chain(chains: list[Chain], topic: str) -> Chain | None:
    """Return the newest chain of a topic: the one that no other closes. It may be a retirement."""
    return max((c for c in chains if c.topic == topic), key=lambda c: c.number, default=None)


def is_closed(store: ObjectStore, chain: int) -> bool:
    """Return whether another chain has closed this one, by as few reads as there are newer chains."""
    number = chain + 1
    while True:
        try:
            later = read_chain(store, layout.chain_path(number))
        except ObjectMissing:
            return False
        if later.predecessor == chain:
            return True
        number += 1


def open_chain(
    store: ObjectStore,
    topic: str,
    topic_id: str,
    log_start: Mapping[int, int],
    log_end: Callable[[], Mapping[int, int]],
    now_ms: int,
    *,
    unretire: bool = False,
) -> Chain:
    """Return the chain that a topic's log, as the broker shows it now, belongs to, or open it.

    A new chain begins when there is none, when the topic was re-created, when its partitions changed, or when
    the log was rolled back: its end is below our tail, so the same offsets would mean other records. Also if
    somebody sealed the chain and went no further. A topic that was retired is taken up again where it ended,
    but only by one who says so; a re-created topic of its name is another topic.

    Args:
        store: The lake.
        topic: Topic name.
        topic_id: The topic's id on the broker.
        log_start: First offset that the broker has, by partition.
        log_end: Asks the broker for the offset after the last one, by partition. It is called after the tails
            were read: an end that is older than a tail proves nothing, for another writer may have committed
            in between. It must fail if the topic has another id or other partitions by then: who slept since
            they were read would close the chain of the topic that was made meanwhile.
        now_ms: ms since the epoch.
        unretire: Whether to take up a topic that was retired.

    Raises:
        Retired: If the topic was given up, and `unretire` is not set.
    """
    while True:
        chains = read_chains(store)
        current = current_chain(chains, topic)
        partitions = tuple(sorted(log_start))
        tails: dict[int, int] = {}
        behind: list[int] = []
        if current is None:
            reason = "first chain of the topic"
        else:
            tails = (
                current.predecessor_end
                if current.retires
                else {p: find_tail(store, current, p) for p in current.partitions}
            )
            ends = log_end()
            behind = [p for p in partitions if ends[p] < tails.get(p, 0)]
            if current.topic_id != topic_id:
                reason = f"topic re-created: id was {current.topic_id}"
            elif current.retires and not unretire:
                raise Retired(
                    f"topic {topic} was retired from {store.url} ({current.reason}); take its sections out "
                    f"of consumer.conf, or take it up again: cryptostream retire {topic} --undo"
                )
            elif current.retires:
                reason = "taken up again"
            elif current.partitions != partitions:
                reason = f"partitions changed from {list(current.partitions)}"
            elif behind:
                p = behind[0]
                reason = f"log rolled back: partition {p} ends at {ends[p]}, we have up to {tails[p]}"
            elif any(_is_sealed(store, current, p, tails[p]) for p in partitions):
                reason = f"chain {current.number} was sealed, and nobody opened the next one"
            else:
                return current
            if not current.retires:
                tails = {p: _seal(store, current, p, tails[p], now_ms) for p in current.partitions}
        same_topic = current is not None and current.topic_id == topic_id
        chain = Chain(
            number=max((c.number for c in chains), default=0) + 1,
            topic=topic,
            topic_id=topic_id,
            partitions=partitions,
            # A log that is still the same goes on where the old chain ends; another log begins anew.
            start={
                p: tails[p] if same_topic and p in tails and p not in behind else log_start[p]
                for p in partitions
            },
            since_ms=now_ms,
            predecessor=current.number if current else None,
            predecessor_end={} if current and current.retires else tails,
            reason=reason,
        )
        try:
            store.create(layout.chain_path(chain.number), _encode(chain))
        except ObjectExists:
            continue  # Another writer saw the same change: look again.
        return chain


def retire(store: ObjectStore, chain: Chain, ends: Mapping[int, int], now_ms: int, reason: str) -> Chain:
    """Close a topic's open chain for good: create a chain that closes it and has no partitions.

    Args:
        store: The lake.
        chain: The topic's newest chain.
        ends: Where it ends by partition, as `find_tail` said before the broker was compared with it.
        now_ms: ms since the epoch.
        reason: Why, for people.

    Returns:
        The retirement.

    Raises:
        UserError: If a partition's tail has moved or the chain was closed since: somebody still writes.
    """
    while True:
        chains = read_chains(store)
        newest = current_chain(chains, chain.topic)
        moved = [p for p in chain.partitions if find_tail(store, chain, p, ends[p]) != ends[p]]
        if newest == chain and not moved:
            # Whoever commits between the look and the seal still writes; the next writer opens a new chain.
            moved = [p for p in chain.partitions if _seal(store, chain, p, ends[p], now_ms) != ends[p]]
        if newest != chain or moved:
            raise UserError(
                f"topic {chain.topic} is still being carried into {store.url} "
                + (f"(partition {moved[0]} has grown)" if moved else f"(chain {chain.number} was closed)")
                + "; stop its producers and consumers first"
            )
        retirement = Chain(
            number=max(c.number for c in chains) + 1,
            topic=chain.topic,
            topic_id=chain.topic_id,
            partitions=(),
            start={},
            since_ms=now_ms,
            predecessor=chain.number,
            predecessor_end=dict(ends),
            reason=reason,
        )
        try:
            store.create(layout.chain_path(retirement.number), _encode(retirement))
        except ObjectExists:
            continue  # A chain of another topic, or of this one: look again.
        return retirement


def find_tail(store: ObjectStore, chain: Chain, partition: int, hint: int | None = None) -> int:
    """Return the offset at which a partition's chain ends: the `next` of its last commit.

    It is looked for from a commit that is known to exist: after a year a partition has half a million of
    them, and whoever takes over would list them all.

    Args:
        store: The lake.
        chain: The chain.
        partition: The partition.
        hint: An offset that may be a boundary, such as Kafka's committed offset. It is used only if a commit
            begins there, and so is what the claim says; if neither helps, the commits are listed.
    """
    known = _last_known(store, chain, partition, hint)
    if known is not None:
        behind = list(islice(commits_from(store, chain.number, partition, known), MAX_WALK + 1))
        if len(behind) <= MAX_WALK:
            return behind[-1].next if behind else known
    last = max(store.list(layout.commits_prefix(chain.number, partition)), default=None)
    base = chain.start[partition] if last is None else int(last.rpartition("/")[2].removesuffix(".json"))
    for commit in commits_from(store, chain.number, partition, base):
        base = commit.next
    return base


def _last_known(store: ObjectStore, chain: Chain, partition: int, hint: int | None) -> int | None:
    """Return where a commit begins, the newer of what the hint and the claim say; None if neither helps."""
    try:
        claim = read_progress(store, chain.number, partition)
    except UserError:
        claim = None  # The next claim replaces it; `audit` names it.
    hints = [base for base in (hint, claim.last if claim else None) if base is not None]
    for base in sorted(hints, reverse=True):
        if base >= chain.start[partition] and _has_commit(store, chain.number, partition, base):
            return base
    return None


def ends_of(chains: Iterable[Chain]) -> dict[int, Mapping[int, int]]:
    """Return where closed chains end: by the number of the closed chain, its partitions' ends."""
    return {c.predecessor: c.predecessor_end for c in chains if c.predecessor is not None}


def commits_from(store: ObjectStore, chain: int, partition: int, base: int) -> Iterator[Commit]:
    """Yield the contiguous commits of a partition that begin at an offset, up to the tail; no seal.

    Args:
        store: The lake.
        chain: Number of the chain.
        partition: The partition.
        base: Where to begin: a chain's `start`, or a known commit's `next`.
    """
    while True:
        try:
            commit = read_commit(store, chain, partition, base)
        except ObjectMissing:
            return
        if commit.seals:
            return
        yield commit
        base = commit.next


def read_commit(store: ObjectStore, chain: int, partition: int, base: int) -> Commit:
    """Read one commit.

    Raises:
        ObjectMissing: If there is none at this offset.
        UserError: If it cannot be understood.
    """
    path = layout.commit_path(chain, partition, base)
    message = _decode(store, path)
    try:
        message["files"] = tuple(CommitFile(**file) for file in message["files"])
        message["missing"] = tuple((int(start), int(end)) for start, end in message["missing"])
        commit = Commit(**message)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{store.url}/{path}: not a commit ({error})") from error
    if (commit.chain, commit.partition, commit.base) != (chain, partition, base) or commit.next < base:
        raise UserError(f"{store.url}/{path}: holds the commit of another place")
    return commit


def write_commit(store: ObjectStore, commit: Commit) -> None:
    """Create a commit, after everything that it names.

    Raises:
        Fenced: If another writer committed at this offset first. Our own commit, found there because the
            answer to an earlier attempt was lost, is a success.
        Sealed: If the chain was closed at this offset.
    """
    try:
        store.create(layout.commit_path(commit.chain, commit.partition, commit.base), _encode(commit))
    except ObjectExists as error:
        found = read_commit(store, commit.chain, commit.partition, commit.base)
        if found.token != commit.token:
            where = f"chain {commit.chain} partition {commit.partition} offset {commit.base}"
            raise (Sealed if found.seals else Fenced)(where) from error


def read_progress(store: ObjectStore, chain: int, partition: int) -> Progress | None:
    """Return a partition's claim, or None if there is none yet."""
    path = layout.progress_path(chain, partition)
    try:
        return Progress(**_decode(store, path))
    except ObjectMissing:
        return None
    except TypeError as error:
        raise UserError(f"{store.url}/{path}: not a progress object ({error})") from error


def write_progress(store: ObjectStore, progress: Progress) -> None:
    """Publish a claim."""
    store.replace(layout.progress_path(progress.chain, progress.partition), _encode(progress))


def _seal(store: ObjectStore, chain: Chain, partition: int, tail: int, now_ms: int) -> int:
    """Take the slot at which a partition ends, so that nothing comes after it, and return where that is."""
    while True:
        seal = Commit(chain.number, partition, tail, tail, "seal", (), 0, 0, 0, (), now_ms)
        try:
            store.create(layout.commit_path(chain.number, partition, tail), _encode(seal))
        except ObjectExists:
            found = read_commit(store, chain.number, partition, tail)
            if not found.seals:
                tail = found.next  # Somebody committed in between: that counts.
                continue
        return tail


def _is_sealed(store: ObjectStore, chain: Chain, partition: int, tail: int) -> bool:
    try:
        return read_commit(store, chain.number, partition, tail).seals
    except ObjectMissing:
        return False


def _has_commit(store: ObjectStore, chain: int, partition: int, base: int) -> bool:
    try:
        store.get(layout.commit_path(chain, partition, base))
    except ObjectMissing:
        return False
    return True


def read_chain(store: ObjectStore, path: str) -> Chain:
    """Read one chain's description.

    Raises:
        ObjectMissing: If there is none at the path.
        UserError: If it cannot be understood.
    """
    message = _decode(store, path)
    try:
        message["partitions"] = tuple(map(int, message["partitions"]))
        for name in ("start", "predecessor_end"):
            message[name] = {int(partition): int(offset) for partition, offset in message[name].items()}
        return Chain(**message)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{store.url}/{path}: not a chain ({error})") from error


def _encode(value: Chain | Commit | Progress) -> bytes:
    return orjson.dumps(asdict(value), option=orjson.OPT_NON_STR_KEYS | orjson.OPT_INDENT_2)


def _decode(store: ObjectStore, path: str) -> dict[str, Any]:
    try:
        message = orjson.loads(store.get(path))
    except orjson.JSONDecodeError as error:
        raise UserError(f"{store.url}/{path}: not JSON ({error})") from error
    if not isinstance(message, dict):
        raise UserError(f"{store.url}/{path}: not a JSON object")
    return message
