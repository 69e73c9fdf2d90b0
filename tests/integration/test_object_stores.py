"""Both object stores keep one contract: a folder, and Google Cloud Storage as fake-gcs-server speaks it.

The server is believed only because it refuses a second create (the canary in `tests/fake_gcs.py`). A proxy
before it loses answers, fails, resets, hangs and damages.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest_services.consumer.sink import Sink, Stopped
from ingest_services.errors import UserError
from ingest_services.lake import chain as chains
from ingest_services.lake import gcs as gcs_module
from ingest_services.lake import layout
from ingest_services.lake.chain import Chain, Commit, Fenced, Progress
from ingest_services.lake.gcs import GcsStore, create_bucket
from ingest_services.lake.store import (
    DeletableStore,
    FolderStore,
    ObjectExists,
    ObjectMissing,
    ObjectStore,
)
from ingest_services.lake.stores import open_store
from tests.fake_gcs import FakeGcs, Proxy, Request, open_gcs_store, running_proxy, uploads

NewStore = Callable[[], ObjectStore]
NAMES = st.from_regex(r"[abZ_é가](-|\.|=|~)?[ab0]?(/[ab]-?[ab]?){0,2}", fullmatch=True)
# A fixture gives each example a store of its own.
EXAMPLES = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=["folder", "gcs", "gcs at the bucket's root"])
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> NewStore:
    """Make an empty store."""
    if request.param == "folder":
        numbers = itertools.count()
        return lambda: FolderStore(tmp_path / str(next(numbers)))
    server: FakeGcs = request.getfixturevalue("gcs")
    if request.param == "gcs":
        bucket = server.bucket()
        return lambda: open_gcs_store(server.url, bucket, f"some/{uuid.uuid4().hex}")
    return lambda: open_gcs_store(server.url, server.bucket())


@pytest.fixture
def store(new_store: NewStore) -> ObjectStore:
    return new_store()


@pytest.fixture
def proxy(gcs: FakeGcs) -> Iterator[Proxy]:
    with running_proxy(gcs) as running:
        yield running


@pytest.fixture
def proxied(gcs: FakeGcs, proxy: Proxy) -> GcsStore:
    """A store behind the proxy; opening it is not among the proxy's notes."""
    store = open_gcs_store(proxy.url, gcs.bucket(), "raw")
    proxy.requests.clear()
    return store


def make_sink(store: ObjectStore, uploading: ThreadPoolExecutor) -> tuple[Sink, list[str]]:
    retries: list[str] = []
    return Sink(
        store, ZoneInfo("Asia/Seoul"), ".jsonl", uploading, retries.append, threading.Event()
    ), retries


def a_commit(base: int = 0, next_: int = 10, token: str = "mine") -> Commit:
    return Commit(1, 0, base, next_, token, (), 0, 0, 0, ((base, next_),), 1)


def test_the_canary_the_server_refuses_a_second_create(gcs: FakeGcs) -> None:
    bucket = gcs.bucket()
    assert [gcs.insert(bucket, "canary", data) for data in (b"first", b"second")] == [200, 412]
    assert open_gcs_store(gcs.url, bucket).get("canary") == b"first"


def test_an_object_is_created_once_and_never_changed(store: ObjectStore) -> None:
    store.create("a/b.json", b"one")
    with pytest.raises(ObjectExists, match=r"a/b\.json"):
        store.create("a/b.json", b"two")
    assert store.get("a/b.json") == b"one"


def test_what_was_never_created_is_missing(store: ObjectStore) -> None:
    store.create("a/b", b"")
    for path in ("a/c", "a/b/c", "c"):
        with pytest.raises(ObjectMissing, match=path):
            store.get(path)
    assert list(store.list("nothing/")) == []


@pytest.mark.parametrize("content", [b"", b"\x00\xff\r\n--", os.urandom(3), os.urandom(12 << 20)], ids=len)
def test_content_comes_back_byte_for_byte(store: ObjectStore, content: bytes) -> None:
    store.create("a", content)
    assert store.get("a") == content
    with pytest.raises(ObjectExists):
        store.create("a", content[:-1] + b"?")
    store.replace("b", content)
    assert store.get("b") == content


