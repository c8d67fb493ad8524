"""Copying from store to store, and collecting what no tag names."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from artifact_servers import use_endpoint
from artifact_trees import MakeTree, contents_of

from engineroom.artifacts import holds
from engineroom.artifacts.copying import Copied, copy
from engineroom.artifacts.garbage import DAY, collect, untag
from engineroom.artifacts.publish import publish
from engineroom.artifacts.pull import pull
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.store import CollectableStore, Store
from engineroom.artifacts.stores import open_store
from engineroom.artifacts.verify import verify_artifact
from engineroom.errors import (
    ArtifactCorruptError,
    ArtifactExistsError,
    ArtifactNotFoundError,
    BadReferenceError,
    StoreError,
)

pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.local)])
def target(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reference:
    if request.param == "file":
        return Reference.parse(f"file://{tmp_path}/target/llama:v9")
    use_endpoint(monkeypatch, request.getfixturevalue("seaweedfs"))
    return Reference.parse(f"s3://models/{tmp_path.name}/llama:v9")


def copied(source: Reference, to: Reference, *, dry_run: bool = False) -> Copied:
    return copy(source, to, source_store=open_store(source), store=open_store(to), dry_run=dry_run)


def collectable(place: Reference | str) -> CollectableStore:
    store = open_store(place)
    assert isinstance(store, CollectableStore)
    return store


def blobs(place: Reference | str) -> set[str]:
    return {entry.hex for entry in collectable(place).blobs()}


def flip(path: Path, chance: random.Random) -> int:
    data = bytearray(path.read_bytes())
    bit = chance.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    return bit


def test_a_copy_is_the_same_artifact_under_another_name(
    make_tree: MakeTree, reference: Reference, target: Reference, tmp_path: Path
) -> None:
    published = publish(make_tree(), reference, store=open_store(reference))

    first = copied(reference, target)
    second = copied(reference, target)

    assert first.reference == target.pinned(published.digest)
    assert first.tags == ("v9", published.key_tag)
    assert (first.copied_bytes, first.skipped_bytes) == (published.uploaded_bytes, 0)
    assert (second.copied_bytes, second.skipped_bytes) == (0, published.uploaded_bytes)
    pull(target, tmp_path / "out", store=open_store(target))
    assert contents_of(tmp_path / "out") == contents_of(tmp_path / "tree")
    assert collectable(target).notices() == []


def test_a_dry_run_says_what_would_be_copied_and_writes_nothing(
    make_tree: MakeTree, reference: Reference, tmp_path: Path
) -> None:
    published = publish(make_tree(), reference, store=open_store(reference))
    target = Reference.parse(f"file://{tmp_path}/target/llama")

    planned = copied(reference, target, dry_run=True)

    assert (planned.copied_bytes, planned.copied_blobs) == (published.uploaded_bytes, published.uploaded_blobs)
    assert planned.reference.tag == "v1"
    assert not (tmp_path / "target").exists()


def test_a_tag_that_names_something_else_is_refused_before_anything_is_copied(
    make_tree: MakeTree, reference: Reference, tmp_path: Path
) -> None:
    publish(make_tree("one", seed=1), reference, store=open_store(reference))
    other = Reference.parse(f"{reference.root}/other:v1")
    publish(make_tree("two", seed=2), other, store=open_store(other))
    target = Reference.parse(f"file://{tmp_path}/target/demo:v1")
    copied(reference, target)
    before = blobs(target)

    with pytest.raises(ArtifactExistsError, match="already names"):
        copied(other, target)

    assert blobs(target) == before


def test_a_copy_keeps_a_newer_artifact_under_the_engine_key(
    make_tree: MakeTree, reference: Reference, tmp_path: Path
) -> None:
    old = publish(make_tree("one", seed=1), reference, store=open_store(reference))
    target = Reference.parse(f"file://{tmp_path}/target/demo:v2")
    new = publish(make_tree("two", seed=2), target, store=open_store(target))

    done = copied(reference, Reference.parse(f"{target.root}/demo:v1"))

    assert done.tags == ("v1",)
    state = open_store(target).read_tag("demo", old.key_tag)
    assert state is not None
    assert state.pointer.digest == new.digest


@pytest.mark.parametrize(
    ("source", "to", "error"),
    [
        ("demo:v2", "demo:v2", ArtifactNotFoundError),
        ("demo", "demo:v2", BadReferenceError),
        ("demo:v1", "demo:key-1", BadReferenceError),
        ("demo:v1", f"demo:v1@sha256:{'0' * 64}", ArtifactCorruptError),
    ],
)
def test_what_cannot_be_copied_is_refused(
    make_tree: MakeTree, reference: Reference, tmp_path: Path, source: str, to: str, error: type[Exception]
) -> None:
    publish(make_tree(), reference, store=open_store(reference))

    with pytest.raises(error):
        copied(Reference.parse(f"{reference.root}/{source}"), Reference.parse(f"file://{tmp_path}/target/{to}"))

    assert not (tmp_path / "target" / "refs").exists()


@pytest.mark.timeout(3600)
def test_every_flipped_bit_of_a_store_is_found_by_copy_and_by_verify(
    make_tree: MakeTree, reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``ENGINEROOM_FLIPS`` sets how many bits (40)."""
    count, chance = int(os.environ.get("ENGINEROOM_FLIPS", "40")), random.Random(7)
    publish(make_tree(megabytes=0.1), reference, store=open_store(reference))
    root = tmp_path / "store"
    paths = [path for path in [*root.glob("blobs/sha256/*"), root / "refs/demo/tags/v1"] if path.stat().st_size]
    found = 0
    for number in range(count):
        path = chance.choice(paths)
        whole = path.read_bytes()
        bit = flip(path, chance)
        target = Reference.parse(f"file://{tmp_path}/target{number}/demo:v1")

        with pytest.raises((ArtifactCorruptError, ArtifactNotFoundError)):
            copied(reference, target)
        try:
            problems = bool(verify_artifact(reference, store=open_store(reference)).problems)
        except ArtifactCorruptError:
            problems = True

        assert problems, f"bit {bit} of {path}"
        assert open_store(target).tags("demo") == []
        found += 1
        path.write_bytes(whole)
    assert verify_artifact(reference, store=open_store(reference)).problems == ()
    with capsys.disabled():
        print(f"\n{found} of {count} flipped bits found by copy and by verify")


