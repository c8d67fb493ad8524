"""Local folders: read where they lie, and the choice of files that serve."""

import os
import shutil
from pathlib import Path

import pytest
from checkpoint_samples import checkpoint, index, safetensors, sharded, write
from heard import Heard
from hypothesis import given
from hypothesis import strategies as st

from engineroom.checkpoint.fetch import fetch
from engineroom.checkpoint.files import choose_small, choose_weights
from engineroom.checkpoint.local import check_serving_files
from engineroom.checkpoint.record import record_checkpoint
from engineroom.documents import FileRecord
from engineroom.errors import CheckpointError


def test_a_folder_is_recorded_and_not_copied(tmp_path: Path, heard: Heard) -> None:
    files = checkpoint()
    folder = write(
        tmp_path / "model", files | {"README.md": b"card", "pytorch_model.bin": b"x", "original/x.pth": b"x"}
    )
    before = sorted(folder.rglob("*"))

    fetched = fetch(str(folder), None, cache=tmp_path / "cache", progress=heard)

    assert (fetched.folder, fetched.record.source, fetched.record.revision) == (folder, str(folder), "local")
    assert fetched.record.architecture == "LlamaForCausalLM"
    assert [file.path for file in fetched.record.files] == sorted(files)
    assert fetched.hit is None
    assert sorted(folder.rglob("*")) == before
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    assert heard.advanced == sum(len(content) for content in files.values())


def test_a_folder_that_has_not_changed_is_not_hashed_again(tmp_path: Path, heard: Heard) -> None:
    folder = write(tmp_path / "model", checkpoint())
    first = fetch(str(folder), None, cache=tmp_path / "cache", progress=heard)
    heard.tasks.clear()

    second = fetch(str(folder), None, cache=tmp_path / "cache", progress=heard)

    assert second.hit == f"{folder} was hashed before and has not changed since"
    assert heard.said == [second.hit]
    assert second.record == first.record
    assert heard.tasks == {}


def test_a_change_with_the_old_size_and_time_is_seen(tmp_path: Path, heard: Heard) -> None:
    folder = write(tmp_path / "model", checkpoint())
    first = fetch(str(folder), None, cache=tmp_path / "cache", progress=heard)
    path = folder / "model.safetensors"
    state = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))

    second = fetch(str(folder), None, cache=tmp_path / "cache", progress=heard)

    assert second.hit is None
    assert second.record.digest != first.record.digest


def test_a_snapshot_of_links_to_blobs_outside_is_read(tmp_path: Path, heard: Heard) -> None:
    blobs = write(tmp_path / "blobs", checkpoint())
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(Path("../../blobs") / blob.name)

    fetched = fetch(str(snapshot), None, cache=tmp_path / "cache", progress=heard)

    assert fetched.folder == snapshot
    assert fetched.record.digest == fetch(str(blobs), None, cache=tmp_path / "cache", progress=heard).record.digest


def test_links_in_a_circle_do_not_matter(tmp_path: Path, heard: Heard) -> None:
    folder = write(tmp_path / "model", checkpoint())
    (folder / "self").symlink_to(folder)
    (folder / "loop.safetensors").symlink_to("loop.safetensors")
    assert fetch(str(folder), None, cache=tmp_path / "cache", progress=heard).hit is None


def test_links_to_nowhere_are_missing_files(tmp_path: Path, heard: Heard) -> None:
    folder = write(tmp_path / "model", checkpoint())
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("nowhere")
    with pytest.raises(CheckpointError, match=r"there is no tokenizer\.json"):
        fetch(str(folder), None, cache=tmp_path / "cache", progress=heard)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", None, "there is no config.json"),
        ("config.json", b"{", "config.json; not valid JSON"),
        ("config.json", b"\xff", "config.json; not valid JSON"),
        ("config.json", b"[" * 200_000, "config.json; not valid JSON"),
        ("tokenizer.json", None, "there is no tokenizer.json"),
        ("tokenizer.json", b"{}", "tokenizer.json; it has no `model`"),
        ("model.safetensors", None, "there are no safetensors weights"),
        ("model.safetensors", b"", "too short for a safetensors file"),
        ("model.safetensors", safetensors({"w": 8})[:-1], "its tensors end at byte"),
        ("model.safetensors", safetensors({}), "its safetensors files hold no tensors"),
        ("model.safetensors.index.json", index(w="../../etc/x.safetensors"), "which is not there"),
        ("model.safetensors.index.json", b"{}", "weight_map is missing"),
    ],
)
def test_each_broken_file_is_one_sentence(name: str, content: bytes | None, said: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", checkpoint())
    assert check_serving_files(folder).layers == 1
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)

    with pytest.raises(CheckpointError) as refused:
        check_serving_files(folder)

    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_weights_of_something_else_beside_the_model_are_left_alone(tmp_path: Path) -> None:
    others = {"consolidated.safetensors": safetensors({"w": 8}), "adapter_model.safetensors": safetensors({"lora": 8})}
    folder = write(tmp_path / "model", sharded() | others)
    (folder / "model.safetensors.index.json").unlink()

    assert check_serving_files(folder).layers == 1

    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="2 of 3 safetensors parts are there"):
        check_serving_files(folder)


def test_a_folder_that_vanishes_is_one_sentence(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", checkpoint())
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match="cannot read it"):
        check_serving_files(folder)


def test_pickles_are_refused_with_the_way_to_convert_them() -> None:
    names = {"config.json", "tokenizer.json", "pytorch_model.bin"}
    with pytest.raises(CheckpointError) as refused:
        choose_weights(names, None, where="hf://a/b")
    assert "runs whatever code is in it" in refused.value.found
    assert "safe_serialization=True" in refused.value.fix
    assert choose_weights(names | {"model.safetensors"}, None, where="") == ["model.safetensors"]


def test_the_record_is_in_order_and_keeps_no_digests_of_chunks(tmp_path: Path) -> None:
    folder = write(tmp_path, {"b": b"2", "a": b"1", "c/d": b"3", "checkpoint.json": b"{}", ".hidden": b""})
    record = record_checkpoint(folder, source="s", revision="r", architecture="A")
    assert [file.path for file in record.files] == ["a", "b", "c/d"]
    assert record.files[0] == FileRecord(path="a", size=1, sha256=record.files[0].sha256, chunks=[])
    some = record_checkpoint(folder, source="elsewhere", revision="x", architecture="A", paths=["b", "a"])
    assert [file.path for file in some.files] == ["a", "b"]
    (folder / "c" / "d").unlink()
    assert record_checkpoint(folder, source="s", revision="r", architecture="A").digest == some.digest


NAMES = st.sampled_from(
    ["config.json", "tokenizer.json", "model.safetensors", "model.safetensors.index.json", "a.safetensors", "x.bin",
     "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model-00001-of-99999.safetensors",
     "consolidated.safetensors", "../model.safetensors", "/etc/a.safetensors", "a\nb.safetensors", ".safetensors"]
)  # fmt: skip


@given(st.sets(NAMES | st.text(max_size=20)))
def test_any_listing_gives_sane_names_or_is_refused(names: set[str]) -> None:
    try:
        chosen = choose_small(names, where="w") + choose_weights(names, None, where="w")
    except CheckpointError:
        return
    assert chosen
    assert set(chosen) <= names
    assert not any("/" in name or "\n" in name or name.startswith(".") for name in chosen)
