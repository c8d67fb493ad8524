"""The kinds of workload, and where the served tree comes from."""

import fcntl
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rendered import as_kubernetes_passes, container, one, pod, pod_templates, program, workload

Render = Callable[..., list[dict[str, Any]]]
DIGEST = "1" * 64


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "LeaderWorkerSet"])
@pytest.mark.parametrize("owner", ["none", "hpa", "keda"])
def test_replicas_are_rendered_only_where_nothing_else_owns_the_scale(kind: str, owner: str, render: Render) -> None:
    values = "multi-node" if kind == "LeaderWorkerSet" else "h100"
    # A metric of somebody else's, so that no rules have to be recorded for it.
    scaling = {"kind": owner, "signal": "custom", "metric": "load", "keda": {"prometheus": "http://prometheus:9090"}}
    items = render(values, triton={"workload": {"kind": kind}, "replicas": 4}, autoscaling=scaling)

    found = one(items, kind)["spec"]
    assert found.get("replicas") == (4 if owner == "none" else None)


def test_a_stateful_set_gives_each_pod_a_claim_and_names_its_headless_service(render: Render) -> None:
    items = render("stateful-values")
    spec = workload(items)

    assert one(items, "Service", "-headless")["metadata"]["name"] == spec["serviceName"]
    assert one(items, "Service", "-headless")["spec"]["clusterIP"] == "None"
    [claim] = spec["volumeClaimTemplates"]
    assert claim["spec"]["resources"]["requests"]["storage"] == "40Gi"
    assert not any(volume["name"] == "models" for volume in pod(items)["volumes"])


def test_claims_of_a_stateful_set_do_not_change_with_the_chart_s_version(render: Render) -> None:
    labels = workload(render("stateful-values"))["volumeClaimTemplates"][0]["metadata"]["labels"]

    assert not {"helm.sh/chart", "app.kubernetes.io/version"} & labels.keys()


def test_the_headless_service_has_no_ports_of_metrics_so_that_nothing_is_scraped_twice(render: Render) -> None:
    items = render("h100")

    ports = {port["name"] for port in one(items, "Service", "-headless")["spec"]["ports"]}
    assert ports == {"openai", "http", "grpc"}
    assert len(one(items, "Service", "llm-engineroom")["spec"]["ports"]) == 5


def test_a_cached_tree_is_pulled_into_the_cache_and_served_from_it(render: Render) -> None:
    items = render("h100", artifact={"cache": {"kind": "pvc", "claim": "models"}, "storage": "300Gi"})
    pull, server = container(items, "pull"), container(items, "triton")

    assert pull["args"][2:] == ["--cache", "/volume", "--cache-size", "300Gi"]
    tree, leases = (mount for mount in server["volumeMounts"] if mount["name"] == "models")
    assert (tree["mountPath"], tree["subPath"]) == ("/models", f"trees/{DIGEST}")
    assert (leases["mountPath"], leases["subPath"]) == ("/leases", "leases")
    # The disk of the node is not the pod's then.
    assert server["resources"]["requests"]["ephemeral-storage"] == "1Gi"


@pytest.mark.parametrize("values", ["h100", "ranks-values"])
def test_a_server_holds_the_lease_of_its_cached_tree_as_long_as_it_runs(
    values: str, render: Render, tmp_path: Path
) -> None:
    pinned = {"ref": f"s3://b/m@sha256:{DIGEST}", "cache": {"kind": "pvc", "claim": "models"}}
    server = container(render(values, artifact=pinned), "triton")
    (tmp_path / DIGEST).touch()
    name = server["args"][1]
    program(tmp_path, name, 'printf "%s\\n" "$@" > words.new; mv words.new words; read -r _')
    words = as_kubernetes_passes([*server["command"], *server["args"]], {"/leases": tmp_path})
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    running = subprocess.Popen(words, cwd=tmp_path, env=environment, stdin=subprocess.PIPE)
    try:
        with (tmp_path / DIGEST).open() as lease:
            while not (tmp_path / "words").exists():
                assert running.poll() is None
            assert (tmp_path / "words").read_text().split("\n")[:-1] == [
                line for word in server["args"][3:] for line in word.replace("$$", "$").split("\n")
            ]
            with pytest.raises(BlockingIOError):
                fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
            running.communicate()
            fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        running.kill()
        running.wait()


