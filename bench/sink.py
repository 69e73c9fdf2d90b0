"""Broker to committed objects, against the seed's way, in one run.

The seed's consumer: poll, `json.loads` each message, group by ticker and minute, `json.dumps`, write one file
per group and poll. Ours runs as a process of its own, the way it is deployed. Both read the same topic from
the same embedded broker and write to the same disk.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import orjson
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from rich.console import Console
from rich.table import Table

from cryptostream_dagster.local.broker import start_broker, stop_broker
from cryptostream_dagster.local.ports import LOOPBACK, free_port
from ingest_services import kafka
from ingest_services.lake import chain as chains
from ingest_services.lake.store import FolderStore
from ingest_services.record import BOOK, Envelope, headers_of

TICKERS = 160
PARTITIONS = 4
DEPTH = 15


def frame(number: int, tms: int) -> tuple[str, bytes]:
    ticker = f"T{number % TICKERS}"
    units = [
        {"ap": 1000.0 + i, "bp": 999.0 - i, "as": 1.23456789 + i, "bs": number / 1000 + i}
        for i in range(DEPTH)
    ]
    book = {"ty": "orderbook", "cd": f"KRW-{ticker}", "tms": tms, "tas": 99.5, "tbs": 98.5, "obu": units}
    return ticker, orjson.dumps({**book, "st": "REALTIME", "lv": 0})


def produce(bootstrap: str, topic: str, count: int) -> int:
    producer = KafkaProducer(**kafka.client_config(bootstrap), acks="all", linger_ms=20, batch_size=1 << 18)
    now_ms = time.time_ns() // 1_000_000
    size = 0
    for number in range(count):
        tms = now_ms - 300_000 + number * 240_000 // count
        ticker, value = frame(number, tms)
        headers = headers_of(Envelope(BOOK, now_ms * 1000, "bench-1", tms, "REALTIME"))
        producer.send(topic, value, ticker.encode(), headers, number % TICKERS % PARTITIONS)
        size += len(value)
    producer.flush()
    producer.close()
    return size // count


def run_ours(bootstrap: str, topic: str, count: int, root: Path) -> tuple[float, int, int]:
    conf = root / "consumer.conf"
    conf.write_text(
        "".join(
            f"[gcs_consumer{n}]\ntopic_name={topic}\npartition_number={n}\ngroup_name=bench\n"
            for n in range(PARTITIONS)
        )
    )
    lake = root / "raw"
    env = {
        **os.environ,
        "KAFKA_BOOTSTRAP": bootstrap,
        "RAW_URL": lake.as_uri(),
        "CONSUMER_CONF": str(conf),
        "SOURCE": "simulator",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "ingest_services", "consume", "--all"],
        env=env,
        cwd=root,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not (lake / "_chains").exists():
            time.sleep(0.01)
        begin = time.perf_counter()
        store = FolderStore(lake)
        tails = dict.fromkeys(range(PARTITIONS), 0)
        while sum(tails.values()) < count:
            for number, tail in tails.items():
                for commit in chains.commits_from(store, 1, number, tail):
                    tails[number] = commit.next
            time.sleep(0.02)
        seconds = time.perf_counter() - begin
        status = Path(f"/proc/{process.pid}/status")
        peak = next(
            (
                int(line.split()[1]) // 1024
                for line in status.read_text().splitlines()
                if line.startswith("VmHWM")
            ),
            0,
        )
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(15)
    objects = sum(1 for _ in lake.rglob("ticker=*/**/*.jsonl.zst"))
    return seconds, peak, objects


def run_seed(bootstrap: str, topic: str, count: int, root: Path) -> tuple[float, int]:
    consumer = KafkaConsumer(**kafka.client_config(bootstrap), enable_auto_commit=False)
    tps = [TopicPartition(topic, number) for number in range(PARTITIONS)]
    consumer.assign(tps)
    consumer.seek_to_beginning(*tps)
    objects: set[Path] = set()
    done = 0
    begin = time.perf_counter()
    while done < count:
        for records in consumer.poll(timeout_ms=500).values():
            groups: dict[Path, list[str]] = {}
            last = 0
            for record in records:
                book = json.loads(record.value)
                last = book["tms"]
                moment = time.strftime("year=%Y/month=%m/day=%d/hour=%H/minute=%M", time.gmtime(last / 1000))
                groups.setdefault(root / f"ticker={book['cd']}" / moment, []).append(json.dumps(book))
            for folder, lines in groups.items():
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / f"{last}.jsonl"
                with path.open("w") as file:
                    file.write("\n".join(lines))
                    file.flush()
                    os.fsync(file.fileno())
                objects.add(path)
            done += len(records)
    seconds = time.perf_counter() - begin
    consumer.close()
    return seconds, len(objects)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=100_000)
    count = parser.parse_args().records
    port = free_port()
    broker = start_broker(port)
    try:
        bootstrap = f"{LOOPBACK}:{port}"
        kafka.create_topics(bootstrap, {"bench": PARTITIONS})
        size = produce(bootstrap, "bench", count)
        with tempfile.TemporaryDirectory() as folder:
            ours, peak, objects = run_ours(bootstrap, "bench", count, Path(folder))
        with tempfile.TemporaryDirectory() as folder:
            seed, seed_objects = run_seed(bootstrap, "bench", count, Path(folder))
    finally:
        stop_broker(broker)
    table = Table(title=f"Broker to durable objects: {count} records of {size} bytes, {TICKERS} tickers")
    for column in ("", "s", "records/s", "objects", "peak MiB", "ratio"):
        table.add_column(column, justify="right")
    table.add_row(
        "ours", f"{ours:.1f}", f"{count / ours:.0f}", str(objects), str(peak), f"{seed / ours:.1f} x"
    )
    table.add_row("the seed's way", f"{seed:.1f}", f"{count / seed:.0f}", str(seed_objects), "", "1")
    Console().print(table)


if __name__ == "__main__":
    main()
