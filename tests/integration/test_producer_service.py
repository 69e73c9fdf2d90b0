"""What a producer promises, against a real broker and a real WebSocket."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
from kafka import KafkaConsumer, TopicPartition

from cryptostream_dagster.local.ports import free_port
from ingest_services.config import ProducerSection
from ingest_services.errors import UserError
from ingest_services.kafka import client_config, create_topics
from ingest_services.lake.coverage import covered_intervals
from ingest_services.producer import coverage, markets, supervision
from ingest_services.producer import section as sections
from ingest_services.producer.metrics import SectionStats
from ingest_services.producer.outgoing import Outgoing
from ingest_services.producer.publisher import Publisher
from ingest_services.producer.service import ProducerService
from ingest_services.producer.spool import Spool
from ingest_services.record import BOOK, HEARTBEAT, Envelope, Heartbeat, read_headers
from ingest_services.settings import IngestSettings
from tests.broker import Broker, running_broker
from tests.scripted_exchange import ScriptedExchange, book, scripted_exchange, wait_until


@pytest.fixture
def exchange() -> Iterator[ScriptedExchange]:
    with scripted_exchange() as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """End what a failed test left."""
    yield
    for process in Process.started:
        if process.poll() is None:
            process.kill()
            process.wait()
    Process.started.clear()


def settings_for(exchange: ScriptedExchange, bootstrap: str, folder: Path) -> IngestSettings:
    return IngestSettings(
        _env_file=None,
        kafka_bootstrap=bootstrap,
        upbit_ws_url=exchange.ws_url,
        upbit_rest_url=exchange.rest_url,
        spool_dir=folder / "spool",
    )


def section(topic: str, *markets: str, partition: int = 0, all_of: str | None = None) -> ProducerSection:
    return ProducerSection("upbit_producer1", topic, partition, markets, all_of)


@contextmanager
def producing(
    sections: list[ProducerSection], settings: IngestSettings, metrics_port: int | None = None
) -> Iterator[ProducerService]:
    running = ProducerService(sections, settings, metrics_port)
    running.start()
    stopped = False
    try:
        yield running
        running.stop()
        stopped = True
    finally:
        if not stopped:
            running.stop()


class Record:
    def __init__(self, raw: object) -> None:
        self.offset: int = raw.offset
        self.key: bytes = raw.key
        self.value: bytes = raw.value
        self.timestamp: int = raw.timestamp
        self.envelope: Envelope = read_headers(raw.headers, raw.timestamp)


def read_all(bootstrap: str, topic: str, partition: int = 0) -> list[Record]:
    consumer = KafkaConsumer(
        **client_config(bootstrap), enable_auto_commit=False, consumer_timeout_ms=700, metrics_enabled=False
    )
    try:
        where = TopicPartition(topic, partition)
        consumer.assign([where])
        consumer.seek_to_beginning(where)
        return [Record(raw) for raw in consumer]
    finally:
        consumer.close()


def books(records: list[Record]) -> list[Record]:
    return [record for record in records if record.envelope.kind == BOOK]


def heartbeats(records: list[Record]) -> list[Heartbeat]:
    return [Heartbeat.decode(r.value) for r in records if r.envelope.kind == HEARTBEAT]


def carried(stats: SectionStats) -> int:
    """Return how many frames but `UP` were looked at or are about to be."""
    return stats.frames - stats.status_frames


def now_ms() -> int:
    return int(time.time() * 1000)


def test_every_frame_arrives_once_byte_for_byte(
    broker: Broker, exchange: ScriptedExchange, tmp_path: Path
) -> None:
    topic = broker.topic(3)
    began_us = time.time_ns() // 1000
    with producing(
        [section(topic, "KRW-BTC", "USDT-ETH", partition=2)],
        settings_for(exchange, broker.bootstrap, tmp_path),
    ):
        wait_until(lambda: exchange.clients == 1, "a subscription")
        for i in range(300):
            exchange.send(book("KRW-BTC", now_ms(), i), book("USDT-ETH", now_ms(), i))
    records = read_all(broker.bootstrap, topic, 2)
    kept = books(records)
    assert [record.value for record in kept] == exchange.sent
    assert len(kept) == 602
    assert read_all(broker.bootstrap, topic, 0) == []
    for record, frame in zip(kept, exchange.sent, strict=True):
        ticker = b"BTC" if b"KRW-BTC" in frame else b"USDT-ETH"
        assert record.key == ticker
        assert record.envelope.stream_type == ("SNAPSHOT" if b"SNAPSHOT" in frame else "REALTIME")
        assert str(record.envelope.tms).encode() in frame
        assert began_us <= record.envelope.received_us <= time.time_ns() // 1000
        assert record.timestamp == record.envelope.received_us // 1000
        assert re.fullmatch(r"upbit_producer1-[0-9a-f]{6}-1", record.envelope.connection)
    received = [record.envelope.received_us for record in kept]
    assert received == sorted(received)


def test_the_request_is_one_message_without_an_origin(
    broker: Broker, exchange: ScriptedExchange, tmp_path: Path
) -> None:
    with producing(
        [section(broker.topic(), "KRW-BTC", "KRW-ETH")], settings_for(exchange, broker.bootstrap, tmp_path)
    ):
        wait_until(lambda: exchange.clients == 1, "a subscription")
    assert len(exchange.requests) == 1
    _, subscription, form = exchange.requests[0]
    assert subscription == {"type": "orderbook", "codes": ["KRW-BTC.15", "KRW-ETH.15"]}
    assert form == {"format": "SIMPLE"}
    assert exchange.origins == [None]


@pytest.mark.parametrize("end", ["close 1000", "close 1011", "reset"])
def test_whatever_ends_a_connection_the_next_one_follows(
    broker: Broker, exchange: ScriptedExchange, tmp_path: Path, end: str
) -> None:
    topic = broker.topic()
    with producing(
        [section(topic, "KRW-BTC")], settings_for(exchange, broker.bootstrap, tmp_path)
    ) as running:
        for number in range(1, 4):
            wait_until(
                lambda n=number: len(exchange.requests) == n and exchange.clients == 1, "a subscription"
            )
            wait_until(lambda: carried(running.stats[0]) == len(exchange.sent), "all frames")
            if end == "reset":
                exchange.reset()
            else:
                exchange.close(int(end.split()[1]))
        wait_until(lambda: len(exchange.requests) == 4, "the fourth subscription")
    causes = running.stats[0].reconnects
    expected = "closed_1006" if end == "reset" else f"closed_{end.split()[1]}"
    assert sum(causes.values()) == 3
    assert set(causes) <= {expected, "socket_failed"}, causes
    connections = [record.envelope.connection for record in books(read_all(broker.bootstrap, topic))]
    assert len(set(connections)) == 4


def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten what supervision waits for."""
    monkeypatch.setattr(supervision, "KEEPALIVE_S", 0.4)
    monkeypatch.setattr(supervision, "STALL_S", 1.2)
    monkeypatch.setattr(supervision, "FIRST_MESSAGE_S", 0.6)


