"""A model's shape, read from ``config.json``: what planning computes with and what converters build.

One function a family reads the family's own keys. Adding a family is one entry in :data:`FAMILIES`.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from engineroom.documents import Strict, first_problem
from engineroom.errors import CheckpointError

#: An upper bound for any size in a config: far above every published model (405B: 126 layers, 16384 hidden,
#: 128 k tokens), low enough that products of a few stay exact and cannot exhaust memory.
MOST = 1 << 24
MOST_LAYERS = 4096


class RopeScaling(Strict):
    """Llama 3.1's change of the rotary frequencies for long contexts, or a linear one."""

    kind: str
    factor: float = Field(gt=0, le=1e6)
    low_freq_factor: float = Field(default=1, gt=0)
    high_freq_factor: float = Field(default=4, gt=0)
    original_max_position_embeddings: int = Field(default=8192, ge=1, le=MOST)


class ModelShape(Strict):
    """Sizes of a decoder-only transformer."""

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
    dtype: str
    """Type of the weights as stored: bfloat16, float16 or float32."""
    norm_epsilon: float = Field(gt=0, lt=1)
    rope_theta: float = Field(gt=0, lt=1e12)
    rope_scaling: RopeScaling | None = None

    def kv_bytes_per_token(self, bytes_per_value: float) -> int:
        """Bytes of keys and values that one token occupies over all layers and ranks.

        2 × layers × KV heads × head_dim × bytes (TensorRT-LLM, legacy/reference/memory.md, with tp = pp = 1).
        """
        return math.ceil(2 * self.layers * self.kv_heads * self.head_dim * bytes_per_value)


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
    architecture = architectures[0]
    if architecture not in FAMILIES:
        raise CheckpointError(
            f"{architecture[:80]} is not a model that engineroom plans and builds",
            where=f"{where}: architectures",
            fix=f"use one of {', '.join(FAMILIES)}",
        )
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise CheckpointError(
            f"the weights are quantised already ({str(method)[:40]})",
            where=f"{where}: quantization_config",
            fix="start from the unquantised checkpoint and set `precision`",
        )
    family, read = FAMILIES[architecture]
    try:
        shape = ModelShape.model_validate({"architecture": architecture, "family": family, **read(config)})
    except ValidationError as error:
        path, found = first_problem(error)
        raise CheckpointError(found, where=f"{where}: {_CONFIG_KEYS.get(path, path)}") from None
    if shape.heads % shape.kv_heads:
        raise CheckpointError(
            f"{shape.heads} attention heads cannot share {shape.kv_heads} KV heads evenly",
            where=f"{where}: num_key_value_heads",
        )
    return shape


def _llama(config: dict[str, Any]) -> dict[str, Any]:
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    head_dim = config.get("head_dim")
    if head_dim is None and isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
        head_dim = hidden // heads  # transformers, LlamaConfig: the default when the key is absent or null
    kv_heads = config.get("num_key_value_heads")
    rope = config.get("rope_parameters") or {}  # transformers 5 moved rope_theta and rope_scaling in here
    rope = rope if isinstance(rope, dict) else {}
    return {
        "vocab_size": config.get("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": config.get("intermediate_size"),
        "layers": config.get("num_hidden_layers"),
        "heads": heads,
        "kv_heads": heads if kv_heads is None else kv_heads,
        "head_dim": head_dim,
        "max_positions": config.get("max_position_embeddings", 2048),
        "tie_embeddings": config.get("tie_word_embeddings", False),
        "dtype": config.get("torch_dtype") or config.get("dtype") or "float32",
        "norm_epsilon": config.get("rms_norm_eps", 1e-6),
        "rope_theta": config.get("rope_theta", rope.get("rope_theta", 10000.0)),
        "rope_scaling": _rope_scaling(config.get("rope_scaling") or (rope if "factor" in rope else None)),
    }


def _rope_scaling(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    kind = value.get("rope_type") or value.get("type")
    if kind == "default":
        return None
    known = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return {"kind": kind, **{key: value[key] for key in known if value.get(key) is not None}}


#: Hugging Face architecture → (our family, reader of its config).
FAMILIES: dict[str, tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {"LlamaForCausalLM": ("llama", _llama)}

_CONFIG_KEYS = {
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "max_positions": "max_position_embeddings",
    "tie_embeddings": "tie_word_embeddings",
    "dtype": "torch_dtype",
    "norm_epsilon": "rms_norm_eps",
}
