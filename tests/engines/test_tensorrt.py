"""The TensorRT builder: its scripts, and how it runs the tools.

TensorRT-LLM cannot be installed outside its image, so the tools here are *fakes*: small programs of the same names
on PATH that check their arguments against ``tensorrt_flags.yaml``, print lines and leave files as the real ones do.
They prove how the builder runs programs; that the real tools take these arguments they cannot prove.
"""

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from engineroom.checkpoint.record import record_checkpoint
from engineroom.engines import tensorrt_commands
from engineroom.engines.builder import Builder, BuildRequest
from engineroom.engines.tensorrt import TensorrtBuilder
from engineroom.engines.tensorrt_versions import PINNED
from engineroom.errors import CommandError, InputError
from engineroom.planning.replica import make_plan
from engineroom.progress import QUIET, Task
from engineroom.recipe import Recipe

CONFIGS = Path(__file__).with_name("configs")

FAKE_TOOL = '''\
"""FAKE: stands for convert_checkpoint.py, quantize.py or trtllm-build, which only install in NVIDIA's image."""
import json, os, pathlib, subprocess, sys, time, yaml

tool = "trtllm-build" if sys.argv[0].endswith("trtllm-build") else os.path.basename(sys.argv[0])
table = yaml.safe_load(open(os.environ["FAKE_FLAGS"]))["tools"][tool]["flags"]
words, given = sys.argv[1:], {}
while words:
    flag = words.pop(0)
    if flag not in table:
        sys.exit(f"{tool}: error: unrecognized argument {flag}")
    given[flag] = None if table[flag]["value"] == "switch" else words.pop(0)
mode = os.environ.get("FAKE_MODE", "")
output = pathlib.Path(given["--output_dir"])
output.mkdir(exist_ok=True, parents=True)
if tool != "trtllm-build":
    print(f"reading {given['--model_dir']}")
    kv = "FP8" if mode == "fp8 kv" else (given.get("--kv_cache_dtype") or "").upper() or None
    ranks = int(given["--tp_size"]) * int(given["--pp_size"])
    config = {"mapping": {"world_size": ranks}, "quantization": {"kv_cache_quant_algo": kv}}
    (output / "config.json").write_text(json.dumps(config))
    sys.exit(0)
ranks = json.loads((pathlib.Path(given["--checkpoint_dir"]) / "config.json").read_text())["mapping"]["world_size"]
if mode == "fail":
    print("building layer 1")
    print("RuntimeError: CUDA out of memory", file=sys.stderr)
    sys.exit(7)
if mode == "killed":
    os.kill(os.getpid(), 9)
if mode in ("hang", "orphan"):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print("spawned", child.pid, flush=True)
    if mode == "hang":
        time.sleep(60)
for rank in range(ranks):
    print(f"building rank {rank}", flush=True)
    if mode == "slow":
        time.sleep(0.4)
    if not (mode == "forgets" and rank == ranks - 1):
        (output / f"rank{rank}.engine").write_bytes(b"engine")
version = "1.1.0" if mode == "old" else "1.2.1"
(output / "config.json").write_text(json.dumps({"version": version, "reused": given.get("--input_timing_cache")}))
pathlib.Path(given["--output_timing_cache"]).write_bytes(b"times")
'''


class Lines:
    """A Progress that keeps what was said, and when."""

    def __init__(self) -> None:
        self.said: list[tuple[float, str]] = []

    def say(self, text: str) -> None:
        self.said.append((time.monotonic(), text))

    def task(self, title: str, total: int | None, *, unit: str = "B") -> AbstractContextManager[Task]:
        return QUIET.task(title, total)

    @property
    def text(self) -> str:
        return "\n".join(words for _, words in self.said)


def a_request(name: str = "llama-3.1-8b", folder: Path | None = None, **changes: Any) -> BuildRequest:
    folder = folder or CONFIGS / name
    values = {"model": {"source": f"hf://meta-llama/{name}"}, "gpu": "h100", "runtime": "tensorrt", "precision": "fp8"}
    recipe = Recipe.model_validate(values | changes)
    record = record_checkpoint(folder, source=recipe.model.source, revision="0" * 40, architecture="LlamaForCausalLM")
    return BuildRequest(recipe, make_plan(recipe, record, folder), record, folder)


