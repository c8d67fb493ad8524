"""A tree is whole, says what is in it, and is the same each time it is put together."""

import hashlib
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineroom.documents import list_files
from engineroom.errors import ArtifactCorruptError, CheckpointError, EngineroomError, InputError
from engineroom.gpus import Runtime
from engineroom.repository import templates, tokenizer_files
from engineroom.repository.record import FILE, BuildRecord

ONE_MODEL = {"tensorrt_llm/config.pbtxt", "tensorrt_llm/1/model.py", "tensorrt_llm/1/text.py"}
FIVE_MODELS = {
    *(
        f"{name}/config.pbtxt"
        for name in ("preprocessing", "tensorrt_llm", "postprocessing", "ensemble", "tensorrt_llm_bls")
    ),
    *(
        f"{name}/1/{file}"
        for name in ("preprocessing", "postprocessing", "tensorrt_llm_bls")
        for file in ("model.py", "text.py")
    ),
    "ensemble/1/README",
    "tensorrt_llm/1/README",
}


def bytes_of(tree: Path) -> dict[str, bytes]:
    return {path: (tree / path).read_bytes() for path in list_files(tree)}


@pytest.mark.parametrize(("runtime", "models"), [("ctranslate2", ONE_MODEL), ("tensorrt", FIVE_MODELS)])
def test_the_tree_holds_what_its_record_says(
    make_inputs: Any, tmp_path: Path, runtime: Runtime, models: set[str]
) -> None:
    tree = tmp_path / "work" / "repository"
    record = make_inputs(runtime).assemble(tree)

    found = bytes_of(tree)
    written = BuildRecord.parse(found.pop(FILE), where=FILE)
    assert written == record
    assert {file.path: (file.size, file.sha256) for file in record.files} == {
        path: (len(content), hashlib.sha256(content).hexdigest()) for path, content in found.items()
    }
    assert all(file.chunks for file in record.files)
    assert {"engine/model.bin", "engine/deep/part.bin", "tokenizer/tokenizer.json", "preflight.py"} <= found.keys()
    assert "engine/engine.json" not in found
    repository = {path.removeprefix("model_repository/") for path in found if path.startswith("model_repository/")}
    assert models <= repository
    # Nothing else stands beside the tree, and no link leads out of it.
    assert sorted(path.name for path in tree.parent.iterdir()) == [".repository.assemble-lock", "repository"]
    assert not any((tree / path).is_symlink() for path in found)


def test_the_record_tells_clients_what_they_need(make_inputs: Any, tmp_path: Path) -> None:
    record = make_inputs("tensorrt").assemble(tmp_path / "tree")

    assert record.name == "tiny"
    assert record.model.client_model == "tensorrt_llm_bls"
    assert record.model.max_input_len == 100
    assert record.model.max_seq_len == 128
    assert record.model.eos_ids == [0, 5]
    assert record.model.chat_template == "{{ messages }}"
    assert record.model.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert record.provenance["revision"] == "c0ffee"


def test_equal_inputs_give_equal_bytes(make_inputs: Any, tmp_path: Path) -> None:
    inputs = make_inputs("tensorrt")
    inputs.assemble(tmp_path / "one")
    inputs.assemble(tmp_path / "two")

    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")


def test_engine_files_are_links_so_that_100_gb_take_no_time(make_inputs: Any, tmp_path: Path) -> None:
    inputs = make_inputs()
    inputs.assemble(tmp_path / "tree")

    assert (tmp_path / "tree/engine/model.bin").samefile(inputs.engine_folder / "model.bin")


def test_an_engine_reached_through_links_becomes_files(make_inputs: Any, tmp_path: Path) -> None:
    inputs = make_inputs()
    (inputs.engine_folder / "model.bin").rename(tmp_path / "elsewhere.bin")
    (inputs.engine_folder / "model.bin").symlink_to(tmp_path / "elsewhere.bin")

    inputs.assemble(tmp_path / "tree")

    assert not (tmp_path / "tree/engine/model.bin").is_symlink()
    assert (tmp_path / "tree/engine/model.bin").read_bytes() == b"weights" * 1000


