"""Kill -9 at random instants of a publication, of a pull, and of two of them at once.

``ENGINEROOM_KILLS`` sets how many of each (10); ``ENGINEROOM_KILLS_SEED`` repeats a run's instants.
"""

import hashlib
import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from artifact_servers import use_endpoint
from artifact_transfer import CHUNK_BYTES, PART_BYTES, kill_pulls, side_by_side, transfer
from artifact_trees import contents_of, fill, fill_tree, write_record

from engineroom import documents
from engineroom.artifacts import manifest
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.stores import open_store
from engineroom.artifacts.verify import verify_artifact, verify_tree

pytestmark = [pytest.mark.local, pytest.mark.timeout(900)]

KILLS = int(os.environ.get("ENGINEROOM_KILLS", "10"))
MEGABYTES = 16


@pytest.fixture(params=["file", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(documents, "CHUNK_BYTES", CHUNK_BYTES)
    monkeypatch.setattr(manifest, "PART_BYTES", PART_BYTES)
    if request.param == "file":
        yield f"file://{tmp_path}/store"
    else:
        port = request.getfixturevalue("seaweedfs")
        use_endpoint(monkeypatch, port)
        yield f"s3://models/{tmp_path.name}"


def blobs(root: str) -> Iterator[tuple[str, str]]:
    """Name and digest of everything that is visible as a blob."""
    if root.startswith("file://"):
        for path in Path(root.removeprefix("file://"), "blobs", "sha256").glob("*"):
            yield path.name, hashlib.sha256(path.read_bytes()).hexdigest()
        return
    import obstore
    from obstore.store import S3Store

    bucket = S3Store(
        "models",
        endpoint=os.environ["AWS_ENDPOINT_URL"],
        client_options={"allow_http": True},
        virtual_hosted_style_request=False,
    )
    prefix = root.removeprefix("s3://models/") + "/blobs/sha256"
    for page in obstore.list(bucket, prefix):
        for meta in page:
            found = hashlib.sha256(bytes(obstore.get(bucket, meta["path"]).bytes())).hexdigest()
            yield meta["path"].rpartition("/")[2], found


def test_a_killed_publication_shows_nothing_partial_and_the_next_run_completes_it(
    root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("ENGINEROOM_KILLS_SEED", random.randrange(1 << 30)))
    chance = random.Random(seed)
    tree = fill_tree(tmp_path / "tree", seed=0, megabytes=MEGABYTES)
    usual = min(transfer("publish", f"{root}/warm{number}/demo:v1", tree, kill_after=None) for number in range(2))
    unfinished = 0
    for number in range(KILLS):
        fill(tree / "engine" / "model.bin", MEGABYTES << 20, number + 1)
        write_record(tree)
        reference = Reference.parse(f"{root}/{number}/demo:v1")
        store = open_store(reference)

        took = transfer("publish", str(reference), tree, kill_after=chance.uniform(0, usual))

        for name, digest in blobs(reference.root):
            assert name == digest, f"seed {seed}, kill {number}: a partial blob is visible"
        if store.read_tag("demo", "v1") is None:
            unfinished += 1
        else:
            usual = min(usual, took)  # the kill came too late: aim earlier
            assert verify_artifact(reference, store=store).problems == (), f"seed {seed}, kill {number}"
        transfer("publish", str(reference), tree, kill_after=None)
        assert verify_artifact(reference, store=store).problems == (), f"seed {seed}, kill {number}"
    assert unfinished, "no kill came in mid-flight: this test proved nothing"
    with capsys.disabled():
        sys.stdout.write(f"\n{root.partition(':')[0]}: {unfinished} of {KILLS} publications cut off (seed {seed})\n")


def test_a_killed_pull_leaves_the_old_tree_and_the_next_run_completes_it(
    root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("ENGINEROOM_KILLS_SEED", random.randrange(1 << 30)))
    trees, references = [], []
    for number in range(2):
        trees.append(fill_tree(tmp_path / f"tree{number}", seed=number, megabytes=MEGABYTES))
        references.append(f"{root}/demo:v{number}")
        transfer("publish", references[number], trees[number], kill_after=None)
    contents = [contents_of(tree) for tree in trees]
    target = tmp_path / "served" / "model"
    unfinished = kill_pulls(
        target, references, contents, KILLS, seed=seed, check=lambda: verify_tree(target).problems == ()
    )
    assert unfinished, "no kill came in mid-flight: this test proved nothing"
    with capsys.disabled():
        sys.stdout.write(f"\n{root.partition(':')[0]}: {unfinished} of {KILLS} pulls cut off (seed {seed})\n")


def test_two_publishers_of_one_artifact_killed_at_once_show_nothing_partial(
    root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("ENGINEROOM_KILLS_SEED", random.randrange(1 << 30)))
    chance = random.Random(seed)
    tree = fill_tree(tmp_path / "tree", seed=0, megabytes=MEGABYTES)
    usual = min(transfer("publish", f"{root}/warm{number}/demo:v1", tree, kill_after=None) for number in range(2))
    unfinished = 0
    for number in range(max(KILLS // 2, 1)):
        fill(tree / "engine" / "model.bin", MEGABYTES << 20, number + 1)
        write_record(tree)
        reference = Reference.parse(f"{root}/{number}/demo:v1")
        store = open_store(reference)

        side_by_side(*(("publish", str(reference), tree, chance.uniform(0, 1.5 * usual)) for _ in range(2)))

        for name, digest in blobs(reference.root):
            assert name == digest, f"seed {seed}, kill {number}: a partial blob is visible"
        if store.read_tag("demo", "v1") is None:
            unfinished += 1
        else:
            assert verify_artifact(reference, store=store).problems == (), f"seed {seed}, kill {number}"
        # One goes on, the other is killed meanwhile.
        side_by_side(
            ("publish", str(reference), tree, None), ("publish", str(reference), tree, chance.uniform(0, usual))
        )
        assert verify_artifact(reference, store=store).problems == (), f"seed {seed}, kill {number}"
    with capsys.disabled():
        sys.stdout.write(
            f"\n{root.partition(':')[0]}: {2 * max(KILLS // 2, 1)} publishers killed in pairs, "
            f"{unfinished} pairs without a tag (seed {seed})\n"
        )


def test_pulls_of_two_versions_into_one_cache_killed_at_once_leave_whole_trees_only(
    root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("ENGINEROOM_KILLS_SEED", random.randrange(1 << 30)))
    chance = random.Random(seed)
    tree = fill_tree(tmp_path / "tree", seed=0, megabytes=MEGABYTES)
    references = [f"{root}/demo:v{number}" for number in range(2)]
    contents = []
    for number, reference in enumerate(references):  # one engine, two configurations
        fill(tree / "model_repository" / "tensorrt_llm" / "config.pbtxt", 100 + number, number)
        write_record(tree)
        transfer("publish", reference, tree, kill_after=None)
        contents.append(contents_of(tree))
    usual = min(transfer("cache", references[0], tmp_path / f"warm{number}", kill_after=None) for number in range(2))
    unfinished, pairs = 0, max(KILLS // 2, 1)
    for number in range(pairs):
        cache = tmp_path / f"cache{number}"

        side_by_side(*(("cache", reference, cache, chance.uniform(0, 1.2 * usual)) for reference in references))

        whole = list((cache / "trees").glob("[!.]*"))
        for path in whole:
            assert contents_of(path) in contents, f"seed {seed}, kill {number}: a tree is not whole"
        for path in (cache / "files").glob("*"):
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name, f"seed {seed}, kill {number}"
        unfinished += len(whole) < 2
        side_by_side(*(("cache", reference, cache, None) for reference in [*references, *references]))
        whole = list((cache / "trees").glob("[!.]*"))
        assert sorted(len(contents_of(path)) for path in whole) == sorted(map(len, contents))
        assert all(contents_of(path) in contents and verify_tree(path).problems == () for path in whole)
        assert [path for path in (cache / "trees").glob(".*") if path.is_dir()] == []
        shutil.rmtree(cache)
    assert unfinished or pairs < 5, "no kill came in mid-flight: this test proved nothing"
    with capsys.disabled():
        sys.stdout.write(
            f"\n{root.partition(':')[0]}: {2 * pairs} pulls into a cache killed in pairs, "
            f"{unfinished} pairs cut off (seed {seed})\n"
        )
