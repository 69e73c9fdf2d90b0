"""Every fault of the simulator on a real socket, seen by a real client, and held against the journal."""

from __future__ import annotations

import json
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import websocket

from ingest_services.simulator.config import DEFAULT_TICKERS
from ingest_services.simulator.faults import chaos
from ingest_services.simulator.journal import frame_of, read_journal
from ingest_services.simulator.server import Simulator
from tests.integration.test_simulator_server import (
    ask,
    books_of,
    eventually,
    finished,
    get,
    read,
    serving,
    simulate,
)

TICKET = "upbit_producer1-ab12cd-3"
RARE = {"tickers": ("BTC",), "rate": 0.001}


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with serving(journal_in_memory=True) as running:
        yield running


@contextmanager
def subscribed(
    simulator: Simulator, *codes: str, ticket: str = TICKET, first: int = 1
) -> Iterator[websocket.WebSocket]:
    """Open a connection, subscribe, and read its first frames."""
    ws = websocket.create_connection(simulator.ws_url, timeout=5, suppress_origin=True)
    try:
        request = [{"ticket": ticket}, books_of(*(codes or ("KRW-BTC",))), {"format": "SIMPLE"}]
        ws.send(json.dumps(request))
        for _ in range(first):
            ws.recv_data()
        yield ws
    finally:
        ws.shutdown()


def strike(simulator: Simulator, fault: str, **parameters: object) -> list[str]:
    status, body = post(simulator, json.dumps({"fault": fault, **parameters}).encode())
    assert status == 200, body
    return list(json.loads(body)["applied_to"])


