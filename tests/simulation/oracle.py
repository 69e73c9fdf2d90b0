"""Knows every record that was ever acknowledged, and judges every object at the moment it becomes visible.

It reads commits and objects as a stranger would. Only completeness is judged with the reader's own functions,
because it is their word that Dagster acts on.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from zoneinfo import ZoneInfo

import orjson
import zstandard
from crc32c import crc32c

from ingest_services.lake import chain as chains
from ingest_services.lake import lines
from ingest_services.lake.store import ObjectStore
from tests.simulation.broker import Broker, Sent
from tests.simulation.scheduler import Violation
from tests.simulation.store import MemoryStore

SEOUL = ZoneInfo("Asia/Seoul")
MINUTE_MS = 60_000


@cache
def folder_of(minute_ms: int) -> str:
    return datetime.fromtimestamp(minute_ms / 1000, SEOUL).strftime(
        "year=%Y/month=%m/day=%d/hour=%H/minute=%M"
    )


def check(truth: object, message: str) -> None:
    if not truth:
        raise Violation(message)


@dataclass
class Place:
    """Where a record is named: the chain, and the partition's commit."""

    chain: int
    partition: int
    base: int


@dataclass
class ChainView:
    """A chain as its object says, and what was committed to it."""

    number: int
    topic_id: str
    start: dict[int, int]
    tails: dict[int, int] = field(default_factory=dict)
    closed: bool = False
    sealed: set[int] = field(default_factory=set)


