"""Engines that somebody has built and published already: taken from the store by engine key instead of built again."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path, PurePosixPath

from engineroom.artifacts.pull import pull
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.resolve import resolve
from engineroom.artifacts.stores import open_store
from engineroom.engines import cache as engine_cache
from engineroom.engines.engine import Engine, EngineInputs
from engineroom.errors import ArtifactCorruptError, ArtifactNotFoundError, StoreError
from engineroom.progress import Progress
from engineroom.repository.record import ENGINE


def take_engine(inputs: EngineInputs, published: str, *, cache: Path, progress: Progress) -> bool:
    """Put the engine with this key into the cache, from the artifacts of ``published`` (SCHEME://LOCATION/NAME).

    False where neither has one; then it has to be built. Every byte is verified on its way.

    Raises BadReferenceError, ArtifactCorruptError, StoreError.
    """
    if engine_cache.find(inputs, cache=cache) is not None:
        return True
    reference = replace(Reference.parse(published), tag=f"key-{inputs.key}", digest=None)
    store = open_store(reference)
    try:
        artifact = resolve(reference, store=store)
    except ArtifactNotFoundError:
        progress.say(f"no engine {inputs.key[:12]} is published at {published}")
        return False
    record = artifact.record
    if record.inputs != inputs or record.key != inputs.key:
        raise ArtifactCorruptError(
            "its tag names the key of another engine", where=str(reference), fix="publish that engine again"
        )
    engines = cache / "engines"
    try:
        engines.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=engines, prefix=f".{inputs.key}.published-"))
        try:
            # By its digest alone: the tag may move meanwhile.
            pull(replace(artifact.reference, tag=None), scratch / "tree", store=store, progress=progress)
            files = [
                file.model_copy(update={"path": str(PurePosixPath(file.path).relative_to(ENGINE))})
                for file in record.files
                if PurePosixPath(file.path).is_relative_to(ENGINE)
            ]
            engine = Engine(
                key=inputs.key, inputs=inputs, requires=record.requires, files=files, provenance=record.provenance
            )
            engine_cache.adopt(engine, scratch / "tree" / ENGINE, cache=cache)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise StoreError(
            f"cannot write there ({error.strerror or error})",
            where=str(error.filename or engines),
            fix="free space, or choose another cache with ENGINEROOM_CACHE",
        ) from None
    progress.say(f"engine {inputs.key[:12]} taken from {artifact.reference}")
    return True
