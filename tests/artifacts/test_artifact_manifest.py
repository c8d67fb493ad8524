import json
from pathlib import Path
from typing import Any

import pytest
from artifact_trees import MakeTree
from hypothesis import given
from hypothesis import strategies as st

from engineroom.artifacts.manifest import (
    MAX_BYTES,
    PART,
    TITLE,
    Manifest,
    Part,
    StoredFile,
    contents,
    make_manifest,
    path_problem,
)
from engineroom.artifacts.parallel import Stop
from engineroom.artifacts.publish import read_record
from engineroom.artifacts.source import cut_file
from engineroom.documents import FileRecord
from engineroom.errors import ArtifactCorruptError
from engineroom.repository.record import BuildRecord


def made(tree: Path) -> tuple[Manifest, BuildRecord]:
    record, data = read_record(tree)
    return make_manifest(data, [cut_file(tree, file, None, Stop()) for file in record.files]), record


def changed(manifest: Manifest, change: Any) -> Manifest:
    value = json.loads(manifest.to_json())
    change(value)
    return Manifest.parse(json.dumps(value).encode(), where="m")


def test_the_manifest_is_an_oci_image_manifest_with_one_titled_layer_per_file(make_tree: MakeTree) -> None:
    manifest, record = made(make_tree())

    value = json.loads(manifest.to_json())

    assert value["schemaVersion"] == 2
    assert value["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert value["config"]["mediaType"] == "application/vnd.engineroom.build.v1+json"
    assert [layer["annotations"][TITLE] for layer in value["layers"]] == sorted(file.path for file in record.files)
    assert "annotations" not in value["config"]


def test_the_same_files_in_any_order_give_the_same_bytes(make_tree: MakeTree) -> None:
    record, data = read_record(make_tree())
    files = [StoredFile(file, (Part(file.sha256, 0, file.size),)) for file in record.files]

    assert make_manifest(data, files).to_json() == make_manifest(data, files[::-1]).to_json()


@pytest.mark.usefixtures("small_chunks")
def test_a_file_above_the_limit_becomes_ordered_parts_that_add_up(make_tree: MakeTree) -> None:
    manifest, record = made(make_tree(megabytes=0.6))

    parts = [layer for layer in manifest.layers if PART in layer.annotations]
    stored = {file.record.path: file for file in contents(manifest, record, where="m")}["engine/model.bin"]

    assert [layer.annotations[PART] for layer in parts] == ["1/3", "2/3", "3/3"]
    # `oras pull` refuses two layers of one title.
    assert [layer.annotations[TITLE] for layer in parts] == [f"engine/model.bin.part-{n}-of-3" for n in (1, 2, 3)]
    assert [part.offset for part in stored.parts] == [0, 256 << 10, 512 << 10]
    assert stored.part_at((256 << 10) - 1) == stored.parts[0]
    assert stored.part_at(256 << 10) == stored.parts[1]


def test_what_was_written_reads_back_and_agrees_with_the_build_record(make_tree: MakeTree) -> None:
    manifest, record = made(make_tree())

    again = Manifest.parse(manifest.to_json(), where="m")

    assert again == manifest
    assert {file.record.path for file in contents(again, record, where="m")} == {file.path for file in record.files}


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda m: m["layers"].pop(), "no layer for"),
        (lambda m: m["layers"].append(m["layers"][0] | {"annotations": {TITLE: "more"}}), "does not know more"),
        (lambda m: m["layers"].append(m["layers"][0]), "do not follow each other"),
        (lambda m: m["layers"][0]["annotations"].update({TITLE: "../out.part-1-of-2"}), "empty part"),
        (lambda m: m["layers"][0]["annotations"].update({TITLE: "/etc/passwd.part-1-of-2"}), "is absolute"),
        (lambda m: m["layers"][-1]["annotations"].pop(TITLE), "is empty"),
        (lambda m: m["layers"][0]["annotations"].pop(TITLE), "is marked as part '1/2'"),
        (lambda m: m["layers"][0]["annotations"].update({PART: "2/2"}), "is marked as part '2/2'"),
        (lambda m: m["layers"][0]["annotations"].update({PART: "one"}), "is marked as part 'one'"),
        (lambda m: m["layers"].insert(0, m["layers"].pop(1)), "is marked as part"),
        (lambda m: m["layers"][0]["annotations"].pop(PART), "does not know engine/model.bin.part-1-of-2"),
        (lambda m: m["layers"][0].update(size=1), "no whole number of chunks"),
        (lambda m: m["layers"][0].update(size=64 << 10), "different digests"),
        (lambda m: m["layers"][-1].update(digest="sha256:" + "0" * 64), "different digests"),
        (lambda m: m["layers"][-1].update(size=7), "bytes in the manifest"),
    ],
)
def test_refuses_a_manifest_that_disagrees_with_its_build_record(make_tree: MakeTree, change: Any, found: str) -> None:
    manifest, record = made(make_tree())
    assert contents(changed(manifest, lambda _: None), record, where="m")

    with pytest.raises(ArtifactCorruptError, match=found):
        contents(changed(manifest, change), record, where="m")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"schemaVersion": 2',
        b'{"schemaVersion":1,"layers":[]}',
        b"[" * 100_000,
        b" " * (MAX_BYTES + 1),
    ],
)
def test_refuses_what_is_no_manifest(data: bytes) -> None:
    with pytest.raises(ArtifactCorruptError):
        Manifest.parse(data, where="m")


