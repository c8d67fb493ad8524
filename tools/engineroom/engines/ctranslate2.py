"""The ``ctranslate2`` runtime's builder: a CPU engine, int8 or float32, for laptops, CI and demos."""

import importlib.metadata
import shlex
from pathlib import Path
from typing import Any

from engineroom.checkpoint.shape import read_shape
from engineroom.checkpoint.weights import read_weights
from engineroom.engines.builder import BuildRequest
from engineroom.engines.engine import EngineInputs, Requires
from engineroom.errors import InputError
from engineroom.progress import Progress

#: Raise it whenever the conversion's result changes: engines of the old converter are then built anew.
CONVERTER = "2"


class CTranslate2Builder:
    """Converts a checkpoint on this machine, in seconds, without a GPU."""

    def inputs(self, request: BuildRequest) -> EngineInputs:
        """What decides the engine. Limits are not among it: CTranslate2 takes them when it runs.

        Raises CheckpointError where CTranslate2 cannot run the model.
        """
        from engineroom.engines.ctranslate2_convert import check_convertible

        check_convertible(request.plan.model)
        return EngineInputs(
            checkpoint=request.record.digest,
            runtime="ctranslate2",
            versions={"ctranslate2": _installed(), "converter": CONVERTER},
            precision=request.recipe.precision,
            kv=request.plan.kv_dtype,
            tp=1,
            pp=1,
            limits={},
        )

    def requires(self, request: BuildRequest) -> Requires:
        """Any x86-64 or aarch64 processor will do."""
        return Requires(world_size=1, shm_bytes=request.plan.pod.shm_bytes)

    def script(self, request: BuildRequest, *, output: Path) -> str:
        """The stages as commands: the conversion needs nothing but engineroom itself, and lands in its cache."""
        flags = shlex.join(
            [
                *("--model", request.record.source, "--gpu", request.plan.gpu),
                *("--runtime", "ctranslate2", "--precision", request.recipe.precision),
            ]
        )
        lines = [f"engineroom {verb} {flags}" for verb in ("fetch", "plan", "build")]
        return "\n".join(["#!/usr/bin/env bash", "set -euo pipefail", *lines, ""])

    def build(self, request: BuildRequest, *, output: Path, progress: Progress) -> dict[str, Any]:
        """Convert into ``output``. Raises CheckpointError where the checkpoint's tensors are not as promised."""
        from engineroom.engines import ctranslate2_convert

        _installed()
        shape = read_shape(request.checkpoint)
        ctranslate2_convert.convert(
            request.checkpoint,
            shape,
            read_weights(request.checkpoint),
            output,
            quantization=request.recipe.precision,
            progress=progress,
        )
        return {"tool": "engineroom", "converter": CONVERTER}


def _installed() -> str:
    try:
        return importlib.metadata.version("ctranslate2")
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            "the package ctranslate2 is not installed",
            where="runtime: ctranslate2",
            fix="pip install 'engineroom[cpu]', or choose a GPU runtime",
        ) from None
