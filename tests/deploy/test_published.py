"""An engine that was published is taken by its key, verified, and never mistaken for another one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engineroom.artifacts.publish import publish
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.stores import open_store
from engineroom.deploy.published import take_engine
from engineroom.documents import record_file
from engineroom.engines import cache as engine_cache
from engineroom.engines.engine import EngineInputs
from engineroom.errors import ArtifactCorruptError
from engineroom.progress import QUIET
from engineroom.repository.record import FILE, BuildRecord

MakeRecord = Callable[..., BuildRecord]


@pytest.fixture
def published(make_record: MakeRecord, tmp_path: Path) -> tuple[EngineInputs, str]:
    """An engine in a store: what it was built from, and where it is."""
    tree = tmp_path / "tree"
    for path in ("engine/rank0.engine", "engine/deep/rank1.engine", "tokenizer/tokenizer.json"):
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(path.encode() * 1000)
    inputs = make_record().inputs
    files = [record_file(tree, path.relative_to(tree).as_posix()) for path in sorted(tree.rglob("*")) if path.is_file()]
    make_record(key=inputs.key, files=files).write(tree / FILE)
    place = f"file://{tmp_path}/store/llama"
    publish(tree, Reference.parse(f"{place}:v1"), store=open_store(Reference.parse(place)))
    return inputs, place


def test_the_cache_gets_the_engine_s_files_and_nothing_else(
    published: tuple[EngineInputs, str], tmp_path: Path
) -> None:
    inputs, place = published

    assert take_engine(inputs, place, cache=tmp_path / "cache", progress=QUIET)

    engine = engine_cache.find(inputs, cache=tmp_path / "cache")
    assert engine is not None
    assert [file.path for file in engine.files] == ["deep/rank1.engine", "rank0.engine"]
    [folder] = [path for path in (tmp_path / "cache" / "engines").iterdir() if path.is_dir()]
    assert folder.name == inputs.key
    assert (folder / "rank0.engine").read_bytes() == b"engine/rank0.engine" * 1000
    assert not (folder / "tokenizer").exists()


def test_what_is_cached_is_not_asked_for(published: tuple[EngineInputs, str], tmp_path: Path) -> None:
    inputs, place = published
    take_engine(inputs, place, cache=tmp_path / "cache", progress=QUIET)

    assert take_engine(inputs, "file:///nowhere/at/all", cache=tmp_path / "cache", progress=QUIET)


@pytest.mark.parametrize("place", ["file://{tmp}/store/other", "file://{tmp}/empty/llama"])
def test_an_engine_that_nobody_published_has_to_be_built(
    place: str, published: tuple[EngineInputs, str], tmp_path: Path
) -> None:
    inputs, _ = published
    (tmp_path / "empty").mkdir()

    assert not take_engine(inputs, place.format(tmp=tmp_path), cache=tmp_path / "cache", progress=QUIET)
    assert engine_cache.find(inputs, cache=tmp_path / "cache") is None


def test_another_key_is_another_engine(published: tuple[EngineInputs, str], tmp_path: Path) -> None:
    inputs, place = published
    changed: dict[str, Any] = {**inputs.model_dump(by_alias=True), "precision": "float16"}

    assert not take_engine(EngineInputs(**changed), place, cache=tmp_path / "cache", progress=QUIET)


def test_a_tag_that_names_another_engine_is_refused(published: tuple[EngineInputs, str], tmp_path: Path) -> None:
    inputs, place = published
    changed = EngineInputs(**{**inputs.model_dump(by_alias=True), "precision": "float16"})
    tags = tmp_path / "store" / "refs" / "llama" / "tags"
    (tags / f"key-{changed.key}").write_bytes((tags / f"key-{inputs.key}").read_bytes())

    with pytest.raises(ArtifactCorruptError, match="another engine"):
        take_engine(changed, place, cache=tmp_path / "cache", progress=QUIET)


def test_a_flipped_bit_is_found_and_leaves_nothing_in_the_cache(
    published: tuple[EngineInputs, str], tmp_path: Path
) -> None:
    inputs, place = published
    blob = max((tmp_path / "store" / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(blob.read_bytes())
    data[7] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)

    with pytest.raises(ArtifactCorruptError):
        take_engine(inputs, place, cache=tmp_path / "cache", progress=QUIET)
    assert not any(path.is_dir() for path in (tmp_path / "cache" / "engines").iterdir())
