"""Each family's own keys of config.json, and who is refused by name with what would be needed."""

import json
from pathlib import Path
from typing import Any

import pytest

from engineroom.checkpoint.shape import ModelShape, parse_shape
from engineroom.errors import CheckpointError

PUBLISHED: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent.parent / "planning" / "reference" / "configs.json").read_text(encoding="utf-8")
)


def shape_of(name: str, **changes: Any) -> ModelShape:
    config = {key: value for key, value in {**PUBLISHED[name], **changes}.items() if value is not ...}
    return parse_shape(config, where="config.json")


def windowed(shape: ModelShape) -> tuple[int, list[int]] | None:
    return (shape.sliding_window.tokens, shape.sliding_window.layers) if shape.sliding_window else None


def test_a_window_counts_only_where_the_family_uses_it() -> None:
    assert windowed(shape_of("mistralai/Mistral-7B-v0.1")) == (4096, list(range(32)))
    assert windowed(shape_of("mistralai/Mistral-7B-v0.1", sliding_window=None)) is None
    assert windowed(shape_of("Qwen/Qwen2.5-7B-Instruct")) is None  # use_sliding_window is false
    late = shape_of("Qwen/Qwen2.5-7B-Instruct", use_sliding_window=True, max_window_layers=26)
    assert windowed(late) == (131072, [26, 27])
    assert windowed(shape_of("google/gemma-2-9b-it")) == (4096, list(range(0, 42, 2)))


def test_the_layer_types_of_newer_configs_decide() -> None:
    kinds = ["sliding_attention", "full_attention"] * 13
    assert windowed(shape_of("google/gemma-3-1b-it", layer_types=kinds)) == (512, list(range(0, 26, 2)))


def test_gemma_3_has_two_rotary_bases_in_both_spellings() -> None:
    old = shape_of("google/gemma-3-1b-it")
    new = shape_of(
        "google/gemma-3-1b-it", rope_theta=..., rope_local_base_freq=..., rope_scaling=...,
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 1000000},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000},
        },
    )  # fmt: skip
    assert (old.rope_theta, old.local_rope_theta, old.rope_scaling) == (1e6, 1e4, None)
    assert new == old


def test_biases_and_norms_follow_the_family() -> None:
    qwen2, qwen3 = shape_of("Qwen/Qwen2.5-7B-Instruct"), shape_of("Qwen/Qwen3-32B")
    assert (qwen2.attention_bias, qwen2.output_bias, qwen2.query_key_norm) == (True, False, False)
    assert (qwen3.attention_bias, qwen3.output_bias, qwen3.query_key_norm) == (False, False, True)
    gpt2 = shape_of("openai-community/gpt2")
    assert (gpt2.layer_norm, gpt2.gated_mlp, gpt2.learned_positions, gpt2.intermediate_size) == (
        True,
        False,
        1024,
        3072,
    )
    assert shape_of("openai-community/gpt2", n_inner=100).intermediate_size == 100


def test_only_sparse_layers_have_experts() -> None:
    qwen = "Qwen/Qwen3-30B-A3B"
    assert [
        shape.experts and shape.experts.layers
        for shape in (shape_of(qwen), shape_of(qwen, decoder_sparse_step=2), shape_of(qwen, mlp_only_layers=[0, 3]))
    ] == [48, 24, 46]
    assert [
        shape.experts and shape.experts.layers
        for shape in (
            shape_of("deepseek-ai/DeepSeek-V3"),
            shape_of("deepseek-ai/DeepSeek-V3", first_k_dense_replace=0),
            shape_of("deepseek-ai/DeepSeek-V3", moe_layer_freq=2),
        )
    ] == [58, 61, 29]


@pytest.mark.parametrize(
    ("name", "left_out", "field", "value"),
    [
        ("mistralai/Mistral-7B-v0.1", "sliding_window", "sliding_window.tokens", 4096),
        ("mistralai/Mistral-7B-v0.1", "num_key_value_heads", "kv_heads", 8),
        ("mistralai/Mixtral-8x7B-v0.1", "rope_theta", "rope_theta", 1e6),
        ("mistralai/Mixtral-8x7B-v0.1", "sliding_window", "sliding_window", None),
        ("Qwen/Qwen3-0.6B", "head_dim", "head_dim", 128),
        ("Qwen/Qwen3-30B-A3B", "head_dim", "head_dim", 64),
        ("Qwen/Qwen2.5-7B-Instruct", "max_position_embeddings", "max_positions", 32768),
        ("google/gemma-3-1b-it", "max_position_embeddings", "max_positions", 131072),
        ("microsoft/phi-4", "max_position_embeddings", "max_positions", 4096),
        ("deepseek-ai/DeepSeek-V3", "q_lora_rank", "latent.query_rank", 1536),
        ("deepseek-ai/DeepSeek-V3", "first_k_dense_replace", "experts.layers", 58),
    ],
)
def test_what_a_config_leaves_out_has_the_default_of_its_family(
    name: str, left_out: str, field: str, value: float | None
) -> None:
    """The defaults are those of transformers 5.23, compared key by key when the families were read first."""
    found: Any = shape_of(name, **{left_out: ...})
    for part in field.split("."):
        found = getattr(found, part)
    assert found == value


