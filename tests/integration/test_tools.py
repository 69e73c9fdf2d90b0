"""The tools against a real broker, real consumers and the simulator: audit, replay, retire."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest
from kafka import KafkaConsumer, TopicPartition
from typer.testing import CliRunner, Result

from ingest_services import cli, kafka
from ingest_services.lake import chain as chains
from ingest_services.lake.store import FolderStore
from ingest_services.record import BOOK, HEARTBEAT, Envelope, Heartbeat, Span, headers_of
from ingest_services.simulator.config import SimulatorConfig
from ingest_services.simulator.playback import read_recording
from tests.broker import Broker
from tests.integration.test_consumer_lake import MINUTE_MS, Pipe, book_records, pipe, wait_for  # noqa: F401
from tests.lake_oracle import read_partition


def run(pipe: Pipe, monkeypatch: pytest.MonkeyPatch, *words: str) -> Result:  # noqa: F811
    for name, value in pipe.environment().items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(cli.build_app(), list(words))
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def carry(pipe: Pipe) -> None:  # noqa: F811
    """Run a consumer until everything is committed."""
    begun = pipe.log().count("carrying")
    consumer = pipe.consume()
    wait_for(lambda: pipe.log().count("carrying") == begun + pipe.partitions, "the consumer to begin")
    assert pipe.stop(consumer) == 0, pipe.log()


def drain(broker: Broker, topic: str, partitions: int) -> dict[int, list[tuple]]:
    """Read a whole topic: key, value and headers of every record, by partition."""
    consumer = KafkaConsumer(**kafka.client_config(broker.bootstrap), enable_auto_commit=False)
    found: dict[int, list[tuple]] = {}
    try:
        for number in range(partitions):
            tp = TopicPartition(topic, number)
            consumer.assign([tp])
            consumer.seek_to_beginning(tp)
            records: list[tuple] = []
            wait_for(lambda: consumer.poll(200) is not None and consumer.highwater(tp) is not None, "the log")  # noqa: B023
            consumer.seek_to_beginning(tp)
            while consumer.position(tp) < consumer.highwater(tp):
                records += [(r.key, r.value, r.headers, r.timestamp) for r in consumer.poll(500).get(tp, ())]
            found[number] = records
    finally:
        consumer.close()
    return found


def mixed_records() -> list[tuple]:
    """Books, heartbeats and garbage, as a producer sends them."""
    now_us = time.time_ns() // 1000
    heartbeat = Heartbeat("s", "c-1", ("T0",), (Span(now_us - 2_000_000, now_us - 1_000_000, ("T0",)),))
    return [
        *book_records(60),
        (0, heartbeat.encode(), headers_of(Envelope(HEARTBEAT, now_us, "c-1"))),
        (1, b"no JSON", headers_of(Envelope(BOOK, now_us, "c-1"))),
    ]


@pytest.fixture
def filled(pipe: Pipe) -> Iterator[Pipe]:  # noqa: F811
    pipe.send(mixed_records())
    carry(pipe)
    yield pipe  # noqa: PT022


def span_of(pipe: Pipe) -> tuple[str, str]:  # noqa: F811
    """FROM and TO around everything that was received."""
    now = time.time()
    return tuple(datetime.fromtimestamp(now + by, UTC).isoformat() for by in (-3600, 60))  # type: ignore[return-value]


def test_an_audit_with_the_broker_is_clean_and_sees_a_topic_that_is_gone(
    filled: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FolderStore(filled.lake)
    for number, oracle in enumerate(filled.read()):
        now_ms = time.time_ns() // 1_000_000
        chains.write_progress(store, chains.Progress(1, number, oracle.next, now_ms, now_ms))
    done = run(filled, monkeypatch, "audit", "--deep", "--broker")
    assert (done.exit_code, done.output.splitlines()[-1]) == (0, "clean"), done.output
    assert "0…31" in done.output
    admin = kafka.connect_admin(filled.broker.bootstrap)
    try:
        admin.delete_topics([filled.topic])
    finally:
        admin.close()
    done = run(filled, monkeypatch, "audit", "--broker")
    assert done.exit_code == 1
    assert f"cryptostream retire {filled.topic}" in done.output


def test_a_replay_brings_the_same_records_with_the_same_headers_into_another_topic(
    filled: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = filled.broker.topic(2, "again")
    began_ms = time.time_ns() // 1_000_000
    done = run(filled, monkeypatch, "replay", *span_of(filled), "--topic", other, "--speed", "0")
    assert (done.exit_code, done.output.strip()) == (0, f"topic {other}: 62 records")
    original, replayed = (drain(filled.broker, topic, 2) for topic in (filled.topic, other))
    for number in range(2):
        # The test's producer calls every record BTC; ours names the ticker, or the heartbeat's section.
        assert [r[1:3] for r in replayed[number]] == [r[1:3] for r in original[number]]
        assert all(r[3] >= began_ms for r in replayed[number])
    assert {r[0] for r in replayed[0]} == {b"T0", b"T1", b"T2", b"s"}
    second = Pipe(filled.broker, filled.root / "second", other, 2)
    second.root.mkdir()
    filled.consumers += second.consumers
    carry(second)
    for old, new in zip(filled.read(), second.read(), strict=True):
        assert (old.records, old.folders, old.reasons) == (new.records, new.folders, new.reasons)


def test_a_replay_of_some_tickers_is_their_books_and_no_heartbeat(
    filled: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = filled.broker.topic(2, "again")
    words = ("replay", *span_of(filled), "--topic", other, "--speed", "0", "--tickers", "T1,KRW-T2")
    assert run(filled, monkeypatch, *words).exit_code == 0
    found = [orjson.loads(r[1])["cd"] for part in drain(filled.broker, other, 2).values() for r in part]
    assert (len(found), set(found)) == (40, {"KRW-T1", "KRW-T2"})


def test_a_replay_refuses_the_topic_that_the_lake_is_fed_from_unless_it_is_told_by_name(
    filled: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("replay", *span_of(filled), "--topic", filled.topic, "--speed", "0")
    with pytest.raises(Exception, match=f"twice.*--double {filled.topic}"):
        run(filled, monkeypatch, *words)
    assert run(filled, monkeypatch, *words, "--double", filled.topic).exit_code == 0
    assert sum(map(len, drain(filled.broker, filled.topic, 2).values())) == 2 * 62


def test_a_replay_says_what_it_cannot_do(filled: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = filled.broker.topic(1, "narrow")
    for words, told in (
        (("--topic", narrow, "--speed", "0"), "create a topic with as many"),
        (("--topic", "not-there"), "does not exist"),
        ((), "say where to"),
        (("--out", str(filled.lake / "lake.json")), "exists"),
    ):
        with pytest.raises(Exception, match=told):
            run(filled, monkeypatch, "replay", *span_of(filled), *words)
    with pytest.raises(Exception, match="is not before"):
        run(filled, monkeypatch, "replay", *reversed(span_of(filled)), "--topic", narrow)
    with pytest.raises(Exception, match="is no instant"):
        run(filled, monkeypatch, "replay", "yesterday", "now", "--topic", narrow)


def test_an_export_is_played_by_the_simulator_and_the_same_frames_come_out(
    filled: Pipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from aiohttp import ClientSession

    from ingest_services.simulator.server import Simulator

    file = tmp_path / "out.jsonl"
    done = run(filled, monkeypatch, "replay", *span_of(filled), "--out", str(file))
    assert (done.exit_code, done.output.strip()) == (0, f"{file}: 60 books; 2 other records left out")
    assert len(read_recording(file)) == 60
    sent = [value for value in filled.sent.values() if value and b"obu" in value]

    async def listen() -> list[bytes]:
        config = SimulatorConfig(port=0, playback=file, speed=0)
        codes = [f"KRW-T{n}" for n in range(3)]
        wanted = [{"ticket": "t"}, {"type": "orderbook", "codes": codes}, {"format": "SIMPLE"}]
        async with (
            Simulator(config) as simulator,
            ClientSession() as session,
            session.ws_connect(simulator.ws_url) as socket,
        ):
            await socket.send_str(orjson.dumps(wanted).decode())
            return [(await socket.receive()).data for _ in sent]

    assert sorted(asyncio.run(listen())) == sorted(sent)


def test_a_topic_is_retired_only_when_the_lake_has_all_of_it(
    filled: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.send(book_records(5))
    with pytest.raises(Exception, match="not in the lake: 3 of partition 0, 2 of partition 1; let"):
        run(filled, monkeypatch, "retire", filled.topic)
    carry(filled)
    done = run(filled, monkeypatch, "retire", filled.topic)
    assert (done.exit_code, "windows no longer wait" in done.output) == (0, True)
    with pytest.raises(Exception, match="was retired already"):
        run(filled, monkeypatch, "retire", filled.topic)
    assert filled.consume().wait(60) == 2
    assert f"cryptostream retire {filled.topic} --undo" in filled.log()
    done = run(filled, monkeypatch, "audit", "--deep", "--broker")
    assert done.exit_code == 0, done.output


def test_giving_up_records_says_how_many_and_taking_the_topic_up_again_brings_them(
    filled: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.send(book_records(5))
    done = run(filled, monkeypatch, "retire", filled.topic, "--force")
    assert "given up: 3 records of partition 0, which are in no lake" in done.output
    (first, retirement) = chains.read_chains(FolderStore(filled.lake))
    assert (retirement.retires, retirement.reason) == (True, "retired, records given up: 5")
    assert run(filled, monkeypatch, "audit", "--broker").exit_code == 1
    done = run(filled, monkeypatch, "retire", filled.topic, "--undo")
    assert "taken up again in chain 3" in done.output
    carry(filled)
    for number, old in enumerate(filled.read(first.number)):
        new = read_partition(filled.lake, 3, number, old.next)
        expected = {o: value for (p, o), value in filled.sent.items() if p == number}
        assert {**old.records, **new.records} == expected


def test_a_running_consumer_stops_committing_to_a_retired_topic_and_goes_on_when_it_is_taken_up_again(
    pipe: Pipe,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before_ms = time.time_ns() // 1_000_000 - 2 * MINUTE_MS
    pipe.send(book_records(40, at_ms=before_ms))
    consumer = pipe.consume()
    wait_for(lambda: [oracle.next for oracle in pipe.read()] == [20, 20], "the first commits")
    assert run(pipe, monkeypatch, "retire", pipe.topic).exit_code == 0
    pipe.send(book_records(40, at_ms=before_ms))
    wait_for(lambda: "not carried any more" in pipe.log(), "the consumer to hear of it")
    assert [oracle.next for oracle in pipe.read()] == [20, 20]
    assert consumer.poll() is None
    assert run(pipe, monkeypatch, "retire", pipe.topic, "--undo").exit_code == 0
    wait_for(lambda: pipe.log().count('"chain": 3') == 2, "the consumer to take it up")
    assert pipe.stop(consumer) == 0, pipe.log()
    for number, old in enumerate(pipe.read()):
        new = read_partition(pipe.lake, 3, number, 20)
        expected = {o: value for (p, o), value in pipe.sent.items() if p == number}
        assert {**old.records, **new.records} == expected