def test_what_lies_in_a_claim_or_on_the_node_is_mounted_and_not_pulled(render: Render) -> None:
    claim = render("h100", artifact={"source": "pvc", "pvc": {"claim": "models", "subPath": "llama/v1"}})
    node = render("h100", artifact={"source": "hostPath", "hostPath": {"path": "/srv/models"}})

    for items in (claim, node):
        assert [found["name"] for found in pod(items)["initContainers"]] == ["preflight"]
    [mount] = [found for found in container(claim, "triton")["volumeMounts"] if found["name"] == "models"]
    assert (mount["subPath"], mount["readOnly"]) == ("llama/v1", True)
    [volume] = [found for found in pod(node)["volumes"] if found["name"] == "models"]
    assert volume["hostPath"] == {"path": "/srv/models", "type": "Directory"}


def test_the_layout_of_old_guides_has_a_repository_in_a_claim_and_engines_on_the_node(render: Render) -> None:
    items = render("guide-layout")
    server = container(items, "triton")

    assert "--model-repository=/models" in server["args"]
    assert {"name": "engines", "mountPath": "/engines", "readOnly": True} in server["volumeMounts"]
    assert "initContainers" not in pod(items)
    assert server["readinessProbe"]["httpGet"]["path"] == "/v2/models/ensemble/ready"


