"""Folders that `oras push` packed: what comes of them, and what is refused."""

import gzip
import os
import random
import shutil
import stat
import subprocess
import sys
import tarfile
import tracemalloc
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
from artifact_packing import Member, folder, make_tar, member, members_of, packed, push
from artifact_servers import use_endpoint
from artifact_transfer import CHUNK_BYTES, kill_pulls
from artifact_trees import MakeTree, contents_of, fill, write_record
from hypothesis import given
from hypothesis import strategies as st

from engineroom import documents
from engineroom.artifacts import unpacking
from engineroom.artifacts.cache import Cache
from engineroom.artifacts.copying import copy
from engineroom.artifacts.pull import Pulled, pull
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.stores import open_store
from engineroom.documents import list_files
from engineroom.errors import ArtifactCorruptError, InputError, StoreError

KILLS = int(os.environ.get("ENGINEROOM_KILLS", "10"))
FAULTS = int(os.environ.get("ENGINEROOM_FAULTS", "40"))


def pulled(reference: Reference, to: Path) -> Pulled:
    return pull(reference, to, store=open_store(reference))


def entries(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir()) if root.is_dir() else []


@pytest.fixture
def source(tmp_path: Path) -> Path:
    tree = tmp_path / "source"
    fill(tree / "engine" / "model.bin", 3_000_000, 1)
    fill(tree / "tokenizer" / "größe 字.txt", 20, 2)
    (tree / "ensemble" / "1").mkdir(parents=True)  # Triton wants one, empty
    (tree / "run.sh").write_text("#!/bin/sh\n")
    (tree / "run.sh").chmod(0o755)
    (tree / ("long" * 40)).write_text("a name that takes a header of its own")
    return tree


@pytest.mark.parametrize("title", ["model", "models/llama", "."])
def test_a_packed_folder_becomes_its_files(source: Path, reference: Reference, tmp_path: Path, title: str) -> None:
    pointer = push(reference, packed(title, make_tar(members_of(source, title))))

    done = pulled(reference, tmp_path / "out")
    again = pulled(reference, tmp_path / "out")

    out = tmp_path / "out" / title
    assert contents_of(out) == contents_of(source)
    assert stat.S_IMODE((out / "run.sh").stat().st_mode) == 0o755
    assert (out / "ensemble" / "1").is_dir()
    assert done.digest == pointer.digest
    assert (done.bytes, done.already_there) == (sum(map(len, contents_of(source).values())), False)
    assert (again.bytes, again.already_there, again.downloaded_bytes) == (done.bytes, True, 0)


def test_what_changed_since_is_not_taken_for_all_of_it(source: Path, reference: Reference, tmp_path: Path) -> None:
    write_record(source)
    push(reference, packed(".", make_tar(members_of(source, "."))))
    pulled(reference, tmp_path / "out")
    for path, data in (("run.sh", b"#!/bin/bash"), ("build-record.json", b"{}")):
        (tmp_path / "out" / path).write_bytes(data)
        assert not pulled(reference, tmp_path / "out").already_there
        assert contents_of(tmp_path / "out") == contents_of(source)


@pytest.mark.parametrize("how", ["packed", "file by file"])
def test_a_newer_version_replaces_what_a_pull_laid_down_and_nothing_else(
    how: str, source: Path, reference: Reference, tmp_path: Path
) -> None:
    newer, out = Reference.parse(f"{reference.root}/demo:v2"), tmp_path / "place" / "out"
    for there, text in ((reference, b"old"), (newer, b"new")):
        (source / text.decode()).write_bytes(text)
        tar = make_tar(members_of(source, "."))
        push(there, packed(".", tar) if how == "packed" else (text, {"org.opencontainers.image.title": text.decode()}))
        pulled(there, out)
        assert (out / text.decode()).read_bytes() == text
        (out / text.decode()).write_bytes(b"edited")  # and is put right by the next pull
        pulled(there, out)
        assert (out / text.decode()).read_bytes() == text
    assert [name for name in entries(out.parent) if "pulled" in name] == [
        f".out.pulled-{pulled(newer, out).digest.removeprefix('sha256:')[:16]}.json"
    ]
    (out / "mine").write_text("somebody's")

    with pytest.raises(InputError, match="holds no pulled artifact"):
        pulled(reference, out)

    (out / "mine").unlink()
    assert not pulled(reference, out).already_there


