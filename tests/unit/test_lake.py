"""The lake's contract on a local folder: what is created stays, chains are linear, claims are readable."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import Random
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_services.errors import UserError
from ingest_services.lake import chain as chains
from ingest_services.lake import layout, lines
from ingest_services.lake import store as store_module
from ingest_services.lake.chain import Chain, Commit, Fenced, Progress
from ingest_services.lake.coverage import covered_intervals, covered_us, merge, read_heartbeats, subtract
from ingest_services.lake.store import FolderStore, ObjectExists, ObjectMissing
from ingest_services.lake.stores import open_store
from ingest_services.record import Heartbeat, Span

SEOUL = ZoneInfo("Asia/Seoul")


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "raw")


def commit(base: int, next_: int, token: str = "mine", chain: int = 1) -> Commit:
    return Commit(chain, 0, base, next_, token, (), 0, 0, 0, ((base, next_),), 1)


def open_first(store: FolderStore, log_end: int = 0, topic_id: str = "a", partitions: int = 1) -> Chain:
    starts = dict.fromkeys(range(partitions), 0)
    return chains.open_chain(store, "orderbook", topic_id, starts, lambda: dict.fromkeys(starts, log_end), 5)


def test_an_object_is_created_once_and_never_changed(store: FolderStore) -> None:
    store.create("a/b.json", b"one")
    with pytest.raises(ObjectExists):
        store.create("a/b.json", b"two")
    assert store.get("a/b.json") == b"one"
    assert not list((store.root / ".staging").iterdir())


def test_of_many_who_create_at_once_exactly_one_succeeds(store: FolderStore) -> None:
    won: list[int] = []
    start = threading.Barrier(8)

    def race(number: int) -> None:
        start.wait()
        try:
            store.create("slot", b"%d" % number)
        except ObjectExists:
            return
        won.append(number)

    threads = [threading.Thread(target=race, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.get("slot") == b"%d" % won[0]


def test_replace_is_whole_and_get_of_nothing_says_so(store: FolderStore) -> None:
    store.replace("p.json", b"old")
    store.replace("p.json", b"new")
    assert store.get("p.json") == b"new"
    with pytest.raises(ObjectMissing):
        store.get("q.json")
    with pytest.raises(ObjectMissing):
        store.get("p.json/x")


@given(
    st.sets(st.from_regex(r"[ab](-|\.|=)?[ab]?(/[ab]-?[ab]?){0,2}", fullmatch=True), max_size=12), st.data()
)
def test_list_is_in_the_order_of_paths(
    tmp_path_factory: pytest.TempPathFactory, paths: set[str], data: st.DataObject
) -> None:
    store = FolderStore(tmp_path_factory.mktemp("store"))
    files = {p for p in paths if not any(q.startswith(p + "/") for q in paths)}
    for path in files:
        store.create(path, b"")
    prefix = data.draw(st.sampled_from(["", "a", "b/", "a-"]))
    after = data.draw(st.sampled_from(["", *sorted(files)]))
    assert list(store.list(prefix, after)) == sorted(p for p in files if p.startswith(prefix) and p > after)


@pytest.mark.parametrize("path", ["../x", "a//b", "/etc/x", "a/./b", "", ".staging/x"])
def test_a_path_never_leaves_the_lake(store: FolderStore, path: str) -> None:
    with pytest.raises(ValueError, match="not an object path"):
        store.create(path, b"")


@pytest.mark.parametrize("url", ["/folder", "file://host/x", "file:relative", "s3://x"])
def test_a_lake_url_of_an_unknown_kind_is_one_clear_line(url: str) -> None:
    with pytest.raises(UserError, match=r"RAW_URL=.*must be file:///folder"):
        open_store(url)


def test_paths_are_the_designs_own_examples() -> None:
    path = layout.book_path(
        "BTC", 1_738_480_560_000, 1_738_480_560_123, 0, 1234, "7f3a9c21", SEOUL, layout.SUFFIXES["zstd"]
    )
    assert path == (
        "ticker=BTC/year=2025/month=02/day=02/hour=16/minute=16/"
        "BTC-1738480560123-p00-00000000000000001234-7f3a9c21.jsonl.zst"
    )


def test_a_lake_belongs_to_one_source(store: FolderStore) -> None:
    assert layout.read_lake(store) is None
    layout.claim_lake(store, "simulator", "Asia/Seoul")
    layout.claim_lake(store, "simulator", "Asia/Seoul")
    with pytest.raises(UserError, match="simulated and real data never share a lake"):
        layout.claim_lake(store, "upbit", "Asia/Seoul")


def test_a_commit_that_does_not_add_up_cannot_exist() -> None:
    with pytest.raises(ValueError, match="does not add up"):
        Commit(1, 0, 0, 10, "t", (), 9, 0, 0, (), 1)


def test_a_lost_response_is_a_success_and_a_lost_race_is_not(store: FolderStore) -> None:
    chains.write_commit(store, commit(0, 10))
    chains.write_commit(store, commit(0, 10))
    with pytest.raises(Fenced):
        chains.write_commit(store, commit(0, 12, token="other"))
    assert [c.token for c in chains.commits_from(store, 1, 0, 0)] == ["mine"]


@pytest.mark.parametrize("hint", [None, 0, 5, 10, 17, 25, 99])
def test_the_tail_is_found_whatever_the_hint_says(store: FolderStore, hint: int | None) -> None:
    chain = open_first(store)
    for base, next_ in [(0, 10), (10, 17), (17, 25)]:
        chains.write_commit(store, commit(base, next_))
    assert chains.find_tail(store, chain, 0, hint) == 25


@pytest.mark.parametrize("last", [None, 0, 10, 12, 17, 25, 99])
@pytest.mark.parametrize("hint", [None, 10, 25])
def test_the_tail_is_found_whatever_the_claim_says(
    store: FolderStore, last: int | None, hint: int | None
) -> None:
    chain = open_first(store)
    for base, next_ in [(0, 10), (10, 17), (17, 25)]:
        chains.write_commit(store, commit(base, next_))
    chains.write_progress(store, Progress(1, 0, 25, 60_000, 66_000, last))
    assert chains.find_tail(store, chain, 0, hint) == 25
    store.replace(layout.progress_path(1, 0), b"no claim")
    assert chains.find_tail(store, chain, 0, hint) == 25


def test_the_tail_is_found_at_a_seal_and_behind_more_commits_than_are_walked(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = open_first(store)
    monkeypatch.setattr(chains, "MAX_WALK", 3)
    for base in range(0, 60, 10):
        chains.write_commit(store, commit(base, base + 10))
        chains.write_progress(store, Progress(1, 0, 10, 60_000, 66_000, 0))
        assert chains.find_tail(store, chain, 0) == base + 10
    chains.write_commit(store, dataclasses.replace(commit(60, 70), next=60, token="seal", missing=()))
    for last in (None, 20, 50, 60):
        chains.write_progress(store, Progress(1, 0, 60, 60_000, 66_000, last))
        assert chains.find_tail(store, chain, 0) == 60


def test_who_takes_over_after_a_claim_lists_no_commits(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_first(store)
    for base in range(0, 50, 10):
        chains.write_commit(store, commit(base, base + 10))
    chains.write_progress(store, Progress(1, 0, 40, 60_000, 66_000, 30))
    listed: list[str] = []
    through = FolderStore.list

    def note(self: FolderStore, prefix: str, start_after: str = "") -> Iterator[str]:
        listed.append(prefix)
        return through(self, prefix, start_after)

    monkeypatch.setattr(FolderStore, "list", note)
    assert open_first(store, log_end=50) == first
    # What Kafka has as committed is the tail itself, where no commit begins.
    assert chains.find_tail(store, first, 0, 50) == 50
    assert listed == [layout.CHAINS]


def test_a_claim_that_was_made_by_an_older_writer_is_read(store: FolderStore) -> None:
    old = b'{"chain":1,"partition":0,"next":10,"minutes_through_ms":60000,"at_ms":66000}'
    store.replace(layout.progress_path(1, 0), old)
    assert chains.read_progress(store, 1, 0) == Progress(1, 0, 10, 60_000, 66_000)


def test_the_same_log_goes_on_in_the_same_chain(store: FolderStore) -> None:
    first = open_first(store)
    chains.write_commit(store, commit(0, 10))
    assert open_first(store, log_end=10) == first
    assert len(chains.read_chains(store)) == 1


def test_a_re_created_topic_begins_a_new_chain(store: FolderStore) -> None:
    open_first(store)
    chains.write_commit(store, commit(0, 10))
    second = open_first(store, log_end=50, topic_id="b")
    assert (second.number, second.predecessor, second.predecessor_end, second.start) == (
        2,
        1,
        {0: 10},
        {0: 0},
    )


def test_a_log_that_was_rolled_back_begins_a_new_chain(store: FolderStore) -> None:
    open_first(store)
    chains.write_commit(store, commit(0, 10))
    second = open_first(store, log_end=9)
    assert (second.predecessor_end, second.start) == ({0: 10}, {0: 0})
    assert "rolled back" in second.reason


def test_a_rival_that_commits_while_we_look_is_no_rolled_back_log(store: FolderStore) -> None:
    first = open_first(store)
    log = {0: 100}

    def log_end() -> dict[int, int]:
        end = dict(log)
        # After the question was answered the log grows, and somebody else commits it.
        log[0] += 20
        chains.write_commit(store, commit(chains.find_tail(store, first, 0), log[0]))
        return end

    for _ in range(3):
        assert chains.open_chain(store, "orderbook", "a", {0: 0}, log_end, 5) == first


def test_partitions_that_were_not_rolled_back_go_on_at_their_tails(store: FolderStore) -> None:
    open_first(store, partitions=2)
    chains.write_commit(store, commit(0, 10))
    chains.write_commit(store, dataclasses.replace(commit(0, 30), partition=1))
    second = chains.open_chain(store, "orderbook", "a", {0: 2, 1: 2}, lambda: {0: 9, 1: 40}, 5)
    assert second.start == {0: 2, 1: 30}


def test_what_is_remembered_of_folders_is_bounded(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "MAX_SYNCED", 5)
    for number in range(20):
        store.create(f"minute={number}/a", b"")
    assert len(store._synced) <= 5


def test_what_a_killed_writer_staged_is_removed_and_a_living_ones_is_not(store: FolderStore) -> None:
    store.create("a", b"")
    old, new = store.root / ".staging/old", store.root / ".staging/new"
    for path in (old, new):
        path.write_bytes(b"")
    os.utime(old, (0, 0))
    FolderStore(store.root)
    assert (old.exists(), new.exists()) == (False, True)


def test_a_store_opens_while_a_writer_is_done_with_what_it_had_staged(store: FolderStore) -> None:
    store.create("a", b"")
    # In the listing, and gone when it is looked at: what a link to nothing always is.
    (store.root / ".staging/gone").symlink_to("nowhere")
    assert FolderStore(store.root).get("a") == b""


def test_the_two_minutes_of_a_repeated_hour_have_paths_of_their_own() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    minute_ms = 1_761_438_600_000  # 02:30 in summer; an hour later it is 02:30 again
    paths = {
        layout.side_path("coverage", minute, 0, 7, "t", berlin, ".jsonl")
        for minute in (minute_ms, minute_ms + 3_600_000)
    }
    assert len(paths) == 2
    assert len({path.rpartition("/")[0] for path in paths}) == 1


def test_added_partitions_begin_a_new_chain_that_goes_on_at_the_tails(store: FolderStore) -> None:
    open_first(store)
    chains.write_commit(store, commit(0, 10))
    second = open_first(store, log_end=20, partitions=2)
    assert second.start == {0: 10, 1: 0}


def test_a_chain_is_closed_by_its_successor_and_by_no_other(store: FolderStore) -> None:
    first = open_first(store)
    other = chains.open_chain(store, "trades", "t", {0: 0}, lambda: {0: 0}, 5)
    assert not chains.is_closed(store, first.number)
    second = open_first(store, topic_id="b")
    assert chains.is_closed(store, first.number)
    assert not chains.is_closed(store, other.number)
    assert not chains.is_closed(store, second.number)


def test_nobody_can_commit_behind_the_end_of_a_closed_chain(store: FolderStore) -> None:
    first = open_first(store)
    chains.write_commit(store, commit(0, 10))
    assert open_first(store, topic_id="b").predecessor_end == {0: 10}
    with pytest.raises(chains.Sealed):
        chains.write_commit(store, commit(10, 20))
    assert [c.base for c in chains.commits_from(store, 1, 0, 0)] == [0]
    assert chains.find_tail(store, first, 0) == 10


def test_a_commit_that_comes_before_the_seal_counts(store: FolderStore) -> None:
    open_first(store)
    chains.write_commit(store, commit(0, 10))

    def log_end() -> dict[int, int]:
        chains.write_commit(store, commit(10, 30))
        return {0: 0}

    second = chains.open_chain(store, "orderbook", "b", {0: 0}, log_end, 5)
    assert second.predecessor_end == {0: 30}


def test_a_chain_that_was_sealed_by_one_who_died_then_is_closed_by_the_next(store: FolderStore) -> None:
    open_first(store, partitions=2)
    chains.write_commit(store, commit(0, 10))
    chains.write_commit(store, dataclasses.replace(commit(10, 20), next=10, token="seal", missing=()))
    with pytest.raises(chains.Sealed):
        chains.write_commit(store, commit(10, 20))
    second = open_first(store, log_end=30, partitions=2)
    assert (second.predecessor, second.predecessor_end, second.start) == (1, {0: 10, 1: 0}, {0: 10, 1: 0})


def test_claims_come_back_as_they_were_made(store: FolderStore) -> None:
    assert chains.read_progress(store, 1, 0) is None
    claim = Progress(1, 0, 10, 60_000, 66_000)
    chains.write_progress(store, claim)
    assert chains.read_progress(store, 1, 0) == claim


@pytest.mark.parametrize("garbage", [b"", b"[]", b"{}", b'{"chain":1}'])
def test_a_damaged_commit_is_named_not_skipped(store: FolderStore, garbage: bytes) -> None:
    store.create(layout.commit_path(1, 0, 0), garbage)
    with pytest.raises(UserError, match=r"_commits/00000001/0000/00000000000000000000.json"):
        list(chains.commits_from(store, 1, 0, 0))


def test_heartbeats_become_covered_intervals_with_holes_between_them() -> None:
    beats = [
        Heartbeat("s", "c", ("BTC", "NEW"), (Span(0, 10, ("BTC",)),)),
        Heartbeat("s", "c", ("BTC", "NEW"), (Span(10, 20, ("BTC",)), Span(15, 20, ("ETH",)))),
        Heartbeat("s", "d", ("BTC",), (Span(30, 40, ("BTC",)),)),
    ]
    data = b"".join(lines.heartbeat_line(0, n, 1, "c", beat.encode()) for n, beat in enumerate(beats))
    found = covered_intervals(read_heartbeats(data))
    assert found == {"BTC": [(0, 20), (30, 40)], "NEW": [], "ETH": [(15, 20)]}
    assert covered_us(found["BTC"], 5, 35) == 20


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50))), st.integers(0, 50), st.integers(0, 50))
def test_the_union_of_intervals_covers_exactly_the_same_instants(
    intervals: list[tuple[int, int]], from_us: int, to_us: int
) -> None:
    instants = {i for start, end in intervals for i in range(start, end)}
    merged = merge(intervals)
    assert {i for start, end in merged for i in range(start, end)} == instants
    assert all(a[1] < b[0] for a, b in pairwise(merged))
    assert covered_us(intervals, from_us, to_us) == len(instants & set(range(from_us, to_us)))


pairs = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=6)


@given(pairs, pairs)
def test_what_is_left_after_holes_is_exactly_the_instants_of_one_and_not_the_other(
    intervals: list[tuple[int, int]], holes: list[tuple[int, int]]
) -> None:
    covered, lost = ({i for start, end in some for i in range(start, end)} for some in (intervals, holes))
    left = subtract(intervals, holes)
    assert {i for start, end in left for i in range(start, end)} == covered - lost
    assert all(a[1] < b[0] for a, b in pairwise(left))


tickers = st.lists(st.sampled_from(["BTC", "ETH"]), max_size=2, unique=True).map(tuple)
spans = st.lists(
    st.builds(
        lambda a, b, named: Span(min(a, b), max(a, b), named), st.integers(0, 20), st.integers(0, 20), tickers
    ),
    max_size=3,
).map(tuple)
some_heartbeats = st.lists(
    st.builds(Heartbeat, st.just("s"), st.sampled_from(["c-1", "c-2"]), tickers, spans, spans), max_size=5
)


@given(some_heartbeats, st.randoms(use_true_random=False))
def test_a_hole_takes_back_what_its_own_connection_claimed_in_whatever_order_they_come(
    beats: list[Heartbeat], random: Random
) -> None:
    def instants(connection: str, ticker: str, kind: str) -> set[int]:
        return {
            instant
            for beat in beats
            if beat.connection == connection
            for span in getattr(beat, kind)
            if ticker in span.tickers
            for instant in range(span.from_us, span.to_us)
        }

    found = covered_intervals(beats)
    random.shuffle(beats)
    assert covered_intervals(beats) == found
    named = {
        t for b in beats for t in (*b.subscribed, *(t for s in (*b.covered, *b.holes) for t in s.tickers))
    }
    assert set(found) == named
    for ticker, intervals in found.items():
        expected = set[int]().union(
            *(instants(c, ticker, "covered") - instants(c, ticker, "holes") for c in ("c-1", "c-2"))
        )
        assert {i for start, end in intervals for i in range(start, end)} == expected


@pytest.mark.parametrize(
    "line", [b"7", b"{}", b'{"received_us":1}', b'{"received_us":1,"heartbeat":7}', b"{"]
)
def test_a_line_that_is_no_heartbeat_is_an_error_and_no_empty_coverage(line: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - orjson's own or ours
        read_heartbeats(line + b"\n")
