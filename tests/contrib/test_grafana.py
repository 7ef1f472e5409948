"""The Grafana dashboard uses only what a real scrape has, and has Grafana's format."""

import json
import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from django_dblock.contrib import prometheus
from tests.contrib import events

DASHBOARD = Path(__file__).resolve().parents[2] / "docs" / "grafana" / "django-dblock.json"
COLUMNS = 24

_METRIC = re.compile(r"\bdblock_\w+")
_SELECTED = re.compile(r"(?P<metric>\bdblock_\w+)(?:\{(?P<labels>[^}]*)\})?")
_BY = re.compile(r"by \((?P<labels>[^)]*)\)")
_LEGEND = re.compile(r"\{\{(\w+)\}\}")


@pytest.fixture(scope="module")
def dashboard():
    return json.loads(DASHBOARD.read_text())


def charts(dashboard):
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions(dashboard):
    return [target["expr"] for panel in charts(dashboard) for target in panel["targets"]]


@pytest.fixture
def scrape(rival, observer):
    """Each sample's name, and the labels it comes with, when everything has happened once."""
    registry = CollectorRegistry()
    prometheus.instrument(registry=registry)
    registry.register(prometheus.StateCollector())
    try:
        events.everything(rival, observer)
        text = generate_latest(registry).decode()
    finally:
        prometheus.uninstrument()
    return {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


@pytest.mark.django_db(transaction=True)
def test_dashboard_uses_only_scraped_metrics_and_labels(dashboard, scrape):
    for panel in charts(dashboard):
        for target in panel["targets"]:
            shown = set(_LEGEND.findall(target["legendFormat"]))
            grouped = {
                label.strip()
                for match in _BY.finditer(target["expr"])
                for label in match["labels"].split(",")
            }
            assert shown <= grouped, panel["title"]
            for match in _SELECTED.finditer(target["expr"]):
                labels = scrape[match["metric"]]
                selected = set(re.findall(r"(\w+)=~?\"", match["labels"] or ""))
                assert selected | grouped <= labels, (panel["title"], labels)
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            [metric] = _METRIC.findall(variable["definition"])
            assert variable["name"] in scrape[metric]
            assert variable["query"]["query"] == variable["definition"]


@pytest.mark.django_db(transaction=True)
def test_every_metric_is_on_the_dashboard(dashboard, scrape):
    shown = {
        re.sub(r"_(bucket|count|sum)$", "", name)
        for expression in expressions(dashboard)
        for name in _METRIC.findall(expression)
    }
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in scrape} == shown


def test_dashboard_has_the_fields_that_grafana_loads(dashboard):
    assert dashboard["id"] is None, "an import makes the number"
    assert dashboard["schemaVersion"] >= 36, "data sources as objects"
    assert re.fullmatch(r"[\w-]{1,40}", dashboard["uid"])
    assert dashboard["title"]
    assert {"from", "to"} == dashboard["time"].keys()
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(numbers)) == len(numbers)
    assert all(type(number) is int and number > 0 for number in numbers)
    used = {panel["type"] for panel in charts(dashboard)}
    required = {each["id"] for each in dashboard["__requires"] if each["type"] == "panel"}
    assert used == required


def test_data_source_is_a_variable(dashboard):
    """So it loads into anybody's Grafana."""
    names = {each["name"]: each["type"] for each in dashboard["templating"]["list"]}
    assert names == {"datasource": "datasource", "using": "query", "key": "query"}
    ours = {"type": "prometheus", "uid": "${datasource}"}
    for panel in charts(dashboard):
        assert panel["datasource"] == ours
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
        assert all(target["datasource"] == ours for target in panel["targets"])


def test_every_used_variable_is_defined(dashboard):
    known = {each["name"] for each in dashboard["templating"]["list"]} | {"__rate_interval"}
    for expression in expressions(dashboard):
        assert set(re.findall(r"\$(\w+)", expression)) <= known


def test_panels_do_not_overlap(dashboard):
    taken = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= COLUMNS
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        taken |= cells


def test_brackets_in_queries_are_balanced(dashboard):
    for expression in expressions(dashboard):
        for opened, closed in ("()", "{}", "[]"):
            assert expression.count(opened) == expression.count(closed), expression