@EXAMPLES
@given(paths=st.sets(NAMES, max_size=12), data=st.data())
def test_list_is_in_the_order_of_whole_paths(
    new_store: NewStore, paths: set[str], data: st.DataObject
) -> None:
    store = new_store()
    # In a folder nothing can lie below an object.
    files = {path for path in paths if not any(other.startswith(path + "/") for other in paths)}
    for path in files:
        store.create(path, path.encode())
    prefix = data.draw(st.sampled_from(["", "a", "b/", "a-", "가"]))
    after = data.draw(st.sampled_from(["", "a", "zzz", *sorted(files)]))
    assert list(store.list(prefix, after)) == sorted(p for p in files if p.startswith(prefix) and p > after)
    assert all(store.get(path) == path.encode() for path in files)


def test_a_listing_longer_than_a_page_is_whole(store: ObjectStore) -> None:
    names = [f"_commits/{number:020d}.json" for number in range(1100)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: store.create(name, b"x"), names))
    assert list(store.list("_commits/")) == names
    assert list(store.list("_commits/", names[1050])) == names[1051:]


def test_replace_is_whole_and_leaves_nothing_beside_it(store: ObjectStore) -> None:
    for content in (b"old" * 1000, b"new"):
        store.replace("_progress/p.json", content)
        assert store.get("_progress/p.json") == content
    assert list(store.list("")) == ["_progress/p.json"]


@pytest.mark.parametrize("path", ["../x", "a//b", "/etc/x", "a/./b", "", "a/", ".staging/x", "a/.b"])
def test_a_path_never_leaves_the_lake(store: ObjectStore, path: str) -> None:
    for write in (store.create, store.replace):
        with pytest.raises(ValueError, match="not an object path"):
            write(path, b"")
    with pytest.raises(ValueError, match="not an object path"):
        store.get(path)


def test_of_many_who_create_at_once_exactly_one_succeeds(store: ObjectStore) -> None:
    for slot in range(10):
        start = threading.Barrier(8)

        def race(number: int, path: str = f"slot{slot}", start: threading.Barrier = start) -> int | None:
            start.wait()
            try:
                store.create(path, b"%d" % number)
            except ObjectExists:
                return None
            return number

        with ThreadPoolExecutor(8) as pool:
            won = [number for number in pool.map(race, range(8)) if number is not None]
        assert len(won) == 1
        assert store.get(f"slot{slot}") == b"%d" % won[0]


def test_two_stores_of_one_lake_see_each_other_at_once_and_other_lakes_not_at_all(
    gcs: FakeGcs, tmp_path: Path
) -> None:
    bucket = gcs.bucket()
    for one, two, other in (
        [FolderStore(tmp_path / name) for name in ("raw", "raw", "raw2")],
        [open_gcs_store(gcs.url, bucket, name) for name in ("raw", "raw/", "raw2")],
    ):
        one.create("a", b"1")
        other.create("b", b"2")
        with pytest.raises(ObjectExists):
            two.create("a", b"3")
        assert list(two.list("")) == ["a"]


def test_the_chain_is_the_same_on_every_store(store: ObjectStore) -> None:
    def open_chain(topic_id: str = "a", end: int = 0) -> Chain:
        return chains.open_chain(store, "orderbook", topic_id, {0: 0}, lambda: {0: end}, 5)

    layout.claim_lake(store, "simulator", "Asia/Seoul")
    layout.claim_lake(store, "simulator", "Asia/Seoul")
    with pytest.raises(UserError, match="never share a lake"):
        layout.claim_lake(store, "upbit", "Asia/Seoul")
    first = open_chain()
    for base in range(0, 30, 10):
        chains.write_commit(store, a_commit(base, base + 10))
    chains.write_commit(store, a_commit(20, 30))
    with pytest.raises(Fenced):
        chains.write_commit(store, a_commit(20, 29, "another"))
    assert [chains.find_tail(store, first, 0, hint) for hint in (None, 10, 17, 30)] == [30] * 4
    assert chains.read_progress(store, 1, 0) is None
    for claim in (Progress(1, 0, 10, 60_000, 66_000), Progress(1, 0, 20, 120_000, 126_000)):
        chains.write_progress(store, claim)
        assert chains.read_progress(store, 1, 0) == claim
    assert open_chain(end=30) == first
    assert not chains.is_closed(store, 1)
    second = open_chain("b")
    assert (second.number, second.predecessor_end) == (2, {0: 30})
    assert chains.is_closed(store, 1)


# What goes wrong between us and the store.


