"""Trees, references and real object stores for the tests of this folder."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from artifact_servers import KEY, SECRET, free_port, make_bucket, program, stop, wait_for_port
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
    weed = program("weed")
    folder = tmp_path_factory.mktemp("seaweedfs")
    config = folder / "s3.json"
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identity = {"name": "tests", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": actions}
    config.write_text(json.dumps({"identities": [identity]}))
    ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
    grpc = {name: free_port() for name in ("master", "volume", "filer", "s3")}
    (folder / "data").mkdir()
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [
                weed, "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
                f"-master.port={ports['master']}", f"-master.port.grpc={grpc['master']}",
                f"-volume.port={ports['volume']}", f"-volume.port.grpc={grpc['volume']}",
                f"-filer.port={ports['filer']}", f"-filer.port.grpc={grpc['filer']}", "-filer",
                "-s3", f"-s3.port={ports['s3']}", f"-s3.port.grpc={grpc['s3']}", f"-s3.config={config}",
                "-master.volumeSizeLimitMB=512",
            ],
            stdout=log, stderr=log, cwd=folder,
        )  # fmt: skip
    try:
        wait_for_port(server, ports["s3"], 60)
        make_bucket(ports["s3"], "models")
        yield ports["s3"]
    finally:
        stop(server)


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """Port and folder of rclone's S3 server with a bucket `models`: ignores conditional writes."""
    folder = tmp_path_factory.mktemp("rclone")
    (folder / "models").mkdir()
    port = free_port()
    server = subprocess.Popen(
        [program("rclone"), "serve", "s3", "--auth-key", f"{KEY},{SECRET}", "--addr", f"127.0.0.1:{port}", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "RCLONE_CONFIG": os.devnull},
    )
    try:
        wait_for_port(server, port, 30)
        yield port, folder
    finally:
        stop(server)
