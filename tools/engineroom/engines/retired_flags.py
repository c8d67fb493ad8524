"""The spellings of old TensorRT-LLM guides, and today's answer to each.

Guides from before 0.12 are still the first that a search finds. Whoever types their flags is told the recipe key,
instead of "no such option". Sources: TensorRT-LLM's release notes and ``tensorrt_llm/commands/build.py`` at 65f1d153.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from engineroom.engines.tensorrt_commands import flag_table
from engineroom.errors import InputError

_NOTES = "docs/source/release-notes.md@001eaece"
_BUILD = "tensorrt_llm/commands/build.py@65f1d153"
_PLUGIN = "tensorrt_llm/plugin/plugin.py"
_CONVERT = "examples/models/core/llama/convert_checkpoint.py@368f8f2a"


@dataclass(frozen=True)
class Retired:
    """One spelling that is gone, or that belongs to another program."""

    found: str
    """What became of it."""
    key: str
    """The recipe key that decides it today; empty where nothing has to be said any more."""
    today: str
    """Today's flag of TensorRT-LLM, which engineroom writes itself."""
    source: str


@dataclass(frozen=True)
class Answer:
    """What to say to one argument."""

    argument: str
    found: str
    fix: str
    source: str


def _plugin(old: str, today: str) -> Retired:
    return Retired(f"{old} was its spelling before 0.8", "", today, _PLUGIN)


#: Spelling without its dashes, with underscores → what became of it.
RETIRED: dict[str, Retired] = {
    "build.py": Retired(
        "the scripts build.py went with 0.8; convert_checkpoint.py (or quantize.py) and trtllm-build do its work",
        "model.source",
        "convert_checkpoint.py --model_dir, then trtllm-build --checkpoint_dir",
        "docs/source/legacy/architecture/checkpoint.md@10c1d594",
    ),
    "model_dir": Retired(
        "it is a flag of convert_checkpoint.py and quantize.py since 0.8", "model.source", "--model_dir", _CONVERT
    ),
    "use_gpt_attention_plugin": _plugin("use_gpt_attention_plugin", "--gpt_attention_plugin auto"),
    "use_gemm_plugin": _plugin("use_gemm_plugin", "--gemm_plugin auto"),
    "use_gemms_plugin": Retired(
        "it was found in no release; guides mean use_gemm_plugin, of before 0.8",
        "",
        "--gemm_plugin auto",
        "commands in TensorRT-LLM issues 538 and 743",
    ),
    "use_paged_kv_cache": Retired(
        "a paged KV cache is the default, and needed for in-flight batching", "", "--kv_cache_type paged", _BUILD
    ),
    "paged_kv_cache": Retired(
        "it is a deprecated alias; a paged KV cache is the default", "", "--kv_cache_type paged", _BUILD
    ),
    "max_output_len": Retired(
        "it was removed in 0.12", "limits.max_output_len", "--max_seq_len (input and output together)", _NOTES
    ),
    "remove_input_padding": Retired(
        "it takes enable or disable since 0.8; packed input is the default, and needed for in-flight batching",
        "",
        "--remove_input_padding enable",
        _PLUGIN,
    ),
    "use_inflight_batching": Retired(
        "in-flight batching is chosen when the server starts, and always on here",
        "",
        "batching_strategy:inflight_fused_batching in config.pbtxt",
        "triton_backend/all_models/inflight_batcher_llm/tensorrt_llm/config.pbtxt",
    ),
    "enable_context_fmha": Retired("fused attention is the default", "", "--context_fmha enable", _PLUGIN),
    "enable_context_fmha_fp32_acc": Retired("it became a choice at run time in 0.12", "", "nothing", _NOTES),
    "context_fmha_fp32_acc": Retired("it became a choice at run time in 0.12", "", "nothing", _NOTES),
    "use_context_fmha_for_generation": Retired("it was removed in 0.11", "", "nothing", _NOTES),
    "attention_qk_half_accumulation": Retired("it was removed in 0.11", "", "nothing", _NOTES),
    "multi_block_mode": Retired("it became a choice at run time in 0.12", "", "nothing", _NOTES),
    "use_custom_all_reduce": Retired("it was removed in 0.12", "", "nothing", _NOTES),
    "enable_xqa": Retired("it was removed in 0.16; the kernels are chosen by themselves", "", "nothing", _NOTES),
    "builder_opt": Retired("it was removed in 0.14", "", "nothing", _NOTES),
    "use_embedding_sharing": Retired("it was removed in 0.16", "", "nothing", _NOTES),
    "world_size": Retired(
        "it follows from tensor × pipeline parallelism; the build lost it in 0.12",
        "parallelism",
        "--tp_size and --pp_size of convert_checkpoint.py or quantize.py",
        _NOTES,
    ),
    "tp_size": Retired(
        "trtllm-build lost it in 0.12; the checkpoint is split instead",
        "parallelism.tensor",
        "--tp_size of convert_checkpoint.py or quantize.py",
        _NOTES,
    ),
    "pp_size": Retired(
        "trtllm-build lost it in 0.12; the checkpoint is split instead",
        "parallelism.pipeline",
        "--pp_size of convert_checkpoint.py or quantize.py",
        _NOTES,
    ),
    "auto_parallel": Retired("it went after 0.20", "parallelism.tensor", "--tp_size of convert_checkpoint.py", _BUILD),
    "streamingllm": Retired(
        "it means attention sinks, not streamed answers, and 1.x refuses it; answers are always streamed",
        "",
        "nothing",
        f"{_BUILD}; TensorRT-LLM issue 6207",
    ),
    "strongly_typed": Retired("it is always on since 0.11", "", "nothing", _NOTES),
    "use_weight_only": Retired(
        "it is a flag of convert_checkpoint.py, not of the build",
        "precision: int8 or int4",
        "--use_weight_only",
        _CONVERT,
    ),
    "weight_only_precision": Retired(
        "trtllm-build lost it in 0.11; convert_checkpoint.py has it",
        "precision: int8 or int4",
        "--weight_only_precision",
        _NOTES,
    ),
    "enable_fp8": Retired(
        "fp8 is quantised and calibrated first", "precision: fp8", "quantize.py --qformat fp8", _CONVERT
    ),
    "fp8_kv_cache": Retired(
        "it moved to quantize.py", "kv_cache.dtype: fp8", "quantize.py --kv_cache_dtype fp8", _CONVERT
    ),
    "int8_kv_cache": Retired(
        "it is a flag of convert_checkpoint.py", "kv_cache.dtype: int8", "--int8_kv_cache", _CONVERT
    ),
    "use_smooth_quant": Retired(
        "engineroom does not build SmoothQuant engines",
        "precision: int8 or fp8",
        "convert_checkpoint.py --smoothquant",
        _CONVERT,
    ),
}


