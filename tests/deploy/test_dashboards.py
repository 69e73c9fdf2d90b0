"""Every query of the dashboards and alarms, asked of the real schema or read by Prometheus itself."""

from __future__ import annotations

import json
import re
import subprocess
from datetime import timedelta
from pathlib import Path

import psycopg
import yaml

from cryptostream_dagster.window import Window
from tests.deploy import dashboards
from tests.deploy.compose import DOCKER
from tests.deploy.prometheus_server import require
from tests.lake_builder import Row, covered_minutes, frame, instant, ms
from tests.pipeline import open_pipeline
from tests.postgres_fixture import TestDatabase

START = instant("2025-02-02 16:05:00")


def test_every_question_to_the_warehouse_has_an_answer_for_who_may_only_read(
    tmp_path: Path, database: TestDatabase
) -> None:
    with open_pipeline(tmp_path, database) as pipeline:
        tms = ms(START) + 1000
        pipeline.lake.commit(
            [Row(frame("BTC", tms, [(101, 99, 1, 1)]), (tms + 50) * 1000)], covered_minutes(START, 5, "BTC")
        )
        pipeline.lake.through(START + timedelta(minutes=5))
        pipeline.build(Window.at(START))
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = 'grafana_reader'").fetchone():
            connection.execute("CREATE ROLE grafana_reader; GRANT pg_read_all_data TO grafana_reader")
        connection.execute("SET ROLE grafana_reader")
        for query in dashboards.of_postgres():
            rows = connection.execute(query.text).fetchall()  # type: ignore[arg-type]
            recent = "now()" in query.text or "Windows that wait" in query.where
            assert rows or recent, f"{query.where}: no row for a window that is there"


def test_every_series_of_the_dashboards_has_a_time_column() -> None:
    for board, panel in dashboards.panels():
        for target in panel["targets"]:
            if target.get("format") == "time_series":
                assert " AS time" in target["rawSql"], f"{board}: {panel['title']}"


def test_the_candles_have_a_picker_of_tickers_and_their_coverage() -> None:
    board = json.loads((DOCKER / "grafana" / "dashboards" / "candles.json").read_text())
    assert [variable["name"] for variable in board["templating"]["list"]] == ["ticker"]
    candles = next(panel for panel in board["panels"] if panel["type"] == "candlestick")
    assert set(candles["options"]["fields"]) == {"open", "high", "low", "close"}
    (question,) = candles["targets"]
    assert "FROM ohlc_5m_ticker" in question["rawSql"]
    for column in ("time", *candles["options"]["fields"].values()):
        assert re.search(rf" AS {column}\b", question["rawSql"]), column
    assert any("coverage_5m" in target["rawSql"] for panel in board["panels"] for target in panel["targets"])


def test_operations_show_lag_ages_reconnects_spool_commit_latency_and_window_delay() -> None:
    asked = " ".join(
        target.get("expr") or target["rawSql"]
        for board, panel in dashboards.panels()
        if board == "operations"
        for target in panel["targets"]
    )
    for name in (
        *(
            "consumer_lag_records",
            "producer_last_received_age_seconds",
            "consumer_oldest_buffered_age_seconds",
        ),
        *("producer_reconnects_total", "producer_spool_bytes", "consumer_commit_seconds_bucket"),
        "built_at - window_start",
    ):
        assert name in asked, name


def test_every_alarm_says_what_is_wrong_and_what_to_do() -> None:
    alarms = [*dashboards.rules(), *dashboards.alarms()]
    assert len(alarms) > 10
    for alarm in alarms:
        said = alarm.get("alert") or alarm["uid"]
        assert alarm["annotations"].keys() == {"summary", "action"}, said
        # The one that passes Prometheus' alarms on has theirs.
        assert said == "processes" or alarm["labels"]["severity"] in {"page", "ticket"}, said


def test_every_data_source_that_is_asked_is_there() -> None:
    provided = yaml.safe_load(
        (DOCKER / "grafana" / "provisioning" / "datasources" / "cryptostream.yaml").read_text()
    )
    known = {source["uid"] for source in provided["datasources"]}
    asked = {part["datasourceUid"] for alarm in dashboards.alarms() for part in alarm["data"]}
    asked |= {target["datasource"]["uid"] for _, panel in dashboards.panels() for target in panel["targets"]}
    assert asked - {"__expr__"} == known == {"warehouse", "prometheus"}
    for alarm in dashboards.alarms():
        question, condition = alarm["data"]
        assert (alarm["condition"], condition["model"]["expression"]) == (
            condition["refId"],
            question["refId"],
        )


def test_every_label_that_is_asked_for_or_shown_is_one_of_the_metric() -> None:
    known = dashboards.documented_labels()
    for query in dashboards.of_prometheus():
        names = dashboards.METRIC.findall(query.text)
        assert names or "up" in query.text, query.where
        # Prometheus' own.
        allowed = {"job", "instance"}.union(*(known[name] for name in names))
        assert query.labels <= allowed, f"{query.where}: {query.labels - allowed}"
        kept = re.findall(r"\bby \(([^)]*)\)", query.text)
        for names_kept in kept:
            assert query.told_labels <= {name.strip() for name in names_kept.split(",")}, query.where


def test_panels_lie_side_by_side() -> None:
    for path in (DOCKER / "grafana" / "dashboards").glob("*.json"):
        taken: set[tuple[int, int]] = set()
        for panel in json.loads(path.read_text())["panels"]:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert place["x"] + place["w"] <= 24, panel["title"]
            assert not taken & cells, panel["title"]
            taken |= cells


def test_prometheus_understands_its_configuration_and_every_expression(tmp_path: Path) -> None:
    promtool = require("promtool")
    rules = [
        {"record": f"question:{number}", "expr": query.text}
        for number, query in enumerate(dashboards.of_prometheus())
    ]
    questions = tmp_path / "questions.yml"
    questions.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    for name in ("compose.yml", "nodes.yml"):
        # Where the container has it.
        config = tmp_path / name
        rules_file = str(DOCKER / "prometheus" / "rules.yml")
        text = (DOCKER / "prometheus" / name).read_text()
        config.write_text(text.replace("/etc/prometheus/rules.yml", rules_file))
        subprocess.run([promtool, "check", "config", str(config)], check=True)
    subprocess.run([promtool, "check", "rules", str(questions)], check=True)
