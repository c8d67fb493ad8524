"""What each value changes in the Triton pod, and that its commands do what they say when they are run."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rendered import as_kubernetes_passes, container, pod, workload

from engineroom.engines import tensorrt_versions
from engineroom.gpus import catalogue

Render = Callable[..., list[dict[str, Any]]]


def test_preflight_sees_the_image_gpus_and_mounts_that_the_server_gets(render: Render) -> None:
    for values in ("h100", "ranks-values", "cpu"):
        items = render(values)
        preflight, server = container(items, "preflight"), container(items, "triton")
        for same in ("image", "resources", "volumeMounts", "env", "securityContext"):
            assert preflight[same] == server[same]
        assert [preflight["command"], preflight["args"]] == [["python3"], ["/models/preflight.py"]]


def test_pull_fills_the_folder_that_preflight_and_the_server_mount(render: Render) -> None:
    items = render("h100")
    spec = pod(items)
    assert [found["name"] for found in spec["initContainers"]] == ["pull", "preflight"]

    pull = container(items, "pull")
    volume = next(mount for mount in pull["volumeMounts"] if mount["name"] == "models")
    target = Path(pull["args"][pull["args"].index("--to") + 1])
    mount = next(found for found in container(items, "triton")["volumeMounts"] if found["name"] == "models")

    assert mount == {"name": "models", "mountPath": "/models", "subPath": "models", "readOnly": True}
    assert target == Path(volume["mountPath"]) / mount["subPath"]
    # The target is not the mount point itself, which no rename can replace.
    assert target != Path(volume["mountPath"])


def test_the_cpu_class_asks_for_no_gpu_and_for_no_special_node(render: Render) -> None:
    items = render("cpu")

    assert not pod(items).keys() & {"affinity", "tolerations", "nodeSelector"}
    assert container(items, "triton")["resources"]["limits"] == {"memory": "10Gi"}


@pytest.mark.parametrize("name", [name for name, gpu in catalogue().items() if not gpu.is_cpu])
def test_a_gpu_class_asks_for_its_gpus_on_its_nodes(name: str, render: Render) -> None:
    items = render(name)

    [term] = pod(items)["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    [rule] = term["matchExpressions"]
    assert rule == {"key": "nvidia.com/gpu.product", "operator": "In", "values": catalogue()[name].gfd_product}
    assert container(items, "triton")["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in container(items, "pull")["resources"]["limits"]


def test_the_default_server_image_is_the_one_that_engines_are_built_in(render: Render) -> None:
    assert container(render("h100"), "triton")["image"] == tensorrt_versions.PINNED.image


def test_a_digest_wins_over_a_tag_and_one_registry_replaces_all(render: Render) -> None:
    digest = "sha256:" + "c" * 64
    items = render("h100", images={"registry": "mirror.local:5000", "server": {"digest": digest}})

    assert container(items, "triton")["image"] == f"mirror.local:5000/nvidia/tritonserver@{digest}"
    assert container(items, "pull")["image"].startswith("mirror.local:5000/engineroom/toolkit:")


def test_the_client_model_follows_the_runtime_until_it_is_named(render: Render) -> None:
    def ready(values: str, **overrides: Any) -> str:
        path: str = container(render(values, **overrides), "triton")["readinessProbe"]["httpGet"]["path"]
        return path

    assert ready("h100") == "/v2/models/tensorrt_llm_bls/ready"
    assert ready("h100", model={"runtime": "pytorch"}) == "/v2/models/tensorrt_llm/ready"
    assert ready("cpu") == "/v2/models/tensorrt_llm/ready"
    assert ready("cpu", model={"clientModel": "chat"}) == "/v2/models/chat/ready"


def test_the_grace_period_holds_pre_stop_drain_and_ten_seconds(render: Render) -> None:
    items = render("h100", triton={"preStopSeconds": 7, "drainSeconds": 90}, gateway={"enabled": False})

    assert pod(items)["terminationGracePeriodSeconds"] == 107
    assert container(items, "triton")["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "7"]
    assert "--exit-timeout-secs=90" in container(items, "triton")["args"]


@pytest.mark.parametrize("seconds", [10, 61, 600])
def test_the_startup_probe_waits_for_the_whole_load_and_little_longer(seconds: int, render: Render) -> None:
    probe = container(render("h100", triton={"loadSeconds": seconds}), "triton")["startupProbe"]

    assert seconds <= probe["periodSeconds"] * probe["failureThreshold"] <= seconds + 1


def test_a_number_of_replicas_is_rendered_unless_something_else_owns_it(render: Render) -> None:
    assert workload(render("h100"))["replicas"] == 1
    assert workload(render("h100", triton={"replicas": 0}))["replicas"] == 0
    assert "replicas" not in workload(render("h100", triton={"replicas": None}))


def test_several_ranks_of_pytorch_start_from_one_server(render: Render) -> None:
    items = render("ranks-values", model={"runtime": "pytorch"})

    assert container(items, "triton")["command"] == ["tritonserver"]
    assert container(items, "triton")["resources"]["limits"]["nvidia.com/gpu"] == 4


def ranks(server: dict[str, Any]) -> list[list[str]]:
    """The command of each rank, as mpirun reads it: separated by ``:``, behind ``-n 1``."""
    found: list[list[str]] = [[]]
    for word in server["args"]:
        if word == ":":
            found.append([])
        else:
            found[-1].append(word)
    assert all(words[:2] == ["-n", "1"] for words in found)
    return [words[2:] for words in found]


def test_four_ranks_start_under_mpirun_and_only_the_first_listens(render: Render) -> None:
    server = container(render("ranks-values"), "triton")
    assert server["command"] == ["mpirun"]
    first, *others = ranks(server)

    assert len(others) == 3
    assert not any(word.startswith(("--allow", "--load-model")) for word in first)
    for words in others:
        assert words[0] == "tritonserver"
        for flag in ("--allow-http=false", "--allow-grpc=false", "--allow-metrics=false", "--strict-readiness=true"):
            assert flag in words
        assert {"--model-control-mode=explicit", "--load-model=tensorrt_llm"} <= set(words)
    prefixes = [word for words in (first, *others) for word in words if "shm-region-prefix-name" in word]
    assert prefixes == [f"--backend-config=python,shm-region-prefix-name=prefix{rank}_" for rank in range(4)]


# Stands in for tritonserver: says its flags and its process id, ends in its own time after SIGTERM.
SERVER = """#!/bin/sh
echo "$$ $*" > started
trap 'echo drained > drained; exit 0' TERM
while :; do sleep 0.05; done
"""


def test_stopping_a_pod_of_ranks_asks_rank_0_and_waits_for_it(render: Render, tmp_path: Path) -> None:
    server = container(render("ranks-values", triton={"preStopSeconds": 0, "drainSeconds": 20}), "triton")
    (tmp_path / "tritonserver").write_text(SERVER, encoding="utf-8")
    (tmp_path / "tritonserver").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    rank0 = subprocess.Popen(as_kubernetes_passes(ranks(server)[0], {"/tmp": tmp_path}), cwd=tmp_path, env=environment)
    try:
        deadline = time.monotonic() + 20
        while not (tmp_path / "started").is_file() or not (tmp_path / "started").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        pid, *flags = (tmp_path / "started").read_text().split()

        # The pid file names the server itself, not a shell before it, and the flags arrived as they were written.
        assert int(pid) == rank0.pid
        assert flags == ranks(server)[0][4:]

        # mpirun reaps its ranks at once; here the test is the parent, so somebody has to.
        hook = subprocess.Popen(
            as_kubernetes_passes(server["lifecycle"]["preStop"]["exec"]["command"], {"/tmp": tmp_path}), cwd=tmp_path
        )
        assert rank0.wait(timeout=20) == 0
        hook.wait(timeout=20)
        assert (tmp_path / "drained").is_file()
    finally:
        rank0.kill()
        rank0.wait()


def test_the_pre_stop_hook_of_ranks_leaves_the_last_seconds_of_grace_alone(render: Render, tmp_path: Path) -> None:
    items = render("ranks-values", triton={"preStopSeconds": 3, "drainSeconds": 30})
    # Instead of sleeping: notes for how long it would have.
    (tmp_path / "sleep").write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/slept\n', encoding="utf-8")
    (tmp_path / "sleep").chmod(0o755)
    # A server that ignores the request altogether.
    stubborn = subprocess.Popen(["sh", "-c", "trap '' TERM; echo ready; read -r _"], stdin=-1, stdout=-1)
    try:
        assert stubborn.stdout is not None
        assert stubborn.stdout.readline() == b"ready\n"
        (tmp_path / "rank0.pid").write_text(str(stubborn.pid))
        command = as_kubernetes_passes(
            container(items, "triton")["lifecycle"]["preStop"]["exec"]["command"], {"/tmp": tmp_path}
        )
        subprocess.run(command, env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}, check=False, timeout=30)

        slept = sum(int(line) for line in (tmp_path / "slept").read_text().split())
        assert stubborn.poll() is None
        # Less what the hook itself took.
        assert 3 + 30 + 5 - 3 <= slept <= 3 + 30 + 5
        assert pod(items)["terminationGracePeriodSeconds"] >= slept + 5
    finally:
        stubborn.kill()
        stubborn.communicate()


def test_the_notes_warn_of_a_folder_that_no_pod_sees(helm4: Any, tmp_path: Path) -> None:
    from scenarios import CHART

    def notes(reference: str) -> str:
        values = [
            "--values",
            str(CHART.parents[1] / "values" / "gpu" / "cpu.yaml"),
            "--set",
            f"artifact.ref={reference}",
        ]
        command = [str(helm4.program), "install", "llm", str(CHART), "--dry-run=client", *values]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout.partition("NOTES:")[2]

    digest = "@sha256:" + "a" * 64
    assert "port-forward service/llm-engineroom" in notes(f"s3://b/m{digest}")
    assert "Careful" not in notes(f"s3://b/m{digest}")
    assert "a pod sees only the folders of its own image" in notes(f"file:///srv/m{digest}")