def test_where_links_are_impossible_engine_files_are_copied(
    make_inputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    inputs = make_inputs()
    inputs.assemble(tmp_path / "tree")

    assert not (tmp_path / "tree/engine/model.bin").samefile(inputs.engine_folder / "model.bin")
    assert (tmp_path / "tree/engine/model.bin").read_bytes() == b"weights" * 1000


def test_a_tree_is_replaced_and_a_failure_leaves_it_as_it_was(make_inputs: Any, tmp_path: Path) -> None:
    tree, inputs = tmp_path / "tree", make_inputs()
    inputs.assemble(tree)
    before = bytes_of(tree)
    (inputs.engine_folder / "model.bin").unlink()

    with pytest.raises(ArtifactCorruptError, match="no such file"):
        inputs.assemble(tree)

    assert bytes_of(tree) == before
    changed = make_inputs("tensorrt")
    changed.assemble(tree)
    assert (tree / "model_repository/ensemble/config.pbtxt").is_file()
    assert not (tree / "model_repository/tensorrt_llm/1/model.py").exists()


def test_a_killed_assembly_leaves_a_whole_tree(make_inputs: Any, tmp_path: Path) -> None:
    tree, inputs, chance = tmp_path / "tree", make_inputs(), random.Random(3)
    inputs.assemble(tree)
    before = bytes_of(tree)
    for _ in range(10):
        child = os.fork()
        if child == 0:
            while True:  # equal inputs, so that the old tree and the new one are the same bytes
                inputs.assemble(tree)
        time.sleep(chance.uniform(0, 0.15))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert bytes_of(tree) == before

    inputs.assemble(tree)
    assert sorted(path.name for path in tmp_path.iterdir() if "assemble" in path.name) == [".tree.assemble-lock"]


def test_an_engine_of_another_size_is_refused(make_inputs: Any, tmp_path: Path) -> None:
    inputs = make_inputs()
    (inputs.engine_folder / "model.bin").write_bytes(b"short")

    with pytest.raises(ArtifactCorruptError) as refusal:
        inputs.assemble(tmp_path / "tree")

    assert "5 bytes" in refusal.value.found
    assert not (tmp_path / "tree").exists()


def test_an_engine_path_that_climbs_out_is_refused(make_inputs: Any, tmp_path: Path) -> None:
    inputs = make_inputs()
    (tmp_path / "stranger").write_bytes(b"x")
    file = inputs.engine.files[0].model_copy(update={"path": "../../stranger", "size": 1})
    inputs.engine = inputs.engine.model_copy(update={"files": [file]})

    with pytest.raises(ArtifactCorruptError, match="leaves"):
        inputs.assemble(tmp_path / "tree")


def test_a_folder_of_somebody_else_is_not_replaced(make_inputs: Any, tmp_path: Path) -> None:
    inputs, tree = make_inputs(), tmp_path / "tree"
    tree.mkdir()
    (tree / "letters.txt").write_text("dear")

    with pytest.raises(InputError, match="holds no tree"):
        inputs.assemble(tree)

    assert (tree / "letters.txt").read_text() == "dear"
    (tree / "letters.txt").unlink()
    inputs.assemble(tree)
    assert (tree / FILE).is_file()


def test_a_checkpoint_without_tokenizer_json_is_refused_with_a_way_out(make_inputs: Any, tmp_path: Path) -> None:
    inputs = make_inputs()
    (inputs.checkpoint / "tokenizer.json").unlink()

    with pytest.raises(CheckpointError) as refusal:
        inputs.assemble(tmp_path / "tree")

    assert "save_pretrained" in refusal.value.fix


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"generation_config.json": {"eos_token_id": 3}, "config.json": {"eos_token_id": 4}}, [3]),
        ({"generation_config.json": {}, "config.json": {"eos_token_id": [4, 9, 4]}}, [4, 9]),
        ({"config.json": {}}, []),
    ],
)
def test_end_ids_come_from_the_first_file_that_names_them(
    tmp_path: Path, files: dict[str, object], expected: list[int]
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))

    assert tokenizer_files.eos_ids(tmp_path) == expected


@pytest.mark.parametrize("value", ["2", [2, "3"], True, -1, 1 << 40, {"a": 1}, 1.5])
def test_end_ids_that_are_no_ids_are_refused(tmp_path: Path, value: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": value}))

    with pytest.raises(CheckpointError, match="eos_token_id"):
        tokenizer_files.eos_ids(tmp_path)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain", "plain"),
        ([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}], "d"),
        ([{"name": "other", "template": "o"}], "o"),
        ([], None),
        (None, None),
    ],
)
def test_a_chat_template_is_a_text_or_a_list_of_named_ones(tmp_path: Path, value: object, expected: str | None) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))

    assert tokenizer_files.chat_template(tmp_path) == expected


def test_a_chat_template_file_goes_before_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "old"}))
    (tmp_path / "chat_template.jinja").write_text("new")

    assert tokenizer_files.chat_template(tmp_path) == "new"


@given(
    content=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["eos_token_id", "chat_template", "bos_token", "content", "name", "template"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_strange_tokenizer_files_are_read_or_refused_never_a_bug(
    content: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("strange")
    for name in ("generation_config.json", "tokenizer_config.json"):
        (folder / name).write_text(json.dumps(content))
    for read in (tokenizer_files.eos_ids, tokenizer_files.chat_template, tokenizer_files.special_tokens):
        try:
            read(folder)
        except EngineroomError as refusal:
            assert refusal.where


def test_the_templates_are_found_in_a_checkout(checkout: Path) -> None:
    assert templates.template_folder() == checkout / "model-repo"
