"""Kill -9 at random instants of a publication and of a pull.

``ENGINEROOM_KILLS`` sets how many of each (10); ``ENGINEROOM_KILLS_SEED`` repeats a run's instants.
"""

import hashlib
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from artifact_servers import use_endpoint
from artifact_transfer import CHUNK_BYTES, PART_BYTES, transfer
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
    chance = random.Random(seed)
    trees, references = [], []
    for number in range(2):
        trees.append(fill_tree(tmp_path / f"tree{number}", seed=number, megabytes=MEGABYTES))
        references.append(f"{root}/demo:v{number}")
        transfer("publish", references[number], trees[number], kill_after=None)
    contents = [contents_of(tree) for tree in trees]
    target = tmp_path / "served" / "model"
    usual = min(transfer("pull", reference, target, kill_after=None) for reference in [*references, references[0]])
    unfinished = 0
    for number in range(KILLS):
        old, new = contents[number % 2], contents[(number + 1) % 2]
        reference = references[(number + 1) % 2]

        took = transfer("pull", reference, target, kill_after=chance.uniform(0, usual))

        found = contents_of(target)
        assert found in (old, new), f"seed {seed}, kill {number}: the target is neither the old tree nor the new one"
        unfinished += found == old
        usual = usual if found == old else min(usual, took)
        transfer("pull", reference, target, kill_after=None)
        assert contents_of(target) == new, f"seed {seed}, kill {number}"
        assert verify_tree(target).problems == ()
        left = [path.name for path in target.parent.iterdir() if path.is_dir()]
        assert left == ["model"], f"seed {seed}, kill {number}"
    assert unfinished, "no kill came in mid-flight: this test proved nothing"
    with capsys.disabled():
        sys.stdout.write(f"\n{root.partition(':')[0]}: {unfinished} of {KILLS} pulls cut off (seed {seed})\n")
