"""A seeded storm of faults over two producers; then every frame and every hole is accounted for.

The simulator's journal says what it published, what it wrote to which socket, and how each connection ended.
Against it stand Kafka's records and the coverage that the heartbeats claim.
"""

from __future__ import annotations

import bisect
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cryptostream_dagster.local.ports import LOOPBACK, free_port
from ingest_services.lake.coverage import Interval, covered_intervals
from ingest_services.producer.feed import CLOSE_TIMEOUT_S
from ingest_services.producer.silence import OVERDUE_FACTOR, OVERDUE_US
from ingest_services.producer.supervision import MUTE_S
from ingest_services.record import HEARTBEAT, Heartbeat
from ingest_services.simulator.journal import frame_of, read_journal
from tests.broker import Broker, running_broker
from tests.integration.test_producer_service import Record, read_all
from tests.scripted_exchange import wait_until

SEED = int(os.environ.get("CHAOS_SEED", "20261123"))
FAULTS = int(os.environ.get("CHAOS_FAULTS", "60"))
RATE = 10.0
TICKERS = ("BTC", "ETH", "XRP", "USDT-BTC", "USDT-ETH", "BTC-ETH", "BTC-XRP")
SECTIONS = ("upbit_producer1", "upbit_producer2", "upbit_producer3")
CONF = """
[upbit_producer1]
topic_name=orderbook
partition_number=0
tickers=BTC,ETH,XRP
[upbit_producer2]
topic_name=orderbook
partition_number=1
tickers=USDT-BTC,USDT-ETH
[upbit_producer3]
topic_name=orderbook
partition_number=2
tickers=ALL-BTC
"""
# A claim speaks of the time of receipt, the journal of the time of publication. Between them lies the longest
# way of a frame that was measured on the connection (a stopped producer, a busy machine), and so much more.
MARGIN_US = 500_000

# Every fault of the simulator, in several shapes. None is for a time that is too short to be noticed.
ORDERS: tuple[dict[str, Any], ...] = (
    {"fault": "drop"},
    {"fault": "drop", "flush": False},
    {"fault": "stall"},
    {"fault": "stall-code"},
    {"fault": "half-open"},
    {"fault": "close", "code": 1000},
    {"fault": "close", "code": 1001},
    {"fault": "close", "code": 1006},
    {"fault": "error"},
    {"fault": "garbage", "count": 3},
    {"fault": "truncate", "count": 2},
    {"fault": "duplicate", "count": 5},
    {"fault": "reorder", "count": 5},
    {"fault": "microseconds", "count": 10},
    {"fault": "future", "count": 3},
    {"fault": "default-format", "count": 10},
    {"fault": "slow", "bytes_per_s": 3000, "for_s": 2.0},
    {"fault": "refuse", "status": 429, "where": "both", "for_s": 1.0},
    {"fault": "refuse", "status": 418, "where": "rest", "count": 1},
    {"fault": "rest-down", "for_s": 2.0},
    {"fault": "list"},
    {"fault": "delist"},
)


