"""Weights in CTranslate2's layout, from safetensors, without torch: what all families share.

The stock converter (``ct2-transformers-converter``) loads the whole model into torch. Here one layer at a time is
read, quantised and kept as int8, so that memory stays near the size of the result. A family is a sibling of this
module that implements :class:`Family`; ``tests/engines/reference`` holds what transformers computes with each.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engineroom.checkpoint.shape import ModelShape
from engineroom.checkpoint.weights import Weights
from engineroom.engines import ctranslate2_gemma, ctranslate2_gpt2, ctranslate2_llama, ctranslate2_phi3
from engineroom.engines.ctranslate2_layers import settle
from engineroom.engines.ctranslate2_vocabulary import special_tokens, vocabulary
from engineroom.errors import CheckpointError
from engineroom.progress import Progress

if TYPE_CHECKING:
    from ctranslate2.specs import TransformerDecoderModelSpec


@dataclass(frozen=True)
class Family:
    """How one family of models becomes a CTranslate2 decoder."""

    new_spec: Callable[[ModelShape], "TransformerDecoderModelSpec"]
    """An empty model; raises CheckpointError for what CTranslate2 has no counterpart of."""
    fill_layer: Callable[[Any, int, Weights, ModelShape], None]
    """Put the weights of one layer into its place."""
    fill_ends: Callable[[Any, Weights, ModelShape], None]
    """Put embeddings, the last norm and, where it is not tied, the output head into their places."""


_LLAMA = Family(ctranslate2_llama.new_spec, ctranslate2_llama.fill_layer, ctranslate2_llama.fill_ends)

#: Our family → its converter.
FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "phi3": Family(ctranslate2_phi3.new_spec, ctranslate2_phi3.fill_layer, ctranslate2_llama.fill_ends),
    "gemma2": Family(ctranslate2_gemma.new_spec, ctranslate2_gemma.fill_layer, ctranslate2_gemma.fill_ends),
    "gemma3": Family(ctranslate2_gemma.new_spec, ctranslate2_gemma.fill_layer, ctranslate2_gemma.fill_ends),
    "gpt2": Family(ctranslate2_gpt2.new_spec, ctranslate2_gpt2.fill_layer, ctranslate2_gpt2.fill_ends),
}


def check_convertible(shape: ModelShape) -> Family:
    """The family of ``shape``. Raises CheckpointError where CTranslate2 cannot run it, saying what it lacks."""
    if shape.experts is not None:
        lacks = "it has no routed experts"
    elif shape.latent is not None:
        lacks = "it has no latent attention"
    elif shape.attention_softcap is not None:
        lacks = f"it has no cap on attention scores (attn_logit_softcapping: {shape.attention_softcap:g})"
    elif shape.family not in FAMILIES:
        lacks = "it has no converter for this family here"
    else:
        return FAMILIES[shape.family]
    raise CheckpointError(
        f"{shape.architecture} does not run on CTranslate2: {lacks}",
        where="config.json: architectures",
        fix="use a GPU class, or a model of one of the families " + ", ".join(FAMILIES),
    )


def convert(
    checkpoint: Path, shape: ModelShape, weights: Weights, output: Path, *, quantization: str, progress: Progress
) -> None:
    """Write ``model.bin``, ``config.json`` and ``vocabulary.json`` into ``output``.

    ``quantization`` is int8 or float32. Raises CheckpointError where CTranslate2 cannot run the model, and where
    tensors are missing or misshapen.
    """
    family = check_convertible(shape)
    spec = family.new_spec(shape)
    decoder = spec.decoder
    with progress.task("convert layers", shape.layers + 1, unit="layers") as task:
        for number, layer in enumerate(decoder.layer):
            family.fill_layer(layer, number, weights, shape)
            settle(layer, quantization)
            task.advance(1)
        family.fill_ends(decoder, weights, shape)
        settle(decoder.embeddings, quantization)
        if shape.tie_embeddings:
            # The same arrays in both places: CTranslate2 finds them equal and stores them once.
            decoder.projection.weight = decoder.embeddings.weight
            if quantization == "int8":
                decoder.projection.weight_scale = decoder.embeddings.weight_scale
        else:
            settle(decoder.projection, quantization)
        task.advance(1)
    spec.register_vocabulary(vocabulary(checkpoint, shape.vocab_size))
    bos, eos, unk = special_tokens(checkpoint)
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = bos, eos, unk
    spec.config.layer_norm_epsilon = shape.norm_epsilon
    spec.validate()
    spec.optimize(quantization=quantization)
    spec.save(str(output))
