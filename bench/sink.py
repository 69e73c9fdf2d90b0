"""Broker to committed objects: one consumer process, against the seed's way; cost, memory, a minute's end.

* Flat out: a backlog of four minutes, sent with our producers' settings. Ours runs as a process of its own,
  the way it is deployed, and its figures begin when it knows its chain. The seed's consumer is poll,
  `json.loads` each message, five levels to columns (the others it drops), group by ticker and minute,
  `json.dumps`, and one object per group and poll. Both read the same topic from the same embedded broker.
  The seed's rate does not depend on how much there is, so it reads an eighth of it; ours includes its
  beginning and the cut at the end. Once into a bucket, where the seed uploads (here it is on this machine:
  a real one is further away, which costs whoever uploads one object after another); and once on the disk,
  where both sync each file and its folder before they go on.
* Cost: the same with ten times the records (`--full`: a hundred times).
* Memory: a backlog over 64 partitions.
* A minute's end: the whole exchange in real time, each record up to 0.2 s after its stamp.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from kafka import KafkaConsumer, TopicPartition
from load import stack
from load.bucket import NAME, Bucket, running_bucket
from load.carry import Carrying, Feed, consumer
from load.frames import MARKETS
from rich.console import Console
from rich.table import Table

from ingest_services import kafka
from ingest_services.lake.layout import MINUTE_MS

TICKERS = 160
PARTITIONS = 4
# Not a depth that the exchange has: it makes records of 1.3 kB, which the goals speak of.
DEPTH = 18
MANY_PARTITIONS = 64
EXCHANGE_PARTITIONS = 16
EXCHANGE_RATE = 1000
INTERLEAVE_S = 0.2
LATENESS_S = 5
LEVELS_OF_THE_SEED = 5
SEED_READS = 8


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def columns_of(book: dict[str, object], levels: list[dict[str, float]]) -> dict[str, object]:
    row = {name: value for name, value in book.items() if name != "obu"}
    for number, level in enumerate(levels[:LEVELS_OF_THE_SEED], 1):
        for name, value in level.items():
            row[f"{name}{number}"] = value
    return row


def write_synced(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    sync(path.parent)


def run_seed(
    bootstrap: str, topic: str, count: int, upload: Callable[[str, str], None]
) -> tuple[float, float, int, int]:
    """Return seconds, processor seconds, objects and records of the seed's way."""
    reader = KafkaConsumer(**kafka.client_config(bootstrap), enable_auto_commit=False)
    partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
    reader.assign(partitions)
    reader.seek_to_beginning(*partitions)
    objects = done = 0
    began_s, cpu_s = time.perf_counter(), time.process_time()
    while done < count:
        for tp, records in reader.poll(timeout_ms=500).items():
            groups: dict[str, list[str]] = {}
            last = 0
            for record in records:
                book = json.loads(record.value)
                last = book["tms"]
                moment = time.strftime("year=%Y/month=%m/day=%d/hour=%H/minute=%M", time.gmtime(last / 1000))
                line = json.dumps(columns_of(book, book["obu"]))
                groups.setdefault(f"ticker={book['cd']}/{moment}", []).append(line)
            for folder, lines in groups.items():
                upload(f"seed/{folder}/{last}-{tp.partition}.jsonl", "\n".join(lines))
                objects += 1
            done += len(records)
    took = time.perf_counter() - began_s, time.process_time() - cpu_s
    reader.close()
    return *took, objects, done


def run_ours(
    bootstrap: str, topic: str, count: int, partitions: int, folder: Path, raw_url: str | None = None
) -> tuple[float, float, Carrying, float]:
    """Return seconds, processor seconds, what was written, and peak MiB."""
    with consumer(bootstrap, topic, partitions, folder, raw_url) as carrying:
        took_s, cpu_s = carrying.wait(count)
        return took_s, cpu_s, carrying, carrying.peak_mib()


