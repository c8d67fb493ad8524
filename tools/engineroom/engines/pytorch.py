"""Engines for TensorRT-LLM's PyTorch backend: nothing is compiled, the checkpoint itself is served.

Upstream's way forward since the engine path was removed (pull request 15918). Experimental here: its Python model
has not been run in the image yet, and the provenance of each build says so.
"""

import os
import shlex
import shutil
from pathlib import Path
from typing import Any

from engineroom.checkpoint.weights import read_weights
from engineroom.documents import FileRecord
from engineroom.engines.builder import BuildRequest
from engineroom.engines.engine import EngineInputs, Requires
from engineroom.engines.tensorrt_versions import PINNED, Stack
from engineroom.errors import CheckpointError, InputError, StoreError
from engineroom.planning.plan import Plan
from engineroom.progress import Progress, Task

#: Besides the weights: config.json, tokenizer.json, merges.txt, tokenizer.model, chat_template.jinja and their like.
_SERVING_SUFFIXES = (".json", ".txt", ".model", ".jinja")

_BLOCK = 4 << 20


class PytorchBuilder:
    """Gathers what the PyTorch backend loads; implements :class:`~engineroom.engines.builder.Builder`."""

    def __init__(self, stack: Stack = PINNED) -> None:
        self._stack = stack

    def inputs(self, request: BuildRequest) -> EngineInputs:
        """The checkpoint and how it is split: limits are given at start, and any GPU will do."""
        plan = request.plan
        _check_precision(plan)
        return EngineInputs(
            checkpoint=request.record.digest,
            runtime="pytorch",
            versions={"trtllm": self._stack.trtllm},
            image=self._stack.image,
            precision=plan.precision,
            kv=plan.kv_dtype,
            tp=plan.tp,
            pp=plan.pp,
            ep=plan.ep,
            limits={},
            gpu=None,
        )

    def requires(self, request: BuildRequest) -> Requires:
        """The release whose LLM API our Python model calls, and its ranks."""
        plan = request.plan
        return Requires(
            driver_min=self._stack.driver,
            trtllm=self._stack.trtllm,
            world_size=plan.world_size,
            shm_bytes=plan.pod.shm_bytes,
        )

    def script(self, request: BuildRequest, *, output: Path) -> str:
        """A bash script that links or copies the files; runs anywhere. Raises InputError for other precisions."""
        _check_precision(request.plan)
        folder, files = request.checkpoint.resolve(), _serving_files(request)
        names = " ".join(shlex.quote(file.path) for file in files)
        return (
            "#!/usr/bin/env bash\n"
            "# Runtime pytorch: nothing is compiled. Runs on this machine.\n"
            "set -euo pipefail\n\n"
            f"from={shlex.quote(str(folder))}\n"
            f"to={shlex.quote(str(output.absolute()))}\n"
            'mkdir -p -- "$to"\n'
            f"for file in {names}; do\n"
            "  # A hard link costs no space; across file systems it has to be a copy.\n"
            '  ln -fL -- "$from/$file" "$to/$file" 2>/dev/null || cp -fL -- "$from/$file" "$to/$file"\n'
            "done\n"
        )

    def build(self, request: BuildRequest, *, output: Path, progress: Progress) -> dict[str, Any]:
        """Put the serving files into ``output`` as hard links, or copies where they cannot be linked.

        Never as symbolic links: the engine has to outlive the checkpoint's folder.
        Raises InputError, CheckpointError where files have changed since they were recorded, StoreError.
        """
        _check_precision(request.plan)
        files, linked = _serving_files(request), 0
        output.mkdir(parents=True, exist_ok=True)
        with progress.task("gather checkpoint", sum(file.size for file in files)) as task:
            for file in files:
                linked += _place(request.checkpoint, file, output, task)
        return {
            "experimental": True,
            "method": "checkpoint served as it is, no compilation",
            "files_linked": linked,
            "files_copied": len(files) - linked,
        }


def _check_precision(plan: Plan) -> None:
    # The LLM API quantises nothing while it loads.
    if plan.precision == plan.model.quantization:
        return
    if plan.precision not in ("bfloat16", "float16"):
        raise InputError(
            f"the pytorch runtime serves weights as they are stored, so {plan.precision} would need a checkpoint in it",
            where="precision",
            fix="use bfloat16 or float16, or runtime tensorrt",
        )


def _serving_files(request: BuildRequest) -> list[FileRecord]:
    """Of the recorded files those that serve: weights that the index names, configuration, tokenizer.

    Reading the headers also proves that they are sound and that no file of the index is missing.
    """
    weights = {tensor.file for tensor in read_weights(request.checkpoint).tensors.values()}
    return [
        file
        for file in request.record.files
        if file.path in weights or ("/" not in file.path and file.path.endswith(_SERVING_SUFFIXES))
    ]


def _place(folder: Path, file: FileRecord, output: Path, task: Task) -> bool:
    """Link or copy one file; True where it was linked."""
    source, target = (folder / file.path).resolve(), output / file.path
    try:
        size = source.stat().st_size
        if size != file.size:
            raise CheckpointError(
                f"it has {size} bytes, but {file.size} were recorded",
                where=str(source),
                fix="fetch the checkpoint again",
            )
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without hard links
            _copy(source, target, task)
            return False
    except OSError as error:
        raise StoreError(f"cannot place it ({error.strerror or error})", where=str(target)) from None
    task.advance(size)
    return True


def _copy(source: Path, target: Path, task: Task) -> None:
    with source.open("rb") as reader, target.open("xb") as writer:
        while block := reader.read(_BLOCK):
            writer.write(block)
            task.advance(len(block))
        writer.flush()
        os.fsync(writer.fileno())
    shutil.copymode(source, target)