def post(simulator: Simulator, body: bytes) -> tuple[int, bytes]:
    request = urllib.request.Request(simulator.rest_url + "/simulator/fault", data=body, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def journal(simulator: Simulator, **query: str) -> list[dict[str, Any]]:
    text = "&".join(f"{key}={value}" for key, value in query.items())
    with urllib.request.urlopen(f"{simulator.rest_url}/simulator/journal?{text}", timeout=5) as response:
        return [json.loads(line) for line in response.read().splitlines()]


def ending(simulator: Simulator, ticket: str = TICKET) -> dict[str, Any]:
    eventually(lambda: bool(journal(simulator, ticket=ticket, kind="ended")))
    (ended,) = journal(simulator, ticket=ticket, kind="ended")
    return ended


def sent(simulator: Simulator, ticket: str = TICKET) -> list[bytes]:
    lines = journal(simulator, ticket=ticket, kind="sent")
    assert [line["serial"] for line in lines] == list(range(1, len(lines) + 1))
    return [frame_of(line) for line in lines]


def read_on(ws: websocket.WebSocket, frames: list[bytes]) -> None:
    """Read data messages until something else comes of it."""
    while True:
        frames.append(ws.recv_data()[1])


def say_much(ws: websocket.WebSocket, message: bytes) -> None:
    """Say the same 150 times."""
    for _ in range(150):
        ws.send(message)


def all_frames(ws: websocket.WebSocket, frames: list[bytes]) -> tuple[list[bytes], int | None]:
    """Read to the end; return every message, and the code of the close frame or None."""
    try:
        while True:
            opcode, data = ws.recv_data()
            if opcode == websocket.ABNF.OPCODE_CLOSE:
                return frames, int.from_bytes(data[:2], "big")
            frames.append(data)
    except (websocket.WebSocketConnectionClosedException, ConnectionError):
        return frames, None


def pongs(ws: websocket.WebSocket) -> None:
    """Ping, and read until the pong has come."""
    ws.ping("there?")
    while True:
        opcode, _ = ws.recv_data(control_frame=True)
        if opcode == websocket.ABNF.OPCODE_PONG:
            return


def quiet(ws: websocket.WebSocket, seconds: float = 0.3) -> bool:
    """Tell whether nothing comes for a while."""
    ws.settimeout(seconds)
    try:
        ws.recv_data(control_frame=True)
    except websocket.WebSocketTimeoutException:
        return True
    finally:
        ws.settimeout(5)
    return False


def frames_after(ws: websocket.WebSocket, count: int) -> list[bytes]:
    return [ws.recv_data()[1] for _ in range(count)]


# ── ends ────────────────────────────────────────


def test_drop_resets_the_connection_after_everything_that_was_written_has_arrived(
    simulator: Simulator,
) -> None:
    with subscribed(simulator, "KRW-BTC", "KRW-XRP", first=0) as ws:
        frames = [ws.recv_data()[1] for _ in range(20)]
        assert strike(simulator, "drop") == [TICKET]
        eventually(lambda: get(simulator, "/simulator/health")[2]["clients"] == 0)
        # What is in this machine's buffer is read first; then the reset shows.
        with pytest.raises(ConnectionResetError):
            read_on(ws, frames)
    ended = ending(simulator)
    assert ended["how"] == "reset"
    assert ended["sent"] == ended["acknowledged"] == len(frames)
    assert frames == sent(simulator), "every byte that was journalled as sent, and nothing else"


def test_a_drop_that_does_not_flush_says_how_much_was_acknowledged() -> None:
    with serving(journal_in_memory=True, rate=500.0, queue_bytes=50 << 20) as simulator:
        with subscribed(simulator, "KRW-BTC", "KRW-XRP", "USDT-BTC", first=0) as ws:
            eventually(lambda: len(journal(simulator, kind="sent")) > 200)
            strike(simulator, "drop", flush=False)
            frames, code = all_frames(ws, [])
        ended = ending(simulator)
        assert code is None
        assert ended["acknowledged"] <= len(frames) <= ended["sent"]
        assert frames == sent(simulator)[: len(frames)]


@pytest.mark.parametrize("code", [1000, 1001, 4321])
def test_close_sends_a_close_frame_with_its_code(simulator: Simulator, code: int) -> None:
    with subscribed(simulator, first=0) as ws:
        strike(simulator, "close", code=code)
        frames, came = all_frames(ws, [])
    assert came == code
    ended = ending(simulator)
    assert ended["how"] == f"close {code}"
    assert frames == sent(simulator)
    assert ended["acknowledged"] == len(frames)


def test_close_1006_ends_the_connection_without_a_close_frame(simulator: Simulator) -> None:
    with subscribed(simulator, first=0) as ws:
        strike(simulator, "close", code=1006)
        frames, came = all_frames(ws, [])
        assert came is None
        with pytest.raises(websocket.WebSocketConnectionClosedException):
            ws.recv_data()
    assert ending(simulator)["how"] == "close 1006"
    assert frames == sent(simulator)


def test_error_comes_as_a_frame_before_a_normal_close(simulator: Simulator) -> None:
    with subscribed(simulator, first=0) as ws:
        strike(simulator, "error", name="WRONG_FORMAT", message="Not today.")
        frames, came = all_frames(ws, [])
    assert came == 1000
    assert json.loads(frames[-1]) == {"error": {"name": "WRONG_FORMAT", "message": "Not today."}}
    assert frames == sent(simulator)
    assert ending(simulator)["how"] == "error WRONG_FORMAT"


def test_half_open_says_nothing_and_reads_nothing_until_the_client_gives_up(simulator: Simulator) -> None:
    with subscribed(simulator) as ws:
        assert strike(simulator, "half-open") == [TICKET]
        while not quiet(ws):
            pass
        ws.ping("there?")
        ws.send(json.dumps([{"ticket": "other"}, books_of("KRW-XRP")]))
        assert quiet(ws, 0.5)
        assert get(simulator, "/simulator/health")[2]["clients"] == 1
    ended = ending(simulator)
    assert ended["how"] == "half-open"
    eventually(lambda: get(simulator, "/simulator/health")[2]["clients"] == 0)


def test_half_open_leaves_what_the_client_says_in_its_socket(simulator: Simulator) -> None:
    with subscribed(simulator) as ws:
        strike(simulator, "half-open")
        ws.settimeout(0.3)
        with pytest.raises((websocket.WebSocketTimeoutException, BlockingIOError, TimeoutError)):
            say_much(ws, b" " * 500_000)
        assert get(simulator, "/simulator/health")[2]["clients"] == 1


# ── silence ────────────────────────────────────────


def test_stall_answers_pings_and_sends_nothing_else() -> None:
    with (
        serving(journal_in_memory=True, status_interval_s=0.05) as simulator,
        subscribed(simulator) as ws,
        subscribed(simulator, ticket="other") as other,
    ):
        ws.send("PING")
        while b"UP" not in ws.recv_data()[1]:
            pass
        assert strike(simulator, "stall", ticket="upbit") == [TICKET]
        while not quiet(ws, 0.2):
            pass
        pongs(ws)
        ask(ws, {"method": "LIST_SUBSCRIPTIONS"})
        assert quiet(ws)
        read(other, 5)
        ws.shutdown()
        ending(simulator)
        lines = [line for line in journal(simulator, ticket=TICKET) if line["kind"] in ("sent", "withheld")]
        first = next(n for n, line in enumerate(lines) if line["kind"] == "withheld")
        assert {(line["kind"], line.get("why")) for line in lines[first:]} == {("withheld", "stall")}
        assert {line["what"] for line in lines[first:]} == {"book", "status", "list"}


def test_what_a_stall_withheld_is_never_sent_and_can_be_computed(simulator: Simulator) -> None:
    with subscribed(simulator, first=0) as ws:
        frames = frames_after(ws, 10)
        strike(simulator, "stall", for_s=0.4)
        eventually(lambda: any(line["why"] == "stall" for line in journal(simulator, kind="withheld")))
        started = time.time_ns() // 1000
        frames += frames_after(ws, 40)
        ws.shutdown()
        ending(simulator)
        stamps = [tms for raw in frames if (tms := json.loads(raw)["tms"])]
        held = {line["tms"] for line in journal(simulator, kind="withheld") if line["why"] == "stall"}
        published = [
            line["tms"]
            for line in journal(simulator, kind="published")
            if line["market"] == "KRW-BTC" and stamps[1] <= line["tms"] <= stamps[-1]
        ]
        assert held
        assert held.isdisjoint(stamps)
        assert [tms for tms in published if tms not in held] == stamps[1:]
        assert any(line["at_us"] > started for line in journal(simulator, ticket=TICKET, kind="sent"))


def test_stall_code_silences_one_market_until_the_client_subscribes_anew(simulator: Simulator) -> None:
    with (
        subscribed(simulator, "KRW-BTC", "KRW-XRP", first=2) as ws,
        subscribed(simulator, ticket="other") as other,
    ):
        strike(simulator, "stall-code", market="BTC", section="upbit_producer1")
        pongs(ws)
        read(ws, 5)
        assert {frame["cd"] for frame in read(ws, 30)} == {"KRW-XRP"}
        assert {frame["cd"] for frame in read(other, 5)} == {"KRW-BTC"}
        ask(ws, books_of("KRW-BTC", "KRW-XRP"))
        assert {frame["cd"] for frame in read(ws, 30)} == {"KRW-BTC", "KRW-XRP"}


# ── other bytes ────────────────────────────────────────


def test_garbage_is_no_json_and_costs_no_book(simulator: Simulator) -> None:
    with subscribed(simulator, first=1) as ws:
        strike(simulator, "garbage", count=12)
        frames = frames_after(ws, 60)
    rubbish = []
    stamps = []
    for raw in frames:
        try:
            stamps.append(json.loads(raw)["tms"])
        except ValueError:
            rubbish.append(raw)
    assert len(rubbish) == 12
    assert len(set(rubbish)) > 5
    published = [line["tms"] for line in journal(simulator, kind="published") if line["market"] == "KRW-BTC"]
    assert stamps == published[: len(stamps)]
    ending(simulator)
    assert sent(simulator)[1 : 1 + len(frames)] == frames


def test_truncated_frames_come_as_whole_messages(simulator: Simulator) -> None:
    with subscribed(simulator) as ws:
        strike(simulator, "truncate", count=3)
        frames = frames_after(ws, 30)
        broken = [raw for raw in frames if not raw.endswith(b"}")]
        assert len(broken) == 3
        assert all(raw.startswith(b'{"ty":"orderbook","cd":"KRW-BTC","tms":') for raw in broken)
        json.loads(frames[-1])
    lines = [line for line in journal(simulator, kind="sent") if line["what"] == "truncated"]
    assert [frame_of(line) for line in lines] == broken


def test_duplicates_come_twice_in_a_row(simulator: Simulator) -> None:
    with subscribed(simulator) as ws:
        strike(simulator, "duplicate", count=4)
        frames = frames_after(ws, 30)
    assert sum(a == b for a, b in pairwise(frames)) == 4
    assert len(set(frames)) == 26
    lines = journal(simulator, ticket=TICKET, kind="sent")
    assert [line["what"] for line in lines].count("duplicate") == 4


def test_reordered_frames_swap_places_within_their_market(simulator: Simulator) -> None:
    with subscribed(simulator, "KRW-BTC", "KRW-XRP", first=2) as ws:
        strike(simulator, "reorder", count=3)
        frames = [json.loads(raw) for raw in frames_after(ws, 60)]
    backwards = 0
    for market in ("KRW-BTC", "KRW-XRP"):
        stamps = [frame["tms"] for frame in frames if frame["cd"] == market]
        backwards += sum(later < earlier for earlier, later in pairwise(stamps))
        published = [
            line["tms"]
            for line in journal(simulator, kind="published")
            if line["market"] == market and line["tms"] <= max(stamps)
        ]
        assert sorted(stamps) == published[-len(stamps) :] or set(stamps) == set(published), "none is lost"
    assert backwards == 3


def test_a_frame_that_nothing_overtook_before_the_end_was_withheld() -> None:
    with (
        serving(journal_in_memory=True, rate=0.5, tickers=("BTC",)) as simulator,
        subscribed(simulator) as ws,
    ):
        strike(simulator, "reorder")

        def published_since() -> list[int]:
            lines = journal(simulator)
            struck_at = [line["kind"] for line in lines].index("fault")
            return [line["tms"] for line in lines[struck_at:] if line["kind"] == "published"]

        eventually(lambda: bool(published_since()))
        strike(simulator, "close")
        assert all_frames(ws, [])[1] == 1000
        ending(simulator)
        assert published_since()[0] in [line["tms"] for line in journal(simulator, kind="withheld")]


def test_microsecond_stamps(simulator: Simulator) -> None:
    with subscribed(simulator) as ws:
        strike(simulator, "microseconds", count=3)
        frames = [json.loads(raw) for raw in frames_after(ws, 20)]
    in_us = [frame["tms"] for frame in frames if frame["tms"] > 10**14]
    assert len(in_us) == 3
    assert any(stamp % 1000 for stamp in in_us)
    told = {line["tms"] for line in journal(simulator, kind="sent")}
    assert {stamp // 1000 for stamp in in_us} <= told, "the journal has the book's own stamp"


def test_stamps_in_the_future(simulator: Simulator) -> None:
    with subscribed(simulator) as ws:
        strike(simulator, "future", count=2, by_ms=3_600_000)
        frames = [json.loads(raw) for raw in frames_after(ws, 20)]
    ahead = [frame for frame in frames if frame["tms"] > (time.time() + 3000) * 1000]
    assert len(ahead) == 2


def test_default_format_whatever_was_asked(simulator: Simulator) -> None:
    with subscribed(simulator) as ws:
        strike(simulator, "default-format", count=3)
        frames = [json.loads(raw) for raw in frames_after(ws, 20)]
    assert sum("orderbook_units" in frame and "code" in frame for frame in frames) == 3
    assert sum("obu" in frame for frame in frames) == 17


# ── slowness ────────────────────────────────────────


def test_slow_trickles_and_pongs_wait_for_the_end_of_a_frame() -> None:
    with (
        serving(journal_in_memory=True, tickers=("BTC",), thin_share=0) as simulator,
        subscribed(simulator) as ws,
    ):
        strike(simulator, "slow", bytes_per_s=20_000, for_s=60)
        raw = bytearray()
        # Frames of 2 kB take 0.1 s each; pings in between must not get into them.
        while len(raw) < 10_000:
            ws.ping("p")
            raw += ws.sock.recv(1 << 16)
            time.sleep(0.02)
        while len(raw) < 20_000:
            raw += ws.sock.recv(1 << 16)
        told = sent(simulator)
        times = [line["at_us"] for line in journal(simulator, kind="sent")][1:5]
    whole = parse(bytes(raw))
    books = [data for opcode, data in whole if opcode == 2]
    assert {opcode for opcode, _ in whole} == {2, 10}
    assert [opcode for opcode, _ in whole].count(10) >= 5
    assert len(books) > 5
    assert books == told[1 : 1 + len(books)]
    assert times[-1] - times[0] > 100_000, "four frames of some 2 kB take their time"


def test_slowness_ends_with_its_time_even_in_the_middle_of_a_frame(simulator: Simulator) -> None:
    with subscribed(simulator) as ws:
        strike(simulator, "slow", bytes_per_s=1, for_s=0.3)
        read(ws, 20)


def test_a_frame_that_was_cut_in_its_trickle_was_not_sent(simulator: Simulator) -> None:
    with subscribed(simulator) as ws:
        strike(simulator, "slow", bytes_per_s=1000, for_s=60)
        ws.sock.recv(1 << 16)
        ws.sock.recv(100)
        strike(simulator, "drop", flush=False)
        with pytest.raises(ConnectionResetError):
            eventually(lambda: not ws.sock.recv(1 << 16))
    ended = ending(simulator)
    whys = [line["why"] for line in journal(simulator, ticket=TICKET, kind="withheld")]
    assert whys.count("cut") == 1
    assert ended["acknowledged"] <= ended["sent"]


def parse(raw: bytes) -> list[tuple[int, bytes]]:
    """Split what a server wrote into its messages; the last one may be cut off."""
    found = []
    while len(raw) >= 4:
        length, head = raw[1], 2
        if length == 126:
            length, head = int.from_bytes(raw[2:4], "big"), 4
        if len(raw) < head + length:
            break
        found.append((raw[0] & 0xF, raw[head : head + length]))
        raw = raw[head + length :]
    return found


def test_a_client_that_reads_too_slowly_is_dropped_and_the_journal_says_what_it_has() -> None:
    with serving(journal_in_memory=True, rate=500.0, queue_bytes=50_000) as simulator:
        with subscribed(simulator, "KRW-BTC", "KRW-XRP", "USDT-BTC", first=0) as ws:
            ended = ending(simulator)
            assert ended["how"] == "overflow"
            assert ended["acknowledged"] < ended["sent"]
            frames, code = all_frames(ws, [])
        assert code is None
        assert ended["acknowledged"] <= len(frames) <= ended["sent"]
        assert frames == sent(simulator)[: len(frames)]
        assert any(line["why"] == "ended" for line in journal(simulator, ticket=TICKET, kind="withheld"))


# ── the whole exchange ────────────────────────────────────────


@pytest.mark.parametrize("status", [429, 418])
def test_refused_handshakes(simulator: Simulator, status: int) -> None:
    assert strike(simulator, "refuse", status=status, where="ws", count=2) == []
    assert get(simulator, "/v1/market/all")[0] == 200
    for _ in range(2):
        with pytest.raises(websocket.WebSocketBadStatusException) as caught:
            websocket.create_connection(simulator.ws_url, timeout=5, suppress_origin=True)
        assert caught.value.status_code == status
    with subscribed(simulator):
        pass


def test_refused_rest_requests(simulator: Simulator) -> None:
    strike(simulator, "refuse", status=418, where="rest", count=2)
    with subscribed(simulator):
        pass
    for path in ("/v1/market/all", "/v1/orderbook?markets=KRW-BTC"):
        status, _, body = get(simulator, path)
        assert status == 418
        with pytest.raises(json.JSONDecodeError):
            json.loads(body)
    assert get(simulator, "/v1/market/all")[0] == 200


def test_rest_down_is_a_page_that_is_no_json(simulator: Simulator) -> None:
    strike(simulator, "rest-down", count=1)
    status, _, body = get(simulator, "/v1/orderbook?markets=KRW-BTC")
    assert (status, body[:6]) == (503, b"<html>")
    assert get(simulator, "/v1/orderbook?markets=KRW-BTC")[0] == 200


def listed(simulator: Simulator) -> set[str]:
    return {entry["market"] for entry in get(simulator, "/v1/market/all")[2]}


def test_a_market_is_listed_and_delisted(simulator: Simulator) -> None:
    with subscribed(simulator, "KRW-BTC", "KRW-NEW", first=2) as early:
        strike(simulator, "list", market="NEW")
        assert "KRW-NEW" in listed(simulator)
        assert get(simulator, "/v1/orderbook?markets=KRW-NEW")[0] == 200
        with subscribed(simulator, "KRW-NEW", "KRW-XRP", ticket="late", first=0) as late:
            frames = read(late, 20)
            assert [f["st"] for f in frames if f["cd"] == "KRW-NEW"][:2] == ["SNAPSHOT", "REALTIME"]
            assert {f["cd"] for f in read(early, 10)} == {"KRW-BTC"}, (
                "who asked before the listing hears nothing"
            )
            strike(simulator, "delist", market="KRW-NEW")
            pongs(late)
            read(late, 5)
            assert {f["cd"] for f in read(late, 20)} == {"KRW-XRP"}
            pongs(late)
            assert get(simulator, "/v1/orderbook?markets=KRW-NEW")[0] == 404
            assert "KRW-NEW" not in listed(simulator)
            strike(simulator, "list", market="KRW-NEW")
            ask(late, books_of("KRW-NEW"))
            stamps = [f["tms"] for f in read(late, 20) if f["cd"] == "KRW-NEW" and f["st"] == "REALTIME"]
            assert stamps == sorted(set(stamps)), "its second life has one stream of books"
    assert get(simulator, "/simulator/health")[2]["history_done"] is False, "XRP and BTC only were asked for"


# ── the control endpoint ────────────────────────────────────────


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"drop", "JSON"),
        (b"[]", "object"),
        (b"{}", "names no fault"),
        (b'{"fault": "explode"}', "half-open"),
        (b'{"fault": "drop", "newest": true, "ticket": "x"}', "exclude"),
        (b'{"fault": "delist", "market": "KRW-NONE"}', "not listed"),
        (b'{"fault": "list", "market": "KRW-BTC"}', "listed already"),
        (b'{"fault": "refuse", "ticket": "x"}', "whole exchange"),
        (b'{"fault": "close", "code": 1005}', "1005"),
        (b'{"fault": "garbage", "count": 0}', "from 1"),
    ],
)
def test_a_bad_order_is_one_line(simulator: Simulator, body: bytes, word: str) -> None:
    status, answer = post(simulator, body)
    assert status == 400
    text = answer.decode()
    assert word in text
    assert text.count("\n") == 1


