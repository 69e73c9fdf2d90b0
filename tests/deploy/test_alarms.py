"""Every alarm of Prometheus fires when what it is for happens, and is quiet before: promtool plays both."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import yaml

from tests.deploy import dashboards
from tests.deploy.compose import DOCKER
from tests.deploy.prometheus_server import require

Series = Mapping[str, str]

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
        {'process_resident_memory_bytes{job="consumer", instance="c"}': "5e8x60"},
        {'process_resident_memory_bytes{job="consumer", instance="c"}': "2e8x60"},
    ),
}


# What was lost before Prometheus first looked: while it was down, or by a process that had just begun.
BORN = {
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


def test_every_alarm_fires_when_it_should_and_not_before(tmp_path: Path) -> None:
    assert {rule["alert"] for rule in dashboards.rules()} == HISTORIES.keys()
    promtool = require("promtool")
    played = tmp_path / "histories.yml"
    histories = [
        plays(alarm, series, fires)
        for alarm, pair in HISTORIES.items()
        for series, fires in zip(pair, (True, False), strict=True)
    ] + [plays(alarm, series, fires=True) for alarm, series in BORN.items()]
    rules = str(DOCKER / "prometheus" / "rules.yml")
    played.write_text(
        yaml.safe_dump({"rule_files": [rules], "evaluation_interval": "1m", "tests": histories})
    )
    done = subprocess.run(
        [promtool, "test", "rules", str(played)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
