"""Llama, Mistral, Qwen2 and Qwen3: pre-norm decoders of RMSNorm, rotary attention and a gated MLP."""

from typing import TYPE_CHECKING, Any

from engineroom.checkpoint.shape import ModelShape
from engineroom.checkpoint.weights import Weights
from engineroom.engines.ctranslate2_layers import decoder_spec, fill_attention, fill_mlp

if TYPE_CHECKING:
    from ctranslate2.specs import TransformerDecoderModelSpec


def new_spec(shape: ModelShape) -> "TransformerDecoderModelSpec":
    """An empty model of ``shape``. Raises CheckpointError."""
    return decoder_spec(shape)


def fill_layer(layer: Any, number: int, weights: Weights, shape: ModelShape) -> None:
    """The weights of layer ``number``. Raises CheckpointError where tensors are missing or misshapen."""
    prefix, hidden = f"model.layers.{number}", shape.hidden_size
    attention = layer.self_attention
    attention.layer_norm.gamma = weights.read(f"{prefix}.input_layernorm.weight", (hidden,))
    layer.ffn.layer_norm.gamma = weights.read(f"{prefix}.post_attention_layernorm.weight", (hidden,))
    fill_attention(attention, f"{prefix}.self_attn", weights, shape)
    if shape.query_key_norm:  # of each head, before the rotation
        attention.q_norm.gamma = weights.read(f"{prefix}.self_attn.q_norm.weight", (shape.head_dim,))
        attention.k_norm.gamma = weights.read(f"{prefix}.self_attn.k_norm.weight", (shape.head_dim,))
    fill_mlp(layer.ffn, f"{prefix}.mlp", weights, shape)


def fill_ends(decoder: Any, weights: Weights, shape: ModelShape) -> None:
    """Embeddings, the last norm and the output head."""
    decoder.layer_norm.gamma = weights.read("model.norm.weight", (shape.hidden_size,))
    decoder.embeddings.weight = weights.read("model.embed_tokens.weight", (shape.vocab_size, shape.hidden_size))
    if not shape.tie_embeddings:
        decoder.projection.weight = weights.read("lm_head.weight", (shape.vocab_size, shape.hidden_size))
