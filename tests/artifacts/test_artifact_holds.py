"""What collections need of a store, and the notices by which writers and collections keep out of each other's way."""

import hashlib
import threading
from pathlib import Path

import pytest
from artifact_servers import use_endpoint
from artifact_trees import MakeTree

from engineroom.artifacts import holds
from engineroom.artifacts.holds import BlobList, holding
from engineroom.artifacts.publish import publish
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.store import CollectableStore, Pointer
from engineroom.artifacts.stores import open_store
from engineroom.errors import StoreError


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.local)])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CollectableStore:
    if request.param == "file":
        found = open_store(f"file://{tmp_path}/store")
    else:
        use_endpoint(monkeypatch, request.getfixturevalue("seaweedfs"))
        found = open_store(f"s3://models/{tmp_path.name}")
    assert isinstance(found, CollectableStore)
    return found


def put(store: CollectableStore, data: bytes) -> str:
    blob = hashlib.sha256(data).hexdigest()
    store.write_blob(blob, len(data), [memoryview(data)])
    return blob


def test_an_empty_store_lists_nothing_and_removing_nothing_is_no_error(store: CollectableStore) -> None:
    assert (list(store.blobs()), store.list_tags(), store.list_tags("demo"), store.notices()) == ([], [], [], [])
    store.remove_blobs([])
    store.remove_blobs(["0" * 64, "1" * 64])
    store.remove_tag("demo", "v1")
    store.withdraw("hold-x")
    assert store.read_notice("hold-x") is None


def test_blobs_are_listed_with_size_and_time_until_they_are_removed(store: CollectableStore) -> None:
    first, second, third = put(store, b"one"), put(store, b"four"), put(store, b"")

    assert {entry.hex: entry.size for entry in store.blobs()} == {first: 3, second: 4, third: 0}
    assert all(entry.modified.tzinfo for entry in store.blobs())
    store.remove_blobs([first, third])
    assert [entry.hex for entry in store.blobs()] == [second]


def test_tags_of_all_names_come_from_one_listing_and_show_when_they_move(store: CollectableStore) -> None:
    one, two = Pointer("sha256:" + "1" * 64, 10), Pointer("sha256:" + "2" * 64, 10)
    for name, tag in (("b", "v1"), ("a", "v2"), ("a", "v1")):
        assert store.create_tag(name, tag, one)
    before = store.list_tags()
    state = store.read_tag("a", "v1")
    assert state is not None
    assert store.move_tag("a", "v1", two, expected=state)
    store.remove_tag("b", "v1")

    after = store.list_tags()

    assert [(entry.name, entry.tag) for entry in before] == [("a", "v1"), ("a", "v2"), ("b", "v1")]
    assert (
        [(entry.name, entry.tag) for entry in after]
        == [("a", "v1"), ("a", "v2")]
        == [(entry.name, entry.tag) for entry in store.list_tags("a")]
    )
    assert before[0].version != after[0].version
    assert before[1].version == after[1].version
    assert store.read_tag("b", "v1") is None


def test_a_writer_waits_for_a_collection_that_is_about_to_remove_what_it_needs(store: CollectableStore) -> None:
    store.post("condemned-other", BlobList(blobs=["b" * 64]).to_json())
    with holding(store, ["a" * 64]):  # nothing that it needs: it does not wait
        assert [entry.name for entry in store.notices() if entry.name.startswith("hold-")]
    went_on = threading.Event()

    def write() -> None:
        with holding(store, ["b" * 64]):
            went_on.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not any(entry.name.startswith("hold-") for entry in store.notices()):
        pass
    assert not went_on.is_set()
    store.withdraw("condemned-other")
    writer.join(30)

    assert went_on.is_set()
    assert store.notices() == []


def test_a_collection_that_was_killed_holds_nobody_up_for_long(
    store: CollectableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holds, "CONDEMNED_SECONDS", 1.5)
    store.post("condemned-other", BlobList(blobs=["b" * 64]).to_json())

    with holding(store, ["b" * 64]) as hold:
        assert hold is not None
        hold.confirm()


def test_a_writer_that_slept_through_its_hold_sets_no_tag(
    store: CollectableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with holding(store, ["b" * 64]) as hold:
        assert hold is not None
        monkeypatch.setattr(holds, "HOLD_SECONDS", 0.0)
        with pytest.raises(StoreError, match="run it again"):
            hold.confirm()


def test_a_publication_leaves_no_hold_and_remembers_what_its_key_tag_named(
    make_tree: MakeTree, store: CollectableStore
) -> None:
    place = Reference.parse(f"{store.root}/demo:v1")
    first = publish(make_tree("one", seed=1), place, store=store)
    assert store.notices() == []

    publish(make_tree("two", seed=2), Reference.parse(f"{store.root}/demo:v2"), store=store)

    assert [entry.name for entry in store.notices()] == ["named-" + first.digest.removeprefix("sha256:")]