def test_an_order_reaches_the_connections_that_it_names(simulator: Simulator) -> None:
    with (
        subscribed(simulator, ticket="upbit_producer1-aa-1"),
        subscribed(simulator, ticket="upbit_producer12-bb-1"),
        subscribed(simulator, ticket="upbit_producer2-cc-1"),
    ):
        assert strike(simulator, "garbage") == [
            "upbit_producer1-aa-1",
            "upbit_producer12-bb-1",
            "upbit_producer2-cc-1",
        ]
        assert strike(simulator, "garbage", newest=True) == ["upbit_producer2-cc-1"]
        assert len(strike(simulator, "garbage", ticket="upbit_producer1")) == 2
        assert strike(simulator, "garbage", section="upbit_producer1") == ["upbit_producer1-aa-1"]
        assert strike(simulator, "garbage", section="nobody") == []


def test_the_faults_and_what_was_done_can_be_asked_for(simulator: Simulator) -> None:
    before = time.time_ns() // 1000
    with subscribed(simulator):
        strike(simulator, "truncate", count=2, newest=True)
    answer = get(simulator, "/simulator/faults")[2]
    assert {"drop", "stall", "half-open", "delist"} <= {fault["fault"] for fault in answer["faults"]}
    assert all(fault["meaning"] for fault in answer["faults"])
    (applied,) = answer["applied"]
    assert applied["fault"] == {"fault": "truncate", "count": 2, "newest": True}
    assert applied["applied_to"] == [TICKET]
    assert before <= applied["at_us"] <= time.time_ns() // 1000
    (line,) = journal(simulator, kind="fault")
    assert line["fault"] == applied["fault"]
    assert line["connections"] == [1]


