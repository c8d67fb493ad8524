import hashlib
from pathlib import Path

import pytest
from artifact_trees import MakeTree, fill, write_record

from engineroom import documents
from engineroom.artifacts.publish import publish
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.store import CollectableStore
from engineroom.artifacts.stores import open_store
from engineroom.documents import list_files, record_file
from engineroom.errors import (
    ArtifactCorruptError,
    ArtifactExistsError,
    BadReferenceError,
    DocumentError,
    InputError,
    StoreError,
)


def blobs(reference: Reference) -> dict[str, bytes]:
    folder = Path(reference.location, "blobs", "sha256")
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def test_every_blob_lies_under_the_digest_of_its_bytes(make_tree: MakeTree, reference: Reference) -> None:
    tree = make_tree()

    done = publish(tree, reference, store=open_store(reference))

    stored = blobs(reference)
    assert all(hashlib.sha256(data).hexdigest() == name for name, data in stored.items())
    # 6 files, of which two are equal, the build record and the manifest
    assert done.uploaded_blobs == len(stored) == 7
    assert done.uploaded_bytes == sum(len(data) for data in stored.values())
    assert (tree / "build-record.json").read_bytes() in stored.values()


def test_the_tag_and_the_key_tag_name_the_manifest(make_tree: MakeTree, reference: Reference) -> None:
    store = open_store(reference)

    done = publish(make_tree(), reference, store=store)

    assert store.tags("demo") == sorted(["v1", done.key_tag])
    for tag in store.tags("demo"):
        state = store.read_tag("demo", tag)
        assert state is not None
        assert state.pointer.digest == done.digest


def test_publishing_again_sends_nothing_and_says_so(make_tree: MakeTree, reference: Reference) -> None:
    tree, store = make_tree(), open_store(reference)
    first = publish(tree, reference, store=store)

    again = publish(tree, reference, store=store)

    assert again.digest == first.digest
    assert again.already_published
    assert again.uploaded_bytes == 0
    assert again.skipped_bytes == first.uploaded_bytes


def test_a_changed_config_sends_kilobytes_never_the_engine_again(make_tree: MakeTree, reference: Reference) -> None:
    tree, store = make_tree(), open_store(reference)
    publish(tree, reference, store=store)
    fill(tree / "model_repository" / "tensorrt_llm" / "config.pbtxt", 400, 3)
    write_record(tree)

    done = publish(tree, Reference.parse(f"{reference.root}/demo:v2"), store=store)

    assert done.uploaded_blobs == 3
    assert done.uploaded_bytes < 10_000


def test_refuses_to_let_a_tag_name_something_else_but_moves_the_key_tag(
    make_tree: MakeTree, reference: Reference
) -> None:
    store = open_store(reference)
    first = publish(make_tree("first"), reference, store=store)
    other = make_tree("other", seed=2)

    with pytest.raises(ArtifactExistsError, match=first.digest):
        publish(other, reference, store=store)

    state = store.read_tag("demo", first.key_tag)
    assert state is not None
    assert state.pointer.digest == first.digest, "a refused publication moves nothing"
    second = publish(other, Reference.parse(f"{reference.root}/demo:v2"), store=store)
    state = store.read_tag("demo", first.key_tag)
    assert state is not None
    assert state.pointer.digest == second.digest


def test_without_a_tag_only_the_key_tag_is_set(make_tree: MakeTree, reference: Reference) -> None:
    store = open_store(reference)

    done = publish(make_tree(), Reference.parse(f"{reference.root}/demo"), store=store)

    assert store.tags("demo") == [done.key_tag]


def test_a_recipe_tag_moves(make_tree: MakeTree, reference: Reference) -> None:
    store = open_store(reference)
    place = Reference.parse(f"{reference.root}/demo:recipe-1234")
    publish(make_tree("first"), place, store=store)

    second = publish(make_tree("other", seed=2), place, store=store)

    state = store.read_tag("demo", "recipe-1234")
    assert state is not None
    assert state.pointer.digest == second.digest


@pytest.mark.parametrize("ending", [":key-1234", ":v1@sha256:" + "0" * 64])
def test_refuses_a_tag_that_publishing_decides_itself(make_tree: MakeTree, reference: Reference, ending: str) -> None:
    with pytest.raises(BadReferenceError):
        publish(make_tree(), Reference.parse(f"{reference.root}/demo{ending}"), store=open_store(reference))


def test_a_dry_run_says_what_it_would_send_and_writes_nothing(make_tree: MakeTree, reference: Reference) -> None:
    tree, store = make_tree(), open_store(reference)

    dry = publish(tree, reference, store=store, dry_run=True)

    assert not Path(reference.location).exists()
    assert not dry.already_published
    done = publish(tree, reference, store=store)
    assert (dry.digest, dry.uploaded_bytes, dry.uploaded_blobs) == (
        done.digest,
        done.uploaded_bytes,
        done.uploaded_blobs,
    )


@pytest.mark.usefixtures("small_chunks")
def test_aborts_on_a_file_that_changed_since_it_was_assembled(make_tree: MakeTree, reference: Reference) -> None:
    tree = make_tree(megabytes=0.2)
    model = tree / "engine" / "model.bin"
    data = bytearray(model.read_bytes())
    data[70_000] ^= 1  # in the second chunk of 64 KiB
    model.write_bytes(data)

    with pytest.raises(ArtifactCorruptError) as refusal:
        publish(tree, reference, store=open_store(reference))

    assert refusal.value.where == "engine/model.bin, chunk 2 of 4"
    stored = blobs(reference)
    assert all(hashlib.sha256(found).hexdigest() == name for name, found in stored.items())
    assert not list(Path(reference.location).glob("refs/*/tags/*"))


