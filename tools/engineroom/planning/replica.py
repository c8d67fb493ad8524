"""Plan one replica: from a recipe and a checkpoint to ``plan.json``."""

import math
import os
from pathlib import Path

from engineroom.checkpoint.record import CheckpointRecord
from engineroom.checkpoint.shape import ModelShape, read_shape
from engineroom.checkpoint.weights import read_weights
from engineroom.errors import DoesNotFitError, RecipeError
from engineroom.gpus import GIB, GpuClass
from engineroom.planning.kv_cache import CALIBRATED, kv_dtype
from engineroom.planning.memory import MIB, Load, build_memory, kv_bytes_per_token_and_rank
from engineroom.planning.nearest import where_it_fits
from engineroom.planning.parallelism import choose, choose_experts
from engineroom.planning.parameters import active_parameters, count_parameters
from engineroom.planning.plan import Memory, Plan, PlannedLimits, Pod
from engineroom.recipe import Limits, Recipe

#: What a cold network disk gives (the baseline of an AWS gp3 volume), bytes/s: loading is planned pessimistically.
SLOW_DISK = 125_000_000

#: Start of the container, MPI, CUDA and the models, without reading weights, seconds; assumed.
START_SECONDS = 60
START_SECONDS_CPU = 20

#: Compute capabilities with FP8 block scaling (TensorRT-LLM, features/quantization.md, "Hardware Support Matrix").
FP8_BLOCK_SMS = ("90", "100", "103")

#: Instances of Triton Python models in one server (preprocessing, postprocessing, BLS) that shared memory is
#: planned for; each takes 64 MiB (tensorrtllm_backend issues 562 and others: the 64 MB default is too small).
PYTHON_INSTANCES = 8


def make_plan(recipe: Recipe, record: CheckpointRecord, folder: Path) -> Plan:
    """Plan the checkpoint in ``folder``, which ``record`` describes.

    Where the record has no safetensors files (a bare ``config.json``, enough for ``build --dry-run``), the number
    of parameters is computed from the shape: :func:`parameters_source` says which it was.
    Raises CheckpointError, RecipeError, DoesNotFitError.
    """
    shape = read_shape(folder)
    if not has_weights(record):
        return plan_replica(recipe, shape, parameters=count_parameters(shape))
    weights = read_weights(folder)
    return plan_replica(recipe, shape, parameters=weights.parameters_of(shape.layers), checkpoint_bytes=weights.size)


def has_weights(record: CheckpointRecord) -> bool:
    """Whether the checkpoint has weights, or only describes a model."""
    return any(file.path.endswith(".safetensors") for file in record.files)


def parameters_source(record: CheckpointRecord) -> str:
    """Where a plan's number of parameters comes from, for people."""
    return "safetensors headers" if has_weights(record) else "config.json (computed: there are no weights here)"


def plan_replica(recipe: Recipe, shape: ModelShape, *, parameters: int, checkpoint_bytes: int | None = None) -> Plan:
    """Plan a model of ``shape`` with ``parameters`` weights, which occupy ``checkpoint_bytes`` as stored.

    Reads no file. Raises RecipeError, CheckpointError, DoesNotFitError.
    """
    gpu = recipe.gpu_class
    _check_stored(recipe, shape, gpu)
    limits = plan_limits(recipe.limits, shape)
    if recipe.runtime == "ctranslate2":
        _check_cpu_length(limits, shape)
    kv = kv_dtype(recipe, shape, gpu)
    load = Load(
        shape=shape,
        parameters=parameters,
        runtime=recipe.runtime,
        precision=recipe.precision,
        kv_dtype=kv,
        limits=limits,
        fraction=recipe.kv_cache.free_gpu_memory_fraction,
        visible=gpu.visible_bytes,
    )
    try:
        (tp, pp), memory, kv_tokens = choose(load, recipe.parallelism, gpu)
    except DoesNotFitError as error:
        found = where_it_fits(recipe, load)
        fix = f"it fits {', '.join(found[:-1])}{' or ' if found[1:] else ''}{found[-1]}" if found else error.fix
        raise DoesNotFitError(error.found, where=error.where, fix=fix) from None
    calibrated = recipe.precision in CALIBRATED or kv == "fp8"
    # Of TensorRT-LLM's scripts some share experts out, none by default, and quantize.py not at all.
    ep = choose_experts(shape, recipe.parallelism.expert, tp, share=recipe.runtime == "pytorch")
    artifact = memory.weights * tp * pp
    if recipe.runtime == "pytorch":
        artifact = checkpoint_bytes if checkpoint_bytes is not None else 2 * parameters
    return Plan(
        model=shape,
        parameters=parameters,
        active_parameters=active_parameters(shape, parameters),
        gpu=gpu.name,
        runtime=recipe.runtime,
        precision=recipe.precision,
        kv_dtype=kv,
        kv_bytes_per_token=kv_bytes_per_token_and_rank(shape, kv, tp=tp, pp=pp) * tp * pp,
        tp=tp,
        pp=pp,
        ep=ep,
        memory=memory,
        kv_tokens=kv_tokens,
        limits=limits,
        pod=plan_pod(recipe, gpu, memory, world_size=tp * pp, artifact=artifact),
        build=build_memory(
            load,
            memory.weights,
            calibrated=calibrated,
            world_size=tp * pp,
            workers=min(tp * pp, max(1, gpu.gpus_per_node)),
        ),
        notes=plan_notes(load, gpu, tp=tp, pp=pp),
    )