@pytest.mark.parametrize("key", ["subject", "urls", "data"])
def test_refuses_keys_that_are_not_ours(make_tree: MakeTree, key: str) -> None:
    with pytest.raises(ArtifactCorruptError, match="unknown key"):
        changed(made(make_tree())[0], lambda value: value.update({key: {}}))


some_json = st.recursive(st.none() | st.text(max_size=5), st.lists, max_leaves=8)


@given(st.binary(max_size=300) | some_json.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_refused_without_a_traceback(data: bytes) -> None:
    with pytest.raises(ArtifactCorruptError):
        Manifest.parse(data, where="m")


@given(st.text(max_size=40) | st.text("./a\\", max_size=12))
def test_a_path_that_passes_stays_inside_the_tree(path: str) -> None:
    if not path_problem(path):
        inside = Path("/tree")
        assert (inside / path).parts[:2] == inside.parts
        assert ".." not in Path(path).parts
        assert Path(path).as_posix() == path


@pytest.mark.parametrize(
    ("bad", "good"),
    [
        ("a/../b", "a/..b"),
        ("/a", "a"),
        ("a//b", "a/b"),
        ("a/", "a"),
        ("./a", ".a"),
        ("a\\b", "a b"),
        ("a\0b", "ab"),
        ("a\nb", "a b"),
        ("\ud800", "字"),
        ("x" * 256, "x" * 255),
        ("build-record.json", "engine/build-record.json"),
    ],
)
def test_refuses_a_path_and_takes_its_nearest_neighbour(bad: str, good: str) -> None:
    assert path_problem(bad)
    assert not path_problem(good)


def test_refuses_a_file_that_is_also_a_folder_and_a_file_twice(make_tree: MakeTree) -> None:
    manifest, record = made(make_tree())
    empty = next(file for file in record.files if file.size == 0)

    for path, found in [("engine", "file and a folder"), ("engine/model.bin", "listed twice")]:
        other = FileRecord(path=path, size=0, sha256=empty.sha256, chunks=empty.chunks)
        with pytest.raises(ArtifactCorruptError, match=found):
            contents(manifest, record.model_copy(update={"files": [*record.files, other]}), where="m")


def test_refuses_a_build_record_without_its_chunk_digests(make_tree: MakeTree) -> None:
    manifest, record = made(make_tree())
    bare = [file.model_copy(update={"chunks": []}) for file in record.files]

    with pytest.raises(ArtifactCorruptError, match="0 chunk digests"):
        contents(manifest, record.model_copy(update={"files": bare}), where="m")