class Oracle:
    """Judges one world."""

    def __init__(self, broker: Broker, store: MemoryStore, grace_ms: float) -> None:
        """Watch a world.

        Args:
            broker: What was acknowledged.
            store: What is in the lake.
            grace_ms: After a minute's end so much later, true time, no claim of it may have been made.
        """
        self.broker = broker
        self.store = store
        self.grace_ms = grace_ms
        self.chains: dict[int, ChainView] = {}
        self.named: dict[Sent, Place] = {}
        self.waiting: dict[Sent, None] = {}
        self.claims: dict[tuple[int, int], int] = {}
        self.through_ms = 0
        self.commits = 0
        self.gone: list[Sent] = []
        store.watch = self.see

    def appended(self, batch: Iterable[Sent]) -> None:
        """Take note of records that the broker acknowledged."""
        for sent in batch:
            self.waiting[sent] = None

    def lost(self, records: Iterable[Sent]) -> None:
        """Take note of records that the broker has no more."""
        for sent in records:
            if sent in self.waiting:
                del self.waiting[sent]
                self.gone.append(sent)

    def see(self, path: str, data: bytes) -> None:
        """Judge an object that becomes visible now."""
        if path in self.store.objects and not path.startswith("_progress/"):
            check(self.store.objects[path] == data, f"{path} was overwritten")
        room = path.partition("/")[0]
        if room == "_chains":
            self._see_chain(json.loads(data))
        elif room == "_commits":
            self._see_commit(path, json.loads(data))
        elif room == "_progress":
            self._see_claim(path, json.loads(data), data)

    # --- chains

    def _see_chain(self, message: dict) -> None:
        number, topic_id = message["number"], message["topic_id"]
        topic = self.broker.topics[topic_id]
        start = {int(p): offset for p, offset in message["start"].items()}
        check(number == len(self.chains) + 1, f"chain {number} follows {len(self.chains)}")
        check(sorted(start) == message["partitions"], f"chain {number} has starts of other partitions")
        previous = self.chains.get(number - 1)
        check(message["predecessor"] == (previous.number if previous else None), "the wrong predecessor")
        if previous is not None:
            order = list(self.broker.topics)
            check(
                order.index(topic_id) >= order.index(previous.topic_id),
                f"chain {number} goes back to the topic before the one of chain {previous.number}",
            )
            for p, end in message["predecessor_end"].items():
                tail = previous.tails[int(p)]
                check(
                    end == tail,
                    f"chain {number} ends partition {p} of chain {previous.number} at {end}; readers saw "
                    f"commits up to {tail}",
                )
            check(len(message["predecessor_end"]) == len(previous.start), "a partition is not closed")
            previous.closed = True
        for p, offset in start.items():
            if previous is not None and previous.topic_id == topic_id and p in previous.start:
                check(
                    topic.partitions[p].rolled_back or offset == previous.tails[p],
                    f"chain {number} begins partition {p} at {offset}, not at the tail {previous.tails[p]}",
                )
            skipped = [s.offset for s in topic.partitions[p].live.values() if s.offset < offset]
            unnamed = [o for o in skipped if topic.partitions[p].live[o] in self.waiting]
            check(
                not [o for o in unnamed if not topic.partitions[p].live[o].shadowed],
                f"chain {number} skips {unnamed} of partition {p}",
            )
        if "rolled back" in message["reason"]:
            again = [p for p in start if p in previous.tails and start[p] < previous.tails[p]]
            check(again, f"chain {number} reads no partition again: {message['reason']}")
        self.chains[number] = ChainView(number, topic_id, start, dict(start))

    # --- commits

    def _see_commit(self, path: str, message: dict) -> None:
        number, partition, base, next_ = (message[k] for k in ("chain", "partition", "base", "next"))
        check(path == f"_commits/{number:08d}/{partition:04d}/{base:020d}.json", f"{path} is misplaced")
        chain = self.chains[number]
        if chain.closed:
            return  # The reader's rule: it does not count.
        where = f"commit {number}/{partition}/{base}"
        check(partition not in chain.sealed, f"{where} comes after the chain was sealed")
        check(chain.tails[partition] == base, f"{where} does not begin at the tail {chain.tails[partition]}")
        if next_ == base:
            chain.sealed.add(partition)
            return
        check(next_ > base, f"{where} ends at {next_}")
        log = self.broker.topics[chain.topic_id].partitions[partition]
        offsets: list[int] = []
        for file in message["files"]:
            offsets += self._see_file(Place(number, partition, base), file)
        missing = [o for start, end in message["missing"] for o in range(start, end)]
        check(sorted([*offsets, *missing]) == list(range(base, next_)), f"{where} does not add up")
        held = [o for o in missing if o in log.live and not log.live[o].shadowed]
        check(not held, f"{where} calls {held} missing, and the log has them")
        chain.tails[partition] = next_
        self.commits += 1

    def _see_file(self, place: Place, file: dict) -> list[int]:
        path = file["path"]
        data = self.store.objects.get(path)
        check(data is not None, f"a commit names {path}, which does not exist")
        check(len(data) == file["bytes"] and f"{crc32c(data):08x}" == file["crc32c"], f"{path}: other bytes")
        content = zstandard.decompress(data) if path.endswith(".zst") else data
        found = content.split(b"\n")
        check(found.pop() == b"" and len(found) == file["rows"], f"{path}: other rows")
        return [self._see_line(place, file, line) for line in found]

    def _see_line(self, place: Place, file: dict, line: bytes) -> int:
        message = orjson.loads(line)
        offset = message["offset"]
        topic = self.broker.topics[self.chains[place.chain].topic_id]
        where = f"partition {place.partition} offset {offset}"
        # Of a log that was rolled back, any of the records that were acknowledged at that offset will do.
        sent = next(
            (s for s in reversed(topic.partitions[place.partition].ever[offset]) if is_line_of(s, line)), None
        )
        check(sent is not None, f"{where}: no record of {topic.id} has these bytes: {line!r}")
        before = self.named.get(sent)
        again = topic.partitions[place.partition].rolled_back and before and before.chain < place.chain
        check(before is None or again, f"{where} is named twice: by {before} and {place}")
        check(file["path"].startswith(path_of(sent)), f"{where} is in {file['path']}, not {path_of(sent)}")
        expected = (sent.kind, sent.ticker, sent.minute_ms)
        check((file["kind"], file["ticker"], file["minute_ms"]) == expected, f"{where}: the commit lies")
        self.named[sent] = place
        self.waiting.pop(sent, None)
        return offset

    # --- claims

    def _see_claim(self, path: str, message: dict, data: bytes) -> None:
        number, partition, through_ms = (message[k] for k in ("chain", "partition", "minutes_through_ms"))
        check(path == f"_progress/{number:08d}/{partition:04d}.json", f"{path} is misplaced")
        chain = self.chains[number]
        if not chain.closed:
            where = f"claim of {number}/{partition} through {folder_of(through_ms)}"
            check(message["next"] <= chain.tails[partition], f"{where}: next {message['next']} is not there")
            self._check_through(where, through_ms, chain.topic_id, partition)
        self.store.objects[path] = data
        self.check_complete()

    def _check_through(self, where: str, through_ms: int, topic_id: str, partition: int | None) -> None:
        """Check that what belongs to a minute that is claimed, and was there, is committed."""
        until = through_ms + self.grace_ms
        left = [
            sent.offset
            for sent in self.waiting
            if sent.topic_id == topic_id
            and partition in (None, sent.partition)
            and sent.minute_ms < through_ms
            and sent.appended_ms < until
            and not sent.shadowed
        ]
        check(not left, f"{where}: not committed are {left}")

    def check_complete(self) -> None:
        """Judge what a reader takes for complete now, by the reader's functions and `docs/windows.md`."""
        everything = chains.read_chains(self.store)
        closed = {chain.predecessor for chain in everything}
        throughs = []
        for chain in everything:
            if chain.number in closed:
                continue
            for partition in chain.partitions:
                claim = chains.read_progress(self.store, chain.number, partition)
                key = chain.number, partition
                self.claims[key] = max(self.claims.get(key, 0), claim.minutes_through_ms if claim else 0)
                throughs.append(self.claims[key])
        through_ms = min(throughs, default=0)
        if through_ms and self.broker.topic is not None and through_ms != self.through_ms:
            where = f"complete through {folder_of(through_ms)}"
            self._check_through(where, through_ms, self.broker.topic.id, None)
        self.through_ms = through_ms

    # --- a reader

    def check_reader(self, store: ObjectStore) -> None:
        """Read as the catalog's sync does, while others write: chains, claims, then commits.

        What it takes for complete must be in the commits that it finds.
        """
        everything = chains.read_chains(store)
        ends = chains.ends_of(everything)
        slots = [(chain, partition) for chain in everything for partition in chain.partitions]
        claims, commits = read_in_order(store, slots)
        through_ms = min((claims[c.number, p] for c, p in slots if c.number not in ends), default=0)
        found = {
            (c.number, p, base)
            for c, p in slots
            for base in commits[c.number, p]
            if base < ends.get(c.number, {}).get(p, base + 1)
        }
        unseen = [
            (sent.topic_id, sent.partition, sent.offset)
            for sent, place in self.named.items()
            if sent.minute_ms < through_ms
            and sent.appended_ms < through_ms + self.grace_ms
            and (place.chain, place.partition, place.base) not in found
            and not self.broker.topics[sent.topic_id].partitions[sent.partition].rolled_back
        ]
        check(not unseen, f"a reader takes {folder_of(through_ms)} for complete and does not find {unseen}")

    # --- the end

    def check_end(self) -> None:
        """Judge the lake once a healthy writer had time enough."""
        left = [sent for sent in self.waiting if not self._overtaken(sent)]
        check(not left, f"never committed: {[(s.topic_id, s.partition, s.offset) for s in left]}")
        for chain in self.chains.values():
            for partition, start in chain.start.items():
                tail = start
                for commit in chains.commits_from(self.store, chain.number, partition, start):
                    tail = commit.next
                check(
                    tail == chain.tails[partition] or chain.closed,
                    f"the reader finds {chain.number}/{partition} up to {tail}, not {chain.tails[partition]}",
                )
                found = chains.find_tail(
                    self.store, chains.read_chains(self.store)[chain.number - 1], partition
                )
                check(found == tail, f"find_tail says {found}, the chain ends at {tail}")

        self._check_reader()

    def forgotten(self) -> list[int]:
        """Return the offsets that somebody had read when the log lost them, and that were never committed."""
        return [sent.offset for sent in self.gone if sent.delivered and sent not in self.named]

    def _check_reader(self) -> None:
        """Read the lake as `lake`'s readers do: every record that was ever committed, once for each chain."""
        found = Counter(line for path in read_paths(self.store) for line in read_lines(self.store, path))
        twice = [line for line, count in found.items() if count > 1 and not self._any_roll_back()]
        check(not twice, f"a reader finds twice: {twice[:1]}")
        lost = [s.offset for s in self.named if s.kind != "quarantine" and line_of(s) not in found]
        check(not lost, f"a reader does not find {lost}")

    def _any_roll_back(self) -> bool:
        return any(log.rolled_back for topic in self.broker.topics.values() for log in topic.partitions)

    def _overtaken(self, sent: Sent) -> bool:
        """Whether a log that was rolled back had grown past the reader before anybody could see it."""
        p = sent.partition
        return sent.shadowed and any(
            chain.topic_id == sent.topic_id and chain.start.get(p, 0) <= sent.offset < chain.tails.get(p, 0)
            for chain in self.chains.values()
        )


