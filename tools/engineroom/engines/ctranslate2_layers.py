"""Parts of a CTranslate2 decoder that several families are made of."""

from typing import TYPE_CHECKING, Any

from engineroom.checkpoint.shape import ModelShape
from engineroom.checkpoint.weights import Weights
from engineroom.errors import CheckpointError

if TYPE_CHECKING:
    from ctranslate2.specs import TransformerDecoderModelSpec
#: Positions that CTranslate2 4.8.5 computes rotary tables for at first; it picks long or short factors by them.
_INITIAL_POSITIONS = 2048


def decoder_spec(shape: ModelShape, **more: Any) -> "TransformerDecoderModelSpec":
    """An empty decoder with RMSNorm, a gated MLP and rotary positions. Raises CheckpointError.

    Sliding windows are left out: CTranslate2 4.8.5 reads a prompt that is longer than the window in pieces, and
    computes something else than the model (found by the reference). Plans for it stay within the window.
    """
    import numpy as np
    from ctranslate2.specs import TransformerDecoderModelSpec

    rotated = round(shape.rotary_share * shape.head_dim)
    spec = TransformerDecoderModelSpec.from_config(
        shape.layers,
        shape.heads,
        activation=activation(shape),
        pre_norm=True,
        ffn_glu=True,
        rms_norm=True,
        rotary_dim=0 if rotated == shape.head_dim else rotated,  # 0: all
        rotary_interleave=False,
        rotary_base=shape.rope_theta,
        num_heads_kv=None if shape.kv_heads == shape.heads else shape.kv_heads,
        head_dim=None if shape.head_dim * shape.heads == shape.hidden_size else shape.head_dim,
        qk_norm=shape.query_key_norm,
        **_rope_scaling(shape),
        **more,
    )
    scaling = shape.rope_scaling
    for number, layer in enumerate(spec.decoder.layer):
        attention = layer.self_attention
        if scaling and scaling.kind == "llama3":
            attention.rotary_low_freq_factor = scaling.low_freq_factor
            attention.rotary_high_freq_factor = scaling.high_freq_factor
            # CTranslate2 4.8.5 reads this factor and the original length, but its specification has no place for the
            # one and its own converter sets neither: Llama 3.1 is then not scaled at all (found by the reference).
            object.__setattr__(attention, "rotary_scaling_factor", np.dtype("float32").type(scaling.factor))
        if scaling and scaling.kind == "longrope":
            _set_long_factors(attention, shape)
        if shape.local_rope_theta is not None and shape.sliding_window and number in shape.sliding_window.layers:
            attention.rotary_base = np.dtype("float32").type(shape.local_rope_theta)
    spec.decoder.scale_embeddings = False
    return spec


def activation(shape: ModelShape) -> Any:
    """CTranslate2's name of the MLP's activation. Raises CheckpointError where it has none."""
    from ctranslate2.specs.common_spec import Activation

    known = {
        "silu": Activation.SWISH,
        "swish": Activation.SWISH,
        "gelu": Activation.GELU,
        "gelu_new": Activation.GELUTanh,
        "gelu_fast": Activation.GELUTanh,
        "gelu_pytorch_tanh": Activation.GELUTanh,
        "relu": Activation.RELU,
    }
    if shape.activation not in known:
        raise CheckpointError(
            f"the activation {shape.activation[:40]} has no counterpart in CTranslate2",
            where="config.json: hidden_act",
            fix=f"use one of {', '.join(known)}, or a GPU runtime",
        )
    return known[shape.activation]


def fill_linear(part: Any, name: str, weights: Weights, rows: int, columns: int, *, bias: bool = False) -> None:
    """One projection of ``rows`` × ``columns``, called ``name`` in the checkpoint."""
    part.weight = weights.read(f"{name}.weight", (rows, columns))
    if bias:
        part.bias = weights.read(f"{name}.bias", (rows,))


