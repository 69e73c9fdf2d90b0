"""An audit finds whatever a lake says and does not hold; a lake that is right is clean."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest
from crc32c import crc32c
from typer.testing import CliRunner

from ingest_services import cli
from ingest_services.errors import UserError
from ingest_services.lake import audit as audits
from ingest_services.lake import chain as chains
from ingest_services.lake import layout, lines
from ingest_services.lake.audit import BrokerLog, Report, Scope
from tests.lake_builder import SEOUL, LakeBuilder, Row, frame, heartbeat, instant, ms

START = instant("2025-02-02 16:05:00")
MINUTE = timedelta(minutes=1)


def row(second: int, ticker: str = "BTC") -> Row:
    tms = ms(START) + second * 1000
    return Row(frame(ticker, tms, [(101, 100, 1, second + 1)]), tms * 1000 + 5000)


@pytest.fixture
def lake(tmp_path: Path) -> LakeBuilder:
    """Two partitions, three commits, every kind of object, a range that is missing, and claims."""
    builder = LakeBuilder(tmp_path / "raw", partitions=2, since=START)
    builder.commit(
        [row(0), row(1), row(2, "ETH"), row(61)],
        [heartbeat(START, START + 10 * timedelta(seconds=1), "BTC", "ETH")],
        [Row(b"garbage", ms(START) * 1000)],
        committed=START + MINUTE,
    )
    builder.commit([row(70), row(71)], missing=3, committed=START + 2 * MINUTE)
    builder.commit([row(5)], partition=1, committed=START + 2 * MINUTE)
    builder.through(START + 2 * MINUTE, reported=START + 2 * MINUTE)
    return builder


def look(lake: LakeBuilder, **scope: object) -> Report:
    return audits.audit(lake.store, Scope(**scope))  # type: ignore[arg-type]


def only(report: Report) -> str:
    assert report.violation_count == len(report.violations) == 1, [str(v) for v in report.violations]
    return str(report.violations[0])


def objects(lake: LakeBuilder, prefix: str = "ticker=") -> list[Path]:
    return [lake.folder / path for path in lake.store.list(prefix)]


@pytest.mark.parametrize("deep", [False, True])
def test_a_lake_that_is_right_is_clean_and_told_in_figures(lake: LakeBuilder, deep: bool) -> None:
    report = look(lake, deep=deep)
    assert [str(v) for v in report.violations] == []
    first, second = report.partitions
    assert (first.commits, first.objects, first.tail, first.missing) == (2, 6, 11, 3)
    assert first.rows == {"book": 6, "heartbeat": 1, "quarantine": 1}
    assert (second.commits, second.tail, second.minutes_through_ms) == (1, 1, ms(START + 2 * MINUTE))
    assert report.gaps == [(1, 0, 8, 11)]
    assert (report.orphans, report.in_flight, report.foreign) == ({}, 0, 0)


def change(index: int, edit: Callable[[bytes], bytes]) -> Callable[[LakeBuilder], None]:
    def damage(lake: LakeBuilder) -> None:
        path = objects(lake)[index]
        path.write_bytes(edit(path.read_bytes()))

    return damage


def recommit(lake: LakeBuilder, **changes: object) -> None:
    """Change the first commit of partition 0."""
    path = lake.folder / layout.commit_path(1, 0, 0)
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), **changes}))


def move_minute(lake: LakeBuilder) -> None:
    """Put an object and what its commit says of it into another minute than its rows'."""
    path = lake.folder / layout.commit_path(1, 1, 0)
    commit = orjson.loads(path.read_bytes())
    (file,) = commit["files"]
    moved = file["path"].replace("minute=05", "minute=06")
    (lake.folder / moved).parent.mkdir(parents=True, exist_ok=True)
    (lake.folder / file["path"]).rename(lake.folder / moved)
    file.update(path=moved, minute_ms=file["minute_ms"] + 60_000)
    path.write_bytes(orjson.dumps(commit))


def claim_too_much(lake: LakeBuilder) -> None:
    claim = chains.Progress(1, 0, 12, ms(START + 2 * MINUTE), ms(START))
    chains.write_progress(lake.store, claim)


def leave_behind(lake: LakeBuilder) -> None:
    lake.through(START + 30 * MINUTE, 1)


