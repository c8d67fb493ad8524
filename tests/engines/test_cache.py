"""The engine cache: looked up by key only, says why, and takes nothing for an engine that is not whole."""

import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engineroom.checkpoint.record import CheckpointRecord
from engineroom.checkpoint.shape import parse_shape
from engineroom.documents import FileRecord
from engineroom.engines import cache
from engineroom.engines.builder import BuildRequest
from engineroom.engines.engine import EngineInputs, Requires
from engineroom.errors import CommandError
from engineroom.planning.replica import plan_replica
from engineroom.progress import QUIET, Progress
from engineroom.recipe import Recipe

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 8192,
}


class WritingBuilder:
    """A small builder of the tests' own: its engine is a file with the precision in it; ``slow`` waits in between."""

    def __init__(self, log: Path, *, slow: float = 0, fails: bool = False) -> None:
        self.log, self.slow, self.fails = log, slow, fails

    def inputs(self, request: BuildRequest) -> EngineInputs:
        return EngineInputs(
            checkpoint=request.record.digest,
            runtime="ctranslate2",
            versions={"converter": "1"},
            precision=request.recipe.precision,
            kv="float32",
            tp=1,
            pp=1,
            limits={},
        )

    def requires(self, request: BuildRequest) -> Requires:
        return Requires()

    def script(self, request: BuildRequest, *, output: Path) -> str:
        return f"echo {request.recipe.precision} > {output}/engine\n"

    def build(self, request: BuildRequest, *, output: Path, progress: Progress) -> dict[str, Any]:
        with self.log.open("a") as log:
            log.write("built\n")
        (output / "half").write_text(request.recipe.precision)
        time.sleep(self.slow)
        if self.fails:
            raise CommandError("the tool failed", where="tool")
        (output / "engine").write_text(request.recipe.precision)
        return {}


@pytest.fixture
def request_(tmp_path: Path) -> BuildRequest:
    recipe = Recipe.model_validate(
        {"model": {"source": "x"}, "gpu": "cpu", "runtime": "ctranslate2", "precision": "int8"}
    )
    record = CheckpointRecord(
        source="x",
        revision="local",
        architecture="LlamaForCausalLM",
        files=[FileRecord(path="config.json", size=1, sha256="1" * 64)],
        digest="2" * 64,
    )
    plan = plan_replica(recipe, parse_shape(CONFIG, where="config"), parameters=200_000)
    return BuildRequest(recipe, plan, record, tmp_path)


def with_precision(request: BuildRequest, precision: str) -> BuildRequest:
    return replace(request, recipe=request.recipe.model_copy(update={"precision": precision}))


def test_the_same_inputs_build_nothing_and_say_so(request_: BuildRequest, tmp_path: Path) -> None:
    builder = WritingBuilder(tmp_path / "log")

    first = cache.build(request_, builder, cache=tmp_path / "c", progress=QUIET)
    second = cache.build(request_, builder, cache=tmp_path / "c", progress=QUIET)

    assert (first.hit, first.reason) == (False, "the cache holds no engine yet")
    assert (second.hit, second.reason) == (True, "every input of the engine key is the same")
    assert second.folder == first.folder == tmp_path / "c/engines" / first.engine.key
    assert (tmp_path / "log").read_text() == "built\n"


def test_one_changed_input_is_named(request_: BuildRequest, tmp_path: Path) -> None:
    builder = WritingBuilder(tmp_path / "log")
    cache.build(request_, builder, cache=tmp_path / "c", progress=QUIET)

    built = cache.build(with_precision(request_, "float32"), builder, cache=tmp_path / "c", progress=QUIET)

    assert not built.hit
    assert built.reason.endswith("precision: int8 → float32")


@pytest.mark.parametrize("damage", ["truncate", "remove", "no record"])
def test_a_damaged_engine_is_built_again(damage: str, request_: BuildRequest, tmp_path: Path) -> None:
    builder = WritingBuilder(tmp_path / "log")
    folder = cache.build(request_, builder, cache=tmp_path / "c", progress=QUIET).folder
    match damage:
        case "truncate":
            (folder / "engine").chmod(0o644)
            (folder / "engine").write_text("in")
        case "remove":
            (folder / "engine").unlink()
        case _:
            (folder / "engine.json").unlink()

    again = cache.build(request_, builder, cache=tmp_path / "c", progress=QUIET)

    assert not again.hit
    assert (again.folder / "engine").read_text() == "int8"


def test_a_failed_build_leaves_nothing(request_: BuildRequest, tmp_path: Path) -> None:
    with pytest.raises(CommandError):
        cache.build(request_, WritingBuilder(tmp_path / "log", fails=True), cache=tmp_path / "c", progress=QUIET)

    assert [path.name for path in (tmp_path / "c/engines").iterdir() if not path.name.endswith(".lock")] == []


def _build(request: BuildRequest, log: Path, folder: Path, slow: float) -> None:
    cache.build(request, WritingBuilder(log, slow=slow), cache=folder, progress=QUIET)


def test_a_killed_build_counts_for_nothing_and_the_next_one_cleans_up(request_: BuildRequest, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = multiprocessing.get_context("spawn").Process(target=_build, args=(request_, log, tmp_path / "c", 60))
    process.start()
    while not log.exists():
        time.sleep(0.01)
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()

    built = cache.build(request_, WritingBuilder(log), cache=tmp_path / "c", progress=QUIET)

    assert not built.hit
    assert [path.name for path in (tmp_path / "c/engines").iterdir() if not path.name.endswith(".lock")] == [
        built.engine.key
    ]


def test_two_processes_build_once(request_: BuildRequest, tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    arguments = (request_, tmp_path / "log", tmp_path / "c", 0.5)
    processes = [spawn.Process(target=_build, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()

    assert [process.exitcode for process in processes] == [0, 0]
    assert (tmp_path / "log").read_text() == "built\n"