@pytest.mark.parametrize("pongs", [True, False])
def test_a_socket_on_which_no_message_ever_came_is_given_up(
    broker: Broker, exchange: ScriptedExchange, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pongs: bool
) -> None:
    quickly(monkeypatch)
    exchange.snapshots = False
    exchange.says_up = False
    exchange.answers_pings = pongs
    with producing(
        [section(broker.topic(), "KRW-BTC")], settings_for(exchange, broker.bootstrap, tmp_path)
    ) as running:
        wait_until(lambda: running.stats[0].reconnects["stalled"] >= 2, "two stalls")


@pytest.mark.parametrize("pongs", [True, False])
def test_a_socket_that_fell_silent_is_given_up_and_the_silence_is_a_hole(
    broker: Broker, exchange: ScriptedExchange, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pongs: bool
) -> None:
    quickly(monkeypatch)
    monkeypatch.setattr(supervision, "MUTE_S", (1.0, 2.0))
    monkeypatch.setattr(coverage.CoverageTracker.__init__, "__defaults__", (300_000,))
    topic = broker.topic()
    with producing(
        [section(topic, "KRW-BTC")], settings_for(exchange, broker.bootstrap, tmp_path)
    ) as running:
        wait_until(lambda: "BTC" in running.stats[0].last_frame_us, "the snapshot")
        time.sleep(0.01)  # what is read at once has one stamp
        exchange.says_up = False
        exchange.answers_pings = pongs
        exchange.send(book("KRW-BTC", now_ms(), 1))
        wait_until(lambda: running.stats[0].reconnects["stalled"] == 1, "the stall")
        wait_until(lambda: len(exchange.requests) == 2, "the next subscription")
    records = read_all(broker.bootstrap, topic)
    first = next(r for r in books(records)).envelope.connection
    last_us = max(r.envelope.received_us for r in books(records) if r.envelope.connection == first)
    told = [h for h in heartbeats(records) if h.connection == first]
    assert any(h.holes for h in told) == pongs, "pongs made us claim the silence"
    covered = covered_intervals(told)["BTC"]
    assert covered[-1][1] <= last_us


