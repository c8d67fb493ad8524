"""A gateway before the demo model, as the gateway's own tests start it."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engineroom.deploy.pipeline import Pipeline
from engineroom.deploy.work import Work
from engineroom.progress import QUIET
from engineroom.recipe import Recipe
from engineroom.serving.environment import ensure_environment
from engineroom.serving.server import TritonServer
from engineroom.serving.tree import server_tree

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "gateway"))

from gateway_process import gateway


@pytest.fixture(scope="session")
def demo_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its URL."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    cache = Path(os.environ.get("ENGINEROOM_CACHE") or Path(home, "engineroom"))
    recipe = Recipe.model_validate(
        {"model": {"source": "demo://smollm2"}, "gpu": "cpu", "runtime": "ctranslate2", "precision": "int8"}
    )
    work = tmp_path_factory.mktemp("bench")
    stages = Pipeline(recipe, Work(work / "work"), cache, QUIET)
    stages.fetch()
    stages.plan()
    stages.build()
    stages.assemble()
    with TritonServer.of_tree(stages.work.tree, server_tree(ensure_environment(cache))) as server:
        server.start()
        with gateway(stages.work.tree, server.ports.grpc, work / "log") as started:
            yield started.url
