"""`gc` removes what can never be named, and nothing else, whatever happens beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from ingest_services import cli
from ingest_services.lake import chain as chains
from ingest_services.lake import layout
from ingest_services.lake.chain import Chain, Commit
from ingest_services.lake.orphans import find_leftovers, remove_orphans
from ingest_services.lake.store import DeletableStore, FolderStore, ObjectStore
from tests.lake_builder import SEOUL

MINUTE_MS = 1_738_480_560_000


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    made = FolderStore(tmp_path / "raw")
    layout.claim_lake(made, "simulator", "Asia/Seoul")
    return made


def open_chain(store: ObjectStore, topic_id: str = "a", start: int = 0, topic: str = "orderbook") -> Chain:
    return chains.open_chain(store, topic, topic_id, {0: start}, lambda: {0: 10**9}, 5)


def path_of(base: int, token: str, partition: int = 0) -> str:
    return layout.book_path("BTC", MINUTE_MS, MINUTE_MS, partition, base, token, SEOUL, ".jsonl.zst")


def put(store: ObjectStore, base: int, token: str, partition: int = 0) -> str:
    """Upload an object of an attempt."""
    path = path_of(base, token, partition)
    store.create(path, b"")
    return path


def commit(store: ObjectStore, base: int, end: int, token: str = "00000001", chain: int = 1) -> None:
    chains.write_commit(store, Commit(chain, 0, base, end, token, (), 0, 0, 0, ((base, end),), 1))


def left(store: ObjectStore) -> set[str]:
    return set(store.list("ticker="))


def test_a_torn_attempt_goes_once_its_slot_is_taken(store: FolderStore) -> None:
    open_chain(store)
    torn = put(store, 0, "aaaaaaaa")
    assert remove_orphans(store).in_flight == 1
    assert left(store) == {torn}
    ours = put(store, 0, "00000001")
    commit(store, 0, 10)
    dry: list[str] = []
    assert find_leftovers(store, dry.append).orphans == {"book": 1}
    assert (dry, left(store)) == ([torn], {torn, ours})
    found = remove_orphans(store)
    assert (found.removed, found.named, left(store)) == (1, 1, {ours})


def test_an_attempt_at_an_offset_that_a_commit_passed_over_goes(store: FolderStore) -> None:
    open_chain(store)
    put(store, 5, "aaaaaaaa")
    commit(store, 0, 10)
    assert remove_orphans(store).removed == 1


def test_a_batch_in_flight_stays_whatever_other_chains_say(store: FolderStore) -> None:
    open_chain(store, "a")
    commit(store, 0, 100)
    second = open_chain(store, "b")  # re-created: the same offsets again, and its tail is at 0
    in_flight = put(store, 0, "aaaaaaaa")
    also = put(store, 50, "bbbbbbbb")
    assert remove_orphans(store).removed == 0
    commit(store, 0, 40, "cccccccc", second.number)
    assert remove_orphans(store).removed == 1
    assert left(store) == {also}
    assert in_flight not in left(store)


def test_what_a_commit_of_an_older_chain_names_stays(store: FolderStore) -> None:
    open_chain(store, "a")
    old = put(store, 0, "00000001")
    commit(store, 0, 100)
    second = open_chain(store, "b")
    new = put(store, 0, "00000002")
    commit(store, 0, 200, "00000002", second.number)
    put(store, 0, "aaaaaaaa")
    assert remove_orphans(store).removed == 1
    assert left(store) == {old, new}


def test_what_was_torn_at_the_end_of_a_closed_chain_goes_when_the_next_has_passed_it(
    store: FolderStore,
) -> None:
    open_chain(store, "a")
    commit(store, 0, 100)
    put(store, 100, "aaaaaaaa")
    second = open_chain(store, "b")
    commit(store, 0, 100, "00000002", second.number)
    assert remove_orphans(store).removed == 0
    commit(store, 100, 101, "00000003", second.number)
    assert remove_orphans(store).removed == 1


def test_another_topics_partition_of_the_same_number_is_asked_too(store: FolderStore) -> None:
    open_chain(store)
    commit(store, 0, 100)
    trades = open_chain(store, "t", topic="trades")
    put(store, 7, "aaaaaaaa")
    assert remove_orphans(store).removed == 0
    commit(store, 0, 8, "00000002", trades.number)
    assert remove_orphans(store).removed == 1


def test_what_is_not_understood_is_listed_and_left_alone(store: FolderStore) -> None:
    open_chain(store, start=50)
    commit(store, 50, 100)
    strange = [
        "notes.txt",
        "ticker=BTC/readme",
        path_of(60, "aaaaaaaa").replace("ticker=BTC", "ticker=ETH"),
        path_of(60, "aaaaaaaa") + ".tmp",
        path_of(60, "AAAAAAAA"),
        path_of(60, "aaaaaaaa", partition=3),  # no chain has this partition
        path_of(7, "aaaaaaaa"),  # no chain has this offset
    ]
    for path in strange:
        store.create(path, b"")
    found = remove_orphans(store)
    assert (found.removed, sorted(found.foreign_paths)) == (0, sorted(strange))
    assert set(strange) <= set(store.list(""))


class Interleaved(FolderStore):
    """Lets something happen in the middle of a listing."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.meanwhile: Iterator[None] = iter(())

    def list(self, prefix: str, start_after: str = "") -> Iterator[str]:
        for path in super().list(prefix, start_after):
            # What happens may list, too.
            meanwhile, self.meanwhile = self.meanwhile, iter(())
            next(meanwhile, None)
            self.meanwhile = meanwhile
            yield path


