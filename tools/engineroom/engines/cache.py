"""Engines that are built already, found by engine key only: ``CACHE/engines/<key>/`` with its ``engine.json``."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from engineroom.documents import list_files, record_file
from engineroom.engines.builder import Builder, BuildRequest
from engineroom.engines.engine import FILE, Engine, EngineInputs
from engineroom.errors import DocumentError, StoreError
from engineroom.folders import locked, swap_in, sync_tree
from engineroom.progress import Progress


@dataclass(frozen=True)
class Built:
    """An engine, and why it was or was not built now."""

    engine: Engine
    folder: Path
    hit: bool
    reason: str


def build(request: BuildRequest, builder: Builder, *, cache: Path, progress: Progress) -> Built:
    """The engine for ``request``: from ``cache`` where one with the same key lies there, else built into it.

    A build happens in a folder beside its place and is renamed in when it is whole, so that a killed one is
    never taken for an engine. Two processes that want the same key build it once.

    Raises what the builder raises, and StoreError where the cache cannot be written.
    """
    inputs = builder.inputs(request)
    engines = cache / "engines"
    folder = engines / inputs.key
    try:
        engines.mkdir(parents=True, exist_ok=True)
        with locked(engines / f".{inputs.key}.lock"):
            if (engine := _read(folder)) is not None:
                return Built(engine, folder, True, "every input of the engine key is the same")
            reason = "the cached engine is damaged" if folder.exists() else why_not_cached(inputs, engines)
            progress.say(f"build engine {inputs.key[:12]}: {reason}")
            engine = _build_into(folder, inputs, request, builder, progress)
            return Built(engine, folder, False, reason)
    except OSError as error:
        raise StoreError(
            f"cannot write there ({error.strerror or error})",
            where=str(error.filename or engines),
            fix="free space, or choose another cache with ENGINEROOM_CACHE",
        ) from None


def find(inputs: EngineInputs, *, cache: Path) -> Engine | None:
    """The cached engine with this key, where it is whole."""
    return _read(cache / "engines" / inputs.key)


def adopt(engine: Engine, folder: Path, *, cache: Path) -> None:
    """Give the cache an engine that was built elsewhere. ``folder``, in the cache's file system, holds its files.

    Raises OSError where the cache cannot be written.
    """
    engines = cache / "engines"
    engines.mkdir(parents=True, exist_ok=True)
    for file in engine.files:
        (folder / file.path).chmod(0o444)
    engine.write(folder / FILE)
    folder.chmod(0o755)
    sync_tree(folder, files=True)
    with locked(engines / f".{engine.key}.lock"):
        swap_in(folder, engines / engine.key)


def why_not_cached(inputs: EngineInputs, engines: Path) -> str:
    """Which inputs differ from the nearest engine in the cache: the answer to "why is it building again?"."""
    others = [engine.inputs for folder in engines.iterdir() if (engine := _read(folder)) is not None]
    if not others:
        return "the cache holds no engine yet"
    nearest = min((inputs.differences(other) for other in others), key=len)
    return "changed since the nearest cached engine: " + ", ".join(nearest)


def _read(folder: Path) -> Engine | None:
    """The engine in ``folder`` if it is whole and of the sizes that it records."""
    if folder.name.startswith(".") or not (folder / FILE).is_file():
        return None
    try:
        engine = Engine.read(folder / FILE, made_by="engineroom build")
        whole = all((folder / file.path).stat().st_size == file.size for file in engine.files)
    except (DocumentError, OSError):
        return None
    return engine if whole and engine.key == folder.name == engine.inputs.key else None


def _build_into(
    folder: Path, inputs: EngineInputs, request: BuildRequest, builder: Builder, progress: Progress
) -> Engine:
    # Of killed builds, with the TensorRT builder's scratch folders beside them; we hold the lock.
    for left in folder.parent.glob(f".*{inputs.key}.build-*"):
        shutil.rmtree(left, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{inputs.key}.build-"))
    try:
        provenance = builder.build(request, output=staging, progress=progress)
        paths = list_files(staging)
        with progress.task("hash engine", sum((staging / path).stat().st_size for path in paths)) as task:
            files = []
            for path in paths:
                files.append(record_file(staging, path))
                # Assembled trees are hard links to these files: nobody may write through one by accident.
                (staging / path).chmod(0o444)
                task.advance(files[-1].size)
        engine = Engine(
            key=inputs.key, inputs=inputs, requires=builder.requires(request), files=files, provenance=provenance
        )
        engine.write(staging / FILE)
        staging.chmod(0o755)
        sync_tree(staging, files=True)
        # What had the name is damaged, or _read had found it; it goes with the staging folder.
        swap_in(staging, folder)
        return engine
    finally:
        shutil.rmtree(staging, ignore_errors=True)
