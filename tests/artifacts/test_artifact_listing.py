from pathlib import Path

from artifact_trees import MakeTree

from engineroom.artifacts.listing import MAX_OPENED, list_artifacts
from engineroom.artifacts.publish import publish
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.stores import open_store


def test_thousands_of_tags_are_listed_without_opening_them(make_tree: MakeTree, reference: Reference) -> None:
    store = open_store(reference)
    publish(make_tree(), reference, store=store)
    seen = store.read_tag("demo", "v1")
    assert seen is not None
    few = list_artifacts(reference.root)
    assert all(entry.bytes and entry.reference.digest for entry in few)
    tags = Path(reference.location, "refs", "demo", "tags")
    for number in range(MAX_OPENED):
        (tags / f"w{number}").write_bytes(seen.pointer.to_json())
    (tags / "not a tag").write_bytes(b"somebody else's")

    many = list_artifacts(reference.root)

    assert len(many) == len(few) + MAX_OPENED
    assert all(entry.bytes is None and not entry.problem for entry in many)
    assert {entry.published for entry in few} <= {entry.published for entry in many}
    assert all(entry.bytes for entry in list_artifacts(reference.root, details=True))
    assert [entry.bytes for entry in list_artifacts(str(reference), details=False)] == [None]
