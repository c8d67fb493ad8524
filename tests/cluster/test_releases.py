"""Every values file that ships is admitted, installed, upgraded, rolled back and removed by both Helm majors."""

import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import scenarios
import yaml
from control_plane import ControlPlane
from releases import RELEASE, Installer, values_file
from rendered import pod_templates
from test_policies import HOST_PATH

#: What differs by GPU class alone is one profile for upgrades.
PROFILES = [path.stem for path in scenarios.values_files() if path.parent.name != "gpu"] + ["h100", "cpu"]
#: 1: upgrade from each profile to each other one (some 460 upgrades for each Helm, 12 minutes and more), not just once
#: around.
EVERY_PAIR = "ENGINEROOM_EVERY_UPGRADE"


@pytest.fixture(scope="module")
def open_namespace(cluster: ControlPlane) -> str:
    """Where folders of the node may be mounted."""
    cluster.make_namespace("open", pod_security="privileged")
    return "open"


@pytest.fixture(scope="module")
def strict_namespace(cluster: ControlPlane) -> str:
    cluster.make_namespace("strict", pod_security="restricted")
    return "strict"


@pytest.fixture(scope="module")
def admitted(
    cluster: ControlPlane, strict_namespace: str, open_namespace: str, installer_in: Callable[[str, str], Installer]
) -> dict[str, list[dict[str, Any]]]:
    """The objects of every values file, as Helm 4 renders them against the API server and as that has admitted them."""
    return {
        values.stem: admit(
            installer_in("helm4", open_namespace if values.stem in HOST_PATH else strict_namespace), values
        )
        for values in scenarios.values_files()
    }


def render(installer: Installer, values: Path) -> list[dict[str, Any]]:
    """The objects of a values file as ``helm upgrade --install --dry-run=server`` gives them."""
    output = installer.upgrade(values, "--dry-run=server", "--output=json")
    return scenarios.objects(json.loads(output)["manifest"])


def admit(installer: Installer, values: Path) -> list[dict[str, Any]]:
    """Render, and have each object admitted: Helm only asks the server what it can do, and sends it nothing."""
    objects = render(installer, values)
    assert objects
    installer.cluster.apply(objects, "--dry-run=server", "--validate=strict")
    return objects


def test_the_api_server_takes_every_object_of_every_values_file(admitted: dict[str, list[dict[str, Any]]]) -> None:
    assert set(admitted) == {path.stem for path in scenarios.values_files()}


@pytest.mark.parametrize("profile", [name for name in PROFILES if name not in HOST_PATH])
def test_the_api_server_takes_what_helm_3_renders(
    profile: str, strict_namespace: str, installer_in: Callable[[str, str], Installer]
) -> None:
    admit(installer_in("helm3", strict_namespace), values_file(profile))


