"""The Grafana dashboard queries exactly the metrics of the learner; Prometheus reads the file that Ray writes."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

from learner.reporting.operator_metrics import COUNTERS, GAUGES

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
# The names that Ray's endpoint serves.
SERVED = {f"ray_{name}": metric for name, metric in GAUGES.items()}
SERVED |= {f"ray_{name}_total": metric for name, metric in COUNTERS.items()}


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return json.loads((DEPLOY / "grafana" / "heldout.json").read_text())


@pytest.fixture(scope="module")
def panels(dashboard) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


@pytest.fixture(scope="module")
def targets(panels) -> list[dict[str, Any]]:
    return [target for panel in panels for target in panel["targets"]]


def names(query: str) -> set[str]:
    return set(re.findall(r"\bray_\w+", query))


def test_queries_use_exactly_the_served_metrics(targets):
    assert {name for target in targets for name in names(target["expr"])} == set(SERVED)


def test_variables_use_served_metrics(dashboard):
    queries = [variable["definition"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"]
    assert queries and all(names(query) and names(query) <= set(SERVED) for query in queries)


def test_rates_are_taken_of_counters_only(targets):
    growing = {name for t in targets for name in re.findall(r"(?:rate|increase)\((\w+)", t["expr"])}
    assert growing == {f"ray_{name}_total" for name in COUNTERS}


def test_labels_in_queries_and_legends_belong_to_their_metrics(targets):
    for target in targets:
        metrics = [SERVED[name] for name in names(target["expr"])]
        labels = {"run", "SessionName", *(metric.label for metric in metrics if metric.label)}
        grouped = re.findall(r"(?:by|on) \(([^)]*)\)", target["expr"])
        asked = {label.strip() for group in grouped for label in group.split(",")}
        asked |= set(re.findall(r"[{,]\s*(\w+)=~", target["expr"]))
        asked |= set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        assert asked <= labels, target["expr"]


def test_queries_select_the_chosen_datasource_session_and_run(dashboard, panels, targets):
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == ["datasource", "session", "run"]
    for asking in (*panels, *targets):
        assert asking["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for target in targets:
        selectors = re.findall(r"ray_\w+(\{[^}]*\})?", target["expr"])
        assert set(selectors) == {'{SessionName=~"$session", run=~"$run"}'}


def test_panels_are_on_the_grid_and_do_not_overlap(dashboard):
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    for a, b in itertools.combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert beside or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"], (a, b)


def test_panels_have_a_title_and_a_description(panels):
    assert all(panel["title"] and panel["description"] for panel in panels)


def test_prometheus_reads_the_node_list_that_ray_writes():
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    (discovery,) = job["file_sd_configs"]
    assert discovery["files"] == [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]