def test_a_lost_answer_is_done_and_a_lost_race_is_not(proxied: GcsStore, proxy: Proxy) -> None:
    with ThreadPoolExecutor(2) as uploading:
        sink, retries = make_sink(proxied, uploading)
        lost = proxy.fault("lost", uploads, times=3)
        sink.persist("upload", lambda: sink._create("ticker=BTC/x", b"rows"))
        assert (lost.done, proxied.get("ticker=BTC/x")) == (3, b"rows")
        lost = proxy.fault("lost", uploads, times=2)
        sink.persist("commit", lambda: chains.write_commit(proxied, a_commit()))
        assert lost.done == 2
        proxy.fault("lost", uploads)
        with pytest.raises(Fenced):
            sink.persist("commit", lambda: chains.write_commit(proxied, a_commit(token="another")))
        proxy.fault("lost", uploads)
        sink.claim(Progress(1, 0, 10, 60_000, 66_000))
    assert retries == ["upload"] * 3 + ["commit"] * 3 + ["progress"]
    assert chains.read_commit(proxied, 1, 0, 0) == a_commit()
    assert chains.read_progress(proxied, 1, 0) == Progress(1, 0, 10, 60_000, 66_000)


def test_a_lost_answer_to_a_chain_or_to_the_lakes_name_is_understood_by_the_next_look(
    proxied: GcsStore, proxy: Proxy
) -> None:
    proxy.fault("lost", uploads)
    with pytest.raises(UserError, match=r"lake\.json cannot be created"):
        layout.claim_lake(proxied, "simulator", "Asia/Seoul")
    layout.claim_lake(proxied, "simulator", "Asia/Seoul")
    with ThreadPoolExecutor(1) as uploading:
        sink, retries = make_sink(proxied, uploading)
        proxy.fault("lost", uploads)

        def open_chain() -> Chain:
            return chains.open_chain(proxied, "orderbook", "a", {0: 0}, lambda: {0: 0}, 5)

        chain = sink.persist("chain", open_chain)
    assert retries == ["chain"]
    assert chains.read_chains(proxied) == [chain]


@pytest.mark.parametrize("kind", [408, 429, 500, 502, 503, 504, "reset"])
def test_what_passes_is_waited_for(proxied: GcsStore, proxy: Proxy, kind: str | int) -> None:
    with ThreadPoolExecutor(1) as uploading:
        sink, retries = make_sink(proxied, uploading)
        write = proxy.fault(kind, uploads, times=2)
        sink.persist("upload", lambda: sink._create("a", b"rows"))
        assert (write.done, retries) == (2, ["upload"] * 2)
        # Readers have no loop of their own.
        read = proxy.fault(kind, lambda request: request.method == "GET", times=2)
        assert proxied.get("a") == b"rows"
        assert read.done == 2
        listing = proxy.fault(kind, lambda request: request.path.endswith("/o"), times=2)
        assert list(proxied.list("")) == ["a"]
        assert listing.done == 2


@pytest.mark.parametrize("kind", [400, 401, 403, 404, 409])
def test_every_refusal_is_an_error_that_the_writer_waits_out(
    proxied: GcsStore, proxy: Proxy, kind: int
) -> None:
    with ThreadPoolExecutor(1) as uploading:
        sink, retries = make_sink(proxied, uploading)
        proxy.fault(kind, uploads, times=1)
        with pytest.raises(PermissionError if kind == 403 else OSError, match=r"gs://.*/raw/a: "):
            proxied.create("a", b"rows")
        proxy.fault(kind, uploads, times=1)
        sink.persist("upload", lambda: sink._create("a", b"rows"))
    assert retries == ["upload"]
    assert proxied.get("a") == b"rows"


def test_an_answer_that_breaks_off_is_read_on(proxied: GcsStore, proxy: Proxy) -> None:
    content = os.urandom(1 << 20)
    proxied.create("a", content)
    cut = proxy.fault("cut", lambda request: request.name.endswith("/a"))
    assert (proxied.get("a"), cut.done) == (content, 1)


def test_damaged_bytes_are_seen_on_both_ways(proxied: GcsStore, proxy: Proxy) -> None:
    proxied.create("a", b"rows")
    proxy.fault("damage", lambda request: request.method == "GET")
    with pytest.raises(OSError, match=r"(?s)raw/a: .*[Cc]hecksum"):
        proxied.get("a")
    proxy.fault("damage upload", uploads)
    with pytest.raises(OSError, match=r"raw/b: .*crc32c"):
        proxied.create("b", b"damage me")
    # Nothing names it, and the next attempt has another name; this one stays an error.
    with ThreadPoolExecutor(1) as uploading, pytest.raises(ObjectExists):
        make_sink(proxied, uploading)[0]._create("b", b"damage me")