@pytest.fixture
def with_weights(tmp_path: Path) -> Path:
    """A checkpoint folder with a (tiny) weight file beside the config of Llama-3.1-8B."""
    folder = tmp_path / "a checkpoint"
    folder.mkdir()
    (folder / "config.json").write_bytes((CONFIGS / "llama-3.1-8b" / "config.json").read_bytes())
    header = json.dumps({"a": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    return folder


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TensorrtBuilder:
    """A builder that finds the fake tools."""
    programs, examples = tmp_path / "bin", tmp_path / "examples"
    programs.mkdir()
    scripts = [examples / "quantization" / "quantize.py", examples / "models/core/llama/convert_checkpoint.py"]
    for script in scripts:
        script.parent.mkdir(parents=True)
        script.write_text(FAKE_TOOL)
    (programs / "trtllm-build").write_text(f"#!{sys.executable}\n{FAKE_TOOL}")
    (programs / "trtllm-build").chmod(0o755)
    (programs / "python3").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_FLAGS", str(Path(tensorrt_commands.__file__).with_name("tensorrt_flags.yaml")))
    # The symlink hides the virtual environment, and with it PyYAML, from the fakes.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path.endswith("site-packages")))
    return TensorrtBuilder(examples=examples)


def shellcheck(script: str) -> str:
    program = Path(sys.executable).with_name("shellcheck")
    ran = subprocess.run(
        [str(program), "--shell=bash", "-"], input=script, capture_output=True, text=True, timeout=60, check=False
    )
    return ran.stdout + ran.stderr


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pid: int) -> bool:
    end = time.monotonic() + 5
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pid)


def test_it_is_a_builder() -> None:
    builder: Builder = TensorrtBuilder()
    assert builder.inputs(a_request()).runtime == "tensorrt"


SCRIPTS = [
    ("llama-3.1-8b", {}),
    ("llama-3.1-70b", {"parallelism": {"tensor": 4}}),
    ("llama-3.1-8b", {"precision": "bfloat16", "gpu": "a100"}),
    ("llama-3.1-8b", {"precision": "int8", "gpu": "a100", "kv_cache": {"dtype": "int8"}}),
    ("llama-3.1-70b", {"precision": "int4_awq", "gpu": "a100"}),
]


@pytest.mark.parametrize(("name", "changes"), SCRIPTS)
def test_a_script_is_clean_bash(name: str, changes: dict[str, Any]) -> None:
    script = TensorrtBuilder().script(a_request(name, **changes), output=Path("/engines/it's one"))
    assert subprocess.run(["bash", "-n"], input=script, text=True, timeout=60, check=False).returncode == 0
    assert shellcheck(script) == ""


def test_shellcheck_does_find_what_is_unclean() -> None:
    assert "SC2086" in shellcheck("#!/usr/bin/env bash\ncat $1\n")


def test_the_script_of_70b_over_4_gpus_quantises_to_fp8_and_builds_4_ranks() -> None:
    script = TensorrtBuilder().script(a_request("llama-3.1-70b", parallelism={"tensor": 4}), output=Path("/engines/e"))
    for words in ("--qformat fp8", "--kv_cache_dtype fp8", "--tp_size 4", "--workers 4", "--max_seq_len 4096"):
        assert words in script
    assert "70,553,706,496 parameters, from config.json (computed" in script
    assert PINNED.image in script


def test_every_flag_of_a_script_stands_in_the_table() -> None:
    known = {flag for flags in tensorrt_commands.flag_table().values() for flag in flags}
    script = TensorrtBuilder().script(a_request(), output=Path("/engines/e"))
    code = "\n".join(line for line in script.splitlines() if not line.startswith("#"))
    assert set(re.findall(r"(?<![\w-])--\w+", code)) <= known


def test_a_line_feed_in_a_path_does_not_become_a_command(tmp_path: Path) -> None:
    script = TensorrtBuilder().script(a_request(), output=Path("/a\n:>injected\nb/engine"))
    # Without programs the script ends at its first command; a redirection in its comments would work before that.
    subprocess.run(
        ["bash", "-c", f"PATH=/nowhere\n{script}"], cwd=tmp_path, capture_output=True, timeout=60, check=False
    )
    assert not (tmp_path / "injected").exists()
    subprocess.run(["bash", "-c", "PATH=/nowhere\n# a\n:>injected\nb"], cwd=tmp_path, timeout=60, check=False)
    assert (tmp_path / "injected").exists()


