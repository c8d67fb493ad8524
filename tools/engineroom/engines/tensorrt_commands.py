"""The exact commands that make a TensorRT-LLM 1.2.1 engine, as pure functions of a plan.

Two steps: ``convert_checkpoint.py`` or ``quantize.py`` writes a TensorRT-LLM checkpoint, already split over ranks;
``trtllm-build`` compiles it. ``tensorrt_flags.yaml`` lists every flag with its source; tests hold the two together.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from engineroom import gpus
from engineroom.engines.tensorrt_families import check_family, script_for
from engineroom.errors import InputError
from engineroom.planning.kv_cache import CALIBRATED, FP8_WORKFLOW, activations_dtype
from engineroom.planning.memory import TOKENS_PER_BLOCK
from engineroom.planning.plan import Plan

#: Where the image keeps the example scripts (1.x; README texts with /app/tensorrt_llm/examples are out of date).
EXAMPLES = Path("/app/examples")

BUILD_TOOL = "trtllm-build"

#: The data set that ModelOpt calibrates with. From the network, or a local folder.
_QUANTIZE_DATASET = "cnn_dailymail"


@dataclass(frozen=True)
class Command:
    """One program run: ``argv[0]`` is what has to be there."""

    title: str
    """What it does, for people."""
    tool: str
    """Key of :func:`flag_table`."""
    argv: tuple[str, ...]


@cache
def flag_table() -> dict[str, dict[str, dict[str, Any]]]:
    """``tensorrt_flags.yaml``: tool → flag → its entry."""
    data = yaml.safe_load(Path(__file__).with_name("tensorrt_flags.yaml").read_text(encoding="utf-8"))
    return {tool: facts["flags"] for tool, facts in data["tools"].items()}


def check_buildable(plan: Plan) -> None:
    """Raise InputError where TensorRT-LLM has no engine for this family, or the GPU class no such precision."""
    gpu = gpus.find(plan.gpu)
    if gpu.is_cpu:
        raise InputError("a TensorRT engine needs a GPU", where="gpu", fix="choose a GPU class, or runtime ctranslate2")
    if plan.precision not in gpu.precisions:
        raise InputError(
            f"{gpu.name} (SM {gpu.sm}) has no {plan.precision} in TensorRT-LLM",
            where="precision",
            fix=f"use one of {', '.join(gpu.precisions)}",
        )
    check_family(
        plan.model,
        available=frozenset(gpu.precisions),
        precision=plan.precision,
        kv_dtype=plan.kv_dtype,
        quantized=uses_quantize(plan),
        tp=plan.tp,
        pp=plan.pp,
        ep=plan.ep,
    )


def uses_quantize(plan: Plan) -> bool:
    """Whether ``quantize.py`` makes the checkpoint: ModelOpt formats, and 16-bit weights with fp8 keys and values."""
    return plan.precision in CALIBRATED or plan.kv_dtype == "fp8"


def calibration(plan: Plan) -> dict[str, str | int] | None:
    """What is calibrated with, or None. AWQ takes 32 samples whatever it is given (quantize_by_modelopt.py)."""
    if uses_quantize(plan):
        size = 32 if plan.precision in ("int4_awq", "w4a8_awq") else 512
        return {"dataset": _QUANTIZE_DATASET, "size": size, "max_seq_length": 512, "batch_size": 1, "seed": 1234}
    script = script_for(plan.model)
    if plan.kv_dtype == "int8" and script.int8_kv is not None:
        sizes: dict[str, str | int] = {"size": 512, "max_seq_length": 512} if script.calibration_sizes else {}
        return {"dataset": script.int8_kv, **sizes}
    return None


def plugins(plan: Plan) -> dict[str, str]:
    """Values of the attention and GEMM flags of ``trtllm-build``.

    In-flight batching needs packed input and a paged KV cache; reuse of KV blocks and chunked context need paged
    context FMHA as well. Where ``trtllm-build`` would switch that off with a mere warning, it is off here, so that
    the engine key and the model repository know.
    """
    sm = int(gpus.find(plan.gpu).sm or 0)
    fp8_attention = plan.kv_dtype == "fp8" and plan.precision in FP8_WORKFLOW and sm >= 89
    paged_context = plan.kv_dtype in ("float16", "bfloat16") or fp8_attention
    return {
        "kv_cache_type": "paged",
        "tokens_per_block": str(TOKENS_PER_BLOCK),
        "gpt_attention_plugin": "auto",
        "gemm_plugin": "nvfp4" if plan.precision == "nvfp4" else "auto",
        "remove_input_padding": "enable",
        "context_fmha": "enable",
        "use_paged_context_fmha": "enable" if paged_context else "disable",
        "use_fp8_context_fmha": "enable" if fp8_attention else "disable",
    }


def limits(plan: Plan) -> dict[str, int]:
    """The limits that are compiled into the engine."""
    return {
        "max_batch_size": plan.limits.max_batch_size,
        "max_input_len": plan.limits.max_input_len,
        "max_seq_len": plan.limits.max_seq_len,
        "max_num_tokens": plan.limits.max_num_tokens,
        "max_beam_width": 1,
    }


def checkpoint_command(plan: Plan, *, model: Path, output: Path, examples: Path = EXAMPLES) -> Command:
    """The first step: Hugging Face checkpoint → TensorRT-LLM checkpoint with one file for each rank."""
    common = {
        "--model_dir": str(model),
        "--output_dir": str(output),
        "--dtype": activations_dtype(plan.precision, plan.model),
        "--tp_size": str(plan.tp),
        "--pp_size": str(plan.pp),
    }
    data = calibration(plan)
    if uses_quantize(plan):
        assert data is not None
        flags: dict[str, str | None] = {
            **common,
            "--qformat": plan.precision if plan.precision in CALIBRATED else "full_prec",
            "--calib_dataset": str(data["dataset"]),
            "--calib_size": str(data["size"]),
            "--calib_max_seq_length": str(data["max_seq_length"]),
            "--batch_size": str(data["batch_size"]),
            "--seed": str(data["seed"]),
        }
        if plan.kv_dtype in ("fp8", "int8"):
            flags["--kv_cache_dtype"] = plan.kv_dtype
        if plan.precision in ("int4_awq", "w4a8_awq"):
            flags["--awq_block_size"] = "128"
        script = examples / "quantization" / "quantize.py"
        return Command("quantise the checkpoint (needs the GPUs)", "quantize.py", _argv(script, flags))
    return _convert_command(plan, common, data, examples)


def _convert_command(plan: Plan, common: dict[str, str], data: dict[str, str | int] | None, examples: Path) -> Command:
    script = script_for(plan.model)
    flags: dict[str, str | None] = dict(common)
    if script.dialect == "gemma":
        del flags["--tp_size"], flags["--pp_size"]
        flags |= {"--ckpt-type": "hf", "--world-size": str(plan.tp)}
    if script.experts and plan.model.experts and plan.tp > 1:
        flags |= {"--moe_tp_size": str(plan.tp // plan.ep), "--moe_ep_size": str(plan.ep)}
    if plan.precision in ("int8", "int4"):
        flags |= {"--use_weight_only": None, "--weight_only_precision": plan.precision}
    if data is None:
        if script.loads_on_cpu:
            flags["--load_model_on_cpu"] = None  # leaves the GPU alone: this step then needs none
    else:
        flags |= {"--int8_kv_cache": None, "--calib_dataset": str(data["dataset"])}
        if script.calibration_sizes:
            flags |= {"--calib_size": str(data["size"]), "--calib_max_seq_length": str(data["max_seq_length"])}
    return Command("convert the checkpoint", script.tool, _argv(examples / script.path, flags))


def build_command(
    plan: Plan, *, checkpoint: Path, output: Path, timing_output: Path, timing_input: Path | None = None
) -> Command:
    """The second step: TensorRT-LLM checkpoint → ``rank*.engine``. tp and pp stand in the checkpoint.

    ``timing_output`` gets the times of the kernels that were tried, ``timing_input`` gives those of an earlier build.
    """
    flags: dict[str, str | None] = {
        "--checkpoint_dir": str(checkpoint),
        "--output_dir": str(output),
        **{f"--{name}": str(value) for name, value in limits(plan).items()},
        **{f"--{name}": value for name, value in plugins(plan).items()},
        # Ranks are built at once, one on each GPU; trtllm-build takes fewer where fewer GPUs are there.
        "--workers": str(min(plan.world_size, gpus.find(plan.gpu).gpus_per_node)),
        "--output_timing_cache": str(timing_output),
    }
    if timing_input is not None:
        flags["--input_timing_cache"] = str(timing_input)
    return Command("build the engine (needs a GPU of the class)", BUILD_TOOL, _flat((BUILD_TOOL,), flags))


def _argv(script: Path, flags: dict[str, str | None]) -> tuple[str, ...]:
    return _flat(("python3", str(script)), flags)


def _flat(start: tuple[str, ...], flags: dict[str, str | None]) -> tuple[str, ...]:
    pairs = [(flag,) if value is None else (flag, value) for flag, value in flags.items()]
    return start + tuple(word for pair in pairs for word in pair)