def test_a_store_that_hangs_is_an_error_in_bounded_time_and_a_writer_that_ends_waits_no_longer(
    proxied: GcsStore, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gcs_module, "TIMEOUT_S", 0.5)
    with ThreadPoolExecutor(1) as uploading:
        sink, retries = make_sink(proxied, uploading)
        hanging = proxy.fault("hang", uploads, times=1)
        sink.persist("upload", lambda: sink._create("a", b"rows"))
        assert (hanging.done, retries) == (1, ["upload"])
        hanging = proxy.fault("hang", uploads, times=1000)
        sink.gave_up.set()
        with pytest.raises(Stopped, match="timed out"):
            sink.persist("upload", lambda: sink._create("b", b"rows"))
    assert hanging.done == 1


def test_a_reader_gives_up_after_a_while(proxied: GcsStore, proxy: Proxy) -> None:
    proxied._again = proxied._again.with_timeout(0.5)
    proxy.fault(503, lambda request: True, times=1000)
    with pytest.raises(OSError, match="503"):
        proxied.get("a")
    with pytest.raises(OSError, match="503"):
        list(proxied.list(""))


def test_sixteen_uploads_at_once_share_kept_connections(
    proxied: GcsStore, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: proxied.create(f"{number:03d}", os.urandom(50_000)), range(160)))
    assert len(list(proxied.list(""))) == 160
    assert not [record for record in caplog.records if "pool is full" in record.getMessage()]


# What a writer asks for, and what a person is told.


def test_a_writer_needs_to_create_get_and_list_and_to_overwrite_claims_alone(
    gcs: FakeGcs, proxy: Proxy
) -> None:
    bucket = gcs.bucket()
    store = open_gcs_store(proxy.url, bucket, "raw")
    test_the_chain_is_the_same_on_every_store(store)
    with ThreadPoolExecutor(1) as uploading:
        sink, _ = make_sink(store, uploading)
        sink._create("ticker=BTC/big", os.urandom(9 << 20))
    require_writers_requests(proxy.requests, bucket, "raw/")
    assert {request.method for request in proxy.requests} == {"GET", "POST"}


def require_writers_requests(requests: list[Request], bucket: str, root: str) -> None:
    """Check what a process sent: objects.insert, objects.get, objects.list; overwriting of claims alone."""
    for request in requests:
        if request.method == "POST":
            assert request.path == f"/upload/storage/v1/b/{bucket}/o", request
            assert request.query["uploadType"] == "multipart", request
            assert request.name.startswith(root), request
            is_claim = request.name.startswith(f"{root}_progress/")
            assert request.query.get("ifGenerationMatch") == (None if is_claim else "0"), request
        else:
            assert request.method == "GET", request
            listing = request.path == f"/storage/v1/b/{bucket}/o" and request.query["prefix"].startswith(root)
            content = request.path.startswith(f"/download/storage/v1/b/{bucket}/o/")
            assert listing or (content and request.name.startswith(root)), request


def test_gc_removes_and_nobody_minds_what_is_gone(proxied: GcsStore, proxy: Proxy) -> None:
    proxied.create("a", b"")
    proxied.create("b", b"")
    assert isinstance(proxied, DeletableStore)
    proxied.delete("a")
    proxied.delete("a")
    assert list(proxied.list("")) == ["b"]
    assert not [request for request in proxy.requests if "/o" not in request.path]


@pytest.mark.parametrize(
    "url",
    [
        "gs://",
        "gs:///x",
        "gs://B",
        "gs://bucket/a//b",
        "gs://bucket/../x",
        "gs://bucket/a b",
        "gs://bucket?x=1",
    ],
)
def test_a_url_that_is_none_is_one_clear_line(url: str) -> None:
    with pytest.raises(UserError, match=r"RAW_URL=gs:.*must be gs://bucket or gs://bucket/prefix"):
        open_store(url)


def test_no_bucket_is_one_clear_line(gcs: FakeGcs) -> None:
    with pytest.raises(UserError, match="RAW_URL=gs://nowhere/raw: there is no bucket nowhere; create it"):
        open_gcs_store(gcs.url, "nowhere", "raw")


