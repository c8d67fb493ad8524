import fcntl
import os
import random
import threading
from pathlib import Path

import pytest
from artifact_trees import MakeTree, contents_of, fill, write_record

from engineroom.artifacts.cache import Cache
from engineroom.artifacts.publish import publish
from engineroom.artifacts.pull import Pulled, pull
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.stores import open_store
from engineroom.artifacts.verify import verify_tree
from engineroom.errors import InputError, StoreError

pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", grace_seconds=0)


def published(tree: Path, reference: Reference, tag: str) -> Reference:
    named = Reference.parse(f"{reference.root}/demo:{tag}")
    publish(tree, named, store=open_store(named))
    return named


def fetch(reference: Reference, cache: Cache) -> Pulled:
    return pull(reference, cache=cache, store=open_store(reference))


def files_of(cache: Cache) -> list[str]:
    return sorted(path.name for path in (cache.folder / "files").iterdir())


def changed(tree: Path, seed: int) -> Path:
    """The same engine, another configuration."""
    fill(tree / "model_repository" / "tensorrt_llm" / "config.pbtxt", 400, seed)
    write_record(tree)
    return tree


def test_a_tree_lies_in_the_cache_under_its_digest(make_tree: MakeTree, reference: Reference, cache: Cache) -> None:
    tree = make_tree()
    done = fetch(published(tree, reference, "v1"), cache)

    assert done.path == cache.folder / "trees" / done.digest.removeprefix("sha256:")
    assert contents_of(done.path) == contents_of(tree)
    assert done.downloaded_bytes == done.bytes
    again = fetch(Reference.parse(f"{reference.root}/demo@{done.digest}"), cache)
    assert again.already_there
    assert again.path == done.path


def test_a_second_version_shares_the_files_that_did_not_change(
    make_tree: MakeTree, reference: Reference, cache: Cache
) -> None:
    tree = make_tree()
    first = fetch(published(tree, reference, "v1"), cache)
    second = fetch(published(changed(tree, 3), reference, "v2"), cache)

    assert second.downloaded_bytes == 400
    assert (first.path / "engine/model.bin").samefile(second.path / "engine/model.bin")
    # Two trees, and the file under its digest.
    assert (first.path / "engine/model.bin").stat().st_nlink == 3
    assert verify_tree(first.path).problems == verify_tree(second.path).problems == ()


