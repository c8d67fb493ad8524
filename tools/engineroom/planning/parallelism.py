"""Over how many GPUs: which ways to split a model are legal, and the smallest that fits."""

from collections.abc import Iterator
from typing import Literal

from engineroom.checkpoint.shape import ModelShape
from engineroom.errors import DoesNotFitError, RecipeError
from engineroom.gpus import GIB, GpuClass
from engineroom.planning.memory import Load, plan_memory
from engineroom.planning.plan import Memory
from engineroom.recipe import Parallelism

#: Most pipeline stages that are tried (the recipe accepts no more either).
MOST_STAGES = 64

Split = tuple[int, int]
"""(tensor, pipeline)."""


def choose(load: Load, asked: Parallelism, gpu: GpuClass) -> tuple[Split, Memory, int]:
    """The split with the fewest GPUs that fits, its memory, and its KV capacity in tokens.

    Of splits over equally many GPUs the one with more tensor parallelism wins: it needs smaller activations
    (TensorRT-LLM, memory.md) and answers sooner. ``asked`` numbers are kept as they are.
    Raises RecipeError for a split that is impossible, DoesNotFitError for one that is too small.
    """
    check_asked(load.shape, asked, gpu)
    splits = list(legal_splits(load.shape, gpu))
    allowed = [split for split in splits if _allows(asked.tensor, split[0]) and _allows(asked.pipeline, split[1])]
    if not allowed:
        raise _impossible(asked, gpu, splits)
    found = _first_that_fits(load, allowed)
    if found is not None:
        return found
    elsewhere = _first_that_fits(load, splits)
    raise _does_not_fit(load, gpu, allowed[-1], elsewhere[0] if elsewhere else None)


def fits(load: Load, memory: Memory, kv_tokens: int) -> bool:
    """Everything lies within visible memory, and the KV cache holds at least one sequence of full length."""
    return memory.total <= memory.visible and kv_tokens >= load.limits.max_seq_len


def legal_splits(shape: ModelShape, gpu: GpuClass) -> Iterator[Split]:
    """All splits of ``shape`` over GPUs of this class, the fewest GPUs first.

    Tensor parallelism stays inside a node, whose links are the fast ones; pipeline stages may cross nodes,
    each node then holding whole stages.
    """
    if gpu.is_cpu:
        yield (1, 1)
        return
    tensors = [tp for tp in range(1, gpu.gpus_per_node + 1) if tensor_problem(shape, tp) is None]
    stages = [pp for pp in range(1, min(MOST_STAGES, shape.layers) + 1) if shape.layers % pp == 0]
    splits = [
        (tp, pp) for tp in tensors for pp in stages if tp * pp <= gpu.gpus_per_node or gpu.gpus_per_node % tp == 0
    ]
    yield from sorted(splits, key=lambda split: (split[0] * split[1], -split[0]))


def tensor_problem(shape: ModelShape, tp: int) -> str | None:
    """Why the layers cannot be split over ``tp`` ranks; None where they can."""
    if shape.heads % tp:
        return f"{shape.heads} attention heads cannot be split over {tp} GPUs"
    if shape.kv_heads % tp and tp % shape.kv_heads:
        return f"{shape.kv_heads} KV heads cannot be split over, or repeated on, {tp} GPUs"
    if shape.intermediate_size % tp:
        return f"an MLP of {shape.intermediate_size} values cannot be split over {tp} GPUs"
    return None


def check_asked(shape: ModelShape, asked: Parallelism, gpu: GpuClass) -> None:
    """Raise RecipeError where a number in ``parallelism`` divides nothing that it should."""
    if gpu.is_cpu:
        return
    if isinstance(asked.tensor, int):
        problem = tensor_problem(shape, asked.tensor)
        if asked.tensor > gpu.gpus_per_node:
            problem = f"{asked.tensor} GPUs are more than the {gpu.gpus_per_node} of one {gpu.name} node"
        if problem:
            usable = sorted({tp for tp, _ in legal_splits(shape, gpu)})
            raise RecipeError(problem, where="parallelism.tensor", fix=f"use {_one_of(usable)}")
    if isinstance(asked.pipeline, int) and shape.layers % asked.pipeline:
        stages = [pp for pp in range(1, MOST_STAGES + 1) if shape.layers % pp == 0]
        raise RecipeError(
            f"{shape.layers} layers cannot be split evenly over {asked.pipeline} stages",
            where="parallelism.pipeline",
            fix=f"use {_one_of(stages)}",
        )


def _allows(asked: Literal["auto"] | int, value: int) -> bool:
    return asked in ("auto", value)


def _first_that_fits(load: Load, splits: list[Split]) -> tuple[Split, Memory, int] | None:
    for tp, pp in splits:
        memory, kv_tokens = plan_memory(load, tp=tp, pp=pp)
        if fits(load, memory, kv_tokens):
            return (tp, pp), memory, kv_tokens
    return None


def _impossible(asked: Parallelism, gpu: GpuClass, splits: list[Split]) -> RecipeError:
    # Each number alone is legal, so they cross nodes unevenly: name the nearest split in number of GPUs.
    tensor = asked.tensor if isinstance(asked.tensor, int) else 1
    pipeline = asked.pipeline if isinstance(asked.pipeline, int) else 1
    near = min(splits, key=lambda split: (abs(split[0] * split[1] - tensor * pipeline), -split[0]))
    return RecipeError(
        f"stages of {tensor} GPUs do not fill nodes of {gpu.gpus_per_node} evenly",
        where="parallelism",
        fix=f"use tensor: {near[0]} and pipeline: {near[1]}",
    )


def _does_not_fit(load: Load, gpu: GpuClass, split: Split, elsewhere: Split | None) -> DoesNotFitError:
    tp, pp = split
    memory, kv_tokens = plan_memory(load, tp=tp, pp=pp)
    fixed = memory.total - memory.kv
    unit = "the host" if gpu.is_cpu else f"each {gpu.name}"
    if fixed >= memory.visible:
        found = (
            f"weights and buffers need {_gib(fixed)} GiB of {unit}, which has {_gib(memory.visible)}"
            f" ({_gib(memory.weights)} GiB are weights)"
        )
        fix = "choose a smaller `precision`, smaller `limits` or more memory"
    else:
        found = (
            f"the KV cache would hold {kv_tokens} tokens, fewer than one sequence of {load.limits.max_seq_len}"
            f" (limits.max_input_len + limits.max_output_len)"
        )
        fix = "lower these limits, or choose a smaller `precision` or more memory"
    if elsewhere is not None:
        fix = f"it fits with parallelism.tensor: {elsewhere[0]} and parallelism.pipeline: {elsewhere[1]}"
    split_words = "" if gpu.is_cpu else f", tensor {tp} × pipeline {pp}"
    return DoesNotFitError(found, where=f"{load.precision} on {gpu.name}{split_words}", fix=fix)


def _gib(size: int) -> str:
    tenths = size * 10 // GIB
    return f"{tenths // 10:,}.{tenths % 10}"


def _one_of(values: list[int]) -> str:
    words = [str(value) for value in values]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
