"""A model's shape, read from ``config.json``: what planning computes with and what converters build.

:mod:`engineroom.checkpoint.families` knows each family's own keys; here are the fields that they fill, and the checks.
"""

import json
import math
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from engineroom.checkpoint.families import FAMILIES, what_it_needs
from engineroom.documents import Strict, first_problem
from engineroom.errors import CheckpointError

#: An upper bound for any size in a config: far above every published model (405B: 126 layers, 16384 hidden,
#: 128 k tokens), low enough that products of a few stay exact and cannot exhaust memory.
MOST = 1 << 24
MOST_LAYERS = 4096
MOST_EXPERTS = 65536

#: Words of a config that are repeated to people.
NAME = r"^[\w.-]{1,60}$"


class RopeScaling(Strict):
    """A change of the rotary frequencies for long contexts: linear, llama3, yarn, dynamic or longrope."""

    kind: str = Field(pattern=NAME)
    factor: float = Field(gt=0, le=1e6)
    low_freq_factor: float = Field(default=1, gt=0)
    high_freq_factor: float = Field(default=4, gt=0)
    original_max_position_embeddings: int = Field(default=8192, ge=1, le=MOST)
    attention_factor: float | None = Field(default=None, gt=0, le=1e6)
    short_factor: list[float] | None = Field(default=None, max_length=65536)
    """longrope: for each frequency, up to the original length …"""
    long_factor: list[float] | None = Field(default=None, max_length=65536)
    """… and beyond it."""


class SlidingWindow(Strict):
    """Layers whose tokens see only so many tokens before them."""

    tokens: int = Field(ge=1, le=MOST)
    layers: list[int] = Field(max_length=MOST_LAYERS)
    """Numbers of the layers that have the window; the others see everything."""


class Experts(Strict):
    """The experts of a Mixture-of-Experts model."""

    count: int = Field(ge=1, le=MOST_EXPERTS)
    """Routed experts in a layer."""
    active: int = Field(ge=1, le=MOST_EXPERTS)
    """Routed experts that one token passes through."""
    intermediate_size: int = Field(ge=1, le=MOST)
    """Of one routed expert."""
    shared_intermediate_size: int = Field(default=0, ge=0, le=MOST)
    """Of the experts that every token passes through, together."""
    shared_gate: bool = False
    """Whether a gate weighs the shared expert (Qwen2-MoE)."""
    router_bias: bool = False
    """Whether the router has a correction for each expert (DeepSeek-V3)."""
    layers: int = Field(ge=0, le=MOST_LAYERS)
    """Layers that have experts; the others have a dense MLP of the model's ``intermediate_size``."""