def plan_notes(load: Load, gpu: GpuClass, *, tp: int, pp: int) -> list[str]:
    """What a reader should know of a plan, beyond its numbers."""
    shape, longest = load.shape, load.limits.max_seq_len
    notes = []
    if shape.sliding_window and shape.sliding_window.tokens < longest:
        window, share = shape.sliding_window, 100 * shape.kv_layer_tokens(longest) // (shape.layers * longest)
        notes.append(
            f"{len(window.layers)} of {shape.layers} layers see {window.tokens:,} tokens only: keys and values of one"
            f" full sequence could be {share} % of what is planned, but no runtime is told so here"
        )
    if tp > 1 and gpu.link_gpus and tp > gpu.link_gpus:
        notes.append(
            f"tensor parallelism {tp} goes over PCIe ({gpu.pcie_gbs:g} GB/s): {gpu.link} joins {gpu.link_gpus} GPUs"
        )
    if tp * pp > 1 and gpu.sm == "120":
        notes.append("several GPUs of SM 120 are a known issue of TensorRT-LLM (release notes, 0.20)")
    if gpu.host == "arm64":
        notes.append(f"{gpu.name} needs images for arm64")
    return notes


def _check_stored(recipe: Recipe, shape: ModelShape, gpu: GpuClass) -> None:
    """A checkpoint that is quantised already serves as it is, and only where the weights are not converted."""
    if shape.quantization is None:
        return
    if recipe.runtime != "pytorch":
        raise RecipeError(
            f"the weights are stored in {shape.quantization} blocks, which the runtime {recipe.runtime} cannot convert",
            where="runtime",
            fix="use runtime pytorch, or a 16-bit checkpoint",
        )
    if recipe.precision != shape.quantization:
        raise RecipeError(
            f"the weights are stored in {shape.quantization}, not {recipe.precision}",
            where="precision",
            fix=f"use {shape.quantization}, or a 16-bit checkpoint",
        )
    if gpu.sm not in FP8_BLOCK_SMS:
        raise RecipeError(
            f"{gpu.name} (SM {gpu.sm}) has no kernels for weights in {shape.quantization} blocks",
            where="gpu",
            fix="use a class of SM 90 or 100, such as h100 or b200, or a 16-bit checkpoint",
        )


def _check_cpu_length(limits: PlannedLimits, shape: ModelShape) -> None:
    """CTranslate2 computes what the model does only within a sliding window, or before long rotary factors begin."""
    exact, why = shape.max_positions, ""
    if shape.sliding_window:
        exact, why = shape.sliding_window.tokens, "the sliding window"
    if shape.rope_scaling and shape.rope_scaling.kind == "longrope":
        original = shape.rope_scaling.original_max_position_embeddings
        if original < exact:
            exact, why = original, "the length that rotary factors are for"
    if limits.max_seq_len > exact:
        room = exact - limits.max_output_len
        key = "max_input_len" if room >= 1 else "max_output_len"
        lower = room if room >= 1 else exact // 2
        raise RecipeError(
            f"max_input_len {limits.max_input_len} + max_output_len {limits.max_output_len} is more than {why} of"
            f" {exact} tokens, beyond which CTranslate2 computes something else than the model",
            where=f"limits.{key}",
            fix=f"lower limits.{key} to {lower} or less, or use a GPU class",
        )


