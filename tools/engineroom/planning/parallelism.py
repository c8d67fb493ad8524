"""Over how many GPUs: which ways to split a model are legal, and the smallest that fits."""

from collections.abc import Iterable, Iterator
from typing import Literal

from engineroom.checkpoint.shape import ModelShape
from engineroom.errors import DoesNotFitError, RecipeError
from engineroom.gpus import GIB, GpuClass, Runtime
from engineroom.planning.memory import Load, plan_memory
from engineroom.planning.plan import Memory
from engineroom.recipe import Parallelism

#: Most pipeline stages that are tried (the recipe accepts no more either).
MOST_STAGES = 64

#: From how many experts on whole ones are shared out rather than split.
MANY_EXPERTS = 16

Split = tuple[int, int]
"""(tensor, pipeline)."""


def choose(load: Load, asked: Parallelism, gpu: GpuClass) -> tuple[Split, Memory, int]:
    """The split with the fewest GPUs that fits, its memory, and its KV capacity in tokens.

    Of splits over equally many GPUs one whose tensor parallelism stays on the fast link wins, then the one with more
    tensor parallelism: it needs smaller activations (TensorRT-LLM, memory.md) and answers sooner. More GPUs than a
    replica needs are more replicas, which lose nothing to all-reduces. ``asked`` numbers are kept as they are.
    Raises RecipeError for a split that is impossible, DoesNotFitError for one that is too small.
    """
    check_asked(load, asked, gpu)
    splits = list(legal_splits(load.shape, gpu, runtime=load.runtime))
    allowed = [split for split in splits if _allows(asked.tensor, split[0]) and _allows(asked.pipeline, split[1])]
    if asked.tensor == asked.pipeline == "auto":
        allowed = [split for split in allowed if fills_nodes(split, gpu)]
    if not allowed:
        raise _impossible(asked, gpu, splits)
    found = first_that_fits(load, allowed)
    if found is None:
        raise _does_not_fit(load, gpu, allowed[-1])
    return found


def fills_nodes(split: Split, gpu: GpuClass) -> bool:
    """Whether replicas of this size leave no GPU of a node without work: 3 of 8 would leave 2."""
    count = split[0] * split[1]
    return gpu.is_cpu or gpu.gpus_per_node % count == 0 or count % gpu.gpus_per_node == 0


def first_that_fits(load: Load, splits: Iterable[Split]) -> tuple[Split, Memory, int] | None:
    """The first of ``splits`` that fits, its memory and its KV capacity; None where none does."""
    for tp, pp in splits:
        memory, kv_tokens = plan_memory(load, tp=tp, pp=pp)
        if fits(load, memory, kv_tokens):
            return (tp, pp), memory, kv_tokens
    return None


def fits(load: Load, memory: Memory, kv_tokens: int) -> bool:
    """Everything lies within visible memory, and the KV cache holds at least one sequence of full length."""
    return memory.total <= memory.visible and kv_tokens >= load.limits.max_seq_len


def legal_splits(shape: ModelShape, gpu: GpuClass, *, runtime: Runtime = "tensorrt") -> Iterator[Split]:
    """All splits of ``shape`` over GPUs of this class, the fewest GPUs first.

    Tensor parallelism stays inside a node, whose links are the fast ones; pipeline stages may cross nodes,
    each node then holding whole stages.
    """
    if gpu.is_cpu:
        yield (1, 1)
        return
    tensors = [tp for tp in range(1, gpu.gpus_per_node + 1) if tensor_problem(shape, tp) is None]
    stages = [1] if gpu.mig_profile else stage_counts(shape, runtime)
    splits = [
        (tp, pp) for tp in tensors for pp in stages if tp * pp <= gpu.gpus_per_node or gpu.gpus_per_node % tp == 0
    ]
    fast = gpu.link_gpus or gpu.gpus_per_node
    yield from sorted(splits, key=lambda split: (split[0] * split[1], split[0] > fast, -split[0]))


def stage_counts(shape: ModelShape, runtime: Runtime) -> list[int]:
    """Into how many pipeline stages the layers can be cut.

    Evenly for the runtime ``tensorrt``; the PyTorch backend gives the first stages one layer more where they do not
    come out even (TensorRT-LLM, mapping.py: pp_layers).
    """
    most = min(MOST_STAGES, shape.layers)
    return [pp for pp in range(1, most + 1) if runtime == "pytorch" or shape.layers % pp == 0]


