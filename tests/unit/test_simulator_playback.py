"""Recordings: the exact bytes, when they are due, what shifting does, and files that are broken."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_services.errors import UserError
from ingest_services.simulator.playback import RecordingFeed, read_recording, recording_feeds

NOW_MS = 1_795_366_000_123


def frame(market: str, tms: int, ask: str = "9.9E-7", stream_type: str = "REALTIME") -> str:
    # Odd spacing and number forms on purpose: a parser and writer in between would lose them.
    return (
        f'{{"ty":"orderbook", "cd":"{market}","tms": {tms},"tas":1.50,"tbs":2,'
        f'"obu":[{{"ap":{ask},"bp":9.8E-7,"as":1.50,"bs":2}}],"st":"{stream_type}"}}'
    )


def recording(path: Path, lines: list[tuple[int, str]]) -> Path:
    path.write_text("".join(json.dumps({"received_us": us, "frame": text}) + "\n" for us, text in lines))
    return path


def play(feed: RecordingFeed) -> list[tuple[int, bytes]]:
    feed.begin(NOW_MS)
    played = []
    while (due := feed.due_ms) is not None:
        played.append((due, feed.step().frame))
    return played


GOOD = json.dumps({"received_us": 1, "frame": frame("BTC-XTZ", 5)})


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"received_us": 1', "is not JSON"),
        ("[1]", "must be an object"),
        (json.dumps({"frame": frame("BTC-XTZ", 5)}), "has no received_us"),
        (json.dumps({"received_us": 1}), "has no frame"),
        (
            json.dumps({"received_us": "1", "frame": frame("BTC-XTZ", 5)}),
            "received_us must be a whole number",
        ),
        (json.dumps({"received_us": 1, "frame": {}}), "frame must be a string"),
        (json.dumps({"received_us": 1, "frame": "hello"}), "frame cannot be played (not JSON)"),
        (json.dumps({"received_us": 1, "frame": '{"status":"UP"}'}), "frame cannot be played"),
        (json.dumps({"received_us": 1, "frame": frame("BTC-XTZ", 5).replace("ap", "xp")}), "a level without"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "frames.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n")
    with pytest.raises(UserError) as caught:
        read_recording(path)
    assert f"{path}, line 3: " in str(caught.value)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_and_an_empty_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl: cannot be read"):
        read_recording(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"empty\.jsonl: is empty"):
        read_recording(tmp_path / "empty.jsonl")


def test_prices_are_read_exactly_and_repeated_books_count_once(tmp_path: Path) -> None:
    lines = [
        (1, frame("BTC-XTZ", 10)),
        (2, frame("BTC-XTZ", 10, stream_type="SNAPSHOT")),
        (3, frame("BTC-XTZ", 10, ask="0.00000099")),
        (4, frame("BTC-XTZ", 10, ask="1E-6")),
        (5, frame("BTC-XTZ", 11)),
        (6, frame("BTC-XTZ", 12, stream_type="SNAPSHOT")),
        (7, frame("BTC-XTZ", 13, ask="0")),
    ]
    books = read_recording(recording(tmp_path / "f.jsonl", lines))
    assert [book.repeated for book in books] == [False, True, True, False, False, False, False]
    assert books[0].best_ask == Decimal("0.00000099")
    assert books[-1].best_ask is None
    # A snapshot is an event of its window only, REALTIME is one whenever it is sent.
    assert not books[5].is_event(NOW_MS)
    assert books[5].is_event(299_999)
    assert books[4].is_event(NOW_MS)


def test_unshifted_frames_go_out_byte_for_byte(tmp_path: Path) -> None:
    lines = [(1_000_000 * n, frame("KRW-A" if n % 2 else "KRW-B", 1000 * n)) for n in range(1, 7)]
    books = read_recording(recording(tmp_path / "f.jsonl", lines))
    feeds = recording_feeds(books, speed=2, shift=False, loop=False)
    assert list(feeds) == ["KRW-A", "KRW-B"]
    assert play(feeds["KRW-A"]) == [
        (NOW_MS + offset, lines[index][1].encode()) for offset, index in ((0, 0), (1000, 2), (2000, 4))
    ]
    # The other market is on the same clock, though it began later.
    feeds["KRW-B"].begin(NOW_MS + 700)
    assert feeds["KRW-B"].due_ms == NOW_MS + 500


arrivals = st.lists(
    st.tuples(st.integers(1_500_000_000_000_000, 1_500_000_100_000_000), st.integers(-2_000, 50)),
    min_size=1,
    max_size=8,
)


@given(arrivals, st.sampled_from([0.0, 0.5, 1.0, 10.0]))
def test_shifted_stamps_are_as_late_as_can_be_but_never_in_the_future(
    tmp_path_factory: pytest.TempPathFactory, arrived: list[tuple[int, int]], speed: float
) -> None:
    lines = [(us, frame("KRW-A", us // 1000 + lag)) for us, lag in sorted(arrived)]
    path = recording(tmp_path_factory.mktemp("playback") / "f.jsonl", lines)
    feed = recording_feeds(read_recording(path), speed=speed, shift=True, loop=False)["KRW-A"]
    feed.begin(NOW_MS)
    moves, room = set(), []
    for us, text in lines:
        due = feed.due_ms
        assert due is not None
        sent = feed.step()
        seconds, rest = divmod(sent.received_us - us, 1_000_000)
        assert rest == 0
        moves.add(seconds)
        room.append(due * 1000 - max(sent.received_us, sent.tms * 1000))
        old = json.loads(text)["tms"]
        assert sent.tms == old + seconds * 1000
        assert sent.frame == text.replace(str(old), str(sent.tms), 1).encode(), (
            "nothing but the stamp may change"
        )
    assert len(moves) == 1
    assert min(room) >= 0
    # The lead of a stamp over its receipt is taken from all frames, so up to 50 ms more may be left.
    assert min(room) < 1_000_000 + 51_000


def test_microsecond_stamps_are_shifted_in_their_own_unit(tmp_path: Path) -> None:
    us = 1_691_000_000_123_456
    books = read_recording(recording(tmp_path / "f.jsonl", [(us, frame("KRW-A", us))]))
    assert books[0].tms == us // 1000
    sent = books[0].shifted(10)
    assert json.loads(sent.frame)["tms"] == us + 10_000_000
    assert sent.tms == us // 1000 + 10_000


def test_a_loop_never_repeats_a_stamp(tmp_path: Path) -> None:
    lines = [(1_000_000_000 + 400_000 * n, frame("KRW-A", 1_000_000 + 400 * n)) for n in range(4)]
    books = read_recording(recording(tmp_path / "f.jsonl", lines))
    feed = recording_feeds(books, speed=1, shift=True, loop=True)["KRW-A"]
    feed.begin(NOW_MS)
    seen = []
    for _ in range(12):
        due = feed.due_ms
        sent = feed.step()
        assert due is not None
        assert sent.tms <= due
        seen.append(sent.tms)
    assert seen == sorted(set(seen))