def explain(args: Sequence[str]) -> list[Answer]:
    """The answers to those of ``args`` that are spellings of TensorRT-LLM, old or of today; in their order."""
    answers = (_answer(arg, args[index + 1 : index + 2]) for index, arg in enumerate(args))
    return [answer for answer in answers if answer is not None]


def refuse(args: Sequence[str]) -> None:
    """Raise InputError for the first of ``args``, arguments that ``engineroom build`` does not have.

    Returns only where there are none.
    """
    if not args:
        return
    answers = explain(args)
    if answers:
        first = answers[0]
        raise InputError(first.found, where=first.argument, fix=first.fix)
    name = _shown(args[0].split("=", 1)[0])
    near = difflib.get_close_matches(_plain(name), [*RETIRED, *_todays()], n=1, cutoff=0.8)
    guess = _answer(f"--{near[0]}", ()) if near else None
    fix = (
        f"did you mean --{near[0]}? {guess.fix}"
        if guess
        else "see `engineroom build --help`; the rest is in the recipe"
    )
    raise InputError("unknown argument", where=name, fix=fix)


def _answer(argument: str, after: Sequence[str]) -> Answer | None:
    name, _, value = argument.partition("=")
    plain = _plain(name)
    if not name.startswith("-") and plain != "build.py":
        return None
    if not value and after and re.fullmatch(r"[\w.]{1,40}", after[0]):
        value = after[0]
    if plain in RETIRED:
        old = RETIRED[plain]
        return Answer(_shown(name), old.found, _fix(old.key, old.today, value), old.source)
    if plain in _todays():
        tool, key = _todays()[plain]
        found = f"it is a flag of {tool}, which engineroom writes itself"
        return Answer(_shown(name), found, _fix("" if key == "plan" else key, "", value), "tensorrt_flags.yaml")
    return None


def _fix(key: str, today: str, value: str) -> str:
    if key:
        shown = f"{key}: {value}" if re.fullmatch(r"limits\.\w+|parallelism\.\w+", key) and value.isdigit() else key
        return f"set `{shown}` in the recipe" + (f" (today: {today})" if today else "")
    if today in ("", "nothing"):
        return "leave it out: `engineroom build --dry-run` shows what is done"
    return f"leave it out: engineroom writes {today}"


def _shown(name: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in name[:80])


def _plain(name: str) -> str:
    base = name.rsplit("/", 1)[-1]
    return base.lstrip("-").replace("-", "_").lower() if base.startswith("-") else base.lower()


def _todays() -> dict[str, tuple[str, str]]:
    return {
        flag.removeprefix("--"): (tool, entry["recipe"])
        for tool, flags in flag_table().items()
        for flag, entry in flags.items()
    }
