"""preflight.py, run as the server's image runs it: by itself, with a Python that knows nothing of engineroom.

The GPU is a stand-in program that answers as nvidia-smi does; everything else is real.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from artifact_trees import MakeTree

PREFLIGHT = Path(__file__).parents[2] / "model-repo" / "preflight.py"
H100 = "9.0, 590.44.01, NVIDIA H100 80GB HBM3"
WANTS = {
    "sm": "90",
    "driver_min": "590.44.01",
    "trtllm": "1.2.1",
    "tensorrt": "10.14.1.48",
    "world_size": 1,
    "shm_bytes": 1 << 20,
}
VERSIONS = {"TRT_LLM_VERSION": "1.2.1", "TRT_VERSION": "10.14.1.48+cuda13.1"}


class Place:
    """A machine: a tree, what nvidia-smi says, and the versions in the image's environment."""

    def __init__(self, tree: Path, programs: Path) -> None:
        self.tree = tree
        self.programs = programs
        self.log = programs / "termination-log"
        self.log.write_text("old message, longer than the new one" * 99)
        shutil.copy(PREFLIGHT, tree / "preflight.py")

    def gpu(self, *lines: str, code: int = 0) -> None:
        program = self.programs / "nvidia-smi"
        text = "\n".join(lines)
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {code}\n")
        program.chmod(0o755)

    def requires(self, runtime: str = "tensorrt", **changes: Any) -> None:
        path = self.tree / "build-record.json"
        record = json.loads(path.read_bytes())
        record["inputs"] |= {"runtime": runtime, "image": "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"}
        record["requires"] = WANTS | changes
        path.write_text(json.dumps(record))

    def run(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [sys.executable, "-I", self.tree / "preflight.py", "--termination-log", str(self.log), *arguments],
            env={"PATH": f"{self.programs}:{os.defpath}", **VERSIONS, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "Traceback" not in done.stderr
        if done.returncode:
            assert self.log.read_text() == done.stderr
            assert done.stderr.count("\n") == 1
        return done


@pytest.fixture
def place(make_tree: MakeTree, tmp_path: Path) -> Place:
    (tmp_path / "bin").mkdir()
    found = Place(make_tree(megabytes=0.01), tmp_path / "bin")
    found.requires()
    found.gpu(H100)
    return found


def test_says_ok_where_all_fits(place: Place) -> None:
    done = place.run()

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("preflight: ok: 6 files, 1 × NVIDIA H100 80GB HBM3, SM 90, driver 590.44.01")


@pytest.mark.parametrize(
    ("gpu", "changes", "found"),
    [
        ("8.0, 590.44.01, NVIDIA A100", {}, "this GPU is NVIDIA A100 (SM 80) and the engine was built for SM 90"),
        ("9.0, 575.57.08, NVIDIA H100", {}, "the driver is 575.57.08 and 590.44.01 or later is wanted"),
        ("9.0, 590.44, NVIDIA H100", {}, "the driver is 590.44 and"),
        (H100, {"world_size": 4}, "1 GPU(s) are visible and 4 are wanted"),
        (H100, {"trtllm": "1.2.0"}, "TensorRT-LLM is 1.2.1 here and 1.2.0 is wanted; use the image nvcr.io/"),
        (H100, {"trtllm": "1.2.1rc3"}, "TensorRT-LLM is 1.2.1 here and 1.2.1rc3 is wanted"),
        (H100, {"tensorrt": "10.14.1.4"}, "TensorRT is 10.14.1.48+cuda13.1 here and 10.14.1.4 is wanted"),
        (H100, {"shm_bytes": 1 << 50}, "/dev/shm has"),
        ("", {}, "a GPU is wanted, but nvidia-smi lists none"),
        ("[N/A], 590.44.01, NVIDIA H100", {}, "a GPU is wanted, but nvidia-smi lists none"),
    ],
)
def test_refuses_a_place_that_does_not_fit(place: Place, gpu: str, changes: dict[str, Any], found: str) -> None:
    assert place.run().returncode == 0
    place.gpu(gpu)
    place.requires(**changes)

    done = place.run()

    assert done.returncode == 3
    assert done.stderr.startswith(f"preflight: {found}")
    assert "; " in done.stderr


@pytest.mark.parametrize(
    ("gpus", "changes"),
    [
        (["9.0, 600.10, NVIDIA H200"], {}),
        ([H100] * 4, {"world_size": 4}),
        ([H100], {"sm": "9.0"}),
        ([H100], {"sm": "90a"}),
        (["8.0, 590.44.01, NVIDIA A100, SXM"], {"sm": None}),
        ([H100], {"tensorrt": "10.14.1", "driver_min": "590"}),
    ],
)
def test_takes_a_place_that_fits(place: Place, gpus: list[str], changes: dict[str, Any]) -> None:
    place.gpu(*gpus)
    place.requires(**changes)

    done = place.run()

    assert done.returncode == 0, done.stderr


def test_no_nvidia_smi_and_a_failing_one_are_one_sentence(place: Place) -> None:
    place.gpu("Failed to initialize NVML: Driver/library version mismatch", code=18)
    assert "nvidia-smi failed (Failed to initialize NVML" in place.run().stderr
    (place.programs / "nvidia-smi").unlink()
    if shutil.which("nvidia-smi", path=os.defpath):
        pytest.skip("this machine has a real nvidia-smi")

    done = place.run()

    assert done.returncode == 3
    assert "there is no nvidia-smi" in done.stderr


def test_an_image_without_versions_is_told_which_image_to_use(place: Place) -> None:
    done = place.run(TRT_LLM_VERSION="", TRT_VERSION="")

    assert done.returncode == 3
    assert "TensorRT-LLM 1.2.1 is wanted and none is in this image; use the image nvcr.io/" in done.stderr
    assert "(and 1 more: TensorRT 10.14.1.48 is wanted" in done.stderr


def test_the_cpu_runtime_needs_no_gpu_but_whole_files_and_shared_memory(place: Place) -> None:
    nothing = dict.fromkeys(["sm", "driver_min", "trtllm", "tensorrt"])
    (place.programs / "nvidia-smi").unlink()
    place.requires("ctranslate2", **nothing)
    assert place.run(TRT_LLM_VERSION="").returncode == 0
    place.requires("ctranslate2", **nothing | {"shm_bytes": 1 << 50})
    assert place.run().returncode == 3
    place.requires("ctranslate2", **nothing)
    model = place.tree / "engine" / "model.bin"
    model.write_bytes(model.read_bytes()[:-1])

    done = place.run()

    assert done.returncode == 3
    assert "engine/model.bin has 10484 bytes and 10485 are wanted; pull the artifact again" in done.stderr
    model.unlink()
    assert "engine/model.bin cannot be read" in place.run().stderr


def test_a_pod_of_several_sees_only_its_own_gpus(place: Place) -> None:
    place.requires(world_size=16)
    assert place.run().returncode == 3
    assert place.run("--gpus", "1").returncode == 0


def test_a_check_can_be_left_out_by_name(place: Place) -> None:
    place.requires(driver_min="999.1")
    assert place.run().returncode == 3

    done = place.run("--skip", "driver")

    assert done.returncode == 0
    assert "driver skipped" in done.stdout


@pytest.mark.parametrize(
    "content", [None, b"", b"{}", b"[]", b"\xff", b"[" * 100_000, b'{"schema": 1, "requires": null}']
)
def test_without_a_readable_build_record_it_exits_2(place: Place, content: bytes | None) -> None:
    path = place.tree / "build-record.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)

    done = place.run()

    assert done.returncode == 2
    assert "build-record.json cannot be read" in done.stderr
    assert "pull the artifact again" in done.stderr


def test_the_record_can_lie_elsewhere_and_the_log_need_not_exist(place: Place, tmp_path: Path) -> None:
    place.log = tmp_path / "no" / "log"
    done = subprocess.run(
        [sys.executable, "-I", PREFLIGHT, "--record", place.tree / "build-record.json", "--termination-log", place.log],
        env={"PATH": f"{place.programs}:{os.defpath}", **VERSIONS},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr


def test_it_imports_the_standard_library_only() -> None:
    import ast

    imported = {
        (name.name if isinstance(node, ast.Import) else node.module or "").partition(".")[0]
        for node in ast.walk(ast.parse(PREFLIGHT.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }

    assert imported <= sys.stdlib_module_names
