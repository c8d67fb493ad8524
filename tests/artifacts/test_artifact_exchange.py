"""What other programs read and write: registries, and skopeo on bundles."""

import json
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from artifact_servers import use_endpoint
from artifact_trees import MakeTree, contents_of

from engineroom.artifacts.backup import backup
from engineroom.artifacts.copying import copy
from engineroom.artifacts.exporting import export, import_bundle
from engineroom.artifacts.garbage import collect, untag
from engineroom.artifacts.publish import publish
from engineroom.artifacts.pull import pull
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.restore import restore
from engineroom.artifacts.scrub import scrub_store
from engineroom.artifacts.stores import open_store
from engineroom.errors import InputError

pytestmark = [pytest.mark.local, pytest.mark.usefixtures("small_chunks")]


@pytest.fixture
def remote(registry: tuple[int, Path], tmp_path: Path) -> str:
    """A repository of a real registry, empty."""
    return f"oci://127.0.0.1:{registry[0]}/models/{tmp_path.name.replace('_', '-')}"


def copied(source: str, to: str) -> Reference:
    here, there = Reference.parse(source), Reference.parse(to)
    return copy(here, there, source_store=open_store(here), store=open_store(there)).reference


def skopeo(*arguments: object) -> str:
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed (Debian: apt-get install skopeo)")
    done = subprocess.run(["skopeo", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_artifact_goes_from_a_folder_by_a_bucket_and_a_registry_back_into_a_folder(
    make_tree: MakeTree,
    reference: Reference,
    seaweedfs: int,
    remote: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_endpoint(monkeypatch, seaweedfs)
    published = publish(make_tree(), reference, store=open_store(reference))
    stops = [
        str(reference), f"s3://models/{tmp_path.name}/demo:v1", f"{remote}:v1", f"file://{tmp_path}/last/demo:v1"
    ]  # fmt: skip

    arrived = [copied(source, to) for source, to in pairwise(stops)]

    assert {one.digest for one in arrived} == {published.digest}
    pull(arrived[-1], tmp_path / "out", store=open_store(arrived[-1]))
    assert contents_of(tmp_path / "out") == contents_of(tmp_path / "tree")
    for stop in stops:
        assert scrub_store(stop).problems == ()


def test_what_lies_in_a_registry_is_bundled_and_backed_up(make_tree: MakeTree, remote: str, tmp_path: Path) -> None:
    reference = Reference.parse(f"{remote}:v1")
    published = publish(make_tree(), reference, store=open_store(reference))

    export([reference], tmp_path / "demo.tar")
    (imported,) = import_bundle(tmp_path / "demo.tar", f"file://{tmp_path}/second")
    backup([reference], Reference.parse(f"file://{tmp_path}/backups/llm"))
    back = restore(Reference.parse(f"file://{tmp_path}/backups/llm"), to=f"file://{tmp_path}/third")
    again = restore(Reference.parse(f"file://{tmp_path}/backups/llm"), to=reference.root)

    assert imported.reference.name == remote.rpartition("/")[2]
    assert {imported.reference.digest, back.artifacts[0].reference.digest} == {published.digest}
    assert again.artifacts[0].reference.name == reference.name
    assert again.artifacts[0].copied_bytes == 0


def test_a_registry_is_not_ours_to_clean_or_to_keep_backups_in(
    make_tree: MakeTree, remote: str, reference: Reference
) -> None:
    there = Reference.parse(f"{remote}:v1")
    publish(make_tree(), there, store=open_store(there))

    with pytest.raises(InputError, match="removes its garbage itself"):
        collect(open_store(there))
    with pytest.raises(InputError, match="the registry's to delete"):
        untag(open_store(there), there.name, "v1")
    with pytest.raises(InputError, match="takes no backups"):
        backup([there], Reference.parse(f"{remote}-backups"))


def test_skopeo_reads_a_bundle_and_a_layout_and_we_read_what_it_writes(
    make_tree: MakeTree, reference: Reference, remote: str, tmp_path: Path
) -> None:
    published = publish(make_tree(), reference, store=open_store(reference))
    export([reference], tmp_path / "demo.tar")
    export([reference], tmp_path / "layout", layout=True)

    raw = skopeo("inspect", "--raw", f"oci-archive:{tmp_path}/demo.tar:v1")
    skopeo(
        "copy", "--dest-tls-verify=false", f"oci:{tmp_path}/layout:v1", f"docker://{remote.removeprefix('oci://')}:v2"
    )
    skopeo(
        "copy",
        "--src-tls-verify=false",
        f"docker://{remote.removeprefix('oci://')}:v2",
        f"oci-archive:{tmp_path}/back.tar:v3",
    )

    assert json.loads(raw)["artifactType"] == "application/vnd.engineroom.artifact.v1"
    with pytest.raises(InputError, match="--as"):
        import_bundle(tmp_path / "back.tar", f"file://{tmp_path}/second")
    (done,) = import_bundle(tmp_path / "back.tar", f"file://{tmp_path}/second", name="llama")
    assert str(done.reference) == f"file://{tmp_path}/second/llama:v3@{published.digest}"