def test_experts_are_counted_in_the_spelling_of_transformers_5() -> None:
    old = shape_of("Qwen/Qwen3-30B-A3B")
    assert shape_of("Qwen/Qwen3-30B-A3B", num_experts=..., num_local_experts=128) == old


def test_phi_4_mini_rotates_three_quarters_with_factors_of_its_own() -> None:
    phi = shape_of("microsoft/Phi-4-mini-instruct")
    assert (phi.rotary_share, phi.tie_embeddings) == (0.75, True)
    assert phi.rope_scaling is not None
    assert (phi.rope_scaling.kind, phi.rope_scaling.factor) == ("longrope", 32.0)
    assert phi.rope_scaling.original_max_position_embeddings == 4096


def test_fp8_blocks_are_noted_and_other_quantised_weights_refused() -> None:
    assert shape_of("deepseek-ai/DeepSeek-V3").quantization is None
    assert shape_of("deepseek-ai/DeepSeek-V3", quantization_config={"quant_method": "fp8"}).quantization == "fp8"
    with pytest.raises(CheckpointError, match="quantised already \\(gptq\\)"):
        shape_of("deepseek-ai/DeepSeek-V3", quantization_config={"quant_method": "gptq"})


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {"model_type": "gemma3_text"}},
         "it wraps a text model (gemma3_text) and an encoder for images or sound"),
        ({"architectures": ["Qwen2_5_VLForConditionalGeneration"], "text_config": {}}, "it wraps a text model and"),
        ({"architectures": ["T5ForConditionalGeneration"]}, "its encoder and its cross attention"),
        ({"architectures": ["MambaForCausalLM"]}, "keep a state, not keys and values"),
        ({"architectures": ["DeepseekV32ForCausalLM"]}, "its sparse attention has an index"),
        ({"architectures": ["GptOssForCausalLM"]}, "its attention sinks and MXFP4 experts"),
        ({"architectures": ["PhiForCausalLM"]}, "a reader for its config.json would be needed"),
    ],
)  # fmt: skip
def test_other_architectures_are_refused_by_name_with_what_they_need(config: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        parse_shape(config, where="config.json")
    assert config["architectures"][0] in refused.value.found
    assert said in refused.value.found
    assert "Qwen3" in refused.value.fix


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("mistralai/Mixtral-8x7B-v0.1", {"num_experts_per_tok": 9}, "9 active experts are more than all 8"),
        ("mistralai/Mixtral-8x7B-v0.1", {"num_local_experts": "8"}, "number of experts"),
        ("Qwen/Qwen3-30B-A3B", {"moe_intermediate_size": ...}, "moe_intermediate_size"),
        ("Qwen/Qwen3-30B-A3B", {"decoder_sparse_step": 0, "num_experts": 0}, "number of experts"),
        ("mistralai/Mistral-7B-v0.1", {"sliding_window": -1}, "sliding_window"),
        ("mistralai/Mistral-7B-v0.1", {"layer_types": ["sliding_attention"] * 33}, "layers beyond the 32"),
        ("deepseek-ai/DeepSeek-V3", {"kv_lora_rank": ...}, "kv_lora_rank"),
        ("deepseek-ai/DeepSeek-V3", {"v_head_dim": 0}, "v_head_dim"),
        ("deepseek-ai/DeepSeek-V3", {"n_shared_experts": "one"}, "n_shared_experts"),
        ("google/gemma-2-9b-it", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
        ("microsoft/Phi-4-mini-instruct", {"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        ("microsoft/Phi-4-mini-instruct", {"rope_scaling": {"type": "longrope", "long_factor": "x"}}, "long_factor"),
        ("openai-community/gpt2", {"n_embd": None}, "hidden_size"),
    ],
)
def test_a_bad_value_of_a_family_is_one_sentence(name: str, changes: dict[str, Any], said: str) -> None:
    assert shape_of(name)
    with pytest.raises(CheckpointError) as refused:
        shape_of(name, **changes)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
