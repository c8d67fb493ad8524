"""The Grafana dashboards are Grafana's model, draw only what exists, and arrive where its sidecar looks."""

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import scenarios
import yaml

Render = Callable[..., list[dict[str, Any]]]
DASHBOARDS = sorted((scenarios.CHART / "dashboards").glob("*.json"))
NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*(?=\{)")
"""A metric, in expressions that give matchers to every one."""


def load(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def queries(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def rules_in(items: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for item in items:
        if item["kind"] == "PrometheusRule":
            yield from itertools.chain.from_iterable(group["rules"] for group in item["spec"]["groups"])


def gauges_of_our_model() -> set[str]:
    """Of model-repo/'s Python model, which imports nothing that could be imported here."""
    text = (scenarios.ROOT / "model-repo" / "tensorrt_llm" / "1" / "gauges.py").read_text(encoding="utf-8")
    return set(re.findall(r'^ +"(engineroom_\w+)": \(', text, re.MULTILINE))


def metrics_of_our_gateway() -> set[str]:
    """Every series that the gateway's own registry writes."""
    metrics = pytest.importorskip("engineroom.gateway.metrics", reason="the gateway is not there yet")
    return {sample.name for family in metrics.Metrics().registry.collect() for sample in family.samples} | {
        # These have no sample before their first label.
        "engineroom_gateway_requests_total"
    }


def everything_exported() -> set[str]:
    others = yaml.safe_load((Path(__file__).parent / "exported_metrics.yaml").read_text(encoding="utf-8"))
    assert len(gauges_of_our_model()) == 5
    return set(itertools.chain.from_iterable(others.values())) | gauges_of_our_model() | metrics_of_our_gateway()


def test_the_dashboards_are_what_their_generator_would_write() -> None:
    command = [sys.executable, str(scenarios.ROOT / "ci" / "generate-dashboards"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr
    assert [path.stem for path in DASHBOARDS] == ["autoscaling", "gpu", "overview"]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_grafanas_own_model_reads_a_dashboard_and_writes_the_same(path: Path) -> None:
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    written = load(path)

    assert json.loads(JSONEncoder().encode(Dashboard.from_json(written))) == written


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_panel_says_what_it_shows_and_has_its_own_number_and_place(path: Path) -> None:
    panels = load(path)["panels"]
    pictures = [panel for panel in panels if panel["type"] != "row"]

    assert pictures
    assert all(panel["title"] and panel["description"].endswith(".") for panel in pictures)
    assert all(panel["datasource"]["uid"] == "$datasource" for panel in pictures)
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = set(
            itertools.product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"]))
        )
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_query_names_metrics_that_exist(path: Path, shipped: dict[str, list[dict[str, Any]]]) -> None:
    recorded = {rule["record"] for items in shipped.values() for rule in rules_in(items) if "record" in rule}
    assert "engineroom:queue_compute_ratio:sum" in recorded
    known = recorded | everything_exported()

    for query in queries(load(path)):
        assert set(NAME.findall(query)), query
        assert set(NAME.findall(query)) <= known, query


def test_every_rule_and_alert_names_metrics_that_exist(shipped: dict[str, list[dict[str, Any]]]) -> None:
    rules = [rule for items in shipped.values() for rule in rules_in(items)]
    known = {rule["record"] for rule in rules if "record" in rule} | everything_exported()
    assert len(rules) > 50

    for rule in rules:
        assert set(NAME.findall(rule["expr"])) <= known, rule["expr"]


@pytest.mark.local
def test_prometheus_understands_every_query(tmp_path: Path) -> None:
    promtool = scenarios.program("promtool")
    if promtool is None:
        pytest.skip("no promtool on this machine: run ci/install-promtool")
    expressions = [query for path in DASHBOARDS for query in queries(load(path))]
    assert len(expressions) > 40
    rules = [
        {"record": f"query:{number}", "expr": query.replace("$__rate_interval", "1m")}
        for number, query in enumerate(expressions)
    ]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}), encoding="utf-8")

    done = subprocess.run(
        [str(promtool), "check", "rules", str(file)], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_each_dashboard_is_a_configmap_that_grafanas_sidecar_picks(render: Render) -> None:
    found = {
        item["metadata"]["name"]: item
        for item in render("signals-values", monitoring={"dashboards": {"labels": {"grafana": "yes"}}})
        if item["kind"] == "ConfigMap" and "grafana" in item["metadata"]["labels"]
    }

    assert set(found) == {f"llm-engineroom-dashboard-{path.stem}" for path in DASHBOARDS}
    for path in DASHBOARDS:
        item = found[f"llm-engineroom-dashboard-{path.stem}"]
        assert item["metadata"]["labels"]["grafana"] == "yes"
        assert item["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert item["metadata"]["annotations"] == {"grafana_folder": "Inference"}
        [text] = item["data"].values()
        assert json.loads(text) == load(path)


def test_no_dashboard_is_created_unless_it_is_asked_for(render: Render) -> None:
    assert not [item for item in render("keda-values") if "dashboard" in item["metadata"]["name"]]