class LatentAttention(Strict):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): the cache holds one compressed vector a token."""

    kv_rank: int = Field(ge=1, le=MOST)
    query_rank: int | None = Field(default=None, ge=1, le=MOST)
    """Rank of the compressed queries; None where they are not compressed."""
    nope_dim: int = Field(ge=1, le=65536)
    """Of each head, without rotary positions."""
    rope_dim: int = Field(ge=1, le=65536)
    """Of each head, with them; this key is shared by all heads."""
    value_dim: int = Field(ge=1, le=65536)


class ModelShape(Strict):
    """Sizes of a decoder-only transformer, and what distinguishes its family."""

    architecture: str
    family: str
    """Our name of the family: the converter and the script directory are chosen by it."""
    vocab_size: int = Field(ge=1, le=MOST)
    hidden_size: int = Field(ge=1, le=MOST)
    intermediate_size: int = Field(ge=1, le=MOST)
    layers: int = Field(ge=1, le=MOST_LAYERS)
    heads: int = Field(ge=1, le=65536)
    kv_heads: int = Field(ge=1, le=65536)
    """Heads of keys and values; fewer than ``heads`` with grouped-query attention."""
    head_dim: int = Field(ge=1, le=65536)
    max_positions: int = Field(ge=1, le=MOST)
    """Longest sequence that the model was made for, tokens."""
    tie_embeddings: bool
    dtype: str = Field(pattern=NAME)
    """Type of the weights as stored: bfloat16, float16 or float32."""
    quantization: str | None = None
    """Method by which the stored weights are quantised already; None for the usual 16-bit checkpoint."""
    norm_epsilon: float = Field(gt=0, lt=1)
    rope_theta: float = Field(gt=0, lt=1e12)
    rope_scaling: RopeScaling | None = None
    local_rope_theta: float | None = Field(default=None, gt=0, lt=1e12)
    """Of the layers with a sliding window, where it differs (Gemma 3)."""
    rotary_share: float = Field(default=1.0, gt=0, le=1)
    """Share of a head's dimensions that is rotated (Phi-4-mini)."""
    learned_positions: int = Field(default=0, ge=0, le=MOST)
    """Rows of a learned table of positions (GPT-2); 0 where positions are rotary."""
    activation: str = Field(default="silu", pattern=NAME)
    """Of the MLP, in transformers' spelling."""
    gated_mlp: bool = True
    """Three matrices (gate, up, down) rather than two."""
    layer_norm: bool = False
    """LayerNorm with biases (GPT-2) rather than RMSNorm."""
    norms: int = Field(default=2, ge=1, le=4)
    """Of hidden size, in each layer."""
    query_key_norm: bool = False
    """Whether queries and keys of each head are normalised (Qwen3, Gemma 3)."""
    attention_bias: bool = False
    """Biases of queries, keys and values."""
    output_bias: bool = False
    """Bias of attention's output."""
    mlp_bias: bool = False
    attention_scale: float | None = Field(default=None, gt=0, le=1e6)
    """Scores are divided by its root (Gemma); None: by the root of ``head_dim``."""
    attention_softcap: float | None = Field(default=None, gt=0, le=1e6)
    logits_softcap: float | None = Field(default=None, gt=0, le=1e6)
    scaled_embeddings: bool = False
    """Whether embeddings are multiplied by the root of the hidden size (Gemma)."""
    sliding_window: SlidingWindow | None = None
    experts: Experts | None = None
    latent: LatentAttention | None = None

    @model_validator(mode="after")
    def _parts_fit(self) -> "ModelShape":
        experts, window = self.experts, self.sliding_window
        if experts and experts.active > experts.count:
            raise ValueError(f"{experts.active} active experts are more than all {experts.count}")
        if experts and experts.layers > self.layers:
            raise ValueError(f"{experts.layers} layers of experts are more than all {self.layers}")
        if window and any(not 0 <= number < self.layers for number in window.layers):
            raise ValueError(f"the sliding window names layers beyond the {self.layers} that there are")
        return self

    def kv_values_per_layer(self, *, tp: int = 1) -> int:
        """Values that one token adds to the KV cache of one layer on one of ``tp`` ranks.

        2 × KV heads × head_dim, the heads shared out and repeated where there are more ranks than heads
        (TensorRT-LLM, legacy/reference/memory.md). With latent attention: one compressed vector and one rotary key,
        whole on each rank (TensorRT-LLM's MLA cache: kv_lora_rank + qk_rope_head_dim).
        """
        if self.latent:
            return self.latent.kv_rank + self.latent.rope_dim
        return 2 * max(1, -(-self.kv_heads // tp)) * self.head_dim

    def kv_bytes_per_token(self, bytes_per_value: float) -> int:
        """Bytes that one token adds over all layers, on one rank (tp = pp = 1), sliding windows left aside."""
        return math.ceil(self.layers * self.kv_values_per_layer() * bytes_per_value)

    def kv_layer_tokens(self, tokens: int, *, windows: bool = True) -> int:
        """Tokens held for one sequence of ``tokens``, summed over the layers.

        A sliding window holds no more than it shows, where the runtime makes use of it (``windows``).
        """
        if self.sliding_window is None or not windows:
            return self.layers * tokens
        short = len(self.sliding_window.layers)
        return (self.layers - short) * tokens + short * min(tokens, self.sliding_window.tokens)


def read_shape(folder: Path) -> ModelShape:
    """The shape of the checkpoint in ``folder``. Raises CheckpointError, naming the key."""
    return parse_shape(read_config(folder), where=str(folder / "config.json"))


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of ``folder`` as a mapping. Raises CheckpointError."""
    path = folder / "config.json"
    return read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file that somebody else wrote. Raises CheckpointError."""
    try:
        if path.stat().st_size > 64 << 20:
            raise CheckpointError("it is larger than 64 MiB, which no such file is", where=str(path))
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"cannot read it ({error.strerror or error})", where=str(path), fix="is this a Hugging Face checkpoint?"
        ) from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"not valid JSON ({str(error)[:100]})", where=str(path)) from None
    if not isinstance(data, dict):
        raise CheckpointError("it should hold a JSON object", where=str(path))
    return data


