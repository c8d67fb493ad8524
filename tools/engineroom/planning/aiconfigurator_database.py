"""NVIDIA's measured kernel times, asked one operator at a time: the border to the package ``aiconfigurator-core``.

The package has a compiled reader of its database. It is asked directly, with operators spelled in its wire format:
that takes some 20 microseconds, needs neither its Python layer (pandas, scipy, 490 YAML files a call) nor a network,
and lets this project decide which operators a model has. An operator that was measured is interpolated between its
neighbours; one that was not is scaled by the package from the nearest measured kernels ("HYBRID").
"""

import importlib.metadata
import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from engineroom.gpus import Precision
from engineroom.planning.operators import AllReduce, Attention, Elementwise, Experts, Gemm, TokenOperator

DISTRIBUTION = "aiconfigurator-core"

#: The release whose wire format is spoken here. Another one may read the same words differently.
RELEASE = "0.12.0"

#: How the package spells types of weights: of linear layers, and of experts. Types that it has no name for are computed
#: from another one; see :func:`~engineroom.planning.aiconfigurator_times.stand_in`.
GEMM_TYPES: dict[Precision, str] = {
    "bfloat16": "bfloat16",
    "float16": "bfloat16",
    "fp8": "fp8",
    "nvfp4": "nvfp4",
    "int8": "int8_wo",
    "int4": "int4_wo",
    "int4_awq": "int4_wo",
}
EXPERT_TYPES: dict[Precision, str] = {
    "bfloat16": "bfloat16",
    "float16": "bfloat16",
    "fp8": "fp8",
    "nvfp4": "nvfp4",
    "int4": "int4_wo",
    "int4_awq": "int4_wo",
}

#: How unevenly tokens choose experts: the package's own default for mixture models.
EXPERT_LOAD = "power_law_1.2"


class NoDataError(Exception):
    """The database cannot answer, and says why; never leaves this folder."""


@cache
def installed_problem() -> str | None:
    """Why the database cannot be used here; None where it can."""
    try:
        found = importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return f"{DISTRIBUTION} is not installed; pip install 'engineroom[plan]'"
    if found != RELEASE:
        return f"{DISTRIBUTION} {found} is installed, and {RELEASE} is needed; pip install 'engineroom[plan]'"
    return None


class Database:
    """The measured times of one system, in the package's own version of TensorRT-LLM."""

    def __init__(self, system: str) -> None:
        """Read nothing yet: opening takes 0.2 s, and each kind of operator as much again at its first question."""
        self.system = system
        self._reader: Any = None

    def token_ms(self, operator: TokenOperator, tokens: int) -> float:
        """One of an operator's ``count`` on ``tokens`` tokens. Raises NoDataError."""
        return self._ask(_token_wire(operator), batch=1, length=1, tokens=tokens)

    def prefill_ms(self, attention: Attention, prompts: int, length: int) -> float:
        """One layer's attention over prompts. Raises NoDataError."""
        fields = {"fmha_quant_mode": "fp8" if attention.arithmetic == "fp8" else "bfloat16", "cp_size": 1}
        if attention.latent:
            wire = {"ContextMla": _latent_wire(attention) | fields}
        else:
            wire = {"ContextAttention": _attention_wire(attention) | fields | {"use_qk_norm": False}}
        return self._ask(wire, batch=prompts, length=length, context=True)

    def decode_ms(self, attention: Attention, sequences: int, context: int) -> float:
        """One layer's attention of running answers. Raises NoDataError."""
        if attention.latent:
            return self._ask({"GenerationMla": _latent_wire(attention)}, batch=sequences, length=context)
        return self._ask({"GenerationAttention": _attention_wire(attention)}, batch=sequences, length=context)

    def all_reduce_ms(self, operator: AllReduce, tokens: int) -> float:
        """One sum over the ranks of a node. Raises NoDataError."""
        fields = {
            "name": "all_reduce",
            "scale_factor": 1.0,
            "hidden_size": operator.hidden,
            "tp_size": operator.ranks,
            "quant": "half",
            "seq_split": 1,
        }
        return self._ask({"CustomAllReduce": fields}, batch=1, length=1, tokens=tokens)

    def _ask(
        self, wire: dict[str, Any], *, batch: int, length: int, tokens: int | None = None, context: bool = False
    ) -> float:
        try:
            if self._reader is None:
                self._reader = _open(self.system)
            # (name, milliseconds, energy, source) for each operator of the list.
            answer = self._reader.evaluate_ops_json(json.dumps([wire]), context, batch, length, 0, 1.0, tokens)
        except Exception as error:  # the package's own tree of errors has no root of its own
            raise NoDataError(f"{self.system}: {str(error)[:200]}") from None
        milliseconds = float(answer[0][1])
        if not 0 <= milliseconds < 1e9:
            raise NoDataError(f"{self.system}: {milliseconds} ms for {next(iter(wire))}")
        return milliseconds


