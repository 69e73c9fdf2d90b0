"""The spool gives back what was put in, in order, whatever happens to the process or the file."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from ingest_services import commands, logs
from ingest_services.errors import UserError
from ingest_services.producer import service
from ingest_services.producer import spool as spool_module
from ingest_services.producer.outgoing import Outgoing
from ingest_services.producer.spool import MAGIC, Spool, Spooled, SpoolFull, read_segment, warn_of_orphans

payloads = st.lists(st.binary(min_size=1, max_size=60), max_size=30)


def drain(spool: Spool, *, acknowledge: bool = True) -> list[bytes]:
    found: list[Spooled] = []
    while (spooled := spool.read()) is not None:
        found.append(spooled)
    if acknowledge:
        for spooled in found:
            spool.acknowledge(spooled)
    return [spooled.payload for spooled in found]


def files(root: Path) -> list[Path]:
    return sorted(root.rglob("*.spool"))


def die(spool: Spool) -> None:
    """What SIGKILL does: descriptors are closed, nothing is written."""
    for folder in [spool._own, *spool._folders]:
        os.close(folder.lock)
    if spool._writing is not None:
        os.close(spool._writing)


@given(payloads, st.integers(30, 300))
def test_records_come_back_in_order_and_leave_nothing(records: list[bytes], segment_bytes: int) -> None:
    with TemporaryDirectory() as folder:
        spool = Spool(Path(folder), "s", segment_bytes=segment_bytes)
        for record in records:
            spool.append(record)
        spool.close_segment()
        assert spool.pending is bool(records)
        assert drain(spool) == records
        assert spool.bytes == 0
        assert files(Path(folder)) == []
        spool.close()
        assert [path.name for path in Path(folder, "s").iterdir()] == ["lock"]


@given(payloads, st.data())
def test_a_file_cut_off_anywhere_gives_every_whole_record(records: list[bytes], data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        spool = Spool(Path(folder), "s")
        ends = [len(MAGIC)]
        for record in records:
            spool.append(record)
            ends.append(ends[-1] + 8 + len(record))
        die(spool)
        for path in files(Path(folder)):
            cut = data.draw(st.integers(0, ends[-1]))
            os.truncate(path, cut)
            whole = sum(1 for end in ends[1:] if end <= cut)
            after = Spool(Path(folder), "s")
            assert drain(after) == records[:whole]
            assert after.bytes == 0
            assert after.damaged_bytes == (cut - ends[whole] if cut >= len(MAGIC) else cut)
            after.close()


@given(st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=30), st.data())
def test_a_flipped_byte_never_gives_a_wrong_record(records: list[bytes], data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        spool = Spool(Path(folder), "s")
        for record in records:
            spool.append(record)
        spool.close_segment()
        content = bytearray(files(Path(folder))[0].read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        found, damaged = read_segment(bytes(content))
        assert damaged > 0
        left = list(records)
        for record, _ in found:
            left = left[left.index(record) + 1 :]
        die(spool)


@given(st.binary(max_size=300))
def test_any_bytes_can_be_read(content: bytes) -> None:
    for data in (content, MAGIC + content):
        records, damaged = read_segment(data)
        assert sum(8 + len(record) for record, _ in records) + damaged <= len(data)


def test_a_tail_of_zeros_ends_a_segment(tmp_path: Path) -> None:
    # What a power cut leaves on some file systems: the length is there, the bytes are not.
    spool = Spool(tmp_path, "s")
    spool.append(b"kept")
    die(spool)
    with files(tmp_path)[0].open("ab") as file:
        file.write(bytes(4096))
    assert drain(Spool(tmp_path, "s")) == [b"kept"]


def test_the_last_record_cut_off_at_every_byte_costs_that_record_alone(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "s")
    for record in (b"first", b"second", b"the last one"):
        spool.append(record)
    whole = files(tmp_path)[0].read_bytes()
    start = len(whole) - 8 - len(b"the last one")
    for cut in range(start, len(whole)):
        assert [record for record, _ in read_segment(whole[:cut])[0]] == [b"first", b"second"], cut
        assert read_segment(whole[:cut])[1] == cut - start
    assert len(read_segment(whole)[0]) == 3
    die(spool)


def test_the_last_record_zeroed_from_every_byte_on_costs_that_record_alone(tmp_path: Path) -> None:
    # The file's new length reached the disk, its last blocks did not.
    spool = Spool(tmp_path, "s")
    for record in (b"first", b"second", b"the last one"):
        spool.append(record)
    whole = files(tmp_path)[0].read_bytes()
    start = len(whole) - 8 - len(b"the last one")
    for cut in range(start, len(whole)):
        damaged = whole[:cut] + bytes(len(whole) - cut + 500)
        assert [record for record, _ in read_segment(damaged)[0]] == [b"first", b"second"], cut
    die(spool)


def test_every_flipped_bit_of_a_record_is_noticed(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "s")
    for record in (b"first", b"second", b"third"):
        spool.append(record)
    whole = files(tmp_path)[0].read_bytes()
    at = len(MAGIC) + 8 + len(b"first")
    for bit in range(at * 8, (at + 8 + len(b"second")) * 8):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        records, damaged = read_segment(bytes(content))
        # A wrong length may take what follows with it; it never makes a record that was not there.
        assert [record for record, _ in records] in ([b"first", b"third"], [b"first"]), bit
        assert damaged > 0
    die(spool)


def test_a_dead_process_s_folder_is_adopted_and_a_living_one_s_is_not(tmp_path: Path) -> None:
    first = Spool(tmp_path, "s")
    first.append(b"of the first")
    second = Spool(tmp_path, "s")
    assert drain(second) == []
    die(first)
    assert second.adopt() > 0
    second.append(b"of the second")
    second.close_segment()
    assert drain(second) == [b"of the first", b"of the second"]
    assert files(tmp_path) == []
    second.close()
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["lock"]


def test_sections_do_not_touch_each_other_s_spools(tmp_path: Path) -> None:
    one = Spool(tmp_path, "../one/section")
    one.append(b"x")
    die(one)
    assert drain(Spool(tmp_path, "other")) == []
    assert drain(Spool(tmp_path, "../one/section")) == [b"x"]
    assert all(tmp_path in path.parents for path in tmp_path.rglob("*"))


@given(st.integers(0, 20))
def test_a_clean_stop_remembers_what_kafka_has(acknowledged: int) -> None:
    records = [bytes([i]) for i in range(20)]
    with TemporaryDirectory() as folder:
        spool = Spool(Path(folder), "s", segment_bytes=70)
        for record in records:
            spool.append(record)
        spool.close_segment()
        read = [spool.read() for _ in records]
        for spooled in read[:acknowledged]:
            assert spooled is not None
            spool.acknowledge(spooled)
        spool.close()
        assert drain(Spool(Path(folder), "s")) == records[acknowledged:]


@given(st.integers(0, 20))
def test_a_rewind_begins_at_the_first_record_that_kafka_has_not(acknowledged: int) -> None:
    records = [bytes([i]) for i in range(20)]
    with TemporaryDirectory() as folder:
        spool = Spool(Path(folder), "s", segment_bytes=70)
        for record in records:
            spool.append(record)
        spool.close_segment()
        read = [spool.read() for _ in records]
        for spooled in read[:acknowledged]:
            assert spooled is not None
            spool.acknowledge(spooled)
        spool.rewind()
        assert drain(spool) == records[acknowledged:]
        assert spool.bytes == 0
        spool.close()


def test_a_copy_is_delivered_in_its_place_only_if_it_is_released(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "s")
    kept = spool.write_apart([b"a", b"b", b"c"])
    spool.append(b"d")
    spool.close_segment()
    assert kept is not None
    spool.release(kept, 2)
    assert drain(spool) == [b"c", b"d"]
    dropped = spool.write_apart([b"x"])
    assert dropped is not None
    assert drain(spool) == []
    spool.drop(dropped)
    assert spool.bytes == 0
    spool.close()


def test_a_copy_survives_the_process(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "s")
    assert spool.write_apart([b"a", b"b"]) is not None
    die(spool)
    assert drain(Spool(tmp_path, "s")) == [b"a", b"b"]


def test_a_full_spool_refuses_and_takes_again_when_there_is_room(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "s", limit_bytes=300)
    kept = (300 - 2 * len(MAGIC)) // 58
    for _ in range(kept):
        spool.append(b"x" * 50)
    with pytest.raises(SpoolFull, match="300 bytes"):
        spool.append(b"x" * 50)
    assert spool.bytes <= 300
    assert spool.write_apart([b"y" * 100]) is None
    spool.close_segment()
    assert len(drain(spool)) == kept
    spool.append(b"room again")
    spool.close()


def test_a_disk_that_refuses_loses_one_record_and_spoils_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path, "s")
    spool.append(b"before")
    whole_write = os.write

    def short_write(descriptor: int, data: bytes) -> int:
        return whole_write(descriptor, data[:3])

    monkeypatch.setattr(spool_module.os, "write", short_write)
    with pytest.raises(SpoolFull, match="only 3 of"):
        spool.append(b"lost")
    monkeypatch.undo()
    spool.append(b"after")
    spool.close_segment()
    assert drain(spool) == [b"before", b"after"]
    assert spool.damaged_bytes == 0
    spool.close()


def test_a_disk_that_takes_no_new_file_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path, "s")

    def no_space(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spool_module.os, "write", no_space)
    for _ in range(3):
        with pytest.raises(SpoolFull, match="No space left"):
            spool.append(b"lost")
    assert spool.bytes == 0
    assert files(tmp_path) == []
    monkeypatch.undo()
    spool.append(b"after")
    spool.close_segment()
    assert drain(spool) == [b"after"]
    spool.close()


@contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """The kernel itself refuses: the write that reaches the bound is short, the next one fails."""
    was = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, was[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, was)


def test_a_disk_that_fills_up_inside_a_record_keeps_the_records_before_it(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "s")
    kept = [b"%04d" % number * 25 for number in range(9)]
    with files_no_longer_than(len(MAGIC) + 9 * 108 + 50):
        for record in kept:
            spool.append(record)
        size = files(tmp_path)[0].stat().st_size
        for _ in range(3):
            with pytest.raises(SpoolFull):
                spool.append(b"lost" * 25)
            assert files(tmp_path)[0].stat().st_size == size
    assert (spool.bytes, spool.records) == (size, 9)
    spool.append(b"room again")
    die(spool)
    after = Spool(tmp_path, "s")
    assert drain(after) == [*kept, b"room again"]
    assert after.damaged_bytes == 0
    after.close()


def test_a_copy_that_the_disk_cannot_take_whole_is_none(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "s")
    spool.append(b"before")
    with files_no_longer_than(len(MAGIC) + 300):
        assert spool.write_apart(b"x" * 100 for _ in range(5)) is None
    assert drain(spool) == [b"before"]
    assert (spool.bytes, spool.records, spool.oldest_us) == (0, 0, 0)
    spool.close()


def test_a_full_disk_does_not_keep_a_process_from_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path, "s")
    for record in (b"a", b"b"):
        spool.append(record)
    spool.close_segment()
    first = spool.read()
    assert first is not None
    spool.acknowledge(first)

    def no_space(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", no_space)
    with capture_logs() as logs:
        spool.close()
    assert [line["event"] for line in logs] == ["spool_cursor_not_saved"]
    monkeypatch.undo()
    # What no cursor remembers is delivered once more.
    assert drain(Spool(tmp_path, "s")) == [b"a", b"b"]


def test_a_copy_that_cannot_be_read_again_is_delivered_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path, "s")
    kept = spool.write_apart([b"a", b"b"])
    assert kept is not None

    def no_read(path: Path) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", no_read)
    spool.release(kept, 1)
    monkeypatch.undo()
    assert drain(spool) == [b"a", b"b"]
    spool.close()


def test_a_copy_that_the_disk_spoiled_leaves_out_nothing_that_kafka_has_not(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "s")
    kept = spool.write_apart([b"%d" % n for n in range(10)])
    assert kept is not None
    content = bytearray(kept.path.read_bytes())
    content[content.index(b"2", len(MAGIC) + 2 * 9)] ^= 1
    kept.path.write_bytes(content)
    spool.release(kept, 5)
    assert set(drain(spool)) >= {b"5", b"6", b"7", b"8", b"9"}
    spool.close()


def test_a_folder_that_cannot_be_read_now_is_adopted_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead, spool = Spool(tmp_path, "s"), Spool(tmp_path, "s")
    dead.append(b"waits")
    die(dead)

    def no_read(folder: Path) -> list[spool_module.Segment]:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(spool_module, "_find_segments", no_read)
    with pytest.raises(OSError, match="Input/output"):
        spool.adopt()
    monkeypatch.undo()
    assert spool.adopt() > 0
    assert drain(spool) == [b"waits"]
    spool.close()


def stamped(received_us: int) -> bytes:
    return Outgoing(received_us, b"BTC", [], b"frame").pack()


def test_depth_and_age_are_those_of_what_waits(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "s", segment_bytes=100)
    assert (spool.records, spool.oldest_us) == (0, 0)
    stamps = [1_700_000_000_000_000 + number for number in range(20)]
    for stamp in stamps:
        spool.append(stamped(stamp))
    spool.close_segment()
    assert (spool.records, spool.oldest_us) == (20, stamps[0])
    read = [spool.read() for _ in range(12)]
    for spooled in read:
        assert spooled is not None
        spool.acknowledge(spooled)
    assert spool.records == 8
    # To a segment, and a segment is three or four records here.
    assert stamps[8] <= spool.oldest_us <= stamps[12]
    spool.rewind()
    assert len(drain(spool)) == 8
    assert (spool.records, spool.oldest_us, spool.bytes) == (0, 0, 0)
    kept = spool.write_apart([stamped(stamps[0]), stamped(stamps[1])])
    assert kept is not None
    assert (spool.records, spool.oldest_us) == (2, stamps[0])
    spool.drop(kept)
    assert (spool.records, spool.oldest_us) == (0, 0)
    spool.close()


def test_the_age_survives_the_process(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "s")
    for stamp in (1_700_000_000_000_000, 1_700_000_000_000_001, 1_700_000_000_000_002):
        spool.append(stamped(stamp))
    assert spool.oldest_us == 1_700_000_000_000_000
    spool.close_segment()
    first = spool.read()
    assert first is not None
    spool.acknowledge(first)
    spool.save_cursors()
    die(spool)
    after = Spool(tmp_path, "s")
    assert after.oldest_us == 1_700_000_000_000_001
    # Counted when they are read: counting does not keep a start waiting.
    assert after.records == 0
    assert after.read() is not None
    assert after.records == 2
    after.close()


def test_the_age_of_a_spool_whose_first_record_is_damaged_is_its_file_s(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "s")
    spool.append(stamped(1_700_000_000_000_000))
    die(spool)
    path = files(tmp_path)[0]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, (1_800_000_000, 1_800_000_000))
    assert Spool(tmp_path, "s").oldest_us == 1_800_000_000_000_000


def test_a_section_that_nobody_runs_any_more_is_named(tmp_path: Path) -> None:
    gone = Spool(tmp_path, "gone/away")
    gone.append(b"waits")
    die(gone)
    for name in ("kept", "empty"):
        Spool(tmp_path, name).close()
    kept = Spool(tmp_path, "kept")
    kept.append(b"x")
    die(kept)
    running = Spool(tmp_path, "of another configuration")
    running.append(b"x")
    (tmp_path / "not a spool").mkdir()
    with capture_logs() as logs:
        warn_of_orphans(tmp_path, ["kept"])
    assert [line["event"] for line in logs] == ["spool_orphaned"]
    assert logs[0]["folder"] == str(tmp_path / "gone%2Faway")
    assert logs[0]["bytes"] == len(MAGIC) + 8 + len(b"waits")
    assert "[gone/away] back into producer.conf" in logs[0]["what_to_do"]
    # Looking at it took nothing away.
    assert drain(Spool(tmp_path, "gone/away")) == [b"waits"]
    running.close()
    with capture_logs() as logs:
        warn_of_orphans(tmp_path / "nowhere", [])
    assert logs == []


def test_a_producer_that_starts_names_the_sections_that_producer_conf_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Those that another process runs are not among them.
    for name in ("here", "elsewhere", "gone"):
        spool = Spool(tmp_path / "spool", name)
        spool.append(b"waits")
        die(spool)
    conf = tmp_path / "producer.conf"
    conf.write_text(
        "[here]\ntopic_name=t\npartition_number=0\ntickers=BTC\n"
        "[elsewhere]\ntopic_name=t\npartition_number=1\ntickers=ETH\n"
    )
    monkeypatch.setenv("PRODUCER_CONF", str(conf))
    monkeypatch.setenv("SPOOL_DIR", str(tmp_path / "spool"))
    monkeypatch.setattr(logs, "setup_logging", lambda: None)
    monkeypatch.setattr(service, "run", lambda sections, *_: len(sections))
    # The command ends its process for good, which would be this one.
    monkeypatch.setattr(commands, "_leave", sys.exit)
    with capture_logs() as lines, pytest.raises(SystemExit) as ended:
        commands.produce(["here"])
    assert ended.value.code == 1
    assert [(line["event"], line["folder"]) for line in lines] == [
        ("spool_orphaned", str(tmp_path / "spool" / "gone"))
    ]


def test_an_unreadable_segment_is_left_for_a_person(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "s")
    spool.append(b"a")
    spool.close_segment()
    files(tmp_path)[0].unlink()
    spool.append(b"b")
    spool.close_segment()
    assert drain(spool) == [b"b"]
    spool.close()


def test_a_spool_that_cannot_be_made_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="SPOOL_DIR="):
        Spool(tmp_path / "file", "s")


@settings(max_examples=300)
@given(
    st.integers(0, 2**63 - 1),
    st.binary(max_size=40),
    st.lists(st.tuples(st.text("abcdefgh_", min_size=1, max_size=20), st.binary(max_size=100)), max_size=6),
    st.binary(max_size=4000),
)
def test_a_record_survives_packing(
    received_us: int, key: bytes, headers: list[tuple[str, bytes]], value: bytes
) -> None:
    record = Outgoing(received_us, key, headers, value)
    assert Outgoing.unpack(record.pack()) == record


class SpoolUnderTest:
    """A spool, and what was put in, is on its way, and was delivered."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.spool = Spool(root, "s", segment_bytes=120)
        self.put: list[bytes] = []
        self.got: list[bytes] = []
        self.on_the_way: list[Spooled] = []
        self.killed = False

    def append(self, content: bytes) -> None:
        record = len(self.put).to_bytes(4, "big") + content
        self.spool.append(record)
        self.put.append(record)

    def close(self) -> None:
        self.spool.close_segment()

    def read(self) -> None:
        spooled = self.spool.read()
        if spooled is not None:
            self.on_the_way.append(spooled)

    def acknowledge(self) -> None:
        if self.on_the_way:
            first = self.on_the_way.pop(0)
            self.spool.acknowledge(first)
            self.got.append(first.payload)

    def cursors(self) -> None:
        self.spool.save_cursors()

    def rewind(self) -> None:
        self.spool.rewind()
        self.on_the_way.clear()

    def die(self) -> None:
        die(self.spool)
        self.killed = True
        self._begin_again()

    def stop(self) -> None:
        self.spool.close()
        self._begin_again()

    def _begin_again(self) -> None:
        self.spool = Spool(self.root, "s", segment_bytes=120)
        self.on_the_way.clear()