def parse_shape(config: dict[str, Any], *, where: str) -> ModelShape:
    """Check the content of a ``config.json`` that came from ``where``. Raises CheckpointError."""
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise CheckpointError("architectures is missing or no list of names", where=where)
    architecture = architectures[0] if architectures[0].isprintable() else repr(architectures[0])
    if architecture not in FAMILIES:
        raise CheckpointError(
            f"{architecture[:80]} is not a model that engineroom plans and builds: "
            f"{what_it_needs(architecture, config)}",
            where=f"{where}: architectures",
            fix="use Llama, Mistral, Mixtral, Qwen2, Qwen3, Gemma 2 or 3, Phi-3 or 4, GPT-2, DeepSeek-V2 or V3",
        )
    family, read = FAMILIES[architecture]
    known = {"architecture": architecture, "family": family, "quantization": _quantization(config, where)}
    try:
        shape = ModelShape.model_validate(known | read(config))
    except ValidationError as error:
        path, found = first_problem(error)
        path = _CONFIG_KEYS.get(path, path)
        raise CheckpointError(found, where=f"{where}: {path}" if path else where) from None
    if shape.heads % shape.kv_heads:
        raise CheckpointError(
            f"{shape.heads} attention heads cannot share {shape.kv_heads} KV heads evenly",
            where=f"{where}: num_key_value_heads",
        )
    return shape


def _quantization(config: dict[str, Any], where: str) -> str | None:
    """How the stored weights are quantised. FP8 in blocks, as DeepSeek-V3 and Qwen3 are published, can be planned."""
    found = config.get("quantization_config")
    if not found:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else found
    if method == "fp8":
        return "fp8"
    raise CheckpointError(
        f"the weights are quantised already ({str(method)[:40]})",
        where=f"{where}: quantization_config",
        fix="start from the unquantised checkpoint and set `precision`",
    )


#: Our field → the key that most configs have for it, for refusals.
_CONFIG_KEYS = {
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "max_positions": "max_position_embeddings",
    "tie_embeddings": "tie_word_embeddings",
    "dtype": "torch_dtype",
    "norm_epsilon": "rms_norm_eps",
    "activation": "hidden_act",
    "local_rope_theta": "rope_local_base_freq",
    "rotary_share": "partial_rotary_factor",
    "attention_scale": "query_pre_attn_scalar",
    "attention_softcap": "attn_logit_softcapping",
    "logits_softcap": "final_logit_softcapping",
    "sliding_window.tokens": "sliding_window",
    "experts.count": "number of experts",
    "experts.active": "num_experts_per_tok",
    "experts.intermediate_size": "moe_intermediate_size",
    "experts.shared_intermediate_size": "n_shared_experts or shared_expert_intermediate_size",
    "latent.kv_rank": "kv_lora_rank",
    "latent.query_rank": "q_lora_rank",
    "latent.nope_dim": "qk_nope_head_dim",
    "latent.rope_dim": "qk_rope_head_dim",
    "latent.value_dim": "v_head_dim",
}
