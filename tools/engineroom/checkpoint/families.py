"""What each family of models writes into ``config.json``: one reader a family, and who is refused and why.

A reader gives the fields of :class:`~engineroom.checkpoint.shape.ModelShape` as the config spells them; checking them
is the shape's work. Keys and defaults are those of transformers' ``configuration_<family>.py``, 4.57 and 5.x.
"""

from collections.abc import Callable
from typing import Any

Config = dict[str, Any]


def _decoder(config: Config) -> dict[str, Any]:
    """What almost all families share: Llama's keys."""
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    head_dim = config.get("head_dim")
    if head_dim is None and isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
        head_dim = hidden // heads  # the default when the key is absent or null
    kv_heads = config.get("num_key_value_heads")
    rope = _rope(config)
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
        "activation": config.get("hidden_act") or config.get("hidden_activation") or "silu",
        "norm_epsilon": config.get("rms_norm_eps", 1e-6),
        "rope_theta": config.get("rope_theta", rope.get("rope_theta", 10000.0)),
        "rope_scaling": _rope_scaling(config, rope),
    }


def _llama(config: Config) -> dict[str, Any]:
    biased = config.get("attention_bias", False)
    return _decoder(config) | {
        "attention_bias": biased,
        "output_bias": biased,
        "mlp_bias": config.get("mlp_bias", False),
    }


def _windowed(config: Config) -> dict[str, Any]:
    """All layers, or none, have the window."""
    return _decoder(config) | {"sliding_window": _window(config, config.get("sliding_window"))}