def test_without_a_journal_there_is_none() -> None:
    with serving() as simulator:
        assert simulator.journal is None
        assert get(simulator, "/simulator/journal")[0] == 404


# ── manners ────────────────────────────────────────


def handshake(simulator: Simulator, opened: list[websocket.WebSocket]) -> int:
    """Open a connection; return the status of the answer."""
    try:
        opened.append(websocket.create_connection(simulator.ws_url, timeout=5, suppress_origin=True))
    except websocket.WebSocketBadStatusException as error:
        return int(error.status_code)
    return 101


def test_more_than_five_connections_a_second_are_refused() -> None:
    with serving(limits=True, **RARE) as simulator:
        opened: list[websocket.WebSocket] = []
        # The sixth within a second is refused; a slow machine may take longer for six.
        while (status := handshake(simulator, opened)) == 101:
            assert len(opened) < 200
        assert status == 429
        assert len(opened) >= 5
        for ws in opened:
            ws.shutdown()


def test_a_connection_that_says_too_much_is_cut() -> None:
    with serving(limits=True, journal_in_memory=True, **RARE) as simulator:
        ws = websocket.create_connection(simulator.ws_url, timeout=5, suppress_origin=True)
        # It is cut while it speaks, or after that.
        with suppress(websocket.WebSocketException, OSError):
            say_much(ws, json.dumps([{"ticket": "test"}, books_of("KRW-BTC")]).encode())
        assert ending(simulator, "test")["how"] == "limit"
        ws.shutdown()


