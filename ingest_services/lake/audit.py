"""Walks everything that a lake says and compares it with what it holds: `docs/tools.md` has the list.

Belongs here: the lake's own contract (`docs/commit-chain.md`), checked from the objects alone. Does not
belong here: asking the broker (`tools/`); what it answered is compared here.
"""

from __future__ import annotations

import time
from array import array
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from zoneinfo import ZoneInfo

import zstandard
from crc32c import crc32c

from ingest_services.errors import UserError
from ingest_services.lake import chain as chains
from ingest_services.lake import layout, lines
from ingest_services.lake.carried import STALE_MS, behind_ms
from ingest_services.lake.chain import Chain, Commit, CommitFile, Progress
from ingest_services.lake.layout import MINUTE_MS, LakeIdentity
from ingest_services.lake.slots import Slots, Taken, Verdict, in_order, judge_objects
from ingest_services.lake.store import ObjectMissing, ObjectStore
from ingest_services.record import Heartbeat
from ingest_services.upbit.frames import SNAPSHOT, Book, read_frame

READERS = 16
# What a report lists of a kind; the rest is counted.
MAX_LISTED = 1000
# Objects that are being read or waiting to be; bounds memory together with their size.
MAX_WAITING = 512

_ROOMS = {"book": "book", "heartbeat": "coverage", "quarantine": "quarantine"}


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must not be.

    Attributes:
        what: What is wrong.
        where: The object, or the chain and partition.
        do: What a person can do.
    """

    what: str
    where: str
    do: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.do}"


@dataclass
class PartitionAudit:
    """What was found of one partition of one chain.

    Attributes:
        chain: Number of the chain.
        topic: Its topic.
        partition: The partition.
        start: First offset that was looked at.
        tail: Where the chain ends.
        end: Where it was closed; None if it is open.
        commits: Commits that count.
        void: Commits beyond a closed chain's end: they do not count, nor does what they name.
        objects: Objects that commits name.
        bytes: Their size.
        rows: Their lines, by kind.
        missing: Offsets that commits declare missing.
        minutes_through_ms: The claim; None if there is none.
        claimed_ms: When it was made.
        log_start: The first offset that the broker has; None if it was not asked, or the chain is closed.
        log_end: The offset after its last one.
    """

    chain: int
    topic: str
    partition: int
    start: int
    tail: int
    end: int | None = None
    commits: int = 0
    void: int = 0
    objects: int = 0
    bytes: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    missing: int = 0
    minutes_through_ms: int | None = None
    claimed_ms: int | None = None
    log_start: int | None = None
    log_end: int | None = None


@dataclass(frozen=True, slots=True)
class BrokerLog:
    """A topic as the broker shows it now; both bounds by partition."""

    topic_id: str
    start: Mapping[int, int]
    end: Mapping[int, int]


@dataclass
class Report:
    """What an audit found.

    Attributes:
        lake: The lake's identity.
        partitions: By chain and partition.
        gaps: The first thousand ranges that commits declare missing: chain, partition, from, to.
        orphans: Objects that no commit can name any more, by room. They do no harm.
        in_flight: Objects whose slot is still free.
        foreign: How many paths are not understood.
        foreign_paths: The first thousand of those.
        orphans_counted: Whether orphans were looked for.
        violations: The first thousand.
        violation_count: How many there are.
    """

    lake: LakeIdentity
    partitions: list[PartitionAudit] = field(default_factory=list)
    gaps: list[tuple[int, int, int, int]] = field(default_factory=list)
    orphans: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0
    foreign: int = 0
    foreign_paths: list[str] = field(default_factory=list)
    orphans_counted: bool = False
    violations: list[Violation] = field(default_factory=list)
    violation_count: int = 0

    def violate(self, what: str, where: str, do: str) -> None:
        """Note a violation."""
        self.violation_count += 1
        if len(self.violations) < MAX_LISTED:
            self.violations.append(Violation(what, where, do))


@dataclass(frozen=True, slots=True)
class Scope:
    """What to look at.

    Attributes:
        since_ms: Only commits made from then on, ms since the epoch; orphans from that minute on, of tickers
            that those commits name. None: everything.
        chain: Only this chain, and no orphans: their names do not say which chain they are of.
        deep: Read every line, rather than the first and the last of each object.
    """

    since_ms: int | None = None
    chain: int | None = None
    deep: bool = False


AskBroker = Callable[[Sequence[str]], Mapping[str, BrokerLog | None]]


def audit(store: ObjectStore, scope: Scope, ask_broker: AskBroker | None = None) -> Report:
    """Check a lake. It may be written to meanwhile: what is newer than the audit's own look is left alone.

    Memory is bounded: twelve bytes a commit, a few hundred results, and one object for each reader.

    Args:
        store: The lake.
        scope: What to look at.
        ask_broker: Asks the broker for some topics' logs, None for one that it does not have. It is called
            after the lake was read: an end that is older than a tail proves nothing. None: it is not asked.

    Raises:
        UserError: If there is no lake, or no such chain.
    """
    lake = layout.read_lake(store)
    if lake is None:
        raise UserError(f"{store.url}: there is no lake here (no {layout.LAKE_FILE}); is RAW_URL right?")
    report = Report(lake)
    known = _read_chains(store, report)
    if scope.chain is not None and scope.chain not in {chain.number for chain in known}:
        raise UserError(f"{store.url}: there is no chain {scope.chain}; there are {len(known)}")
    with ThreadPoolExecutor(READERS, "audit") as readers:
        _Audit(store, scope, report, known, readers).run()
    if ask_broker is not None:
        _compare_broker(store, report, known, ask_broker(sorted({chain.topic for chain in known})))
    return report


class _Audit:
    def __init__(
        self,
        store: ObjectStore,
        scope: Scope,
        report: Report,
        known: Sequence[Chain],
        readers: ThreadPoolExecutor,
    ) -> None:
        self._store = store
        self._scope = scope
        self._report = report
        self._known = known
        self._readers = readers
        self._slots = Slots(store, readers)
        self._zone = ZoneInfo(report.lake.time_zone)
        self._tickers: set[str] = set()

    def run(self) -> None:
        for chain in self._known:
            self._slots.know(chain)
        retired = {c.predecessor for c in self._known if c.retires}
        for chain in self._known:
            if self._scope.chain in (None, chain.number):
                found = [self._walk(chain, p, chain.number in retired) for p in chain.partitions]
                self._report.partitions += found
                if chain.partitions and all(p.end is None for p in found):
                    self._require_carried(chain)
        if self._scope.chain is not None:
            return
        try:
            self._count_objects()
        except UserError as error:
            self._report.violate(
                f"objects that nobody names were not counted ({error})", self._store.url, "mend that first"
            )

    def _walk(self, chain: Chain, partition: int, retired: bool) -> PartitionAudit:
        where = f"chain {chain.number} partition {partition}"
        taken = self._slots.of(chain.number, partition)
        found = PartitionAudit(
            chain.number, chain.topic, partition, chain.start[partition], taken.tail, taken.end
        )
        # The claim first: what it speaks of was committed before it was made.
        claim = self._read_claim(found)
        bases, first = self._bases(chain, partition, taken)
        found.start = taken.start
        waiting: deque[tuple[Commit, list[Future[_Checked]]]] = deque()
        outstanding = 0
        expected: int | None = taken.start

        def read(at: int) -> Commit | None:
            return self._read(chain.number, partition, bases[at])

        numbers = range(first, len(bases))
        for at, commit in zip(numbers, in_order(self._readers, read, numbers), strict=True):
            base = bases[at]
            if expected is None:  # the one before it cannot be read
                expected = base
            if base != expected:
                what = "overlaps the one before it" if base < expected else "leaves a hole before it"
                self._report.violate(
                    f"the slot {what}: the chain goes on at {expected}, the commit begins at {base}",
                    layout.commit_path(chain.number, partition, base),
                    "restore the commit that is missing; readers stop at the hole",
                )
            if commit is None:
                expected = None
                continue
            taken.add(commit)
            expected = commit.next
            if commit.seals:
                continue
            if taken.end is not None and base >= taken.end:
                found.void += 1
                continue
            self._count(found, commit)
            waiting.append((commit, [self._check(commit, file) for file in commit.files]))
            outstanding += len(commit.files)
            while outstanding > MAX_WAITING:
                outstanding -= self._settle(*waiting.popleft())
        for commit, checks in waiting:
            self._settle(commit, checks)
        found.tail = taken.tail
        self._check_end(found, where, claim.next if claim else 0, retired)
        return found

    def _bases(self, chain: Chain, partition: int, taken: Taken) -> tuple[array[int], int]:
        """Return the bases of all commits, and the number of the first that is in scope; begin there."""
        prefix = layout.commits_prefix(chain.number, partition)
        bases = array("q")
        for path in self._store.list(prefix):
            name = path.removeprefix(prefix).removesuffix(".json")
            if path == f"{prefix}{name}.json" and len(name) == 20 and name.isdigit():
                bases.append(int(name))
            else:
                self._report.violate("not a commit's name", path, "find out who wrote it, and move it away")
        first = 0
        if self._scope.since_ms is not None:
            since_ms = self._scope.since_ms
            first = bisect_left(
                range(len(bases)),
                True,
                key=lambda at: self._committed_ms(chain.number, partition, bases[at]) >= since_ms,
            )
            if first:
                # The one before the first says where this one has to begin.
                before = self._read(chain.number, partition, bases[first - 1])
                taken.start = taken.tail = before.next if before else bases[min(first, len(bases) - 1)]

        return bases, first

    def _read(self, chain: int, partition: int, base: int) -> Commit | None:
        try:
            return chains.read_commit(self._store, chain, partition, base)
        except (UserError, ObjectMissing) as error:
            self._report.violate(
                f"cannot be understood ({error})",
                layout.commit_path(chain, partition, base),
                "restore it; readers stop here",
            )
            return None

    def _committed_ms(self, chain: int, partition: int, base: int) -> int:
        try:
            return chains.read_commit(self._store, chain, partition, base).committed_ms
        except (UserError, ObjectMissing):
            return 0  # reported when it is walked

    def _count(self, found: PartitionAudit, commit: Commit) -> None:
        found.commits += 1
        found.objects += len(commit.files)
        for file in commit.files:
            found.bytes += file.bytes
            found.rows[file.kind] += file.rows
            if self._scope.since_ms is not None and file.kind == "book":
                self._tickers.add(file.ticker)
        for start, end in commit.missing:
            found.missing += end - start
            if len(self._report.gaps) < MAX_LISTED:
                self._report.gaps.append((found.chain, found.partition, start, end))
        counts = {"book": commit.books, "heartbeat": commit.heartbeats, "quarantine": commit.quarantined}
        for kind, count in counts.items():
            rows = sum(file.rows for file in commit.files if file.kind == kind)
            if rows != count:
                self._report.violate(
                    f"says {count} records of kind {kind}, its objects have {rows}",
                    layout.commit_path(commit.chain, commit.partition, commit.base),
                    "the commit was changed or its writer is faulty: report it",
                )

    def _check(self, commit: Commit, file: CommitFile) -> Future[_Checked]:
        return self._readers.submit(_check_object, self._store, commit, file, self._zone, self._scope.deep)

    def _settle(self, commit: Commit, checks: list[Future[_Checked]]) -> int:
        offsets: Counter[int] = Counter()
        whole = True
        for check in checks:
            done = check.result()
            for violation in done.violations:
                self._report.violate(violation.what, violation.where, violation.do)
            offsets.update(done.offsets)
            whole = whole and done.read
        if self._scope.deep and whole:
            self._require_each_once(commit, offsets)
        return len(checks)

    def _require_each_once(self, commit: Commit, offsets: Counter[int]) -> None:
        where = layout.commit_path(commit.chain, commit.partition, commit.base)
        do = "the objects or the commit were changed, or the writer is faulty: report it"
        starts = [start for start, _ in commit.missing]
        for offset, times in offsets.items():
            if times > 1:
                self._report.violate(f"holds offset {offset} {times} times", where, do)
            at = bisect_right(starts, offset) - 1
            if at >= 0 and offset < commit.missing[at][1]:
                self._report.violate(f"calls offset {offset} missing, and holds it", where, do)
        gone = commit.next - commit.base - sum(end - start for start, end in commit.missing) - len(offsets)
        if gone > 0:
            self._report.violate(f"{gone} of its offsets are in none of its objects", where, do)

    def _read_claim(self, found: PartitionAudit) -> Progress | None:
        where = layout.progress_path(found.chain, found.partition)
        try:
            claim = chains.read_progress(self._store, found.chain, found.partition)
        except UserError as error:
            self._report.violate(
                f"the claim cannot be understood ({error})", where, "remove it: the next claim replaces it"
            )
            return None
        if claim is None:
            return None
        if (claim.chain, claim.partition) != (found.chain, found.partition):
            self._report.violate("holds the claim of another place", where, "remove it")
        found.minutes_through_ms, found.claimed_ms = claim.minutes_through_ms, claim.at_ms
        return claim

    def _check_end(self, found: PartitionAudit, where: str, claimed: int, retired: bool) -> None:
        if claimed > found.tail:
            self._report.violate(
                f"the claim speaks of offsets up to {claimed}, the chain ends at {found.tail}",
                layout.progress_path(found.chain, found.partition),
                "commits were lost: restore them; windows were called complete without them",
            )
        if found.end is not None and found.tail < found.end:
            self._report.violate(
                f"the closed chain ends at {found.tail}, its successor says {found.end}",
                where,
                "commits were lost: restore them",
            )
        if retired and found.void:
            self._report.violate(
                f"{found.void} commits were made after the topic was retired; they do not count",
                where,
                f"take it up again, and they are read again: cryptostream retire {found.topic} --undo",
            )

    def _require_carried(self, chain: Chain) -> None:
        # All claims anew, at once: the walk takes its time, and they are compared with one another.
        for partition, behind in _stale(self._store, chain).items():
            self._report.violate(
                f"its last claim is {behind // MINUTE_MS} minutes behind the partitions beside it",
                f"chain {chain.number} partition {partition}",
                f"start the consumer section of topic {chain.topic} partition {partition}",
            )

    def _count_objects(self) -> None:
        report = self._report
        report.orphans_counted = True
        for path, name, verdict in judge_objects(self._slots, self._paths()):
            if verdict is Verdict.ORPHAN and name is not None:
                report.orphans[name.room] += 1
            elif verdict is Verdict.IN_FLIGHT:
                report.in_flight += 1
            elif verdict is Verdict.FOREIGN and self._scope.since_ms is None:
                report.foreign += 1
                if len(report.foreign_paths) < MAX_LISTED:
                    report.foreign_paths.append(path)
        if self._scope.since_ms is None:
            self._require_known_commits()

    def _paths(self) -> Iterator[str]:
        if self._scope.since_ms is None:
            yield from self._store.list("")
            return
        folder = layout.minute_folder(self._scope.since_ms, self._zone)
        for room in ["coverage", "quarantine", *(f"ticker={ticker}" for ticker in sorted(self._tickers))]:
            yield from self._store.list(f"{room}/", f"{room}/{folder}")

    def _require_known_commits(self) -> None:
        folders = {
            layout.commits_prefix(chain.number, partition)
            for chain in chains.read_chains(self._store)
            for partition in chain.partitions
        }
        strange: Counter[str] = Counter(
            folder
            for path in self._store.list(layout.COMMITS)
            if (folder := path[: path.rindex("/") + 1]) not in folders
        )
        for folder, count in strange.items():
            self._report.violate(
                f"{count} commits of a chain or partition that is not there",
                folder,
                "restore the chain's description in _chains/",
            )


@dataclass(frozen=True, slots=True)
class _Checked:
    """What was found of one object; its offsets only if every line was read."""

    violations: tuple[Violation, ...] = ()
    offsets: tuple[int, ...] = ()
    read: bool = True


def _check_object(
    store: ObjectStore, commit: Commit, file: CommitFile, zone: ZoneInfo, deep: bool
) -> _Checked:
    damaged = "restore it from a copy; its windows cannot be built from it"
    found = [Violation(what, file.path, _FAULTY) for what in _faults_of_name(commit, file, zone)]
    try:
        data = store.get(file.path)
    except ObjectMissing:
        named = layout.commit_path(commit.chain, commit.partition, commit.base)
        return _Checked((*found, Violation(f"is gone, and {named} names it", file.path, damaged)), read=False)
    if len(data) != file.bytes:
        found.append(Violation(f"has {len(data)} bytes, its commit says {file.bytes}", file.path, damaged))
    elif (digest := f"{crc32c(data):08x}") != file.crc32c:
        found.append(
            Violation(f"has the checksum {digest}, its commit says {file.crc32c}", file.path, damaged)
        )
    try:
        content = lines.decompress(file.path, data)
    except zstandard.ZstdError as error:
        return _Checked((*found, Violation(f"cannot be unpacked ({error})", file.path, damaged)), read=False)
    rows = content.count(b"\n")
    if rows != file.rows or not content.endswith(b"\n"):
        found.append(Violation(f"has {rows} whole lines, its commit says {file.rows}", file.path, damaged))
    offsets: list[int] = []
    faults: Counter[str] = Counter()
    for line in _sample(content, deep):
        try:
            read = lines.read_line(line)
        except ValueError as error:
            faults[str(error)] += 1
            continue
        offsets.append(read.offset)
        faults.update(_faults_of_line(commit, file, read))
    found += [Violation(f"{fault} ({count} lines)", file.path, _FAULTY) for fault, count in faults.items()]
    return _Checked(tuple(found), tuple(offsets) if deep else ())


_FAULTY = "it was changed or its writer is faulty: report it"


def _sample(content: bytes, deep: bool) -> Iterable[bytes]:
    """Return all lines, or the first and the last."""
    if deep:
        return content.removesuffix(b"\n").split(b"\n")
    body = content.removesuffix(b"\n")
    return dict.fromkeys((body[: body.find(b"\n")] if b"\n" in body else body, body[body.rfind(b"\n") + 1 :]))


def _faults_of_name(commit: Commit, file: CommitFile, zone: ZoneInfo) -> Iterator[str]:
    name = layout.read_data_path(file.path)
    if name is None:
        yield "its commit names what is no path of a data object"
        return
    if (name.partition, name.base, name.token) != (commit.partition, commit.base, commit.token):
        yield "its name says another partition, offset or token than the commit that names it"
    if (name.room, name.ticker) != (_ROOMS.get(file.kind), file.ticker):
        yield f"is named as {file.kind} of {file.ticker or 'no ticker'}"
    if name.folder != layout.minute_folder(file.minute_ms, zone):
        yield f"lies in another minute's folder than its commit says ({file.minute_ms})"
    if name.stamp_ms != (file.min_tms if file.kind == "book" else file.minute_ms):
        yield "its name says another stamp than its commit"


def _faults_of_line(commit: Commit, file: CommitFile, line: lines.Line) -> Iterator[str]:
    if line.kind != file.kind:
        yield f"holds a {line.kind}"
    if line.partition != commit.partition:
        yield "holds a line of another partition"
    if not commit.base <= line.offset < commit.next:
        yield "holds an offset that its commit does not cover"
    if not file.min_received_us <= line.received_us <= file.max_received_us:
        yield "holds a line received at another time than its commit says"
    belongs_ms = _minute_of(line)
    if belongs_ms is None:
        yield f"holds what is no {line.kind}"
    elif belongs_ms != file.minute_ms:
        yield "holds a line of another minute"
    if line.kind == "book":
        book = read_frame(line.value or b"")
        if isinstance(book, Book) and book.ticker != file.ticker:
            yield f"holds a book of {book.ticker}"


def _minute_of(line: lines.Line) -> int | None:
    """Return the start of the minute that a line belongs to, ms; None if it is not what it says it is.

    The rule is the page's; the writer has it in code of its own, so that one checks the other.
    """
    moment_ms = line.received_us // 1000
    if line.kind == "book":
        book = read_frame(line.value or b"")
        if not isinstance(book, Book):
            return None
        moment_ms = moment_ms if book.stream_type == SNAPSHOT else book.tms
    elif line.kind == "heartbeat":
        try:
            heartbeat = Heartbeat.decode(line.value or b"")
        except ValueError:
            return None
        ends_us = [span.to_us - 1 for span in heartbeat.holes or heartbeat.covered]
        moment_ms = max(ends_us, default=line.received_us) // 1000
    return moment_ms - moment_ms % MINUTE_MS


def _read_chains(store: ObjectStore, report: Report) -> list[Chain]:
    """Read the chains, and check that they follow from one another."""
    known: dict[int, Chain] = {}
    for path in store.list(layout.CHAINS):
        try:
            chain = chains.read_chain(store, path)
        except UserError as error:
            report.violate(f"cannot be understood ({error})", path, "restore it; nobody can read this lake")
            continue
        if path != layout.chain_path(chain.number):
            report.violate(f"holds the description of chain {chain.number}", path, "restore it")
            continue
        known[chain.number] = chain
    closed: set[int] = set()
    for number, chain in known.items():
        where = layout.chain_path(number)
        if number > 1 and number - 1 not in known:
            report.violate(f"there is no chain {number - 1}", where, "restore its description")
        if set(chain.start) != set(chain.partitions):
            report.violate("has first offsets of other partitions than its own", where, "report it")
        if chain.predecessor is None:
            continue
        before = known.get(chain.predecessor)
        if before is None or before.number >= number or before.topic != chain.topic:
            report.violate(
                f"closes chain {chain.predecessor}, which is none of this topic", where, "report it"
            )
        elif set(chain.predecessor_end) != set(before.partitions):
            report.violate("closes other partitions than its predecessor has", where, "report it")
        if chain.predecessor in closed:
            report.violate(f"closes chain {chain.predecessor}, which was closed before", where, "report it")
        closed.add(chain.predecessor)
    return list(known.values())


def _stale(store: ObjectStore, chain: Chain, now_ms: int | None = None) -> dict[int, int]:
    try:
        return {p: behind for p, behind in behind_ms(store, chain, now_ms).items() if behind > STALE_MS}
    except UserError:
        return {}  # A claim that cannot be understood was named when its partition was walked.


def _compare_broker(
    store: ObjectStore, report: Report, known: Sequence[Chain], broker: Mapping[str, BrokerLog | None]
) -> None:
    """Compare the newest chain of each topic with the broker's log."""
    looked_at = {p.chain for p in report.partitions}
    for topic in sorted({chain.topic for chain in known}):
        newest = chains.current_chain(list(known), topic)
        assert newest is not None
        log = broker.get(topic)
        where = f"chain {newest.number}, topic {topic}"
        if newest.retires:
            beyond = (
                {} if log is None or log.topic_id != newest.topic_id else _beyond(log, newest.predecessor_end)
            )
            if beyond:
                report.violate(
                    f"retired, and the broker has records beyond its end (by partition: {beyond})",
                    where,
                    f"stop what writes to it, or take it up again: cryptostream retire {topic} --undo",
                )
        elif log is None:
            report.violate(
                "the broker does not have the topic, and no window will become complete any more",
                where,
                f"create it again, or give it up: cryptostream retire {topic}",
            )
        elif log.topic_id != newest.topic_id:
            report.violate(
                f"the topic was re-created (id {log.topic_id}), and nobody has begun a new chain",
                where,
                "start its consumers",
            )
        elif tuple(sorted(log.end)) != newest.partitions:
            report.violate(
                f"the topic has partitions {sorted(log.end)}, the chain {list(newest.partitions)}",
                where,
                "add the sections to consumer.conf and start them",
            )
        elif newest.number in looked_at:
            _compare_log(store, report, newest, log)