def test_pongs_and_up_keep_a_quiet_socket(
    broker: Broker, exchange: ScriptedExchange, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quickly(monkeypatch)
    with producing(
        [section(broker.topic(), "KRW-BTC")], settings_for(exchange, broker.bootstrap, tmp_path)
    ) as running:
        wait_until(lambda: exchange.clients == 1, "a subscription")
        time.sleep(2.5)
        assert not running.stats[0].reconnects
        assert carried(running.stats[0]) == 1


def test_a_refusal_is_not_hammered(broker: Broker, exchange: ScriptedExchange, tmp_path: Path) -> None:
    exchange.refuse_with = 429
    with producing(
        [section(broker.topic(), "KRW-BTC")], settings_for(exchange, broker.bootstrap, tmp_path)
    ) as running:
        wait_until(lambda: running.stats[0].reconnects["status_429"] == 1, "the refusal")
        time.sleep(1.0)
        assert len(exchange.origins) == 1


def test_garbage_is_published_and_errors_are_not(
    broker: Broker, exchange: ScriptedExchange, tmp_path: Path
) -> None:
    topic = broker.topic()
    garbage = [b"\xff\xfenot json", b"[1,2]", b'{"cd":"KRW-BTC"', b"", book("no market", 1)]
    with producing(
        [section(topic, "KRW-BTC")], settings_for(exchange, broker.bootstrap, tmp_path)
    ) as running:
        wait_until(lambda: exchange.clients == 1, "a subscription")
        exchange.send(*garbage, b'{"status":"UP"}', b'{"error":{"message":"x","name":"WRONG_FORMAT"}}')
        wait_until(lambda: running.stats[0].error_frames == 1, "the error frame")
    kept = books(read_all(broker.bootstrap, topic))
    assert [(r.key, r.value) for r in kept[1:]] == [(b"", frame) for frame in garbage]
    assert running.stats[0].garbage == len(garbage)
    assert all(r.envelope.tms is None and r.envelope.stream_type is None for r in kept[1:])


def test_heartbeats_cover_and_leave_a_hole_at_a_reconnect(
    broker: Broker, exchange: ScriptedExchange, tmp_path: Path
) -> None:
    topic = broker.topic()
    with producing(
        [section(topic, "KRW-BTC", "KRW-XXX")], settings_for(exchange, broker.bootstrap, tmp_path)
    ) as running:
        stats = running.stats[0]
        wait_until(lambda: exchange.clients == 1 and len(stats.last_frame_us) == 2, "a subscription")
        time.sleep(0.05)
        exchange.send(book("KRW-BTC", now_ms(), 1))
        wait_until(lambda: carried(stats) == 3, "the frames")
        exchange.close()
        wait_until(lambda: len(exchange.requests) == 2 and exchange.clients == 1, "a second subscription")
        time.sleep(0.05)
        exchange.send(book("KRW-BTC", now_ms(), 2))
        wait_until(lambda: carried(stats) == 6, "the frames after the cut")
    records = read_all(broker.bootstrap, topic)
    told = heartbeats(records)
    assert {h.section for h in told} == {"upbit_producer1"}
    assert {h.subscribed for h in told} == {("BTC", "XXX")}
    spans: dict[str, list[tuple[int, int]]] = {}
    for heartbeat in told:
        spans.setdefault(heartbeat.connection, []).extend(
            (c.from_us, c.to_us) for c in heartbeat.covered if "BTC" in c.tickers
        )
    (first, first_spans), (second, second_spans) = sorted(spans.items())
    received: dict[str, list[int]] = {first: [], second: []}
    for record in books(records):
        received[record.envelope.connection].append(record.envelope.received_us)
    for connection, claimed in ((first, first_spans), (second, second_spans)):
        assert min(claimed)[0] == received[connection][0]
        assert max(claimed)[1] >= received[connection][-1]
    # Half the shortest delay between two connections, at least, is nobody's.
    assert second_spans[0][0] - max(first_spans)[1] > 60_000


def test_a_broker_outage_loses_nothing_that_was_received(exchange: ScriptedExchange, tmp_path: Path) -> None:
    with running_broker() as broker:
        create_topics(broker.bootstrap, {"orderbook": 1})
        settings = settings_for(exchange, broker.bootstrap, tmp_path)
        with producing([section("orderbook", "KRW-BTC")], settings) as running:
            stats = running.stats[0]
            wait_until(lambda: exchange.clients == 1, "a subscription")
            exchange.send(*(book("KRW-BTC", now_ms(), i) for i in range(100)))
            wait_until(lambda: stats.acknowledged >= 101, "acknowledgements before the outage")
            broker.kill()  # what it held is gone with it: only what comes now can be compared
            before = len(exchange.sent)
            for i in range(100, 400):
                exchange.send(book("KRW-BTC", now_ms(), i))
                time.sleep(0.01)
            wait_until(lambda: stats.spooled >= 100 and stats.spooling, "the spool")
            outage_us = time.time_ns() // 1000
            broker.restart()
            create_topics(broker.bootstrap, {"orderbook": 1})
            wait_until(lambda: not stats.spooling, "the live path")
            exchange.send(*(book("KRW-BTC", now_ms(), i) for i in range(400, 500)))
            wait_until(lambda: stats.spool_bytes == 0, "an empty spool")
            records = read_all(broker.bootstrap, "orderbook")
        kept = books(records)
        assert sorted(r.value for r in kept) == sorted(exchange.sent[before:])
        # In order on each way, and with the stamps of then.
        during = [r.value for r in kept if r.envelope.received_us < outage_us]
        assert during == exchange.sent[before : before + len(during)]
        assert len(during) == 300
        assert all(r.timestamp == r.envelope.received_us // 1000 for r in kept)
        assert stats.lost == 0
        # A heartbeat stands behind every frame that it vouches for.
        offsets = {r.value: r.offset for r in kept}
        for record in records:
            if record.envelope.kind == HEARTBEAT:
                to_us = Heartbeat.decode(record.value).to_us
                vouched = [r for r in kept if to_us is not None and r.envelope.received_us < to_us]
                from_us = min((c.from_us for c in Heartbeat.decode(record.value).covered), default=0)
                early = [
                    (r.offset, r.envelope.received_us)
                    for r in vouched
                    if r.envelope.received_us >= from_us and offsets[r.value] > record.offset
                ]
                assert not early, (record.offset, record.value, early[:3])


@pytest.mark.parametrize("seconds", [2.5, 11.5])
def test_a_broker_that_hangs_delays_and_duplicates_nothing(
    exchange: ScriptedExchange, tmp_path: Path, seconds: float
) -> None:
    # The longer one is past the client's request timeout: it sends the same batch again.
    with running_broker() as broker:
        create_topics(broker.bootstrap, {"orderbook": 1})
        settings = settings_for(exchange, broker.bootstrap, tmp_path)
        with producing([section("orderbook", "KRW-BTC")], settings) as running:
            stats = running.stats[0]
            wait_until(lambda: exchange.clients == 1, "a subscription")
            exchange.send(*(book("KRW-BTC", now_ms(), i) for i in range(50)))
            broker.process.send_signal(signal.SIGSTOP)
            try:
                for i in range(50, 250):
                    exchange.send(book("KRW-BTC", now_ms(), i))
                    time.sleep(seconds / 200)
                wait_until(lambda: stats.spooling and carried(stats) == len(exchange.sent), "all frames")
            finally:
                broker.process.send_signal(signal.SIGCONT)
            wait_until(lambda: not stats.spooling and stats.spool_bytes == 0, "recovery", 30)
        kept = [r.value for r in books(read_all(broker.bootstrap, "orderbook"))]
    assert kept == exchange.sent


def test_a_full_spool_loses_in_the_open(
    exchange: ScriptedExchange, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sections, "Spool", partial(tiny_spool, 20_000))
    lost_us: list[int] = []
    lose = Publisher._lose

    def note(self: Publisher, record: Outgoing) -> None:
        if record.key == b"BTC":
            lost_us.append(record.received_us)
        lose(self, record)

    monkeypatch.setattr(Publisher, "_lose", note)
    with running_broker() as broker:
        create_topics(broker.bootstrap, {"orderbook": 1})
        with producing(
            [section("orderbook", "KRW-BTC", "KRW-ETH")], settings_for(exchange, broker.bootstrap, tmp_path)
        ) as running:
            stats = running.stats[0]
            wait_until(lambda: stats.acknowledged >= 2, "the snapshots")
            broker.kill()
            before = len(exchange.sent)
            exchange.send(book("KRW-BTC", now_ms(), 0))
            wait_until(lambda: stats.spooling, "the spool")
            for i in range(1, 200):
                exchange.send(book("KRW-BTC", now_ms(), i))
            wait_until(lambda: stats.lost > 0 and carried(stats) == len(exchange.sent), "the loss")
            broker.restart()
            create_topics(broker.bootstrap, {"orderbook": 1})
            wait_until(lambda: not stats.spooling and stats.spool_bytes == 0, "recovery")
            exchange.send(book("KRW-BTC", now_ms(), 999))
            wait_until(lambda: carried(stats) == len(exchange.sent), "the last frame")
            time.sleep(0.1)
            exchange.send(book("KRW-ETH", now_ms(), 1000))
            wait_until(lambda: carried(stats) == len(exchange.sent), "the last frame")
        records = read_all(broker.bootstrap, "orderbook")
    kept = {r.value: r.envelope.received_us for r in books(records)}
    missing = [frame for frame in exchange.sent[before:] if frame not in kept]
    assert len(missing) <= stats.lost
    assert missing
    first_lost = exchange.sent.index(missing[0])
    last_kept_us = kept[exchange.sent[first_lost - 1]]
    back_us = next(us for frame, us in kept.items() if b"1099" in frame)
    spans = [(c.from_us, c.to_us) for h in heartbeats(records) for c in h.covered if "BTC" in c.tickers]
    # Nobody claims the span in which frames were lost; it is claimed again from the first book that was kept.
    assert not any(from_us <= last_kept_us and to_us >= back_us for from_us, to_us in spans)
    assert not any(lost_us[0] < to_us <= back_us for _, to_us in spans)
    assert any(from_us == back_us for from_us, _ in spans)


def tiny_spool(tiny_bytes: int, root: Path, name: str, *, limit_bytes: int) -> Spool:
    assert limit_bytes == 4096 * 2**20, "the setting's default"
    return Spool(root, name, limit_bytes=tiny_bytes)


def test_markets_follow_the_exchange_without_a_gap(
    broker: Broker, exchange: ScriptedExchange, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(markets, "FOLLOW_EVERY_S", 0.2)
    monkeypatch.setattr(markets, "CONFIRM_S", 0.2)
    topic = broker.topic()
    with producing(
        [section(topic, all_of="KRW")], settings_for(exchange, broker.bootstrap, tmp_path)
    ) as running:
        wait_until(lambda: exchange.clients == 1, "a subscription")
        exchange.markets = ["KRW-BTC", "KRW-NEW", "BTC-NOT"]
        # The listing is subscribed at once; the delisting waits for a second answer.
        wait_until(
            lambda: exchange.requests[-1][1]["codes"] == ["KRW-BTC.15", "KRW-NEW.15"], "the subscription"
        )
        wait_until(lambda: exchange.ended == len(exchange.requests) - 1, "one connection again")
        wait_until(lambda: running.stats[0].markets == 2, "two markets")
        assert not running.failed
    told = heartbeats(read_all(broker.bootstrap, topic))
    assert {("BTC", "ETH"), ("BTC", "NEW")} <= {h.subscribed for h in told}
    assert not running.stats[0].reconnects
    ends = max(c.to_us for h in told if "ETH" in h.subscribed for c in h.covered)
    begins = min(c.from_us for h in told if "NEW" in h.subscribed for c in h.covered if "BTC" in c.tickers)
    assert begins <= ends


def test_two_processes_of_a_section_publish_everything_twice(
    broker: Broker, exchange: ScriptedExchange, tmp_path: Path
) -> None:
    topic = broker.topic()
    settings = settings_for(exchange, broker.bootstrap, tmp_path)
    with producing([section(topic, "KRW-BTC")], settings), producing([section(topic, "KRW-BTC")], settings):
        wait_until(lambda: exchange.clients == 2, "two subscriptions")
        exchange.send(*(book("KRW-BTC", now_ms(), i) for i in range(50)))
    kept = books(read_all(broker.bootstrap, topic))
    assert sorted(r.value for r in kept) == sorted(exchange.sent)
    assert len({r.envelope.connection for r in kept}) == 2


# ---- as a process


PROGRAM = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from ingest_services import config, logs
    from ingest_services.cli import UserError
    from ingest_services.producer import service
    from ingest_services.settings import IngestSettings
    logs.setup_logging()
    settings = IngestSettings(_env_file=None)
    try:
        sys.exit(service.run(config.read_producers(settings.producer_conf), settings, None))
    except UserError as error:
        print(error)
        sys.exit(2)
    """
)


class Process:
    started: ClassVar[list[subprocess.Popen[bytes]]] = []

    def __init__(self, topic: str, exchange: ScriptedExchange, bootstrap: str, folder: Path) -> None:
        conf = folder / "producer.conf"
        conf.write_text(f"[upbit_producer1]\ntopic_name={topic}\npartition_number=0\ntickers=BTC\n")
        settings = settings_for(exchange, bootstrap, folder)
        self.log = (folder / "log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).parents[2]),
                "PRODUCER_CONF": str(conf),
                "KAFKA_BOOTSTRAP": bootstrap,
                "UPBIT_WS_URL": settings.upbit_ws_url,
                "SPOOL_DIR": str(settings.spool_dir),
            },
            stdout=self.log,
            stderr=self.log,
        )
        self.started.append(self.process)

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        # It ends itself within 10 s, or says so (`not_ended_in_time`).
        return self.process.wait(60)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_exits_0(
    broker: Broker, exchange: ScriptedExchange, tmp_path: Path, number: int
) -> None:
    topic = broker.topic()
    process = Process(topic, exchange, broker.bootstrap, tmp_path)
    wait_until(lambda: exchange.clients == 1, "a subscription", 60)
    exchange.send(*(book("KRW-BTC", now_ms(), i) for i in range(2000)))
    assert process.end(number) == 0
    assert "not_ended_in_time" not in (tmp_path / "log").read_text()
    records = read_all(broker.bootstrap, topic)
    assert [r.value for r in books(records)] == exchange.sent
    assert records[-1].envelope.kind == HEARTBEAT
    last = Heartbeat.decode(records[-1].value)
    received = [r.envelope.received_us for r in books(records)]
    told = heartbeats(records)
    assert min(c.from_us for h in told for c in h.covered) == received[0]
    assert max(h.to_us or 0 for h in told) >= received[-1]
    assert last.connection == books(records)[-1].envelope.connection
    assert not list((tmp_path / "spool" / "upbit_producer1").glob("*/*"))


def test_what_a_killed_process_had_spooled_is_delivered_by_the_next(
    exchange: ScriptedExchange, tmp_path: Path
) -> None:
    with running_broker() as broker:
        create_topics(broker.bootstrap, {"orderbook": 1})
        process = Process("orderbook", exchange, broker.bootstrap, tmp_path)
        wait_until(lambda: exchange.clients == 1, "a subscription", 60)
        wait_until(lambda: books(read_all(broker.bootstrap, "orderbook")), "the snapshot in Kafka", 30)
        before = len(exchange.sent)
        broker.kill()
        for i in range(200):
            exchange.send(book("KRW-BTC", now_ms(), i))
            time.sleep(0.01)
        folder = tmp_path / "spool" / "upbit_producer1"
        last = exchange.sent[-1]
        wait_until(lambda: any(last in p.read_bytes() for p in folder.glob("*/*.spool")), "the spool")
        assert process.end(signal.SIGKILL) == -signal.SIGKILL
        broker.restart()
        create_topics(broker.bootstrap, {"orderbook": 1})
        killed = len(exchange.sent)
        wait_until(lambda: exchange.clients == 0, "the end of the socket")
        process = Process("orderbook", exchange, broker.bootstrap, tmp_path)
        wait_until(lambda: not list(folder.glob("*/*.spool")) and exchange.clients == 1, "delivery", 60)
        assert process.end(signal.SIGTERM) == 0
        kept = [r.value for r in books(read_all(broker.bootstrap, "orderbook"))]
    assert [value for value in kept if value in set(exchange.sent[before:killed])] == exchange.sent[
        before:killed
    ]
    assert sorted(kept) == sorted(exchange.sent[before:])


def test_a_stop_during_an_outage_leaves_the_spool_for_the_next(
    exchange: ScriptedExchange, tmp_path: Path
) -> None:
    with running_broker() as broker:
        create_topics(broker.bootstrap, {"orderbook": 1})
        process = Process("orderbook", exchange, broker.bootstrap, tmp_path)
        wait_until(lambda: exchange.clients == 1, "a subscription", 60)
        wait_until(lambda: books(read_all(broker.bootstrap, "orderbook")), "the snapshot in Kafka", 30)
        before = len(exchange.sent)
        broker.kill()
        exchange.send(*(book("KRW-BTC", now_ms(), i) for i in range(50)))
        assert process.end(signal.SIGTERM) == 0
        assert "not_ended_in_time" not in (tmp_path / "log").read_text()
        broker.restart()
        create_topics(broker.bootstrap, {"orderbook": 1})
        stopped = len(exchange.sent)
        process = Process("orderbook", exchange, broker.bootstrap, tmp_path)
        folder = tmp_path / "spool" / "upbit_producer1"
        wait_until(lambda: not list(folder.glob("*/*.spool")) and exchange.clients == 1, "delivery", 60)
        assert process.end(signal.SIGTERM) == 0
        kept = [r.value for r in books(read_all(broker.bootstrap, "orderbook"))]
    assert [value for value in kept if value in set(exchange.sent[before:stopped])] == exchange.sent[
        before:stopped
    ]


# ---- before anything starts


def test_a_missing_topic_or_partition_is_one_line(
    broker: Broker, exchange: ScriptedExchange, tmp_path: Path
) -> None:
    settings = settings_for(exchange, broker.bootstrap, tmp_path)
    with pytest.raises(UserError, match="topic nowhere does not exist"):
        ProducerService([section("nowhere", "KRW-BTC")], settings)
    topic = broker.topic(2)
    with pytest.raises(
        UserError, match=rf"\[upbit_producer1\] partition_number=2: topic {topic} has partitions 0 to 1"
    ):
        ProducerService([section(topic, "KRW-BTC", partition=2)], settings)
    assert not settings.spool_dir.exists()
    assert exchange.origins == []


def test_an_unwritable_spool_is_one_line(broker: Broker, exchange: ScriptedExchange, tmp_path: Path) -> None:
    settings = settings_for(exchange, broker.bootstrap, tmp_path)
    (tmp_path / "spool").write_text("a file, not a folder")
    with pytest.raises(UserError, match=r"SPOOL_DIR=.*spool: cannot be written"):
        ProducerService([section(broker.topic(), "KRW-BTC")], settings)


def test_metrics_are_served_and_a_taken_port_is_one_line(
    broker: Broker, exchange: ScriptedExchange, tmp_path: Path
) -> None:
    port = free_port()
    topic = broker.topic()
    settings = settings_for(exchange, broker.bootstrap, tmp_path)
    with producing([section(topic, "KRW-BTC")], settings, port) as running:
        # A snapshot and UP. At a minute's end a heartbeat is acknowledged as well.
        stats = running.stats[0]
        wait_until(lambda: stats.frames == 2 and stats.acknowledged >= 1, "an acknowledgement")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            text = answer.read().decode()
        with pytest.raises(UserError, match=f"--metrics-port {port}: cannot listen"):
            ProducerService([section(topic, "KRW-BTC")], settings, port)
    label = 'section="upbit_producer1"'
    for line in (
        f"cryptostream_producer_frames_total{{{label}}} 2.0",
        f'cryptostream_producer_connection_state{{{label},state="live"}} 1.0',
        f"cryptostream_producer_spool_bytes{{{label}}} 0.0",
    ):
        assert line in text, text
    for name in ("acknowledged_total{", 'publish_seconds_bucket{le="+Inf",'):
        line = re.escape(f"cryptostream_producer_{name}{label}}}")
        (value,) = re.findall(rf"^{line} (\S+)$", text, re.MULTILINE)
        assert float(value) >= 1, text
    assert f'cryptostream_producer_last_frame_age_seconds{{{label},ticker="BTC"}}' in text
    assert not [t.name for t in threading.enumerate() if t.name == "upbit_producer1-feed"]