def _mistral(config: Config) -> dict[str, Any]:
    return _windowed({"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131072} | config)


def _mixtral(config: Config) -> dict[str, Any]:
    config = {
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        **({} if "rope_parameters" in config else {"rope_theta": 1_000_000.0}),
    } | config
    return _windowed(config) | {
        "experts": {
            "count": config.get("num_local_experts", 8),
            "active": config.get("num_experts_per_tok", 2),
            "intermediate_size": config.get("intermediate_size"),
            "layers": config.get("num_hidden_layers"),
        }
    }


def _qwen2(config: Config) -> dict[str, Any]:
    config = {"num_key_value_heads": 32, "max_position_embeddings": 32768} | config
    # Queries, keys and values have biases, whatever the config says (modeling_qwen2.py).
    windowed = config.get("sliding_window") if config.get("use_sliding_window") else None
    first = config.get("max_window_layers", 28)
    layers = [n for n in range(_count(config)) if isinstance(first, int) and n >= first]
    return _decoder(config) | {"attention_bias": True, "sliding_window": _window(config, windowed, layers)}


def _qwen3(config: Config) -> dict[str, Any]:
    biased = config.get("attention_bias", False)
    return _qwen2({"head_dim": 128} | config) | {
        "attention_bias": biased,
        "output_bias": biased,
        "query_key_norm": True,
    }


def _qwen2_moe(config: Config) -> dict[str, Any]:
    experts = _qwen_experts(config) | {
        "shared_intermediate_size": config.get("shared_expert_intermediate_size", 5632),
        "shared_gate": True,
    }
    own = {"num_key_value_heads": 16} | config
    return _qwen2(own) | {"attention_bias": config.get("qkv_bias", True), "experts": experts}


def _qwen3_moe(config: Config) -> dict[str, Any]:
    own = {"head_dim": None, "num_key_value_heads": 4} | config  # a head is a share of the model, unlike in Qwen3
    return _qwen3(own) | {"experts": _qwen_experts(config)}


def _qwen_experts(config: Config) -> dict[str, Any]:
    step, dense = config.get("decoder_sparse_step", 1), config.get("mlp_only_layers") or []
    sparse = 0
    if isinstance(step, int) and step > 0 and isinstance(dense, list):
        sparse = sum((n + 1) % step == 0 and n not in dense for n in range(_count(config)))
    return {
        "count": config.get("num_experts", config.get("num_local_experts")),  # transformers 5 writes the latter
        "active": config.get("num_experts_per_tok"),
        "intermediate_size": config.get("moe_intermediate_size"),
        "layers": sparse,
    }


def _gemma2(config: Config) -> dict[str, Any]:
    return _gemma({"max_position_embeddings": 8192} | config) | {
        # Every other layer, from the first on.
        "sliding_window": _window(config, config.get("sliding_window", 4096), list(range(0, _count(config), 2))),
        "attention_softcap": config.get("attn_logit_softcapping", 50.0),
        "logits_softcap": config.get("final_logit_softcapping", 30.0),
    }


def _gemma3(config: Config) -> dict[str, Any]:
    every = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
    local = [n for n in range(_count(config)) if isinstance(every, int) and every > 0 and (n + 1) % every]
    rope = _rope(config, "sliding_attention")
    return _gemma({"max_position_embeddings": 131072} | config) | {
        "query_key_norm": True,
        "sliding_window": _window(config, config.get("sliding_window", 4096), local),
        "rope_theta": config.get("rope_theta", _rope(config, "full_attention").get("rope_theta", 1_000_000.0)),
        "local_rope_theta": config.get("rope_local_base_freq", rope.get("rope_theta", 10000.0)),
        "rope_scaling": _rope_scaling(config, _rope(config, "full_attention")),
        "attention_softcap": config.get("attn_logit_softcapping"),
        "logits_softcap": config.get("final_logit_softcapping"),
    }


def _gemma(config: Config) -> dict[str, Any]:
    config = {"num_key_value_heads": 4} | config
    return _decoder(config) | {
        "head_dim": config.get("head_dim", 256),
        "tie_embeddings": config.get("tie_word_embeddings", True),
        "activation": config.get("hidden_activation") or config.get("hidden_act") or "gelu_pytorch_tanh",
        "norms": 4,
        "attention_scale": config.get("query_pre_attn_scalar", 256),
        "scaled_embeddings": True,
        "attention_bias": config.get("attention_bias", False),
        "output_bias": config.get("attention_bias", False),
    }


def _phi3(config: Config) -> dict[str, Any]:
    share = config.get("partial_rotary_factor", _rope(config).get("partial_rotary_factor", 1.0))
    return _windowed({"max_position_embeddings": 4096} | config) | {
        "rotary_share": share,
        "norm_epsilon": config.get("rms_norm_eps", 1e-5),
    }


def _gpt2(config: Config) -> dict[str, Any]:
    hidden, heads, positions = (config.get(key) for key in ("n_embd", "n_head", "n_positions"))
    inner = config.get("n_inner")
    return {
        "vocab_size": config.get("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden if inner is None and isinstance(hidden, int) else inner,
        "layers": config.get("n_layer"),
        "heads": heads,
        "kv_heads": heads,
        "head_dim": hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads > 0 else None,
        "max_positions": positions,
        "learned_positions": positions,
        "tie_embeddings": config.get("tie_word_embeddings", True),
        "dtype": config.get("torch_dtype") or config.get("dtype") or "float32",
        "activation": config.get("activation_function", "gelu_new"),
        "gated_mlp": False,
        "layer_norm": True,
        "attention_bias": True,
        "output_bias": True,
        "mlp_bias": True,
        "norm_epsilon": config.get("layer_norm_epsilon", 1e-5),
        "rope_theta": 1.0,  # there are none: positions are learned
    }


def _deepseek(config: Config) -> dict[str, Any]:
    config = {
        "first_k_dense_replace": 3 if _is_v3(config) else 0,
        "n_shared_experts": 1 if _is_v3(config) else 2,
        "q_lora_rank": 1536,
        "max_position_embeddings": 4096 if _is_v3(config) else 2048,
    } | config
    nope, rope = config.get("qk_nope_head_dim"), config.get("qk_rope_head_dim")
    first, step, dense = config.get("first_k_dense_replace", 0), config.get("moe_layer_freq", 1), 0
    if isinstance(first, int) and isinstance(step, int) and step > 0:
        dense = sum(n < first or n % step != 0 for n in range(_count(config)))
    shared, inner = config.get("n_shared_experts") or 0, config.get("moe_intermediate_size")
    return _decoder(config) | {
        "head_dim": nope + rope if isinstance(nope, int) and isinstance(rope, int) else None,
        "kv_heads": config.get("num_attention_heads"),
        "latent": {
            "kv_rank": config.get("kv_lora_rank"),
            "query_rank": config.get("q_lora_rank"),
            "nope_dim": nope,
            "rope_dim": rope,
            "value_dim": config.get("v_head_dim"),
        },
        "experts": {
            "count": config.get("n_routed_experts"),
            "active": config.get("num_experts_per_tok"),
            "intermediate_size": inner,
            "shared_intermediate_size": shared * inner if isinstance(shared, int) and isinstance(inner, int) else None,
            "layers": _count(config) - dense,
            # V3 routes with a learned correction for each expert (topk_method noaux_tc).
            "router_bias": config.get("topk_method", "noaux_tc" if _is_v3(config) else "") == "noaux_tc",
        },
    }


def _is_v3(config: Config) -> bool:
    return config.get("architectures") == ["DeepseekV3ForCausalLM"]


def _count(config: Config) -> int:
    """Number of layers for counting over them; absurd ones are the shape's to refuse."""
    layers = config.get("num_hidden_layers")
    return layers if isinstance(layers, int) and 0 < layers <= 4096 else 0


def _window(config: Config, tokens: Any, layers: list[int] | None = None) -> dict[str, Any] | None:
    """The sliding window and its layers: all, unless ``layers`` or the config's ``layer_types`` say which."""
    kinds = config.get("layer_types")
    if isinstance(kinds, list):
        layers = [number for number, kind in enumerate(kinds) if kind == "sliding_attention"]
    if layers is None:
        layers = list(range(_count(config)))
    return None if tokens is None or not layers else {"tokens": tokens, "layers": layers}


def _rope(config: Config, kind: str = "full_attention") -> Config:
    """``rope_parameters`` of transformers 5, which has them for each kind of layer where kinds differ."""
    rope = config.get("rope_parameters")
    inner = rope.get(kind) if isinstance(rope, dict) else None
    found = inner if isinstance(inner, dict) else rope
    return found if isinstance(found, dict) else {}


def _rope_scaling(config: Config, rope: Config) -> Any:
    value = config.get("rope_scaling") or (rope if _is_scaling(rope) else None)
    if not isinstance(value, dict):
        return value
    kind = value.get("rope_type") or value.get("type")
    if kind == "default":
        return None
    known = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings", "attention_factor")
    scaling = {"kind": kind, **{key: value[key] for key in known if value.get(key) is not None}}
    if kind in ("longrope", "su"):
        return _longrope(config, value, scaling)
    return scaling


def _is_scaling(rope: Config) -> bool:
    return "factor" in rope or rope.get("rope_type", "default") != "default"


def _longrope(config: Config, value: Config, scaling: dict[str, Any]) -> dict[str, Any]:
    """Phi's factors for each frequency. Their ``factor`` is the longest length over the original one."""
    original = config.get("original_max_position_embeddings", scaling.get("original_max_position_embeddings"))
    longest = config.get("max_position_embeddings")
    if "factor" not in scaling and isinstance(original, int) and isinstance(longest, int) and original > 0:
        scaling["factor"] = max(1.0, longest / original)
    if original is not None:
        scaling["original_max_position_embeddings"] = original
    lists = {key: value.get(key) for key in ("short_factor", "long_factor")}
    as_floats = {
        key: [float(x) if isinstance(x, int) and abs(x) < 1 << 53 else x for x in values]
        if isinstance(values, list)
        else values
        for key, values in lists.items()
    }
    return scaling | {"kind": "longrope"} | as_floats


#: Hugging Face architecture → (our family, reader of its config).
FAMILIES: dict[str, tuple[str, Callable[[Config], dict[str, Any]]]] = {
    "LlamaForCausalLM": ("llama", _llama),
    "MistralForCausalLM": ("mistral", _mistral),
    "MixtralForCausalLM": ("mixtral", _mixtral),
    "Qwen2ForCausalLM": ("qwen2", _qwen2),
    "Qwen2MoeForCausalLM": ("qwen2_moe", _qwen2_moe),
    "Qwen3ForCausalLM": ("qwen3", _qwen3),
    "Qwen3MoeForCausalLM": ("qwen3_moe", _qwen3_moe),
    "Gemma2ForCausalLM": ("gemma2", _gemma2),
    "Gemma3ForCausalLM": ("gemma3", _gemma3),
    "Phi3ForCausalLM": ("phi3", _phi3),  # Phi-4 too
    "GPT2LMHeadModel": ("gpt2", _gpt2),
    "DeepseekV2ForCausalLM": ("deepseek_v2", _deepseek),
    "DeepseekV3ForCausalLM": ("deepseek_v3", _deepseek),
}

_ENCODER = "its encoder and its cross attention would need a plan, tensors and Triton inputs of their own"
_STATE = "its state-space or linear-attention layers keep a state, not keys and values, which nothing here plans"
_SPARSE = "its sparse attention has an index beside the keys and values, which nothing here plans"
_FORMAT = "a reader for its config.json would be needed (tools/engineroom/checkpoint/families.py)"

#: Well-known architectures that are refused, and what each would need.
_REFUSED: dict[str, str] = {
    **dict.fromkeys(
        ["T5ForConditionalGeneration", "BartForConditionalGeneration", "WhisperForConditionalGeneration"], _ENCODER
    ),
    **dict.fromkeys(
        [
            "MambaForCausalLM", "Mamba2ForCausalLM", "JambaForCausalLM", "NemotronHForCausalLM", "Qwen3NextForCausalLM",
            "RecurrentGemmaForCausalLM", "FalconMambaForCausalLM", "Zamba2ForCausalLM",
        ],
        _STATE,
    ),
    **dict.fromkeys(["DeepseekV32ForCausalLM", "DeepseekV4ForCausalLM"], _SPARSE),
    "GptOssForCausalLM": "its attention sinks and MXFP4 experts have no plan here",
    "Llama4ForCausalLM": "its chunked attention has no plan here",
}  # fmt: skip


def what_it_needs(architecture: str, config: Config) -> str:
    """What it would take to serve an architecture that is in no family; one clause."""
    if architecture in _REFUSED:
        return _REFUSED[architecture]
    if isinstance(config.get("text_config"), dict):
        inner = config["text_config"].get("model_type")
        text = f" ({inner[:40]})" if isinstance(inner, str) and inner.isprintable() else ""
        return f"it wraps a text model{text} and an encoder for images or sound, for which there are no Triton inputs"
    if architecture.endswith("ForConditionalGeneration"):
        return _ENCODER
    return _FORMAT