def tensor_problem(shape: ModelShape, tp: int) -> str | None:
    """Why the layers cannot be split over ``tp`` ranks; None where they can."""
    if shape.heads % tp:
        return f"{shape.heads} attention heads cannot be split over {tp} GPUs"
    if shape.latent is None and shape.kv_heads % tp and tp % shape.kv_heads:
        return f"{shape.kv_heads} KV heads cannot be split over, or repeated on, {tp} GPUs"
    dense = shape.experts is None or shape.experts.layers < shape.layers
    if dense and shape.intermediate_size % tp:
        return f"an MLP of {shape.intermediate_size} values cannot be split over {tp} GPUs"
    if shape.experts:
        if shape.experts.shared_intermediate_size % tp:
            return f"a shared expert of {shape.experts.shared_intermediate_size} values cannot be split over {tp} GPUs"
        if not expert_groups(shape, tp):
            return f"{shape.experts.count} experts of {shape.experts.intermediate_size} cannot be split over {tp} GPUs"
    return None


def expert_groups(shape: ModelShape, tp: int) -> list[int]:
    """The expert parallelism that ``tp`` ranks allow: it divides them and the experts, and the rest their width."""
    experts = shape.experts
    if experts is None:
        return [1]
    return [
        ep
        for ep in range(1, tp + 1)
        if tp % ep == 0 and experts.count % ep == 0 and experts.intermediate_size % (tp // ep) == 0
    ]


def choose_experts(shape: ModelShape, asked: Literal["auto"] | int, tp: int, *, share: bool = True) -> int:
    """Expert parallelism for ``tp`` ranks. ``auto``: whole experts on each rank where they are many and narrow.

    ``share``: whether the runtime can be told to.

    Models of 16 and more experts (Qwen-MoE, DeepSeek) have experts of 768 to 2,048 values; an eighth of that fills no
    tile of a GEMM. The 8 experts of Mixtral are as wide as a dense MLP and are split, as convert_checkpoint.py does.
    Raises RecipeError where the number that was asked for divides nothing that it should.
    """
    groups = expert_groups(shape, tp)
    if isinstance(asked, int):
        if asked not in groups:
            found = (
                f"{asked} groups of experts do not go with tensor parallelism {tp}"
                if shape.experts
                else f"{shape.architecture} has no experts to share out"
            )
            raise RecipeError(found, where="parallelism.expert", fix=f"use {_one_of(groups)}")
        return asked
    return groups[-1] if share and shape.experts and shape.experts.count >= MANY_EXPERTS else groups[0]


def check_asked(load: Load, asked: Parallelism, gpu: GpuClass) -> None:
    """Raise RecipeError where a number in ``parallelism`` divides nothing that it should."""
    if gpu.is_cpu:
        return
    shape = load.shape
    if isinstance(asked.tensor, int):
        problem = tensor_problem(shape, asked.tensor)
        if asked.tensor > gpu.gpus_per_node:
            problem = f"{asked.tensor} GPUs are more than the {gpu.gpus_per_node} of one {gpu.name} node"
            if gpu.mig_profile:
                problem = f"MIG instances such as {gpu.name} cannot reach each other"
        if problem:
            usable = sorted({tp for tp, _ in legal_splits(shape, gpu, runtime=load.runtime)})
            raise RecipeError(problem, where="parallelism.tensor", fix=f"use {_one_of(usable)}")
    if isinstance(asked.pipeline, int):
        stages = [1] if gpu.mig_profile else stage_counts(shape, load.runtime)
        if asked.pipeline not in stages:
            raise RecipeError(
                f"{shape.layers} layers cannot be split evenly over {asked.pipeline} stages",
                where="parallelism.pipeline",
                fix=f"use {_one_of(stages)}",
            )


def _allows(asked: Literal["auto"] | int, value: int) -> bool:
    return asked in ("auto", value)


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


def _does_not_fit(load: Load, gpu: GpuClass, split: Split) -> DoesNotFitError:
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
    split_words = "" if gpu.is_cpu else f", tensor {tp} × pipeline {pp}"
    return DoesNotFitError(found, where=f"{load.precision} on {gpu.name}{split_words}", fix=fix)


def _gib(size: int) -> str:
    tenths = size * 10 // GIB
    return f"{tenths // 10:,}.{tenths % 10}"


def _one_of(values: list[int]) -> str:
    words = [str(value) for value in values]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