def flat_out(count: int, repeats: int, folder: Path, bucket: Bucket | None) -> Table:
    with stack.broker() as broker:
        kafka.create_topics(broker.bootstrap, {"flat": PARTITIONS})
        feed = Feed(broker.bootstrap, "flat", PARTITIONS, TICKERS, DEPTH)
        feed.backlog(count)
        ours, seeds = [], []
        for number in range(repeats):
            place = folder / f"flat-{'bucket' if bucket else 'folder'}{number}"
            url = f"gs://{NAME}/flat{number}" if bucket else None
            upload = bucket.uploader() if bucket else partial(write_synced, place)
            ours.append(run_ours(broker.bootstrap, "flat", count, PARTITIONS, place, url))
            seeds.append(run_seed(broker.bootstrap, "flat", count // SEED_READS, upload))
    table = Table(
        title=f"Flat out {'into a bucket' if bucket else 'on the disk'}: {count} records of {feed.size} "
        f"bytes, {TICKERS} tickers, {PARTITIONS} partitions; median of {repeats}"
    )
    for column in ("", "records/s", "ratio", "CPU µs/record", "per object", "peak MiB"):
        table.add_column(column, justify="right")
    objects = ours[0][2].objects.total()
    peak = max(each[3] for each in ours)
    rate = count / statistics.median(each[0] for each in ours)
    seed_rate = statistics.median(done / took_s for took_s, _, _, done in seeds)
    cost = statistics.median(each[1] for each in ours) / count
    seed_cost = statistics.median(cpu_s / done for _, cpu_s, _, done in seeds)
    ratios = [count / mine[0] / (seed[3] / seed[0]) for mine, seed in zip(ours, seeds, strict=True)]
    table.caption = (
        "goals: 10,000 records/s, 5 x the seed's way, 256 MiB; "
        f"ratio run by run: {', '.join(f'{each:.1f}' for each in ratios)}"
    )
    for row in (
        (
            "ours",
            f"{rate:.0f}",
            f"{rate / seed_rate:.1f} x",
            f"{cost * 1e6:.0f}",
            f"{count / objects:.0f}",
            f"{peak:.0f}",
        ),
        (
            "the seed's way",
            f"{seed_rate:.0f}",
            "",
            f"{seed_cost * 1e6:.0f}",
            f"{seeds[0][3] / seeds[0][2]:.0f}",
        ),
    ):
        table.add_row(*row)
    return table


def cost(cases: list[tuple[int, int]], folder: Path) -> Table:
    table = Table(
        title="Cost by number of records and of partitions",
        caption="goals: processor time per record flat from the first row on; 256 MiB; 10,000 records/s",
    )
    for column in ("records", "partitions", "records/s", "CPU µs/record", "objects", "peak MiB"):
        table.add_column(column, justify="right")
    for count, partitions in cases:
        with stack.broker() as broker:
            kafka.create_topics(broker.bootstrap, {"cost": partitions})
            Feed(broker.bootstrap, "cost", partitions, TICKERS, DEPTH).backlog(count)
            place = folder / f"cost{count}-{partitions}"
            took_s, cpu_s, carrying, peak = run_ours(broker.bootstrap, "cost", count, partitions, place)
        table.add_row(
            f"{count:,}",
            str(partitions),
            f"{count / took_s:.0f}",
            f"{cpu_s / count * 1e6:.0f}",
            str(carrying.objects.total()),
            f"{peak:.0f}",
        )
    return table


def minutes(count: int, folder: Path) -> Table:
    with stack.broker() as broker:
        kafka.create_topics(broker.bootstrap, {"exchange": EXCHANGE_PARTITIONS})
        feed = Feed(broker.bootstrap, "exchange", EXCHANGE_PARTITIONS, MARKETS, DEPTH)
        with consumer(broker.bootstrap, "exchange", EXCHANGE_PARTITIONS, folder / "exchange") as carrying:
            now_ms = time.time_ns() // 1_000_000
            first_ms = now_ms - now_ms % MINUTE_MS + MINUTE_MS
            ends_ms = [first_ms + number * MINUTE_MS for number in range(count)]
            seen_ms = watch(feed, carrying, ends_ms)
            peak = carrying.peak_mib()
            carrying.look()
    table = Table(
        title=f"A minute's end: {MARKETS} tickers, {EXCHANGE_RATE} records/s of {feed.size} bytes, "
        f"{EXCHANGE_PARTITIONS} partitions, records up to {INTERLEAVE_S} s after their stamp",
        caption="goals: claimed (all commits are visible before) 5 s after the cut; 1.2 objects; 256 MiB",
    )
    columns = ("minute's end", "claimed, s after the cut", "tickers", "objects per ticker-minute", "peak MiB")
    for column in columns:
        table.add_column(column, justify="right")
    for end_ms in ends_ms:
        written = [n for (_, minute_ms), n in carrying.objects.items() if minute_ms == end_ms - MINUTE_MS]
        table.add_row(
            time.strftime("%H:%M", time.gmtime(end_ms / 1000)),
            f"{(seen_ms[end_ms] - end_ms) / 1000 - LATENESS_S:.2f}",
            str(len(written)),
            f"{sum(written) / max(1, len(written)):.2f}",
            f"{peak:.0f}",
        )
    return table


def watch(feed: Feed, carrying: Carrying, ends_ms: list[int]) -> dict[int, int]:
    """Send until after the last minute's end; return when each was seen to be claimed, ms since the epoch."""
    sending = threading.Thread(
        target=feed.live, args=(EXCHANGE_RATE, ends_ms[-1] / 1000 + LATENESS_S, INTERLEAVE_S)
    )
    sending.start()
    seen_ms: dict[int, int] = {}
    while len(seen_ms) < len(ends_ms):
        claimed_ms = carrying.claimed_ms()
        now_ms = time.time_ns() // 1_000_000
        seen_ms.update({end: now_ms for end in ends_ms if end <= claimed_ms and end not in seen_ms})
        if now_ms > ends_ms[-1] + MINUTE_MS:
            raise SystemExit(f"a minute was not claimed within a minute: {seen_ms}")
        time.sleep(0.05)
    sending.join()
    return seen_ms


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=100_000, help="of the shortest runs")
    parser.add_argument("--repeats", type=int, default=3, help="flat-out runs")
    parser.add_argument("--minutes", type=int, default=2, help="of the exchange in real time")
    parser.add_argument("--full", action="store_true", help="a hundred times the records, too (an hour)")
    options = parser.parse_args()
    count = options.records
    cases = [(count, PARTITIONS), (10 * count, PARTITIONS), (10 * count, MANY_PARTITIONS)]
    if options.full:
        cases.append((100 * count, PARTITIONS))
    console = Console()
    console.print(stack.machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with running_bucket() as bucket:
            console.print(flat_out(2 * count, options.repeats, folder, bucket))
        console.print(flat_out(4 * count, options.repeats, folder, None))
        console.print(cost(cases, folder))
        if options.minutes:
            console.print(minutes(options.minutes, folder))


if __name__ == "__main__":
    main()