def systems_folder() -> Path:
    """Where the package keeps its systems and their tables."""
    import aiconfigurator_core

    return Path(str(aiconfigurator_core.__file__)).parent / "systems"


@cache
def _versions() -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = (systems_folder() / "query_versions.yaml").read_text(encoding="utf-8")
    return yaml.load(text, Loader=loader)  # type: ignore[no-any-return]  # noqa: S506  (a safe loader)


def measured_release(system: str) -> str:
    """The release of TensorRT-LLM whose kernels were measured on ``system``."""
    slots = _versions()
    found = slots.get("overrides", {}).get(system, {}).get("trtllm") or slots["defaults"]["trtllm"]
    return str(found["current"])


def _open(system: str) -> Any:
    import aiconfigurator_core

    engine = {
        "schema_version": 1,
        "model_name": "operators",
        "system_name": system,
        "systems_path": None,
        "backend": "trtllm",
        "backend_version": measured_release(system),
        "kv_block_size": None,
        "tp_size": 1,
        "pp_size": 1,
        # Rows of other programs (vLLM, SGLang) are not read: half of the time to open would go there.
        "enable_shared_layer": False,
        "strict_provenance": False,
        "database_mode": "HYBRID",
        "transfer_policy": None,
        "tolerate_dirless_version": False,
        "extra": {},
    } | dict.fromkeys(
        (
            "attention_dp_size",
            "moe_tp_size",
            "moe_ep_size",
            "cp_size",
            "weight_dtype",
            "moe_dtype",
            "activation_dtype",
            "kv_cache_dtype",
        )
    )
    spec = {
        "schema_version": aiconfigurator_core.engine_spec_schema_version(),
        "engine": engine,
        "context_ops": [],
        "generation_ops": [],
    }
    packed = bytes(aiconfigurator_core.engine_spec_bincode_from_json(json.dumps(spec)))
    return aiconfigurator_core.AicEngine.from_spec(packed, None)


def _token_wire(operator: TokenOperator) -> dict[str, Any]:
    common = {"name": "operator", "scale_factor": 1.0}
    if isinstance(operator, Elementwise):
        return {
            "Elementwise": common
            | {"bytes_per_token": float(operator.bytes_per_token), "scale_num_tokens": 1, "seq_split": 1}
        }
    if isinstance(operator, Experts):
        return {
            "Moe": common
            | {
                "hidden_size": operator.hidden,
                "inter_size": operator.intermediate,
                "topk": operator.chosen,
                "num_experts": operator.experts,
                "moe_tp_size": operator.tensor,
                "moe_ep_size": operator.parallel,
                "quant_mode": EXPERT_TYPES[operator.precision],
                "workload_distribution": EXPERT_LOAD,
                "attention_dp_size": 1,
                "is_gated": True,
            }
        }
    assert isinstance(operator, Gemm)
    return {
        "Gemm": common
        | {
            "n": operator.n,
            "k": operator.k,
            "quant_mode": GEMM_TYPES[operator.precision],
            "scale_num_tokens": 1,
            "low_precision_input": operator.quantized_input,
            "seq_split": 1,
            "below_grid_sol": False,
        }
    }


def _attention_wire(attention: Attention) -> dict[str, Any]:
    return {
        "name": "attention",
        "scale_factor": 1.0,
        "n": attention.heads,
        "n_kv": attention.kv_heads,
        "head_size": attention.head_dim,
        "window_size": attention.window,
        "kv_cache_dtype": _cache_type(attention),
        "lane_order": ["default"],
    }


def _latent_wire(attention: Attention) -> dict[str, Any]:
    """Latent attention of DeepSeek-V3's sizes, the only ones that were measured."""
    return {
        "name": "attention",
        "scale_factor": 1.0,
        "num_heads": attention.heads,
        "kv_cache_dtype": _cache_type(attention),
    }


def _cache_type(attention: Attention) -> str:
    return "bfloat16" if attention.kv_dtype in ("float16", "bfloat16", "float32") else attention.kv_dtype
