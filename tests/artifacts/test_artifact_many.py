"""Many versions: what a verb asks a store for does not grow faster than what it has to know."""

import hashlib
import os
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from artifact_servers import use_endpoint
from artifact_trees import MakeTree, write_record
from hypothesis import given
from hypothesis import strategies as st

from engineroom.artifacts import pointers
from engineroom.artifacts.garbage import collect
from engineroom.artifacts.inspection import inspect
from engineroom.artifacts.manifest_cache import UNUSED_SECONDS, ManifestCache
from engineroom.artifacts.pointers import by_md5
from engineroom.artifacts.publish import publish
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.scrub import scrub_store
from engineroom.artifacts.store import POINTED_TYPES, BlobEntry, CollectableStore, Pointer, TagEntry
from engineroom.artifacts.stores import open_store
from engineroom.errors import ArtifactCorruptError

NOW = datetime(2026, 11, 27, tzinfo=UTC)
VERSIONS = 5


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.local)])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/store"
    use_endpoint(monkeypatch, request.getfixturevalue("seaweedfs"))
    return f"s3://models/{tmp_path.name}"


@pytest.fixture
def store(root: str, make_tree: MakeTree) -> CollectableStore:
    """Some versions, each with a manifest of its own and one more tag, and what no tag names."""
    found = open_store(root)
    assert isinstance(found, CollectableStore)
    tree = make_tree()
    for number in range(VERSIONS):
        (tree / "tokenizer" / "version.txt").write_text(str(number))
        write_record(tree)
        done = publish(tree, Reference.parse(f"{root}/demo:v{number}"), store=found)
        found.write_tag("demo", f"same{number}", found_pointer(found, f"v{number}"))
        assert done.digest
    found.write_blob("0" * 64, 3, [memoryview(b"old")])
    return found


def found_pointer(store: CollectableStore, tag: str) -> Pointer:
    state = store.read_tag("demo", tag)
    assert state
    return state.pointer


