"""Which types the activations and the KV cache have: the rules of the runtimes, stated once.

Sources: TensorRT-LLM, tensorrt_llm/commands/build.py (which combinations trtllm-build refuses or silently
changes), examples/quantization/quantize.py and examples/models/core/llama/convert_checkpoint.py.
"""

from engineroom.checkpoint.shape import ModelShape
from engineroom.errors import CheckpointError, RecipeError
from engineroom.gpus import GpuClass, Precision
from engineroom.recipe import Recipe

_KEY = "kv_cache.dtype"

#: Weights for which trtllm-build keeps FP8 context attention (build.py: FP8, W4A8_AWQ, NVFP4).
FP8_WORKFLOW: frozenset[Precision] = frozenset({"fp8", "w4a8_awq", "nvfp4"})

#: Precisions that ModelOpt calibrates; the others are converted without data.
CALIBRATED: frozenset[Precision] = frozenset({"fp8", "nvfp4", "int4_awq", "w4a8_awq"})


def activations_dtype(precision: Precision, shape: ModelShape) -> str:
    """The 16-bit type in which a GPU runtime computes what is not quantised.

    A float32 checkpoint becomes float16, as ``--dtype auto`` of convert_checkpoint.py does. Raises CheckpointError.
    """
    if precision in ("bfloat16", "float16"):
        return precision
    if shape.dtype in ("bfloat16", "float16"):
        return shape.dtype
    if shape.dtype == "float32":
        return "float16"
    raise CheckpointError(
        f"weights of type {shape.dtype[:40]} cannot be built",
        where="config.json: torch_dtype",
        fix="use a checkpoint in bfloat16, float16 or float32",
    )


def kv_dtype(recipe: Recipe, shape: ModelShape, gpu: GpuClass) -> str:
    """Type of keys and values. ``auto``: fp8 with fp8 weights on SM 89 and newer, else the activations' type.

    Raises RecipeError for a type that the runtime cannot combine with the weights.
    """
    asked, precision = recipe.kv_cache.dtype, recipe.precision
    if recipe.runtime == "ctranslate2":
        if asked != "auto":
            raise RecipeError(f"ctranslate2 keeps keys and values in float32, not {asked}", where=_KEY, fix="use auto")
        return "float32"
    native, sm = activations_dtype(precision, shape), int(gpu.sm or 0)
    if asked == "auto":
        return "fp8" if precision == "fp8" and sm >= 89 else native
    if asked in ("float16", "bfloat16"):
        if asked != native:
            raise RecipeError(
                f"{asked} differs from the activations' {native}", where=_KEY, fix=f"use auto or {native}"
            )
        return asked
    if asked == "int8":
        _check_int8(recipe, sm, native)
    elif recipe.runtime == "tensorrt" and precision in ("int8", "int4"):
        raise RecipeError(
            f"{precision} weight-only checkpoints get no calibrated fp8 scales for keys and values",
            where=_KEY,
            fix=f"use auto, int8 or {native}",
        )
    return asked


def _check_int8(recipe: Recipe, sm: int, native: str) -> None:
    if recipe.runtime == "pytorch":
        raise RecipeError(
            "the pytorch runtime has no int8 keys and values", where=_KEY, fix=f"use auto, fp8 or {native}"
        )
    if sm >= 100:  # build.py: "INT8/INT4 quantization is not supported on SM>=100."
        raise RecipeError(f"trtllm-build refuses int8 keys and values on SM {sm}", where=_KEY, fix="use auto or fp8")
    if recipe.precision in FP8_WORKFLOW:
        raise RecipeError(
            f"int8 keys and values do not go with {recipe.precision} weights", where=_KEY, fix="use auto or fp8"
        )
