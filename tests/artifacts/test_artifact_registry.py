"""Publish and pull with a real OCI registry, and what other clients of it read and write."""

import base64
import json
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from artifact_servers import registry_server
from artifact_tokens import token_service
from artifact_trees import MakeTree, contents_of

from engineroom.artifacts.listing import list_artifacts
from engineroom.artifacts.publish import publish
from engineroom.artifacts.pull import pull
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.store import NO_TIME, Pointer
from engineroom.artifacts.stores import open_store
from engineroom.artifacts.verify import verify_artifact, verify_tree
from engineroom.documents import list_files
from engineroom.errors import ArtifactCorruptError, ArtifactExistsError, ArtifactNotFoundError, StoreError
from engineroom.progress import Progress

pytestmark = [pytest.mark.local, pytest.mark.usefixtures("small_chunks")]


@pytest.fixture
def reference(registry: tuple[int, Path], tmp_path: Path) -> Reference:
    """A repository of its own for each test."""
    name = tmp_path.name.lower().strip("_").replace("__", "_")
    return Reference.parse(f"oci://127.0.0.1:{registry[0]}/team/{name}:v1")


def sibling(reference: Reference, *, tag: str = "v1", ending: str = "") -> Reference:
    return Reference.parse(f"{reference.root}/{reference.name}{ending}:{tag}")


