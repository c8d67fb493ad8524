"""Llama's weights in CTranslate2's layout, from safetensors, without torch.

The stock converter (``ct2-transformers-converter``) loads the whole model into torch. Here one layer at a
time is read, quantised and kept as int8, so that memory stays near the size of the result.
``tests/engines/reference`` holds token ids that the stock converter's model gave: ours must give the same.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engineroom.checkpoint.shape import ModelShape
from engineroom.checkpoint.weights import Weights
from engineroom.errors import CheckpointError
from engineroom.progress import Progress

if TYPE_CHECKING:
    from ctranslate2.specs import TransformerDecoderModelSpec


def convert(
    checkpoint: Path, shape: ModelShape, weights: Weights, output: Path, *, quantization: str, progress: Progress
) -> None:
    """Write ``model.bin``, ``config.json`` and ``vocabulary.json`` into ``output``.

    ``quantization`` is int8 or float32. Raises CheckpointError where tensors are missing or misshapen.
    """
    spec = _new_spec(shape)
    decoder = spec.decoder
    decoder.scale_embeddings = False
    heads, kv_heads = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    hidden, inner = shape.hidden_size, shape.intermediate_size
    with progress.task("convert layers", shape.layers + 1, unit="layers") as task:
        for number, layer in enumerate(decoder.layer):
            _fill_layer(layer, f"model.layers.{number}", weights, hidden, inner, heads, kv_heads)
            if shape.rope_scaling and shape.rope_scaling.kind == "llama3":
                layer.self_attention.rotary_low_freq_factor = shape.rope_scaling.low_freq_factor
                layer.self_attention.rotary_high_freq_factor = shape.rope_scaling.high_freq_factor
            _settle(layer, quantization)
            task.advance(1)
        decoder.layer_norm.gamma = weights.read("model.norm.weight", (hidden,))
        decoder.embeddings.weight = weights.read("model.embed_tokens.weight", (shape.vocab_size, hidden))
        _settle(decoder.embeddings, quantization)
        if shape.tie_embeddings:
            # The same arrays in both places: CTranslate2 finds them equal and stores them once.
            decoder.projection.weight = decoder.embeddings.weight
            if quantization == "int8":
                decoder.projection.weight_scale = decoder.embeddings.weight_scale
        else:
            decoder.projection.weight = weights.read("lm_head.weight", (shape.vocab_size, hidden))
            _settle(decoder.projection, quantization)
        task.advance(1)
    tokens = vocabulary(checkpoint, shape.vocab_size)
    spec.register_vocabulary(tokens)
    bos, eos, unk = special_tokens(checkpoint)
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = bos, eos, unk
    spec.config.layer_norm_epsilon = shape.norm_epsilon
    spec.validate()
    spec.optimize(quantization=quantization)
    spec.save(str(output))


def vocabulary(checkpoint: Path, size: int) -> list[str]:
    """Token strings in order of id, padded with ``<extra_id_N>`` to ``size`` as the stock converter does."""
    path = checkpoint / "tokenizer.json"
    try:
        tokenizer = json.loads(path.read_text(encoding="utf-8"))
        entries: dict[str, int] = dict(tokenizer["model"]["vocab"])
        entries.update({entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens") or []})
        ids = {id: token for token, id in entries.items()}
        if not all(isinstance(id, int) and id >= 0 for id in ids):
            raise ValueError("ids that are no numbers")
    except OSError as error:
        raise CheckpointError(f"cannot read it ({error.strerror or error})", where=str(path)) from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"not a tokenizer that can be converted ({str(error)[:80]})", where=str(path)) from None
    spare = (f"<extra_id_{number}>" for number in range(size))
    # A gap among the ids would shift every later token: fill it as the padding is filled.
    return [ids[id] if id in ids else next(spare) for id in range(size)]


def special_tokens(checkpoint: Path) -> tuple[str, str, str]:
    """bos, eos and unk of ``tokenizer_config.json``; empty where there is none."""
    path = checkpoint / "tokenizer_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"not valid JSON ({str(error)[:80]})", where=str(path)) from None

    def token(name: str) -> str:
        value = config.get(name) or ""
        return str(value.get("content", "") if isinstance(value, dict) else value)

    return token("bos_token"), token("eos_token"), token("unk_token")


def _new_spec(shape: ModelShape) -> "TransformerDecoderModelSpec":
    from ctranslate2.specs import TransformerDecoderModelSpec, attention_spec, common_spec

    scaling = shape.rope_scaling
    kinds = {
        "linear": attention_spec.RotaryScalingType.Linear,
        "llama3": attention_spec.RotaryScalingType.Llama3,
    }
    if scaling and scaling.kind not in kinds:
        raise CheckpointError(
            f"rotary scaling of type {scaling.kind[:40]} has no CPU engine",
            where="config.json: rope_scaling",
            fix=f"use one of {', '.join(kinds)}, or a GPU runtime",
        )
    return TransformerDecoderModelSpec.from_config(
        shape.layers,
        shape.heads,
        activation=common_spec.Activation.SWISH,
        pre_norm=True,
        ffn_glu=True,
        rms_norm=True,
        rotary_dim=0,
        rotary_interleave=False,
        rotary_scaling_type=kinds[scaling.kind] if scaling else None,
        rotary_scaling_factor=scaling.factor if scaling else 1,
        rotary_base=shape.rope_theta,
        num_heads_kv=None if shape.kv_heads == shape.heads else shape.kv_heads,
        head_dim=None if shape.head_dim * shape.heads == shape.hidden_size else shape.head_dim,
    )


def _fill_layer(layer: Any, prefix: str, weights: Weights, hidden: int, inner: int, heads: int, kv_heads: int) -> None:
    import numpy as np

    attention, ffn = layer.self_attention, layer.ffn
    attention.layer_norm.gamma = weights.read(f"{prefix}.input_layernorm.weight", (hidden,))
    ffn.layer_norm.gamma = weights.read(f"{prefix}.post_attention_layernorm.weight", (hidden,))
    attention.linear[0].weight = np.concatenate(
        [
            weights.read(f"{prefix}.self_attn.{name}_proj.weight", (rows, hidden))
            for name, rows in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        ]
    )
    attention.linear[1].weight = weights.read(f"{prefix}.self_attn.o_proj.weight", (hidden, heads))
    ffn.linear_0.weight = weights.read(f"{prefix}.mlp.gate_proj.weight", (inner, hidden))
    ffn.linear_0_noact.weight = weights.read(f"{prefix}.mlp.up_proj.weight", (inner, hidden))
    ffn.linear_1.weight = weights.read(f"{prefix}.mlp.down_proj.weight", (hidden, inner))


def _settle(part: Any, quantization: str) -> None:
    """Quantise one part now and let its float32 values go: the whole model never stands in memory as float32."""
    part.validate()
    part.optimize(quantization=quantization)
