"""A real Triton with a model of the tests' own, `echo`, which repeats the words of its prompt slowly."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engineroom.documents import FileRecord
from engineroom.engines.engine import EngineInputs, Requires
from engineroom.repository.record import FILE, MODEL_REPOSITORY, BuildRecord, ServedModel
from engineroom.serving.server import TritonServer
from engineroom.serving.tree import Program, find_program

REPOSITORY = Path(__file__).with_name("repository")

MakeRepository = Callable[..., Path]
MakeTree = Callable[..., Path]


@pytest.fixture(scope="session")
def cache() -> Path:
    """The user's own cache: the server's environment is made once per machine, not once per run."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("ENGINEROOM_CACHE") or Path(home, "engineroom"))


@pytest.fixture(scope="session")
def program(cache: Path) -> Program:
    return find_program(cache)


@pytest.fixture(scope="session")
def make_repository(tmp_path_factory: pytest.TempPathFactory) -> MakeRepository:
    """A copy of the model repository with other words in its config.pbtxt."""

    def make(changes: dict[str, str] | None = None, extra: str = "") -> Path:
        repository = tmp_path_factory.mktemp("models") / MODEL_REPOSITORY
        shutil.copytree(REPOSITORY, repository, ignore=shutil.ignore_patterns("__pycache__"))
        config = repository / "echo" / "config.pbtxt"
        text = config.read_text()
        for old, new in (changes or {}).items():
            assert old in text
            text = text.replace(old, new)
        config.write_text(text + extra)
        return repository

    return make


@pytest.fixture(scope="session")
def record() -> BuildRecord:
    inputs = EngineInputs(
        checkpoint="0" * 64,
        runtime="ctranslate2",
        versions={"ctranslate2": "4.8.5"},
        precision="float32",
        kv="float32",
        tp=1,
        pp=1,
        limits={},
    )
    return BuildRecord(
        name="echo",
        key=inputs.key,
        inputs=inputs,
        requires=Requires(),
        model=ServedModel(client_model="echo", max_input_len=1000, max_seq_len=2000, eos_ids=[]),
        files=[FileRecord(path="engine/none", size=0, sha256=hashlib.sha256(b"").hexdigest())],
    )


@pytest.fixture(scope="session")
def make_tree(make_repository: MakeRepository, record: BuildRecord) -> MakeTree:
    """A whole tree around such a repository."""

    def make(changes: dict[str, str] | None = None, extra: str = "") -> Path:
        tree = make_repository(changes, extra).parent
        record.write(tree / FILE)
        return tree

    return make


@pytest.fixture(scope="session")
def echo(program: Program, make_repository: MakeRepository) -> Iterator[TritonServer]:
    """A running server, shared by the tests that only ask it."""
    server = TritonServer(make_repository(), "echo", program)
    server.start(load_seconds=60)
    yield server
    server.kill()
