"""Values from a published artifact alone."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from engineroom.artifacts.publish import publish
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.stores import open_store
from engineroom.cli.main import cli
from engineroom.documents import FileRecord
from engineroom.errors import IncompatibleError, InputError
from engineroom.progress import QUIET
from engineroom.repository.record import BuildRecord

MakeRecord = Callable[..., BuildRecord]


@pytest.fixture
def published(make_record: MakeRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Publishes a tree for a build record with these changes, and gives its reference."""
    monkeypatch.setenv("ENGINEROOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def made(**changes: Any) -> str:
        tree, data = tmp_path / "tree", b"engine"
        (tree / "engine").mkdir(parents=True)
        (tree / "engine" / "rank0.engine").write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        files = [FileRecord(path="engine/rank0.engine", size=len(data), sha256=digest, chunks=[digest])]
        gpu = {"sm": "90", "product": "NVIDIA H100 80GB HBM3"}
        inputs = {"gpu": gpu} | changes.pop("inputs", {})
        record = make_record(inputs=inputs, files=files, **changes)
        record = record.model_copy(update={"key": record.inputs.key})
        (tree / "build-record.json").write_bytes(record.to_json())
        reference = Reference.parse(f"file://{tmp_path}/store/llama:v1")
        return str(publish(tree, reference, store=open_store(reference), progress=QUIET).reference)

    return made


def values(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(cli, ["values", *arguments], catch_exceptions=False, standalone_mode=False)
    return yaml.safe_load(result.stdout) | {"text": result.stdout}


def test_values_of_an_artifact_for_a_traffic(published: Callable[..., str]) -> None:
    reference = published()

    few = values(reference, "--traffic", "1,1000,200", "--slo", "1000,60")
    many = values(reference, "--gpu", "h100", "--traffic", "100,1000,200", "--slo", "1000,60")

    assert few["artifact"]["ref"] == reference
    assert few["triton"]["replicas"] == 2
    assert many["triton"]["replicas"] > 3
    assert many["triton"]["drainSeconds"] > 1
    assert "100 requests/s of 1000 + 200 tokens" in " ".join(many["text"].split())
    assert "one may be lost" in " ".join(few["text"].replace("#", "").split())


def test_without_a_traffic_one_replica_and_the_reason(published: Callable[..., str]) -> None:
    found = values(published())

    assert found["triton"]["replicas"] == 1
    assert "no traffic and slo to size it for" in found["text"]


def test_a_tag_is_resolved_to_its_digest(published: Callable[..., str]) -> None:
    reference = published()

    assert values(reference.partition("@")[0])["artifact"]["ref"] == reference


def test_an_engine_is_refused_for_another_architecture(published: Callable[..., str]) -> None:
    with pytest.raises(IncompatibleError, match="compute capability 90 was built"):
        values(published(), "--gpu", "l40s")


def test_an_unknown_model_needs_its_sizes(published: Callable[..., str], checkout: Path) -> None:
    reference = published(name="house-model")

    with pytest.raises(InputError, match="whose sizes are not known here"):
        values(reference)
    config = checkout / "tests" / "engines" / "configs" / "llama-3.1-70b" / "config.json"
    assert values(reference, "--model", str(config))["model"]["worldSize"] == 4


def test_an_artifact_that_runs_anywhere_needs_a_class(published: Callable[..., str]) -> None:
    reference = published(inputs={"gpu": None})

    with pytest.raises(InputError, match="runs on several GPU classes"):
        values(reference)


@pytest.mark.parametrize("option", [("--reference", "s3://a/b@sha256:0"), ("--recipe", "x.yaml"), ("--set", "gpu=l4")])
def test_options_of_a_recipe_do_not_go_with_an_artifact(published: Callable[..., str], option: tuple[str, str]) -> None:
    with pytest.raises(InputError, match="is of a recipe"):
        values(published(), *option)
