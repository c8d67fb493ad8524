"""Rules that every object of every values file keeps, whichever template made it."""

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

LABELS = {
    "app.kubernetes.io/name",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/component",
    "app.kubernetes.io/part-of",
    "app.kubernetes.io/version",
    "app.kubernetes.io/managed-by",
    "helm.sh/chart",
}
CHANGING_LABELS = {"app.kubernetes.io/version", "helm.sh/chart"}
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")

Shipped = dict[str, list[dict[str, Any]]]


def every_object(shipped: Shipped) -> Iterator[dict[str, Any]]:
    for items in shipped.values():
        yield from items


def pod_template(item: dict[str, Any]) -> dict[str, Any] | None:
    """The template of whatever makes pods, and the pod itself, however deep (a CronJob has it three levels down)."""
    if item["kind"] == "Pod":
        return item
    found: dict[str, Any] = item.get("spec") or {}
    if "jobTemplate" in found:
        found = found["jobTemplate"]["spec"]
    template = found.get("template")
    return template if isinstance(template, dict) and "containers" in template.get("spec", {}) else None


def pods(shipped: Shipped) -> list[dict[str, Any]]:
    found = [template for item in every_object(shipped) if (template := pod_template(item))]
    assert found, "a policy over nothing proves nothing"
    return found


def containers(shipped: Shipped) -> list[dict[str, Any]]:
    return [
        container
        for pod in pods(shipped)
        for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
    ]


def test_every_object_has_the_six_labels_and_the_namespace_of_the_release(shipped: Shipped) -> None:
    for item in every_object(shipped):
        assert item["metadata"]["labels"].keys() >= LABELS, item["kind"]
        assert all(LABEL_VALUE.fullmatch(value) for value in item["metadata"]["labels"].values())
        assert item["metadata"]["namespace"] == "models"


def test_no_two_objects_of_a_release_share_kind_and_name(shipped: Shipped) -> None:
    for items in shipped.values():
        names = [(item["kind"], item["metadata"]["name"]) for item in items]
        assert len(set(names)) == len(names)


def test_selectors_pick_the_pods_of_their_own_release_and_hold_no_label_that_changes(shipped: Shipped) -> None:
    for items in shipped.values():
        labels = [pod["metadata"]["labels"] for item in items if (pod := pod_template(item))]
        selectors = [item["spec"]["selector"] for item in items if "selector" in item.get("spec", {})]
        assert selectors
        for found in selectors:
            selector = found.get("matchLabels", found)
            assert any(selector.items() <= pod.items() for pod in labels)
            assert not selector.keys() & CHANGING_LABELS
            assert "app.kubernetes.io/instance" in selector


def test_a_new_version_of_the_chart_restarts_no_pod(shipped: Shipped) -> None:
    for pod in pods(shipped):
        assert not pod["metadata"]["labels"].keys() & CHANGING_LABELS


def test_every_service_port_leads_to_a_port_of_the_pod(shipped: Shipped) -> None:
    for items in shipped.values():
        open_ports = {
            port["name"]: port["containerPort"]
            for item in items
            if (pod := pod_template(item))
            for container in pod["spec"]["containers"]
            for port in container.get("ports", [])
        }
        for service in (item for item in items if item["kind"] == "Service"):
            for port in service["spec"]["ports"]:
                assert open_ports[port["targetPort"]] == port["port"]


def test_every_pod_satisfies_pod_security_restricted(shipped: Shipped) -> None:
    for pod in pods(shipped):
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}
        allowed = {"emptyDir", "configMap", "secret", "projected", "persistentVolumeClaim", "ephemeral", "downwardAPI"}
        for volume in spec.get("volumes", []):
            assert volume.keys() - {"name"} <= allowed
    for container in containers(shipped):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["privileged"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert not any("hostPort" in port for port in container.get("ports", []))


def test_no_pod_has_a_token_for_the_kubernetes_api(shipped: Shipped) -> None:
    for pod in pods(shipped):
        assert pod["spec"]["automountServiceAccountToken"] is False
    for item in every_object(shipped):
        if item["kind"] == "ServiceAccount":
            assert item["automountServiceAccountToken"] is False


def test_every_container_says_what_it_needs(shipped: Shipped) -> None:
    for container in containers(shipped):
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert {"cpu", "memory", "ephemeral-storage"} <= requests.keys()
        assert limits["memory"] == requests["memory"]
        assert "cpu" not in limits, "a limit throttles, and stretches every token"
        for name in (requests.keys() | limits.keys()) - {"cpu", "memory", "ephemeral-storage"}:
            assert requests[name] == limits[name], "extended resources are not overcommitted"


def test_every_volume_has_an_end(shipped: Shipped) -> None:
    for pod in pods(shipped):
        for volume in pod["spec"].get("volumes", []):
            if "emptyDir" in volume:
                assert volume["emptyDir"]["sizeLimit"]


def test_every_mount_has_a_volume_and_every_volume_a_mount(shipped: Shipped) -> None:
    for pod in pods(shipped):
        spec = pod["spec"]
        mounted = {
            mount["name"]
            for container in [*spec["initContainers"], *spec["containers"]]
            for mount in container["volumeMounts"]
        }
        assert mounted == {volume["name"] for volume in spec["volumes"]}


def test_every_server_has_three_probes_on_ports_that_it_opens(shipped: Shipped) -> None:
    for pod in pods(shipped):
        for container in pod["spec"]["containers"]:
            ports = {port["name"] for port in container["ports"]}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                assert container[probe]["httpGet"]["port"] in ports


def test_every_container_leaves_its_last_words_in_the_status_of_the_pod(shipped: Shipped) -> None:
    for container in containers(shipped):
        assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_every_image_is_pinned_by_tag_or_digest(shipped: Shipped) -> None:
    for container in containers(shipped):
        name, _, version = container["image"].rpartition("@" if "@" in container["image"] else ":")
        assert "/" in name
        assert version
        assert version != "latest"


def test_every_rollout_keeps_its_capacity_and_every_pod_its_drain(shipped: Shipped) -> None:
    seen = 0
    for item in every_object(shipped):
        if item["kind"] == "Deployment":
            seen += 1
            assert item["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
            spec = item["spec"]["template"]["spec"]
            assert spec["terminationGracePeriodSeconds"] > 10
            assert all("preStop" in container["lifecycle"] for container in spec["containers"])
    assert seen


def test_no_value_of_a_secret_stands_in_a_manifest(shipped: Shipped) -> None:
    for item in every_object(shipped):
        assert item["kind"] != "Secret"
    for container in containers(shipped):
        for variable in container.get("env", []):
            assert not re.search("SECRET|TOKEN|PASSWORD|ACCESS_KEY", variable["name"])


@pytest.mark.parametrize(
    ("broken", "policy"),
    [
        ({"securityContext": {"privileged": True}}, test_every_pod_satisfies_pod_security_restricted),
        ({"image": "nvidia/tritonserver:latest"}, test_every_image_is_pinned_by_tag_or_digest),
        ({"resources": {"requests": {}, "limits": {}}}, test_every_container_says_what_it_needs),
        ({"env": [{"name": "HF_TOKEN", "value": "x"}]}, test_no_value_of_a_secret_stands_in_a_manifest),
    ],
)
def test_the_policies_notice_a_container_that_breaks_them(
    broken: dict[str, Any], policy: Callable[[Shipped], None], shipped: Shipped
) -> None:
    spoilt = copy.deepcopy({"h100": shipped["h100"]})
    containers(spoilt)[-1].update(broken)

    with pytest.raises((AssertionError, KeyError)):
        policy(spoilt)