@dataclass
class Storm:
    """The processes, and where they talk."""

    root: Path
    broker: Broker
    port: int
    log: list[str] = field(default_factory=list)

    @property
    def journal(self) -> Path:
        return self.root / "journal.jsonl"

    def order(self, fault: dict[str, Any]) -> None:
        request = urllib.request.Request(
            f"http://{LOOPBACK}:{self.port}/simulator/fault", json.dumps(fault).encode(), method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                self.log.append(f"{fault} {answer.read().decode()}")
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{fault}: {error.read().decode()}") from error

    def clients(self) -> int:
        with urllib.request.urlopen(f"http://{LOOPBACK}:{self.port}/simulator/health", timeout=10) as answer:
            return int(json.loads(answer.read())["clients"])

    @contextmanager
    def running(self, name: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run one command of ours; SIGTERM must end it with status 0."""
        log = self.root / f"{name}.log"
        process = subprocess.Popen(
            [sys.executable, "-m", "ingest_services", *arguments],
            cwd=self.root,
            stderr=log.open("wb"),
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).parents[2]),
                "SOURCE": "simulator",
                "KAFKA_BOOTSTRAP": self.broker.bootstrap,
                "UPBIT_WS_URL": f"ws://{LOOPBACK}:{self.port}/websocket/v1",
                "UPBIT_REST_URL": f"http://{LOOPBACK}:{self.port}",
                "SPOOL_DIR": str(self.root / f"{name}-spool"),
                "PRODUCER_CONF": str(self.root / "producer.conf"),
                "CONSUMER_CONF": str(self.root / "consumer.conf"),
                "DEPTH": "5",
            },
        )
        try:
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0, log.read_text()[-3000:]
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def schedule(chance: random.Random) -> list[dict[str, Any]]:
    """Return the orders: every shape at least twice, in random order, at random connections."""
    whole = {"refuse", "rest-down", "list", "delist"}
    orders = [dict(order) for order in ORDERS * 2]
    orders += [dict(chance.choice(ORDERS)) for _ in range(max(0, FAULTS - len(orders)))]
    chance.shuffle(orders)
    listed = 0
    for order in orders:
        if order["fault"] == "list":
            listed += 1
            order["market"] = f"BTC-NEW{listed}"
        elif order["fault"] == "delist":
            order["market"] = f"BTC-NEW{listed}" if listed else "BTC-XRP"
        elif order["fault"] == "stall-code":
            order["market"] = chance.choice(TICKERS)
        if order["fault"] not in whole:
            order.update(chance.choice(({}, {"newest": True}, *({"section": s} for s in SECTIONS))))
    seen: set[str] = set()
    return [o for o in orders if o["fault"] != "delist" or not (o["market"] in seen or seen.add(o["market"]))]


@pytest.mark.chaos
def test_every_frame_is_kept_once_and_every_hole_is_told(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    (tmp_path / "producer.conf").write_text(CONF)
    (tmp_path / "consumer.conf").write_text(
        "".join(f"[c{n}]\ntopic_name=orderbook\npartition_number={n}\ngroup_name=g\n" for n in range(3))
    )
    with running_broker() as broker:
        from ingest_services.kafka import create_topics

        create_topics(broker.bootstrap, {"orderbook": 3})
        storm = Storm(tmp_path, broker, free_port())
        orders = schedule(chance)
        with ExitStack() as processes:
            simulate = (
                "--tickers",
                ",".join(TICKERS),
                "--rate",
                str(RATE),
                "--history-minutes",
                "0",
                "--limits",
            )
            processes.enter_context(
                storm.running(
                    "simulator",
                    "simulate",
                    "--port",
                    str(storm.port),
                    *simulate,
                    "--journal",
                    str(storm.journal),
                )
            )
            wait_until(lambda: reachable(storm), "the simulator", 30)
            first = processes.enter_context(storm.running("first", "produce", "--all"))
            processes.enter_context(storm.running("second", "produce", "--all"))
            wait_until(lambda: storm.clients() == 6, "six connections", 30)
            outage, pause = len(orders) // 3, 2 * len(orders) // 3
            for number, order in enumerate(orders):
                if number == outage:
                    broker.process.send_signal(signal.SIGSTOP)
                if number == outage + 4:
                    broker.process.send_signal(signal.SIGCONT)
                if number == pause:
                    first.send_signal(signal.SIGSTOP)
                if number == pause + 2:
                    first.send_signal(signal.SIGCONT)
                storm.order(order)
                time.sleep(chance.uniform(0.3, 2.5))
            # What the last fault left open and mute is found out and replaced; then comes a calm.
            time.sleep(MUTE_S[1] + 1)
            wait_until(lambda: storm.clients() == 6, "six connections after the storm", 120)
            time.sleep(15)
        records = [r for partition in range(3) for r in read_all(broker.bootstrap, "orderbook", partition)]
    where = f"CHAOS_SEED={SEED}; logs and journal in {tmp_path}"
    assert len(orders) >= 50
    account(read_journal(storm.journal), records, where)


def reachable(storm: Storm) -> bool:
    try:
        return storm.clients() >= 0
    except OSError:
        return False


# ---- the oracle


@dataclass
class Truth:
    """What the simulator's journal says."""

    published: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    sent: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    silenced: dict[tuple[str, str], list[int]] = field(default_factory=lambda: defaultdict(list))
    ended: dict[str, dict[str, Any]] = field(default_factory=dict)

    def read(self, line: dict[str, Any]) -> None:
        kind, ticket = line["kind"], line.get("ticket", "")
        if kind == "published":
            self.published[line["market"]].append((line["at_us"], line["tms"]))
        elif kind == "sent" and line["what"] not in ("status", "list", "error"):
            self.sent[ticket].append(line)
        elif kind == "ended":
            self.ended[ticket] = line
        elif kind == "withheld" and line["why"] == "stall-code":
            self.silenced[ticket, line["market"]].append(line["at_us"])


def account(journal: list[dict[str, Any]], records: list[Record], where: str) -> None:
    """Hold Kafka's records against the simulator's journal."""
    truth = Truth()
    for line in journal:
        truth.read(line)
    kept: dict[str, list[Record]] = defaultdict(list)
    told: dict[str, list[Heartbeat]] = defaultdict(list)
    for record in records:
        if record.envelope.kind == HEARTBEAT:
            told[record.envelope.connection].append(Heartbeat.decode(record.value))
        else:
            kept[record.envelope.connection].append(record)
    assert set(kept) <= set(truth.sent), where
    for ticket, lines in truth.sent.items():
        frames_are_kept_once(ticket, lines, kept[ticket], truth.ended[ticket], where)
    claims = {ticket: covered_intervals(heartbeats) for ticket, heartbeats in told.items()}
    for ticket, spans in claims.items():
        nothing_claimed_was_missed(ticket, spans, kept[ticket], truth, where)
    # And the claims are not empty: what was listened to at the end, without a fault, is claimed whole.
    end_us = max(at for books in truth.published.values() for at, _ in books)
    for ticker in TICKERS:
        if truth.published[market(ticker)][-1][0] < end_us - 12_000_000:
            continue  # delisted
        spans = [span for claim in claims.values() for span in claim.get(ticker, [])]
        assert any(a < end_us - 10_000_000 and b > end_us - 2_000_000 for a, b in spans), (ticker, where)


def market(ticker: str) -> str:
    return ticker if "-" in ticker else f"KRW-{ticker}"


def frames_are_kept_once(
    ticket: str, lines: list[dict[str, Any]], kept: list[Record], end: dict[str, Any], where: str
) -> None:
    """Check that Kafka has exactly what was delivered, each frame once, in order."""
    ordered = sorted(kept, key=lambda r: (r.envelope.received_us, r.offset))
    frames = [frame_of(line) for line in lines]
    values = [record.value for record in ordered]
    assert Counter(values) == Counter(frames[: len(values)]), (ticket, end, len(frames), len(values), where)
    # Their stamps keep the order in which they came, whichever way they went.
    assert values == frames[: len(values)], (ticket, end, where)
    missing = lines[len(values) :]
    # What a reset overtook was delivered to nobody. Anything else that was sent was delivered, unless the
    # simulator was out of breath when we closed the connection, and we did not wait for it any longer.
    if end["acknowledged"] is not None:
        missing = [line for line in missing if line["serial"] <= end["acknowledged"]]
    elif end["how"].startswith("client closed") and ordered:
        waited_us = ordered[-1].envelope.received_us + int(CLOSE_TIMEOUT_S * 5e5)
        missing = [line for line in missing if line["at_us"] < waited_us]
    assert not missing, (ticket, end, missing[:3], where)


def nothing_claimed_was_missed(
    ticket: str, claims: dict[str, list[Interval]], kept: list[Record], truth: Truth, where: str
) -> None:
    """Check that inside what a connection claims every published book came through it, readable."""
    received = truth.sent[ticket][: len(kept)]
    stamps_us = sorted(record.envelope.received_us for record in kept)
    stamped = list(zip(stamps_us, received, strict=True))
    latency_us = max((at_us - line["tms"] * 1000 for at_us, line in stamped if "tms" in line), default=0)
    latency_us += MARGIN_US
    # A spoiled frame that was read together with a whole one of its market leaves a hole without length.
    whole = {(at_us, line.get("market")) for at_us, line in stamped if line["what"] != "truncated"}
    got = {
        (line["market"], line["tms"])
        for at_us, line in stamped
        if "tms" in line and (at_us, line["market"]) in whole
    }
    heard_us = max((span[1] for spans in claims.values() for span in spans), default=0)
    for ticker, spans in claims.items():
        code = market(ticker)
        books = truth.published[code]
        stamps = [at for at, _ in books]
        unknowable_us = unnoticed(truth.silenced[ticket, code], heard_us, latency_us)
        for from_us, to_us in spans:
            low = bisect.bisect_right(stamps, from_us + latency_us)
            high = bisect.bisect_left(stamps, min(to_us - latency_us, unknowable_us))
            missed = [book for book in books[low:high] if (code, book[1]) not in got]
            assert not missed, (ticket, ticker, (from_us, to_us), missed[:3], truth.ended[ticket], where)


def unnoticed(silenced: list[int], heard_us: int, latency_us: int) -> int:
    """Return from when on a code's silence was too short to be told from quiet when all fell silent.

    That is the one thing that no client can know (see `silence.py`): a code alone fell silent, and something
    else ended the connection before that was unusual.
    """
    unusual_us = max(OVERDUE_US[0], OVERDUE_FACTOR * int(1e6 / RATE)) + latency_us
    if silenced and heard_us - silenced[0] < unusual_us:
        return silenced[0] - latency_us
    return 1 << 62
