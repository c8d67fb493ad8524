"""The OpenAI front end beside Triton: its command, what it opens, and who waits for whom when a pod stops."""

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rendered import container, one, pod, program

Render = Callable[..., list[dict[str, Any]]]


def test_the_gateway_serves_the_tree_and_asks_the_triton_of_its_own_pod(render: Render) -> None:
    items = render("h100", triton={"drainSeconds": 77})
    gateway, server = container(items, "gateway"), container(items, "triton")

    assert gateway["command"] == ["engineroom"]
    assert gateway["args"] == [
        "gateway",
        "--tree=/models",
        "--upstream=127.0.0.1:8001",
        "--host=0.0.0.0",
        "--port=9000",
        "--metrics-port=9002",
        "--deadline-seconds=600",
        "--accept-seconds=5",
        "--drain-seconds=82",
    ]
    tree = [mount for mount in server["volumeMounts"] if mount["mountPath"] == "/models"]
    assert [mount for mount in gateway["volumeMounts"] if mount["mountPath"] == "/models"] == tree
    assert "nvidia.com/gpu" not in gateway["resources"]["limits"]


def test_limits_names_and_keys_become_flags(render: Render) -> None:
    gateway = container(render("every-value-values"), "gateway")

    for flag in (
        "--model-name=Chat: the model",
        "--api-keys-file=/etc/engineroom/api-keys/keys",
        "--slots=8",
        "--max-queued-requests=100",
        "--max-queued-tokens=100000",
    ):
        assert flag in gateway["args"]
    assert {"mountPath": "/etc/engineroom/api-keys", "name": "api-keys", "readOnly": True} in gateway["volumeMounts"]


def test_without_a_gateway_nothing_speaks_of_it(render: Render) -> None:
    items = render("h100", gateway={"enabled": False}, ingress={"kind": "ingress"})

    assert [found["name"] for found in pod(items)["containers"]] == ["triton"]
    for item in items:
        if item["kind"] == "Service":
            assert not any("openai" in port["name"] for port in item["spec"]["ports"])
        if item["kind"] == "NetworkPolicy":
            assert "openai" not in str(item)
    backend = one(items, "Ingress")["spec"]["rules"][0]["http"]["paths"][0]["backend"]
    assert backend["service"]["port"] == {"name": "http"}


def hook(items: list[dict[str, Any]], port: int, folder: Path) -> subprocess.Popen[bytes]:
    """Triton's preStop hook as the kubelet runs it, with another port, and noting how long it would have slept."""
    program(folder, "sleep", f'echo "$1" >> {folder}/slept\n/bin/sleep 0.05')
    command = container(items, "triton")["lifecycle"]["preStop"]["exec"]["command"]
    assert any("9000" in word for word in command)
    words = [word.replace("9000", str(port)) for word in command]
    return subprocess.Popen(words, env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"})


def slept(folder: Path) -> list[int]:
    path = folder / "slept"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def test_triton_outlives_the_gateway(render: Render, tmp_path: Path) -> None:
    items = render("h100", triton={"preStopSeconds": 7, "drainSeconds": 10_000})
    with socket.create_server(("127.0.0.1", 0), backlog=100) as gateway:
        running = hook(items, gateway.getsockname()[1], tmp_path)
        try:
            for _ in range(3):  # it asks again and again, and waits as long as somebody answers
                gateway.accept()[0].close()
            assert running.poll() is None
            gateway.close()
            assert running.wait(timeout=30) == 0
        finally:
            running.kill()
            running.wait()
    assert slept(tmp_path) == [7]


def test_a_gateway_that_never_ends_is_waited_for_no_longer_than_answers_may_take(
    render: Render, tmp_path: Path
) -> None:
    items = render("h100", triton={"preStopSeconds": 2, "drainSeconds": 3})
    with socket.create_server(("127.0.0.1", 0), backlog=100) as gateway:
        running = hook(items, gateway.getsockname()[1], tmp_path)
        try:
            assert running.wait(timeout=60) == 0
        finally:
            running.kill()
            running.wait()
    assert slept(tmp_path) == [2]
    assert pod(items)["terminationGracePeriodSeconds"] == 2 + 3 + 10


@pytest.mark.parametrize("values", ["h100", "ranks-values"])
def test_the_gateway_has_as_long_as_triton_waits_for_it(values: str, render: Render) -> None:
    items = render(values, triton={"preStopSeconds": 9, "drainSeconds": 50})
    gateway = container(items, "gateway")

    assert "lifecycle" not in gateway, "it has to know at once, to ask clients to close their connections"
    assert {"--accept-seconds=9", "--drain-seconds=59"} <= set(gateway["args"])
    assert (
        "sleep 9\nend=$(($(date +%s) + 50))\n"
        in container(items, "triton")["lifecycle"]["preStop"]["exec"]["command"][-1]
    )