def test_an_origin_header_costs_ten_seconds() -> None:
    with serving(limits=True, **RARE) as simulator:
        websocket.create_connection(simulator.ws_url, timeout=5).shutdown()
        with pytest.raises(websocket.WebSocketBadStatusException) as caught:
            websocket.create_connection(simulator.ws_url, timeout=5)
        assert caught.value.status_code == 429
        websocket.create_connection(simulator.ws_url, timeout=5, suppress_origin=True).shutdown()


def test_who_ignores_429_is_blocked_with_418() -> None:
    with serving(limits=True, **RARE) as simulator:
        statuses: list[int] = []
        while 418 not in statuses:
            assert len(statuses) < 500, statuses
            statuses.append(get(simulator, "/v1/market/all")[0])
        assert statuses.count(429) >= 5
        assert get(simulator, "/v1/orderbook?markets=KRW-BTC")[0] == 418, "the address, not the group"


def test_a_subscription_takes_its_time_and_ends_the_old_one_at_once() -> None:
    with (
        serving(snapshot_delay_ms=(400, 400), journal_in_memory=True) as simulator,
        subscribed(simulator, first=3) as ws,
    ):
        ask(ws, books_of("KRW-XRP"))
        eventually(lambda: any(f["cd"] == "KRW-XRP" for f in read(ws, 1)))
        lines = journal(simulator, ticket="test")
    numbers = [n for n, line in enumerate(lines) if line["kind"] == "requested"]
    for number, market in zip(numbers, ("KRW-BTC", "KRW-XRP"), strict=True):
        later = [line for line in lines[number:] if line["kind"] == "sent"]
        came = next(line for line in later if line["market"] == market)
        assert came["at_us"] - lines[number]["at_us"] >= 400_000
    stale = [line for line in lines[numbers[1] :] if line["kind"] == "sent" and line["market"] == "KRW-BTC"]
    assert len(stale) <= 3