def test_many_that_pull_one_artifact_at_once_download_it_once(
    make_tree: MakeTree, reference: Reference, cache: Cache
) -> None:
    named = published(make_tree(), reference, "v1")
    done: list[Pulled] = []
    threads = [threading.Thread(target=lambda: done.append(fetch(named, cache))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(done) == 6
    assert sum(pulled.downloaded_bytes for pulled in done) == done[0].bytes


def test_what_was_not_used_for_longest_goes_first_and_files_only_with_their_last_tree(
    make_tree: MakeTree, reference: Reference, cache: Cache
) -> None:
    tree = make_tree(megabytes=1)
    old = fetch(published(tree, reference, "v1"), cache)
    new = fetch(published(changed(tree, 3), reference, "v2"), cache)
    other = fetch(published(make_tree("other", seed=2, megabytes=1), reference, "v1-other"), cache)
    for age, pulled in enumerate([other, new, old]):
        os.utime(cache.lease(pulled.digest), (1_000_000 - age, 1_000_000 - age))
    model = next(file.sha256 for file in old.record.files if file.path == "engine/model.bin") if old.record else ""
    third = published(make_tree("third", seed=3, megabytes=1), reference, "v3")

    cache.limit = cache.used() + (200 << 10)
    fetch(third, cache)

    assert not old.path.exists()
    assert not new.path.exists(), "removing one of two trees that share an engine gives nothing back"
    assert model not in files_of(cache)
    assert contents_of(other.path) == contents_of(other.path.parents[2] / "other")
    assert cache.used() <= cache.limit


def test_a_tree_that_a_server_holds_stays_and_the_pull_says_that_it_does_not_fit(
    make_tree: MakeTree, reference: Reference, cache: Cache
) -> None:
    served = fetch(published(make_tree(megabytes=1), reference, "v1"), cache)
    other = published(make_tree("other", seed=2, megabytes=1), reference, "v2")
    cache.limit = cache.used() + (200 << 10)

    with cache.lease(served.digest).open() as lease:
        fcntl.flock(lease, fcntl.LOCK_SH)
        with pytest.raises(StoreError, match="do not fit the limit"):
            fetch(other, cache)
        assert verify_tree(served.path).problems == ()

    fetch(other, cache)
    assert not served.path.exists()


def test_a_tree_that_was_used_just_now_stays(make_tree: MakeTree, reference: Reference, tmp_path: Path) -> None:
    patient = Cache(tmp_path / "cache")
    first = fetch(published(make_tree(megabytes=1), reference, "v1"), patient)
    patient.limit = patient.used()

    with pytest.raises(StoreError, match="do not fit the limit"):
        fetch(published(make_tree("other", seed=2, megabytes=1), reference, "v2"), patient)

    assert first.path.exists()


def test_every_bit_that_flips_in_a_cached_tree_is_found_and_mended(
    make_tree: MakeTree, reference: Reference, cache: Cache
) -> None:
    tree = make_tree(megabytes=0.3)
    named = published(tree, reference, "v1")
    done = fetch(named, cache)
    chance, expected = random.Random(4), contents_of(tree)
    count = int(os.environ.get("ENGINEROOM_FLIPS", "30"))
    for number in range(count):
        path = done.path / chance.choice([path for path, data in expected.items() if data])
        data = bytearray(path.read_bytes())
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        with path.open("r+b") as file:  # in place: all names of the file see it
            file.write(data)

        again = fetch(named, cache)

        assert not again.already_there, f"flip {number} in {path.name} was not found"
        assert contents_of(done.path) == expected
    assert verify_tree(done.path).problems == ()
    # The mended files are the ones that later trees will share.
    later = fetch(published(changed(tree, 3), reference, "v2"), cache)
    assert later.downloaded_bytes == 400


def test_a_flipped_file_of_another_tree_is_not_shared(make_tree: MakeTree, reference: Reference, cache: Cache) -> None:
    tree = make_tree(megabytes=0.3)
    first = fetch(published(tree, reference, "v1"), cache)
    second = published(changed(tree, 3), reference, "v2")
    with (first.path / "engine/model.bin").open("r+b") as file:
        file.seek(100_000)
        file.write(b"\xff\x00\xff\x00")

    done = fetch(second, cache)

    assert contents_of(done.path) == contents_of(tree)
    assert not (first.path / "engine/model.bin").samefile(done.path / "engine/model.bin")


def test_refuses_a_folder_that_is_something_else(make_tree: MakeTree, reference: Reference, tmp_path: Path) -> None:
    named = published(make_tree(), reference, "v1")
    fill(tmp_path / "home" / "thesis.txt", 10, 1)
    with pytest.raises(InputError, match="no cache"):
        fetch(named, Cache(tmp_path / "home"))
    (tmp_path / "home" / "thesis.txt").unlink()
    fetch(named, Cache(tmp_path / "home"))


def test_what_killed_pulls_left_is_removed_when_room_is_needed(
    make_tree: MakeTree, reference: Reference, cache: Cache
) -> None:
    first = fetch(published(make_tree(megabytes=1), reference, "v1"), cache)
    staging = cache.folder / "trees" / f".{first.path.name}.pull-{first.path.name[:16]}"
    fill(staging / "engine" / "model.bin", 1 << 20, 5)
    fill(cache.folder / "trees" / ".x.gone-1-0" / "model.bin", 1 << 20, 6)
    fill(cache.folder / "files" / ("0" * 64), 1 << 20, 7)
    cache.limit = (1 << 20) + (300 << 10)

    second = fetch(published(make_tree("other", seed=2, megabytes=1), reference, "v2"), cache)

    assert [path.name for path in (cache.folder / "trees").iterdir() if path.is_dir()] == [second.path.name]
    assert cache.used() < cache.limit
