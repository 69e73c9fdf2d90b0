"""Every number of a section is told, and the table for people says what is."""

from __future__ import annotations

import dataclasses
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from ingest_services import monitor
from ingest_services.consumer import metrics as consumer_metrics
from ingest_services.producer.metrics import (
    FAMILIES,
    PREFIX,
    MarketList,
    SectionStats,
    SmallestDelay,
    StatsCollector,
)
from ingest_services.producer.supervision import State
from ingest_services.upbit.rest import Rest

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()


def full_stats() -> SectionStats:
    """Numbers of a section to which everything happened."""
    stats = SectionStats("upbit_producer1")
    for number, field in enumerate(dataclasses.fields(SectionStats), start=7):
        value: Any = {
            "int": number,
            "float": number + 0.5,
            "bool": True,
            "str": "something",
            "tuple[str, ...]": ("XXX",),
            "Counter[str]": Counter(something=number),
            "dict[str, int]": {"BTC": number * 1_000_000},
            "State": State.LIVE,
            "MarketList": MarketList.FOLLOWED,
        }.get(str(field.type))
        if field.name not in ("section", "latency_sum_s") and value is not None:
            setattr(stats, field.name, value)
    stats.observe_delay(0.03)
    stats.observe_latency(0.03)
    return stats


def served(*stats: SectionStats) -> str:
    registry = CollectorRegistry()
    registry.register(StatsCollector(stats, Rest("http://127.0.0.1:1")))
    return generate_latest(registry).decode()


def test_every_field_is_told() -> None:
    told = {field for family in FAMILIES for field in family.fields}
    fields = {field.name for field in dataclasses.fields(SectionStats)}
    assert fields - told == {"section"}
    assert told <= fields
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


@pytest.mark.parametrize(
    "name", [f.name for f in dataclasses.fields(SectionStats) if f.name not in ("section", "smallest_delay")]
)
def test_a_field_that_changes_changes_what_is_served(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1e9)
    monkeypatch.setattr(time, "monotonic", lambda: 1e6)
    plain, changed = SectionStats("s"), SectionStats("s")
    setattr(changed, name, getattr(full_stats(), name))
    assert served(plain) != served(changed)


def test_names_labels_and_values_of_two_sections() -> None:
    one, other = SectionStats("a"), SectionStats("b")
    one.frames = 7
    one.reconnects["stalled"] = 2
    one.last_frame_us["BTC"] = time.time_ns() // 1000 - 90_000_000
    other.silent = ("XXX", "YYY")
    other.verdicts["quiet"] = 3
    other.holes_s = 1.5
    other.observe_delay(-0.5)
    other.observe_delay(0.015)
    text = served(one, other)
    for line in (
        'frames_total{section="a"} 7.0',
        'frames_total{section="b"} 0.0',
        'reconnects_total{cause="stalled",section="a"} 2.0',
        'silent_tickers{section="b"} 2.0',
        'silent_ticker{section="b",ticker="YYY"} 1.0',
        'verdicts_total{section="b",verdict="quiet"} 3.0',
        'holes_seconds_total{section="b"} 1.5',
        'exchange_delay_seconds_bucket{le="-0.1",section="b"} 1.0',
        'exchange_delay_seconds_bucket{le="0.02",section="b"} 2.0',
        'clock_skew_seconds{section="b"} -0.5',
        'connection_state{section="a",state="connecting"} 1.0',
        'connection_state{section="a",state="live"} 0.0',
        'market_list{section="a",source="static"} 1.0',
    ):
        assert f"\n{PREFIX}{line}\n" in text
    (age,) = re.findall(rf'{PREFIX}last_frame_age_seconds{{section="a",ticker="BTC"}} (\S+)', text)
    assert float(age) >= 90
    assert 'clock_skew_seconds{section="a"}' not in text


def test_a_delisted_ticker_is_told_no_more() -> None:
    stats = SectionStats("s")
    stats.last_frame_us = {"BTC": 1, "OLD": 1}
    stats.forget_tickers(["BTC", "NEW"])
    assert stats.last_frame_us == {"BTC": 1}


