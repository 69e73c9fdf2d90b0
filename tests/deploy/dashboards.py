"""What Grafana and Prometheus are told to ask: every query of the dashboards and of the alarms."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from tests.deploy.compose import DOCKER, ROOT

# What the processes tell by themselves; everything else is Prometheus' own (`up`) or a function.
METRIC = re.compile(r"\b(?:cryptostream|process)_[a-z_]+")


@dataclass(frozen=True)
class Query:
    """A question, who asks it, and the text that names labels of the answer."""

    where: str
    text: str
    legend: str = ""

    @property
    def told_labels(self) -> set[str]:
        """Labels that the legend or the annotations show."""
        return set(re.findall(r"\{\{\s*(?:\$labels\.)?([a-z_]+)\s*\}\}", self.legend))

    @property
    def labels(self) -> set[str]:
        """All labels that the question and its legend name."""
        kept = [name for names in re.findall(r"\bby \(([^)]*)\)", self.text) for name in names.split(",")]
        chosen = re.findall(r"[{,]\s*([a-z_]+)\s*(?:=~|!~|!=|=)", self.text)
        return {name.strip() for name in kept} | set(chosen) | self.told_labels


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted((DOCKER / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            yield path.stem, panel


def rules() -> Iterator[dict[str, Any]]:
    for group in yaml.safe_load((DOCKER / "prometheus" / "rules.yml").read_text())["groups"]:
        yield from group["rules"]


def alarms() -> Iterator[dict[str, Any]]:
    for path in sorted((DOCKER / "grafana" / "provisioning" / "alerting").glob("*.yaml")):
        for group in yaml.safe_load(path.read_text()).get("groups", ()):
            yield from group["rules"]


def of_prometheus() -> list[Query]:
    """Return every PromQL expression."""
    found = [
        Query(f"{board}: {panel['title']}", target["expr"], target.get("legendFormat", ""))
        for board, panel in panels()
        for target in panel["targets"]
        if "expr" in target
    ]
    return found + [
        Query(f"rules.yml: {rule['alert']}", rule["expr"], rule["annotations"]["summary"]) for rule in rules()
    ]


def documented_labels() -> dict[str, set[str]]:
    """Return the labels of each metric as docs/metrics.md has them, which a test compares with the code."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    found = {}
    for title, prefix, always in (
        ("What a producer tells", "cryptostream_producer_", {"section"}),
        ("What a consumer tells", "cryptostream_consumer_", set()),
        ("What both tell", "", set()),
    ):
        part = page.split(f"## {title}\n")[1].split("\n## ")[0]
        for name, kind, labels in re.findall(r"^\| `([a-z_]+)` \| (\w+) \| ([^|]*)\|", part, re.MULTILINE):
            own = {label.strip() for label in labels.split(",") if label.strip()} | always
            found[prefix + name] = own
            if kind == "histogram":
                found[f"{prefix}{name}_bucket"] = own | {"le"}
    return found


def of_postgres() -> list[Query]:
    """Return every SQL query, as Grafana sends it: its macros and variables replaced."""
    found = [
        Query(f"{board}: {panel['title']}", target["rawSql"])
        for board, panel in panels()
        for target in panel["targets"]
        if "rawSql" in target
    ]
    found += [
        Query(f"variable {variable['name']}", variable["query"])
        for path in (DOCKER / "grafana" / "dashboards").glob("*.json")
        for variable in json.loads(path.read_text())["templating"]["list"]
    ]
    found += [
        Query(f"alarm {alarm['uid']}", part["model"]["rawSql"])
        for alarm in alarms()
        for part in alarm["data"]
        if "rawSql" in part["model"]
    ]
    return [Query(query.where, _expand(query.text)) for query in found]


def metric_names(exposition: str) -> set[str]:
    """Return the names that a process exports, with those that a histogram or a counter has."""
    names = set(re.findall(r"^# TYPE (\S+) ", exposition, re.MULTILINE))
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)", exposition, re.MULTILINE))
    return names | {f"{name}_bucket" for name, kind in kinds.items() if kind == "histogram"}


def _expand(query: str) -> str:
    query = re.sub(r"\$__timeFilter\((\w+)\)", r"\1 BETWEEN '2025-01-01Z' AND '2035-01-01Z'", query)
    query = query.replace("$ticker", "BTC")
    assert "$" not in query, query
    return query
