import re
import shutil
import threading
import time
from pathlib import Path

import pytest
from artifact_trees import MakeTree, contents_of, fill

from engineroom.artifacts.publish import publish
from engineroom.artifacts.pull import pull
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.stores import open_store
from engineroom.artifacts.swap import staging_folder
from engineroom.artifacts.verify import verify_tree
from engineroom.errors import (
    ArtifactCorruptError,
    ArtifactNotFoundError,
    BadReferenceError,
    InputError,
    StoreError,
)

pytestmark = pytest.mark.usefixtures("small_chunks")


def blob_of(reference: Reference, data: bytes) -> Path:
    """The blob that begins with ``data``."""
    folder = Path(reference.location, "blobs", "sha256")
    return next(path for path in folder.iterdir() if path.read_bytes()[: len(data)] == data)


def test_a_pulled_tree_is_the_published_tree(make_tree: MakeTree, reference: Reference, tmp_path: Path) -> None:
    tree, store = make_tree(megabytes=0.7), open_store(reference)
    published = publish(tree, reference, store=store)

    pulled = pull(reference, tmp_path / "out" / "model", store=store)

    assert contents_of(pulled.path) == contents_of(tree)
    assert pulled.digest == published.digest
    assert verify_tree(pulled.path, digest=pulled.digest).problems == ()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".model.pull-lock", "model"]


def test_a_digest_is_enough(make_tree: MakeTree, reference: Reference, tmp_path: Path) -> None:
    store = open_store(reference)
    published = publish(make_tree(), reference, store=store)

    pulled = pull(Reference.parse(f"{reference.root}/demo@{published.digest}"), tmp_path / "out", store=store)

    assert pulled.digest == published.digest


def test_a_pull_of_what_is_there_does_nothing(make_tree: MakeTree, reference: Reference, tmp_path: Path) -> None:
    store = open_store(reference)
    publish(make_tree(), reference, store=store)
    pull(reference, tmp_path / "out", store=store)
    before = (tmp_path / "out" / "engine" / "model.bin").stat().st_mtime_ns

    again = pull(reference, tmp_path / "out", store=store)

    assert again.already_there
    assert again.downloaded_bytes == 0
    assert (tmp_path / "out" / "engine" / "model.bin").stat().st_mtime_ns == before


def test_a_tree_that_lost_a_file_is_pulled_again(make_tree: MakeTree, reference: Reference, tmp_path: Path) -> None:
    store = open_store(reference)
    publish(make_tree(), reference, store=store)
    pull(reference, tmp_path / "out", store=store)
    (tmp_path / "out" / "engine" / "model.bin").unlink()

    assert not pull(reference, tmp_path / "out", store=store).already_there
    assert verify_tree(tmp_path / "out").problems == ()


def test_a_new_artifact_is_exchanged_for_the_old_one(make_tree: MakeTree, reference: Reference, tmp_path: Path) -> None:
    store, second = open_store(reference), Reference.parse(f"{reference.root}/demo:v2")
    publish(make_tree("first"), reference, store=store)
    other = make_tree("other", seed=2)
    publish(other, second, store=store)
    pull(reference, tmp_path / "out", store=store)
    served = (tmp_path / "out" / "engine" / "model.bin").open("rb")

    pull(second, tmp_path / "out", store=store)

    assert contents_of(tmp_path / "out") == contents_of(other)
    assert served.read() == (tmp_path / "first" / "engine" / "model.bin").read_bytes(), "an open file stays whole"
    served.close()
    assert not list(tmp_path.glob(".out.pull-*-old"))
    assert [path for path in tmp_path.glob(".out.pull-*") if path.is_dir()] == []


