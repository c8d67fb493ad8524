"""What is rendered for the golden files, and how: shared by the tests and by ci/golden."""

import itertools
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from engineroom.deploy.helm import Helm

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "engineroom"
GOLDEN = Path(__file__).parent / "golden"
RELEASE, NAMESPACE = "llm", "models"

#: What `--set artifact.ref=…` gives to values that leave it out.
REFERENCE = "s3://models/llama:v1@sha256:" + "1" * 64


def values_files() -> list[Path]:
    """Every values file that the repository ships: GPU classes, clouds, profiles, and the chart's own scenarios."""
    found = sorted((ROOT / "values").rglob("*.yaml")) + sorted(CHART.glob("ci/*-values.yaml"))
    assert len({path.stem for path in found}) == len(found), "two values files of one name would share a golden file"
    return found


def install_command(values: Path) -> tuple[list[Path], list[str]]:
    """The values files and the ``--set`` of the command that a values file documents in its head; itself, where none.

    An ellipsis stands for the digest of whatever reference it ends.
    """
    head = itertools.takewhile(lambda line: line.startswith("#"), values.read_text(encoding="utf-8").splitlines())
    text = "\n".join(line.removeprefix("#") for line in head).replace("\\\n", " ")
    for line in text.splitlines():
        if line.strip().startswith("helm install "):
            pairs = list(itertools.pairwise(shlex.split(line)))
            files = [ROOT / word for flag, word in pairs if flag == "-f"]
            sets = [word for flag, word in pairs if flag == "--set"]
            assert files[-1] == values, f"{values}: the command in its head ends with another file"
            digest = REFERENCE.rpartition(":")[2]
            return files, [word.replace("=…", f"={REFERENCE}").replace("…", digest) for word in sets]
    return [values], []


def golden_of(values: Path) -> Path:
    """Where the rendering of ``values`` is kept."""
    return GOLDEN / f"{values.stem.removesuffix('-values')}.yaml"


def program(name: str) -> Path | None:
    """``helm3`` or ``helm4``: in PATH, or where ci/install-helm puts it; None where it is not installed."""
    if found := shutil.which(name):
        return Path(found)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(os.environ.get("ENGINEROOM_CACHE") or Path(cache) / "engineroom") / "tools" / "bin" / name
    return path if path.is_file() else None


def installed(name: str) -> Path:
    """The same, installed first where it has to be."""
    if found := program(name):
        return found
    subprocess.run([sys.executable, str(ROOT / "ci" / "install-helm")], check=True, stdout=sys.stderr)
    found = program(name)
    assert found is not None, f"ci/install-helm installs {name}"
    return found


def render(helm: Helm, values: Path, scratch: Path, overrides: dict[str, Any] | None = None) -> str:
    """The manifests for a values file, with REFERENCE where it has none, and ``overrides`` on top."""
    files, sets = install_command(values)
    extra: dict[str, Any] = dict(overrides or {})
    if values.parent.name == "gpu":
        extra["artifact"] = {"ref": REFERENCE, **extra.get("artifact", {})}
    for word in sets:
        path, _, value = word.partition("=")
        *sections, key = path.split(".")
        inner = extra
        for section in sections:
            inner = inner.setdefault(section, {})
        inner.setdefault(key, value)
    last = scratch / "overrides.yaml"
    last.write_text(yaml.safe_dump(extra), encoding="utf-8")
    return helm.template(CHART, [*files, last], release=RELEASE, namespace=NAMESPACE)


def objects(manifests: str) -> list[dict[str, Any]]:
    """The objects of rendered manifests."""
    return [document for document in yaml.safe_load_all(manifests) if document]


def settled(manifests: str) -> str:
    """Manifests without what differs from release to release of the chart, or from Helm to Helm.

    Versions of the chart and of our images become VERSION; Helm 4 leaves an empty line before each document.
    """
    facts = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    for changing, kept in (
        (f"helm.sh/chart: {facts['name']}-{facts['version']}", f"helm.sh/chart: {facts['name']}-VERSION"),
        (f'app.kubernetes.io/version: "{facts["appVersion"]}"', 'app.kubernetes.io/version: "VERSION"'),
        (f"localhost/engineroom/toolkit:{facts['appVersion']}", "localhost/engineroom/toolkit:VERSION"),
        (f"localhost/engineroom/triton-cpu:{facts['appVersion']}", "localhost/engineroom/triton-cpu:VERSION"),
        (f"localhost/engineroom/engine-builder:{facts['appVersion']}", "localhost/engineroom/engine-builder:VERSION"),
    ):
        manifests = manifests.replace(changing, kept)
    return "\n".join(line for line in manifests.splitlines() if line.strip()) + "\n"


def generate(helm: Helm, scratch: Path) -> Iterator[tuple[Path, str]]:
    """Every golden file and what it should hold."""
    for values in values_files():
        yield golden_of(values), settled(render(helm, values, scratch))
