"""Every alarm fires when what it is for happens, and is quiet before.

Prometheus' are played histories by promtool; Grafana's are asked of a warehouse, first as it should be.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from cryptostream_dagster.window import Window
from tests.deploy import dashboards
from tests.deploy.compose import DOCKER, ROOT, resolve
from tests.deploy.prometheus_server import require
from tests.lake_builder import Row, covered_minutes, frame, instant, ms
from tests.pipeline import open_pipeline
from tests.postgres_fixture import TestDatabase

Series = Mapping[str, str]

START = instant("2025-02-02 16:05:00")

# Series that both kinds of process have, as promtool writes them: a value a minute.
UP: Series = {
    'up{job="producer", instance="p"}': "1x60",
    'up{job="consumer", instance="c"}': "1x60",
}
BUCKET = "cryptostream_producer_publish_seconds_bucket"

# By alarm: what happens, and what looks like it and is none.
HISTORIES: dict[str, tuple[Series, Series]] = {
    "RecordsLost": (
        {'cryptostream_producer_lost_total{section="one"}': "0x20 3x40"},
        {'cryptostream_producer_lost_total{section="one"}': "0x60"},
    ),
    "OffsetsMissing": (
        {'cryptostream_consumer_offsets_missing_total{section="one"}': "0x20 7x40"},
        {'cryptostream_consumer_offsets_missing_total{section="one"}': "0x60"},
    ),
    "Spooling": (
        {'cryptostream_producer_spooling{section="one"}': "0x20 1x40"},
        {'cryptostream_producer_spooling{section="one"}': "0x20 1x3 0x20"},
    ),
    "SpoolHalfFull": (
        {
            'cryptostream_producer_spool_bytes{section="one"}': "0+50x60",
            'cryptostream_producer_spool_limit_bytes{section="one"}': "4000x60",
        },
        {
            'cryptostream_producer_spool_bytes{section="one"}': "1900x60",
            'cryptostream_producer_spool_limit_bytes{section="one"}': "4000x60",
        },
    ),
    "SpoolDamaged": (
        {'cryptostream_producer_spool_damaged_bytes_total{section="one"}': "0x20 12x40"},
        {'cryptostream_producer_spool_damaged_bytes_total{section="one"}': "0x60"},
    ),
    "TargetDown": ({**UP, 'up{job="producer", instance="p"}': "1x20 0x40"}, UP),
    # Compose's names lead nowhere when no container is there: the target is gone, and not down.
    "Nobody": ({**UP, 'up{job="consumer", instance="c"}': "1x20 stale"}, UP),
    "Restarting": (
        {'process_start_time_seconds{job="producer", instance="p"}': "100x20 200x3 300x3 400x30"},
        {'process_start_time_seconds{job="producer", instance="p"}': "100x20 200x40"},
    ),
    "FeedNotLive": (
        {'cryptostream_producer_connection_state{section="one", state="live"}': "1x20 0x40"},
        # Two producers of one section: one is enough.
        {
            'cryptostream_producer_connection_state{section="one", state="live", instance="p"}': "0x60",
            'cryptostream_producer_connection_state{section="one", state="live", instance="q"}': "1x60",
        },
    ),
    "SilentTickers": (
        {'cryptostream_producer_silent_tickers{section="one"}': "0x20 1x40"},
        {'cryptostream_producer_silent_tickers{section="one"}': "0x20 1x5 0x20"},
    ),
    "ClockSkew": (
        {'cryptostream_producer_clock_skew_seconds{section="one"}': "-0.6x60"},
        {'cryptostream_producer_clock_skew_seconds{section="one"}': "0.05x60"},
    ),
    "PartitionNobodys": (
        {'cryptostream_consumer_claim_behind_seconds{topic="o", partition="0", instance="c"}': "0+60x60"},
        {'cryptostream_consumer_claim_behind_seconds{topic="o", partition="0", instance="c"}': "60x60"},
    ),
    "StoreFails": (
        {'cryptostream_consumer_store_retries_total{section="one", what="upload"}': "0x20 0+5x40"},
        {'cryptostream_consumer_store_retries_total{section="one", what="upload"}': "0x20 9x40"},
    ),
    "Quarantine": (
        {'cryptostream_consumer_quarantined_total{section="one", reason="not JSON"}': "0x20 0+50x40"},
        {'cryptostream_consumer_quarantined_total{section="one", reason="not JSON"}': "0x20 9x40"},
    ),
    "PublishSlow": (
        {
            f'{BUCKET}{{section="one", le="1.0"}}': "0x60",
            f'{BUCKET}{{section="one", le="2.0"}}': "0+60x60",
            f'{BUCKET}{{section="one", le="+Inf"}}': "0+60x60",
        },
        {
            f'{BUCKET}{{section="one", le="1.0"}}': "0+60x60",
            f'{BUCKET}{{section="one", le="2.0"}}': "0+60x60",
            f'{BUCKET}{{section="one", le="+Inf"}}': "0+60x60",
        },
    ),
    "MemoryBeyondBound": (
        {
            'process_resident_memory_bytes{job="consumer", instance="c"}': "400000000x60",
            'cryptostream_consumer_memory_budget_bytes{job="consumer", instance="c"}': "128000000x60",
        },
        {
            'process_resident_memory_bytes{job="consumer", instance="c"}': "400000000x60",
            'cryptostream_consumer_memory_budget_bytes{job="consumer", instance="c"}': "256000000x60",
            'process_resident_memory_bytes{job="producer", instance="p"}': "200000000x60",
        },
    ),
}


# More that fires: what was lost before Prometheus first looked, by a process that had just begun.
MORE = {
    "MemoryBeyondBound": {'process_resident_memory_bytes{job="producer", instance="p"}': "400000000x60"},
    "RecordsLost": {'cryptostream_producer_lost_total{section="one"}': "_x20 3x40"},
    "OffsetsMissing": {'cryptostream_consumer_offsets_missing_total{section="one"}': "_x20 7x40"},
    "SpoolDamaged": {'cryptostream_producer_spool_damaged_bytes_total{section="one"}': "_x20 12x40"},
}


def plays(alarm: str, series: Series, fires: bool) -> dict[str, object]:
    """Return a history for promtool, and whether the alarm is expected to have fired in the hour."""
    return {
        "name": f"{alarm}: {'fires' if fires else 'is quiet'}",
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": f'count(count_over_time(ALERTS{{alertname="{alarm}",alertstate="firing"}}[1h]))',
                "eval_time": "59m",
                "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
            }
        ],
    }


def reaches_grafana() -> dict[str, object]:
    """Return a history in which an alarm of Prometheus is one of Grafana's, with its name and severity."""
    (alarm,) = (alarm for alarm in dashboards.alarms() if alarm["uid"] == "processes")
    labels = '{alarm="Spooling", severity="page", section="one"}'
    return {
        "name": "an alarm of Prometheus reaches Grafana",
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in UP.items()]
        + [{"series": 'cryptostream_producer_spooling{section="one"}', "values": "0x20 1x40"}],
        "promql_expr_test": [
            {
                "expr": alarm["data"][0]["model"]["expr"],
                "eval_time": eval_time,
                "exp_samples": samples,
            }
            for eval_time, samples in (("19m", []), ("30m", [{"labels": labels, "value": 1}]))
        ],
    }