def fill_attention(attention: Any, prefix: str, weights: Weights, shape: ModelShape) -> None:
    """Queries, keys and values in one matrix, the output projection, and the norms of queries and keys."""
    import numpy as np

    hidden, rows, kv_rows = shape.hidden_size, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    parts = (("q", rows), ("k", kv_rows), ("v", kv_rows))
    attention.linear[0].weight = np.concatenate(
        [weights.read(f"{prefix}.{name}_proj.weight", (size, hidden)) for name, size in parts]
    )
    if shape.attention_bias:
        attention.linear[0].bias = np.concatenate(
            [weights.read(f"{prefix}.{name}_proj.bias", (size,)) for name, size in parts]
        )
    fill_linear(attention.linear[1], f"{prefix}.o_proj", weights, hidden, rows, bias=shape.output_bias)


def fill_mlp(ffn: Any, prefix: str, weights: Weights, shape: ModelShape) -> None:
    """The gated MLP: gate, up and down."""
    hidden, inner, bias = shape.hidden_size, shape.intermediate_size, shape.mlp_bias
    fill_linear(ffn.linear_0, f"{prefix}.gate_proj", weights, inner, hidden, bias=bias)
    fill_linear(ffn.linear_0_noact, f"{prefix}.up_proj", weights, inner, hidden, bias=bias)
    fill_linear(ffn.linear_1, f"{prefix}.down_proj", weights, hidden, inner, bias=bias)


def settle(part: Any, quantization: str) -> None:
    """Quantise one part now and let its float32 values go: the whole model never stands in memory as float32.

    Not with the public ``optimize``: it also replaces equal tensors by the name of one of them, which inside a part
    is a name that the whole model does not have (two norms of ones are enough, and the model fails when it runs).
    """
    part.validate()
    part._quantize(quantization)


def _rope_scaling(shape: ModelShape) -> dict[str, Any]:
    from ctranslate2.specs.attention_spec import RotaryScalingType

    scaling = shape.rope_scaling
    if scaling is None:
        return {}
    kinds = {
        "linear": RotaryScalingType.Linear,
        "llama3": RotaryScalingType.Llama3,
        "longrope": RotaryScalingType.Su,
    }
    if scaling.kind not in kinds:
        raise CheckpointError(
            f"rotary scaling of type {scaling.kind[:40]} has no CPU engine",
            where="config.json: rope_scaling",
            fix=f"use one of {', '.join(kinds)}, or a GPU runtime",
        )
    found: dict[str, Any] = {"rotary_scaling_type": kinds[scaling.kind], "rotary_scaling_factor": scaling.factor}
    if scaling.kind in ("llama3", "longrope"):
        found["original_max_position_embeddings"] = scaling.original_max_position_embeddings
    if scaling.kind == "longrope":
        found["max_position_embeddings"] = shape.max_positions
    return found


def _set_long_factors(attention: Any, shape: ModelShape) -> None:
    import numpy as np

    scaling = shape.rope_scaling
    assert scaling is not None
    if scaling.original_max_position_embeddings < _INITIAL_POSITIONS:
        raise CheckpointError(
            f"CTranslate2 uses the long factors from the start, though they begin after "
            f"{scaling.original_max_position_embeddings} positions",
            where="config.json: original_max_position_embeddings",
            fix="use a GPU runtime",
        )
    pairs = round(shape.rotary_share * shape.head_dim) // 2
    for name, values in (("short_factor", scaling.short_factor), ("long_factor", scaling.long_factor)):
        if values is None or len(values) != pairs:
            raise CheckpointError(
                f"it has {len(values or [])} factors for {pairs} rotary frequencies",
                where=f"config.json: rope_scaling.{name}",
                fix="use a sound checkpoint",
            )
    attention.rotary_scaling_short_factor = np.array(scaling.short_factor, dtype=np.float32)
    attention.rotary_scaling_long_factor = np.array(scaling.long_factor, dtype=np.float32)