def test_the_target_is_never_missing_while_it_is_exchanged(
    make_tree: MakeTree, reference: Reference, tmp_path: Path
) -> None:
    store, second = open_store(reference), Reference.parse(f"{reference.root}/demo:v2")
    publish(make_tree("first"), reference, store=store)
    publish(make_tree("other", seed=2), second, store=store)
    pull(reference, tmp_path / "out", store=store)
    missing, done = [], threading.Event()

    def watch() -> None:
        while not done.is_set():
            try:
                (tmp_path / "out" / "build-record.json").stat()
            except FileNotFoundError as error:
                missing.append(error)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(3):
        pull(second, tmp_path / "out", store=store)
        pull(reference, tmp_path / "out", store=store)
    done.set()
    watcher.join()

    assert missing == []


@pytest.mark.parametrize("damage", ["flipped", "truncated", "emptied", "missing", "longer"])
def test_a_damaged_blob_fails_with_file_and_chunk_and_leaves_the_target(
    make_tree: MakeTree, reference: Reference, tmp_path: Path, damage: str
) -> None:
    store, second = open_store(reference), Reference.parse(f"{reference.root}/demo:v2")
    publish(make_tree("first", seed=5, megabytes=0.2), reference, store=store)
    pull(reference, tmp_path / "out", store=store)
    tree = make_tree("other", megabytes=0.2)
    publish(tree, second, store=store)
    data = (tree / "engine" / "model.bin").read_bytes()
    blob = blob_of(second, data[:100])
    if damage == "flipped":
        blob.write_bytes(data[:140_000] + bytes([data[140_000] ^ 1]) + data[140_001:])
    elif damage == "truncated":
        blob.write_bytes(data[:140_000])
    elif damage == "emptied":
        blob.write_bytes(b"")
    elif damage == "longer":
        blob.write_bytes(data + b"x")
    else:
        blob.unlink()

    with pytest.raises(ArtifactCorruptError) as refusal:
        pull(second, tmp_path / "out", store=store)

    # A blob of another size is found out with whichever chunk comes first.
    assert re.search(f"engine/model.bin, chunk {'3' if damage == 'flipped' else '[1-4]'} of 4$", refusal.value.where)
    assert contents_of(tmp_path / "out") == contents_of(tmp_path / "first")
    assert refusal.value.exit_code == 3
    blob.unlink(missing_ok=True)
    publish(tree, second, store=store)
    pull(second, tmp_path / "out", store=store)
    assert contents_of(tmp_path / "out") == contents_of(tree)


@pytest.mark.parametrize("what", ["tag", "manifest", "record"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "emptied"])
def test_damaged_metadata_fails_and_leaves_nothing(
    make_tree: MakeTree, reference: Reference, tmp_path: Path, what: str, damage: str
) -> None:
    tree, store = make_tree(), open_store(reference)
    done = publish(tree, reference, store=store)
    folder = Path(reference.location)
    path = {
        "tag": folder / "refs/demo/tags/v1",
        "manifest": folder / "blobs/sha256" / done.digest.removeprefix("sha256:"),
        "record": blob_of(reference, (tree / "build-record.json").read_bytes()),
    }[what]
    data = path.read_bytes()
    path.write_bytes(
        {"flipped": data[:100] + bytes([data[100] ^ 1]) + data[101:], "truncated": data[:100], "emptied": b""}[damage]
    )

    with pytest.raises(ArtifactCorruptError):
        pull(reference, tmp_path / "out", store=store)

    assert not (tmp_path / "out").exists()


def test_chunks_that_are_there_are_kept_and_chunks_that_are_wrong_are_not(
    make_tree: MakeTree, reference: Reference, tmp_path: Path
) -> None:
    tree, store = make_tree(megabytes=0.5), open_store(reference)
    done = publish(tree, reference, store=store)
    staging = staging_folder(tmp_path / "out", done.digest)
    (staging / "engine").mkdir(parents=True)
    data = bytearray((tree / "engine" / "model.bin").read_bytes())
    data[3 * 65_536 : 4 * 65_536 + 5] = bytes(65_541)  # the fourth chunk, and a piece of the fifth, never landed
    (staging / "engine" / "model.bin").write_bytes(data)
    (staging / "engine" / "stranger").write_bytes(b"of another artifact")
    (staging / "tokenizer").symlink_to(tmp_path)

    pulled = pull(reference, tmp_path / "out", store=store)

    small = pulled.bytes - len(data)
    assert pulled.downloaded_bytes == small + 2 * 65_536
    assert contents_of(tmp_path / "out") == contents_of(tree)


