"""Alert rules and dashboard: every expression parses, every name and label exists in code, every metric is used somewhere."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml

from jobs.run.metrics.table import METRICS, RAY_PREFIX
from pipeline.outcome import Outcome

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "infra" / "monitoring"
RULES = [rule for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
OPERATIONS = (ROOT / "infra" / "docs" / "operations.md").read_text()
SERIES = {metric.name: metric for metric in METRICS.values() if metric.kind != "histogram"} | {
    f"{metric.name}_{part}": metric
    for metric in METRICS.values()
    if metric.kind == "histogram"
    for part in ("bucket", "sum", "count")
}
ADDED = {"instance", "le"}  # by Prometheus itself


def expressions() -> Iterator[tuple[str, str]]:
    yield from ((rule["alert"], rule["expr"]) for rule in RULES)
    yield from ((panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"])


EXPRESSIONS = list(expressions())


def parts(node: Any) -> Iterator[Any]:
    """Every node of a parsed expression."""
    yield node
    for name in ("lhs", "rhs", "expr", "vector_selector", "param"):
        below = getattr(node, name, None)
        if below is not None and type(below).__module__ == type(node).__module__:
            yield from parts(below)
    for below in getattr(node, "args", None) or ():
        yield from parts(below)


def selectors(expression: str) -> list[Any]:
    found = [node for node in parts(promql.parse(expression)) if isinstance(node, promql.VectorSelector)]
    assert {one.name for one in found} == set(re.findall(r"clearance_\w+", expression)), "the walk misses some"
    return found


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_every_series_and_label_exists_in_code(where: str, expression: str) -> None:
    for one in selectors(expression):
        assert one.name in SERIES
        labels = {matcher.name for matcher in one.matchers.matchers}
        assert labels <= set(SERIES[one.name].labels) | ADDED
    names = {label for one in selectors(expression) for label in SERIES[one.name].labels} | ADDED
    grouped = {
        label.strip() for inside in re.findall(r"(?:by|on|group_left) ?\(([^)]*)\)", expression) for label in inside.split(",")
    }
    assert grouped <= names


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_outcomes_that_are_asked_for_exist(where: str, expression: str) -> None:
    for text in re.findall(r'outcome=~"([^"]+)"', expression):
        for one in text.split("|"):
            assert any(re.fullmatch(one, outcome) for outcome in Outcome), one


def test_every_metric_is_shown_or_alerted_on() -> None:
    used = {SERIES[one.name].name for _, expression in EXPRESSIONS for one in selectors(expression)}
    assert set(METRICS) - used == set()


def test_every_alert_is_explained_where_it_points_to() -> None:
    for rule in RULES:
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert page == "infra/docs/operations.md"
        headings = {
            re.sub(r"[^a-z -]", "", line.lower()).strip().replace(" ", "-")
            for line in re.findall(r"^#+ (.*)$", OPERATIONS, re.M)
        }
        assert anchor in headings, rule["alert"]
        assert f"`{rule['alert']}`" in OPERATIONS, rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning") and rule["annotations"]["summary"]


def test_alerts_that_the_dashboard_names_exist() -> None:
    named = re.findall(r"Alert: (\w+)", json.dumps(DASHBOARD))
    assert named and set(named) <= {rule["alert"] for rule in RULES}


def test_every_panel_says_what_it_shows_and_none_lies_on_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        assert panel["description"].endswith("."), panel["title"]
        place = panel["gridPos"]
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells


def test_a_typo_is_found() -> None:
    with pytest.raises(ValueError, match="unclosed left parenthesis"):
        promql.parse("sum(rate(clearance_requests_total[5m]")
    with pytest.raises(AssertionError):
        test_every_series_and_label_exists_in_code("", "clearance_requests")
    with pytest.raises(AssertionError):
        test_every_series_and_label_exists_in_code("", 'clearance_requests_total{guard="copies"}')


def test_rays_prefix_is_taken_away_when_it_is_scraped() -> None:
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    job = next(job for job in config["scrape_configs"] if job["job_name"] == "clearance-ray")
    rule = next(rule for rule in job["metric_relabel_configs"] if rule.get("target_label") == "__name__")
    for name in METRICS:
        found = re.fullmatch(rule["regex"], RAY_PREFIX + name)
        assert found and found[1] == name
    assert config["rule_files"] == ["alerts.yaml"]


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_promtool_fires_the_alerts() -> None:
    done = subprocess.run(["promtool", "test", "rules", "alerts_test.yaml"], cwd=MONITORING, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
