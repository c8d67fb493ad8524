"""The layout of one model in a real Triton: with recorded ids behind the engine interface, and with CTranslate2."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from engineroom.checkpoint.record import record_checkpoint
from engineroom.checkpoint.shape import ModelShape
from engineroom.deploy.pipeline import Pipeline
from engineroom.deploy.work import Work
from engineroom.documents import record_file
from engineroom.engines.engine import Engine, EngineInputs, Requires
from engineroom.errors import ServerError
from engineroom.planning.replica import plan_replica
from engineroom.progress import QUIET
from engineroom.recipe import Recipe
from engineroom.repository import pbtxt
from engineroom.repository.assemble import assemble
from engineroom.repository.record import MODEL_REPOSITORY
from engineroom.serving.environment import Environment, ensure_environment
from engineroom.serving.server import TritonServer
from engineroom.serving.tree import server_tree

EOS = 0

MakeReplayTree = Callable[..., Path]
Serve = Callable[..., AbstractContextManager[TritonServer]]


@pytest.fixture(scope="session")
def user_cache() -> Path:
    """The user's own cache: server environment, demo checkpoint and engine are made once per machine."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("ENGINEROOM_CACHE") or Path(home, "engineroom"))


@pytest.fixture(scope="session")
def environment(user_cache: Path) -> Environment:
    """The Python environment that Triton runs the model in."""
    return ensure_environment(user_cache)


@pytest.fixture(scope="session")
def serve(environment: Environment) -> Serve:
    """Runs a Triton server on a tree, and sees it end cleanly."""

    @contextmanager
    def serving(tree: Path) -> Iterator[TritonServer]:
        with TritonServer.of_tree(tree, server_tree(environment), drain_seconds=20) as server:
            try:
                server.start(load_seconds=60)
            except ServerError:
                print(*server.log_lines, sep="\n")
                raise
            yield server
            assert server.stop() == 0, f"the server did not end cleanly: {server.log_lines[-20:]}"

    return serving


@pytest.fixture(scope="session")
def make_replay_tree(tmp_path_factory: pytest.TempPathFactory) -> MakeReplayTree:
    """A tree whose engine replays ``answers``, each a dict of text or ids of a prompt and what happens to it."""

    def make(
        coder: tokenizers.Tokenizer,
        answers: list[dict[str, Any]],
        *,
        step_seconds: float = 0.002,
        slots: int = 128,
        queue: int = 8,
    ) -> Path:
        work = tmp_path_factory.mktemp("replay")
        checkpoint, folder = work / "checkpoint", work / "engine"
        checkpoint.mkdir()
        folder.mkdir()
        coder.save(str(checkpoint / "tokenizer.json"))
        (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": EOS}))
        recorded = {"step_seconds": step_seconds, "answers": [_with_ids(coder, answer) for answer in answers]}
        (folder / "recorded.json").write_text(json.dumps(recorded))
        recipe = Recipe.model_validate(
            {
                "model": {"source": str(checkpoint)},
                "gpu": "cpu",
                "runtime": "ctranslate2",
                "precision": "int8",
                "limits": {"max_batch_size": slots, "max_input_len": 100, "max_output_len": 900},
                "serve": {"max_queue_size": queue},
            }
        )
        inputs = EngineInputs(
            checkpoint="0" * 64,
            runtime="ctranslate2",
            versions={},
            precision="int8",
            kv="float32",
            tp=1,
            pp=1,
            limits={},
        )
        engine = Engine(
            key=inputs.key, inputs=inputs, requires=Requires(), files=[record_file(folder, "recorded.json")]
        )
        record = record_checkpoint(
            checkpoint, source=str(checkpoint), revision="local", architecture="LlamaForCausalLM"
        )
        plan = plan_replica(recipe, SHAPE, parameters=1000)
        assemble(recipe, plan, engine, folder, record, checkpoint, work / "repository", QUIET)
        shutil.copyfile(
            Path(__file__).with_name("replay_engine.py"), _model(work / "repository") / "1/replay_engine.py"
        )
        set_parameters(work / "repository", engine="replay_engine")
        # The runtime pytorch's tensors, which are those of ctranslate2 and some more.
        path = _model(work / "repository") / "config.pbtxt"
        config = pbtxt.from_text(path.read_text(encoding="utf-8"))
        pbtxt.declare(config, "client_pytorch")
        path.write_text(pbtxt.to_text(config), encoding="utf-8")
        return work / "repository"

    return make


@pytest.fixture(scope="session")
def demo_tree(user_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, through all stages. Few slots and a short queue, so that both can be filled."""
    recipe = Recipe.model_validate(
        {
            "model": {"source": "demo://smollm2"},
            "gpu": "cpu",
            "runtime": "ctranslate2",
            "precision": "int8",
            "limits": {"max_batch_size": 8, "max_input_len": 64, "max_output_len": 4000},
            "serve": {"threads": 2, "max_queue_size": 4},
        }
    )
    stages = Pipeline(recipe, Work(tmp_path_factory.mktemp("demo")), user_cache, QUIET)
    stages.fetch()
    stages.plan()
    stages.build()
    stages.assemble()
    # Room for two of the longest requests and not for three; for eight of 1,200 tokens.
    set_parameters(stages.work.tree, kv_tokens=10_000)
    return stages.work.tree


@pytest.fixture(scope="session")
def demo(demo_tree: Path, serve: Serve) -> Iterator[TritonServer]:
    """The demo model, served; shared by the tests that only ask it."""
    with serve(demo_tree) as server:
        yield server


def set_parameters(tree: Path, **values: object) -> None:
    """Change parameters in the one model's config.pbtxt."""
    path = _model(tree) / "config.pbtxt"
    config = pbtxt.from_text(path.read_text(encoding="utf-8"))
    for name, value in values.items():
        assert name in config.parameters
        config.parameters[name].string_value = str(value)
    path.write_text(pbtxt.to_text(config), encoding="utf-8")


def _model(tree: Path) -> Path:
    return tree / MODEL_REPOSITORY / "tensorrt_llm"


def _with_ids(coder: tokenizers.Tokenizer, answer: dict[str, Any]) -> dict[str, Any]:
    prompt = answer["prompt"]
    return answer | {"prompt": coder.encode(prompt).ids if isinstance(prompt, str) else prompt}


SHAPE = ModelShape(
    architecture="LlamaForCausalLM",
    family="llama",
    vocab_size=1000,
    hidden_size=8,
    intermediate_size=16,
    layers=1,
    heads=2,
    kv_heads=1,
    head_dim=4,
    max_positions=4096,
    tie_embeddings=True,
    dtype="bfloat16",
    norm_epsilon=1e-5,
    rope_theta=10000.0,
)
