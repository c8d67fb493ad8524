import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from engineroom.artifacts.folder import FolderStore
from engineroom.artifacts.store import Pointer
from engineroom.artifacts.stores import open_store
from engineroom.errors import ArtifactCorruptError, ArtifactNotFoundError, StoreError

ONE, TWO = Pointer("sha256:" + "1" * 64, 10), Pointer("sha256:" + "2" * 64, 20)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(str(tmp_path / "store"))


def name_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_blob_reads_back_whole_and_in_ranges(store: FolderStore) -> None:
    data = bytes(range(256)) * 9000
    store.write_blob(name_of(data), len(data), [memoryview(data[:1000]), memoryview(data[1000:])])

    assert store.blob_size(name_of(data)) == len(data)
    for start, end in [(0, len(data)), (5, 6), (1 << 20, (1 << 20) + 70_000), (len(data) - 3, len(data) + 9), (7, 7)]:
        assert (
            b"".join(bytes(piece) for piece in store.read_blob(name_of(data), start, end, size=len(data)))
            == data[start:end]
        )


def test_what_is_not_there_has_no_size_and_cannot_be_read(store: FolderStore) -> None:
    assert store.blob_size("0" * 64) is None
    assert store.read_tag("demo", "v1") is None
    assert store.tags("demo") == []
    with pytest.raises(ArtifactNotFoundError):
        list(store.read_blob("0" * 64, 0, 1, size=1))


def test_a_writer_that_fails_leaves_nothing_visible(store: FolderStore, tmp_path: Path) -> None:
    def broken() -> Iterator[memoryview]:
        yield memoryview(b"first half")
        raise ArtifactCorruptError("the source changed")

    with pytest.raises(ArtifactCorruptError):
        store.write_blob("0" * 64, 20, broken())
    with pytest.raises(StoreError, match="5 bytes came for a blob of 6"):
        store.write_blob("0" * 64, 6, [memoryview(b"short")])

    assert store.blob_size("0" * 64) is None
    assert list((tmp_path / "store" / "incoming").iterdir()) == []


def test_what_a_killed_writer_left_is_removed_by_the_next_one(store: FolderStore, tmp_path: Path) -> None:
    incoming = tmp_path / "store" / "incoming"
    incoming.mkdir(parents=True)
    (incoming / "tmp1234").write_bytes(b"half a blob")

    store.write_blob(name_of(b"x"), 1, [memoryview(b"x")])

    assert list(incoming.iterdir()) == []


def test_a_tag_is_made_once(store: FolderStore) -> None:
    assert store.create_tag("demo", "v1", ONE)
    assert not store.create_tag("demo", "v1", TWO)

    state = store.read_tag("demo", "v1")
    assert state is not None
    assert state.pointer == ONE


def test_of_many_that_make_a_tag_at_once_one_wins(store: FolderStore) -> None:
    pointers = [Pointer(f"sha256:{number:064x}", 10) for number in range(16)]
    won: list[Pointer] = []
    threads = [
        threading.Thread(target=lambda p=pointer: won.append(p) if store.create_tag("demo", "v1", p) else None)
        for pointer in pointers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    state = store.read_tag("demo", "v1")
    assert state is not None
    assert won == [state.pointer]


def test_a_tag_moves_only_from_what_was_read(store: FolderStore) -> None:
    store.create_tag("demo", "key-1", ONE)
    seen = store.read_tag("demo", "key-1")
    assert seen is not None

    assert store.move_tag("demo", "key-1", TWO, expected=seen)
    assert not store.move_tag("demo", "key-1", ONE, expected=seen)

    state = store.read_tag("demo", "key-1")
    assert state is not None
    assert state.pointer == TWO


def test_a_folder_keeps_its_conditions_and_the_probe_leaves_nothing(store: FolderStore, tmp_path: Path) -> None:
    assert store.keeps_conditions()
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("data", [b"", b"{}", ONE.to_json()[:-1], ONE.to_json() + b"\n", b"[1]", b"\xff", b"9" * 9000])
def test_a_tag_object_is_exactly_ours_or_corrupt(data: bytes) -> None:
    assert Pointer.parse(ONE.to_json(), where="t") == ONE
    with pytest.raises(ArtifactCorruptError):
        Pointer.parse(data, where="t")


def test_a_store_is_opened_by_root_or_by_reference(tmp_path: Path) -> None:
    for place in [f"file://{tmp_path}/store", f"file://{tmp_path}/store/demo:v1"]:
        assert open_store(place).root == f"file://{tmp_path}/store"
    assert open_store("s3://bucket/models/demo:v1").root == "s3://bucket/models"
    assert open_store("s3://bucket").root == "s3://bucket"
