"""The real HPA controller on the chart's own HPA reaches the replicas that its documented arithmetic gives."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from control_plane import ControlPlane
from custom_metrics import CustomMetrics
from releases import RELEASE, Installer, RefusedError, values_file

SERIES = Path(__file__).parent / "series"
METRIC = "engineroom:load_replicas"
MINIMUM, MAXIMUM = 1, 12
#: The chart's policies, 100 % up and 50 % down, but for each second and without windows: a test would mostly wait.
PACE: dict[str, Any] = {
    "scaleUp": {"windowSeconds": 0, "percent": 100, "periodSeconds": 1},
    "scaleDown": {"windowSeconds": 0, "percent": 50, "periodSeconds": 1},
}


def documented(replicas: int, load: float) -> int:
    """Replicas that the HPA comes to rest at, from so many and under this load, with a target of 1 a replica.

    From https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/ ("Algorithm details",
    "Configurable scaling behavior"): ``ceil(current × metric / target)``, where for an average value that is
    ``ceil(metric / target)``; nothing while the ratio is within 0.1 of 1; from step to step at most what the
    policies allow.
    """
    while True:
        ratio = load / replicas
        wanted = replicas if abs(ratio - 1) <= 0.1 else math.ceil(load)
        wanted = min(max(wanted, MINIMUM), MAXIMUM)
        wanted = min(max(wanted, int(replicas * 0.5), MINIMUM), math.ceil(replicas * 2))
        if wanted == replicas:
            return replicas
        replicas = wanted


def recorded() -> dict[str, list[float]]:
    """Load of a public trace, in units of one replica's capacity; each file says how it was made."""
    found = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))["load_replicas"]
        for path in sorted(SERIES.glob("*.json"))
    }
    assert len(found) == 3
    return found


def test_three_recorded_series_end_at_the_documented_replicas(
    cluster: ControlPlane, installer_in: Callable[[str, str], Installer]
) -> None:
    series = recorded()
    releases = {name: installer_in("helm4", name) for name in series}
    with CustomMetrics(cluster) as metrics:
        for name, release in releases.items():
            cluster.make_namespace(name, pod_security="restricted")
            release.upgrade(
                values_file("signals-values"),
                autoscaling={
                    "minReplicas": MINIMUM,
                    "maxReplicas": MAXIMUM,
                    "behavior": PACE,
                    # The processor would need a metrics server and kubelets.
                    "hpa": {"cpuUtilization": 0},
                },
            )
        replicas = dict.fromkeys(series, 1)
        reached: dict[str, list[int]] = {name: [] for name in series}
        # All series play at once: each step waits for the slowest.
        for step in range(max(map(len, series.values()))):
            for name, samples in series.items():
                if step < len(samples):
                    replicas[name] = documented(replicas[name], samples[step])
                    metrics[name, f"{RELEASE}-engineroom", METRIC] = samples[step]
            for name in series:
                wait_for_replicas(releases[name], replicas[name])
            wait_for_questions(metrics, *releases.values())
            for name in series:
                reached[name].append(releases[name].workload()["spec"]["replicas"])
            # The controller has asked again, and left it at that.
            assert {name: counts[-1] for name, counts in reached.items()} == replicas
        # The load of `steady` changes, but by less than the controller's tolerance.
        assert len(set(reached["steady"])) == 1 < len(set(series["steady"]))
        assert len(set(reached["swing"])) > 1 < len(set(reached["start"]))
        print({name: list(zip(series[name], counts, strict=False)) for name, counts in reached.items()})


def wait_for_replicas(release: Installer, expected: int) -> None:
    """Until the workload wants so many, and its controller has made so many."""

    def count() -> tuple[int, int]:
        found = release.workload()
        return found["spec"]["replicas"], found["status"].get("replicas", 0)

    release.cluster.wait_for(f"{expected} replicas in {release.namespace}", lambda: count() == (expected, expected))


def wait_for_questions(metrics: CustomMetrics, *releases: Installer) -> None:
    """Until the HPA controller has asked twice more for each release: by then it has acted on the first answer."""
    keys = [(release.namespace, f"{RELEASE}-engineroom", METRIC) for release in releases]
    before = {key: metrics.answered[key] for key in keys}
    releases[0].cluster.wait_for(
        "two more questions", lambda: all(metrics.answered[key] >= before[key] + 2 for key in keys)
    )


def test_an_upgrade_after_the_hpa_has_scaled_leaves_the_scale_alone(installer: Installer) -> None:
    cluster, values = installer.cluster, values_file("signals-values")
    with CustomMetrics(cluster) as metrics:
        metrics[installer.namespace, f"{RELEASE}-engineroom", METRIC] = 4.0
        installer.upgrade(values, autoscaling={"behavior": PACE, "hpa": {"cpuUtilization": 0}})
        wait_for_replicas(installer, 4)

        installer.upgrade(values, autoscaling={"behavior": PACE, "hpa": {"cpuUtilization": 0}}, triton={"cpu": "3"})
        wait_for_questions(metrics, installer)

        workload = installer.workload()
        [server] = [
            container
            for container in workload["spec"]["template"]["spec"]["containers"]
            if container["name"] == "triton"
        ]
        assert server["resources"]["requests"]["cpu"] == "3"
        assert workload["spec"]["replicas"] == 4


def test_a_stated_number_of_replicas_is_what_an_upgrade_would_trip_over(
    cluster: ControlPlane, namespace: str, installer_in: Callable[[str, str], Installer]
) -> None:
    """Why the test above proves something: with `replicas` in the manifest, Helm 4 refuses after somebody scaled."""
    installer = installer_in("helm4", namespace)
    installer.upgrade(values_file("h100"), triton={"replicas": 2})
    cluster.kubectl("scale", "deployment", "--all", "--replicas=4", f"--namespace={namespace}")

    with pytest.raises(RefusedError, match=r"conflict.*\.spec\.replicas"):
        installer.upgrade(values_file("h100"), triton={"replicas": 2, "cpu": "3"})


def test_a_metric_that_nobody_serves_changes_nothing_and_is_said(
    cluster: ControlPlane, namespace: str, installer_in: Callable[[str, str], Installer]
) -> None:
    installer = installer_in("helm4", namespace)
    with CustomMetrics(cluster):
        installer.upgrade(values_file("signals-values"), autoscaling={"hpa": {"cpuUtilization": 0}})
        hpa = f"{RELEASE}-engineroom-autoscaler"

        def inactive() -> bool:
            status = cluster.get("hpa", hpa, f"--namespace={namespace}").get("status", {})
            return any(
                (condition["type"], condition["status"]) == ("ScalingActive", "False")
                for condition in status.get("conditions", [])
            )

        # What the alert EngineroomAutoscalerInactive looks at.
        cluster.wait_for("the word that scaling is inactive", inactive)
        assert installer.workload()["spec"]["replicas"] == 2