def test_folders_and_files_beside_each_other_are_one_tree(source: Path, reference: Reference, tmp_path: Path) -> None:
    file = (b"beside", {"org.opencontainers.image.title": "model/readme.txt"})
    folders = [packed(title, make_tar(members_of(source, title))) for title in ("model", "second")]
    push(reference, file, *folders)

    pulled(reference, tmp_path / "out")

    expected = contents_of(source)
    assert contents_of(tmp_path / "out") == {
        **{f"{title}/{path}": data for title in ("model", "second") for path, data in expected.items()},
        "model/readme.txt": b"beside",
    }
    assert pulled(reference, tmp_path / "out").already_there


def test_a_packed_assembled_tree_is_compared_with_its_build_record(
    make_tree: MakeTree, reference: Reference, tmp_path: Path
) -> None:
    tree = make_tree()
    push(reference, packed(".", make_tar(members_of(tree, "."))))
    done = pulled(reference, tmp_path / "out")
    assert done.record
    assert done.record.name == "demo"
    assert pulled(reference, tmp_path / "out").record == done.record

    (tree / "tokenizer" / "tokenizer.json").write_text("edited since")
    other = Reference.parse(f"{reference.root}/demo:v2")
    push(other, packed(".", make_tar(members_of(tree, "."))))

    with pytest.raises(ArtifactCorruptError, match=r"do not agree on tokenizer/tokenizer\.json"):
        pulled(other, tmp_path / "out")
    assert pulled(reference, tmp_path / "out").already_there


def test_a_node_cache_keeps_a_packed_tree_within_its_limit(source: Path, reference: Reference, tmp_path: Path) -> None:
    (source / "zeros").write_bytes(bytes(500_000))  # packed, they take no room
    push(reference, packed("model", make_tar(members_of(source, "model"))))
    store = open_store(reference)

    with pytest.raises(StoreError, match="MB that may be written"):
        pull(reference, cache=Cache(tmp_path / "small", limit=3_200_000), store=store)
    done = pull(reference, cache=Cache(tmp_path / "cache", limit=4_000_000), store=store)
    again = pull(reference, cache=Cache(tmp_path / "cache", limit=4_000_000), store=store)

    assert contents_of(done.path / "model") == contents_of(source)
    assert again.already_there
    assert entries(tmp_path / "small" / "trees") == [f".{done.path.name}.pull-lock"]


# --- what is refused, and what is nearest to it and is not ----------------------------------------------------------