def test_metrics_are_read_while_they_are_written() -> None:
    stats = SectionStats("s")
    stop = threading.Event()
    failures: list[BaseException] = []

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            stats.last_frame_us[f"T{number % 5000}"] = number
            stats.reconnects[f"cause{number % 500}"] += 1
            stats.verdicts[f"verdict{number % 500}"] += 1
            if number % 5000 == 0:
                stats.forget_tickers(["T1"])

    def scrape() -> None:
        try:
            for _ in range(8):
                served(stats)
        except BaseException as error:  # noqa: BLE001 (it is the test's answer)
            failures.append(error)

    threads = [threading.Thread(target=write), *(threading.Thread(target=scrape) for _ in range(2))]
    for thread in threads:
        thread.start()
    for thread in threads[1:]:
        thread.join()
    stop.set()
    threads[0].join()
    assert not failures


# ---- the clocks


def test_the_smallest_delay_is_that_of_this_minute_and_the_one_before() -> None:
    smallest = SmallestDelay()
    assert smallest.read_s(0) is None
    smallest.observe(0.5, 600)
    smallest.observe(0.2, 610)
    smallest.observe(0.9, 659)
    assert smallest.read_s(659) == 0.2
    assert smallest.read_s(719) == 0.2
    assert smallest.read_s(720) is None
    smallest.observe(0.7, 661)
    assert smallest.read_s(661) == 0.2
    smallest.observe(0.8, 725)
    assert smallest.read_s(725) == 0.7
    smallest.observe(0.9, 1000)
    assert smallest.read_s(1000) == 0.9


def test_one_absurd_stamp_is_not_the_clock_and_all_of_them_are() -> None:
    smallest = SmallestDelay()
    smallest.observe(-86_400, 600)
    smallest.observe(0.1, 601)
    assert smallest.read_s(602) == 0.1
    wrong = SmallestDelay()
    for seconds in (-30.0, -29.8, -30.5):
        wrong.observe(seconds, 600)
    assert wrong.read_s(600) == -29.8


# ---- the page


def rows(title: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Type and labels by name, as a section of the page says."""
    part = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    found = re.findall(r"^\| `([a-z_]+)` \| (\w+) \| ([a-z, ]*?) ?\|", part, re.MULTILINE)
    return {name: (kind, tuple(sorted(filter(None, labels.split(", "))))) for name, kind, labels in found}


def told(text: str, without: Iterable[str] = ()) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Type and labels by name, as /metrics serves them."""
    found = {}
    for family in text_string_to_metric_families(text):
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {label for sample in family.samples for label in sample.labels}
        found[name] = (family.type, tuple(sorted(labels - {"le", *without})))
    return found


def test_the_page_says_what_a_producer_serves() -> None:
    expected = {PREFIX + name: what for name, what in rows("What a producer tells").items()}
    assert told(served(full_stats()), without=["section"]) == expected


def test_the_page_says_what_a_consumer_serves() -> None:
    consumer_metrics.COMMITTED.labels("s", "book")
    for counter in (
        consumer_metrics.COMMITS,
        consumer_metrics.FENCED,
        consumer_metrics.MISSING,
        consumer_metrics.LATE,
    ):
        counter.labels("s")
    consumer_metrics.RETRIES.labels("chain", "ENOSPC")
    consumer_metrics.QUARANTINED.labels("s", "not JSON")
    for gauge in (
        consumer_metrics.LAG,
        consumer_metrics.BUFFERED,
        consumer_metrics.OLDEST,
        consumer_metrics.THROUGH,
        consumer_metrics.BEHIND,
    ):
        gauge.labels("t", 0)
    ours = {
        name: what
        for name, what in told(generate_latest(consumer_metrics.REGISTRY).decode()).items()
        if name.startswith("cryptostream_consumer_") and not name.endswith("_created")
    }
    assert ours == {
        f"cryptostream_consumer_{name}": what for name, what in rows("What a consumer tells").items()
    }


@pytest.mark.skipif(sys.platform != "linux", reason="prometheus_client reads /proc")
def test_the_page_says_what_every_process_serves() -> None:
    assert told(generate_latest(monitor.make_registry()).decode()) == rows("What both tell")
