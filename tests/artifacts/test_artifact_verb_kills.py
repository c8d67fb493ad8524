"""Kill -9 at random instants of copy, gc, export, import, backup and restore, two processes at once included.

``ENGINEROOM_KILLS`` sets how many of each (4); ``ENGINEROOM_KILLS_SEED`` repeats a run's instants.
"""

import hashlib
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from artifact_servers import use_endpoint
from artifact_trees import contents_of, fill, fill_tree, write_record
from artifact_verbs import CHUNK_BYTES, CONDEMNED_SECONDS, PART_BYTES, Verb, run

from engineroom import documents
from engineroom.artifacts import holds, manifest
from engineroom.artifacts.backup import verify_backup
from engineroom.artifacts.garbage import collect
from engineroom.artifacts.publish import publish
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.store import CollectableStore
from engineroom.artifacts.stores import open_store
from engineroom.artifacts.verify import verify_artifact
from engineroom.artifacts.volume import MARK

pytestmark = [pytest.mark.local, pytest.mark.timeout(1800)]

KILLS = int(os.environ.get("ENGINEROOM_KILLS", "4"))
MEGABYTES = 6

Say = Callable[[str], None]


@pytest.fixture(params=["file", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(documents, "CHUNK_BYTES", CHUNK_BYTES)
    monkeypatch.setattr(manifest, "PART_BYTES", PART_BYTES)
    monkeypatch.setattr(holds, "CONDEMNED_SECONDS", CONDEMNED_SECONDS)
    if request.param == "file":
        return f"file://{tmp_path}/store"
    use_endpoint(monkeypatch, request.getfixturevalue("seaweedfs"))
    return f"s3://models/{tmp_path.name}"


@pytest.fixture
def chance() -> random.Random:
    seed = int(os.environ.get("ENGINEROOM_KILLS_SEED", random.randrange(1 << 30)))
    sys.stdout.write(f"seed {seed}\n")
    return random.Random(seed)


@pytest.fixture
def say(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Say:
    def say(text: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\n{request.node.callspec.params['root']}: {text}\n")

    return say


def opened(root: str) -> CollectableStore:
    store = open_store(root)
    assert isinstance(store, CollectableStore)
    return store


def assert_blobs_are_right(root: str) -> None:
    """Everything that is visible as a blob hashes to its name."""
    store = opened(root)
    for entry in store.blobs():
        data = b"".join(bytes(piece) for piece in store.read_blob(entry.hex, 0, entry.size, size=entry.size))
        assert hashlib.sha256(data).hexdigest() == entry.hex, "a partial blob is visible"


def assert_tags_are_whole(root: str) -> int:
    """Everything that a tag names is there, to the byte; the number of tags."""
    store, scheme, location = opened(root), *root.split("://")
    entries = store.list_tags()
    right: set[str] = set()
    for entry in entries:
        reference = Reference(scheme, location, entry.name, entry.tag)
        assert verify_artifact(reference, store=store, right=right).problems == (), str(reference)
    return len(entries)


def tries(tally: Counter[str], *wanted: str) -> Iterator[int]:
    """Numbers of the tries: so many, and more until each of ``wanted`` was seen. Nothing seen proves nothing."""
    for number in range(20 * KILLS):
        if number >= KILLS and all(tally[one] for one in wanted):
            return
        tally["tries"] += 1
        yield number
    raise AssertionError(f"not seen in {20 * KILLS} tries: {wanted}")


def new_tree(tree: Path, seed: int) -> Path:
    if not tree.exists():
        return fill_tree(tree, seed=seed, megabytes=MEGABYTES)
    fill(tree / "engine" / "model.bin", MEGABYTES << 20, seed)
    write_record(tree)
    return tree


def test_a_killed_copy_shows_nothing_partial_and_the_next_completes_it(
    root: str, tmp_path: Path, chance: random.Random, say: Say
) -> None:
    """Two copies of one artifact at once; one is killed, or both are."""
    source = f"file://{tmp_path}/source/demo"
    usual, tally = 0.0, Counter[str]()
    for number in tries(tally, "cut"):
        reference = Reference.parse(f"{source}:v{number}")
        publish(new_tree(tmp_path / "tree", number), reference, store=open_store(reference))
        there = f"{root}/{number}/demo:v1"
        usual = usual or run("copy", source=str(reference), to=f"{root}/warm/demo:v1")
        both = [Verb("copy", source=str(reference), to=there) for _ in range(2)]
        for one in both:
            one.go()
        took = min(one.end(kill_after=chance.uniform(0, usual)) for one in both)
        if open_store(there).read_tag("demo", "v1") is None:
            tally["cut"] += 1
        else:
            usual = min(usual, took)  # the kill came too late: aim earlier

        assert_blobs_are_right(f"{root}/{number}")
        assert_tags_are_whole(f"{root}/{number}")
        run("copy", source=str(reference), to=there)
        assert assert_tags_are_whole(f"{root}/{number}") == 2
    say(f"{tally['cut']} of {tally['tries']} pairs of copies cut off")


def test_a_collection_beside_a_publication_loses_nothing_that_a_tag_names(
    root: str, tmp_path: Path, chance: random.Random, say: Say
) -> None:
    """The publication skips blobs that are garbage at that moment, which the collection is about to remove."""
    tree = fill_tree(tmp_path / "tree", seed=0, megabytes=0.1)
    for number in range(40):
        fill(tree / "engine" / f"part-{number:02}.bin", 1000 + number, number)
    write_record(tree)
    store = opened(root)
    usual = dict.fromkeys(("publish", "gc"), 0.0)
    tally = Counter[str]()
    for number in tries(tally, "tagged", "collected"):
        if number % 3 == 1:  # also what was never there
            fill(tree / "engine" / "model.bin", 100_000, number)
            write_record(tree)
        publish(tree, Reference.parse(f"{root}/old:v1"), store=store)
        for entry in store.list_tags():
            store.remove_tag(entry.name, entry.tag)  # and no word of it: all is garbage now
        garbage = sum(1 for _ in store.blobs())
        writer = Verb("publish", tree=tree, to=f"{root}/demo:v{number}")
        collector = Verb("gc", root=root)
        if not any(usual.values()):
            usual["publish"] = Verb("publish", tree=tree, to=f"{root}/warm:v1").go().end()
            usual["gc"] = Verb("gc", root=root).go().end()
            for tag in store.tags("warm"):
                store.remove_tag("warm", tag)
        first, second = chance.sample([writer, collector], 2)
        first.go()
        first_dies = chance.choice([None, chance.uniform(0, 2 * max(usual.values()))])
        second_dies = chance.choice([None, chance.uniform(0, 2 * max(usual.values()))])
        second.go()
        first.end(kill_after=first_dies)
        second.end(kill_after=second_dies)

        assert_blobs_are_right(root)
        tally["tagged"] += assert_tags_are_whole(root) > 0
        tally["collected"] += sum(1 for _ in store.blobs()) < garbage
        run("publish", tree=tree, to=f"{root}/demo:v{number}")
        assert assert_tags_are_whole(root) == 2
        for notice in store.notices():  # of the killed: they would keep garbage for a day
            store.withdraw(notice.name)
    kept = collect(store, grace_seconds=0)
    assert kept.kept_blobs == sum(1 for _ in store.blobs())
    assert assert_tags_are_whole(root) == 2
    found = f"{tally['tagged']} set their tag, {tally['collected']} removed blobs"
    say(f"{tally['tries']} collections beside publications: {found}")


def test_a_killed_export_leaves_no_file_and_the_next_goes_on(
    root: str, tmp_path: Path, chance: random.Random, say: Say
) -> None:
    reference = Reference.parse(f"{root}/demo:v1")
    publish(new_tree(tmp_path / "tree", 1), reference, store=open_store(reference))
    usual = run("export", source=str(reference), to=tmp_path / "whole.tar")
    whole = (tmp_path / "whole.tar").read_bytes()
    to, tally = tmp_path / "out" / "demo.tar", Counter[str]()
    to.parent.mkdir()
    for _ in tries(tally, "cut"):
        both = [Verb("export", source=str(reference), to=to) for _ in range(2)]
        for one in both:
            one.go()
        took = min(one.end(kill_after=chance.uniform(0, usual)) for one in both)
        if to.exists():
            assert to.read_bytes() == whole
            usual = min(usual, took)
        else:
            tally["cut"] += 1
        if chance.random() < 0.5:  # else what is there goes on being built upon
            run("export", source=str(reference), to=to)
            assert to.read_bytes() == whole
            assert sorted(path.name for path in to.parent.iterdir()) == ["demo.tar", "demo.tar.sha256"]
            to.unlink()
    say(f"{tally['cut']} of {tally['tries']} pairs of exports cut off")


def test_a_killed_import_shows_nothing_partial_and_the_next_completes_it(
    root: str, tmp_path: Path, chance: random.Random, say: Say
) -> None:
    reference = Reference.parse(f"file://{tmp_path}/source/demo:v1")
    publish(new_tree(tmp_path / "tree", 1), reference, store=open_store(reference))
    bundle = tmp_path / "demo.tar"
    run("export", source=str(reference), to=bundle)
    usual, tally = run("import", path=bundle, to=f"{root}/warm"), Counter[str]()
    for number in tries(tally, "cut"):
        place = f"{root}/{number}"
        took = run("import", path=bundle, to=place, kill_after=chance.uniform(0, usual))
        if open_store(place).read_tag("demo", "v1") is None:
            tally["cut"] += 1
        else:
            usual = min(usual, took)

        assert_blobs_are_right(place)
        assert_tags_are_whole(place)
        run("import", path=bundle, to=place)
        assert assert_tags_are_whole(place) == 2
    say(f"{tally['cut']} of {tally['tries']} imports cut off")


def test_a_killed_backup_is_none_and_a_killed_restoration_says_so(
    root: str, tmp_path: Path, chance: random.Random, say: Say
) -> None:
    reference = Reference.parse(f"file://{tmp_path}/source/demo:v1")
    publish(new_tree(tmp_path / "tree", 1), reference, store=open_store(reference))
    volume = tmp_path / "volume"
    for number in range(4):
        fill(volume / "sub" / f"{number}.bin", (2 << 20) + number, number)
    usual = run("backup", source=str(reference), to=f"{root}/warm/llm", folder=volume)
    back = run("restore", source=f"{root}/warm/llm", to=f"file://{tmp_path}/warm", folder=tmp_path / "warm-folder")
    tally = Counter[str]()
    for number in tries(tally, "cut", "cut back"):
        place = f"{root}/{number}"
        both = [Verb("backup", source=str(reference), to=f"{place}/llm", folder=volume) for _ in range(2)]
        for one in both:
            one.go()
        took = min(one.end(kill_after=chance.uniform(0, usual)) for one in both)
        store = opened(place)
        assert_blobs_are_right(place)
        if store.tags("llm"):
            usual = min(usual, took)
        else:
            tally["cut"] += 1
        for tag in store.tags("llm"):
            assert verify_backup(Reference.parse(f"{place}/llm:{tag}"), store=store).problems == ()
        run("backup", source=str(reference), to=f"{place}/llm", folder=volume)

        target, folder = f"file://{tmp_path}/restored-{number}", tmp_path / f"folder-{number}"
        took = run("restore", source=f"{place}/llm", to=target, folder=folder, kill_after=chance.uniform(0, back))
        assert_blobs_are_right(target)
        assert_tags_are_whole(target)
        # Killed while the mark was written, of which a file of another name is left: the next one removes it.
        half = set(folder.glob(f".{MARK}.*"))
        if folder.exists() and not (folder / MARK).exists() and set(folder.iterdir()) - half:
            assert contents_of(folder) == contents_of(volume)
            back = min(back, took)
        else:
            tally["cut back"] += 1
        run("restore", source=f"{place}/llm", to=target, folder=folder)
        assert contents_of(folder) == contents_of(volume)
        assert assert_tags_are_whole(target) == 2
    say(f"{tally['cut']} pairs of backups and {tally['cut back']} restorations of {tally['tries']} each cut off")
