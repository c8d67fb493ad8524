"""What others pushed, in every store: the same bytes under the same digest, and nothing of it lost or collected."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
from artifact_packing import folder, make_tar, member, packed, push
from artifact_servers import use_endpoint
from artifact_trees import MakeTree
from click.testing import CliRunner

from engineroom.artifacts.copying import Copied, copy
from engineroom.artifacts.difference import compare, read_side
from engineroom.artifacts.garbage import collect
from engineroom.artifacts.inspection import inspect
from engineroom.artifacts.listing import list_artifacts
from engineroom.artifacts.publish import publish
from engineroom.artifacts.pull import pull
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.scrub import scrub_store
from engineroom.artifacts.store import PLAIN_TYPE, CollectableStore, Pointer
from engineroom.artifacts.stores import open_store
from engineroom.cli.main import cli
from engineroom.errors import ArtifactCorruptError, ArtifactExistsError, BadReferenceError, StoreError

LAYERS: list[tuple[bytes, Any]] = [
    packed("d", make_tar([folder("d"), member("d/a", b"a" * 1000)])),
    (b"weights" * 1000, {"org.opencontainers.image.title": "model/weights.bin"}),
    (b"no title, as the layers of a Helm chart", {"org.example": "chart"}),
]


@pytest.fixture(params=["file", *(pytest.param(one, marks=pytest.mark.local) for one in ("s3", "oci"))])
def target(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reference:
    if request.param == "file":
        return Reference.parse(f"file://{tmp_path}/target/demo:v9")
    if request.param == "oci":
        port, _ = request.getfixturevalue("registry")
        return Reference.parse(f"oci://127.0.0.1:{port}/plain/{tmp_path.name.strip('_').replace('_', '-')}:v9")
    use_endpoint(monkeypatch, request.getfixturevalue("seaweedfs"))
    return Reference.parse(f"s3://models/{tmp_path.name}/demo:v9")


def copied(source: Reference, to: Reference, *, dry_run: bool = False) -> Copied:
    return copy(source, to, source_store=open_store(source), store=open_store(to), dry_run=dry_run)


def test_a_copy_has_the_same_bytes_and_so_the_same_digest(
    reference: Reference, target: Reference, tmp_path: Path
) -> None:
    pointer = push(reference, *LAYERS)

    planned = copied(reference, target, dry_run=True)
    done = copied(reference, target)
    again = copied(reference, target)
    back = copied(done.reference, Reference.parse(f"file://{tmp_path}/third/demo"))

    assert (planned.copied_blobs, planned.copied_bytes) == (done.copied_blobs, done.copied_bytes)
    assert {one.reference.digest for one in (done, again, back)} == {pointer.digest}
    assert (done.copied_blobs, again.copied_bytes, done.tags) == (5, 0, ("v9",))
    blob = pointer.digest.removeprefix("sha256:")
    there = open_store(back.reference).read_manifest(blob)
    assert there
    assert there == open_store(reference).read_manifest(blob)
    state = open_store(target).read_tag(target.name, "v9")
    assert state
    assert state.pointer == pointer
    assert pointer.artifact_type == PLAIN_TYPE
    assert scrub_store(str(target)).problems == ()


def test_a_copy_of_files_is_pulled_from_where_it_went(reference: Reference, target: Reference, tmp_path: Path) -> None:
    push(reference, *LAYERS[:2])
    copied(reference, target)

    pull(target, tmp_path / "out", store=open_store(target))

    assert (tmp_path / "out" / "d" / "a").read_bytes() == b"a" * 1000
    assert (tmp_path / "out" / "model" / "weights.bin").read_bytes() == b"weights" * 1000


def test_it_is_listed_and_inspected_as_what_it_is(reference: Reference, target: Reference) -> None:
    push(reference, *LAYERS[:2])
    copied(reference, target)

    (listed,) = list_artifacts(f"{target.root}/{target.name}" if target.scheme == "oci" else target.root, details=True)
    seen = inspect(target, store=open_store(target))
    shown = json.loads(CliRunner().invoke(cli, ["inspect", str(target), "--output", "json"]).stdout)

    assert listed.plain == "2 blobs of type application/vnd.unknown.artifact.v1"
    assert (listed.bytes, listed.model, listed.problem) == (7000 + len(LAYERS[0][0]), None, "")
    assert (seen.tags, seen.missing, seen.blobs) == (("v9",), (), 4)
    assert shown["record"] is None
    assert [one["path"] for one in shown["files"] + shown["packed"]] == ["model/weights.bin", "d"]


def test_a_collection_keeps_all_that_a_plain_artifact_names_and_nothing_else(
    reference: Reference, make_tree: MakeTree
) -> None:
    push(reference, *LAYERS)
    store = open_store(reference)
    assert isinstance(store, CollectableStore)
    publish(make_tree(), Reference.parse(f"{reference.root}/ours:v1"), store=store)
    before = {entry.hex for entry in store.blobs()}
    store.write_blob("0" * 64, 1, [memoryview(b"x")])

    assert collect(store, grace_seconds=0).removed == ("0" * 64,)
    assert {entry.hex for entry in store.blobs()} == before
    store.remove_tag("demo", "v1")
    assert collect(store, grace_seconds=0).removed_blobs == 5
    assert scrub_store(reference.root).problems == ()


def test_every_flipped_bit_of_a_plain_artifact_is_found(reference: Reference, tmp_path: Path) -> None:
    push(reference, *LAYERS)
    chance = random.Random(5)
    for number, path in enumerate(sorted((tmp_path / "store").rglob("*"))):
        if not path.is_file():
            continue
        right = path.read_bytes()
        bit = chance.randrange(8 * len(right))
        path.write_bytes(right[: bit // 8] + bytes([right[bit // 8] ^ 1 << bit % 8]) + right[bit // 8 + 1 :])
        assert scrub_store(reference.root).problems, f"{path.name}, bit {bit}"
        with pytest.raises(ArtifactCorruptError):
            copied(reference, Reference.parse(f"file://{tmp_path}/{number}/demo:v1"))
        assert open_store(f"file://{tmp_path}/{number}").read_tag("demo", "v1") is None
        path.write_bytes(right)
    assert scrub_store(reference.root).problems == ()


def test_what_changed_between_two_of_others_and_one_of_ours_is_told(reference: Reference, make_tree: MakeTree) -> None:
    push(reference, *LAYERS[:2])
    other = Reference.parse(f"{reference.root}/demo:v2")
    push(other, LAYERS[0], (b"weights" * 1001, LAYERS[1][1]))
    ours = Reference.parse(f"{reference.root}/ours:v1")
    publish(make_tree(), ours, store=open_store(ours))

    changed = compare(read_side(str(reference)), read_side(str(other)))
    same = compare(read_side(str(other)), read_side(str(other)))
    mixed = compare(read_side(str(reference)), read_side(str(ours)))

    assert [(one.path, one.kind, one.chunks) for one in changed.files] == [("model/weights.bin", "changed", 1)]
    manifest = open_store(other).blob_size(changed.after.digest.removeprefix("sha256:"))
    assert manifest
    assert (changed.transfer_blobs, changed.transfer_bytes) == (2, 7007 + manifest)
    assert (same.same, same.transfer_bytes) == (True, 0)
    assert {"d/": "removed", "engine/model.bin": "added"}.items() <= {f.path: f.kind for f in mixed.files}.items()


def test_what_a_store_cannot_hold_is_refused_in_one_sentence(
    reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(reference, *LAYERS)
    to = Reference.parse(f"file://{tmp_path}/second/demo")
    store = open_store(to)
    monkeypatch.setattr(type(store), "longest_blob", 6999)
    with pytest.raises(StoreError, match=r"model/weights\.bin has .* and file:"):
        copied(reference, to)
    assert not (tmp_path / "second" / "blobs").exists()
    monkeypatch.setattr(type(store), "longest_blob", 7000)
    copied(reference, to)

    with pytest.raises(BadReferenceError, match="key-… tags are set by the engine key"):
        copied(reference, Reference.parse(f"{to.root}/demo:key-mine"))
    digest = push(reference, *LAYERS).digest
    with pytest.raises(BadReferenceError, match="needs no tag"):
        copied(Reference.parse(f"{reference.root}/demo@{digest}"), to)
    copied(Reference.parse(f"{reference.root}/demo@{digest}"), Reference.parse(f"{to.root}/demo:pinned"))
    push(reference, LAYERS[0])
    with pytest.raises(ArtifactExistsError, match="already names"):
        copied(reference, Reference.parse(f"{to.root}/demo:v1"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": [{"digest": "sha512:" + "0" * 128, "size": 1}]}, "its layer 1 has no SHA-256 digest"),
        ({"layers": [{"digest": "sha256:" + "0" * 64}]}, "its layer 1 has no SHA-256 digest and size"),
        ({"config": None}, "its config has no SHA-256 digest"),
        ({"layers": None, "manifests": []}, "no manifest of one artifact"),
        ({"layers": ["text"]}, "no manifest of one artifact"),
    ],
)
def test_a_manifest_that_is_none_is_not_copied(
    change: dict[str, Any], words: str, reference: Reference, tmp_path: Path
) -> None:
    pointer = push(reference, *LAYERS)
    store = open_store(reference)
    right = json.loads(store.read_manifest(pointer.digest.removeprefix("sha256:")) or b"")
    wrong = json.dumps({**right, **change}).encode()
    store.write_manifest(hashlib.sha256(wrong).hexdigest(), wrong)
    store.write_tag("demo", "wrong", Pointer.to(wrong))

    with pytest.raises(ArtifactCorruptError, match=words):
        copied(Reference.parse(f"{reference.root}/demo:wrong"), Reference.parse(f"file://{tmp_path}/second/demo:v1"))


def test_a_tag_that_calls_one_of_ours_somebody_elses_keeps_its_store_from_being_collected(
    reference: Reference, make_tree: MakeTree
) -> None:
    """Its layers would be kept, but not what a backup names beyond them."""
    store = open_store(reference)
    done = publish(make_tree(), reference, store=store)
    state = store.read_tag("demo", "v1")
    assert state
    store.write_tag("demo", "forged", Pointer(done.digest, state.pointer.size, PLAIN_TYPE))

    with pytest.raises(ArtifactCorruptError, match="nothing is removed"):
        collect(store, grace_seconds=0)