def tool(name: str, *arguments: str, cwd: Path) -> None:
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is not installed")
    done = subprocess.run([program, *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_tree_comes_back_from_a_registry_with_the_digest_that_it_has_everywhere(
    make_tree: MakeTree, reference: Reference, tmp_path: Path
) -> None:
    tree, store = make_tree(megabytes=0.7), open_store(reference)
    folder = Reference.parse(f"file://{tmp_path}/store/demo:v1")

    done = publish(tree, reference, store=store)

    assert done.digest == publish(tree, folder, store=open_store(folder)).digest
    assert publish(tree, reference, store=store).already_published
    pulled = pull(reference, tmp_path / "out", store=open_store(reference))
    assert contents_of(tmp_path / "out") == contents_of(tree)
    assert verify_tree(tmp_path / "out", digest=done.digest).problems == ()
    assert verify_artifact(reference, store=store).problems == ()
    assert pulled.digest == done.digest
    listed = list_artifacts(f"{reference.root}/{reference.name}")
    assert {entry.reference.tag for entry in listed} == {"v1", done.key_tag}
    assert listed[0].bytes == pulled.bytes
    assert listed[0].published == NO_TIME
    assert reference.name in open_store(reference.root).names()
    digest = Reference.parse(f"{reference.root}/{reference.name}@{done.digest}")
    assert pull(digest, tmp_path / "out", store=open_store(digest)).already_there


def test_a_tag_of_a_registry_names_one_artifact_for_ever_and_key_tags_move(
    make_tree: MakeTree, reference: Reference
) -> None:
    store = open_store(reference)
    first = publish(make_tree(), reference, store=store)
    other = make_tree("other", seed=2)

    with pytest.raises(ArtifactExistsError, match=first.digest):
        publish(other, reference, store=store)

    second = publish(other, sibling(reference, tag="v2"), store=store)
    moved = store.read_tag(reference.name, first.key_tag)
    assert moved is not None
    assert moved.pointer.digest == second.digest
    gone = Pointer("sha256:" + "0" * 64, 10)
    assert not store.create_tag(reference.name, "v1", moved.pointer)
    stale = store.read_tag(reference.name, "v1")
    assert stale is not None
    assert not store.move_tag(reference.name, first.key_tag, moved.pointer, expected=stale)
    with pytest.raises(ArtifactNotFoundError, match="no manifest"):
        store.create_tag(reference.name, "v3", gone)


def test_who_publishes_to_a_registry_is_told_that_its_tags_are_only_compared(
    make_tree: MakeTree, reference: Reference, heard: "Heard"
) -> None:
    publish(make_tree(), reference, store=open_store(reference), progress=heard)

    assert any("compared before and after" in line for line in heard.lines)


class Heard:
    """What was said."""

    def __init__(self, quiet: Progress) -> None:
        self.lines: list[str] = []
        self.task = quiet.task

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def heard() -> Heard:
    from engineroom.progress import QUIET

    return Heard(QUIET)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_a_damaged_blob_of_a_registry_is_found_out(
    make_tree: MakeTree, reference: Reference, registry: tuple[int, Path], tmp_path: Path, damage: str
) -> None:
    # Bytes of their own: the registry has one blob for all repositories.
    tree = make_tree(seed=100 + len(damage), megabytes=0.2)
    publish(tree, reference, store=open_store(reference))
    record = next(file for file in verify_tree(tree).record.files if file.path == "engine/model.bin")
    blobs = registry[1] / "data/docker/registry/v2/blobs/sha256"
    blob = blobs / record.sha256[:2] / record.sha256 / "data"
    data = bytearray(blob.read_bytes())
    data[140_000] ^= 1
    if damage == "missing":
        blob.unlink()
    else:
        blob.write_bytes(data if damage == "flipped" else data[:100_000])

    with pytest.raises(ArtifactCorruptError) as refusal:
        pull(reference, tmp_path / "out", store=open_store(reference))

    assert "engine/model.bin, chunk" in refusal.value.where
    assert not (tmp_path / "out").exists()


def test_skopeo_copies_what_we_push_and_we_pull_its_copy(
    make_tree: MakeTree, reference: Reference, tmp_path: Path
) -> None:
    tree = make_tree(megabytes=0.7)
    done = publish(tree, reference, store=open_store(reference))
    copy = sibling(reference, ending="/copy")
    there = f"docker://{reference.location}/"

    tool(
        "skopeo", "copy", "--src-tls-verify=false", f"{there}{reference.name}:v1", f"oci:{tmp_path}/layout:v1",
        cwd=tmp_path,
    )  # fmt: skip
    tool(
        "skopeo", "copy", "--dest-tls-verify=false", f"oci:{tmp_path}/layout:v1", f"{there}{copy.name}:v1",
        cwd=tmp_path,
    )  # fmt: skip

    assert pull(copy, tmp_path / "out", store=open_store(copy)).digest == done.digest
    assert contents_of(tmp_path / "out") == contents_of(tree)


def test_oras_pulls_what_we_push_parts_beside_each_other(
    make_tree: MakeTree, reference: Reference, tmp_path: Path
) -> None:
    tree = make_tree(megabytes=0.7)
    publish(tree, reference, store=open_store(reference))

    tool("oras", "pull", "--plain-http", f"{reference.location}/{reference.name}:v1", "-o", "out", cwd=tmp_path)

    found = contents_of(tmp_path / "out")
    parts = [found.pop(name) for name in sorted(found) if ".part-" in name]
    assert len(parts) == 3
    expected = contents_of(tree)
    assert b"".join(parts) == expected.pop("engine/model.bin")
    del expected["build-record.json"]  # oras leaves the config blob out
    assert found == expected


@pytest.mark.parametrize("how", ["with its record as config", "with its record as a file", "without its record"])
def test_we_pull_what_oras_pushes(make_tree: MakeTree, reference: Reference, tmp_path: Path, how: str) -> None:
    tree = make_tree(megabytes=0.4)
    files = list_files(tree)
    options = []
    if how == "with its record as config":
        options = ["--artifact-type", "application/vnd.engineroom.artifact.v1"]
        options += ["--config", "build-record.json:application/vnd.engineroom.build.v1+json"]
    if how != "with its record as a file":
        files.remove("build-record.json")

    name = f"{reference.location}/{reference.name}:v1"
    tool("oras", "push", "--plain-http", name, *options, *files, cwd=tree)
    pulled = pull(reference, tmp_path / "out", store=open_store(reference))

    assert contents_of(tmp_path / "out") == {
        path: data for path, data in contents_of(tree).items() if how != "without its record" or path in files
    }
    assert (pulled.record is None) == (how == "without its record")
    assert pull(reference, tmp_path / "out", store=open_store(reference)).already_there


@pytest.fixture
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    with registry_server(tmp_path_factory.mktemp("guarded"), guarded=True) as port:
        yield Reference.parse(f"oci://127.0.0.1:{port}/team/demo:v1")


def test_credentials_come_from_the_docker_configuration(
    make_tree: MakeTree, guarded: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    (tmp_path / "docker").mkdir()
    tree = make_tree()

    def configure(config: object) -> None:
        (tmp_path / "docker" / "config.json").write_text(json.dumps(config))

    with pytest.raises(StoreError, match="access was refused") as refusal:
        publish(tree, guarded, store=open_store(guarded))
    assert "docker login" in refusal.value.fix
    configure({"auths": {guarded.location: {"auth": base64.b64encode(b"tests:wrong").decode()}}})
    with pytest.raises(StoreError, match="access was refused"):
        publish(tree, guarded, store=open_store(guarded))

    configure({"auths": {guarded.location: {"auth": base64.b64encode(b"tests:secret").decode()}}})
    publish(tree, guarded, store=open_store(guarded))
    helper = tmp_path / "bin" / "docker-credential-tests"
    helper.parent.mkdir()
    helper.write_text(
        "#!/bin/sh\nread -r server\n"
        f'[ "$server" = {guarded.location} ] && echo \'{{"Username": "tests", "Secret": "secret"}}\'\n'
    )
    helper.chmod(helper.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{helper.parent}:/usr/bin:/bin")
    for number, config in enumerate(({"credHelpers": {guarded.location: "tests"}}, {"credsStore": "tests"})):
        configure(config)
        pull(guarded, tmp_path / f"out{number}", store=open_store(guarded))

        assert contents_of(tmp_path / f"out{number}") == contents_of(tree)


def test_tokens_are_bought_for_what_is_done_and_no_more(
    make_tree: MakeTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    tree = make_tree()
    with token_service() as tokens, registry_server(tmp_path, auth=tokens.settings(tmp_path)) as port:
        reference = Reference.parse(f"oci://127.0.0.1:{port}/team/demo:v1")

        def log_in(**entry: str) -> None:
            (tmp_path / "config.json").write_text(json.dumps({"auths": {reference.location: entry}}))

        def basic(user: str) -> str:
            return base64.b64encode(user.encode()).decode()

        log_in(auth=basic("writer:wrong"))
        with pytest.raises(StoreError, match="access was refused"):
            publish(tree, reference, store=open_store(reference))
        log_in(auth=basic("reader:secret"))
        with pytest.raises(StoreError, match="access was refused"):
            publish(tree, reference, store=open_store(reference))
        log_in(auth=basic("writer:secret"))
        publish(tree, reference, store=open_store(reference))
        assert any(scope.startswith("repository:team/demo:") and "push" in scope for _, scope in tokens.asked)

        log_in(auth=basic("reader:secret"))
        tokens.asked.clear()
        pull(reference, tmp_path / "out", store=open_store(reference))
        assert contents_of(tmp_path / "out") == contents_of(tree)
        assert set(tokens.asked) == {("GET", "repository:team/demo:pull")}
        assert len(tokens.asked) < 8  # a token serves more than one request

        log_in(identitytoken="of-the-writer")
        tokens.asked.clear()
        other = Reference.parse(f"{reference.root}/{reference.name}:v2")
        publish(tree, other, store=open_store(other))
        assert {method for method, _ in tokens.asked} == {"POST"}
        log_in(identitytoken="of-nobody")
        with pytest.raises(StoreError, match="access was refused"):
            pull(other, tmp_path / "nothing", store=open_store(other))
        assert not (tmp_path / "nothing").exists()