def test_a_pull_waits_for_a_tag_that_comes(make_tree: MakeTree, reference: Reference, tmp_path: Path) -> None:
    tree = make_tree()
    later = threading.Timer(0.5, lambda: publish(tree, reference, store=open_store(reference)))
    later.start()

    pull(reference, tmp_path / "out", store=open_store(reference), wait_seconds=30)

    later.join()
    assert contents_of(tmp_path / "out") == contents_of(tree)


def test_a_pull_stops_waiting_for_a_tag_that_does_not_come(reference: Reference, tmp_path: Path) -> None:
    begin = time.monotonic()

    with pytest.raises(ArtifactNotFoundError, match="after 1 seconds"):
        pull(reference, tmp_path / "out", store=open_store(reference), wait_seconds=1)

    assert time.monotonic() - begin < 5
    assert not (tmp_path / "out").exists()


def test_refuses_a_reference_that_names_nothing_or_two_things(
    make_tree: MakeTree, reference: Reference, tmp_path: Path
) -> None:
    store = open_store(reference)
    publish(make_tree(), reference, store=store)
    with pytest.raises(BadReferenceError, match="neither tag nor digest"):
        pull(Reference.parse(f"{reference.root}/demo"), tmp_path / "out", store=store)
    with pytest.raises(ArtifactCorruptError, match="the tag names"):
        pull(Reference.parse(f"{reference}@sha256:{'0' * 64}"), tmp_path / "out", store=store)
    with pytest.raises(ArtifactNotFoundError, match="no manifest"):
        pull(Reference.parse(f"{reference.root}/demo@sha256:{'0' * 64}"), tmp_path / "out", store=store)


def test_refuses_to_replace_what_is_no_pulled_artifact(
    make_tree: MakeTree, reference: Reference, tmp_path: Path
) -> None:
    store, out = open_store(reference), tmp_path / "out"
    publish(make_tree(), reference, store=store)
    fill(out / "thesis.txt", 10, 1)
    with pytest.raises(InputError, match="holds no pulled artifact"):
        pull(reference, out, store=store)
    assert (out / "thesis.txt").exists()

    (out / "thesis.txt").rename(tmp_path / "thesis.txt")
    pull(reference, out, store=store)

    with pytest.raises(InputError, match="it is no folder"):
        pull(reference, tmp_path / "thesis.txt", store=store)
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(InputError, match="it is no folder"):
        pull(reference, tmp_path / "link", store=store)
    with pytest.raises(InputError, match="mount point"):
        pull(reference, Path("/proc"), store=store)


def test_two_pulls_at_once_into_one_folder_leave_one_whole_tree(
    make_tree: MakeTree, reference: Reference, tmp_path: Path
) -> None:
    store, second = open_store(reference), Reference.parse(f"{reference.root}/demo:v2")
    first = make_tree("first")
    publish(first, reference, store=store)
    other = make_tree("other", seed=2)
    publish(other, second, store=store)

    threads = [
        threading.Thread(target=pull, args=(which, tmp_path / "out"), kwargs={"store": open_store(which)})
        for which in [reference, second] * 4
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert contents_of(tmp_path / "out") in (contents_of(first), contents_of(other))


def test_a_disk_that_is_too_small_is_found_out_before_anything_comes(
    make_tree: MakeTree, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(reference)
    publish(make_tree(), reference, store=store)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=16 << 20))

    with pytest.raises(StoreError, match="MB are needed"):
        pull(reference, tmp_path / "out", store=store)

    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=32 << 20))
    pull(reference, tmp_path / "out", store=store)