GOOD: list[Member] = [folder("d"), member("d/a", b"a" * 1000), folder("d/sub"), member("d/sub/b", b"b")]
REFUSED: dict[str, tuple[list[Member], list[Member], str]] = {
    "climbs out": ([member("d/../../x", b"x")], [member("d/..x", b"x")], "has an empty part, '.' or '..'"),
    "climbs": ([member("../x", b"x")], [member("d/.x", b"x")], "has an empty part, '.' or '..'"),
    "absolute": ([member("/tmp/x", b"x")], [member("d/tmp/x", b"x")], "is absolute"),
    "outside": ([member("other/x", b"x")], [member("d/other/x", b"x")], "lies outside of it"),
    "almost inside": ([member("dd/x", b"x")], [member("d/d/x", b"x")], "lies outside of it"),
    "the folder is a file": ([member("d", b"x")], [folder("d")], "d twice"),
    "control character": ([member("d/a\x1b[31m", b"x")], [member("d/a [31m", b"x")], "control character"),
    "backslash": ([member("d\\..\\x", b"x")], [member("d/..x", b"x")], "backslash"),
    "link out": (
        [member("d/l", kind=tarfile.SYMTYPE, link="/etc/passwd")], [member("d/l", b"/etc/passwd")], "which is a link"
    ),
    "link inside": ([member("d/l", kind=tarfile.SYMTYPE, link="a")], [member("d/l", b"a")], "which is a link"),
    "hard link": ([member("d/l", kind=tarfile.LNKTYPE, link="d/a")], [member("d/l", b"a")], "which is a link"),
    "through a link": (
        [member("d/l", kind=tarfile.SYMTYPE, link="/tmp"), member("d/l/x", b"x")],
        [folder("d/l"), member("d/l/x", b"x")],
        "which is a link",
    ),
    "pipe": ([member("d/p", kind=tarfile.FIFOTYPE)], [member("d/p")], "which is no plain file"),
    "device": ([member("d/c", kind=tarfile.CHRTYPE)], [member("d/c")], "which is no plain file"),
    "disk": ([member("d/c", kind=tarfile.BLKTYPE)], [member("d/c")], "which is no plain file"),
    "twice": ([member("d/a", b"other")], [member("d/A", b"other")], "d/a twice"),
    "file as folder": ([member("d/a/x", b"x")], [member("d/a.x/x", b"x")], "d/a as a file and as a folder"),
    "folder as file": ([member("d/sub", b"x")], [member("d/sub2", b"x")], "d/sub twice"),
    "long name": ([member(f"d/{'n' * 256}", b"x")], [member(f"d/{'n' * 255}", b"x")], "too long for a file system"),
    "header of a megabyte": (
        [member(f"d/{'n/' * 500_000}x", b"x")], [member(f"d/{'n/' * 500}x", b"x")], "no folder that oras packed"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_member_that_means_harm_is_refused_and_its_neighbour_is_not(
    case: str, reference: Reference, tmp_path: Path
) -> None:
    bad, good, words = REFUSED[case]
    push(reference, packed("d", make_tar([*GOOD, *bad])))
    neighbour = Reference.parse(f"{reference.root}/demo:good")
    push(neighbour, packed("d", make_tar([*GOOD, *good])))

    with pytest.raises(ArtifactCorruptError) as refused:
        pulled(reference, tmp_path / "place" / "out")

    assert words in refused.value.found
    assert refused.value.exit_code == 3
    assert entries(tmp_path / "place") == [".out.pull-lock"]
    assert entries(tmp_path) == ["place", "store"]
    pulled(neighbour, tmp_path / "place" / "out")
    assert (tmp_path / "place" / "out" / "d" / "a").read_bytes() == b"a" * 1000


def _flip_outer(data: bytes) -> bytes:
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


TAR = make_tar(GOOD)
BROKEN: dict[str, tuple[bytes, Callable[[], tuple[bytes, object]], str]] = {
    "another tar": (TAR, lambda: packed("d", TAR, digest="sha256:" + "0" * 64), "its tar hashes to"),
    "cut gzip": (TAR, lambda: packed("d", TAR, data=gzip.compress(TAR)[:-30]), "no folder that oras packed"),
    "no gzip": (TAR, lambda: packed("d", TAR, data=TAR), "no folder that oras packed"),
    "something after the gzip": (
        TAR, lambda: packed("d", TAR, data=gzip.compress(TAR) + b"more"), "no folder that oras packed"
    ),
    "wrong checksum of gzip": (
        TAR, lambda: packed("d", TAR, data=_flip_outer(gzip.compress(TAR))), "no folder that oras packed"
    ),
    "cut tar": (TAR[:1100], lambda: packed("d", TAR[:1100]), "no folder that oras packed"),
    "broken header": (
        TAR, lambda: packed("d", TAR[:512] + b"\xff" * 512 + TAR[1024:]), "no folder that oras packed"
    ),
    "digest of another kind": (TAR, lambda: packed("d", TAR, digest="md5:00"), "for its SHA-256 digest"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_layer_is_refused(case: str, reference: Reference, tmp_path: Path) -> None:
    _, make, words = BROKEN[case]
    push(reference, make())

    with pytest.raises(ArtifactCorruptError) as refused:
        pulled(reference, tmp_path / "place" / "out")

    assert words in refused.value.found
    assert not [name for name in entries(tmp_path / "place") if name != ".out.pull-lock"]


def test_what_is_unusual_but_right_is_taken(reference: Reference, tmp_path: Path) -> None:
    half = len(TAR) // 2
    for number, layer in enumerate(
        [
            packed("d", TAR, digest=None),
            packed("d", TAR, data=gzip.compress(TAR[:half]) + gzip.compress(TAR[half:])),
            packed("d", TAR.rstrip(b"\0") + bytes(511)),  # nothing that ends the tar
            packed("d", make_tar(GOOD, form=tarfile.GNU_FORMAT)),
            packed("d", make_tar(GOOD, form=tarfile.USTAR_FORMAT)),
        ]
    ):
        there = Reference.parse(f"{reference.root}/demo:u{number}")
        push(there, layer)
        pulled(there, tmp_path / f"out{number}")
        assert list_files(tmp_path / f"out{number}") == ["d/a", "d/sub/b"]


def test_a_bit_that_flipped_in_the_store_is_found_before_anything_is_shown(
    source: Path, reference: Reference, tmp_path: Path
) -> None:
    layer = packed("model", make_tar(members_of(source, "model")), digest=None)
    push(reference, layer)
    (blob,) = [
        path for path in (tmp_path / "store" / "blobs" / "sha256").iterdir() if path.stat().st_size == len(layer[0])
    ]
    # Within stored bytes that gzip's own sum would find; the digest has to find it in its name and times too.
    for at in (5, len(layer[0]) // 2):
        data = bytearray(layer[0])
        data[at] ^= 1
        blob.write_bytes(data)
        with pytest.raises(ArtifactCorruptError):
            pulled(reference, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    blob.write_bytes(layer[0])
    pulled(reference, tmp_path / "out")


def test_a_bomb_is_refused_by_its_ratio_by_its_number_and_by_the_room_there_is(
    reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros = packed("d", make_tar([folder("d"), member("d/zeros", bytes(2_000_000))]))
    push(reference, zeros)
    many = Reference.parse(f"{reference.root}/demo:many")
    push(many, packed("d", make_tar([folder("d"), *(member(f"d/{number}") for number in range(9))])))
    place = tmp_path / "place"

    monkeypatch.setattr(unpacking, "_ANY_RATIO_BYTES", 1_000_000)
    with pytest.raises(ArtifactCorruptError, match="unpack to more than"):
        pulled(reference, place / "out")
    monkeypatch.setattr(unpacking, "_ANY_RATIO_BYTES", 4_000_000)
    monkeypatch.setattr(unpacking, "MAX_MEMBERS", 9)
    with pytest.raises(ArtifactCorruptError, match="more than 9 files"):
        pulled(many, place / "out")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, (16 << 20) + 1_000_000))
    with pytest.raises(StoreError, match="MB that may be written") as full:
        pulled(reference, place / "out")
    assert full.value.exit_code == 4
    assert entries(place) == [".out.pull-lock"]

    monkeypatch.setattr(unpacking, "MAX_MEMBERS", 10)
    pulled(many, place / "many")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, (16 << 20) + 3_000_000))
    pulled(reference, place / "out")


def test_what_unpacks_to_much_is_in_memory_piece_by_piece(reference: Reference, tmp_path: Path) -> None:
    size = 60 << 20
    push(reference, packed("d", make_tar([folder("d"), member("d/zeros", bytes(size))])))  # 60 KB, in one read
    tracemalloc.start()
    try:
        pulled(reference, tmp_path / "out")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert (tmp_path / "out" / "d" / "zeros").stat().st_size == size
    assert peak < 16 << 20, f"{peak >> 20} MiB"


FORMS = [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]
NAMES = st.text("ab.é字 ", min_size=1, max_size=4).filter(lambda name: name.strip(".") != "")


@given(
    st.dictionaries(st.lists(NAMES, min_size=1, max_size=3).map("/".join), st.binary(max_size=1500), max_size=6),
    st.sampled_from(FORMS),
)
def test_any_tree_comes_back(tmp_path_factory: pytest.TempPathFactory, tree: dict[str, bytes], form: int) -> None:
    clashing = any(one.startswith(f"{other}/") for one in tree for other in tree)
    place = tmp_path_factory.mktemp("any")
    there = Reference.parse(f"file://{place}/store/demo:v1")
    push(
        there,
        packed("d", make_tar([folder("d"), *(member(f"d/{path}", data) for path, data in tree.items())], form=form)),
    )

    if clashing:
        with pytest.raises(ArtifactCorruptError):
            pulled(there, place / "out")
        return
    pulled(there, place / "out")

    assert contents_of(place / "out") == {f"d/{path}": data for path, data in tree.items()}
    assert pulled(there, place / "out").already_there


def test_no_damage_to_a_tar_is_a_traceback_or_leads_out(tmp_path: Path) -> None:
    """Damage that the digests agree with: whoever pushed it meant it."""
    seed = int(os.environ.get("ENGINEROOM_FAULTS_SEED", random.randrange(1 << 30)))
    chance = random.Random(seed)
    refused = 0
    tars = [make_tar([*GOOD, member(f"d/{'x' * 120}", b"x")], form=form) for form in FORMS]
    for number in range(FAULTS):
        tar = bytearray(chance.choice(tars))
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(tar) if chance.random() < 0.3 else 2048)
            tar[at] = chance.choice([0, 1, 0x2F, 0x2E, 0x37, 0x78, 0x80, 0xFF, chance.randrange(256)])
        fixed = _right_checksums(tar) if chance.random() < 0.8 else bytes(tar)
        place = tmp_path / str(number)
        there = Reference.parse(f"file://{place}/store/demo:v1")
        push(there, packed("d", fixed))
        try:
            pulled(there, place / "inner" / "out")
        except ArtifactCorruptError:
            refused += 1
            assert not (place / "inner" / "out").exists()
        assert entries(place) == ["inner", "store"], f"seed {seed}, {number}"
        found = [*place.joinpath("inner").rglob("*")]
        assert not any(path.is_symlink() for path in found), f"seed {seed}, {number}"
        assert all(stat.S_IMODE(path.stat().st_mode) in {0o644, 0o755} for path in found if path.is_file())
        shutil.rmtree(place)
    assert 0 < refused < FAULTS


def _right_checksums(tar: bytearray) -> bytes:
    """With the sums of its headers as they should be, so that what was changed in them is looked at."""
    for at in range(0, len(tar) - 511, 512):
        if tar[at + 257 : at + 262] == b"ustar":
            tar[at + 148 : at + 156] = b"        "
            tar[at + 148 : at + 156] = b"%06o\0 " % sum(tar[at : at + 512])
    return bytes(tar)


# --- with others, and with kill ---------------------------------------------------------------------------------------


@pytest.fixture
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(documents, "CHUNK_BYTES", CHUNK_BYTES)
    use_endpoint(monkeypatch, request.getfixturevalue("seaweedfs"))
    return f"s3://models/{tmp_path.name}"


@pytest.mark.local
@pytest.mark.timeout(900)
@pytest.mark.parametrize("recorded", [True, False])
def test_a_killed_pull_of_a_packed_tree_leaves_the_old_one_and_the_next_completes_it(
    recorded: bool, root: str, make_tree: MakeTree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("ENGINEROOM_KILLS_SEED", random.randrange(1 << 30)))
    trees = [make_tree(f"tree{number}", seed=number, megabytes=16) for number in range(2)]
    for tree in () if recorded else trees:
        (tree / "build-record.json").unlink()
        fill(tree / f"only-{tree.name}", 1000, 1)
    contents = [contents_of(tree) for tree in trees]
    references = [f"{root}/demo:v{number}" for number in range(2)]
    for tree, reference in zip(trees, references, strict=True):
        push(Reference.parse(reference), packed(".", make_tar(members_of(tree, "."))))
    target = tmp_path / "served" / "model"
    unfinished = kill_pulls(target, references, contents, KILLS, seed=seed)
    assert unfinished, "no kill came in mid-flight: this test proved nothing"
    with capsys.disabled():
        sys.stdout.write(f"\n{unfinished} of {KILLS} pulls of packed trees cut off (seed {seed})\n")


@pytest.fixture
def remote(registry: tuple[int, Path], tmp_path: Path) -> Reference:
    return Reference.parse(f"oci://127.0.0.1:{registry[0]}/packed/{tmp_path.name.strip('_').replace('_', '-')}:v1")


def oras(*arguments: str, cwd: Path) -> str:
    if (program := shutil.which("oras")) is None:
        pytest.skip("oras is not installed (go install oras.land/oras/cmd/oras@v1.3.6)")
    done = subprocess.run([program, *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.local
def test_a_folder_that_oras_pushed_is_pulled_and_copied_and_oras_pulls_the_copy(
    source: Path, remote: Reference, tmp_path: Path
) -> None:
    at = f"{remote.location}/{remote.name}"
    oras("push", "--plain-http", f"{at}:v1", "source/", cwd=tmp_path)
    oras("push", "--plain-http", f"{at}:dot", ".", cwd=source)

    done = pulled(remote, tmp_path / "out")
    pulled(Reference.parse(f"{remote.root}/{remote.name}:dot"), tmp_path / "dot")
    folder_there = Reference.parse(f"file://{tmp_path}/store/demo:v1")
    back = Reference.parse(f"{remote.root}/{remote.name}/back:v1")
    for here, there in ((remote, folder_there), (folder_there, back)):
        copied = copy(here, there, source_store=open_store(here), store=open_store(there))
        assert copied.reference.digest == done.digest
    oras("pull", "--plain-http", f"{at}/back:v1", "-o", "theirs", cwd=tmp_path)

    assert contents_of(tmp_path / "out" / "source") == contents_of(tmp_path / "dot") == contents_of(source)
    assert contents_of(tmp_path / "theirs" / "source") == contents_of(source)
    assert pulled(remote, tmp_path / "out").already_there


@pytest.mark.local
def test_a_link_that_oras_packed_is_refused_and_the_file_in_its_place_is_not(
    source: Path, remote: Reference, tmp_path: Path
) -> None:
    at = f"{remote.location}/{remote.name}"
    (source / "link").symlink_to("run.sh")
    oras("push", "--plain-http", f"{at}:v1", "source/", cwd=tmp_path)
    (source / "link").unlink()
    shutil.copy(source / "run.sh", source / "link")
    oras("push", "--plain-http", f"{at}:v2", "source/", cwd=tmp_path)

    with pytest.raises(ArtifactCorruptError, match="'source/link', which is a link"):
        pulled(remote, tmp_path / "out")

    pulled(Reference.parse(f"{remote.root}/{remote.name}:v2"), tmp_path / "out")
    assert contents_of(tmp_path / "out" / "source") == contents_of(source)
