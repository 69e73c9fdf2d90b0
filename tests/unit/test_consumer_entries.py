"""What becomes of a record: the frame is the truth, and nothing that anybody sends stops a partition."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_services.consumer.entries import Entry, read_record
from ingest_services.record import BOOK, HEARTBEAT, Envelope, Heartbeat, Span, headers_of

RECEIVED_MS = 1_738_480_567_123
MINUTE_MS = 60_000
MINUTE = RECEIVED_MS - RECEIVED_MS % MINUTE_MS


def frame(tms: int, stream_type: str = "REALTIME", market: str = "KRW-BTC") -> bytes:
    return orjson.dumps({"ty": "orderbook", "cd": market, "tms": tms, "obu": [], "st": stream_type})


def read(
    value: bytes | None, kind: str = BOOK, key: bytes | None = b"BTC", received_ms: int = RECEIVED_MS
) -> Entry:
    headers = headers_of(Envelope(kind, received_ms * 1000, "s-1"))
    return read_record(3, 7, received_ms, key, value, headers)


def test_a_book_belongs_to_the_minute_of_its_stamp() -> None:
    entry = read(frame(MINUTE - 1))
    assert (entry.kind, entry.ticker, entry.minute_ms) == ("book", "BTC", MINUTE - MINUTE_MS)


def test_a_snapshot_belongs_to_the_minute_it_was_received_however_old_its_stamp() -> None:
    entry = read(frame(MINUTE - 30 * MINUTE_MS, "SNAPSHOT"))
    assert (entry.minute_ms, entry.tms) == (MINUTE, MINUTE - 30 * MINUTE_MS)


def test_the_line_holds_the_untouched_bytes_of_the_frame() -> None:
    value = (
        b'{ "ty":"orderbook","cd":"USDT-BTC", "tms":1738480560000,"obu":[{"ap":7.9276E-4}],"st":"REALTIME"}'
    )
    entry = read(value)
    assert entry.line.endswith(b',"book":' + value + b"}\n")
    assert json.loads(entry.line)["offset"] == 7
    assert entry.ticker == "USDT-BTC"


def test_a_microsecond_stamp_means_the_same_instant() -> None:
    assert read(frame(MINUTE * 1000 + 5)).tms == MINUTE


def test_the_frame_wins_over_a_key_that_lies() -> None:
    assert read(frame(MINUTE), key=b"ETH").ticker == "BTC"


def test_a_clock_that_is_a_little_ahead_is_no_reason_for_quarantine() -> None:
    assert read(frame(RECEIVED_MS + 5_000)).kind == "book"
    assert read(frame(RECEIVED_MS + 5_001)).kind == "quarantine"


def test_a_frame_with_a_line_break_is_quarantined_because_a_line_could_not_hold_it() -> None:
    entry = read(frame(MINUTE).replace(b",", b",\n"))
    assert entry.kind == "quarantine"
    assert entry.line.count(b"\n") == 1


@pytest.mark.parametrize(
    ("stamp", "reason"),
    [
        *((s, "timestamp out of range") for s in (1, RECEIVED_MS // 1000, 10**12 - 1, 10**13, 10**14 - 1)),
        *((s, "timestamp out of range") for s in (10**15 - 1, 10**16, 10**17, 2**63, 2**64 - 1)),
        *((s, "timestamp after it was received") for s in (RECEIVED_MS + 5_001, 10**13 - 1)),
        ((RECEIVED_MS + 5_001) * 1000, "timestamp after it was received"),
        *((s, "no timestamp") for s in (0, -1, 1.738480560123e12, "1738480560123", True, None, [])),
    ],
)
def test_an_absurd_stamp_is_quarantined_with_its_reason_and_makes_no_absurd_path(
    stamp: object, reason: str
) -> None:
    value = orjson.dumps({"cd": "KRW-BTC", "tms": stamp, "obu": [], "st": "REALTIME"})
    entry = read(value)
    assert (entry.kind, entry.minute_ms, entry.tms) == ("quarantine", MINUTE, None)
    line = json.loads(entry.line)
    assert (line["reason"], base64.b64decode(line["value"])) == (reason, value)


@pytest.mark.parametrize("stamp", [10**12, MINUTE - 10**9, (MINUTE - 10**9) * 1000 + 999])
def test_old_stamps_are_data(stamp: int) -> None:
    entry = read(frame(stamp))
    ms = stamp // 1000 if stamp > 10**14 else stamp
    assert (entry.kind, entry.tms, entry.minute_ms) == ("book", ms, ms - ms % MINUTE_MS)


def test_a_frame_in_the_default_format_is_a_book_and_a_list_of_frames_is_named() -> None:
    default = {"code": "KRW-BTC", "timestamp": MINUTE, "orderbook_units": [], "stream_type": "REALTIME"}
    entry = read(orjson.dumps(default))
    assert (entry.kind, entry.ticker, entry.tms) == ("book", "BTC", MINUTE)
    for value in (b"[" + frame(MINUTE) + b"]", orjson.dumps([default])):
        entry = read(value)
        assert entry.kind == "quarantine"
        assert "SIMPLE_LIST" in json.loads(entry.line)["reason"]


def test_a_heartbeat_belongs_to_the_minute_that_it_covers() -> None:
    covered = Span((MINUTE - 10_000) * 1000, MINUTE * 1000, ("BTC",))
    entry = read(Heartbeat("s", "s-1", ("BTC",), (covered,)).encode(), HEARTBEAT)
    assert (entry.kind, entry.minute_ms) == ("heartbeat", MINUTE - MINUTE_MS)


@pytest.mark.parametrize(
    "covered",
    [
        Span((MINUTE - 10_000) * 1000, MINUTE * 1_000_000, ("BTC",)),
        Span(MINUTE, MINUTE * 1000, ("BTC",)),
        Span(MINUTE * 1000, (MINUTE - 10_000) * 1000, ("BTC",)),
        Span(MINUTE * 1000, (RECEIVED_MS + 5_001) * 1000, ("BTC",)),
    ],
)
def test_a_heartbeat_of_another_time_is_quarantined(covered: Span) -> None:
    assert read(Heartbeat("s", "s-1", ("BTC",), (covered,)).encode(), HEARTBEAT).kind == "quarantine"


def beat(covered: tuple[Span, ...] = (), holes: tuple[Span, ...] = ()) -> Entry:
    return read(Heartbeat("s", "s-1", ("BTC",), covered, holes).encode(), HEARTBEAT)


def span(from_ms: int, to_ms: int) -> Span:
    return Span(from_ms * 1000, to_ms * 1000, ("BTC",))


NOW = span(MINUTE, RECEIVED_MS)
BEFORE = span(MINUTE - 4 * MINUTE_MS - 20_000, MINUTE - 4 * MINUTE_MS)
EARLIER = span(MINUTE - 8 * MINUTE_MS, MINUTE - 8 * MINUTE_MS + 1)


@pytest.mark.parametrize(
    ("covered", "holes", "minute"),
    [
        ((), (), MINUTE),
        ((NOW,), (), MINUTE),
        ((), (BEFORE,), MINUTE - 5 * MINUTE_MS),
        ((NOW,), (span(MINUTE + 1, MINUTE + 9),), MINUTE),
        # What follows, our producer never sends: spans in several minutes.
        ((BEFORE, NOW), (), MINUTE),
        ((NOW,), (BEFORE,), MINUTE - 5 * MINUTE_MS),
        ((NOW, EARLIER), (EARLIER, BEFORE), MINUTE - 5 * MINUTE_MS),
    ],
)
def test_a_heartbeat_belongs_to_the_minute_that_it_speaks_of_and_a_hole_counts_more_than_a_claim(
    covered: tuple[Span, ...], holes: tuple[Span, ...], minute: int
) -> None:
    entry = beat(covered, holes)
    assert (entry.kind, entry.minute_ms) == ("heartbeat", minute)


@pytest.mark.parametrize(
    "hole",
    [
        span(RECEIVED_MS, RECEIVED_MS + 5_001),
        span(MINUTE + 2, MINUTE + 1),
        span(10**12 - 1, MINUTE),
        Span(-(2**63), MINUTE * 1000, ("BTC",)),
    ],
)
def test_a_hole_of_another_time_is_quarantined(hole: Span) -> None:
    assert beat((NOW,), (hole,)).kind == "quarantine"
    entry = beat((), (hole,))
    assert (entry.kind, json.loads(entry.line)["reason"]) == ("quarantine", "not a heartbeat")


@pytest.mark.parametrize(
    ("kind", "reason"), [(BOOK, "more brackets than a book has"), (HEARTBEAT, "nested too deep")]
)
def test_a_record_that_its_line_would_nest_too_deep_is_quarantined(kind: str, reason: str) -> None:
    plain = frame(MINUTE) if kind == BOOK else Heartbeat("s", "s-1", ("BTC",), ()).encode()

    def nested(depth: int) -> Entry:
        return read(plain[:-1] + b',"x":' + b"[" * depth + b"]" * depth + b"}", kind)

    entries = [nested(depth) for depth in range(400, 1300)]
    kept = [entry for entry in entries if entry.kind == kind]
    assert len(kept) == 99 or (kind == HEARTBEAT and len(kept) > 500)
    for entry in kept:
        assert (json if kind == BOOK else orjson).loads(entry.line)["offset"] == 7
    # Where parsers draw the line is theirs to change: what they cannot read is quarantined either way.
    assert {json.loads(e.line)["reason"] for e in entries[len(kept) :]} <= {
        reason,
        "not JSON",
        "not a heartbeat",
    }
    assert json.loads(entries[len(kept)].line)["reason"] == reason


def test_a_heartbeat_with_a_line_break_is_quarantined() -> None:
    beat = Heartbeat("s", "s-1", ("BTC",), ()).encode()
    assert read(beat.replace(b",", b",\r"), HEARTBEAT).kind == "quarantine"


@pytest.mark.parametrize("timestamp_ms", [-1, 0, 10**13, 10**15, 2**62])
def test_a_record_without_a_usable_time_still_has_a_minute_that_a_path_can_hold(timestamp_ms: int) -> None:
    entry = read_record(0, 1, timestamp_ms, None, b"x", [])
    assert entry.kind == "quarantine"
    assert 2001 <= datetime.fromtimestamp(entry.minute_ms / 1000, UTC).year <= 2286


headers = st.lists(
    st.tuples(
        st.sampled_from(["kind", "received_us", "connection", "tms", "x"]), st.none() | st.binary(max_size=24)
    ),
    max_size=4,
)
values = (
    st.none()
    | st.binary(max_size=60)
    | st.builds(
        lambda body: json.dumps(body).encode(),
        st.dictionaries(
            st.sampled_from(
                ["cd", "code", "tms", "timestamp", "st", "obu", "error", "status", "stream_type"]
            ),
            st.none()
            | st.integers()
            | st.text(max_size=8)
            | st.sampled_from(["KRW-BTC", "REALTIME"])
            | st.just([]),
        ),
    )
)


@given(
    key=st.none() | st.binary(max_size=8), value=values, headers=headers, timestamp_ms=st.integers(-1, 2**62)
)
def test_nothing_that_is_sent_raises_and_every_line_is_one_json_object_with_the_offset(
    key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes | None]], timestamp_ms: int
) -> None:
    entry = read_record(3, 7, timestamp_ms, key, value, headers)
    assert entry.line.endswith(b"\n")
    assert entry.line.count(b"\n") == 1
    assert json.loads(entry.line)["offset"] == 7
    assert entry.minute_ms % MINUTE_MS == 0
    assert 2001 <= datetime.fromtimestamp(entry.minute_ms / 1000, UTC).year <= 2286
