"""The scripts of a release, against a real registry: what they push can be pulled, and is what the chart then names."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from image_containers import ROOT
from image_samples import image

pytestmark = pytest.mark.local

VALUES = ROOT / "charts/engineroom/ci/ranks-values.yaml"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    sys.path.insert(0, str(ROOT / "tests" / "artifacts"))
    from artifact_servers import registry_server

    with registry_server(tmp_path_factory.mktemp("registry")) as port:
        yield f"127.0.0.1:{port}"


def script(name: str, *words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"TLS": "false"} | variables
    return subprocess.run([ROOT / "ci" / name, *words], env=environment, capture_output=True, text=True, check=False)


def test_images_are_pushed_and_named_by_digest(registry: str, tmp_path: Path) -> None:
    built, release = tmp_path / "built", tmp_path / "release"
    image(built / "toolkit.tar", b"toolkit")
    image(built / "builder.tar", b"builder")
    (built / "toolkit.cdx.json").write_text("{}")

    done = script("release-images", registry, OUTPUT=str(built), RELEASE=str(release), VERSION="1.2.3")

    assert done.returncode == 0, done.stderr
    names = {line.partition("@")[0].removeprefix(f"{registry}/"): line for line in done.stdout.splitlines()}
    assert set(names) == {"engineroom/engine-builder:1.2.3", "engineroom/toolkit:1.2.3"}
    for line in names.values():
        place, _, digest = line.partition("@")
        inspect = ["skopeo", "inspect", "--tls-verify=false", f"docker://{place.rpartition(':')[0]}@{digest}"]
        assert json.loads(subprocess.run(inspect, capture_output=True, check=True).stdout)["Digest"] == digest
    assert (release / "toolkit.cdx.json").is_file()
    rendered = subprocess.run(
        [
            "helm", "template", "llm", ROOT / "charts/engineroom", "--values", VALUES,
            "--values", release / "images-values.yaml",
        ],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    toolkit = names["engineroom/toolkit:1.2.3"]
    assert f"image: {toolkit.replace(':1.2.3@', '@')}" in rendered.replace('"', "")


def test_nothing_to_push_is_refused(registry: str, tmp_path: Path) -> None:
    done = script("release-images", registry, OUTPUT=str(tmp_path), RELEASE=str(tmp_path / "release"))
    assert done.returncode == 2
    assert "run ci/images first" in done.stderr


def test_charts_are_pushed_and_install_from_there(registry: str, tmp_path: Path) -> None:
    done = script("release-charts", registry, "charts/engineroom", RELEASE=str(tmp_path))

    assert done.returncode == 0, done.stdout + done.stderr
    version = yaml.safe_load((ROOT / "charts/engineroom/Chart.yaml").read_text())["version"]
    for helm in ("helm3", "helm4"):
        rendered = subprocess.run(
            [
                helm, "template", "llm", f"oci://{registry}/charts/engineroom", "--version", version, "--plain-http",
                "--values", VALUES,
            ],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert rendered.returncode == 0, rendered.stderr
        assert "kind: Deployment" in rendered.stdout or "kind: StatefulSet" in rendered.stdout


def test_the_wheel_holds_charts_and_models_and_all_has_checksums(tmp_path: Path) -> None:
    (tmp_path / "toolkit.digest").write_text("sha256:0")

    done = script("release-wheel", RELEASE=str(tmp_path))

    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("engineroom-*.whl")
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path, check=True, capture_output=True)
    assert len((tmp_path / "SHA256SUMS").read_text().splitlines()) == 2
    listed = subprocess.run(
        [sys.executable, "-m", "zipfile", "--list", wheel], capture_output=True, text=True, check=True
    )
    for name in ("engineroom/_data/charts/engineroom/Chart.yaml", "engineroom/_data/model-repo/text.py"):
        assert name in listed.stdout