@given(
    st.lists(
        st.one_of(
            st.binary(min_size=1, max_size=40),
            st.sampled_from(["close", "read", "acknowledge", "rewind", "die", "stop", "cursors"]),
        ),
        max_size=60,
    )
)
def test_whatever_the_order_of_events_nothing_is_lost_and_order_is_kept(events: list[bytes | str]) -> None:
    with TemporaryDirectory() as folder:
        run = SpoolUnderTest(Path(folder))
        for event in events:
            if isinstance(event, bytes):
                run.append(event)
            else:
                getattr(run, event)()
        run.close()
        run.rewind()
        run.got += drain(run.spool)
        # A kill may deliver again what no cursor remembers; nothing else may.
        assert (list(dict.fromkeys(run.got)) if run.killed else run.got) == run.put
        assert (run.spool.bytes, run.spool.records, run.spool.oldest_us) == (0, 0, 0)
        run.spool.close()
        assert files(run.root) == []


def test_what_was_synced_can_be_found_after_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file and every folder on the way to it was fsynced after its last change."""
    synced: dict[Path, set[str]] = {}
    fsync = os.fsync

    def note(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        names = {entry.name for entry in path.iterdir()} if path.is_dir() else {str(path.stat().st_size)}
        synced[path] = names
        fsync(descriptor)

    monkeypatch.setattr(spool_module.os, "fsync", note)
    root = tmp_path / "spool"
    spool = Spool(root, "s")
    spool.append(b"kept")
    spool.sync(0.0, force=True)
    (path,) = files(root)
    assert synced[path] == {str(path.stat().st_size)}
    for folder in (path.parent, path.parent.parent, root):
        assert path.relative_to(folder).parts[0] in synced[folder]
    spool.close()


def test_a_disk_that_does_not_sync_is_asked_once_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path, "s")
    spool.append(b"kept")
    asked: list[int] = []

    def refuse(descriptor: int) -> None:
        asked.append(descriptor)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(spool_module.os, "fsync", refuse)
    with pytest.raises(OSError, match="Input/output"):
        spool.sync(100.0)
    for tenth in range(1, 10):
        spool.sync(100.0 + tenth / 10)
    assert len(asked) == 1
    with pytest.raises(OSError, match="Input/output"):
        spool.sync(101.0)
    monkeypatch.undo()
    spool.sync(102.0)
    assert not spool._unsynced
    spool.close()