def test_a_chain_that_is_opened_while_gc_looks_protects_its_first_batch(tmp_path: Path) -> None:
    store = Interleaved(tmp_path / "raw")
    open_chain(store)
    commit(store, 0, 100)

    def happen() -> Iterator[None]:
        yield
        open_chain(store, "b")
        put(store, 3, "aaaaaaaa")
        yield

    put(store, 99, "bbbbbbbb")
    store.meanwhile = happen()
    remove_orphans(store)
    assert path_of(3, "aaaaaaaa") in left(store)


@given(seed=st.integers(0, 2**32))
def test_random_histories_lose_nothing_that_was_or_will_be_named(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    """Writers, torn attempts, re-created topics and gc in any order: what a commit names is there."""
    dice = Random(seed)
    store = Interleaved(tmp_path_factory.mktemp("lake"))
    open_chain(store, "0")
    topic, tail, number, named = 0, 0, 1, set[str]()
    flying: list[tuple[int, int, str]] = []

    def step() -> None:
        nonlocal topic, tail, number
        act = dice.choice(["upload", "upload", "commit", "tear", "recreate"])
        if act == "upload":
            token = f"{dice.randrange(2**32):08x}"
            put(store, tail, token)
            flying.append((number, tail, token))
        elif act == "commit" and flying:
            chain, base, token = flying.pop(dice.randrange(len(flying)))
            if chain == number and base == tail:
                tail += dice.randrange(1, 4)
                commit(store, base, tail, token, chain)
                named.add(path_of(base, token))
        elif act == "tear" and flying:
            flying.pop(dice.randrange(len(flying)))
        elif act == "recreate" and dice.random() < 0.3:
            topic += 1
            number, tail = open_chain(store, str(topic)).number, 0

    def happen() -> Iterator[None]:
        while True:
            if dice.random() < 0.3:
                step()
            yield

    for _ in range(dice.randrange(1, 25)):
        step()
        if dice.random() < 0.3:
            store.meanwhile = happen()
            remove_orphans(store)
            store.meanwhile = iter(())
        # Every batch that a living writer still holds, at a slot that is free, has its object.
        alive = {path_of(base, token) for chain, base, token in flying if (chain, base) == (number, tail)}
        assert named | alive <= left(store), f"seed {seed}"


def test_a_writer_is_given_no_way_to_delete() -> None:
    assert not hasattr(ObjectStore, "delete")
    assert ObjectStore in DeletableStore.__mro__


def test_the_command_shows_first_and_removes_when_told(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_chain(store)
    commit(store, 0, 10)
    torn = put(store, 0, "aaaaaaaa")
    monkeypatch.setenv("RAW_URL", store.url)
    done = CliRunner().invoke(cli.build_app(), ["gc", "--paths"])
    assert (done.exit_code, torn in done.output, left(store)) == (0, True, {torn})
    assert "would be removed (--delete does it): 1 book" in done.output
    done = CliRunner().invoke(cli.build_app(), ["gc", "--delete"])
    assert (done.exit_code, left(store)) == (0, set())
    assert "removed: 1 book" in done.output