DAMAGES: dict[str, tuple[Callable[[LakeBuilder], None], str]] = {
    "object removed": (lambda lake: objects(lake)[0].unlink(), "is gone, and _commits/"),
    "object cut": (change(0, lambda data: data[:-1]), "bytes, its commit says"),
    "bit flipped": (change(0, lambda data: data[:-1] + bytes([data[-1] ^ 1])), "has the checksum"),
    "commit removed": (
        lambda lake: (lake.folder / layout.commit_path(1, 0, 0)).unlink(),
        "leaves a hole before it: the chain goes on at 0, the commit begins at 6",
    ),
    "last commit removed": (
        lambda lake: (lake.folder / layout.commit_path(1, 0, 6)).unlink(),
        "the claim speaks of offsets up to 11, the chain ends at 6",
    ),
    "commit garbled": (
        lambda lake: (lake.folder / layout.commit_path(1, 0, 6)).write_bytes(b"{}"),
        "cannot be understood",
    ),
    "commit of another token": (lambda lake: recommit(lake, token="ffffffff"), "than the commit that names"),
    "commit that does not add up": (lambda lake: recommit(lake, books=5), "does not add up"),
    "counts shifted": (lambda lake: recommit(lake, books=3, heartbeats=2), "its objects have"),
    "rows of another minute": (move_minute, "holds a line of another minute"),
    "claim garbled": (
        lambda lake: lake.store.replace(layout.progress_path(1, 0), b"{}"),
        "the claim cannot be understood",
    ),
    "claim ahead": (claim_too_much, "the claim speaks of offsets up to 12"),
    "partition left behind": (leave_behind, "28 minutes behind the partitions beside it"),
    "commit of no chain": (
        lambda lake: lake.store.create(layout.commit_path(9, 0, 0), b"{}"),
        "commits of a chain or partition that is not there",
    ),
    "strange name": (
        lambda lake: lake.store.create("_commits/00000001/0000/x.json", b""),
        "not a commit's name",
    ),
    "chain garbled": (lambda lake: lake.store.create("_chains/00000002.json", b"{}"), "cannot be understood"),
}


@pytest.mark.parametrize(("damage", "told"), DAMAGES.values(), ids=DAMAGES)
def test_every_damage_is_named(lake: LakeBuilder, damage: Callable[[LakeBuilder], None], told: str) -> None:
    damage(lake)
    report = look(lake)
    assert any(told in str(violation) for violation in report.violations), report.violations


def rewrite(lake: LakeBuilder, edit: Callable[[list[bytes]], list[bytes]]) -> None:
    """Change the lines of an object of three, and let its commit agree with the bytes."""
    path = lake.folder / layout.commit_path(1, 0, lake.next[0])
    lake.commit([row(80), row(81), row(82)], missing=2)
    commit = orjson.loads(path.read_bytes())
    (file,) = commit["files"]
    target = lake.folder / file["path"]
    content = lines.decompress(file["path"], target.read_bytes()).splitlines(keepends=True)
    data = lines.pack(list(edit(content)), file["path"])
    target.write_bytes(data)
    file.update(bytes=len(data), crc32c=f"{crc32c(data):08x}")
    path.write_bytes(orjson.dumps(commit))


LINES: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "repeated": (lambda found: [found[0], found[0], found[2]], "holds offset 11 2 times"),
    "of another batch": (
        lambda found: [found[0], found[1].replace(b'"offset":12', b'"offset":3'), found[2]],
        "holds an offset that its commit does not cover",
    ),
    "called missing": (
        lambda found: [found[0], found[1].replace(b'"offset":12', b'"offset":14'), found[2]],
        "calls offset 14 missing, and holds it",
    ),
    "no JSON": (lambda found: [found[0], b"x\n", found[2]], "not a line of a raw object"),
}


@pytest.mark.parametrize(("edit", "told"), LINES.values(), ids=LINES)
def test_only_a_deep_audit_reads_the_lines_between_the_first_and_the_last(
    lake: LakeBuilder, edit: Callable[[list[bytes]], list[bytes]], told: str
) -> None:
    rewrite(lake, edit)
    assert look(lake).violation_count == 0
    assert any(told in str(violation) for violation in look(lake, deep=True).violations)


def test_what_nobody_names_is_counted_and_no_violation(lake: LakeBuilder) -> None:
    for base, token in ((0, "aaaaaaaa"), (6, "bbbbbbbb"), (11, "cccccccc")):
        path = layout.book_path("BTC", ms(START), ms(START), 0, base, token, SEOUL, ".jsonl.zst")
        lake.store.create(path, b"")
    lake.store.create(layout.side_path("coverage", ms(START), 1, 0, "dddddddd", SEOUL, ".jsonl.zst"), b"")
    lake.store.create("notes.txt", b"")
    report = look(lake)
    assert report.violation_count == 0
    assert report.orphans == {"book": 2, "coverage": 1}
    assert (report.in_flight, report.foreign_paths) == (1, ["notes.txt"])