def test_the_script_runs_and_leaves_what_the_build_leaves(
    fakes: TensorrtBuilder, with_weights: Path, tmp_path: Path
) -> None:
    output = tmp_path / "engines" / "it's one"
    script = fakes.script(a_request(folder=with_weights, parallelism={"tensor": 2}), output=output)
    for _ in range(2):
        ran = subprocess.run(["bash", "-s"], input=script, capture_output=True, text=True, timeout=60, check=False)
        assert ran.returncode == 0, ran.stderr
    assert sorted(path.name for path in output.iterdir()) == ["config.json", "rank0.engine", "rank1.engine"]
    timing = output.with_name(f".timing-sm90-tensorrt-{PINNED.tensorrt}.cache")
    assert json.loads((output / "config.json").read_text())["reused"] == str(timing)
    assert sorted(path.name for path in output.parent.iterdir()) == [timing.name, output.name]


def test_a_build_leaves_the_engine_and_nothing_else(fakes: TensorrtBuilder, with_weights: Path, tmp_path: Path) -> None:
    output, lines = tmp_path / "engines" / "one", Lines()
    request = a_request(folder=with_weights, parallelism={"tensor": 2, "pipeline": 2})
    provenance = fakes.build(request, output=output, progress=lines)
    assert sorted(path.name for path in output.iterdir()) == [
        "config.json", "rank0.engine", "rank1.engine", "rank2.engine", "rank3.engine",
    ]  # fmt: skip
    assert "quantize.py: reading" in lines.text
    assert "trtllm-build: building rank 3" in lines.text
    assert [shlex.split(command)[0] for command in provenance["commands"]] == ["python3", "trtllm-build"]
    assert provenance["timing_cache_reused"] is False
    again = fakes.build(request, output=tmp_path / "engines" / "two", progress=QUIET)
    assert again["timing_cache_reused"] is True
    assert not list((tmp_path / "engines").glob("*.scratch"))


