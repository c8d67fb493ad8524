"""The built images, a containerd, and a model published into a real S3 server, for the tests of this folder."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from image_containers import BUILT, ROOT, USER, Containerd, Published, containerd_server

from engineroom.cli.options import cache_folder


@pytest.fixture(scope="session")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    # Triton and the gateway listen on every address, as they do in pods.
    routes = Path("/proc/self/net/route").read_text().splitlines()[1:]
    assert not routes, "run these with ci/test-images, which gives them a network of their own"
    # A path of a socket has room for 107 letters.
    folder = Path("/tmp") / f"engineroom-images-{os.getpid()}"
    with containerd_server(folder) as server:
        yield server
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def toolkit(containers: Containerd) -> str:
    return containers.load(BUILT / "toolkit.tar")


@pytest.fixture(scope="session")
def builder(containers: Containerd) -> str:
    """Perhaps without TensorRT-LLM: see ci/test-images."""
    return containers.load(BUILT / "builder.tar")


@pytest.fixture(scope="session")
def triton_cpu(containers: Containerd) -> str:
    return containers.load(BUILT / "triton-cpu.tar")


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    """The demo model, built here and published into a SeaweedFS."""
    sys.path.insert(0, str(ROOT / "tests" / "artifacts"))
    from artifact_servers import environment, seaweedfs_server

    folder = tmp_path_factory.mktemp("job")
    program = Path(sys.executable).with_name("engineroom")
    with seaweedfs_server(tmp_path_factory.mktemp("seaweedfs")) as port:
        variables = environment(port)
        recipe = folder / "engineroom.yaml"
        place = "s3://models/smollm2:v1"
        for words in (
            ["init", "--model", "demo://smollm2", "--gpu", "cpu", "--publish", place, "--to", str(recipe)],
            ["up", "--recipe", str(recipe), "--output", "json"],
        ):
            done = subprocess.run(
                [program, *words], env=os.environ | variables, cwd=folder, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
        work = folder / ".engineroom"
        revision = json.loads((work / "checkpoint.json").read_text())["revision"]
        checkpoint = cache_folder() / "checkpoints" / "demo--smollm2" / revision
        yield Published(json.loads(done.stdout)["reference"], variables, work / "values.yaml", checkpoint)


@pytest.fixture(scope="session")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The volume of a pod, made writable for its user as fsGroup makes it."""
    folder = Path(tmp_path_factory.mktemp("volume"))
    os.chown(folder, USER, USER)
    for parent in folder.parents:
        if parent == Path("/tmp"):
            break
        parent.chmod(0o755)
    return folder
