"""Tiny checkpoints of each family, the same on every machine: made of numpy alone, read by us and by transformers.

``reference/make_families.py`` has transformers run them once; the tests run our conversions of them.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

VOCABULARY = 96
_BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "torch_dtype": "float32",
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "hidden_act": "silu",
}  # fmt: skip
_GEMMA = {
    "head_dim": 16, "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True, "sliding_window": 8,
    "query_pre_attn_scalar": 24, "rms_norm_eps": 1e-6,
}  # fmt: skip
_LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
_LONGROPE = {
    "type": "longrope", "short_factor": [1.0, 1.25, 1.5, 2.0], "long_factor": [1.0, 3.0, 9.0, 16.0],
}  # fmt: skip

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_scaling": _LLAMA3},
    "llama-biases": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": True, "mlp_bias": True,
        "head_dim": 16, "tie_word_embeddings": True,
    },
    "llama-linear": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_scaling": {"type": "linear", "factor": 4.0},
    },
    "mistral": {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None},
    "mistral-window": {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 8},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": False},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 16},
    "phi3": {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "sliding_window": None},
    "phi3-partial": {
        "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "sliding_window": None,
        "partial_rotary_factor": 0.5, "tie_word_embeddings": True,
    },
    "phi3-longrope": {
        "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "sliding_window": None, "rope_scaling": _LONGROPE,
        "original_max_position_embeddings": 4096, "max_position_embeddings": 131072,
    },
    "gemma2": {
        "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", **_GEMMA, "attn_logit_softcapping": None,
        "final_logit_softcapping": 5.0, "num_hidden_layers": 4,
    },
    "gemma3": {
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", **_GEMMA, "num_hidden_layers": 7,
        "sliding_window_pattern": 6, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
    },
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 32, "n_head": 4, "n_layer": 3,
        "n_positions": 256, "vocab_size": VOCABULARY, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        "torch_dtype": "float32", "bos_token_id": 1, "eos_token_id": 2,
    },
}  # fmt: skip


def config(name: str) -> dict[str, Any]:
    """The whole ``config.json`` of a tiny model."""
    own = CONFIGS[name]
    return own if own["model_type"] == "gpt2" else _BASE | own


def write(name: str, folder: Path) -> Path:
    """Write the checkpoint ``name``: config.json, model.safetensors, tokenizer.json, tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = config(name)
    shapes = _gpt2(facts) if facts["model_type"] == "gpt2" else _decoder(facts)
    tensors = {key: _values(key, shape, facts) for key, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(facts, indent=1))
    vocabulary = {f"t{number}": number for number in range(VOCABULARY)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordLevel", "vocab": vocabulary}}))
    special = {"bos_token": "t1", "eos_token": "t2", "unk_token": "t0"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    return folder


def _decoder(facts: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner, kind = facts["hidden_size"], facts["intermediate_size"], facts["model_type"]
    head = facts.get("head_dim", hidden // facts["num_attention_heads"])
    rows, kv_rows = facts["num_attention_heads"] * head, facts["num_key_value_heads"] * head
    biased = facts.get("attention_bias", False)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, hidden),
        "model.norm.weight": (hidden,),
    }
    if not facts["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (VOCABULARY, hidden)
    for number in range(facts["num_hidden_layers"]):
        layer = f"model.layers.{number}."
        attention, mlp = f"{layer}self_attn.", f"{layer}mlp."
        norms = ["input_layernorm", "post_attention_layernorm"]
        if kind.startswith("gemma"):
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        shapes |= {f"{layer}{norm}.weight": (hidden,) for norm in norms}
        if kind == "phi3":
            shapes[f"{attention}qkv_proj.weight"] = (rows + 2 * kv_rows, hidden)
            shapes[f"{mlp}gate_up_proj.weight"] = (2 * inner, hidden)
        else:
            for part, size in (("q", rows), ("k", kv_rows), ("v", kv_rows)):
                shapes[f"{attention}{part}_proj.weight"] = (size, hidden)
                if biased or kind == "qwen2":
                    shapes[f"{attention}{part}_proj.bias"] = (size,)
            for part in ("gate", "up"):
                shapes[f"{mlp}{part}_proj.weight"] = (inner, hidden)
        shapes[f"{attention}o_proj.weight"] = (hidden, rows)
        shapes[f"{mlp}down_proj.weight"] = (hidden, inner)
        if biased:
            shapes[f"{attention}o_proj.bias"] = (hidden,)
        if facts.get("mlp_bias"):
            shapes |= {
                f"{mlp}{part}_proj.bias": (size,) for part, size in (("gate", inner), ("up", inner), ("down", hidden))
            }
        if kind in ("qwen3", "gemma3_text"):
            shapes |= {f"{attention}{part}_norm.weight": (head,) for part in "qk"}
    return shapes


def _gpt2(facts: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden = facts["n_embd"]
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (VOCABULARY, hidden),
        "wpe.weight": (facts["n_positions"], hidden),
        "ln_f.weight": (hidden,),
        "ln_f.bias": (hidden,),
    }
    for number in range(facts["n_layer"]):
        layer = f"h.{number}."
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{layer}{norm}.weight": (hidden,), f"{layer}{norm}.bias": (hidden,)}
        for part, rows, columns in (
            ("attn.c_attn", hidden, 3 * hidden),
            ("attn.c_proj", hidden, hidden),
            ("mlp.c_fc", hidden, 4 * hidden),
            ("mlp.c_proj", 4 * hidden, hidden),
        ):
            shapes |= {f"{layer}{part}.weight": (rows, columns), f"{layer}{part}.bias": (columns,)}
    return shapes


def _values(key: str, shape: tuple[int, ...], facts: dict[str, Any]) -> NDArray[np.float32]:
    """Values from a hash of the tensor's name and each index (splitmix64): numpy's generators may change."""
    seed = np.uint64(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little"))
    state = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + seed
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    unit = ((state ^ (state >> np.uint64(31))) >> np.uint64(40)).astype(np.float64) / (1 << 24) * 2 - 1  # [-1, 1)
    if "norm" in key or ".ln_" in key or key.startswith("ln_"):
        centre = 0.0 if key.endswith("bias") or facts["model_type"].startswith("gemma") else 1.0
        unit = centre + unit / 4
    elif key.endswith("bias"):
        unit = unit / 4
    elif "embed" in key or key.startswith("wte"):
        unit = unit * (0.5 if facts["model_type"].startswith("gemma") else 1.0)
    elif key.startswith("wpe"):
        unit = unit / 2
    else:
        unit = unit * 2.5 / np.sqrt(shape[-1])
    return unit.astype(np.float32).reshape(shape)
