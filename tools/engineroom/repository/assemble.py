"""The tree that Triton serves, put together: engine, tokenizer, model code, configurations, build record.

Equal inputs give equal bytes: nothing in a tree says when or where it was assembled. Engine files are hard links to
the cache's (copies where a file system cannot link), and their digests come from ``engine.json``, so that assembling
takes no longer for 100 GB than for 100 MB.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engineroom.checkpoint.record import CheckpointRecord
from engineroom.documents import FileRecord, list_files, record_file
from engineroom.engines.engine import FILE as ENGINE_FILE
from engineroom.engines.engine import Engine
from engineroom.errors import ArtifactCorruptError, InputError
from engineroom.folders import disk_errors, locked, swap_in, sync_tree
from engineroom.planning.plan import Plan
from engineroom.progress import QUIET, Progress
from engineroom.recipe import Recipe
from engineroom.repository import pbtxt, templates, tokenizer_files
from engineroom.repository.record import ENGINE, FILE, MODEL_REPOSITORY, TOKENIZER, BuildRecord, ServedModel

#: In version folders without code. Triton wants the folder, and stores of artifacts keep no empty ones.
_PLACEHOLDER = "Triton looks for this folder: it is version 1 of the model, which has no files of its own.\n"


def assemble(
    recipe: Recipe,
    plan: Plan,
    engine: Engine,
    engine_folder: Path,
    record: CheckpointRecord,
    checkpoint: Path,
    output: Path,
    progress: Progress = QUIET,
) -> BuildRecord:
    """Write the tree for ``engine`` to the folder ``output``, replacing a tree that is there, and return its record.

    A reader finds the old tree or the new one, never a part.

    Raises InputError where ``output`` is something else than a tree, CheckpointError for tokenizer files that cannot
    be used, ArtifactCorruptError where the engine's files are not those of its record, StoreError where the disk is
    full or not writable.
    """
    end_ids = tokenizer_files.eos_ids(checkpoint)
    if not end_ids:
        progress.say("the checkpoint names no end-of-sequence token: answers end at max_tokens or at a stop word")
    served = ServedModel(
        client_model=pbtxt.client_model(plan.runtime),
        max_input_len=plan.limits.max_input_len,
        max_seq_len=plan.limits.max_seq_len,
        eos_ids=end_ids,
        chat_template=tokenizer_files.chat_template(checkpoint),
        special_tokens=tokenizer_files.special_tokens(checkpoint),
    )
    copied = tokenizer_files.find_tokenizer_files(checkpoint)
    _check_output(output)
    with disk_errors(output), _staging(output) as staging:
        engine_files = _link_engine(engine, engine_folder, staging)
        for name in copied:
            _copy(checkpoint / name, staging / TOKENIZER / name)
        _write_models(pbtxt.Facts(recipe, plan, engine, end_ids), staging)
        _copy(templates.template_folder() / templates.PREFLIGHT, staging / templates.PREFLIGHT)
        own = [path for path in list_files(staging) if not path.startswith(f"{ENGINE}/")]
        files = [*engine_files, *(record_file(staging, path) for path in own)]
        built = BuildRecord(
            name=_name(record.source),
            key=engine.key,
            inputs=engine.inputs,
            requires=engine.requires,
            model=served,
            files=sorted(files, key=lambda file: file.path),
            provenance=engine.provenance | {"source": record.source, "revision": record.revision},
        )
        # The blob's own bytes, without a newline: in the artifact its digest is the config's.
        (staging / FILE).write_bytes(built.to_json())
        sync_tree(staging)
        swap_in(staging, output)
    total = sum(file.size for file in built.files)
    progress.say(f"assembled {len(built.files)} files, {total / 1e6:,.0f} MB, for {served.client_model}")
    return built


def _check_output(output: Path) -> None:
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise InputError("it is no folder", where=str(output), fix="choose another place for the tree")
    if output.is_dir() and any(output.iterdir()) and not (output / FILE).is_file():
        raise InputError(
            "it is not empty and holds no tree", where=str(output), fix="choose another folder, or empty it"
        )


def _link_engine(engine: Engine, folder: Path, staging: Path) -> list[FileRecord]:
    made = []
    for file in engine.files:
        if file.path == ENGINE_FILE:
            continue
        source, target = folder / file.path, staging / ENGINE / file.path
        if not target.resolve().is_relative_to(staging.resolve()):
            raise ArtifactCorruptError(
                f"the path {file.path!r} leaves the engine's folder",
                where=str(folder / ENGINE_FILE),
                fix="build the engine again",
            )
        if not source.is_file() or source.stat().st_size != file.size:
            found = f"{source.stat().st_size:,} bytes" if source.is_file() else "no such file"
            raise ArtifactCorruptError(
                f"found {found}, but the engine's record promises {file.size:,} bytes",
                where=str(source),
                fix="build the engine again",
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source.resolve(), target)
        except OSError as error:
            # Another file system, one without links, or a file of somebody else: a copy serves as well.
            if error.errno not in {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS}:
                raise
            _copy(source, target)
        path = target.relative_to(staging).as_posix()
        made.append(file.model_copy(update={"path": path}) if file.chunks else record_file(staging, path))
    return made


def _write_models(facts: pbtxt.Facts, staging: Path) -> None:
    code = templates.template_folder()
    for name, config in pbtxt.configs(facts).items():
        model = staging / MODEL_REPOSITORY / name
        (model / "1").mkdir(parents=True)
        (model / "config.pbtxt").write_text(pbtxt.to_text(config), encoding="utf-8")
        if config.backend != "python":
            (model / "1" / "README").write_text(_PLACEHOLDER, encoding="utf-8")
            continue
        for file, source in templates.model_code(code, name).items():
            _copy(source, model / "1" / file)


def _copy(source: Path, target: Path) -> None:
    """The bytes only: neither a restrictive mode nor a date of the source."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _name(source: str) -> str:
    return source.rstrip("/").rsplit("/", 1)[-1] or "model"


@contextmanager
def _staging(output: Path) -> Iterator[Path]:
    """An empty folder beside ``output``, for this process alone; gone afterwards, also that of a killed process."""
    staging = output.parent / f".{output.name}.assemble"
    with locked(output.parent / f".{output.name}.assemble-lock"):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)