def test_every_alarm_of_prometheus_fires_when_it_should_and_not_before(tmp_path: Path) -> None:
    assert {rule["alert"] for rule in dashboards.rules()} == HISTORIES.keys()
    promtool = require("promtool")
    played = tmp_path / "histories.yml"
    histories = [
        plays(alarm, series, fires)
        for alarm, pair in HISTORIES.items()
        for series, fires in zip(pair, (True, False), strict=True)
    ] + [plays(alarm, series, fires=True) for alarm, series in MORE.items()]
    histories.append(reaches_grafana())
    rules = str(DOCKER / "prometheus" / "rules.yml")
    played.write_text(
        yaml.safe_dump({"rule_files": [rules], "evaluation_interval": "1m", "tests": histories})
    )
    done = subprocess.run(
        [promtool, "test", "rules", str(played)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


# By alarm of Grafana's: what makes it fire, at some minutes after the window's end.
WRONGS: dict[str, list[tuple[str, int]]] = {
    "window-late": [("SELECT", 20), ("DELETE FROM built", 2)],
    "candles-slow": [("UPDATE built SET built_at = window_start + interval '325 seconds'", 2)],
    "coverage-low": [
        ("UPDATE coverage_5m SET coverage_ratio = 0.98", 2),
        # Nobody is subscribed to anything: no row is as bad as a bad one.
        ("DELETE FROM coverage_5m", 2),
    ],
    "windows-fail": [
        (
            "INSERT INTO window_failure SELECT window_start, 'a', 'run', 'why' FROM lake_window",
            2,
        )
    ],
    "sums-differ": [
        ("UPDATE lake_commit SET books = books + 1", 2),
        ("UPDATE parquet_file SET rows = rows - 1", 2),
        ("UPDATE ohlc_5m_ticker SET book_count = book_count + 1", 2),
        ("DELETE FROM ohlc_5m_ticker", 2),
    ],
}


def fires(connection: psycopg.Connection, alarm: Mapping[str, Any], now: datetime) -> bool:
    """Return what Grafana would say of an alarm at a moment."""
    question, condition = alarm["data"]
    text = question["model"]["rawSql"].replace("now()", f"timestamptz '{now.isoformat()}'")
    (row,) = connection.execute(text).fetchall()
    (value,) = row
    if value is None:
        return bool(alarm["noDataState"] == "Alerting")
    (told,) = condition["model"]["conditions"]
    (limit,) = told["evaluator"]["params"]
    return bool({"gt": value > limit, "lt": value < limit}[told["evaluator"]["type"]])


def test_every_alarm_of_grafana_fires_when_it_should_and_not_before(
    tmp_path: Path, database: TestDatabase
) -> None:
    alarms = {alarm["uid"]: alarm for alarm in dashboards.alarms() if alarm["uid"] != "processes"}
    assert alarms.keys() == WRONGS.keys()
    end = START + timedelta(minutes=5)
    with open_pipeline(tmp_path, database) as pipeline:
        tms = ms(START) + 1000
        pipeline.lake.commit(
            [Row(frame("BTC", tms, [(101, 99, 1, 1)]), (tms + 50) * 1000)], covered_minutes(START, 5, "BTC")
        )
        pipeline.lake.through(end)
        pipeline.build(Window.at(START))
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute("UPDATE built SET built_at = window_start + interval '308 seconds'")
        for uid, alarm in alarms.items():
            assert not fires(connection, alarm, end + timedelta(minutes=2)), uid
            for wrong, minutes in WRONGS[uid]:
                with connection.transaction(force_rollback=True):
                    connection.execute(wrong)  # type: ignore[arg-type]
                    assert fires(connection, alarm, end + timedelta(minutes=minutes)), f"{uid}: {wrong}"


@pytest.mark.parametrize("url", ["", "https://hooks.example.com/services/T0/B0/x"])
def test_alarms_go_to_the_webhook_if_there_is_one(tmp_path: Path, url: str) -> None:
    env = tmp_path / "env"
    env.write_text(f"{(DOCKER / 'env.example').read_text()}\nALERT_WEBHOOK_URL={url}\n")
    grafana = resolve("compose.yaml", env)["services"]["grafana"]
    (mount,) = (
        v for v in grafana["volumes"] if v["target"] == "/etc/grafana/provisioning/alerting/contact.yaml"
    )
    told = yaml.safe_load(Path(mount["source"]).read_text())
    # Where nothing is mounted, nothing may be mounted onto.
    assert (DOCKER / "grafana" / "provisioning" / "alerting" / "contact.yaml").exists()
    if url:
        assert grafana["environment"]["ALERT_WEBHOOK_URL"] == url
        (point,) = told["contactPoints"]
        assert point["receivers"][0]["settings"]["url"] == "${ALERT_WEBHOOK_URL}"
        assert [policy["receiver"] for policy in told["policies"]] == [point["name"]]
    else:
        assert told == {"apiVersion": 1}


def test_the_page_of_metrics_says_which_alarm_watches_which_promise() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    table = page.split("## Alarms\n")[1].split("\n## ")[0]
    named = {
        name for row in re.findall(r"^\|[^|]*\|(.*)\|$", table, re.M) for name in re.findall(r"`(.+?)`", row)
    }
    alarms = {rule["alert"] for rule in dashboards.rules()} | {alarm["uid"] for alarm in dashboards.alarms()}
    assert named == alarms - {"processes"}
