"""A Kafka outage at 1,000 frames/s: its cost in memory and disk, how fast it is made good, and what arrives.

The broker is stopped with SIGSTOP: it keeps its connections and answers nothing, which is worse than being
gone. One minute by default; the outage that the project promises to survive is ten:

    .venv/bin/python bench/outage.py --minutes 10
"""

from __future__ import annotations

import argparse
import signal
import tempfile
import time
from pathlib import Path

from load import stack
from load.frames import DEPTH, MARKETS, Frames
from rich.table import Table

PACE = 1000
STEADY_S = 10.0
# Nobody listens there: static sections need no REST, and the frame source has none.
NO_REST = "http://127.0.0.1:9"


class Phase:
    """Memory and spool over a stretch of the run."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seconds = 0.0
        self.rss: list[float] = []
        self.spool_mib = 0.0
        self.latency = ""

    def watch(self, producer: stack.Producer, until_s: float | None, timeout_s: float) -> None:
        """Sample until a moment (monotonic clock), or until records go straight and the spool is empty."""
        began_s = time.monotonic()
        before = producer.metrics()
        while True:
            metrics = producer.metrics()
            self.rss.append(producer.memory_mib())
            self.spool_mib = max(self.spool_mib, metrics["spool_bytes"] / 2**20)
            now_s = time.monotonic()
            if now_s >= until_s if until_s is not None else not metrics["spooling"] + metrics["spool_bytes"]:
                break
            if now_s - began_s > timeout_s:
                raise SystemExit(f"{self.name}: not over after {timeout_s:.0f} s: {metrics}")
            # Asking costs the producer something, too: rarely, while nothing changes.
            time.sleep(0.2 if until_s is None else 1.0)
        self.seconds = time.monotonic() - began_s
        latency = stack.Latency(before, metrics)
        if latency.count:
            self.latency = f"{latency.below(0.5)} / {latency.below(0.99)}"


def run(minutes: float, folder: Path) -> tuple[list[Phase], dict[str, float], stack.Delivered]:
    before, during, drain, after = (Phase(name) for name in ("before", "during", "drain", "after"))
    with stack.broker() as broker, stack.source(1 << 40, PACE) as source:
        topic = broker.topic("outage")
        markets = Frames().markets
        with stack.producer(broker.bootstrap, topic, source.url, NO_REST, markets, folder) as producer:
            producer.wait("acknowledged_total", MARKETS)
            before.watch(producer, time.monotonic() + STEADY_S, 60)
            broker.process.send_signal(signal.SIGSTOP)
            try:
                during.watch(producer, time.monotonic() + minutes * 60, minutes * 60 + 60)
            finally:
                broker.process.send_signal(signal.SIGCONT)
            drain.watch(producer, None, 60 + minutes * 120)
            after.watch(producer, time.monotonic() + STEADY_S, 60)
            metrics = producer.metrics()
        delivered = stack.compare(broker.bootstrap, topic, source.sent())
    return [before, during, drain, after], metrics, delivered


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=1.0, help="that Kafka answers nothing")
    minutes = parser.parse_args().minutes
    console = stack.console()
    console.print(stack.machine())
    with tempfile.TemporaryDirectory() as name:
        phases, metrics, delivered = run(minutes, Path(name))
    table = Table(
        title=f"Kafka hangs for {minutes:g} minutes at {PACE} frames/s, {MARKETS} markets, depth {DEPTH}: "
        f"{delivered.books} frames, {delivered.verdict}; {metrics['spooled_total']:.0f} by way of the disk, "
        f"{metrics['lost_total']:.0f} lost",
        caption="goals: every frame once; memory flat, however long it lasts",
    )
    columns = ("", "s", "RSS MiB least", "RSS MiB most", "ratio", "spool MiB", "live records p50 / p99")
    for column in columns:
        table.add_column(column, justify="right")
    steady = max(phases[0].rss)
    for phase in phases:
        table.add_row(
            phase.name,
            f"{phase.seconds:.1f}",
            f"{min(phase.rss):.0f}",
            f"{max(phase.rss):.0f}",
            f"{max(phase.rss) / steady:.2f} x",
            f"{phase.spool_mib:.0f}",
            phase.latency,
        )
    console.print(table)
    waited = phases[1].seconds * PACE
    console.print(
        f"delivered from the spool at {waited / phases[2].seconds:.0f} frames/s beside {PACE} live ones: "
        f"{waited / phases[2].seconds / PACE:.1f} x the pace at which they came"
    )


if __name__ == "__main__":
    main()
