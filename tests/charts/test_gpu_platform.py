"""The chart over other people's charts: pinned, switchable, and told what ours expects. Nothing is downloaded."""

import re
import subprocess
from typing import Any

import pytest
import scenarios
import yaml

from engineroom.deploy.helm import Helm

CHART = scenarios.ROOT / "charts" / "gpu-platform"
FACTS = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
VALUES = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
OURS = yaml.safe_load((scenarios.CHART / "values.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("dependency", FACTS["dependencies"], ids=lambda dependency: dependency["name"])
def test_every_chart_is_pinned_switchable_and_says_where_its_version_was_read(dependency: dict[str, Any]) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", dependency["version"])
    assert dependency["repository"].startswith(("https://", "oci://"))
    assert dependency["condition"] == f"{dependency['name']}.enabled"
    assert isinstance(VALUES[dependency["name"]]["enabled"], bool)
    lines = (CHART / "Chart.yaml").read_text(encoding="utf-8").splitlines()
    above = lines[: lines.index(f"  - name: {dependency['name']}")]
    comment = " ".join(line.strip() for line in above[-2:] if line.strip().startswith("#"))
    assert re.search(r"Source: (https://\S+|module \S+ v\S+)", comment), comment
    # The table says the same.
    row = f"| {dependency['version']} | `{dependency['condition']}`"
    assert row in (CHART / "README.md").read_text(encoding="utf-8")


def test_every_section_of_the_values_is_a_chart() -> None:
    assert set(VALUES) == {dependency["name"] for dependency in FACTS["dependencies"]}


def test_there_is_no_lock_file_and_no_copy_of_a_chart() -> None:
    assert not (CHART / "Chart.lock").exists()
    assert not (CHART / "charts").exists()


def test_its_values_fit_what_our_chart_expects() -> None:
    labels = VALUES["kube-prometheus-stack"]["grafana"]["sidecar"]["dashboards"]
    assert OURS["monitoring"]["dashboards"]["labels"] == {labels["label"]: labels["labelValue"]}
    assert VALUES["dcgm-exporter"]["serviceMonitor"]["honorLabels"] is OURS["monitoring"]["alerts"]["dcgmHonorLabels"]
    assert VALUES["dcgm-exporter"]["serviceMonitor"]["interval"] == OURS["monitoring"]["interval"]
    # Our monitors carry no label of the stack's release unless a user gives them one.
    specification = VALUES["kube-prometheus-stack"]["prometheus"]["prometheusSpec"]
    assert OURS["monitoring"]["labels"] == {}
    assert set(specification.values()) == {False}
    # GPU nodes carry the taint of their resource, and the device plugin looks for nodes by the maker of their cards.
    worker = VALUES["node-feature-discovery"]["worker"]
    assert [taint["key"] for taint in worker["tolerations"]] == [OURS["gpu"]["resource"]]
    assert worker["config"]["sources"]["pci"]["deviceLabelFields"] == ["vendor"]
    assert (
        OURS["gpu"]["productLabel"].split("/")[0]
        in VALUES["node-feature-discovery"]["master"]["config"]["extraLabelNs"]
    )
    # Two copies of Node Feature Discovery would fight over one label.
    assert VALUES["nvidia-device-plugin"]["nfd"]["enabled"] is False


def test_both_helm_majors_read_the_chart(any_helm: Helm) -> None:
    command = [str(any_helm.program), "show", "chart", str(CHART)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)

    assert yaml.safe_load(shown.stdout)["dependencies"] == FACTS["dependencies"]