def test_since_looks_at_the_newer_commits_alone(lake: LakeBuilder) -> None:
    objects(lake)[0].unlink()
    assert look(lake).violation_count == 1
    report = look(lake, since_ms=ms(START + 2 * MINUTE))
    assert report.violation_count == 0
    assert [(p.start, p.commits) for p in report.partitions] == [(6, 1), (0, 1)]
    (lake.folder / layout.commit_path(1, 0, 6)).rename(lake.folder / layout.commit_path(1, 0, 7))
    assert look(lake, since_ms=ms(START)).violation_count > 0


def test_a_closed_chain_ends_where_its_successor_says_and_void_commits_do_not_count(
    lake: LakeBuilder,
) -> None:
    log = {0: 0, 1: 0}
    second = chains.open_chain(lake.store, "orderbook", "topic-2", log, lambda: log, ms(START + 5 * MINUTE))
    assert (second.predecessor, second.predecessor_end) == (1, {0: 11, 1: 1})
    with pytest.raises(chains.Sealed):
        lake.commit([row(90)])  # by a writer that had not heard of it
    (lake.folder / layout.commit_path(1, 0, 11)).unlink()  # the seal
    lake.commit([row(90)])
    report = look(lake, deep=True)
    assert report.violation_count == 0
    assert (report.partitions[0].void, report.partitions[0].end) == (1, 11)
    (lake.folder / layout.commit_path(1, 0, 6)).unlink()
    assert any("its successor says 11" in str(v) for v in look(lake, chain=1).violations)


def test_a_chain_that_is_not_there_and_a_lake_that_is_none_are_one_line_each(
    lake: LakeBuilder, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="there is no chain 7"):
        look(lake, chain=7)
    (lake.folder / "lake.json").unlink()
    with pytest.raises(UserError, match="there is no lake here"):
        look(lake)


def compare(lake: LakeBuilder, log: BrokerLog | None) -> list[str]:
    report = audits.audit(lake.store, Scope(), lambda topics: dict.fromkeys(topics, log))
    return [str(violation) for violation in report.violations]


def test_the_broker_is_compared_with_the_tails(lake: LakeBuilder) -> None:
    lake.through(datetime.now(UTC))
    fits = BrokerLog("topic-1", {0: 0, 1: 0}, {0: 20, 1: 1})
    assert compare(lake, fits) == []
    wrong = {
        "does not have the topic": None,
        "re-created": dataclasses.replace(fits, topic_id="topic-2"),
        "has partitions [0, 1, 2]": BrokerLog("topic-1", {0: 0, 1: 0, 2: 0}, {0: 20, 1: 1, 2: 0}),
        "the log ends at 10, we have up to 11": dataclasses.replace(fits, end={0: 10, 1: 1}),
        "the log begins at 15, we have up to 11": dataclasses.replace(fits, start={0: 15, 1: 0}),
    }
    for told, log in wrong.items():
        (violation,) = compare(lake, log)
        assert told in violation
    lake.through(START + 9 * MINUTE)
    # Claims are true for ever, the largest counts; here the newest object is an old one.
    assert len([v for v in compare(lake, fits) if "nothing is claimed since" in v]) == 2


def test_records_behind_a_retirement_are_a_violation(lake: LakeBuilder) -> None:
    chain = chains.read_chains(lake.store)[0]
    chains.retire(lake.store, chain, {0: 11, 1: 1}, ms(START), "retired")
    log = BrokerLog("topic-1", {0: 0, 1: 0}, {0: 11, 1: 1})
    assert compare(lake, None) == compare(lake, log) == []
    (told,) = compare(lake, dataclasses.replace(log, end={0: 13, 1: 1}))
    assert "records beyond its end (by partition: {0: 2})" in told
    (lake.folder / layout.commit_path(1, 0, 11)).unlink()  # the seal
    lake.commit([row(90)])
    assert any("after the topic was retired" in v for v in compare(lake, log))


def test_the_command_says_clean_or_what_is_wrong_and_exits_by_it(
    lake: LakeBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAW_URL", lake.url)
    run = CliRunner()
    done = run.invoke(cli.build_app(), ["audit"])
    assert (done.exit_code, done.output.splitlines()[-1]) == (0, "clean")
    objects(lake)[0].unlink()
    done = run.invoke(cli.build_app(), ["audit", "--deep"])
    assert done.exit_code == 1
    (line,) = (line for line in done.output.splitlines() if line.startswith("violation:"))
    assert "is gone, and _commits/00000001/0000/00000000000000000000.json names it; restore it" in line
    done = run.invoke(cli.build_app(), ["audit", "--json"])
    told = orjson.loads(done.output)
    assert (told["clean"], told["violation_count"], done.exit_code) == (False, 1, 1)
