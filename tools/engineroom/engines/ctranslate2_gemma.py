"""Gemma 2 and 3: norms before and after each part, scaled embeddings, layers that see a window only."""

from typing import TYPE_CHECKING, Any

from engineroom.checkpoint.shape import ModelShape
from engineroom.checkpoint.weights import Weights
from engineroom.engines.ctranslate2_layers import decoder_spec, fill_attention, fill_mlp

if TYPE_CHECKING:
    from ctranslate2.specs import TransformerDecoderModelSpec

_NORMS = {
    "input_layer_norm": "input_layernorm",
    "post_attention_layer_norm": "post_attention_layernorm",
    "pre_feedforward_layer_norm": "pre_feedforward_layernorm",
    "post_feedforward_layer_norm": "post_feedforward_layernorm",
}


def new_spec(shape: ModelShape) -> "TransformerDecoderModelSpec":
    """An empty model of ``shape``. Raises CheckpointError."""
    import numpy as np

    spec = decoder_spec(shape, pre_post_layer_norm=True)
    decoder = spec.decoder
    decoder.scale_embeddings = True
    decoder.embeddings.multiply_by_sqrt_depth = shape.hidden_size**0.5
    if shape.logits_softcap is not None:
        decoder.final_logit_softcapping = np.dtype("float32").type(shape.logits_softcap)
    if shape.attention_scale is not None:
        for layer in decoder.layer:
            layer.self_attention.queries_scale = np.dtype("float32").type(shape.attention_scale**-0.5)
    return spec


def fill_layer(layer: Any, number: int, weights: Weights, shape: ModelShape) -> None:
    """The weights of layer ``number``. Raises CheckpointError where tensors are missing or misshapen."""
    prefix = f"model.layers.{number}"
    for ours, theirs in _NORMS.items():
        _fill_norm(getattr(layer, ours), f"{prefix}.{theirs}", weights, shape.hidden_size)
    attention = layer.self_attention
    fill_attention(attention, f"{prefix}.self_attn", weights, shape)
    if shape.query_key_norm:
        _fill_norm(attention.q_norm, f"{prefix}.self_attn.q_norm", weights, shape.head_dim)
        _fill_norm(attention.k_norm, f"{prefix}.self_attn.k_norm", weights, shape.head_dim)
    fill_mlp(layer.ffn, f"{prefix}.mlp", weights, shape)


def fill_ends(decoder: Any, weights: Weights, shape: ModelShape) -> None:
    """Embeddings, the last norm and the output head."""
    _fill_norm(decoder.layer_norm, "model.norm", weights, shape.hidden_size)
    decoder.embeddings.weight = weights.read("model.embed_tokens.weight", (shape.vocab_size, shape.hidden_size))
    if not shape.tie_embeddings:
        decoder.projection.weight = weights.read("lm_head.weight", (shape.vocab_size, shape.hidden_size))


def _fill_norm(norm: Any, name: str, weights: Weights, size: int) -> None:
    # Gemma stores what its norms' factors exceed 1 by; CTranslate2 adds the 1 where it is told to.
    norm.gamma = weights.read(f"{name}.weight", (size,))
    norm.layer_norm_use_residual = True
