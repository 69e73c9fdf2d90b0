"""What the simulation must notice: each of these takes away one of the steps that the protocol rests on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from unittest.mock import patch

from kafka import TopicPartition

from ingest_services.consumer import sink
from ingest_services.consumer.buffer import Batch, Buffer
from ingest_services.consumer.carrier import Partition, Session
from ingest_services.consumer.sink import Sink
from ingest_services.lake import chain as chains
from ingest_services.lake.chain import Chain, Commit, Fenced, Progress
from ingest_services.lake.store import ObjectExists, ObjectStore
from tests.simulation import oracle, world
from tests.simulation.broker import MemoryLog
from tests.simulation.store import MemoryStore

MUTATIONS: dict[str, Callable[[], object]] = {}


def mutation(make: Callable[[], object]) -> Callable[[], object]:
    """Register one by its name: it returns a patch, which is a context."""
    MUTATIONS[make.__name__] = make
    return make


@mutation
def create_without_precondition() -> object:
    return patch.object(MemoryStore, "create", MemoryStore.put)


@mutation
def commit_without_read_back() -> object:
    def write_commit(store: ObjectStore, commit: Commit) -> None:
        try:
            chains_write_commit(store, commit)
        except Fenced:
            return

    chains_write_commit = chains.write_commit
    return patch.object(chains, "write_commit", write_commit)


@mutation
def upload_without_read_back() -> object:
    def create(self: Sink, path: str, data: bytes) -> None:
        self.store.create(path, data)

    return patch.object(Sink, "_create", create)


@mutation
def tokens_that_are_not_random() -> object:
    return patch.object(sink, "secrets", SimpleNamespace(token_hex=lambda size: "00" * size))


@mutation
def reader_that_lists_objects() -> object:
    def read_paths(store: MemoryStore) -> Iterator[str]:
        yield from (path for path in store.list("") if ".jsonl" in path)

    return patch.object(oracle, "read_paths", read_paths)


@mutation
def commit_before_upload() -> object:
    def persist(self: Sink, what: str, operation: Callable[[], object]) -> object:
        if what == "upload":
            return self.uploads.submit(through, self, what, operation)
        return through(self, what, operation)

    through = Sink.persist
    return patch.object(Sink, "persist", persist)


@mutation
def claim_before_commit() -> object:
    def commit(self: Session, partition: Partition, batch: Batch | None, claim_ms: int | None) -> object:
        if batch is not None and claim_ms is not None:
            claim = Progress(partition.chain.number, partition.section.partition, batch.base, claim_ms, 0)
            self.sink.claim(claim)
        return through(self, partition, batch, claim_ms)

    through = Session._commit
    return patch.object(Session, "_commit", commit)


@mutation
def claim_of_what_was_not_cut() -> object:
    return patch.object(Buffer, "count_through", lambda self, end_ms: 0)


@mutation
def claim_without_a_fresh_end() -> object:
    def ends(self: MemoryLog, positions: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        # What the last answer to a fetch said: everything up to there was read. Opening a chain asks, too.
        return dict(positions) if self._positions else through(self, positions)

    through = MemoryLog.ends
    return patch.object(MemoryLog, "ends", ends)


@mutation
def end_by_list_offsets_alone() -> object:
    return patch("tests.simulation.broker.larger", lambda listed, watermark: listed)


@mutation
def claim_without_lateness() -> object:
    return patch.object(world, "CARRIER_LATENESS_S", 0.0)


@mutation
def commit_without_topic_id() -> object:
    return patch.object(Session, "_require_chain", lambda self, chain: None)


@mutation
def chain_opened_by_an_old_topic_id() -> object:
    def require_topic(self: Session, topic: str, topic_id: str, numbers: tuple[int, ...]) -> None:
        if self._partitions:
            through(self, topic, topic_id, numbers)

    through = Session._require_topic
    return patch.object(Session, "_require_topic", require_topic)


@mutation
def chain_closed_without_seals() -> object:
    def seal(store: ObjectStore, chain: Chain, partition: int, tail: int, now_ms: int) -> int:
        return tail

    return patch.object(chains, "_seal", seal)


@mutation
def roll_back_that_nobody_looks_for() -> object:
    def open_chain(
        store: ObjectStore,
        topic: str,
        topic_id: str,
        log_start: Mapping[int, int],
        log_end: Callable[[], Mapping[int, int]],
        now_ms: int,
    ) -> Chain:
        return through(store, topic, topic_id, log_start, lambda: dict.fromkeys(log_end(), 1 << 60), now_ms)

    through = chains.open_chain
    return patch.object(chains, "open_chain", open_chain)


@mutation
def buffers_forgotten_where_the_log_was_truncated() -> object:
    return patch.object(Session, "save_what_is_gone", lambda self: None)


@mutation
def reader_that_reads_commits_before_claims() -> object:
    def read_in_order(store: ObjectStore, slots: list[tuple[Chain, int]]) -> object:
        commits = {
            (chain.number, p): [
                commit.base for commit in chains.commits_from(store, chain.number, p, chain.start[p])
            ]
            for chain, p in slots
        }
        return through(store, slots)[0], commits

    through = oracle.read_in_order
    return patch.object(oracle, "read_in_order", read_in_order)


@mutation
def fenced_writer_that_keeps_its_buffer() -> object:
    def start_over(self: Session, partition: Partition, fence: Fenced) -> None:
        partition.committed = partition.buffer.base

    return patch.object(Session, "_start_over", start_over)


@mutation
def hint_that_is_believed() -> object:
    return patch.object(chains, "_has_commit", lambda *where: True)


@mutation
def slot_that_is_overwritten_when_taken() -> object:
    def write_commit(store: ObjectStore, commit: Commit) -> None:
        try:
            through(store, commit)
        except (Fenced, ObjectExists):
            store.replace(chains.layout.commit_path(commit.chain, commit.partition, commit.base), b"{}")

    through = chains.write_commit
    return patch.object(chains, "write_commit", write_commit)
