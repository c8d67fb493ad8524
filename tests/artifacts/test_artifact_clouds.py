"""The same promises in other buckets: a second S3 server, and the emulator of Azure's.

Each is skipped where its program is not on PATH: versitygw is a Go program, Azurite (`azurite-blob`) is on npm.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from artifact_servers import (
    AZURE_ACCOUNT,
    AZURE_KEY,
    azure_emulator,
    use_endpoint,
    versitygw_server,
)
from artifact_trees import MakeTree, contents_of, fill, write_record

from engineroom.artifacts.listing import list_artifacts
from engineroom.artifacts.publish import publish
from engineroom.artifacts.pull import pull
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.stores import open_store
from engineroom.artifacts.verify import verify_artifact
from engineroom.errors import ArtifactExistsError

pytestmark = pytest.mark.local


@pytest.fixture(params=["versitygw", "azure"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    folder = tmp_path / "server"
    (folder / "models").mkdir(parents=True)
    if request.param == "versitygw":
        with versitygw_server(folder) as port:
            use_endpoint(monkeypatch, port)
            yield "s3://models/team"
    else:
        with azure_emulator(folder) as port:
            monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", AZURE_ACCOUNT)
            monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", AZURE_KEY)
            monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"http://127.0.0.1:{port}/{AZURE_ACCOUNT}")
            yield "az://models/team"


def test_every_kind_of_bucket_keeps_the_promises(make_tree: MakeTree, root: str, tmp_path: Path) -> None:
    """Round trip with a multipart upload, immutable tags, moving tags, skipping, listing."""
    reference, tree = Reference.parse(f"{root}/demo:v1"), make_tree(megabytes=20)
    store = open_store(reference)
    assert store.keeps_conditions()

    first = publish(tree, reference, store=store)

    pull(reference, tmp_path / "out", store=open_store(reference))
    assert contents_of(tmp_path / "out") == contents_of(tree)
    assert verify_artifact(reference, store=store).problems == ()
    assert publish(tree, reference, store=store).already_published
    fill(tree / "model_repository" / "tensorrt_llm" / "config.pbtxt", 400, 3)
    write_record(tree)
    with pytest.raises(ArtifactExistsError, match=first.digest):
        publish(tree, reference, store=store)
    second = publish(tree, Reference.parse(f"{root}/demo:v2"), store=store)
    assert second.uploaded_bytes < 10_000
    listed = {entry.reference.tag: entry.reference.digest for entry in list_artifacts(root)}
    assert listed == {"v1": first.digest, "v2": second.digest, second.key_tag: second.digest}
    stale, current = store.read_tag("demo", "v1"), store.read_tag("demo", second.key_tag)
    assert stale is not None
    assert current is not None
    assert not store.move_tag("demo", second.key_tag, stale.pointer, expected=stale)
    folder = Reference.parse(f"file://{tmp_path}/store/demo:v2")
    assert publish(tree, folder, store=open_store(folder)).digest == second.digest
