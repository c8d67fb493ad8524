"""Trees with valid build records, made of random bytes."""

import random
from collections.abc import Callable
from pathlib import Path

from engineroom.documents import list_files, record_file
from engineroom.engines.engine import EngineInputs, Requires
from engineroom.repository.record import FILE, BuildRecord, ServedModel

MakeTree = Callable[..., Path]

INPUTS = EngineInputs(
    checkpoint="0" * 64,
    runtime="ctranslate2",
    versions={"ctranslate2": "4.8.5"},
    precision="int8",
    kv="int8",
    tp=1,
    pp=1,
    limits={},
)


def write_record(tree: Path, *, name: str = "demo", requires: Requires | None = None) -> BuildRecord:
    """Describe what lies in ``tree``, as `engineroom assemble` does."""
    (tree / FILE).unlink(missing_ok=True)
    record = BuildRecord(
        name=name,
        key=INPUTS.key,
        inputs=INPUTS,
        requires=requires or Requires(),
        model=ServedModel(client_model="tensorrt_llm", max_input_len=512, max_seq_len=1024, eos_ids=[2]),
        files=[record_file(tree, path) for path in list_files(tree)],
        provenance={"created": "2026-11-23T00:00:00Z"},
    )
    record.write(tree / FILE)
    return record


def fill(path: Path, size: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(random.Random(seed).randbytes(size))


def fill_tree(tree: Path, *, seed: int = 1, megabytes: float = 0.5) -> Path:
    """A tree of a few files: one long, one empty, two equal ones, one with a name that is not ASCII."""
    fill(tree / "engine" / "model.bin", int(megabytes * (1 << 20)), seed)
    fill(tree / "engine" / "vocabulary.json", 1000, 7)
    fill(tree / "tokenizer" / "tokenizer.json", 1000, 7)
    fill(tree / "model_repository" / "tensorrt_llm" / "1" / "model.py", 300, 8)
    fill(tree / "model_repository" / "tensorrt_llm" / "config.pbtxt", 0, 9)
    fill(tree / "tokenizer" / "größe 字.txt", 20, 10)
    write_record(tree)
    return tree


def contents_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path: (folder / path).read_bytes() for path in list_files(folder)}