class Flaky(Store):
    """A store whose reads break off, after some bytes, the first times."""

    def __init__(self, store: Store, failures: int) -> None:
        self._store, self._failures = store, failures
        self.root = store.root

    def __getattribute__(self, name: str) -> object:
        if name in {"read_blob", "within", "_store", "_failures", "root", "__class__"}:
            return object.__getattribute__(self, name)
        return getattr(object.__getattribute__(self, "_store"), name)

    def within(self, name: str) -> Store:
        return self

    def read_blob(self, blob: str, start: int, end: int, *, size: int) -> Iterator[memoryview]:
        for piece in self._store.read_blob(blob, start, end, size=size):
            if size > 10_000 and self._failures:
                self._failures -= 1
                yield piece[:5000]
                raise StoreError("the connection was reset", where=self.root)
            yield piece


def test_a_connection_that_breaks_is_taken_up_where_it_broke(
    make_tree: MakeTree, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engineroom.artifacts.copying.time.sleep", lambda _: None)
    monkeypatch.setattr("engineroom.artifacts.parallel.PATIENCE", 0.0)
    publish(make_tree(megabytes=0.1), reference, store=open_store(reference))

    def attempt(failures: int) -> None:
        target = Reference.parse(f"file://{tmp_path}/target{failures}/demo:v1")
        copy(reference, target, source_store=Flaky(open_store(reference), failures), store=open_store(target))
        assert verify_artifact(target, store=open_store(target)).problems == ()

    attempt(2)
    attempt(8)
    with pytest.raises(StoreError, match="reset"):
        attempt(1000)


# Garbage


def age_blobs(root: Path, days: float) -> None:
    """Let every blob be older."""
    for path in root.glob("blobs/sha256/*"):
        status = path.stat()
        os.utime(path, (status.st_atime, status.st_mtime - days * DAY))


def test_a_collection_removes_what_no_tag_names_and_nothing_else(make_tree: MakeTree, target: Reference) -> None:
    store = collectable(target)
    kept = publish(make_tree("one", seed=1), target, store=store)
    before = blobs(target)
    publish(make_tree("two", seed=2), Reference.parse(f"{target.root}/other:v1"), store=store)
    for tag in store.tags("other"):
        store.remove_tag("other", tag)

    planned = collect(store, grace_seconds=0, dry_run=True)
    assert blobs(target) > before
    done = collect(store, grace_seconds=0)

    assert set(planned.removed) == set(done.removed)
    assert done.removed_blobs == 4  # two parts of the model, record and manifest; the other files are the same
    assert blobs(target) == before
    assert (done.tags, done.kept_blobs) == (2, len(before))
    assert verify_artifact(target.pinned(kept.digest), store=store).problems == ()
    assert store.notices() == []
    assert collect(store, grace_seconds=0).removed_blobs == 0


def test_young_blobs_are_kept_for_a_publication_that_goes_on(
    make_tree: MakeTree, reference: Reference, tmp_path: Path
) -> None:
    store = collectable(reference)
    publish(make_tree(), reference, store=store)
    for tag in store.tags("demo"):
        store.remove_tag("demo", tag)

    (tmp_path / "store" / "blobs" / "sha256" / "README").write_text("not a blob")
    young = collect(store)
    age_blobs(tmp_path / "store", 1.1)
    old = collect(store)

    assert (tmp_path / "store" / "blobs" / "sha256" / "README").read_text() == "not a blob"
    assert (young.removed_blobs, young.young_blobs) == (0, young.kept_blobs)
    assert (old.removed_blobs, old.kept_blobs) == (young.kept_blobs, 0)


def test_what_a_tag_named_until_just_now_is_kept_for_the_grace_period(
    make_tree: MakeTree, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key tag that moves, and a tag that is removed: releases may still pin what it named."""
    store = collectable(reference)
    untagged = Reference.parse(f"{reference.root}/demo")
    publish(make_tree("one", seed=1), untagged, store=store)
    publish(make_tree("two", seed=2), untagged, store=store)
    third = Reference.parse(f"{reference.root}/other:v1")
    publish(make_tree("three", seed=3), third, store=store)
    for tag in store.tags("other"):
        untag(store, "other", tag)
    age_blobs(tmp_path / "store", 2)
    everything = blobs(reference)

    collect(store)
    assert blobs(reference) == everything
    for path in (tmp_path / "store" / "notices").glob("named-*"):
        os.utime(path, (0, 0))
    done = collect(store)

    assert done.removed_blobs == 8
    assert store.notices() == []


def test_a_store_with_a_broken_tag_is_not_collected(make_tree: MakeTree, reference: Reference, tmp_path: Path) -> None:
    store = collectable(reference)
    done = publish(make_tree(), reference, store=store)
    orphan = tmp_path / "store" / "blobs" / "sha256" / ("0" * 64)
    orphan.write_bytes(b"nobody's")
    manifest = tmp_path / "store" / "blobs" / "sha256" / done.digest.removeprefix("sha256:")
    data = manifest.read_bytes()
    manifest.write_bytes(data[:-1])

    with pytest.raises(ArtifactCorruptError, match="nothing is removed"):
        collect(store, grace_seconds=0)
    assert orphan.exists()
    assert store.notices() == []
    manifest.write_bytes(data)
    assert collect(store, grace_seconds=0).removed == ("0" * 64,)


def test_a_place_that_is_no_store_is_not_made_one(make_tree: MakeTree, reference: Reference, tmp_path: Path) -> None:
    publish(make_tree(), reference, store=open_store(reference))

    with pytest.raises(ArtifactNotFoundError, match="no store here"):
        collect(open_store(f"file://{tmp_path}/store/demo"))

    assert not (tmp_path / "store" / "demo").exists()


def test_a_hold_keeps_blobs_for_a_day(make_tree: MakeTree, reference: Reference, tmp_path: Path) -> None:
    store = collectable(reference)
    store.write_blob("0" * 64, 1, [memoryview(b"x")])
    with holds.holding(store, ["0" * 64]):
        assert collect(store, grace_seconds=0).removed_blobs == 0
    with holds.holding(store, ["0" * 64]):
        for path in (tmp_path / "store" / "notices").glob("hold-*"):  # one that was killed the day before
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - holds.HOLD_SECONDS - 60))
        assert collect(store, grace_seconds=0).removed_blobs == 1


def test_a_collection_that_takes_long_condemns_anew(
    make_tree: MakeTree, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its condemnation would run out otherwise, and a writer would no longer wait for it."""
    from engineroom.artifacts import garbage

    store = collectable(reference)
    for number in range(10):
        store.write_blob(f"{number:064x}", 1, [memoryview(b"x")])
    monkeypatch.setattr(garbage, "_REMOVE", 4)
    clock = iter(range(0, 100_000, 40))  # every look at the clock is 40 s later
    monkeypatch.setattr(garbage, "boot_time", lambda: next(clock))
    posts: list[bytes] = []
    post = type(store).post
    monkeypatch.setattr(type(store), "post", lambda self, name, data: (posts.append(data), post(self, name, data))[1])

    assert collect(store, grace_seconds=0).removed_blobs == 10
    assert len(posts) == 4  # the empty one, and one for each 4 blobs


def test_a_copied_backup_tag_of_another_kind_is_not_taken_for_an_artifact(
    make_tree: MakeTree, reference: Reference, tmp_path: Path
) -> None:
    from engineroom.artifacts.backup import backup

    publish(make_tree(), reference, store=open_store(reference))
    place = Reference.parse(f"file://{tmp_path}/backups/llm")
    done = backup([reference], place)
    tagged = Reference.parse(f"{place}:{done.reference.tag}")

    with pytest.raises(BadReferenceError, match="engineroom restore"):
        pull(tagged, tmp_path / "out", store=open_store(place))
    again = copied(tagged, Reference.parse(f"file://{tmp_path}/second/llm"))
    assert again.reference.digest == done.reference.digest
    assert blobs(again.reference) == blobs(place)
