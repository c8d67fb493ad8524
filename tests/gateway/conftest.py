"""Real Triton servers with the one model: before the demo model's engine, and before a token source."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from gateway_process import GatewayProcess, MakeSource, ServeTree, StartGateway, gateway

from engineroom.deploy.pipeline import Pipeline
from engineroom.deploy.work import Work
from engineroom.progress import QUIET
from engineroom.recipe import Recipe
from engineroom.repository import pbtxt
from engineroom.repository.record import MODEL_REPOSITORY
from engineroom.serving.environment import ensure_environment
from engineroom.serving.server import Ports, TritonServer
from engineroom.serving.tree import Program, server_tree

MODEL = "smollm2"


@pytest.fixture(scope="session")
def user_cache() -> Path:
    """The user's own cache: server environment, demo checkpoint and engine are made once per machine."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("ENGINEROOM_CACHE") or Path(home, "engineroom"))


@pytest.fixture(scope="session")
def demo_tree(user_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, through all stages."""
    recipe = Recipe.model_validate(
        {
            "model": {"source": "demo://smollm2"},
            "gpu": "cpu",
            "runtime": "ctranslate2",
            "precision": "int8",
            "limits": {"max_batch_size": 8, "max_input_len": 512, "max_output_len": 512},
        }
    )
    stages = Pipeline(recipe, Work(tmp_path_factory.mktemp("demo")), user_cache, QUIET)
    stages.fetch()
    stages.plan()
    stages.build()
    stages.assemble()
    return stages.work.tree


@pytest.fixture(scope="session")
def make_source(demo_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeSource:
    """The demo model's tree with a token source in place of its engine."""

    def make(*, step_seconds: float = 0.002, slots: int = 8) -> Path:
        tree = tmp_path_factory.mktemp("source") / "tree"
        shutil.copytree(demo_tree, tree, ignore=shutil.ignore_patterns("engine"))
        (tree / "engine").mkdir()
        (tree / "engine" / "source.json").write_text(json.dumps({"step_seconds": step_seconds}))
        model = tree / MODEL_REPOSITORY / "tensorrt_llm"
        shutil.copyfile(Path(__file__).with_name("source_engine.py"), model / "1" / "source_engine.py")
        config = pbtxt.from_text((model / "config.pbtxt").read_text())
        # The runtime pytorch's tensors, which are those of ctranslate2 and some more.
        pbtxt.declare(config, "client_pytorch")
        config.parameters["engine"].string_value = "source_engine"
        config.parameters["max_batch_size"].string_value = str(slots)
        (model / "config.pbtxt").write_text(pbtxt.to_text(config))
        return tree

    return make


@pytest.fixture(scope="session")
def program(user_cache: Path) -> Program:
    return server_tree(ensure_environment(user_cache))


@pytest.fixture(scope="session")
def serve_tree(program: Program) -> ServeTree:
    """Runs a Triton server on a tree."""

    @contextmanager
    def serving(tree: Path, ports: Ports | None = None) -> Iterator[TritonServer]:
        server = TritonServer.of_tree(tree, program, drain_seconds=5, ports=ports)
        try:
            server.start(load_seconds=60)
            yield server
        finally:
            server.kill()

    return serving


@pytest.fixture(scope="session")
def start_gateway(tmp_path_factory: pytest.TempPathFactory) -> StartGateway:
    """Starts a gateway before a server, with more options."""

    def start(tree: Path, server: TritonServer, *options: str) -> AbstractContextManager[GatewayProcess]:
        return gateway(tree, server.ports.grpc, tmp_path_factory.mktemp("gateway") / "log", *options)

    return start


@pytest.fixture(scope="session")
def demo(demo_tree: Path, serve_tree: ServeTree, start_gateway: StartGateway) -> Iterator[GatewayProcess]:
    """A gateway before the demo model."""
    with serve_tree(demo_tree) as server, start_gateway(demo_tree, server) as started:
        yield started


@pytest.fixture(scope="session")
def source_tree(make_source: MakeSource) -> Path:
    return make_source(step_seconds=0.005, slots=4)


@pytest.fixture(scope="session")
def source_server(source_tree: Path, serve_tree: ServeTree) -> Iterator[TritonServer]:
    """A Triton with a token source of 4 slots, 5 ms a token."""
    with serve_tree(source_tree) as server:
        yield server


@pytest.fixture(scope="session")
def source(source_tree: Path, source_server: TritonServer, start_gateway: StartGateway) -> Iterator[GatewayProcess]:
    """A gateway before it, shared by the tests that only ask it."""
    with start_gateway(source_tree, source_server) as started:
        yield started
