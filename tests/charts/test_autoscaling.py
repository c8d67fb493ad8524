"""The autoscaler that is rendered, and what is refused around it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import scenarios
from rendered import one
from test_validations import GPU, changed
from test_validations import render as render_values

from engineroom.deploy.helm import Helm
from engineroom.errors import CommandError

Render = Callable[..., list[dict[str, Any]]]


def test_the_hpa_follows_the_load_of_the_release_and_the_processor(render: Render) -> None:
    items = render("signals-values")
    spec = one(items, "HorizontalPodAutoscaler")["spec"]
    load, processor = spec["metrics"]

    assert spec["scaleTargetRef"] == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "name": one(items, "Deployment")["metadata"]["name"],
    }
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 8)
    services = [item["metadata"]["name"] for item in items if item["kind"] == "Service"]
    assert load["object"]["describedObject"]["name"] in services
    assert load["object"]["metric"] == {"name": "engineroom:load_replicas"}
    # Never `value`: the controller multiplies it by the replicas that are ready.
    assert load["object"]["target"] == {"type": "AverageValue", "averageValue": "1"}
    containers = one(items, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert processor["containerResource"]["container"] in {container["name"] for container in containers}
    assert processor["containerResource"]["target"] == {"type": "Utilization", "averageUtilization": 80}


def test_the_pace_is_the_documented_one_until_it_is_changed(render: Render) -> None:
    def behavior(**limits: Any) -> Any:
        items = render("signals-values", autoscaling={"behavior": limits})
        return one(items, "HorizontalPodAutoscaler")["spec"]["behavior"]

    assert behavior() == {
        "scaleUp": {
            "stabilizationWindowSeconds": 60,
            "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}],
        },
        "scaleDown": {
            "stabilizationWindowSeconds": 300,
            "policies": [{"type": "Percent", "value": 50, "periodSeconds": 60}],
        },
    }
    assert behavior(scaleDown={"windowSeconds": 0})["scaleDown"]["stabilizationWindowSeconds"] == 0


def test_only_the_processor_is_followed_where_no_signal_is(render: Render) -> None:
    items = render("signals-values", autoscaling={"signal": "none"}, monitoring={"rules": "none"})

    assert [metric["type"] for metric in one(items, "HorizontalPodAutoscaler")["spec"]["metrics"]] == [
        "ContainerResource"
    ]


@pytest.mark.parametrize(
    ("workload", "target"),
    [
        ("Deployment", ("apps/v1", "Deployment")),
        ("StatefulSet", ("apps/v1", "StatefulSet")),
        ("LeaderWorkerSet", ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet")),
    ],
)
@pytest.mark.parametrize("values", ["signals-values", "keda-values"])
def test_what_is_scaled_is_what_is_rendered_and_states_no_number_itself(
    values: str, workload: str, target: tuple[str, str], render: Render
) -> None:
    changes: dict[str, Any] = {"triton": {"workload": {"kind": workload}, "replicas": 3}}
    if workload == "LeaderWorkerSet":
        changes["triton"]["mpi"] = {"secret": "keys"}
        changes |= {"model": {"runtime": "tensorrt", "worldSize": 16}, "gpu": {"perNode": 8}}
    items = render(values, **changes)
    owner = one(items, "HorizontalPodAutoscaler" if values == "signals-values" else "ScaledObject")
    reference = owner["spec"]["scaleTargetRef"]
    scaled = one(items, workload)

    assert (reference["apiVersion"], reference["kind"]) == target == (scaled["apiVersion"], scaled["kind"])
    assert reference["name"] == scaled["metadata"]["name"]
    assert "replicas" not in scaled["spec"]


def test_keda_owns_the_scale_alone_and_takes_silence_for_an_error(render: Render) -> None:
    items = render("keda-values")
    spec = one(items, "ScaledObject")["spec"]
    [trigger] = spec["triggers"]

    assert not [item for item in items if item["kind"] == "HorizontalPodAutoscaler"]
    assert trigger["metricType"] == "AverageValue"
    assert trigger["metadata"]["threshold"] == "1"
    assert trigger["metadata"]["ignoreNullValues"] == "false"
    assert trigger["authenticationRef"] == {"name": "prometheus"}
    assert spec["minReplicaCount"] >= 1
    assert spec["fallback"]["behavior"] == "currentReplicasIfHigher"
    # The alerts look for this HPA by name.
    hpa = spec["advanced"]["horizontalPodAutoscalerConfig"]
    assert hpa["name"] == one(items, "ScaledObject")["metadata"]["name"]
    assert hpa["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 300


def test_no_autoscaler_and_no_monitoring_without_triton(render: Render) -> None:
    found = {item["kind"] for item in render("signals-values", triton={"enabled": False})}

    assert not found & {"HorizontalPodAutoscaler", "ScaledObject", "PodMonitor", "PrometheusRule"}


HPA = changed(GPU, autoscaling__kind="hpa", monitoring__rules="PrometheusRule")
KEDA = changed(HPA, autoscaling__kind="keda", autoscaling__keda__prometheus="http://prometheus:9090")
RULE = [{"record": "engineroom:load_replicas", "expr": "vector(1)"}]

# What is refused, what the sentence holds, and the nearest values that are not refused.
REFUSALS: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    (
        "a minimum above the maximum",
        changed(HPA, autoscaling__minReplicas=5),
        "autoscaling.minReplicas=5 is above autoscaling.maxReplicas=4: raise the maximum",
        changed(HPA, autoscaling__minReplicas=4),
    ),
    (
        "a signal that nobody records",
        changed(HPA, monitoring__rules="none"),
        "autoscaling.signal=waiting follows engineroom:load_replicas, which no rule records",
        changed(HPA, monitoring__rules="none", autoscaling__signal="custom", autoscaling__metric="my_load"),
    ),
    (
        "a custom signal without a name",
        changed(HPA, autoscaling__signal="custom"),
        "autoscaling.signal=custom names no metric: set autoscaling.metric",
        changed(HPA, autoscaling__signal="custom", autoscaling__metric="my_load"),
    ),
    (
        "rules of another signal",
        changed(HPA, autoscaling__rules=RULE),
        "autoscaling.rules are recorded for autoscaling.signal=custom only, but it is waiting",
        changed(HPA, autoscaling__rules=RULE, autoscaling__signal="custom", autoscaling__metric="my_load"),
    ),
    (
        "rules that go nowhere",
        changed(
            HPA,
            autoscaling__rules=RULE,
            autoscaling__signal="custom",
            autoscaling__metric="my_load",
            monitoring__rules="none",
        ),
        "autoscaling.rules are recorded by nobody while monitoring.rules=none",
        changed(
            HPA,
            autoscaling__rules=RULE,
            autoscaling__signal="custom",
            autoscaling__metric="my_load",
            monitoring__rules="config",
        ),
    ),
    (
        "two autoscalers at once",
        changed(KEDA, autoscaling__hpa__cpuUtilization=80),
        "are two autoscalers on one workload, which would undo each other",
        changed(HPA, autoscaling__hpa__cpuUtilization=80),
    ),
    (
        "KEDA without a signal",
        changed(KEDA, autoscaling__signal="none"),
        "autoscaling.kind=keda has nothing to follow while autoscaling.signal=none",
        KEDA,
    ),
    (
        "KEDA without Prometheus",
        changed(KEDA, autoscaling__keda__prometheus=""),
        "autoscaling.kind=keda asks Prometheus itself: set autoscaling.keda.prometheus",
        KEDA,
    ),
    (
        "an HPA without a metric",
        changed(HPA, autoscaling__signal="none"),
        "autoscaling.kind=hpa has nothing to follow",
        changed(HPA, autoscaling__signal="none", autoscaling__hpa__cpuUtilization=80),
    ),
    (
        "a page before its warning",
        changed(GPU, monitoring__alerts__ttftCriticalSeconds=0.1),
        "monitoring.alerts.ttftCriticalSeconds=0.1 is below monitoring.alerts.ttftSeconds=0.2",
        changed(GPU, monitoring__alerts__ttftCriticalSeconds=0.2),
    ),
    # From here on the schema refuses.
    (
        "scaling to nothing",
        changed(HPA, autoscaling__minReplicas=0),
        "autoscaling.minReplicas: minimum: got 0",
        changed(HPA, autoscaling__minReplicas=1),
    ),
    (
        "an unknown owner",
        changed(HPA, autoscaling__kind="both"),
        "autoscaling.kind: value must be one of",
        HPA,
    ),
]


@pytest.mark.parametrize(("title", "refused", "sentence", "legal"), REFUSALS, ids=[case[0] for case in REFUSALS])
def test_the_chart_refuses_and_accepts_the_nearest_legal_values(
    title: str, refused: dict[str, Any], sentence: str, legal: dict[str, Any], any_helm: Helm, tmp_path: Path
) -> None:
    with pytest.raises(CommandError) as refusal:
        render_values(any_helm, refused, tmp_path)

    assert sentence in refusal.value.found
    assert "\n" not in refusal.value.found
    assert "kind: Deployment" in render_values(any_helm, legal, tmp_path)


def test_every_refusal_of_autoscaling_and_monitoring_is_tested(helm4: Helm, tmp_path: Path) -> None:
    said = []
    for _, refused, _, _ in REFUSALS:
        with pytest.raises(CommandError) as refusal:
            render_values(helm4, refused, tmp_path)
        said.append(refusal.value.found)
    written = []
    for name in ("autoscaling/_autoscaling.tpl", "monitoring/_monitoring.tpl"):
        text = (scenarios.CHART / "templates" / name).read_text(encoding="utf-8")
        written += re.findall(r'\{\{- fail \(?(?:printf )?"(.*?)"[ )]', text)

    assert len(written) == 10
    for sentence in written:
        pieces = re.split("%[dsv]", sentence)
        assert any(all(piece in text for piece in pieces) for text in said), sentence
