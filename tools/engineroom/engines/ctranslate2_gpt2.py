"""GPT-2: LayerNorm, learned positions, an MLP of two matrices, and matrices stored transposed."""

from typing import TYPE_CHECKING, Any

from engineroom.checkpoint.shape import ModelShape
from engineroom.checkpoint.weights import Weights
from engineroom.engines.ctranslate2_layers import activation

if TYPE_CHECKING:
    from ctranslate2.specs import TransformerDecoderModelSpec


def new_spec(shape: ModelShape) -> "TransformerDecoderModelSpec":
    """An empty model of ``shape``. Raises CheckpointError."""
    from ctranslate2.specs import TransformerDecoderModelSpec

    spec = TransformerDecoderModelSpec.from_config(
        shape.layers, shape.heads, pre_norm=True, activation=activation(shape)
    )
    spec.decoder.scale_embeddings = False
    return spec


def fill_layer(layer: Any, number: int, weights: Weights, shape: ModelShape) -> None:
    """The weights of layer ``number``. Raises CheckpointError where tensors are missing or misshapen."""
    prefix, hidden, inner = f"{_root(weights)}h.{number}", shape.hidden_size, shape.intermediate_size
    attention, ffn = layer.self_attention, layer.ffn
    _fill_norm(attention.layer_norm, f"{prefix}.ln_1", weights, hidden)
    _fill_transposed(attention.linear[0], f"{prefix}.attn.c_attn", weights, hidden, 3 * hidden)
    _fill_transposed(attention.linear[1], f"{prefix}.attn.c_proj", weights, hidden, hidden)
    _fill_norm(ffn.layer_norm, f"{prefix}.ln_2", weights, hidden)
    _fill_transposed(ffn.linear_0, f"{prefix}.mlp.c_fc", weights, hidden, inner)
    _fill_transposed(ffn.linear_1, f"{prefix}.mlp.c_proj", weights, inner, hidden)


def fill_ends(decoder: Any, weights: Weights, shape: ModelShape) -> None:
    """Embeddings, positions, the last norm and the output head."""
    root, hidden = _root(weights), shape.hidden_size
    decoder.embeddings.weight = weights.read(f"{root}wte.weight", (shape.vocab_size, hidden))
    decoder.position_encodings.encodings = weights.read(f"{root}wpe.weight", (shape.learned_positions, hidden))
    _fill_norm(decoder.layer_norm, f"{root}ln_f", weights, hidden)
    if not shape.tie_embeddings:
        decoder.projection.weight = weights.read("lm_head.weight", (shape.vocab_size, hidden))


def _root(weights: Weights) -> str:
    """Checkpoints of the bare model have no prefix (openai-community/gpt2), those of the language model have one."""
    return "transformer." if any(name.startswith("transformer.") for name in weights.names()) else ""


def _fill_norm(norm: Any, name: str, weights: Weights, size: int) -> None:
    norm.gamma, norm.beta = (weights.read(f"{name}.{part}", (size,)) for part in ("weight", "bias"))


def _fill_transposed(part: Any, name: str, weights: Weights, rows: int, columns: int) -> None:
    import numpy as np

    # transformers' Conv1D multiplies from the left.
    part.weight = np.ascontiguousarray(weights.read(f"{name}.weight", (rows, columns)).T)
    part.bias = weights.read(f"{name}.bias", (columns,))
