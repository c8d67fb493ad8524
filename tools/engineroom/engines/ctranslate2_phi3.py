"""Phi-3 and Phi-4: Llama's layers with queries, keys and values, and gate and up, in one matrix each."""

from typing import TYPE_CHECKING, Any

from engineroom.checkpoint.shape import ModelShape
from engineroom.checkpoint.weights import Weights
from engineroom.engines.ctranslate2_layers import decoder_spec, fill_linear

if TYPE_CHECKING:
    from ctranslate2.specs import TransformerDecoderModelSpec


def new_spec(shape: ModelShape) -> "TransformerDecoderModelSpec":
    """An empty model of ``shape``. Raises CheckpointError."""
    return decoder_spec(shape)


def fill_layer(layer: Any, number: int, weights: Weights, shape: ModelShape) -> None:
    """The weights of layer ``number``. Raises CheckpointError where tensors are missing or misshapen."""
    prefix, hidden, inner = f"model.layers.{number}", shape.hidden_size, shape.intermediate_size
    attention, ffn = layer.self_attention, layer.ffn
    rows, kv_rows = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention.layer_norm.gamma = weights.read(f"{prefix}.input_layernorm.weight", (hidden,))
    ffn.layer_norm.gamma = weights.read(f"{prefix}.post_attention_layernorm.weight", (hidden,))
    fill_linear(attention.linear[0], f"{prefix}.self_attn.qkv_proj", weights, rows + 2 * kv_rows, hidden)
    fill_linear(attention.linear[1], f"{prefix}.self_attn.o_proj", weights, hidden, rows)
    both = weights.read(f"{prefix}.mlp.gate_up_proj.weight", (2 * inner, hidden))
    ffn.linear_0.weight, ffn.linear_0_noact.weight = both[:inner], both[inner:]
    fill_linear(ffn.linear_1, f"{prefix}.mlp.down_proj", weights, hidden, inner)