# ── the journal ────────────────────────────────────────


def test_the_journal_of_a_connection_that_its_client_closes(simulator: Simulator) -> None:
    with subscribed(simulator, first=0) as ws:
        frames = frames_after(ws, 10)
        ws.close()
    ended = ending(simulator)
    assert ended["how"] == "client closed 1000"
    assert sent(simulator)[:10] == frames
    kinds = [line["kind"] for line in simulator_lines(simulator, connection=1)]
    assert kinds[:4] == ["opened", "requested", "subscribed", "sent"]
    assert kinds[-1] == "ended"
    assert kinds.count("left") == 1
    (subscription,) = journal(simulator, kind="subscribed")
    assert subscription["codes"] == ["KRW-BTC"]


def test_a_client_that_just_goes_is_lost(simulator: Simulator) -> None:
    with subscribed(simulator) as ws:
        ws.sock.shutdown(socket.SHUT_RDWR)
    assert ending(simulator)["how"] == "client lost"


def simulator_lines(simulator: Simulator, connection: int) -> list[dict[str, Any]]:
    return [line for line in journal(simulator) if line.get("connection") == connection]


# ── as a process ────────────────────────────────────────


def test_a_schedule_and_a_journal_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    options = ("--port", "0", "--markets", "6", "--total-rate", "300", "--history-minutes", "0")
    options += ("--journal", str(path), "--snapshot-delay", "10-20")
    process = simulate(*options, "--fault", "garbage:count=2@0+0.2", "--fault", "close:code=1001@4")
    try:
        assert process.stderr is not None
        url = json.loads(process.stderr.readline())["websocket"]
        ws = websocket.create_connection(url, timeout=5, suppress_origin=True)
        ask(ws, books_of("KRW-BTC", "BTC-ETH", "USDT-BTC"))
        frames, code = all_frames(ws, [])
        ws.shutdown()
        process.send_signal(signal.SIGTERM)
        assert finished(process).code == 0
    finally:
        process.kill()
    lines = read_journal(path)
    assert code == 1001
    assert [frame_of(line) for line in lines if line["kind"] == "sent"] == frames
    assert [line["how"] for line in lines if line["kind"] == "ended"] == ["close 1001"]
    assert [line["what"] for line in lines if line["kind"] == "sent"].count("garbage") >= 2
    assert {line["by"] for line in lines if line["kind"] == "fault"} == {"schedule"}


