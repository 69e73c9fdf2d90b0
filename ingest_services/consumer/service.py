"""The consumer process: settings, signals, metrics and one carrier per consumer group."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import structlog

from ingest_services import config, kafka
from ingest_services.config import ConsumerSection
from ingest_services.consumer import metrics
from ingest_services.consumer.carrier import Carrier
from ingest_services.consumer.sink import Sink, Stopped
from ingest_services.consumer.watch import Watch
from ingest_services.lake import layout
from ingest_services.lake.stores import open_store
from ingest_services.monitor import serve
from ingest_services.settings import IngestSettings

# What a store that fails may cost after a signal; together with draining it stays under ten seconds.
GIVE_UP_S = 5.0
# A request that hangs in the Kafka client must not keep the process; the chain is safe whenever it ends.
END_S = 9.0
PARALLEL_UPLOADS = 16
HEAR_SIGNALS_S = 0.5
# In <malloc.h>.
M_ARENA_MAX = -8

log = structlog.get_logger()


def run(sections: Sequence[ConsumerSection], settings: IngestSettings, metrics_port: int | None) -> int:
    """Carry the partitions of some sections into the lake until a signal ends it.

    SIGTERM and SIGINT: read to the end of the log (3 s at most), commit everything, return 0.

    Args:
        sections: What to carry.
        settings: The process's settings.
        metrics_port: Loopback port for `/metrics` and `/health`, or None.

    Returns:
        The process's exit status: 0, or 1 if what was read could not be committed (it stays in Kafka).

    Raises:
        UserError: Before anything is started: broker, topic, partition or lake are not as the settings say,
            or the metrics port is taken.
    """
    _keep_little_of_what_was_freed()
    store = open_store(settings.raw_url)
    require_whole_topics(sections, settings)
    layout.claim_lake(store, settings.source, settings.market_time_zone)
    stopping, gave_up, committed = threading.Event(), threading.Event(), threading.Event()
    uploads = ThreadPoolExecutor(PARALLEL_UPLOADS, "upload")
    sink = Sink(
        store,
        settings.zone,
        layout.SUFFIXES[settings.compression],
        uploads,
        lambda _: None,
        gave_up,
    )
    watch = Watch(store, [section.topic for section in sections], sink.clock)
    health = metrics.ConsumerHealth(time.monotonic(), lambda: (*_store_alarms(sink), *watch.reasons))
    metrics.begin(section.name for section in sections)
    metrics.BUDGET.set(settings.memory_budget_mb << 20)
    server = (
        None if metrics_port is None else serve(metrics.REGISTRY, health, metrics_port, settings.metrics_host)
    )
    # A daemon: a store that hangs must not keep the process.
    threading.Thread(target=watch.run, args=(stopping,), name="watch", daemon=True).start()

    def end() -> None:
        log.error("did not end in time, ending", committed=committed.is_set())
        os._exit(0 if committed.is_set() else 1)

    def wind_up() -> None:
        stopping.set()
        for after_s, act in ((GIVE_UP_S, gave_up.set), (END_S, end)):
            timer = threading.Timer(after_s, act)
            timer.daemon = True
            timer.start()

    def stop(signum: int, _frame: object) -> None:
        log.info("stopping", signal=signal.Signals(signum).name)
        health.ending = True
        wind_up()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    # One budget for the process, however its sections are grouped.
    share = (settings.memory_budget_mb << 20) // len(sections)
    groups = {section.group: [s for s in sections if s.group == section.group] for section in sections}
    try:
        with ThreadPoolExecutor(len(groups), "carrier") as carriers:
            runs = []
            for own in groups.values():
                carrier = Carrier(own, settings, sink, stopping, share * len(own))
                runs.append(carriers.submit(carrier.run))
                health.watch(carrier, runs[-1])
            for done in runs:
                # One carrier's failure ends the process: a half-alive one looks healthy and is not.
                done.add_done_callback(lambda _: wind_up())
            # Python runs a signal's handler when the main thread next does something: a signal that arrives
            # just before an unbounded wait would be heard at the end of it, that is, never.
            while not all(done.done() for done in runs):
                wait(runs, HEAR_SIGNALS_S)
            for done in runs:
                done.result()
            committed.set()
    except Stopped as error:
        log.error("not committed; it stays in Kafka", cause=str(error))
        return 1
    finally:
        uploads.shutdown(wait=True, cancel_futures=True)
        if server is not None:
            server.close()
        for number, handler in previous.items():
            signal.signal(number, handler)
    log.info("stopped")
    return 0


def _keep_little_of_what_was_freed() -> None:
    """Tell the C library, where it is glibc, to share what threads free, rather than to keep it for each.

    It would have up to eight heaps a processor, and what uploads and commits left there was 40 MB of 250.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 2)


def _store_alarms(sink: Sink) -> list[str]:
    return [f"the store fails ({what}: {error})" for what, error in sorted(dict(sink.failing).items())]


def require_whole_topics(sections: Sequence[ConsumerSection], settings: IngestSettings) -> None:
    """Check that consumer.conf gives every partition of our topics a reader.

    Raises:
        UserError: Naming the partition, or the section that reads one that is not there.
    """
    everyone = config.read_consumers(settings.consumer_conf)
    for topic in dict.fromkeys(section.topic for section in sections):
        _, numbers = kafka.topic_id(settings.kafka_bootstrap, topic)
        own = [section for section in everyone if section.topic == topic]
        config.require_consumers({topic: len(numbers)}, own, settings.consumer_conf)
