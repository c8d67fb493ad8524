"""The models' code runs where engineroom is not installed."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engineroom.serving.environment import Environment

MODEL_REPO = Path(__file__).resolve().parents[3] / "model-repo"

#: What Triton's Python and the engines' images have, besides the standard library.
THERE = {"numpy", "triton_python_backend_utils", "tokenizers", "ctranslate2", "tensorrt_llm"}


def imported(source: str) -> Iterator[str]:
    """Top-level names of all modules that ``source`` imports, wherever it does, by statement or by call."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            yield from (
                argument.value.split(".")[0]
                for argument in node.args
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            )


@pytest.mark.parametrize("path", sorted(MODEL_REPO.rglob("*.py")), ids=lambda path: str(path.relative_to(MODEL_REPO)))
def test_model_code_imports_only_what_is_there(path: Path) -> None:
    siblings = {each.stem for each in [*path.parent.glob("*.py"), MODEL_REPO / "text.py"]}

    foreign = set(imported(path.read_text(encoding="utf-8"))) - siblings - sys.stdlib_module_names - THERE

    assert foreign == set()


def test_every_model_is_looked_at() -> None:
    models = {path.parent.parent.name for path in MODEL_REPO.rglob("model.py")}

    assert models == {"preprocessing", "tensorrt_llm", "postprocessing", "tensorrt_llm_bls"}


@pytest.mark.parametrize(
    "source",
    [
        "import engineroom",
        "def late():\n    from engineroom.errors import InputError",
        "import importlib\nimportlib.import_module('engineroom.errors')",
        "__import__('engineroom')",
    ],
)
def test_an_import_of_engineroom_would_be_found(source: str) -> None:
    assert "engineroom" in set(imported(source))


@pytest.mark.local
def test_triton_runs_the_models_where_engineroom_cannot_be_imported(environment: Environment) -> None:
    def imports(*names: str) -> subprocess.CompletedProcess[str]:
        # Not isolated (-I), and without our PYTHONPATH: as the server's stub is started.
        code = "".join(f"import {name}\n" for name in names)
        return subprocess.run(
            [environment.bin / "python", "-c", code], capture_output=True, text=True, check=False, cwd="/", env={}
        )

    refused = imports("engineroom")

    assert "No module named 'engineroom'" in refused.stderr
    assert imports("numpy", "tokenizers", "ctranslate2").returncode == 0