@pytest.fixture
def asked(store: CollectableStore, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each method of the store was called; the methods do what they do."""
    counted: Counter[str] = Counter()
    lock = threading.Lock()
    for name in ("read_tag", "read_manifest", "blob_size", "list_tags", "blobs"):
        real = getattr(type(store), name)

        def count(self: Any, *arguments: Any, _name: str = name, _real: Any = real, **options: Any) -> Any:
            with lock:
                counted[_name] += 1
            return _real(self, *arguments, **options)

        monkeypatch.setattr(type(store), name, count)
    return counted


def test_a_collection_reads_each_manifest_once_and_no_tag_that_the_listing_shows(
    store: CollectableStore, asked: Counter[str]
) -> None:
    done = collect(store, grace_seconds=0, dry_run=True)

    assert (done.tags, done.removed) == (2 * VERSIONS + 1, ("0" * 64,))
    assert asked["read_manifest"] == VERSIONS
    assert asked["read_tag"] == (0 if store.root.startswith("s3") else done.tags)


def test_what_was_read_before_is_not_read_again_but_checked(
    store: CollectableStore, asked: Counter[str], tmp_path: Path
) -> None:
    cache = ManifestCache(tmp_path / "cache")
    first = collect(store, grace_seconds=0, cache=cache, dry_run=True)
    asked.clear()
    assert collect(store, grace_seconds=0, cache=cache, dry_run=True) == first
    assert asked["read_manifest"] == 0
    for number, path in enumerate(sorted((tmp_path / "cache").glob("*/*"))):  # a disk that fails
        path.write_bytes(path.read_bytes()[:-1] if number % 2 else b"{}")

    assert collect(store, grace_seconds=0, cache=cache) == first
    assert asked["read_manifest"] == VERSIONS


def test_a_cache_hides_no_manifest_that_the_store_has_lost(store: CollectableStore, tmp_path: Path) -> None:
    cache = ManifestCache(tmp_path / "cache")
    collect(store, cache=cache, dry_run=True)
    lost = found_pointer(store, "v1").digest.removeprefix("sha256:")
    data = store.read_manifest(lost)
    assert data
    store.remove_blobs([lost])

    with pytest.raises(ArtifactCorruptError, match="nothing is removed"):
        collect(store, grace_seconds=0, cache=cache)

    store.write_manifest(lost, data)
    assert collect(store, grace_seconds=0, cache=cache).removed == ("0" * 64,)


def test_a_tag_that_moves_during_a_collection_keeps_what_it_names_now(
    store: CollectableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the first look, which condemns, and the second, after which blobs go."""
    pointer = found_pointer(store, "v1")
    other = found_pointer(store, "v2")
    for tag in ("v1", "same1"):
        store.remove_tag("demo", tag)
    real, posts = type(store).post, []

    def post(self: CollectableStore, name: str, data: bytes) -> None:
        real(self, name, data)
        posts.append(name)
        if len(posts) == 2:  # the condemnation: a tag that was looked at is moved to what it condemns
            state = self.read_tag("demo", "same2")
            assert state
            assert state.pointer == other
            assert self.move_tag("demo", "same2", pointer, expected=state)

    monkeypatch.setattr(type(store), "post", post)
    done = collect(store, grace_seconds=0)

    assert done.removed == ("0" * 64,)
    assert scrub_store(store.root).problems == ()


def test_the_tags_of_an_artifact_are_found_among_many(
    store: CollectableStore, asked: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = Reference.parse(f"{store.root}/demo:v1")
    few = inspect(reference, store=store)
    assert few.tags == ("same1", "v1")
    monkeypatch.setattr(pointers, "_MANY", VERSIONS)
    asked.clear()

    assert inspect(reference, store=store).tags == few.tags
    assert asked["read_tag"] == (1 if store.root.startswith("s3") else 1 + 2 * VERSIONS + 1)


def test_a_whole_store_is_verified_in_one_read_of_each_tag(store: CollectableStore, asked: Counter[str]) -> None:
    assert scrub_store(store.root).problems == ()

    assert asked["read_tag"] == 2 * VERSIONS + 1


def test_what_was_not_used_for_long_leaves_the_cache(tmp_path: Path) -> None:
    cache = ManifestCache(tmp_path / "cache")
    for data in (b"one", b"two"):
        cache.put(hashlib.sha256(data).hexdigest(), data)
    one, two = (hashlib.sha256(data).hexdigest() for data in (b"one", b"two"))
    os.utime(tmp_path / "cache" / one[:2] / one, (0, datetime.now(UTC).timestamp() - UNUSED_SECONDS - 60))
    os.utime(tmp_path / "cache" / two[:2] / two, (0, datetime.now(UTC).timestamp() - UNUSED_SECONDS + 60))

    cache.trim()

    assert (cache.get(one), cache.get(two)) == (None, b"two")


def test_a_cache_that_cannot_be_written_knows_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    cache = ManifestCache(tmp_path / "file" / "cache")
    blob = hashlib.sha256(b"one").hexdigest()

    cache.put(blob, b"one")
    cache.trim()

    assert cache.get(blob) is None


@st.composite
def stores(draw: st.DrawFn) -> tuple[list[BlobEntry], list[Pointer]]:
    sizes = draw(st.lists(st.integers(0, 1 << 23), min_size=1, max_size=8))
    blobs = [
        BlobEntry(hashlib.sha256(str(number).encode()).hexdigest(), size, NOW) for number, size in enumerate(sizes)
    ]
    named = draw(st.lists(st.tuples(st.sampled_from(blobs), st.sampled_from(POINTED_TYPES)), max_size=6))
    return blobs, [Pointer(f"sha256:{blob.hex}", blob.size, kind) for blob, kind in named]


@given(stores(), st.booleans())
def test_an_md5_names_exactly_the_pointer_whose_spelling_has_it(
    case: tuple[list[BlobEntry], list[Pointer]], encrypted: bool
) -> None:
    blobs, named = case

    def md5(pointer: Pointer) -> str:
        data = pointer.to_json() + (b"key" if encrypted else b"")
        return hashlib.md5(data, usedforsecurity=False).hexdigest()

    def entries() -> Iterator[TagEntry]:
        for number, pointer in enumerate(named):
            yield TagEntry(f"v{number}", NOW, "demo", "etag", md5(pointer))
        yield TagEntry("folder", NOW, "demo", "1-2")

    found = by_md5(entries(), blobs)

    possible = {pointer for pointer in named if 0 < pointer.size <= 4 << 20}
    assert found == ({} if encrypted else {md5(pointer): pointer for pointer in possible})
