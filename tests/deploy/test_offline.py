"""A bundle is made of a real store and a real registry, and loaded into others by its own script."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from engineroom.artifacts.publish import publish
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.stores import open_store
from engineroom.artifacts.verify import verify_artifact
from engineroom.deploy import helm
from engineroom.deploy.offline import Bundled, bundle
from engineroom.errors import CommandError, InputError

ROOT = Path(__file__).resolve().parents[2]
DIGEST = f"sha256:{'7' * 64}"
PINNED = {
    "images": {
        "server": {"registry": "nvcr.io", "digest": DIGEST},
        "toolkit": {"registry": "registry.example.com", "digest": f"sha256:{'8' * 64}"},
    },
    "model": {"runtime": "ctranslate2"},
}


@pytest.fixture
def reference(tmp_path: Path) -> str:
    """An artifact in a folder."""
    sys.path.insert(0, str(ROOT / "tests" / "artifacts"))
    from artifact_trees import fill_tree

    place = Reference.parse(f"file://{tmp_path}/store/demo:v1")
    done = publish(fill_tree(tmp_path / "tree", seed=1, megabytes=0.5), place, store=open_store(place))
    return str(done.reference)


@pytest.fixture
def values(tmp_path: Path, reference: str) -> Path:
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump({**PINNED, "artifact": {"ref": reference}}))
    return path


def make(values: list[Path], to: Path, **options: Any) -> Bundled:
    found = helm.find(cache=to.parent / "cache")
    return bundle(values, to, helm=found, chart=helm.chart_folder(), release="llm", **options)


def test_a_bundle_holds_all_with_checksums(values: Path, tmp_path: Path, reference: str) -> None:
    done = make([values], tmp_path / "bundle")

    assert done.reference == reference
    assert DIGEST in " ".join(done.images)
    check = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    subprocess.run(check, cwd=done.path, check=True, capture_output=True)
    names = {path.relative_to(done.path).as_posix() for path in done.path.rglob("*") if path.is_file()}
    assert {"artifact.tar", "images.txt", "load.sh", "values/00-values.yaml", "values/01-images-values.yaml"} <= names
    assert len((done.path / "SHA256SUMS").read_text().splitlines()) == len(names) - 1 == done.files
    assert not (tmp_path / ".bundle.partial").exists()


def test_a_bundle_is_not_written_over(values: Path, tmp_path: Path) -> None:
    make([values], tmp_path / "bundle")
    with pytest.raises(InputError, match="there already"):
        make([values], tmp_path / "bundle")


def test_values_without_an_artifact_are_refused(tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump(PINNED))
    with pytest.raises(InputError, match="no file names an artifact"):
        make([values], tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir() if "bundle" in path.name] == []


def test_secrets_stay_out(values: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.yaml"
    secret.write_text("artifact:\n  environment:\n    AWS_SECRET_ACCESS_KEY: not-for-others\n")
    with pytest.raises(InputError, match="secret"):
        make([values, secret], tmp_path / "bundle")


def test_a_tag_needs_somebody_who_looks_it_up(values: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_tag = tmp_path / "tag.yaml"
    by_tag.write_text(yaml.safe_dump({"images": {"server": {"digest": "", "tag": "v1"}}}))
    found = helm.find(cache=tmp_path / "cache")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="tag") as refusal:
        bundle([values, by_tag], tmp_path / "bundle", helm=found, chart=helm.chart_folder(), release="llm")
    assert "nvcr.io/nvidia/tritonserver:v1" in refusal.value.where
    assert "digest" in refusal.value.fix


@pytest.fixture(scope="module")
def registries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """One with internet, one without."""
    sys.path.insert(0, str(ROOT / "tests" / "artifacts"))
    from artifact_servers import registry_server

    with (
        registry_server(tmp_path_factory.mktemp("outside")) as outside,
        registry_server(tmp_path_factory.mktemp("inside")) as inside,
    ):
        yield f"127.0.0.1:{outside}", f"127.0.0.1:{inside}"


@pytest.mark.local
def test_a_bundle_is_loaded_where_there_is_no_internet(
    reference: str, tmp_path: Path, registries: tuple[str, str]
) -> None:
    """Images by tag are pinned and carried; load.sh brings all into other stores; Helm renders what it prints."""
    outside, inside = registries
    sys.path.insert(0, str(ROOT / "tests" / "images"))
    from image_samples import image

    for name in ("toolkit", "server"):
        image(tmp_path / f"{name}.tar", name.encode())
        copy = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"docker-archive:{tmp_path}/{name}.tar"]
        subprocess.run([*copy, f"docker://{outside}/team/{name}:v1"], check=True, capture_output=True)
    entry = {name: {"registry": outside, "repository": f"team/{name}", "tag": "v1"} for name in ("toolkit", "server")}
    values = tmp_path / "values.yaml"
    values.write_text(
        yaml.safe_dump({"images": entry, "model": {"runtime": "ctranslate2"}, "artifact": {"ref": reference}})
    )

    done = make([values], tmp_path / "bundle", carry_images=True, plain_http=True)
    assert all("@sha256:" in name for name in done.images)

    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    store = tmp_path / "inside"
    loaded = subprocess.run(
        [done.path / "load.sh", inside, f"file://{store}"],
        env=os.environ | {"TLS": "false", "PATH": programs}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert loaded.returncode == 0, loaded.stderr
    here = Reference.parse(f"file://{store}/demo@{done.reference.rpartition('@')[2]}")
    verify_artifact(here, store=open_store(here)).check()

    words = loaded.stdout.split()
    assert words[:3] == ["helm", "install", "llm"]
    program = str(helm.find(cache=tmp_path / "cache").program)
    rendered = subprocess.run(
        [program, "template", *words[2:]], cwd=done.path, capture_output=True, text=True, check=True
    ).stdout
    for name in done.images:
        moved = name.replace(outside, inside)
        assert moved in rendered
        inspect = ["skopeo", "inspect", "--tls-verify=false", f"docker://{moved}"]
        assert json.loads(subprocess.run(inspect, check=True, capture_output=True).stdout)["Digest"] in name
    assert str(here) in rendered

    # One bit is enough.
    with (done.path / "artifact.tar").open("r+b") as file:
        file.seek(5000)
        file.write(b"\xff")
    again = subprocess.run(
        [done.path / "load.sh", inside, f"file://{tmp_path}/never"],
        env=os.environ | {"TLS": "false", "PATH": programs}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert again.returncode != 0
    assert not (tmp_path / "never").exists()


@pytest.mark.local
def test_an_image_that_is_not_there_is_named(values: Path, tmp_path: Path, registries: tuple[str, str]) -> None:
    missing = f"{registries[0]}/team/missing:v9"
    with pytest.raises(CommandError) as failure:
        make([values], tmp_path / "bundle", more_images=[missing], plain_http=True)
    assert failure.value.where == "skopeo inspect"


@pytest.mark.local
def test_what_an_interrupted_run_left_is_not_taken_for_another_image(
    reference: str, tmp_path: Path, registries: tuple[str, str]
) -> None:
    sys.path.insert(0, str(ROOT / "tests" / "images"))
    from image_samples import image

    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump({**PINNED, "artifact": {"ref": reference}}))
    image(tmp_path / "more.tar", b"more")
    more = f"{registries[0]}/team/more:v1"
    copy = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"docker-archive:{tmp_path}/more.tar"]
    subprocess.run([*copy, f"docker://{more}"], check=True, capture_output=True)
    left = tmp_path / ".bundle.partial" / "images"
    (left / "7").mkdir(parents=True)
    (left / "0").mkdir()
    (left / "0" / "source").write_text("registry.example.com/other@sha256:0\n")

    # The chart's images cannot be reached from here: the first copy of the run fails, and says so.
    with pytest.raises(CommandError):
        make([values], tmp_path / "bundle", more_images=[more], carry_images=True, plain_http=True)

    assert not (left / "7").exists()
    assert not (left / "0" / "source").exists()
    assert not (tmp_path / "bundle").exists()