def test_spot_nodes_are_required_or_preferred_by_the_labels_of_their_provider(render: Render) -> None:
    required = pod(render("gke-spot"))
    preferred = pod(render("stateful-values"))

    terms = required["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert [rule["key"] for rule in terms[0]["matchExpressions"]] == [
        "nvidia.com/gpu.product",
        "cloud.google.com/gke-spot",
    ]
    taints = {toleration["key"] for toleration in required["tolerations"]}
    assert taints == {"nvidia.com/gpu", "cloud.google.com/gke-spot"}
    [wish] = preferred["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert wish["preference"]["matchExpressions"][0]["key"] == "karpenter.sh/capacity-type"


@pytest.mark.parametrize(("spot", "seconds"), [("aks-spot", 30), ("eks-spot", 120), ("gke-spot", 15)])
def test_a_pod_on_a_spot_node_leaves_within_the_notice_of_its_provider(spot: str, seconds: int, render: Render) -> None:
    assert pod(render(spot))["terminationGracePeriodSeconds"] <= seconds


@pytest.mark.parametrize(
    ("values", "gpus", "size"),
    [("h100", 1, "1280Mi"), ("h100", 4, "2Gi"), ("multi-node", 16, "16Gi"), ("cpu", 1, "1280Mi")],
)
def test_shared_memory_grows_with_the_ranks_of_a_pod_unless_it_is_given(
    values: str, gpus: int, size: str, render: Render
) -> None:
    from engineroom.deploy.settings import quantity

    items = render(values, model={"worldSize": gpus}) if gpus > 1 else render(values)
    item = next(item for item in items if item["kind"] in ("Deployment", "LeaderWorkerSet"))
    [template, *_] = pod_templates(item)
    [volume] = [found for found in template["spec"]["volumes"] if found["name"] == "shared-memory"]

    given = volume["emptyDir"]["sizeLimit"]
    assert quantity(int(given.removesuffix("Mi")) << 20) == size if given.endswith("Mi") else given == size


# From here on: an engine over several nodes.


def group(items: list[dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = one(items, "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]
    return spec


@pytest.mark.parametrize(
    ("world", "per_node", "size", "gpus"), [(16, 8, 2, 8), (8, 4, 2, 4), (32, 8, 4, 8), (6, 2, 3, 2)]
)
def test_a_group_has_as_many_nodes_as_its_ranks_need(
    world: int, per_node: int, size: int, gpus: int, render: Render
) -> None:
    found = group(render("multi-node", model={"worldSize": world}, gpu={"perNode": per_node}))

    assert found["size"] == size
    for template in (found["leaderTemplate"], found["workerTemplate"]):
        [server] = [each for each in template["spec"]["containers"] if each["name"] == "triton"]
        assert server["resources"]["limits"]["nvidia.com/gpu"] == gpus
        [preflight] = [each for each in template["spec"]["initContainers"] if each["name"] == "preflight"]
        assert preflight["args"] == ["/models/preflight.py", f"--gpus={gpus}"]


def test_services_lead_to_the_leader_of_a_group_only(render: Render) -> None:
    items = render("multi-node")
    selector = one(items, "Service", "llm-engineroom")["spec"]["selector"]

    assert selector.items() <= group(items)["leaderTemplate"]["metadata"]["labels"].items()
    assert not selector.items() <= group(items)["workerTemplate"]["metadata"]["labels"].items()
    assert [found["name"] for found in group(items)["workerTemplate"]["spec"]["containers"]] == ["triton"]


def leader(render: Render, tmp_path: Path, **values: Any) -> list[str]:
    """The leader's command, with `ssh` and `mpirun` of the test in tmp_path."""
    [server] = [
        found
        for found in group(render("multi-node", **values))["leaderTemplate"]["spec"]["containers"]
        if found["name"] == "triton"
    ]
    program(tmp_path, "mpirun", 'env > environment; for word; do printf "%s\\0" "$word"; done')
    return as_kubernetes_passes([*server["command"], *server["args"]], {"/tmp": tmp_path})


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "LWS_LEADER_ADDRESS": "llm-engineroom-triton-3.llm-engineroom-triton.models",
    }
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False, cwd=folder)


def test_the_leader_waits_for_all_nodes_and_starts_the_ranks_over_them(render: Render, tmp_path: Path) -> None:
    # The third node answers at its second call.
    program(tmp_path, "ssh", 'echo "$*" >> asked; case "$*" in *-2.*) [ -e late ] || { touch late; exit 255; } ;; esac')
    program(tmp_path, "sleep", ":")
    words = leader(render, tmp_path, model={"worldSize": 6}, gpu={"perNode": 2})

    done = run(words, tmp_path)

    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "asked").read_text().splitlines()
    hosts = [f"llm-engineroom-triton-3-{node}.llm-engineroom-triton.models" for node in (1, 2)]
    assert [line.split()[-2] for line in asked] == [hosts[0], hosts[1], hosts[1]]
    assert all("-p 2222 -i /etc/engineroom/mpi/id" in line and "StrictHostKeyChecking=yes" in line for line in asked)
    given = done.stdout.split("\0")
    assert given[given.index("--host") + 1] == (
        f"llm-engineroom-triton-3.llm-engineroom-triton.models:2,{hosts[0]}:2,{hosts[1]}:2"
    )
    # Found out with Open MPI 4.1: it asks ssh for `llm-engineroom-triton-3-1`, which no resolver knows.
    assert "OMPI_MCA_orte_keep_fqdn_hostnames=1" in (tmp_path / "environment").read_text()
    assert given.count(":") == 5, "six ranks, five separators"
    assert given.count("tritonserver") == 5, "rank 0 is started by a shell that notes its process id"


def test_a_leader_that_waits_in_vain_says_for_whom_and_ends(render: Render, tmp_path: Path) -> None:
    program(tmp_path, "ssh", "exit 255")
    program(tmp_path, "sleep", ":")

    done = run(leader(render, tmp_path, triton={"mpi": {"startSeconds": 10}}), tmp_path)

    assert done.returncode == 4
    assert "no answer from llm-engineroom-triton-3-1.llm-engineroom-triton.models in 10 tries" in done.stderr


def test_the_startup_probe_of_a_group_includes_the_wait_for_its_nodes(render: Render) -> None:
    values = {"triton": {"loadSeconds": 100, "mpi": {"startSeconds": 50}}}
    [server, _] = group(render("multi-node", **values))["leaderTemplate"]["spec"]["containers"]

    probe = server["startupProbe"]
    assert 150 <= probe["periodSeconds"] * probe["failureThreshold"] <= 152
