"""The local Upbit on a real port, asked by a real client."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import websocket

from ingest_services.errors import UserError
from ingest_services.simulator.config import SimulatorConfig
from ingest_services.simulator.exchange import now_ms
from ingest_services.simulator.feed import window_start
from ingest_services.simulator.server import Simulator
from tests import simulator_thread

CAPTURE = Path(__file__).parents[3] / "shared/data/upbit_capture/orderbook_simple_depth15.jsonl"
QUICK = {"history_minutes": 0, "rate": 50.0, "tickers": ("BTC", "XRP", "USDT-BTC")}


def serving(**options: Any) -> AbstractContextManager[Simulator]:
    return simulator_thread.serving(**{**QUICK, **options})


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with serving() as running:
        yield running


@contextmanager
def connected(simulator: Simulator) -> Iterator[websocket.WebSocket]:
    ws = websocket.create_connection(simulator.ws_url, timeout=5, suppress_origin=True)
    try:
        yield ws
    finally:
        ws.shutdown()


def ask(ws: websocket.WebSocket, *fields: object, stream_format: str | None = "SIMPLE") -> None:
    request = [{"ticket": "test"}, *fields]
    ws.send(json.dumps([*request, {"format": stream_format}] if stream_format else request))


def books_of(*codes: str, **flags: object) -> dict[str, object]:
    return {"type": "orderbook", "codes": codes, **flags}


def read(ws: websocket.WebSocket, count: int) -> list[dict[str, Any]]:
    frames = []
    for _ in range(count):
        opcode, data = ws.recv_data()
        assert opcode == websocket.ABNF.OPCODE_BINARY
        frames.append(json.loads(data))
    return frames


def read_until(
    ws: websocket.WebSocket, condition: Callable[[dict[str, Any]], bool], most: int = 5000
) -> list[dict[str, Any]]:
    """Read frames up to one of a kind, however many the socket held in front of it."""
    frames = read(ws, 1)
    while not condition(frames[-1]):
        assert len(frames) < most, "it does not come"
        frames += read(ws, 1)
    return frames


def read_for(ws: websocket.WebSocket, seconds: float) -> list[dict[str, Any]]:
    end, frames = time.monotonic() + seconds, []
    while (left := end - time.monotonic()) > 0:
        ws.settimeout(left)
        try:
            frames += read(ws, 1)
        except websocket.WebSocketTimeoutException:
            break
    ws.settimeout(5)
    return frames


def get(simulator: Simulator, path: str) -> tuple[int, dict[str, str], Any]:
    try:
        with urllib.request.urlopen(simulator.rest_url + path, timeout=5) as response:
            return response.status, dict(response.headers), json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def eventually(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not come true in time"
        time.sleep(0.01)


# ── subscriptions ────────────────────────────────────────


def test_snapshot_then_realtime_in_binary_frames(simulator: Simulator) -> None:
    with connected(simulator) as ws:
        ask(ws, books_of("KRW-BTC", "USDT-BTC"))
        frames = read(ws, 12)
    for code in ("KRW-BTC", "USDT-BTC"):
        types = [frame["st"] for frame in frames if frame["cd"] == code]
        assert types == ["SNAPSHOT"] + ["REALTIME"] * (len(types) - 1)
        stamps = [frame["tms"] for frame in frames if frame["cd"] == code]
        assert stamps == sorted(set(stamps))
    assert all(frame["tms"] <= time.time() * 1000 for frame in frames)


@pytest.mark.parametrize(
    ("suffix", "depth"), [("", 30), (".1", 1), (".5", 5), (".15", 15), (".30", 30), (".7", 30)]
)
def test_depth_suffixes(suffix: str, depth: int) -> None:
    with serving(thin_share=0) as simulator, connected(simulator) as ws:
        ask(ws, books_of(f"KRW-BTC{suffix}"))
        frame = read(ws, 1)[0]
    assert frame["cd"] == "KRW-BTC"
    assert len(frame["obu"]) == depth


@pytest.mark.parametrize("stream_format", ["SIMPLE", "DEFAULT", "SIMPLE_LIST", "JSON_LIST", None])
def test_formats(simulator: Simulator, stream_format: str | None) -> None:
    with connected(simulator) as ws:
        ask(ws, books_of("KRW-BTC"), stream_format=stream_format)
        frame: Any = read(ws, 1)[0]
    if stream_format in ("SIMPLE_LIST", "JSON_LIST"):
        (frame,) = frame
    assert ("cd" if stream_format and stream_format.startswith("SIMPLE") else "code") in frame


def test_a_new_request_replaces_the_old_one(simulator: Simulator) -> None:
    with connected(simulator) as ws:
        ask(ws, books_of("KRW-BTC"))
        read(ws, 3)
        ask(ws, books_of("KRW-XRP"))
        codes = [frame["cd"] for frame in read_until(ws, lambda frame: frame["cd"] == "KRW-XRP")]
        first = len(codes) - 1
        codes += [frame["cd"] for frame in read(ws, 15)]
    # What was in the socket already may still come, and two stale frames more; then only the new market.
    assert codes[first + 2 :].count("KRW-BTC") == 0


def test_only_snapshot_and_only_realtime(simulator: Simulator) -> None:
    with connected(simulator) as ws:
        ask(ws, books_of("KRW-BTC", is_only_snapshot=True))
        assert [frame["st"] for frame in read(ws, 1)] == ["SNAPSHOT"]
        assert read_for(ws, 0.3) == []
        ask(ws, books_of("KRW-BTC", is_only_realtime=True))
        assert {frame["st"] for frame in read(ws, 5)} == {"REALTIME"}


def test_unknown_and_lower_case_codes_are_met_with_silence(simulator: Simulator) -> None:
    with connected(simulator) as ws:
        ask(ws, books_of("krw-btc", "KRW-GONE", "", "KRW-XRP"))
        assert {frame["cd"] for frame in read(ws, 10)} == {"KRW-XRP"}
        ask(ws, books_of("krw-btc"), {"type": "ticker", "codes": ["KRW-BTC"]})
        assert len(read_for(ws, 0.3)) <= 5
        ws.ping("still there")
        assert ws.recv_data(control_frame=True) == (websocket.ABNF.OPCODE_PONG, b"still there")


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        ("nonsense", "WRONG_FORMAT"),
        (json.dumps([books_of("KRW-BTC")]), "NO_TICKET"),
        (json.dumps([{"ticket": "t"}]), "NO_TYPE"),
        (json.dumps([{"ticket": "t"}, {"type": "orderbook"}]), "NO_CODES"),
        (json.dumps([{"ticket": "t"}, books_of()]), "INVALID_PARAM"),
        (json.dumps([{"ticket": "t"}, {"type": "myAsset"}]), "INVALID_AUTH"),
    ],
)
def test_an_error_frame_and_a_normal_close_answer_a_bad_request(
    simulator: Simulator, request_: str, name: str
) -> None:
    with connected(simulator) as ws:
        ask(ws, books_of("KRW-BTC"))
        read(ws, 1)
        ws.send(request_)
        frames = []
        while (received := ws.recv_data())[0] == websocket.ABNF.OPCODE_BINARY:
            frames.append(json.loads(received[1]))
    assert frames[-1]["error"]["name"] == name
    assert isinstance(frames[-1]["error"]["message"], str)
    assert received[0] == websocket.ABNF.OPCODE_CLOSE
    assert int.from_bytes(received[1][:2], "big") == 1000
    eventually(lambda: get(simulator, "/simulator/health")[2]["clients"] == 0)


def test_the_list_of_subscriptions_and_its_format_trap(simulator: Simulator) -> None:
    question = {"method": "LIST_SUBSCRIPTIONS"}
    with connected(simulator) as ws:
        ask(ws, books_of("KRW-BTC.5"))
        read(ws, 2)
        ask(ws, question)
        answer = read_until(ws, lambda frame: "mthd" in frame)[-1]
        assert answer == {
            "mthd": "LIST_SUBSCRIPTIONS",
            "rslt": [{"ty": "orderbook", "cds": ["KRW-BTC.5"], "lv": 0}],
            "tckt": "test",
        }
        assert "cd" in read(ws, 1)[0], "the same format leaves the stream as it was"
        ask(ws, question, stream_format="DEFAULT")
        read_until(ws, lambda frame: "method" in frame)
        assert all("code" in frame for frame in read(ws, 10))


# ── being alive ────────────────────────────────────────


def test_ping_text_starts_up_frames() -> None:
    with serving(status_interval_s=0.1) as simulator, connected(simulator) as ws:
        began = time.monotonic()
        ws.send("PING")
        ws.send("PING")
        assert read(ws, 4) == [{"status": "UP"}] * 4
        assert time.monotonic() - began > 0.25, "one series of them, however often it is asked for"


def test_an_idle_socket_dies_without_a_close_frame() -> None:
    with serving(idle_timeout_s=1.5) as simulator:
        with connected(simulator) as ws:
            began = time.monotonic()
            ws.ping()
            assert ws.recv_data(control_frame=True)[0] == websocket.ABNF.OPCODE_PONG
            with pytest.raises((websocket.WebSocketConnectionClosedException, ConnectionError)):
                ws.recv_data(control_frame=True)
            assert time.monotonic() - began > 1.4
        with connected(simulator) as busy:
            ask(busy, books_of("KRW-BTC"))
            assert read_for(busy, 2.0), "a stream of books is traffic enough"
            read(busy, 5)
        with connected(simulator) as pinging:
            for _ in range(6):
                time.sleep(0.3)
                pinging.ping()
                assert pinging.recv_data(control_frame=True)[0] == websocket.ABNF.OPCODE_PONG


def test_each_book_goes_to_everyone_and_a_client_that_does_not_read_is_dropped_alone() -> None:
    with (
        serving(queue_bytes=100_000, rate=400.0) as simulator,
        connected(simulator) as stuck,
        connected(simulator) as one,
        connected(simulator) as two,
    ):
        ask(stuck, books_of("KRW-BTC", "KRW-XRP", "USDT-BTC"))
        for ws in (one, two):
            ask(ws, books_of("KRW-BTC.1"))
            read(ws, 1)
        eventually(lambda: get(simulator, "/simulator/health")[2]["clients"] == 3)
        seen: tuple[dict[int, Any], dict[int, Any]] = ({}, {})
        deadline = time.monotonic() + 30
        while get(simulator, "/simulator/health")[2]["clients"] == 3:
            assert time.monotonic() < deadline, "the stuck client was never dropped"
            for ws, found in zip((one, two), seen, strict=True):
                found.update((frame["tms"], frame) for frame in read(ws, 50))
        low = max(min(found) for found in seen)
        high = min(max(found) for found in seen)
        told = [{tms: frame for tms, frame in found.items() if low <= tms <= high} for found in seen]
        assert len(told[0]) > 40
        assert told[0] == told[1], "those that read have missed nothing"


# ── truth ────────────────────────────────────────


def candles_of(frames: list[tuple[int, bytes]]) -> dict[tuple[str, int], dict[str, Any]]:
    """Candles from raw frames, in plain Python: nothing of the simulator's own code.

    Args:
        frames: Receive time (ms) and bytes. Snapshots repeat a book that was published before.
    """
    events: dict[tuple[str, int], list[tuple[int, Decimal]]] = {}
    for _, raw in frames:
        frame = json.loads(raw, parse_float=Decimal)
        if frame["st"] != "REALTIME":
            continue
        ask_price, bid_price = Decimal(frame["obu"][0]["ap"]), Decimal(frame["obu"][0]["bp"])
        if not ask_price or not bid_price or bid_price >= ask_price:
            continue
        window = frame["tms"] // 300_000 * 300_000
        events.setdefault((frame["cd"], window), []).append((frame["tms"], (ask_price + bid_price) / 2))
    candles = {}
    for key, told in events.items():
        told.sort(key=lambda event: event[0])
        mids = [mid for _, mid in told]
        candles[key] = {
            "open": mids[0],
            "high": max(mids),
            "low": min(mids),
            "close": mids[-1],
            "book_count": len(mids),
            "first_book_ms": told[0][0],
            "last_book_ms": told[-1][0],
        }
    return candles


def truth_of(simulator: Simulator) -> tuple[dict[tuple[str, int], dict[str, Any]], Any]:
    _, _, answer = get(simulator, "/simulator/truth?window_s=300")
    candles = {}
    for candle in answer["candles"]:
        key = (candle["market"], candle["window_start_ms"])
        candles[key] = {
            name: Decimal(candle[name]) if name in ("open", "high", "low", "close") else candle[name]
            for name in ("open", "high", "low", "close", "book_count", "first_book_ms", "last_book_ms")
        }
    return candles, answer


def test_the_truth_of_a_history_equals_the_candles_of_the_frames_that_came() -> None:
    with serving(history_minutes=30, rate=2.0, one_sided_share=0.02, crossed_share=0.02) as simulator:
        before = time.time() * 1000
        with connected(simulator) as ws:
            ask(ws, books_of("KRW-BTC.15", "KRW-XRP.15", "USDT-BTC.15"))
            frames: list[tuple[int, bytes]] = []
            snapshots = 0
            while snapshots < 3:
                _, data = ws.recv_data()
                frames.append((0, data))
                snapshots += b'"SNAPSHOT"' in data
        truth, answer = truth_of(simulator)
    expected = candles_of(frames)
    newest = max(start for _, start in expected)
    # Live books may have been published after the last one that was read: only the open window can differ.
    assert {k: v for k, v in truth.items() if k[1] < newest} == {
        k: v for k, v in expected.items() if k[1] < newest
    }
    assert len({start for _, start in expected}) >= 6
    assert answer["history"]["done"]
    assert answer["history"]["from_ms"] in (
        (before - 1_800_000) // 300_000 * 300_000,
        (before + 5_000 - 1_800_000) // 300_000 * 300_000,
    )
    assert any(candle["excluded_count"] for candle in answer["candles"])


def test_the_truth_of_real_time_equals_the_candles_of_the_frames_that_came() -> None:
    with serving(one_sided_share=0.1) as simulator:
        with connected(simulator) as ws:
            ask(ws, books_of("KRW-BTC", "KRW-XRP", "USDT-BTC"))
            frames = [(0, ws.recv_data()[1]) for _ in range(100)]
        stamps = [json.loads(data)["tms"] for _, data in frames]
        truth, answer = truth_of(simulator)
    expected = candles_of(frames)
    assert expected.keys() <= truth.keys()
    for key, candle in expected.items():
        assert truth[key]["open"] == candle["open"]
        assert truth[key]["first_book_ms"] == candle["first_book_ms"]
        assert truth[key]["book_count"] >= candle["book_count"]
    assert answer["books_published"] >= len(frames) - 3
    assert max(stamps) <= answer["now_ms"]
    assert answer["history"]["done"]


def test_a_history_that_nobody_reads_is_given_to_the_next_in_line() -> None:
    with (
        serving(history_minutes=60, rate=2.0, stall_timeout_s=1.0) as simulator,
        connected(simulator) as stuck,
        connected(simulator) as patient,
    ):
        codes = [f"{code}.30" for code in ("KRW-BTC", "KRW-XRP", "USDT-BTC")]
        ask(stuck, books_of(*codes))
        eventually(lambda: get(simulator, "/simulator/truth")[2]["books_published"] > 0)
        ask(patient, books_of(*codes))
        frames: list[tuple[int, bytes]] = []
        while not frames or b'"SNAPSHOT"' not in frames[-1][1]:
            frames.append((0, patient.recv_data()[1]))
        truth, answer = truth_of(simulator)
    expected = candles_of(frames)
    newest = max(start for _, start in expected)
    assert len(frames) > 20_000
    assert {k: v for k, v in truth.items() if k[1] < newest} == {
        k: v for k, v in expected.items() if k[1] < newest
    }
    assert answer["history"]["done"]


def test_other_windows_than_multiples_of_five_minutes_are_refused(simulator: Simulator) -> None:
    assert get(simulator, "/simulator/truth?window_s=60")[0] == 400
    assert get(simulator, "/simulator/truth?window_s=x")[0] == 400


# ── playback ────────────────────────────────────────


def line(received_us: int, market: str, tms: int, ask_price: float) -> str:
    frame = (
        f'{{"ty":"orderbook","cd":"{market}","tms":{tms},"tas":1.0,"tbs":2.0,'
        f'"obu":[{{"ap":{ask_price},"bp":{ask_price - 1},"as":1.0,"bs":2.0}}],"st":"REALTIME"}}'
    )
    return json.dumps({"received_us": received_us, "frame": frame})


def test_a_recording_plays_for_each_who_asks_first_for_a_market(tmp_path: Path) -> None:
    path = tmp_path / "recording.jsonl"
    start = 1_618_678_260_000
    lines = [
        line((start + 20 * n) * 1000, "KRW-A" if n % 3 else "KRW-B", start + 20 * n - 5, 100 + n % 7)
        for n in range(60)
    ]
    path.write_text("\n".join(lines))
    texts = [json.loads(text)["frame"].encode() for text in lines]
    with serving(playback=path, speed=0) as simulator:
        with connected(simulator) as one, connected(simulator) as two:
            ask(one, books_of("KRW-A", "KRW-GONE"))
            assert [one.recv_data()[1] for _ in range(40)] == [t for t in texts if b"KRW-A" in t]
            ask(two, books_of("KRW-A", "KRW-B"))
            assert [two.recv_data()[1] for _ in range(20)] == [t for t in texts if b"KRW-B" in t]
            assert read_for(one, 0.2) == []
        truth, answer = truth_of(simulator)
        assert truth == candles_of([(0, text) for text in texts])
        assert answer["books_published"] == 60
        assert [m["market"] for m in get(simulator, "/v1/market/all")[2]] == ["KRW-B", "KRW-A"]
        (book,) = get(simulator, "/v1/orderbook?markets=KRW-A")[2]
        assert book["orderbook_units"] == [
            {"ask_price": 103.0, "bid_price": 102.0, "ask_size": 1.0, "bid_size": 2.0}
        ]


def test_a_recording_keeps_its_pace_and_can_be_moved_to_now(tmp_path: Path) -> None:
    path = tmp_path / "recording.jsonl"
    start = 1_618_678_260_123
    path.write_text(
        "\n".join(line((start + 100 * n) * 1000, "KRW-A", start + 100 * n - 40, 100) for n in range(6))
    )
    with serving(playback=path, shift=True) as simulator, connected(simulator) as ws:
        began = time.monotonic()
        ask(ws, books_of("KRW-A"))
        came = []
        for _ in range(6):
            frame = read(ws, 1)[0]
            came.append((time.time() * 1000, frame["tms"]))
        assert time.monotonic() - began > 0.49
    assert [tms - came[0][1] for _, tms in came] == [0, 100, 200, 300, 400, 500]
    assert (came[0][1] - (start - 40)) % 1000 == 0
    for at, tms in came:
        assert at - tms >= 40


@pytest.mark.skipif(not CAPTURE.exists(), reason="../shared/data/upbit_capture is not beside this repository")
def test_the_real_recording_comes_through_byte_for_byte() -> None:
    records = [json.loads(text) for text in CAPTURE.read_text().splitlines()]
    texts = [record["frame"].encode() for record in records]
    markets = sorted({json.loads(text)["cd"] for text in texts})
    with serving(playback=CAPTURE, speed=0) as simulator:
        with connected(simulator) as ws:
            ask(ws, books_of(*markets))
            assert [ws.recv_data()[1] for _ in texts] == texts
        truth, answer = truth_of(simulator)
    assert truth == candles_of(
        [(record["received_us"] // 1000, t) for record, t in zip(records, texts, strict=True)]
    )
    assert answer["books_published"] == len(texts)


# ── REST ────────────────────────────────────────


def test_rest_lists_markets_books_and_tick_sizes() -> None:
    with serving(rate=0.01) as simulator:
        status, headers, markets = get(simulator, "/v1/market/all?is_details=true")
        assert status == 200
        assert headers["Remaining-Req"] == "group=market; min=600; sec=9"
        assert [m["market"] for m in markets] == ["KRW-BTC", "KRW-XRP", "USDT-BTC"]
        assert markets[0]["market_event"]["warning"] is False
        assert "market_event" not in get(simulator, "/v1/market/all")[2][0]
        status, headers, books = get(simulator, "/v1/orderbook?markets=USDT-BTC,KRW-BTC")
        assert status == 200
        assert headers["Remaining-Req"].startswith("group=orderbook; ")
        assert [b["market"] for b in books] == ["USDT-BTC", "KRW-BTC"]
        with connected(simulator) as ws:
            ask(ws, books_of("KRW-BTC", is_only_snapshot=True), stream_format="DEFAULT")
            (frame,) = read(ws, 1)
        assert books[1]["orderbook_units"] == frame["orderbook_units"]
        assert books[1]["timestamp"] == frame["timestamp"]
        status, _, instruments = get(simulator, "/v1/orderbook/instruments?markets=KRW-BTC,KRW-XRP")
        assert [(i["market"], i["tick_size"]) for i in instruments] == [("KRW-BTC", "1000"), ("KRW-XRP", "1")]


def test_rest_tells_candles_of_trades_newest_first_with_the_running_one() -> None:
    with serving(rate=2, history_minutes=30) as simulator, connected(simulator) as ws:
        ask(ws, books_of("KRW-BTC.1"))
        eventually(lambda: simulator.exchange.is_live("KRW-BTC"))
        trades = simulator.exchange.trades
        # A window that has just begun may have no trade yet.
        eventually(lambda: next(trades.candles("KRW-BTC", 1)).start_ms == window_start(now_ms()))
        path = "/v1/candles/minutes/5?market=KRW-BTC"
        status, headers, candles = get(simulator, f"{path}&count=200")
        assert (status, headers["Remaining-Req"]) == (200, "group=candles; min=600; sec=9")
        assert len(candles) >= 6
        starts = [datetime.fromisoformat(f"{c['candle_date_time_utc']}Z") for c in candles]
        assert starts == sorted(starts, reverse=True)
        assert starts[0].timestamp() + 300 > time.time() - 5, "the running one is there"
        truth = {c["window_start_ms"]: c for c in get(simulator, "/simulator/truth")[2]["candles"]}
        for start, candle in zip(starts, candles, strict=True):
            mids = truth[round(start.timestamp() * 1000)]
            tolerance = Decimal(mids["high"]) / 500  # spreads are a few ticks of a basis point
            assert abs(Decimal(str(candle["high_price"])) - Decimal(mids["high"])) < tolerance
            assert abs(Decimal(str(candle["low_price"])) - Decimal(mids["low"])) < tolerance
            assert start <= datetime.fromtimestamp(candle["timestamp"] / 1000, UTC)
            assert candle["candle_date_time_kst"] == (start + timedelta(hours=9)).isoformat()[:19]
        assert len(get(simulator, path)[2]) == 1
        # `to` is exclusive, and in UTC unless it says otherwise.
        for to in (f"{starts[1]:%Y-%m-%dT%H:%M:%SZ}", f"{starts[1]:%Y-%m-%d%%20%H:%M:%S}"):
            assert get(simulator, f"{path}&count=2&to={to}")[2] == candles[2:4]
        seoul = starts[1].astimezone(timezone(timedelta(hours=9)))
        assert get(simulator, f"{path}&to={seoul:%Y-%m-%dT%H:%M:%S}%2B09:00")[2] == candles[2:3]
        assert get(simulator, f"{path}&to=yesterday")[0] == 400
        assert get(simulator, "/v1/candles/minutes/5?market=KRW-GONE")[0] == 404


def test_one_bad_code_fails_them_all_with_an_integer_name(simulator: Simulator) -> None:
    for codes in ("KRW-BTC,KRW-GONE", "krw-btc"):
        status, _, body = get(simulator, f"/v1/orderbook?markets={codes}")
        assert (status, json.loads(body)["error"]["name"]) == (404, 404)
    assert get(simulator, "/v1/orderbook")[0] == 400


def test_rest_refuses_more_than_ten_requests_a_second(simulator: Simulator) -> None:
    answers = []
    # A slow machine may take longer than a second for eleven.
    while not (refused := [body for status, _, body in answers if status == 429]):
        assert len(answers) < 500
        answers += [get(simulator, "/v1/market/all") for _ in range(20)]
    with pytest.raises(json.JSONDecodeError):
        json.loads(refused[0])
    assert all("sec=0" in headers["Remaining-Req"] for status, headers, _ in answers if status == 429)


# ── as a process ────────────────────────────────────────


@dataclass
class Finished:
    code: int
    stderr: str


def simulate(*options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from ingest_services.cli import main; main()", "simulate", *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "300"})


def finished(process: subprocess.Popen[str]) -> Finished:
    try:
        _, stderr = process.communicate(timeout=20)
    finally:
        process.kill()
    return Finished(process.returncode, stderr)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_at_once_with_exit_0_even_with_clients(number: signal.Signals) -> None:
    process = simulate("--port", "0", "--rate", "50")
    try:
        assert process.stderr is not None
        url = json.loads(process.stderr.readline())["websocket"]
        ws = websocket.create_connection(url, timeout=5)
        ask(ws, books_of("KRW-BTC"))
        read(ws, 1)
        process.send_signal(number)
        assert finished(process).code == 0
        ws.shutdown()
    finally:
        process.kill()


def test_mistakes_are_one_line_and_exit_2(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"received_us": 1}\n')
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for options, words in (
            (("--port", port), ("--port", port, "in use")),
            (("--port", "0", "--playback", str(broken)), (f"{broken}, line 1", "no frame")),
        ):
            result = finished(simulate(*options))
            assert result.code == 2, result.stderr
            assert all(word in result.stderr for word in words), result.stderr
            assert result.stderr.count("\n") == 1, result.stderr


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"tickers": ("BTC", "KRW-BTC")}, "named twice"),
        ({"tickers": ("btc",)}, "btc"),
        ({"tickers": ("EUR-BTC",)}, "quote"),
        ({"tickers": ()}, "at least one"),
        ({"rate": 0.0}, "--rate"),
        ({"history_minutes": -1}, "--history-minutes"),
        ({"depth": 31}, "--depth"),
        ({"port": 70000}, "--port"),
        ({"loop": True}, "--shift"),
    ],
)
def test_settings_that_cannot_be_are_named_before_anything_starts(options: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        Simulator(SimulatorConfig(**{"port": 0, **QUICK, **options}))
