"""Bundles: out to one file and back in, and files that were made to harm."""

import hashlib
import io
import json
import os
import random
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from artifact_trees import MakeTree, contents_of
from hypothesis import given, settings
from hypothesis import strategies as st

from engineroom.artifacts import archive, exporting
from engineroom.artifacts.backup import backup
from engineroom.artifacts.bundle import BundleStore, Entry, make_index
from engineroom.artifacts.copying import copy
from engineroom.artifacts.exporting import export, import_bundle
from engineroom.artifacts.garbage import collect
from engineroom.artifacts.publish import publish
from engineroom.artifacts.pull import pull
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.restore import restore
from engineroom.artifacts.scrub import scrub_bundle
from engineroom.artifacts.store import Pointer
from engineroom.artifacts.stores import open_store
from engineroom.artifacts.verify import verify_artifact
from engineroom.artifacts.volume import MARK
from engineroom.errors import ArtifactCorruptError, ArtifactExistsError, EngineroomError, InputError, StoreError

pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.fixture
def bundle(make_tree: MakeTree, reference: Reference, tmp_path: Path) -> Path:
    """``demo.tar``, with two artifacts that share files."""
    for number in (1, 2):
        place = Reference.parse(f"{reference.root}/demo:v{number}")
        publish(make_tree(f"tree{number}", seed=number, megabytes=0.1), place, store=open_store(place))
    references = [Reference.parse(f"{reference.root}/demo:v{number}") for number in (1, 2)]
    export(references, tmp_path / "demo.tar")
    return tmp_path / "demo.tar"


def test_what_was_exported_is_imported_with_its_names_and_digests(
    bundle: Path, reference: Reference, tmp_path: Path
) -> None:
    done = import_bundle(bundle, f"file://{tmp_path}/second")
    again = import_bundle(bundle, f"file://{tmp_path}/second")

    assert [one.reference.tag for one in done] == ["v1", "v2"]
    assert [one.copied_bytes for one in again] == [0, 0]
    for number in (1, 2):
        place = Reference.parse(f"file://{tmp_path}/second/demo:v{number}")
        pull(place, tmp_path / f"out{number}", store=open_store(place))
        assert contents_of(tmp_path / f"out{number}") == contents_of(tmp_path / f"tree{number}")
    assert scrub_bundle(bundle).problems == ()


def test_the_checksum_beside_a_bundle_is_one_for_sha256sum(bundle: Path) -> None:
    done = subprocess.run(
        ["sha256sum", "--check", "demo.tar.sha256"], cwd=bundle.parent, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout) == (0, "demo.tar: OK\n")


