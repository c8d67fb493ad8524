"""The PyTorch builder gathers what serves, as files that stand alone."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from engineroom.checkpoint.record import record_checkpoint
from engineroom.engines.builder import Builder, BuildRequest
from engineroom.engines.pytorch import PytorchBuilder
from engineroom.errors import CheckpointError, InputError
from engineroom.planning.replica import make_plan
from engineroom.progress import QUIET
from engineroom.recipe import Recipe

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 8,
    "num_hidden_layers": 2, "vocab_size": 100, "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
}  # fmt: skip
SERVING = ["config.json", "generation_config.json", "merges.txt", "model.safetensors", "tokenizer.json"]


def a_safetensors_file(path: Path) -> None:
    header = json.dumps({"a": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"weights!")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "a checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for name in ("generation_config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    (folder / "merges.txt").write_text("a b\n")
    (folder / "README.md").write_text("# about")
    (folder / "original").mkdir()
    (folder / "original" / "params.json").write_text("{}")
    a_safetensors_file(folder / "model.safetensors")
    return folder


def a_request(folder: Path, **changes: Any) -> BuildRequest:
    values = {"model": {"source": "hf://org/model"}, "gpu": "h100", "runtime": "pytorch", "precision": "bfloat16"}
    recipe = Recipe.model_validate(values | changes)
    record = record_checkpoint(folder, source="hf://org/model", revision="0" * 40, architecture="LlamaForCausalLM")
    return BuildRequest(recipe, make_plan(recipe, record, folder), record, folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_it_is_a_builder_whose_engines_run_on_any_gpu(checkpoint: Path) -> None:
    builder: Builder = PytorchBuilder()
    inputs = builder.inputs(a_request(checkpoint, parallelism={"tensor": 2}))
    assert (inputs.gpu, inputs.limits, inputs.versions, inputs.tp) == (None, {}, {"trtllm": "1.2.1"}, 2)
    requires = builder.requires(a_request(checkpoint, parallelism={"tensor": 2}))
    assert (requires.sm, requires.tensorrt, requires.trtllm, requires.world_size) == (None, None, "1.2.1", 2)


def test_the_key_is_the_same_on_another_gpu_and_with_other_limits(checkpoint: Path) -> None:
    key = PytorchBuilder().inputs(a_request(checkpoint)).key
    assert PytorchBuilder().inputs(a_request(checkpoint, gpu="l4", limits={"max_batch_size": 3})).key == key
    assert PytorchBuilder().inputs(a_request(checkpoint, precision="float16")).key != key


def test_only_files_that_serve_are_linked(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "engine"
    provenance = PytorchBuilder().build(a_request(checkpoint), output=output, progress=QUIET)
    assert sorted(contents(output)) == SERVING
    assert provenance["experimental"] is True
    assert (provenance["files_linked"], provenance["files_copied"]) == (len(SERVING), 0)
    assert (output / "model.safetensors").stat().st_ino == (checkpoint / "model.safetensors").stat().st_ino


def test_a_second_set_of_weights_that_the_index_does_not_name_is_left_out(checkpoint: Path, tmp_path: Path) -> None:
    a_safetensors_file(checkpoint / "consolidated.safetensors")
    index = {"weight_map": {"a": "model.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    PytorchBuilder().build(a_request(checkpoint), output=tmp_path / "engine", progress=QUIET)
    assert sorted(contents(tmp_path / "engine")) == sorted([*SERVING, "model.safetensors.index.json"])


def test_files_are_copied_where_they_cannot_be_linked(checkpoint: Path) -> None:
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == checkpoint.stat().st_dev:
        pytest.skip("/dev/shm is no file system of its own here")
    output = elsewhere / f"engineroom-test-{os.getpid()}"
    try:
        provenance = PytorchBuilder().build(a_request(checkpoint), output=output, progress=QUIET)
        assert (provenance["files_linked"], provenance["files_copied"]) == (0, len(SERVING))
        assert contents(output)["model.safetensors"] == (checkpoint / "model.safetensors").read_bytes()
    finally:
        for path in output.iterdir():
            path.unlink()
        output.rmdir()


def test_a_checkpoint_of_symbolic_links_becomes_files(checkpoint: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in checkpoint.iterdir():
        if path.is_file():
            (linked / path.name).symlink_to(path)
    PytorchBuilder().build(a_request(linked), output=tmp_path / "engine", progress=QUIET)
    assert not any(path.is_symlink() for path in (tmp_path / "engine").iterdir())


def test_the_script_does_what_the_build_does(checkpoint: Path, tmp_path: Path) -> None:
    request, output = a_request(checkpoint), tmp_path / "it's one"
    script = PytorchBuilder().script(request, output=output)
    for _ in range(2):
        subprocess.run(["bash", "-s"], input=script, text=True, check=True, timeout=60)
    PytorchBuilder().build(request, output=tmp_path / "built", progress=QUIET)
    assert contents(output) == contents(tmp_path / "built")


def test_a_file_that_has_changed_since_it_was_recorded_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    request = a_request(checkpoint)
    (checkpoint / "tokenizer.json").write_text('{"changed": true}')
    with pytest.raises(CheckpointError, match="but 2 were recorded"):
        PytorchBuilder().build(request, output=tmp_path / "engine", progress=QUIET)


def test_a_bare_config_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no safetensors"):
        PytorchBuilder().build(a_request(checkpoint), output=tmp_path / "engine", progress=QUIET)
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize("precision", ["fp8", "int8", "int4_awq"])
def test_a_precision_that_would_need_quantising_is_refused(checkpoint: Path, tmp_path: Path, precision: str) -> None:
    request = a_request(checkpoint, precision=precision)
    with pytest.raises(InputError, match="as they are stored") as refusal:
        PytorchBuilder().build(request, output=tmp_path / "engine", progress=QUIET)
    assert refusal.value.where == "precision"
    with pytest.raises(InputError):
        PytorchBuilder().inputs(request)
