"""One control plane for all tests of the tier, and a namespace for each test that wants one."""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The values files that ship, and how they are installed, are those of the chart's own tests.
sys.path.append(str(ROOT / "tests" / "charts"))

import definitions  # noqa: E402
import scenarios  # noqa: E402
from control_plane import ControlPlane  # noqa: E402
from releases import Installer  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def tools() -> Path:
    """The folder with the programs. Without it nothing can be tested: CI fails, a laptop skips and is told why."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "ci" / "cluster-tools"), "--find"], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return Path(done.stdout.strip())
    if os.environ.get("CI"):
        pytest.fail(done.stderr)
    pytest.skip(done.stderr)


@pytest.fixture(scope="session")
def cluster(tools: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """The control plane, with the definitions of all custom resources that the chart renders."""
    with ControlPlane(tools, tmp_path_factory.mktemp("control-plane")) as started:
        started.kubectl("apply", "--server-side", *(f"--filename={file}" for file in definitions.real(tools / "crds")))
        started.apply(definitions.stand_ins())
        started.kubectl("wait", "--for=condition=Established", "customresourcedefinition", "--all", "--timeout=240s")
        yield started


_numbers = itertools.count(1)


@pytest.fixture
def namespace(cluster: ControlPlane) -> Iterator[str]:
    """A namespace that enforces Pod Security `restricted`, as a careful platform team makes it."""
    name = f"models-{next(_numbers)}"
    cluster.make_namespace(name, pod_security="restricted")
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(params=["helm3", "helm4"])
def installer(request: pytest.FixtureRequest, cluster: ControlPlane, namespace: str) -> Installer:
    """Each Helm major, in a namespace of the test's own."""
    return Installer(_helm(request.param), cluster, namespace)


@pytest.fixture(scope="session")
def installer_in(cluster: ControlPlane) -> Callable[[str, str], Installer]:
    """A Helm, by name, in a namespace."""
    return lambda helm, namespace: Installer(_helm(helm), cluster, namespace)


def _helm(name: str) -> Path:
    if found := scenarios.program(name):
        return found
    reason = f"no {name} on this machine: run ci/install-helm"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
