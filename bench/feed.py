"""Socket to acknowledged record: one producer process, the whole exchange, against the seed's way.

* Paced: `cryptostream simulate` with 855 markets at depth 30; its journal says what must be in Kafka. Latency
  is the producer's own histogram: received to acknowledged.
* Flat out: prepared frames from a source of its own (`load/source.py`), because the simulator would be the
  bottleneck. The seed's producer is `json.loads`, and one blocking send per message. Beside them the limits,
  each alone on one core: the Kafka client with our settings, parsing, reading the socket.
* Cuts: the simulator resets the connection; the hole is what no heartbeat claims.

The broker keeps its log in memory and answers at once: on a real cluster the seed's way is slower still.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import deque
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import websocket
from kafka import KafkaProducer
from load import stack
from load.frames import DEPTH, MARKETS, Frames
from rich.table import Table

from ingest_services import kafka
from ingest_services.producer.lane import connect_producer
from ingest_services.record import BOOK, Envelope, headers_of

WARM_UP_S = 2.0
# Nobody listens there: static sections need no REST, and the frame source has none.
NO_REST = "http://127.0.0.1:9"


def paced(pace: int, seconds: float, folder: Path) -> tuple[str, ...]:
    with (
        stack.broker() as broker,
        stack.simulator(pace, folder) as simulator,
    ):
        topic = broker.topic("paced")
        with stack.producer(
            broker.bootstrap, topic, simulator.ws_url, simulator.rest_url, simulator.markets, folder
        ) as producer:
            producer.wait("acknowledged_total", MARKETS)
            time.sleep(WARM_UP_S)
            before, cpu_s, began_s = producer.metrics(), producer.cpu_s(), time.monotonic()
            time.sleep(seconds)
            after, cpu_s = producer.metrics(), producer.cpu_s() - cpu_s
            took_s = time.monotonic() - began_s
            peak = producer.memory_mib("VmHWM")
        delivered = stack.compare_with_journal(broker.bootstrap, topic, simulator.sent())
    frames = after["acknowledged_total"] - before["acknowledged_total"]
    latency = stack.Latency(before, after)
    return (
        f"{pace}",
        f"{frames / took_s:.0f}",
        *(latency.below(share) for share in (0.5, 0.99, 0.999)),
        f"{latency.share_within(0.05):.2%}",
        f"{cpu_s / took_s:.2f}",
        f"{peak:.0f}",
        f"{after['spooled_total']:.0f}",
        f"{delivered.books}: {delivered.verdict}",
    )


def flat_out_ours(count: int, folder: Path) -> tuple[float, float, stack.Delivered, float]:
    """Return frames/s, peak MiB, what arrived and the cores used."""
    with stack.broker() as broker, stack.source(count) as source:
        topic = broker.topic("flat")
        markets = Frames().markets
        with stack.producer(broker.bootstrap, topic, source.url, NO_REST, markets, folder) as producer:
            before = producer.wait("acknowledged_total", 1)
            cpu_s, began_s = producer.cpu_s(), time.monotonic()
            after = producer.wait("acknowledged_total", count)
            took_s, cpu_s = time.monotonic() - began_s, producer.cpu_s() - cpu_s
            peak = producer.memory_mib("VmHWM")
        delivered = stack.compare(broker.bootstrap, topic, count)
    frames = after["acknowledged_total"] - before["acknowledged_total"]
    return frames / took_s, peak, delivered, cpu_s / took_s


def flat_out_seed(count: int) -> float:
    """The seed's loop: receive, `json.loads`, send one message and wait for it."""
    with stack.broker() as broker, stack.source(count) as source:
        topic = broker.topic("seed")
        producer = KafkaProducer(**kafka.client_config(broker.bootstrap))
        client = websocket.create_connection(source.url)
        client.send(b"[]")
        began_s = time.perf_counter()
        for _ in range(count):
            book = json.loads(client.recv())
            producer.send(topic, json.dumps(book).encode(), key=book["cd"].encode(), partition=0).get(
                timeout=10
            )
        rate = count / (time.perf_counter() - began_s)
        client.shutdown()
        producer.close()
    return rate