def test_chaos_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    process = simulate("--port", "0", "--chaos", "7", "--chaos-every", "0.02", "--journal", str(path))
    try:
        eventually(lambda: path.exists() and path.read_bytes().count(b'"kind":"fault"') >= 10)
        process.send_signal(signal.SIGTERM)
        assert finished(process).code == 0
    finally:
        process.kill()
    markets = sorted(f"KRW-{ticker}" for ticker in DEFAULT_TICKERS)
    planned = [fault.as_json() for _, fault in islice(chaos(7, 0.02, markets), 10)]
    assert [line["fault"] for line in read_journal(path) if line["kind"] == "fault"][:10] == planned


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--fault", "drop"), "does not say when"),
        (("--fault", "explode@3"), "there is no fault 'explode'"),
        (("--chaos", "1", "--chaos-every", "0"), "--chaos-every 0"),
        (("--snapshot-delay", "350-170"), "--snapshot-delay 350"),
        (("--journal", "none/such/journal"), "--journal none/such/journal"),
        (("--markets", "0"), "--markets 0"),
    ],
)
def test_options_that_cannot_be_are_one_line_and_exit_2(options: tuple[str, ...], word: str) -> None:
    result = finished(simulate("--port", "0", *options))
    assert result.code == 2, result.stderr
    assert word in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr


def connect_and_read(simulator: Simulator, ticket: str, faults: int) -> list[bytes] | None:
    """One connection of a client that gives up after a silence; None if it was refused."""
    try:
        ws = websocket.create_connection(simulator.ws_url, timeout=0.4, suppress_origin=True)
    except websocket.WebSocketBadStatusException:
        return None
    frames: list[bytes] = []
    with suppress(websocket.WebSocketException, OSError):
        ws.send(json.dumps([{"ticket": ticket}, books_of("KRW-BTC", "KRW-XRP"), {"format": "SIMPLE"}]))
        while struck(simulator) < faults:
            opcode, data = ws.recv_data()
            if opcode == websocket.ABNF.OPCODE_CLOSE:
                break
            frames.append(data)
    ws.shutdown()
    return frames


def struck(simulator: Simulator) -> int:
    return len(list(simulator.journal.lines(kind="fault"))) if simulator.journal else 0


@pytest.mark.parametrize("seed", [1, 2])
def test_through_a_chaos_each_connection_got_what_the_journal_says(seed: int) -> None:
    faults, every_s = 50, 0.08
    received: dict[str, list[bytes]] = {}
    with serving(journal_in_memory=True, chaos_seed=seed, chaos_every_s=every_s) as simulator:
        while struck(simulator) < faults:
            ticket = f"chaos-{len(received)}."
            frames = connect_and_read(simulator, ticket, faults)
            if frames is None:
                time.sleep(0.01)
            else:
                received[ticket] = frames
        for ticket, frames in received.items():
            lines = journal(simulator, ticket=ticket)
            if not lines:
                assert frames == [], "it was cut before it had said who it is"
                continue
            ended = ending(simulator, ticket)
            told = sent(simulator, ticket)
            where = f"seed {seed}, {ticket}, {ended['how']}"
            assert frames == told[: len(frames)], where
            if not ended["how"].startswith("client"):
                assert len(frames) >= ended["acknowledged"], where
        hows = {line["how"] for line in journal(simulator, kind="ended")}
        assert len(hows) >= 5, f"seed {seed}: {hows}"
        assert published_books_are_accounted_for(simulator) > 100
    assert sum(map(len, received.values())) > 100


def published_books_are_accounted_for(simulator: Simulator) -> int:
    """Check that every book was sent or withheld between subscription and end; return how many there were."""
    lines = journal(simulator)
    count = 0
    for number in {line["connection"] for line in lines if line["kind"] == "subscribed"}:
        own = [line for line in lines if line.get("connection", number) == number]
        kinds = [line["kind"] for line in own]
        assert [kind for kind in kinds if kind in ("left", "ended")] == ["left", "ended"]
        told = {(line["market"], line["tms"]) for line in own if is_told(line)}
        for line in own[kinds.index("subscribed") : kinds.index("left")]:
            if line["kind"] == "published" and line["market"] in ("KRW-BTC", "KRW-XRP"):
                assert (line["market"], line["tms"]) in told, f"connection {number}: {line}"
                count += 1
    return count


def is_told(line: dict[str, Any]) -> bool:
    return line["kind"] in ("sent", "withheld") and "market" in line