def test_equal_artifacts_are_equal_bundles_and_any_tar_reads_them(
    bundle: Path, reference: Reference, tmp_path: Path
) -> None:
    references = [Reference.parse(f"{reference.root}/demo:v{number}") for number in (2, 1)]

    again = export(references, tmp_path / "again.tar")

    assert again.path.read_bytes() == bundle.read_bytes()
    subprocess.run(["tar", "--extract", "--file", bundle, "--one-top-level=layout"], cwd=tmp_path, check=True)
    layout = tmp_path / "layout"
    assert json.loads((layout / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    for path in (layout / "blobs" / "sha256").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    assert [one.reference.tag for one in import_bundle(layout, f"file://{tmp_path}/second")] == ["v1", "v2"]


def test_a_layout_is_a_folder_to_which_more_can_be_exported(
    make_tree: MakeTree, bundle: Path, reference: Reference, tmp_path: Path
) -> None:
    for number in (1, 2):
        export([Reference.parse(f"{reference.root}/demo:v{number}")], tmp_path / "layout", layout=True)

    index = json.loads((tmp_path / "layout" / "index.json").read_text())
    names = [one["annotations"]["org.opencontainers.image.ref.name"] for one in index["manifests"]]
    assert names == ["v1", "v2"]
    assert sorted(path.name for path in (tmp_path / "layout").iterdir()) == ["blobs", "index.json", "oci-layout"]
    assert len(import_bundle(tmp_path / "layout", f"file://{tmp_path}/second")) == 2


def test_an_export_that_was_cut_off_goes_on_after_the_last_whole_blob(
    bundle: Path, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, chance = bundle.read_bytes(), random.Random(3)
    references = [Reference.parse(f"{reference.root}/demo:v{number}") for number in (1, 2)]
    read: list[str] = []
    real = exporting._read
    monkeypatch.setattr(exporting, "_read", lambda blob: (read.append(blob.needed.hex), real(blob))[1])
    for _ in range(20):
        staging = tmp_path / ".cut.tar.exporting"
        left = bytearray(whole[: chance.randrange(len(whole))])
        damaged = chance.random() < 0.5 and len(left) > 5000
        if damaged:
            left[chance.randrange(5000, len(left))] ^= 1  # what is there is not believed
        staging.write_bytes(left)
        read.clear()

        export(references, tmp_path / "cut.tar")

        assert (tmp_path / "cut.tar").read_bytes() == whole
        assert not staging.exists()
        (tmp_path / "cut.tar").unlink()
    staging.write_bytes(whole)
    read.clear()
    export(references, tmp_path / "cut.tar")
    assert read == []


def test_a_bundle_can_be_renamed_on_its_way_in(bundle: Path, reference: Reference, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 artifacts"):
        import_bundle(bundle, f"file://{tmp_path}/second", name="llama")
    one = export([Reference.parse(f"{reference.root}/demo:v1")], tmp_path / "one.tar").path

    (done,) = import_bundle(one, f"file://{tmp_path}/second", name="llama", tag="v7")

    assert (done.reference.name, done.reference.tag) == ("llama", "v7")


def test_a_dry_run_writes_nothing(bundle: Path, reference: Reference, tmp_path: Path) -> None:
    planned = export([Reference.parse(f"{reference.root}/demo:v1")], tmp_path / "new.tar", dry_run=True)
    stored = import_bundle(bundle, f"file://{tmp_path}/second", dry_run=True)

    assert not (tmp_path / "new.tar").exists()
    assert not (tmp_path / "second").exists()
    done = export([Reference.parse(f"{reference.root}/demo:v1")], tmp_path / "new.tar")
    assert planned.bytes == done.bytes == (tmp_path / "new.tar").stat().st_size
    assert stored[0].copied_bytes > 100_000


@pytest.mark.timeout(3600)
def test_every_flipped_bit_of_a_bundle_is_found(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the checksum; or it made no difference: padding, and what a header says of owner and time.

    ``ENGINEROOM_FLIPS`` sets how many bits (40).
    """
    count, chance = int(os.environ.get("ENGINEROOM_FLIPS", "40")), random.Random(11)
    whole = bundle.read_bytes()
    beside = bundle.with_name("demo.tar.sha256")
    found = harmless = 0
    for number in range(count):
        bit = chance.randrange(8 * len(whole))
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        bundle.write_bytes(data)
        with pytest.raises(ArtifactCorruptError, match="it hashes to"):
            import_bundle(bundle, f"file://{tmp_path}/second{number}")
        text = beside.read_text()
        beside.unlink()
        try:
            import_bundle(bundle, f"file://{tmp_path}/second{number}")
        except EngineroomError:
            found += 1
        else:
            harmless += 1
        for tag in open_store(f"file://{tmp_path}/second{number}").tags("demo"):
            place = Reference.parse(f"file://{tmp_path}/second{number}/demo:{tag}")
            assert verify_artifact(place, store=open_store(place)).problems == ()
        beside.write_text(text)
    assert harmless < count / 10
    with capsys.disabled():
        print(f"\n{count} of {count} found by the checksum; {found} without it, {harmless} changed nothing")


# Bundles that were made to harm


def make_tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive_file:
        for member, data in members:
            archive_file.addfile(member, io.BytesIO(data))
    return path


def member(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def layout_of(bundle: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    """The members of a good bundle, to be made bad."""
    with tarfile.open(bundle) as archive_file:
        return [(one, archive_file.extractfile(one).read()) for one in archive_file]  # type: ignore[union-attr]


HARM: dict[str, Callable[[list[tuple[tarfile.TarInfo, bytes]]], list[tuple[tarfile.TarInfo, bytes]]]] = {
    "a name that climbs out": lambda good: [*good, member("../../etc/passwd", b"x")],
    "an absolute name": lambda good: [*good, member("/etc/passwd", b"x")],
    "a blob that climbs": lambda good: [*good, member("blobs/sha256/../../x", b"x")],
    "a symbolic link": lambda good: [
        *good,
        member("blobs/sha256/" + "a" * 64, type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    ],
    "a hard link": lambda good: [*good, member("index.json", type=tarfile.LNKTYPE, linkname="/etc/passwd")],
    "a device": lambda good: [*good, member("blobs/sha256/" + "b" * 64, type=tarfile.CHRTYPE)],
    "a pipe": lambda good: [*good, member("blobs/sha256/" + "b" * 64, type=tarfile.FIFOTYPE)],
    "a folder of ours": lambda good: [*good, member("refs", type=tarfile.DIRTYPE)],
    "a name twice": lambda good: [*good, good[1]],
    "no index": lambda good: [one for one in good if one[0].name != "index.json"],
    "no oci-layout": lambda good: [one for one in good if one[0].name != "oci-layout"],
    "a long index": lambda good: [
        (member("index.json", b" " * (5 << 20)) if one[0].name == "index.json" else one) for one in good
    ],
    "an index that is none": lambda good: [
        (member("index.json", b'{"manifests": 7}') if one[0].name == "index.json" else one) for one in good
    ],
    "a deep index": lambda good: [
        (member("index.json", b"[" * 100_000) if one[0].name == "index.json" else one) for one in good
    ],
    "a missing blob": lambda good: good[:-1],
    "a blob of other bytes": lambda good: [*good[:-1], member(good[-1][0].name, good[-1][1] + b"x")],
    "another blob's bytes": lambda good: [*good[:-2], (good[-2][0], good[-2][1]), member(good[-1][0].name, good[3][1])],
}


@pytest.mark.parametrize("harm", HARM)
def test_a_harmful_bundle_is_refused_and_nothing_is_stored(bundle: Path, tmp_path: Path, harm: str) -> None:
    bad = make_tar(tmp_path / "bad.tar", HARM[harm](layout_of(bundle)))
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises((ArtifactCorruptError, InputError)) as refusal:
        import_bundle(bad, f"file://{tmp_path}/second")

    assert str(refusal.value).count("\n") == 0
    after = [path for path in tmp_path.rglob("*") if path not in before]
    assert not [path for path in after if "second" not in path.parts]
    assert open_store(f"file://{tmp_path}/second").list_tags() == []


@pytest.mark.parametrize("name", ["../evil", "a//b", "UPPER", "x" * 200, "", ".", "refs", "a\nb"])
def test_a_name_in_an_index_is_held_to_the_grammar_of_references(bundle: Path, tmp_path: Path, name: str) -> None:
    good = layout_of(bundle)
    index = json.loads(good[1][1])
    index["manifests"][0]["annotations"]["dev.engineroom.name"] = name
    bad = make_tar(tmp_path / "bad.tar", [good[0], member("index.json", json.dumps(index).encode()), *good[2:]])

    if name == "refs":  # odd, and legal
        assert import_bundle(bad, f"file://{tmp_path}/second")[0].reference.name == "refs"
        return
    with pytest.raises((ArtifactCorruptError, InputError)):
        import_bundle(bad, f"file://{tmp_path}/second")
    assert not (tmp_path / "second").exists()


def test_a_bundle_with_too_many_members_or_a_huge_header_is_refused(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = layout_of(bundle)
    long_name = make_tar(tmp_path / "long.tar", [*good, member("blobs/sha256/" + "x" * 200_000)])
    with pytest.raises(ArtifactCorruptError, match="a header of"):
        BundleStore(long_name)
    # A header that promises more than there is: a bomb of a few bytes.
    huge = archive.header("blobs/sha256/" + "c" * 64, 1 << 50)
    (tmp_path / "bomb.tar").write_bytes(bundle.read_bytes()[:512] + b"{}".ljust(512, b"\0") + huge)
    with pytest.raises((ArtifactCorruptError, InputError)):
        BundleStore(tmp_path / "bomb.tar")
    monkeypatch.setattr(archive, "MAX_MEMBERS", len(good) - 1)
    with pytest.raises(ArtifactCorruptError, match="members"):
        BundleStore(bundle)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "no plain tar"), (b"\x1f\x8b compressed", "no plain tar"), (b"x" * 5000, "no plain tar")],
)
def test_what_is_no_bundle_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "some.file"
    path.write_bytes(content)

    with pytest.raises(InputError, match=words):
        import_bundle(path, f"file://{tmp_path}/second")
    with pytest.raises(InputError, match="no such bundle"):
        import_bundle(tmp_path / "nothing", f"file://{tmp_path}/second")


def test_of_two_artifacts_neither_is_stored_where_one_tag_is_taken(
    make_tree: MakeTree, bundle: Path, tmp_path: Path
) -> None:
    place = Reference.parse(f"file://{tmp_path}/second/demo:v2")
    publish(make_tree("other", seed=9), place, store=open_store(place))

    with pytest.raises(ArtifactExistsError):
        import_bundle(bundle, f"file://{tmp_path}/second")

    assert open_store(place).read_tag("demo", "v1") is None


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here ({mounted.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_full_disk_is_named_and_its_space_given_back(
    bundle: Path, reference: Reference, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoreError, match="are free"):
        export([reference], small / "demo.tar")
    monkeypatch.setattr(exporting, "_SPARE_BYTES", -(1 << 30))
    with pytest.raises(StoreError, match="no space left"):
        export([reference], small / "demo.tar")
    assert list(small.iterdir()) == []

    target = Reference.parse(f"file://{small}/store/demo:v1")
    with pytest.raises(StoreError, match="no space left"):
        copy(reference, target, source_store=open_store(reference), store=open_store(target))
    with pytest.raises(StoreError, match="no space left"):
        import_bundle(bundle, f"file://{small}/store")
    with pytest.raises(StoreError, match="no space left"):
        backup([reference], Reference.parse(f"file://{small}/store/llm"))
    assert open_store(target).list_tags() == []
    assert not list((small / "store" / "incoming").iterdir())
    collect(open_store(target), grace_seconds=0)
    assert used(small) == 0

    (tmp_path / "volume").mkdir()
    (tmp_path / "volume" / "file").write_bytes(random.Random(1).randbytes(100_000))
    place = Reference.parse(f"file://{tmp_path}/backups/llm")
    backup([], place, folders=[tmp_path / "volume"])
    with pytest.raises(StoreError, match="no space left"):
        restore(place, folder_to=small / "out")
    assert (small / "out" / MARK).exists()  # nobody takes it for whole


tags = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True)
names = st.from_regex(r"[a-z0-9]{1,8}([._-][a-z0-9]{1,8})?", fullmatch=True)
pointers = st.builds(
    Pointer, st.from_regex(r"[0-9a-f]{64}", fullmatch=True).map(lambda text: f"sha256:{text}"), st.integers(1, 1 << 22)
)


@given(
    st.lists(st.builds(Entry, names, tags, pointers), min_size=1, max_size=6, unique_by=lambda one: (one.name, one.tag))
)
def test_an_index_reads_back_what_was_written(entries: list[Entry]) -> None:
    from engineroom.artifacts.bundle import _parse_index

    read = _parse_index(make_index(entries), "here")

    assert sorted(read, key=str) == sorted(entries, key=str)
    assert make_index(read) == make_index(entries)


@given(st.binary(max_size=3000))
@settings(max_examples=200)
def test_any_bytes_are_a_bundle_or_a_refusal(data: bytes) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(data)
        with pytest.raises((ArtifactCorruptError, InputError)):
            BundleStore(Path(file.name))
