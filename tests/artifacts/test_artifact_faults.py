"""Stores that fail: whatever they do, a transfer finishes, or ends with a clean error; it never has wrong bytes.

``ENGINEROOM_FAULTS`` sets how many publications and pulls of each kind of store (3); ``ENGINEROOM_FAULTS_SEED``
repeats a run.
"""

import hashlib
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from artifact_faults import FaultyProxy
from artifact_servers import use_endpoint
from artifact_trees import MakeTree, contents_of, fill, write_record

from engineroom.artifacts import bucket, landing, parallel, registry
from engineroom.artifacts.cache import Cache
from engineroom.artifacts.publish import publish
from engineroom.artifacts.pull import pull
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.stores import open_store
from engineroom.artifacts.verify import verify_artifact
from engineroom.errors import ArtifactCorruptError, EngineroomError, StoreError

pytestmark = [pytest.mark.local, pytest.mark.timeout(1800), pytest.mark.usefixtures("small_chunks")]

COUNT = int(os.environ.get("ENGINEROOM_FAULTS", "3"))
SEED = int(os.environ.get("ENGINEROOM_FAULTS_SEED", random.randrange(1 << 30)))


class Place:
    """A store behind a proxy that harms, and the same store without it."""

    def __init__(self, proxy: FaultyProxy, harmed: str, clean: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.proxy, self.harmed, self.clean = proxy, harmed, clean
        self._monkeypatch = monkeypatch

    def reference(self, tag: str, *, harmed: bool) -> Reference:
        if self.harmed.startswith("s3://"):
            use_endpoint(self._monkeypatch, self.proxy.server_port if harmed else self.proxy.backend)
        return Reference.parse(f"{self.harmed if harmed else self.clean}:{tag}")


@pytest.fixture(params=["s3", "oci"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    for module in (bucket, registry):
        monkeypatch.setattr(module, "STALL_SECONDS", 1)
    for module in (parallel, landing, registry):
        monkeypatch.setattr(module, "PATIENCE", 0.02)
    server = request.getfixturevalue("seaweedfs" if request.param == "s3" else "registry")
    backend = server if request.param == "s3" else server[0]
    proxy = FaultyProxy(backend, seed=SEED, share=0.15)
    name = f"{tmp_path.name.lower()}/demo"
    if request.param == "s3":
        yield Place(proxy, f"s3://models/{name}", f"s3://models/{name}", monkeypatch)
    else:
        ports = (proxy.server_port, backend)
        harmed, clean = (f"oci://127.0.0.1:{port}/{name.replace('__', '_')}" for port in ports)
        yield Place(proxy, harmed, clean, monkeypatch)
    proxy.shutdown()
    proxy.server_close()


def tell(capsys: pytest.CaptureFixture[str], what: str, place: Place, found: Counter[str]) -> None:
    harms = ", ".join(f"{kind} {count}" for kind, count in sorted(place.proxy.done.items()))
    with capsys.disabled():
        sys.stdout.write(f"\n{what}, {place.harmed[:3]} (seed {SEED}): {dict(found)}; harms: {harms}\n")


def test_a_pull_through_faults_has_the_right_bytes_or_none(
    make_tree: MakeTree, place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = make_tree(megabytes=0.6)
    clean = place.reference("v1", harmed=False)
    publish(tree, clean, store=open_store(clean))
    expected, found = contents_of(tree), Counter[str]()
    for _ in range(COUNT):
        reference = place.reference("v1", harmed=True)
        try:
            pull(reference, tmp_path / "out", store=open_store(reference))
        except EngineroomError as error:
            assert error.exit_code in {3, 4}
            assert not (tmp_path / "out").exists()
            found["clean error"] += 1
        else:
            assert contents_of(tmp_path / "out") == expected, f"seed {SEED}: wrong bytes"
            shutil.rmtree(tmp_path / "out")
            found["finished"] += 1
    tell(capsys, "pull", place, found)
    assert sum(place.proxy.done.values()), "nothing was harmed: this test proved nothing"


def test_a_publication_through_faults_shows_all_or_nothing(
    make_tree: MakeTree, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    tree, found = make_tree(megabytes=0.6), Counter[str]()
    for number in range(COUNT):
        fill(tree / "engine" / "model.bin", 600_000, number)
        write_record(tree)
        harmed = place.reference(f"v{number}", harmed=True)
        try:
            publish(tree, harmed, store=open_store(harmed))
            found["finished"] += 1
        except EngineroomError as error:
            assert error.exit_code in {3, 4}
            found["clean error"] += 1
        clean = place.reference(f"v{number}", harmed=False)
        store = open_store(clean)
        if store.read_tag(clean.name, f"v{number}"):
            assert verify_artifact(clean, store=store).problems == (), f"seed {SEED}: a tag names half an artifact"
        publish(tree, clean, store=store)
        assert verify_artifact(clean, store=store).problems == ()
    tell(capsys, "publish", place, found)
    assert sum(place.proxy.done.values()), "nothing was harmed: this test proved nothing"


@pytest.mark.parametrize("kind", ["503", "stall", "truncate", "short length", "flip"])
def test_a_store_that_always_fails_in_one_way_is_a_clean_error(
    make_tree: MakeTree, place: Place, tmp_path: Path, kind: str
) -> None:
    clean = place.reference("v1", harmed=False)
    publish(make_tree(megabytes=0.1), clean, store=open_store(clean))
    place.proxy.share, place.proxy.kinds = 1.0, [kind]
    harmed = place.reference("v1", harmed=True)

    with pytest.raises((StoreError, ArtifactCorruptError)) as refusal:
        pull(harmed, tmp_path / "out", store=open_store(harmed))

    assert refusal.value.found
    assert not (tmp_path / "out").exists()


def test_an_answer_that_is_lost_is_no_second_owner_of_a_tag(make_tree: MakeTree, place: Place) -> None:
    """The server made the tag, the client never heard of it: asking again finds its own."""
    place.proxy.share, place.proxy.kinds = 0.3, ["lost answer"]
    tree = make_tree(megabytes=0.1)
    for number in range(4):
        reference = place.reference(f"lost{number}", harmed=True)
        try:
            done = publish(tree, reference, store=open_store(reference))
        except StoreError:
            continue
        clean = place.reference(f"lost{number}", harmed=False)
        state = open_store(clean).read_tag(clean.name, f"lost{number}")
        assert state is not None
        assert state.pointer.digest == done.digest


def test_every_bit_that_flips_in_a_store_is_found(make_tree: MakeTree, reference: Reference, tmp_path: Path) -> None:
    """``ENGINEROOM_FLIPS`` of them (30), in every kind of object."""
    tree = make_tree(megabytes=0.3)
    publish(tree, reference, store=open_store(reference))
    folder, chance, expected = Path(reference.location), random.Random(SEED), contents_of(tree)
    objects = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    objects = [path for path in objects if not path.name.startswith("key-")]
    for number in range(int(os.environ.get("ENGINEROOM_FLIPS", "30"))):
        path = chance.choice(objects)
        data = path.read_bytes()
        at, bit = chance.randrange(len(data)), chance.randrange(8)
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])

        found: EngineroomError | None = None
        target = tmp_path / str(number) / "out"  # a new one: what an earlier pull left is right, and is kept
        try:
            pull(reference, target, store=open_store(reference))
        except EngineroomError as error:
            found = error

        assert found, f"flip {number}: bit {bit} of byte {at} of {path.relative_to(folder)} was not found"
        assert found.exit_code == 3, f"flip {number} of {path.name}: {found}"
        assert not target.exists()
        shutil.rmtree(target.parent, ignore_errors=True)
        path.write_bytes(data)
    pull(reference, tmp_path / "out", store=open_store(reference))
    assert contents_of(tmp_path / "out") == expected


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(mount)], check=False)
    if done.returncode:
        pytest.skip("mounting a file system needs root")
    yield mount
    subprocess.run(["umount", "--lazy", str(mount)], check=True)


@pytest.mark.parametrize("cached", [False, True], ids=["folder", "cache"])
def test_a_disk_that_fills_up_meanwhile_is_a_clean_error_and_gets_its_space_back(
    make_tree: MakeTree, reference: Reference, small_disk: Path, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(make_tree(megabytes=30), reference, store=open_store(reference))
    # Somebody else takes the space between the look at it and the download.
    usage = shutil.disk_usage(small_disk)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(44 << 20))
    target = {"cache": Cache(small_disk / "cache")} if cached else {"to": small_disk / "out" / "model"}
    free = os.statvfs(small_disk).f_bavail

    with pytest.raises(StoreError, match="no space left"):
        pull(reference, store=open_store(reference), **target)  # type: ignore[arg-type]

    assert os.statvfs(small_disk).f_bavail >= free - 16, "some blocks for folders and locks, no more"
    filler.unlink()
    done = pull(reference, store=open_store(reference), **target)  # type: ignore[arg-type]
    assert not done.already_there


def test_a_store_whose_disk_is_full_is_a_clean_error_and_has_no_half_blobs(
    make_tree: MakeTree, small_disk: Path
) -> None:
    tree = make_tree(megabytes=30)
    (small_disk / "filler").write_bytes(bytes(44 << 20))
    reference = Reference.parse(f"file://{small_disk}/store/demo:v1")

    with pytest.raises(StoreError, match="no space left"):
        publish(tree, reference, store=open_store(reference))

    blobs = list((small_disk / "store" / "blobs" / "sha256").glob("*"))
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in blobs)
    assert list((small_disk / "store" / "incoming").iterdir()) == []
    (small_disk / "filler").unlink()
    publish(tree, reference, store=open_store(reference))