def pods_of(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The pods that an object makes; a StatefulSet adds its claims to them."""
    claims = [
        {"name": claim["metadata"]["name"], "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}}
        for claim in item.get("spec", {}).get("volumeClaimTemplates", [])
    ]
    for pod in pod_templates(item):
        spec = {"restartPolicy": "Never", **pod["spec"], "volumes": pod["spec"].get("volumes", []) + claims}
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": dict(pod.get("metadata", {})), "spec": spec}


def classes_of(pods: list[dict[str, Any]], namespace: str) -> list[dict[str, Any]]:
    """What pods are not admitted without: their accounts and classes."""

    def named(field: str) -> set[str]:
        return {pod["spec"][field] for pod in pods if field in pod["spec"]}

    accounts = [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}}
        for name in named("serviceAccountName")
    ]
    runtimes = [
        {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": name}, "handler": "runc"}
        for name in named("runtimeClassName")
    ]
    priorities = [
        {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": 1}
        for name in named("priorityClassName")
    ]
    return accounts + runtimes + priorities


def in_namespace(pods: list[dict[str, Any]], namespace: str) -> str:
    moved = [{**pod, "metadata": {**pod["metadata"], "namespace": namespace}} for pod in pods]
    return yaml.safe_dump_all(moved, sort_keys=False)


def test_pod_security_restricted_admits_the_pods_of_every_profile_that_mounts_no_folder_of_the_node(
    cluster: ControlPlane, strict_namespace: str, open_namespace: str, admitted: dict[str, list[dict[str, Any]]]
) -> None:
    strict: list[dict[str, Any]] = []
    mounting: list[dict[str, Any]] = []
    for name, objects in admitted.items():
        for number, pod in enumerate((pod for item in objects for pod in pods_of(item)), start=1):
            pod["metadata"]["name"] = f"{name}-{number}"
            hosts = any("hostPath" in volume for volume in pod["spec"]["volumes"])
            assert not hosts or name in HOST_PATH
            (mounting if hosts else strict).append(pod)
    assert len(strict) > len(PROFILES)
    assert {pod["metadata"]["name"].rpartition("-")[0] for pod in mounting} == HOST_PATH
    cluster.apply(classes_of(strict, strict_namespace) + classes_of(mounting, open_namespace))

    check = ("apply", "--server-side", "--dry-run=server", "--filename=-")
    cluster.kubectl(*check, stdin=in_namespace(strict, strict_namespace))
    cluster.kubectl(*check, stdin=in_namespace(mounting, open_namespace))
    for pod in mounting:
        reason = cluster.refused(*check, stdin=in_namespace([pod], strict_namespace))
        assert 'violates PodSecurity "restricted' in reason
        assert "hostPath" in reason


def journey() -> list[str]:
    """Profiles to upgrade to, one after the other, the first of which is installed: once around, or over every pair."""
    if os.environ.get(EVERY_PAIR) != "1":
        return PROFILES
    # Each way from a profile to another is gone once (Hierholzer's circuit).
    ways = {profile: [other for other in PROFILES if other != profile] for profile in PROFILES}
    walk, circuit = [PROFILES[0]], []
    while walk:
        if ways[walk[-1]]:
            walk.append(ways[walk[-1]].pop())
        else:
            circuit.append(walk.pop())
    return circuit[::-1]


def test_the_long_journey_takes_every_way_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EVERY_PAIR, "1")

    assert sorted(itertools.pairwise(journey())) == sorted(itertools.permutations(PROFILES, 2))


def test_a_release_goes_through_every_profile_back_to_the_first_and_leaves_nothing_behind(
    installer: Installer,
) -> None:
    cluster = installer.cluster
    cluster.kubectl(
        "label", "--overwrite", "namespace", installer.namespace, "pod-security.kubernetes.io/enforce=privileged"
    )
    before = installer.objects()
    steps = journey()
    for name in steps:
        installer.upgrade(values_file(name), "--history-max=0")
    [deployed] = json.loads(installer.run("list", "--output=json"))
    assert (deployed["status"], deployed["revision"]) == ("deployed", str(len(steps)))

    installer.run("rollback", RELEASE, "1")
    manifest = scenarios.objects(installer.run("get", "manifest", RELEASE))
    assert names(manifest) == names(render(installer, values_file(steps[0])))
    assert names(manifest) <= installer.objects() - before

    installer.run("uninstall", RELEASE)
    # Claims stay, because models lie in them; Kubernetes keeps those of a StatefulSet too.
    cluster.wait_for(
        "the end of all objects but claims",
        lambda: {kind for kind, _ in installer.objects() - before} <= {"PersistentVolumeClaim"},
    )


def names(objects: list[dict[str, Any]]) -> set[tuple[str, str]]:
    """Kind and name of the objects that belong to the namespace."""
    return {(item["kind"], item["metadata"]["name"]) for item in objects if item["kind"] != "PriorityClass"}


def test_a_stateful_release_leaves_the_claims_of_its_pods_and_nothing_else(installer: Installer) -> None:
    before = installer.objects()
    installer.upgrade(values_file("stateful-values"))
    workload = installer.workload()
    [template] = workload["spec"]["volumeClaimTemplates"]

    def claims() -> set[str]:
        return {name for kind, name in installer.objects() if kind == "PersistentVolumeClaim"}

    expected = {
        f"{template['metadata']['name']}-{workload['metadata']['name']}-{index}"
        for index in range(workload["spec"]["replicas"])
    }
    installer.cluster.wait_for("the claims of the pods", lambda: claims() == expected)

    installer.run("uninstall", RELEASE)

    installer.cluster.wait_for(
        "the end of all objects but claims",
        lambda: installer.objects() - before == {("PersistentVolumeClaim", name) for name in expected},
    )