def client_alone(count: int) -> float:
    """The Kafka client with our settings, fed from memory."""
    with stack.broker() as broker:
        topic = broker.topic("client")
        producer = connect_producer(broker.bootstrap)
        while 0 not in (producer.partitions_for(topic) or ()):
            time.sleep(0.05)
        frames, now_us = Frames(), time.time_ns() // 1000
        values = [frames.frame(serial, now_us // 1000) for serial in range(MARKETS)]
        headers = headers_of(Envelope(BOOK, now_us, "bench-1", now_us // 1000, "REALTIME"))
        sent: deque[Any] = deque()
        began_s = time.perf_counter()
        for number in range(count):
            value = values[number % MARKETS]
            sent.append(producer.send(topic, value, b"T0", headers, 0, now_us // 1000))
            while len(sent) > 2000:
                if sent[0].is_done:
                    sent.popleft()
                else:
                    time.sleep(0.002)
        producer.flush()
        rate = count / (time.perf_counter() - began_s)
        producer.close()
    return rate


def parsing_alone(count: int) -> float:
    frames = Frames()
    values = [frames.frame(serial, 1_700_000_000_000) for serial in range(MARKETS)]
    began_s = time.perf_counter()
    for number in range(count):
        orjson.loads(values[number % MARKETS])
    return count / (time.perf_counter() - began_s)


def reading_alone(count: int, size: float) -> float:
    with stack.source(count) as source:
        client = websocket.create_connection(source.url)
        client.send(b"[]")
        raw = client.sock
        assert raw is not None
        left = count * size
        began_s = time.perf_counter()
        while left > size:
            left -= len(raw.recv(65536))
        rate = count / (time.perf_counter() - began_s)
        client.shutdown()
    return rate


def flat_out(count: int, repeats: int, folder: Path) -> Table:
    size = sum(len(Frames().frame(serial, 1_700_000_000_000)) for serial in range(MARKETS)) / MARKETS
    ours, seed = [], []
    for number in range(repeats):
        seed.append(flat_out_seed(count // 15))
        ours.append(flat_out_ours(count, folder / str(number)))
    rate, seed_rate = statistics.median(each[0] for each in ours), statistics.median(seed)
    verdicts = "; ".join({each[2].verdict for each in ours})
    rows: list[tuple[str, float, str, str, str]] = [
        ("ours, one process", rate, f"{max(e[1] for e in ours):.0f}", f"{ours[0][3]:.2f}", verdicts),
        ("the seed's way", seed_rate, "", "", ""),
        ("limit: the Kafka client alone", client_alone(count), "", "", ""),
        ("limit: parsing alone (orjson)", parsing_alone(count), "", "1.00", ""),
        ("limit: reading the socket alone", reading_alone(3 * count, size + 4), "", "", ""),
    ]
    table = Table(
        title=f"Flat out: prepared frames of {size:.0f} bytes, depth {DEPTH}, {MARKETS} markets; "
        f"median of {repeats} x {count} frames",
        caption="goals: 5,000 frames/s, 10 x the seed, under 200 MiB, no frame missing",
    )
    columns = ("", "frames/s", "MB/s", "ratio to the seed", "peak MiB", "cores", "against what was sent")
    for column in columns:
        table.add_column(column, justify="right")
    for name, each, *rest in rows:
        table.add_row(name, f"{each:.0f}", f"{each * size / 1e6:.0f}", f"{each / seed_rate:.1f} x", *rest)
    return table


def cuts(folder: Path) -> Table:
    first_s, every_s, count = 3, 11, 3
    with (
        stack.broker() as broker,
        stack.simulator(
            1000, folder, "--fault", f"drop@{first_s}+{every_s}", "--snapshot-delay", "170-350"
        ) as simulator,
    ):
        topic = broker.topic("cuts")
        with stack.producer(
            broker.bootstrap, topic, simulator.ws_url, simulator.rest_url, simulator.markets, folder
        ) as producer:
            producer.wait("connected_total", count + 1)
            time.sleep(WARM_UP_S)
        delivered = stack.compare_with_journal(broker.bootstrap, topic, simulator.sent())
    log = [orjson.loads(line) for line in (folder / "producer.log").read_text().splitlines()]
    backoff = {line["connection"]: line["retry_in_s"] for line in log if line["event"] == "disconnected"}
    table = Table(
        title=f"The connection is reset at 1,000 frames/s, snapshots come 170-350 ms after the request; "
        f"{delivered.books} frames: {delivered.verdict}",
        caption="goal: the hole is under 1 s plus backoff",
    )
    for column in ("cut", "backoff s", "hole s: median ticker", "worst ticker", "worst, without backoff"):
        table.add_column(column, justify="right")
    names = sorted(delivered.covered, key=lambda name: int(name.rsplit("-", 1)[1]))
    for number, (old, new) in enumerate(pairwise(names), 1):
        before, after = delivered.covered[old], delivered.covered[new]
        holes = [after[ticker][0] - before[ticker][1] for ticker in before if ticker in after]
        worst = max(holes) if len(holes) == MARKETS else float("nan")
        table.add_row(
            str(number),
            f"{backoff[old]:.2f}",
            f"{statistics.median(holes):.2f}",
            f"{worst:.2f}",
            f"{worst - backoff[old]:.2f}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of each pace")
    parser.add_argument("--frames", type=int, default=45_000, help="of each flat-out run")
    parser.add_argument("--repeats", type=int, default=3, help="flat-out runs")
    options = parser.parse_args()
    console = stack.console()
    console.print(stack.machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = Table(
            title=f"Paced: `cryptostream simulate`, {MARKETS} markets, depth {DEPTH}",
            caption="goals: at 1,000 frames/s p99 under 50 ms; under 200 MiB; no frame missing",
        )
        columns = ("asked for", "frames/s", "p50", "p99", "p99.9", "within 50 ms", "cores", "peak MiB")
        for column in (*columns, "spooled", "against the journal"):
            table.add_column(column, justify="right")
        for pace in (1000, 5000):
            table.add_row(*paced(pace, options.seconds, folder / str(pace)))
        console.print(table)
        console.print(flat_out(options.frames, options.repeats, folder / "flat"))
        console.print(cuts(folder / "cuts"))


if __name__ == "__main__":
    main()
