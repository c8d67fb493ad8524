"""Sizes of published models against the modules that transformers builds of their configs."""

import json
from pathlib import Path
from typing import Any

import pytest

from engineroom.checkpoint.families import FAMILIES
from engineroom.checkpoint.shape import ModelShape, parse_shape
from engineroom.planning.parameters import active_parameters, count_parameters, routed_parameters

REFERENCE = Path(__file__).parent / "reference"
CONFIGS: dict[str, dict[str, Any]] = json.loads((REFERENCE / "configs.json").read_text(encoding="utf-8"))
COUNTED: dict[str, dict[str, int]] = json.loads((REFERENCE / "parameters.json").read_text(encoding="utf-8"))


def published(name: str) -> ModelShape:
    return parse_shape(CONFIGS[name], where=name)


@pytest.mark.parametrize("name", COUNTED)
def test_a_published_model_has_as_many_weights_as_transformers_makes_of_it(name: str) -> None:
    assert count_parameters(published(name)) == COUNTED[name]["parameters"]


def test_every_family_is_among_them() -> None:
    assert {published(name).family for name in COUNTED} == {family for family, _ in FAMILIES.values()}


@pytest.mark.parametrize(
    ("name", "billions"),
    [  # as their model cards and papers say
        ("mistralai/Mixtral-8x7B-v0.1", 12.9),
        ("Qwen/Qwen1.5-MoE-A2.7B", 2.7),
        ("Qwen/Qwen3-30B-A3B", 3.3),
        ("Qwen/Qwen3-235B-A22B", 22),
        ("deepseek-ai/DeepSeek-V3", 37),
        ("deepseek-ai/DeepSeek-V2-Lite", 2.4),
    ],
)
def test_a_token_passes_through_as_many_weights_as_the_model_card_says(name: str, billions: float) -> None:
    assert active_parameters(published(name)) / 1e9 == pytest.approx(billions, rel=0.12)  # cards differ on embeddings


def test_a_dense_model_has_no_idle_weights() -> None:
    shape = published("meta-llama/Meta-Llama-3.1-8B")
    assert active_parameters(shape) == active_parameters(shape, 8_030_261_248) == 8_030_261_248
    assert routed_parameters(shape) == 0


def test_idle_experts_are_taken_from_the_number_in_the_headers() -> None:
    shape = published("mistralai/Mixtral-8x7B-v0.1")
    assert count_parameters(shape) - active_parameters(shape) == 32 * 6 * 3 * 4096 * 14336
    assert active_parameters(shape, count_parameters(shape) + 5) == active_parameters(shape) + 5


@pytest.mark.parametrize(
    ("name", "kib"),
    [
        ("meta-llama/Meta-Llama-3.1-70B", 320),  # 2 × 80 × 8 × 128 × 2 bytes
        ("mistralai/Mixtral-8x7B-v0.1", 128),
        ("microsoft/Phi-3-mini-4k-instruct", 384),
        ("deepseek-ai/DeepSeek-V3", 68.625),  # 61 × (512 + 64) × 2: "70 KB" in its report, arXiv 2412.19437
    ],
)
def test_keys_and_values_of_one_token(name: str, kib: float) -> None:
    assert published(name).kv_bytes_per_token(2) == kib * 1024


def test_a_latent_cache_is_whole_on_every_rank_and_other_heads_are_shared_out() -> None:
    assert published("deepseek-ai/DeepSeek-V3").kv_values_per_layer(tp=8) == 576
    llama = published("meta-llama/Meta-Llama-3.1-8B")
    assert [llama.kv_values_per_layer(tp=tp) for tp in (1, 2, 8, 16)] == [2048, 1024, 256, 256]


def test_windowed_layers_hold_no_more_than_their_window() -> None:
    gemma = published("google/gemma-3-1b-it")  # 26 layers, every sixth sees everything
    assert gemma.sliding_window is not None
    assert [n for n in range(26) if n not in gemma.sliding_window.layers] == [5, 11, 17, 23]
    assert gemma.kv_layer_tokens(400) == 26 * 400
    assert gemma.kv_layer_tokens(10_000) == 4 * 10_000 + 22 * 512
    assert gemma.kv_layer_tokens(10_000, windows=False) == 26 * 10_000
    assert published("mistralai/Mistral-7B-v0.1").kv_layer_tokens(32_000) == 32 * 4096