def _beyond(log: BrokerLog, ends: Mapping[int, int]) -> dict[int, int]:
    return {p: end - ends.get(p, 0) for p, end in log.end.items() if end > ends.get(p, 0)}


def _compare_log(store: ObjectStore, report: Report, chain: Chain, log: BrokerLog) -> None:
    stale = _stale(store, chain, time.time_ns() // 1_000_000)
    for found in (p for p in report.partitions if p.chain == chain.number):
        start, end = log.start[found.partition], log.end[found.partition]
        where = f"chain {chain.number} partition {found.partition}, topic {chain.topic}"
        if end < found.tail:
            report.violate(
                f"the log ends at {end}, we have up to {found.tail}: it was rolled back",
                where,
                "start its consumers: they begin a new chain",
            )
        if start > (tail := chains.find_tail(store, chain, found.partition, found.tail)):
            report.violate(
                f"the log begins at {start}, we have up to {tail}: records expired before they were read",
                where,
                "start its consumers: they record what is missing; give the topic a longer retention",
            )
        found.log_start, found.log_end = start, end
        if found.partition in stale:
            report.violate(
                f"nothing is claimed since {_clock(found.minutes_through_ms)}; "
                f"{max(0, end - tail)} records are not in the lake yet",
                where,
                "start the consumer section that reads it",
            )


def _clock(moment_ms: int | None) -> str:
    if moment_ms is None:
        return "the chain began"
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(moment_ms / 1000))