@pytest.mark.parametrize(
    ("status", "problem"),
    [(403, "may not list .*the test says 403"), (401, "credentials cannot be used: Anonymous credentials")],
)
def test_no_permission_is_one_clear_line(gcs: FakeGcs, proxy: Proxy, status: int, problem: str) -> None:
    bucket = gcs.bucket()
    proxy.fault(status, lambda request: request.method == "GET", times=5)
    with pytest.raises(UserError, match=f"RAW_URL=gs://{bucket}/raw: .*{problem}"):
        open_gcs_store(proxy.url, bucket, "raw")


def test_a_writer_that_may_not_create_is_told_at_its_start_and_not_at_its_first_upload(
    proxied: GcsStore, proxy: Proxy
) -> None:
    layout.claim_lake(proxied, "simulator", "Asia/Seoul")
    refusing = proxy.fault(403, uploads, times=5)
    with pytest.raises(
        UserError, match=r"gs://.*/raw/lake\.json cannot be created or read .*the test says 403"
    ):
        layout.claim_lake(proxied, "simulator", "Asia/Seoul")
    refusing.times = 0
    proxy.fault(503, uploads)
    layout.claim_lake(proxied, "simulator", "Asia/Seoul")  # fails now, and the writer tries again by itself


def test_a_writer_that_may_not_replace_learns_that_a_name_is_taken_whichever_way_google_says_it(
    proxied: GcsStore, proxy: Proxy
) -> None:
    proxied.create("a", b"rows")
    proxy.fault("may not replace", uploads)
    with pytest.raises(ObjectExists):
        proxied.create("a", b"others")
    proxy.fault("may not replace", uploads)
    with pytest.raises(PermissionError):
        proxied.create("a/b", b"it is not there: a refusal")
    layout.claim_lake(proxied, "simulator", "Asia/Seoul")
    proxy.fault("may not replace", uploads)
    layout.claim_lake(proxied, "simulator", "Asia/Seoul")  # started again
    proxy.fault("may not replace", uploads)
    with pytest.raises(PermissionError):
        proxied.replace("a", b"others")
    assert proxied.get("a") == b"rows"


def test_an_unreachable_store_is_one_clear_line(gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs_module, "AGAIN_FOR_S", 0.5)
    with pytest.raises(UserError, match=r"RAW_URL=gs://bucket/raw: the store cannot be reached: .*refused"):
        open_gcs_store("http://127.0.0.1:1", "bucket", "raw")


def test_no_credentials_are_one_clear_line(tmp_path: Path) -> None:
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "from ingest_services.lake.stores import open_store; open_store('gs://bucket/raw')",
        ],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "NO_GCE_CHECK": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    last = run.stderr.splitlines()[-1]
    assert "UserError: RAW_URL=gs://bucket/raw: no Google credentials were found" in last
    assert "gcloud auth application-default login" in last


def test_who_has_a_folder_does_not_load_googles_library() -> None:
    code = (
        "import sys, ingest_services.commands\n"
        "import ingest_services.consumer.service, ingest_services.producer.service\n"
        "from ingest_services.lake.stores import open_store\n"
        "open_store('file:///tmp')\n"
        "print([name for name in sys.modules if name.startswith('google')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_bucket_is_created_once_and_then_there(gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
    name = f"new-{uuid.uuid4().hex[:8]}"
    assert create_bucket(f"gs://{name}/orderbook")
    assert not create_bucket(f"gs://{name}/another")
    open_store(f"gs://{name}/orderbook").create("lake.json", b"{}")
    with pytest.raises(UserError, match="must be gs://bucket or gs://bucket/prefix"):
        create_bucket("s3://elsewhere")


def test_who_may_use_a_bucket_need_not_be_allowed_to_create_one(
    gcs: FakeGcs, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
    proxy.fault(403, lambda request: request.method == "POST", times=2)
    assert not create_bucket(f"gs://{gcs.bucket()}/orderbook")
    with pytest.raises(
        UserError, match=r"gs://none/orderbook: there is no bucket none, .*buckets create gs://none"
    ):
        create_bucket("gs://none/orderbook")


def test_a_bucket_that_is_somebody_else_s_is_refused_and_says_what_to_do(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
    proxy.fault(403, lambda request: request.path.endswith("/o"))
    with pytest.raises(UserError) as refused:
        create_bucket("gs://somebodys/orderbook")
    assert "gs://somebodys/orderbook: this account may not look into the bucket somebodys" in str(
        refused.value
    )
    assert "if the name is somebody else's (all of Google's customers share them), name another" in str(
        refused.value
    )
