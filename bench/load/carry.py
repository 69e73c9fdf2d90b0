"""What a benchmark of the consumer needs: records in a topic, the consumer's process, what its lake holds."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ingest_services.lake import chain as chains
from ingest_services.lake import layout
from ingest_services.lake.store import ObjectStore
from ingest_services.lake.stores import open_store
from ingest_services.producer.lane import connect_producer
from ingest_services.record import BOOK, Envelope, headers_of
from load.frames import Frames
from load.stack import cpu_s, ended

LOOK_S = 0.02


class Feed:
    """Sends frames the way our producers do: their client, their headers, a market in one partition."""

    def __init__(self, bootstrap: str, topic: str, partitions: int, markets: int, depth: int) -> None:
        self._frames = Frames(markets, depth)
        self._topic = topic
        self._partitions = partitions
        self._producer = connect_producer(bootstrap)
        while len(self._producer.partitions_for(topic) or ()) < partitions:
            time.sleep(0.05)
        self.size = len(self._frames.frame(0, 10**12))

    def send(self, serial: int, tms: int, received_us: int) -> None:
        market = serial % len(self._frames.markets)
        envelope = Envelope(BOOK, received_us, f"bench-{market % 2}", tms, "REALTIME")
        self._producer.send(
            self._topic,
            self._frames.frame(serial, tms),
            self._frames.markets[market].removeprefix("KRW-").encode(),
            headers_of(envelope),
            market % self._partitions,
            received_us // 1000,
        )

    def backlog(self, count: int) -> None:
        """Send what four minutes brought, the last of which ended a minute ago at the least."""
        now_ms = time.time_ns() // 1_000_000
        for serial in range(count):
            tms = now_ms - 300_000 + serial * 240_000 // count
            self.send(serial, tms, tms * 1000 + 50_000)
        self.close()

    def live(self, rate: int, until_s: float, late_s: float, seed: int = 1) -> int:
        """Send in real time, each frame up to `late_s` after its stamp; return how many."""
        chance = random.Random(seed)
        began_s, serial = time.time(), 0
        while (now_s := time.time()) < until_s:
            while serial < (now_s - began_s) * rate:
                self.send(serial, int((now_s - late_s * chance.random()) * 1000), int(now_s * 1e6))
                serial += 1
            time.sleep(0.005)
        self.close()
        return serial

    def close(self) -> None:
        self._producer.flush()
        self._producer.close()


class Carrying:
    """A consumer process at work, and its lake as a reader sees it."""

    def __init__(self, process: subprocess.Popen[bytes], store: ObjectStore, partitions: int) -> None:
        self.process = process
        self.store = store
        self.tails = dict.fromkeys(range(partitions), 0)
        self.objects: Counter[tuple[str, int]] = Counter()
        self._began = (cpu_s(process.pid), time.perf_counter())

    def look(self) -> int:
        """Follow the chains; return how many offsets are committed."""
        for number, tail in self.tails.items():
            for commit in chains.commits_from(self.store, 1, number, tail):
                self.tails[number] = commit.next
                self.objects.update((file.ticker, file.minute_ms) for file in commit.files)
        if self.process.poll() is not None:
            raise SystemExit(f"the consumer ended with status {self.process.returncode}")
        return sum(self.tails.values())

    def wait(self, count: int) -> tuple[float, float]:
        """Wait until so many offsets are committed; return seconds and processor seconds since the start."""
        while self.look() < count:
            time.sleep(LOOK_S)
        return time.perf_counter() - self._began[1], cpu_s(self.process.pid) - self._began[0]

    def claimed_ms(self) -> int:
        """Return the minute's end up to which every partition is claimed, ms since the epoch."""
        claims = [chains.read_progress(self.store, 1, number) for number in self.tails]
        return min(claim.minutes_through_ms if claim else 0 for claim in claims)

    def peak_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


@contextmanager
def consumer(
    bootstrap: str, topic: str, partitions: int, folder: Path, raw_url: str | None = None
) -> Iterator[Carrying]:
    """Run `cryptostream consume`, the way it is deployed, from the moment at which it knows its chain."""
    folder.mkdir(parents=True)
    conf, url = folder / "consumer.conf", raw_url or (folder / "raw").as_uri()
    conf.write_text(
        "".join(
            f"[gcs_consumer{n}]\ntopic_name={topic}\npartition_number={n}\ngroup_name=bench\n"
            for n in range(partitions)
        )
    )
    env = {
        **os.environ,
        "KAFKA_BOOTSTRAP": bootstrap,
        "RAW_URL": url,
        "CONSUMER_CONF": str(conf),
        "SOURCE": "simulator",
    }
    command = [sys.executable, "-m", "ingest_services", "consume", "--all"]
    process = subprocess.Popen(command, env=env, cwd=folder, stderr=subprocess.DEVNULL)
    store = open_store(url)
    with ended(process):
        while next(store.list(layout.CHAINS), None) is None:
            if process.poll() is not None:
                raise SystemExit(f"the consumer ended with status {process.returncode}")
            time.sleep(0.01)
        yield Carrying(process, store, partitions)