def test_lines_are_passed_on_while_the_tool_still_runs(
    fakes: TensorrtBuilder, with_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_MODE", "slow")
    lines = Lines()
    request = a_request(folder=with_weights, parallelism={"tensor": 2})
    fakes.build(request, output=tmp_path / "engines" / "one", progress=lines)
    first, second = [when for when, words in lines.said if "building rank" in words]
    assert second - first > 0.3


@pytest.mark.parametrize(
    ("mode", "words", "tail"),
    [
        ("fail", "it ended with exit code 7", "RuntimeError: CUDA out of memory"),
        ("killed", "it was ended by signal 9", None),
        ("forgets", "it left no rank0.engine", None),
        ("old", "it is of TensorRT-LLM 1.1.0, not 1.2.1", None),
    ],
)
def test_a_failure_says_which_tool_and_how_and_keeps_its_last_lines(
    fakes: TensorrtBuilder,
    with_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    words: str,
    tail: str | None,
) -> None:
    monkeypatch.setenv("FAKE_MODE", mode)
    with pytest.raises(CommandError) as failure:
        fakes.build(a_request(folder=with_weights), output=tmp_path / "engines" / "one", progress=QUIET)
    assert (failure.value.exit_code, failure.value.where) == (4, "trtllm-build")
    assert failure.value.found == words
    assert failure.value.fix
    if tail:
        assert failure.value.tail == ("building layer 1", tail)
    assert not list((tmp_path / "engines").glob(".*.scratch"))


def test_keys_and_values_of_a_type_that_nobody_asked_for_end_the_build(
    fakes: TensorrtBuilder, with_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_MODE", "fp8 kv")
    request, asked = (
        a_request(folder=with_weights, precision="int4_awq", kv_cache={"dtype": dtype}) for dtype in ("auto", "fp8")
    )
    with pytest.raises(CommandError, match="made keys and values fp8, not bfloat16") as failure:
        fakes.build(request, output=tmp_path / "engines" / "one", progress=QUIET)
    assert failure.value.fix == "set kv_cache.dtype: fp8"
    fakes.build(asked, output=tmp_path / "engines" / "two", progress=QUIET)


def test_an_argument_that_the_table_lacks_is_refused_by_the_fake(fakes: TensorrtBuilder) -> None:
    """The fakes can fail: otherwise the tests above would prove nothing about arguments."""
    ran = subprocess.run(["trtllm-build", "--tp_size", "2"], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 1
    assert "unrecognized argument --tp_size" in ran.stderr


def test_an_interrupt_ends_the_tool_and_its_children(
    fakes: TensorrtBuilder, with_weights: Path, tmp_path: Path
) -> None:
    """In a process of its own, which gets a real SIGINT while the tool hangs."""
    program = (
        "import sys; sys.path[:0] = [sys.argv[1]]\n"
        "from pathlib import Path\n"
        "import test_tensorrt as t\n"
        "class Printed(t.Lines):\n"
        "    def say(self, text): print(text, flush=True)\n"
        "from engineroom.engines.tensorrt import TensorrtBuilder\n"
        "builder = TensorrtBuilder(examples=Path(sys.argv[2]))\n"
        "request = t.a_request(folder=Path(sys.argv[3]))\n"
        "builder.build(request, output=Path(sys.argv[4]), progress=Printed())\n"
    )
    here, output = str(Path(__file__).parent), tmp_path / "engines" / "one"
    tools = str(Path(tensorrt_commands.__file__).parents[2])
    child_env = {**os.environ, "FAKE_MODE": "hang", "PYTHONPATH": f"{tools}:{os.environ['PYTHONPATH']}"}
    arguments = [here, str(tmp_path / "examples"), str(with_weights), str(output)]
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env=child_env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            grandchild = next(int(line.split()[-1]) for line in process.stdout if "spawned" in line)
            assert alive(grandchild)
            process.send_signal(2)
            assert process.wait(20) != 0
        finally:
            process.kill()
    assert wait_until_gone(grandchild)
    assert not list(output.parent.glob(".*.scratch"))


def test_a_child_that_outlives_its_tool_neither_blocks_the_build_nor_stays(
    fakes: TensorrtBuilder, with_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_MODE", "orphan")
    lines, started = Lines(), time.monotonic()
    fakes.build(a_request(folder=with_weights), output=tmp_path / "engines" / "one", progress=lines)
    assert time.monotonic() - started < 20
    child = next(int(words.split()[-1]) for _, words in lines.said if "spawned" in words)
    assert wait_until_gone(child)


@pytest.fixture
def no_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TensorrtBuilder:
    monkeypatch.setenv("PATH", str(tmp_path))
    return TensorrtBuilder(examples=tmp_path / "absent")


def test_without_the_tools_one_sentence_has_the_container_command(
    no_tools: TensorrtBuilder, with_weights: Path, tmp_path: Path
) -> None:
    output = tmp_path / "engines" / "one"
    with pytest.raises(CommandError) as refusal:
        no_tools.build(a_request(folder=with_weights), output=output, progress=QUIET)
    assert "\n" not in str(refusal.value)
    assert "trtllm-build" in refusal.value.found
    words = shlex.split(re.findall(r"\| (docker run .*)`", refusal.value.fix)[0])
    expected = "docker run --rm --gpus all --ipc host --ulimit memlock=-1 --ulimit stack=67108864 -i"
    assert words[: len(expected.split())] == expected.split()
    assert words[-3:] == [PINNED.image, "bash", "-s"]
    mounts = [value for flag, value in itertools.pairwise(words) if flag == "-v"]
    assert mounts == [f"{with_weights}:{with_weights}:ro", f"{output.parent}:{output.parent}"]
    assert not output.exists()


def test_a_bare_config_has_a_script_and_no_build(fakes: TensorrtBuilder, tmp_path: Path) -> None:
    assert "trtllm-build" in fakes.script(a_request(), output=tmp_path / "one")
    with pytest.raises(InputError, match="no weights to build from"):
        fakes.build(a_request(), output=tmp_path / "one", progress=QUIET)
    assert not (tmp_path / "one").exists()


def test_the_key_changes_with_what_decides_the_engine_and_with_nothing_else() -> None:
    builder = TensorrtBuilder()
    key = builder.inputs(a_request()).key
    assert builder.inputs(a_request(serve={"threads": 4})).key == key
    for changes in (
        {"gpu": "h200"},
        {"precision": "bfloat16"},
        {"limits": {"max_batch_size": 8}},
        {"parallelism": {"tensor": 2}},
        {"kv_cache": {"dtype": "bfloat16"}},
    ):
        assert builder.inputs(a_request(**changes)).key != key, changes


def test_inputs_and_requirements_name_the_exact_stack() -> None:
    request = a_request(parallelism={"tensor": 2})
    inputs, requires = TensorrtBuilder().inputs(request), TensorrtBuilder().requires(request)
    assert inputs.versions == {"trtllm": "1.2.1", "tensorrt": "10.14.1.48", "modelopt": "~=0.37.0"}
    assert inputs.image == "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"
    assert inputs.gpu == {"sm": "90", "product": "NVIDIA H100 80GB HBM3"}
    assert inputs.calibration == {
        "dataset": "cnn_dailymail", "size": 512, "max_seq_length": 512, "batch_size": 1, "seed": 1234,
    }  # fmt: skip
    assert inputs.limits["max_seq_len"] == 4096
    assert (requires.sm, requires.driver_min, requires.world_size) == ("90", "590.44.01", 2)
    assert requires.shm_bytes == request.plan.pod.shm_bytes > 1 << 30
