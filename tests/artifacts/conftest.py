"""Trees, references and real object stores for the tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from artifact_servers import rclone_server, registry_server, seaweedfs_server
from artifact_trees import MakeTree, fill_tree

from engineroom import documents
from engineroom.artifacts import manifest
from engineroom.artifacts.reference import Reference


@pytest.fixture
def make_tree(tmp_path: Path) -> MakeTree:
    """Makes ``tmp_path/NAME``, an assembled tree."""

    def make(name: str = "tree", *, seed: int = 1, megabytes: float = 0.5) -> Path:
        return fill_tree(tmp_path / name, seed=seed, megabytes=megabytes)

    return make


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 64 KiB and parts of 256 KiB, so that half a megabyte is a file of many chunks and of parts."""
    monkeypatch.setattr(documents, "CHUNK_BYTES", 64 << 10)
    monkeypatch.setattr(manifest, "PART_BYTES", 256 << 10)


@pytest.fixture
def reference(tmp_path: Path) -> Reference:
    return Reference.parse(f"file://{tmp_path}/store/demo:v1")


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of a SeaweedFS with an empty bucket `models`: honours conditional writes."""
    with seaweedfs_server(tmp_path_factory.mktemp("seaweedfs")) as port:
        yield port


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """Port and folder of rclone's S3 server with a bucket `models`: ignores conditional writes."""
    folder = tmp_path_factory.mktemp("rclone")
    (folder / "models").mkdir()
    with rclone_server(folder) as port:
        yield port, folder


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """Port and folder of an OCI registry that lets everybody in."""
    folder = tmp_path_factory.mktemp("registry")
    with registry_server(folder) as port:
        yield port, folder
