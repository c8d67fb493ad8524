import os
from pathlib import Path

import pytest
from artifact_trees import MakeTree, write_record

from engineroom.artifacts.listing import list_artifacts
from engineroom.artifacts.publish import publish
from engineroom.artifacts.pull import pull
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.stores import open_store
from engineroom.artifacts.verify import verify_artifact, verify_tree
from engineroom.errors import ArtifactCorruptError, ArtifactNotFoundError, InputError

pytestmark = pytest.mark.usefixtures("small_chunks")


def test_a_good_tree_has_no_problems(make_tree: MakeTree) -> None:
    verified = verify_tree(make_tree())

    assert verified.problems == ()
    verified.check()


def test_every_bad_file_and_chunk_is_named(make_tree: MakeTree, tmp_path: Path) -> None:
    tree = make_tree()
    with (tree / "engine" / "model.bin").open("r+b") as file:
        for position in (10, 100_000):
            file.seek(position)
            file.write(b"\0\1\2\3")
    (tree / "tokenizer" / "tokenizer.json").write_bytes(b"{}")
    (tree / "engine" / "vocabulary.json").unlink()
    (tree / "notes.txt").write_text("extra")
    (tree / "link").symlink_to(tmp_path)
    os.mkfifo(tree / "pipe")

    verified = verify_tree(tree)

    assert [str(problem) for problem in verified.problems] == [
        "engine/vocabulary.json: it is missing",
        "link: it is a symbolic link",
        "notes.txt: the build record does not list it",
        "pipe: it is no regular file",
        "tokenizer/tokenizer.json: it has 2 bytes instead of 1000",
        "engine/model.bin, chunk 1 of 8: its bytes are not those that were published",
        "engine/model.bin, chunk 2 of 8: its bytes are not those that were published",
    ]
    with pytest.raises(ArtifactCorruptError, match="and 6 more"):
        verified.check()


def test_a_link_to_the_right_bytes_is_still_no_file(make_tree: MakeTree, tmp_path: Path) -> None:
    tree = make_tree()
    (tree / "engine" / "model.bin").rename(tmp_path / "elsewhere")
    (tree / "engine" / "model.bin").symlink_to(tmp_path / "elsewhere")

    assert [str(problem) for problem in verify_tree(tree).problems] == ["engine/model.bin: it is a symbolic link"]


def test_the_digest_finds_out_a_build_record_that_was_changed_with_its_files(
    make_tree: MakeTree, reference: Reference, tmp_path: Path
) -> None:
    store = open_store(reference)
    published = publish(make_tree(megabytes=0.7), reference, store=store)
    pull(reference, tmp_path / "out", store=store)
    assert verify_tree(tmp_path / "out", digest=published.digest).problems == ()

    (tmp_path / "out" / "engine" / "model.bin").write_bytes(b"another engine")
    write_record(tmp_path / "out")

    assert verify_tree(tmp_path / "out").problems == ()
    assert "not " + published.digest in str(verify_tree(tmp_path / "out", digest=published.digest).problems[0])


def test_refuses_a_folder_that_is_not_there_or_holds_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        verify_tree(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"cannot read it"):
        verify_tree(tmp_path)


def test_every_bad_blob_of_a_store_is_named(make_tree: MakeTree, reference: Reference) -> None:
    tree, store = make_tree(megabytes=0.2), open_store(reference)
    publish(tree, reference, store=store)
    assert verify_artifact(reference, store=store).problems == ()
    folder = Path(reference.location, "blobs", "sha256")
    records = {file.path: file.sha256 for file in verify_tree(tree).record.files}
    with (folder / records["engine/model.bin"]).open("r+b") as file:
        file.seek(150_000)
        file.write(b"\0\1\2\3")
    (folder / records["tokenizer/größe 字.txt"]).unlink()
    (folder / records["tokenizer/tokenizer.json"]).write_bytes(b"short")

    found = [str(problem) for problem in verify_artifact(reference, store=store).problems]

    assert found[0].startswith("engine/model.bin, chunk 3 of 4: its bytes differ")
    assert found[1].startswith("engine/vocabulary.json: ")  # shares its blob with tokenizer.json
    assert "5 bytes instead of 1000" in found[1]
    assert found[2].startswith("tokenizer/größe 字.txt: ")
    assert len(found) == 3


def test_a_listing_names_tags_digests_sizes_and_models(make_tree: MakeTree, reference: Reference) -> None:
    store = open_store(reference)
    done = publish(make_tree(), reference, store=store)
    publish(make_tree("other", seed=2), Reference.parse(f"{reference.root}/another:v9"), store=store)

    listed = list_artifacts(reference.root)

    assert [(item.reference.name, item.reference.tag, item.movable) for item in listed] == [
        ("another", done.key_tag, True),
        ("another", "v9", False),
        ("demo", done.key_tag, True),
        ("demo", "v1", False),
    ]
    last = listed[-1]
    assert last.reference.digest == done.digest
    assert (last.model, last.runtime, last.precision, last.created) == (
        "demo",
        "ctranslate2",
        "int8",
        "2026-11-23T00:00:00Z",
    )
    assert last.bytes == sum(file.size for file in verify_tree(make_tree()).record.files)
    assert [item.reference.tag for item in list_artifacts(f"{reference.root}/demo")] == [done.key_tag, "v1"]
    assert [item.reference.tag for item in list_artifacts(str(reference))] == ["v1"]


def test_a_listing_shows_what_is_broken_beside_what_is_not(make_tree: MakeTree, reference: Reference) -> None:
    done = publish(make_tree(), reference, store=open_store(reference))
    refs = Path(reference.location, "refs", "demo", "tags")
    (refs / "torn").write_bytes((refs / "v1").read_bytes()[:50])
    (refs / "lost").write_bytes((refs / "v1").read_bytes().replace(done.digest[7:].encode(), b"0" * 64))

    problems = {item.reference.tag: item.problem for item in list_artifacts(reference.root)}

    assert problems["v1"] == ""
    assert "descriptor" in problems["torn"]
    assert "no manifest" in problems["lost"]


def test_a_listing_of_nothing_says_that_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(ArtifactNotFoundError, match="no artifacts"):
        list_artifacts(f"file://{tmp_path}/nothing")