@pytest.mark.usefixtures("small_chunks")
def test_aborts_on_a_changed_part_of_a_long_file(make_tree: MakeTree, reference: Reference) -> None:
    tree = make_tree(megabytes=0.6)
    with (tree / "engine" / "model.bin").open("r+b") as file:
        file.seek(300 << 10)
        file.write(b"\0\0\0\0")

    with pytest.raises(ArtifactCorruptError, match="not those of the build record") as refusal:
        publish(tree, reference, store=open_store(reference))

    assert refusal.value.where == "engine/model.bin, chunk 5 of 10"


def test_aborts_on_a_file_that_became_shorter(make_tree: MakeTree, reference: Reference) -> None:
    tree = make_tree()
    (tree / "tokenizer" / "tokenizer.json").write_bytes(b"{}")
    (tree / "engine" / "vocabulary.json").write_bytes(b"{}")

    with pytest.raises(ArtifactCorruptError, match="2 bytes, but the build record says 1000"):
        publish(tree, reference, store=open_store(reference))


def test_refuses_a_tree_with_files_too_few_or_too_many(make_tree: MakeTree, reference: Reference) -> None:
    tree, store = make_tree(), open_store(reference)
    extra = tree / "notes.txt"
    extra.write_text("mine")
    with pytest.raises(InputError, match="does not list it"):
        publish(tree, reference, store=store)
    extra.unlink()
    (tree / "tokenizer" / "tokenizer.json").rename(extra)
    with pytest.raises(ArtifactCorruptError, match="is not there"):
        publish(tree, reference, store=store)
    extra.rename(tree / "tokenizer" / "tokenizer.json")
    (tree / "model_repository" / "__pycache__").mkdir()
    (tree / "model_repository" / "__pycache__" / "model.cpython-311.pyc").write_bytes(b"cache")
    publish(tree, reference, store=store)


def test_refuses_a_folder_that_was_not_assembled(tmp_path: Path, reference: Reference) -> None:
    with pytest.raises(DocumentError) as refusal:
        publish(tmp_path, reference, store=open_store(reference))

    assert "engineroom assemble" in refusal.value.fix


def test_a_store_that_cannot_be_written_is_one_sentence(make_tree: MakeTree, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file, no folder")
    reference = Reference.parse(f"file://{tmp_path}/store/demo:v1")

    with pytest.raises(StoreError) as refusal:
        publish(make_tree(), reference, store=open_store(reference))

    assert "check that the folder" in refusal.value.fix


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 131_072, 200_000])
def test_a_file_is_recorded_whole_and_by_chunk(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "CHUNK_BYTES", 65_536)
    fill(tmp_path / "file", size, 1)
    data = (tmp_path / "file").read_bytes()

    record = record_file(tmp_path, "file")

    pieces = [data[start : start + 65_536] for start in range(0, max(size, 1), 65_536)]
    assert record.size == size
    assert record.sha256 == hashlib.sha256(data).hexdigest()
    assert record.chunks == [hashlib.sha256(piece).hexdigest() for piece in pieces]


def test_a_link_in_an_assembled_tree_is_published_as_the_file_behind_it(
    make_tree: MakeTree, reference: Reference, tmp_path: Path
) -> None:
    tree = make_tree()
    (tree / "engine").rename(tmp_path / "cache-entry")
    (tree / "engine").symlink_to(tmp_path / "cache-entry")

    done = publish(tree, reference, store=open_store(reference))

    assert done.files == len(list_files(tree)) - 1


def test_of_many_small_files_a_publication_that_was_cut_off_sends_only_the_rest(
    tmp_path: Path, reference: Reference
) -> None:
    tree = tmp_path / "many"
    for number in range(200):
        fill(tree / "shards" / f"{number}.bin", 100 + number, number)
    write_record(tree)
    store = open_store(reference)
    whole = publish(tree, reference, store=store)
    assert whole.uploaded_blobs == 202  # with the build record and the manifest
    gone = sorted(path.name for path in (Path(store.root.removeprefix("file://")) / "blobs" / "sha256").iterdir())[-40:]
    assert isinstance(store, CollectableStore)
    store.remove_blobs(gone)

    again = publish(tree, reference, store=store)

    assert again.uploaded_blobs == 40
    assert all(store.blob_size(blob) is not None for blob in gone)


@pytest.mark.parametrize("data", [b"x" * 100, b"y" * 101, b"z" * 99])
def test_aborts_on_one_small_file_of_many_that_changed(tmp_path: Path, reference: Reference, data: bytes) -> None:
    tree = tmp_path / "many"
    for number in range(60):
        fill(tree / f"{number}.bin", 100, number)
    write_record(tree)
    before = (tree / "30.bin").read_bytes()
    (tree / "30.bin").write_bytes(data)

    with pytest.raises(ArtifactCorruptError) as refusal:
        publish(tree, reference, store=open_store(reference))
    assert "30.bin" in str(refusal.value.where)
    assert hashlib.sha256(data).hexdigest() not in blobs(reference)

    (tree / "30.bin").write_bytes(before)
    assert publish(tree, reference, store=open_store(reference)).files == 60
