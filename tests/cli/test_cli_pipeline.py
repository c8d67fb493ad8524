"""Every stage as a user runs it, with a real Triton at the end. Slow parts come from the user's own cache."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from engineroom.serving.server import Ports

pytestmark = [pytest.mark.local]

PROGRAM = [sys.executable, "-m", "engineroom"]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipe of the demo model."""
    folder = tmp_path_factory.mktemp("pipeline")
    run(folder, "init", "--model", "demo://smollm2", "--gpu", "cpu")
    return folder


def run(folder: Path, *arguments: str) -> str:
    done = subprocess.run([*PROGRAM, *arguments], cwd=folder, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(folder: Path, *arguments: str) -> str:
    done = subprocess.run([*PROGRAM, *arguments], cwd=folder, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2, done.stderr
    return done.stderr


def as_json(folder: Path, *arguments: str) -> Any:
    return json.loads(run(folder, *arguments, "--output", "json"))


def test_each_stage_reads_what_the_one_before_it_left(here: Path, tmp_path: Path) -> None:
    store = f"file://{tmp_path}/store"
    checkpoint = as_json(here, "fetch")
    plan = as_json(here, "plan")
    engine = as_json(here, "build")
    record = as_json(here, "assemble")
    published = as_json(here, "publish", "--to", f"{store}/demo:v1")

    assert engine["inputs"]["checkpoint"] == checkpoint["digest"]
    assert (record["key"], record["model"]["max_seq_len"]) == (engine["key"], plan["limits"]["max_seq_len"])
    assert published["reference"] in run(here, "list", store).split()  # whole, to be copied
    assert {entry["reference"].split("@")[0] for entry in as_json(here, "list", store)} == {
        f"{store}/demo:v1",
        f"{store}/demo:key-{engine['key']}",
    }
    pulled = as_json(here, "pull", published["reference"], "--to", str(tmp_path / "served"))
    assert pulled["digest"] == published["digest"]
    assert as_json(here, "verify", str(tmp_path / "served"), "--digest", pulled["digest"])["problems"] == []
    values = run(here, "values", "--reference", published["reference"])
    assert yaml.safe_load(values)["artifact"]["ref"] == published["reference"]


def test_a_changed_recipe_is_noticed_by_the_stages_after_it(here: Path) -> None:
    run(here, "fetch")
    run(here, "plan")
    run(here, "build")
    run(here, "assemble")
    changed = ["--set", "limits.max_input_len=77"]
    for verb in ("build", "assemble", "values"):
        assert "run `engineroom plan` again" in refused(here, verb, *changed)
    run(here, "plan", *changed)
    assert "run `engineroom build` and `engineroom assemble` again" in refused(here, "values", *changed)
    run(here, "plan")


def test_up_answers_and_its_second_run_finds_everything(here: Path) -> None:
    first = as_json(here, "up", "--local")
    second = as_json(here, "up", "--local")

    assert "Paris" in first["answer"]
    assert second["answer"] == first["answer"]
    assert second["reference"] == first["reference"]
    cached = {step["stage"]: step["cached"] for step in second["stages"]}
    assert all(cached[stage] for stage in ("checkpoint", "engine", "artifact")), cached
    assert "kind: Deployment" in (here / ".engineroom/manifests.yaml").read_text()
    assert second["reference"] in (here / ".engineroom/manifests.yaml").read_text()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_serve_answers_until_it_is_told_to_stop(here: Path, number: int, code: int) -> None:
    run(here, "up", "--local")
    log = here / "serve.log"
    with log.open("w") as file:
        serve = subprocess.Popen(
            [*PROGRAM, "serve", "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"],
            cwd=here, stderr=file,
        )  # fmt: skip
    try:
        ports = wait_ready(log, serve)
        answer = as_json(here, "ask", "--chat", "What is the capital of France?", "--port", str(ports.grpc))
        assert "Paris" in answer["text"]
        assert answer["ttft_seconds"] > 0
        over_http = as_json(
            here, "ask", "--protocol", "http", "--chat", "What is the capital of France?", "--port", str(ports.http)
        )
        assert over_http["text"] == answer["text"]
        serve.send_signal(number)
        assert serve.wait(60) == code
    finally:
        serve.kill()
        serve.wait()


def wait_ready(log: Path, serve: "subprocess.Popen[bytes]") -> Ports:
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and serve.poll() is None:
        for line in log.read_text().splitlines():
            if line.startswith("ready: "):
                http, grpc, metrics = (int(part.rpartition(":")[2]) for part in line.split(","))
                return Ports(http, grpc, metrics)
        time.sleep(0.2)
    raise AssertionError(log.read_text())


def test_tools_package_is_publish(here: Path, checkout: Path, tmp_path: Path) -> None:
    run(here, "up", "--local")
    target = f"file://{tmp_path}/store/demo:v2"
    # The script takes the .venv of its checkout, or the engineroom on PATH.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [checkout / "tools/package", "--to", target], cwd=here, env=os.environ | {"PATH": path},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert f"{target}@sha256:" in done.stdout
    shutil.rmtree(tmp_path / "store")


def test_a_restore_drill_serves_what_was_backed_up(here: Path, tmp_path: Path) -> None:
    """A real Triton loads the restored repository and gives a token; a backup that is broken gives none."""
    for verb in ("fetch", "plan", "build", "assemble"):
        run(here, verb)
    store = tmp_path / "store"
    reference = as_json(here, "publish", "--to", f"file://{store}/demo:v1")["reference"]
    (tmp_path / "values.yaml").write_text(f"artifact:\n  ref: {reference}\n")
    place = f"file://{tmp_path}/backups/llm"
    sources = ["--folder", str(here / ".engineroom" / "repository"), "--values", str(tmp_path / "values.yaml")]
    made = as_json(here, "backup", reference, "--to", place, *sources)
    shutil.rmtree(store)  # what the backup is for

    drill = as_json(here, "restore", place, "--drill", "--scratch", str(tmp_path))

    assert drill["backup"] == made["reference"]
    assert [one["source"] for one in drill["served"]] == [reference]
    assert drill["served"][0]["text"].strip()
    assert drill["verified_bytes"] > 100_000_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backups", "values.yaml"]
    restored = as_json(here, "restore", place, "--to", f"file://{store}", "--folder-to", str(tmp_path / "repository"))
    assert [one["reference"] for one in restored["artifacts"]] == [reference]
    assert as_json(here, "verify", str(tmp_path / "repository"))["problems"] == []
    largest = max((tmp_path / "backups" / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    with largest.open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"broken")
    done = subprocess.run(
        [*PROGRAM, "restore", place, "--drill"], cwd=here, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 3, done.stderr
    assert "its bytes are not those that were published" in done.stderr
