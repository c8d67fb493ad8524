"""The JSON files between the stages: canonical, strict, and never half there."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from engineroom import documents
from engineroom.documents import CHUNK_BYTES, Document, list_files, record_file
from engineroom.engines.engine import Engine, EngineInputs
from engineroom.errors import DocumentError
from engineroom.planning.plan import Plan
from engineroom.repository.record import BuildRecord

INPUTS = EngineInputs(
    checkpoint="0" * 64,
    runtime="tensorrt",
    versions={"trtllm": "1.2.1"},
    precision="fp8",
    kv="fp8",
    tp=1,
    pp=1,
    limits={},
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)


def test_an_engine_key_is_the_digest_of_the_canonical_inputs() -> None:
    spelled = json.dumps(json.loads(INPUTS.to_json()), sort_keys=True, separators=(",", ":"))

    assert hashlib.sha256(spelled.encode()).hexdigest() == INPUTS.key


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"precision": "bfloat16"}, "precision: fp8 → bfloat16"),
        ({"versions": {"trtllm": "1.2.0"}}, "versions.trtllm: 1.2.1 → 1.2.0"),
        ({"gpu": {"sm": "90", "product": "H100"}}, "gpu.product: none → H100"),
        ({"limits": {"max_batch_size": 8}}, "limits.max_batch_size: none → 8"),
    ],
)
def test_one_changed_input_changes_the_key_and_is_named(change: dict[str, object], said: str) -> None:
    other = INPUTS.model_copy(update=change)

    assert other.key != INPUTS.key
    assert said in other.differences(INPUTS)


@given(data=JSON, kind=st.sampled_from([EngineInputs, Engine, Plan, BuildRecord]))
def test_any_json_is_a_document_or_refused(data: object, kind: type[Document]) -> None:
    with pytest.raises(DocumentError):
        kind.parse(json.dumps(data).encode(), where="x")


@given(data=st.binary(max_size=64))
def test_any_bytes_are_a_document_or_refused(data: bytes) -> None:
    with pytest.raises(DocumentError):
        EngineInputs.parse(data, where="x")


def test_a_document_of_another_schema_or_with_a_further_key_is_refused() -> None:
    data = json.loads(INPUTS.to_json())

    assert EngineInputs.parse(json.dumps(data).encode(), where="x") == INPUTS
    for change in ({"schema": 2}, {"further": 1}):
        with pytest.raises(DocumentError):
            EngineInputs.parse(json.dumps(data | change).encode(), where="x")


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1])
def test_chunks_are_the_digests_of_the_pieces(size: int, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(min(size, 4096)).ljust(size, b"x")
    (tmp_path / "f").write_bytes(data)

    record = record_file(tmp_path, "f")

    assert (record.size, record.sha256) == (size, hashlib.sha256(data).hexdigest())
    pieces = [data[start : start + CHUNK_BYTES] for start in range(0, max(size, 1), CHUNK_BYTES)]
    assert record.chunks == [hashlib.sha256(piece).hexdigest() for piece in pieces]


def test_a_killed_write_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "doc.json"
    writer = (
        "import sys; from pathlib import Path; from engineroom.documents import write_atomic\n"
        "while True:\n  for letter in b'ab': write_atomic(Path(sys.argv[1]), bytes([letter]) * 3_000_000)"
    )
    chance = random.Random(5)
    for _ in range(8):
        process = subprocess.Popen([sys.executable, "-c", writer, str(path)])
        while not path.exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.2))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

        data = path.read_bytes()
        assert len(data) == 3_000_000
        assert len(set(data)) == 1


def test_equal_documents_are_equal_bytes_whatever_the_order_of_keys() -> None:
    assert (
        documents.canonical({"b": 1, "a": "é"}) == documents.canonical({"a": "é", "b": 1}) == '{"a":"é","b":1}'.encode()
    )


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(_VALUES)
def test_every_document_is_spelled_as_rfc_8785_says(value: Any) -> None:
    assert documents.canonical(value) == rfc8785.dumps(value)


@pytest.mark.parametrize("value", [2**53, -(2**53), "\ud800", float("nan"), {1: 2}])
def test_refuses_what_canonical_json_cannot_say(value: object) -> None:
    with pytest.raises(rfc8785.CanonicalizationError):
        documents.canonical({"of": [value]})


def test_lists_the_files_behind_links_and_nothing_that_is_no_file(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for path in (root / "b" / "c", root / "a", elsewhere / "d"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (root / "folder").symlink_to(elsewhere)
    (root / "file").symlink_to(elsewhere / "d")
    (root / "broken").symlink_to(elsewhere / "nothing")
    os.mkfifo(root / "pipe")

    assert list_files(root) == ["a", "b/c", "file", "folder/d"]
    assert list_files(tmp_path / "missing") == []