def plan_limits(limits: Limits, shape: ModelShape) -> PlannedLimits:
    """The limits that an engine is built for. Raises RecipeError where they contradict the model or each other.

    ``max_num_tokens`` is clamped to max_seq_len × max_batch_size, as TensorRT-LLM does (check_max_num_tokens).
    """
    if limits.max_seq_len > shape.max_positions:
        room = shape.max_positions - limits.max_output_len
        fix = (
            f"lower limits.max_input_len to {room} or less"
            if room >= 1
            else f"lower limits.max_output_len first: it alone is {limits.max_output_len}"
        )
        raise RecipeError(
            f"max_input_len {limits.max_input_len} + max_output_len {limits.max_output_len} is more than the"
            f" {shape.max_positions} positions of the model",
            where="limits.max_input_len",
            fix=fix,
        )
    if limits.max_num_tokens < limits.max_input_len:
        # Without chunked context a prompt has to fit into one step (TensorRT-LLM issues 2702, 6539, 9277).
        raise RecipeError(
            f"a prompt of max_input_len {limits.max_input_len} tokens does not fit into one engine step of"
            f" {limits.max_num_tokens}",
            where="limits.max_num_tokens",
            fix=f"raise it to {limits.max_input_len} or more, or lower limits.max_input_len",
        )
    max_num_tokens = min(limits.max_num_tokens, limits.max_seq_len * limits.max_batch_size)
    if max_num_tokens < limits.max_batch_size:
        raise RecipeError(
            f"{max_num_tokens} tokens in one engine step cannot serve {limits.max_batch_size} requests, which take"
            " one each",
            where="limits.max_num_tokens",
            fix=f"raise it to {limits.max_batch_size} or more, or lower limits.max_batch_size",
        )
    return PlannedLimits(
        max_batch_size=limits.max_batch_size,
        max_input_len=limits.max_input_len,
        max_output_len=limits.max_output_len,
        max_seq_len=limits.max_seq_len,
        max_num_tokens=max_num_tokens,
    )


def plan_pod(recipe: Recipe, gpu: GpuClass, memory: Memory, *, world_size: int, artifact: int) -> Pod:
    """What one pod asks for; a replica over several nodes has one pod on each.

    8 cores for the first GPU (tokenising and Triton run beside it), 4 for each further one. Host memory: the
    weights pass through it while they load, plus 4 GiB a GPU and 8 GiB for Triton. Shared memory: 1 GiB and
    64 MiB for each Python instance, and 256 MiB for each further rank (NCCL, MPI). Disk: the artifact and a tenth.
    """
    disk = math.ceil(artifact * 11 / 10) + 64 * MIB
    read = math.ceil(artifact / SLOW_DISK)
    if gpu.is_cpu:
        return Pod(
            cpu=recipe.serve.threads or len(os.sched_getaffinity(0)),
            # Pages of /dev/shm count against the container that writes them.
            memory_bytes=memory.total + 256 * MIB,
            shm_bytes=256 * MIB,
            ephemeral_bytes=disk,
            load_seconds=START_SECONDS_CPU + read,
            drain_seconds=None,
        )
    gpus_here = min(world_size, gpu.gpus_per_node)
    instances = PYTHON_INSTANCES if recipe.runtime == "tensorrt" else 1
    shm = GIB + instances * 64 * MIB + (world_size - 1) * 256 * MIB
    return Pod(
        cpu=8 + 4 * (gpus_here - 1),
        memory_bytes=8 * GIB + gpus_here * (4 * GIB + memory.weights) + shm,
        shm_bytes=shm,
        ephemeral_bytes=disk,
        load_seconds=START_SECONDS + read,
        drain_seconds=None,
    )
