"""The Job that builds in the cluster: what makes a new one, what pods wait for, and what its script does."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import scenarios
from rendered import as_kubernetes_passes, container, one, workload

Render = Callable[..., list[dict[str, Any]]]


def tag_of(items: list[dict[str, Any]]) -> str:
    """The tag that the pods wait for."""
    reference: str = container(items, "pull")["args"][1]
    return reference.rpartition(":")[2]


def script(items: list[dict[str, Any]]) -> str:
    text: str = one(items, "Job", "")["spec"]["template"]["spec"]["containers"][0]["args"][0]
    return text


def build(render: Render, **changed: Any) -> list[dict[str, Any]]:
    return render("build-values", backup={"restore": {"from": ""}}, **changed)


def test_pods_wait_for_what_the_job_publishes(render: Render) -> None:
    items = build(render)
    pull = container(items, "pull")["args"]

    assert f"publish /build/stages/repository --to '{pull[1]}'" in script(items)
    assert pull[1].startswith("s3://models/llama:recipe-")
    assert pull[pull.index("--wait") + 1] == "14400"
    assert workload(items)["progressDeadlineSeconds"] == 1800 + 600 + 14400


def test_a_release_that_names_its_artifact_waits_for_nothing(render: Render) -> None:
    items = build(render, artifact={"ref": scenarios.REFERENCE})

    assert container(items, "pull")["args"][1] == scenarios.REFERENCE
    assert "--wait" not in container(items, "pull")["args"]
    assert workload(items)["progressDeadlineSeconds"] == 1800 + 600


@pytest.mark.parametrize(
    ("changed", "new_job", "new_tag"),
    [
        ({}, False, False),
        ({"triton": {"drainSeconds": 7}}, False, False),
        ({"engineBuild": {"recipe": "model: {source: hf://a/b}"}}, True, True),
        ({"images": {"builder": {"tag": "0.2.0"}}}, True, True),
        # Kubernetes refuses a Job whose template changes, so these make another one, which finds all that is built.
        ({"engineBuild": {"memory": "128Gi"}}, True, False),
        ({"engineBuild": {"environment": {"HF_ENDPOINT": "https://hub.example.com"}}}, True, False),
        ({"images": {"pullSecrets": ["other"]}}, True, False),
    ],
)
def test_an_upgrade_makes_a_new_job_where_the_job_changes_and_a_new_tag_where_the_engine_does(
    changed: dict[str, Any], new_job: bool, new_tag: bool, render: Render
) -> None:
    before, after = build(render), build(render, **changed)
    old, new = one(before, "Job"), one(after, "Job")

    assert (old["metadata"]["name"] != new["metadata"]["name"]) is new_job
    assert (old["spec"]["template"] != new["spec"]["template"]) is new_job
    assert (tag_of(before) != tag_of(after)) is new_tag


def test_another_recipe_is_another_immutable_object(render: Render) -> None:
    def recipe(items: list[dict[str, Any]]) -> dict[str, Any]:
        return next(item for item in items if item["kind"] == "ConfigMap" and "-build-" in item["metadata"]["name"])

    before, after = recipe(build(render)), recipe(build(render, engineBuild={"recipe": "model: {source: hf://a/b}"}))

    assert before["immutable"] is True
    assert before["metadata"]["name"] != after["metadata"]["name"]
    mounted = one(build(render), "Job")["spec"]["template"]["spec"]["volumes"]
    assert mounted[0]["configMap"]["name"] == before["metadata"]["name"]


def test_the_builder_runs_on_nodes_of_the_gpu_class_and_asks_for_its_gpus(render: Render) -> None:
    spec = one(build(render), "Job")["spec"]["template"]["spec"]

    [term] = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchExpressions"][0]["values"] == ["NVIDIA-H100-80GB-HBM3"]
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    portable = one(build(render, engineBuild={"gpus": 0}), "Job")["spec"]["template"]["spec"]
    assert "affinity" not in portable
    assert "nvidia.com/gpu" not in portable["containers"][0]["resources"]["limits"]


@pytest.mark.local
def test_the_job_s_script_builds_once_and_the_pod_s_pull_gets_what_it_published(
    render: Render, tmp_path: Path, demo_checkpoint: Path
) -> None:
    store = tmp_path / "store"

    def recipe(output_len: int) -> str:
        return f"""
model: {{source: {demo_checkpoint}}}
gpu: cpu
runtime: ctranslate2
precision: int8
limits: {{max_input_len: 256, max_output_len: {output_len}}}
"""

    def run(words: list[str], folder: Path) -> str:
        paths = {path: folder / path.strip("/") for path in ("/recipe", "/build", "/volume")}
        # A bucket costs a server; a folder is the same to the script.
        words = [word.replace("s3://bucket/", f"file://{store}/") for word in as_kubernetes_passes(words, paths)]
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "ENGINEROOM_CACHE": str(folder / "build" / "cache"),
        }
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def job(text: str, folder: Path) -> str:
        items = build(render, engineBuild={"recipe": text, "to": "s3://bucket/models/demo"})
        (folder / "recipe").mkdir(parents=True, exist_ok=True)
        (folder / "recipe" / "engineroom.yaml").write_text(text, encoding="utf-8")
        container = one(items, "Job")["spec"]["template"]["spec"]["containers"][0]
        return run([*container["command"], *container["args"]], folder)

    first, again = job(recipe(64), tmp_path / "one"), job(recipe(64), tmp_path / "one")
    # Another recipe of the same engine, with an empty claim.
    other = job(recipe(32), tmp_path / "two")
    pull = container(build(render, engineBuild={"recipe": recipe(32), "to": "s3://bucket/models/demo"}), "pull")
    run([*pull["command"], *pull["args"]], tmp_path / "pod")

    assert "no engine" in first
    assert "is published already" not in first
    assert "is published already" in again
    assert " taken from file://" in other
    assert "engine found in the cache: every input of the engine key is the same" in other
    assert (tmp_path / "pod" / "volume" / "models" / "preflight.py").is_file()
    record = json.loads((tmp_path / "pod" / "volume" / "models" / "build-record.json").read_text(encoding="utf-8"))
    assert record["model"]["max_seq_len"] == 256 + 32
