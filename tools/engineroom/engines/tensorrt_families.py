"""Which families TensorRT-LLM 1.2.1 builds engines for, by which script, in which precisions and splits.

Sources, all of NVIDIA/TensorRT-LLM: docs/source/legacy/reference/support-matrix.md@17552a44 (families),
docs/source/legacy/reference/precision.md@1690890e (FP8, NVFP4, AWQ by family), the support matrices of
examples/models/core/qwen/README.md@000a01de and phi/README.md@2bf8c593, and each script's own arguments.
"""

from dataclasses import dataclass

from engineroom.checkpoint.shape import ModelShape
from engineroom.errors import InputError
from engineroom.gpus import Precision

_16_BIT: frozenset[Precision] = frozenset({"bfloat16", "float16"})
_WEIGHT_ONLY: frozenset[Precision] = frozenset({"int8", "int4"})


@dataclass(frozen=True)
class Script:
    """One ``convert_checkpoint.py`` and what a family gets with it and with ``quantize.py``."""

    tool: str
    """Its key in ``tensorrt_flags.yaml``."""
    folder: str
    """Below the examples of the image."""
    precisions: frozenset[Precision]
    tensor: bool = True
    pipeline: bool = True
    experts: bool = False
    """Whether it takes ``--moe_tp_size`` and ``--moe_ep_size``."""
    loads_on_cpu: bool = True
    """Whether it takes ``--load_model_on_cpu``."""
    int8_kv: str | None = "ccdv/cnn_dailymail"
    """The data set that calibrates int8 keys and values; None where the script cannot."""
    calibration_sizes: bool = False
    """Whether it takes ``--calib_size`` and ``--calib_max_seq_length``."""
    dialect: str = ""
    """``gemma``: the world size in one flag, and the kind of checkpoint in another."""

    @property
    def path(self) -> str:
        """Of the script, below the examples."""
        return f"{self.folder}/convert_checkpoint.py"


def _llama(*precisions: Precision, experts: bool = False) -> Script:
    return Script(
        "convert_checkpoint.py",
        "models/core/llama",
        _16_BIT | _WEIGHT_ONLY | frozenset(precisions),
        experts=experts,
        calibration_sizes=True,
    )


def _qwen(precisions: frozenset[Precision], *, pipeline: bool, experts: bool = False) -> Script:
    return Script("qwen/convert_checkpoint.py", "models/core/qwen", precisions, pipeline=pipeline, experts=experts)


#: Our family → its script.
SCRIPTS: dict[str, Script] = {
    "llama": _llama("fp8", "nvfp4", "int4_awq", "w4a8_awq"),
    "mistral": _llama("fp8", "int4_awq"),
    "mixtral": _llama("fp8", "nvfp4", experts=True),  # the docs run ../llama/convert_checkpoint.py
    "qwen2": _qwen(_16_BIT | _WEIGHT_ONLY | {"fp8", "int4_awq"}, pipeline=True),
    "qwen2_moe": _qwen(_16_BIT | _WEIGHT_ONLY, pipeline=True),
    "qwen3": _qwen(_16_BIT | {"fp8", "nvfp4"}, pipeline=False),
    "qwen3_moe": _qwen(_16_BIT | {"fp8", "nvfp4"}, pipeline=False, experts=True),
    "gemma2": Script(
        "gemma/convert_checkpoint.py",
        "models/core/gemma",
        _16_BIT | _WEIGHT_ONLY | {"fp8", "int4_awq"},
        pipeline=False,
        dialect="gemma",
    ),
    "phi3": Script(
        "phi/convert_checkpoint.py",
        "models/core/phi",
        _16_BIT | _WEIGHT_ONLY | {"fp8"},
        tensor=False,
        pipeline=False,
        loads_on_cpu=False,
        int8_kv=None,
    ),
    "gpt2": Script("gpt/convert_checkpoint.py", "models/core/gpt", _16_BIT | _WEIGHT_ONLY | {"fp8"}, int8_kv="lambada"),
}

#: Families that have a plan and no engine, and what TensorRT-LLM has for them instead.
_NO_ENGINE = "TensorRT-LLM 1.2.1 lists it for its PyTorch backend only"


def script_for(shape: ModelShape) -> Script:
    """The script that converts ``shape``. Raises InputError where there is none."""
    script = SCRIPTS.get(shape.family)
    if script is None:
        raise InputError(
            f"there is no conversion script for the family {shape.family}: {_NO_ENGINE}",
            where="runtime: tensorrt",
            fix=f"use runtime pytorch, or one of {', '.join(SCRIPTS)}",
        )
    if shape.rotary_share < 1:
        raise InputError(
            f"{shape.architecture} with partial rotary positions (Phi-4-mini) has no engine: {_NO_ENGINE}",
            where="runtime: tensorrt",
            fix="use runtime pytorch",
        )
    return script


def check_family(
    shape: ModelShape,
    *,
    available: frozenset[Precision],
    precision: Precision,
    kv_dtype: str,
    quantized: bool,
    tp: int,
    pp: int,
    ep: int,
) -> Script:
    """The script of ``shape``. Raises InputError where it, or ``quantize.py``, cannot make what was planned.

    ``available``: the precisions of the GPU class. ``quantized``: whether ``quantize.py`` makes the checkpoint.
    """
    script = script_for(shape)
    if precision not in script.precisions:
        raise InputError(
            f"TensorRT-LLM lists no {precision} engine for the family {shape.family}",
            where="precision",
            fix=f"use one of {', '.join(sorted(script.precisions & available))}",
        )
    if kv_dtype == "fp8" and "fp8" not in script.precisions:
        raise InputError(
            f"ModelOpt calibrates no fp8 keys and values for the family {shape.family}",
            where="kv_cache.dtype",
            fix="use auto",
        )
    if kv_dtype == "int8" and not quantized and script.int8_kv is None:
        raise InputError(f"{script.path} has no int8 keys and values", where="kv_cache.dtype", fix="use auto or fp8")
    if tp > 1 and not script.tensor:
        raise InputError(
            f"the family {shape.family} has no tensor parallelism in TensorRT-LLM's engines",
            where="parallelism.tensor",
            fix="use 1 and a larger GPU, or runtime pytorch",
        )
    if pp > 1 and not script.pipeline:
        raise InputError(
            f"the family {shape.family} has no pipeline parallelism in TensorRT-LLM's engines",
            where="parallelism.pipeline",
            fix="use 1 and more tensor parallelism, or runtime pytorch",
        )
    if ep > 1 and (quantized or not script.experts):
        what = "quantize.py takes" if quantized else f"the family {shape.family} has"
        raise InputError(
            f"{what} no expert parallelism in TensorRT-LLM's engines",
            where="parallelism.expert",
            fix="use 1, or runtime pytorch",
        )
    return script