def read_in_order(
    store: ObjectStore, slots: list[tuple[chains.Chain, int]]
) -> tuple[dict[tuple[int, int], int], dict[tuple[int, int], list[int]]]:
    """Return every partition's claim and the bases of its commits, read in this order."""
    claims, commits = {}, {}
    for chain, p in slots:
        claim = chains.read_progress(store, chain.number, p)
        claims[chain.number, p] = claim.minutes_through_ms if claim else 0
        commits[chain.number, p] = [
            commit.base for commit in chains.commits_from(store, chain.number, p, chain.start[p])
        ]
    return claims, commits


def read_paths(store: MemoryStore) -> Iterator[str]:
    """Yield the objects that a reader believes in: what counted commits name (`docs/commit-chain.md`)."""
    everything = chains.read_chains(store)
    ends = chains.ends_of(everything)
    for chain in everything:
        for partition, start in chain.start.items():
            end = ends.get(chain.number, {}).get(partition)
            for commit in chains.commits_from(store, chain.number, partition, start):
                if end is None or commit.base < end:
                    yield from (file.path for file in commit.files)


def read_lines(store: MemoryStore, path: str) -> list[bytes]:
    """Return an object's lines."""
    return lines.decompress(path, store.get(path)).splitlines()


def is_line_of(sent: Sent, line: bytes) -> bool:
    """Whether a line holds a record's bytes, under the right head."""
    if sent.kind != "quarantine":
        return line == line_of(sent)
    if not line.startswith(line_of(sent) + b'"reason":'):
        return False
    message = json.loads(line)
    return all(
        (None if got is None else base64.b64decode(got)) == want
        for got, want in ((message["key"], sent.key), (message["value"], sent.value))
    )


def line_of(sent: Sent) -> bytes:
    """Return the line that must hold a record; of one in quarantine, how it begins."""
    headers = dict(sent.headers)
    head = b'{"partition":%d,"offset":%d,"received_us":%s,"connection":"%s",' % (
        sent.partition,
        sent.offset,
        headers["received_us"],
        headers["connection"],
    )
    return head if sent.kind == "quarantine" else head + sent.tail


def path_of(sent: Sent) -> str:
    """What the path of an object with this record begins with."""
    room = {"book": f"ticker={sent.ticker}", "heartbeat": "coverage", "quarantine": "quarantine"}[sent.kind]
    return f"{room}/{folder_of(sent.minute_ms)}/"
