"""The memory formulas against logged numbers, against published sizes, and against themselves."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineroom.checkpoint.shape import ModelShape, parse_shape
from engineroom.gpus import GIB, Precision
from engineroom.planning.memory import (
    KV_BYTES,
    MIB,
    Load,
    buffer_bytes,
    build_memory,
    kv_bytes_per_token_and_rank,
    kv_pool_tokens,
    overhead_bytes,
    plan_memory,
    weight_bytes,
)
from engineroom.planning.parameters import count_parameters
from engineroom.planning.plan import PlannedLimits

PUBLISHED: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "reference" / "configs.json").read_text(encoding="utf-8")
)


def a_shape(**changes: object) -> ModelShape:
    """Llama-3.1-8B, with changes."""
    values: dict[str, object] = {
        "architecture": "LlamaForCausalLM",
        "family": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "layers": 32,
        "heads": 32,
        "kv_heads": 8,
        "head_dim": 128,
        "max_positions": 131072,
        "tie_embeddings": False,
        "dtype": "bfloat16",
        "norm_epsilon": 1e-5,
        "rope_theta": 500000.0,
    }
    return ModelShape.model_validate(values | changes)


LLAMA_8B = a_shape()
LLAMA_70B = a_shape(hidden_size=8192, intermediate_size=28672, layers=80, heads=64)
SMOLLM2 = a_shape(
    vocab_size=49152, hidden_size=576, intermediate_size=1536, layers=30, heads=9, kv_heads=3, head_dim=64,
    max_positions=8192, tie_embeddings=True,
)  # fmt: skip
LIMITS = PlannedLimits(
    max_batch_size=64, max_input_len=3072, max_output_len=1024, max_seq_len=4096, max_num_tokens=8192
)


def a_load(shape: ModelShape = LLAMA_8B, **changes: object) -> Load:
    values: dict[str, object] = {
        "shape": shape,
        "parameters": count_parameters(shape),
        "runtime": "tensorrt",
        "precision": "bfloat16",
        "kv_dtype": "bfloat16",
        "limits": LIMITS,
        "fraction": 0.9,
        "visible": 79 * GIB,
    }
    return Load(**(values | changes))  # type: ignore[arg-type]  # a table of fields


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [(LLAMA_8B, 8_030_261_248), (LLAMA_70B, 70_553_706_496), (SMOLLM2, 134_515_008)],
    ids=["Llama-3.1-8B", "Llama-3.1-70B", "SmolLM2-135M"],
)
def test_the_shape_gives_the_number_of_parameters_that_the_model_cards_give(shape: ModelShape, parameters: int) -> None:
    assert count_parameters(shape) == parameters


def test_one_token_of_the_logged_engine_takes_256_kib() -> None:
    logged = a_shape(kv_heads=32)
    assert kv_bytes_per_token_and_rank(logged, "int8") == 262_144


def test_the_logged_pool_holds_the_logged_tokens() -> None:
    """Log: "Allocated 63.44 GiB for max tokens in paged KV cache (259840)"; 63.4375 GiB before rounding."""
    pool = 259_840 * 262_144
    assert pool / GIB == 63.4375
    assert kv_pool_tokens(pool, 262_144) == 259_840
    assert kv_pool_tokens(pool - 1, 262_144) == 259_840 - 32


def test_nine_tenths_of_the_logged_free_memory_is_the_logged_pool() -> None:
    """Log: "available: 70.48 GiB", a rounded number; so is the pool. Less than one block of 64 tokens apart."""
    assert round(0.9 * 70.48, 2) == 63.43
    assert 259_840 - kv_pool_tokens(int(0.9 * 70.485 * GIB), 262_144) <= 64


# Logs of TensorRT-LLM: the FAQ of its memory page (docs/source/legacy/reference/memory.md@48dd1c94), and two issues.
LLAMA_2_7B = a_shape(vocab_size=32000, intermediate_size=11008, kv_heads=32, max_positions=4096)
QWEN_1_5B = a_shape(
    vocab_size=151936, hidden_size=1536, intermediate_size=8960, layers=28, heads=12, kv_heads=2, tie_embeddings=True,
    attention_bias=True,
)  # fmt: skip


def test_weights_are_as_large_as_the_logged_engines() -> None:
    """Logs: "Loaded engine size: 6695 MiB" (memory page; Llama-2-7B in FP8 has it), "15388 MiB" (issue 3636)."""
    for shape, precision, logged in ((LLAMA_2_7B, "fp8", 6695), (LLAMA_8B, "float16", 15388)):
        size = weight_bytes(shape, count_parameters(shape), runtime="tensorrt", precision=precision)  # type: ignore[arg-type]
        assert size / MIB == pytest.approx(logged, rel=0.01)
        assert size + overhead_bytes(size, runtime="tensorrt", world_size=1) > logged * MIB


@pytest.mark.parametrize(
    ("shape", "tokens", "logged"),
    [
        (LLAMA_8B, 128_000, 37_812.51),  # TensorRT-LLM issue 3636: maxNumTokens 128000
        (QWEN_1_5B, 8_192, 921.51),  # TensorRT-LLM 0.17, trtllm-build with its defaults, int4 weights
    ],
)
def test_activations_cover_the_logged_execution_contexts(shape: ModelShape, tokens: int, logged: float) -> None:
    limits = LIMITS.model_copy(update={"max_num_tokens": tokens, "max_batch_size": 1})
    planned = buffer_bytes(a_load(shape, limits=limits)) / MIB
    assert logged <= planned < 1.12 * logged


def test_a_card_with_the_logged_model_has_the_logged_memory_left() -> None:
    """Log: "total: 79.10 GiB, available: 70.48 GiB", with a context of 1134.01 MiB: 3,500 tokens and more."""
    limits = LIMITS.model_copy(update={"max_num_tokens": 4096, "max_batch_size": 256, "max_seq_len": 2048})
    load = a_load(LLAMA_2_7B, precision="fp8", kv_dtype="int8", limits=limits, visible=int(79.10 * GIB), fraction=1)
    memory, _ = plan_memory(load)
    assert 70.48 * 0.99 < memory.kv / GIB < 70.48


def test_what_cuda_takes_covers_the_measured_context_and_the_logged_rest() -> None:
    logged = 79.10 * 1024 - 70.48 * 1024 - 6695 - 1134.01 - 43.29 - 180.30  # MiB that no line of the log accounts for
    assert 700 < logged < 800
    assert overhead_bytes(0, runtime="tensorrt", world_size=1) / MIB > max(logged, 527)


def test_experts_are_shared_out_and_latent_compressions_are_not() -> None:
    deepseek = parse_shape(PUBLISHED["deepseek-ai/DeepSeek-V3"], where="")
    one, eight = (
        weight_bytes(deepseek, count_parameters(deepseek), runtime="pytorch", precision="fp8", tp=tp) for tp in (1, 8)
    )
    compressions = 61 * (512 + 64 + 1536) * 7168
    assert eight > one / 8 + compressions * 7 / 8
    assert eight < one / 8 + compressions + 2 * 129280 * 7168  # and the embedding, in 16 bit


def test_a_stage_of_sparse_layers_only_is_the_fullest() -> None:
    deepseek = parse_shape(PUBLISHED["deepseek-ai/DeepSeek-V3"], where="")
    sizes = {
        pp: weight_bytes(deepseek, count_parameters(deepseek), runtime="pytorch", precision="fp8", pp=pp)
        for pp in (1, 61)
    }
    sparse_layer = 256 * 3 * 7168 * 2048
    assert sizes[61] > sparse_layer > sizes[1] / 61


def test_building_needs_the_whole_model_in_host_memory_and_calibration_three_bytes_a_weight() -> None:
    load = a_load(LLAMA_70B, precision="fp8")
    weights = weight_bytes(LLAMA_70B, load.parameters, runtime="tensorrt", precision="fp8", tp=2)
    build = build_memory(load, weights, calibrated=True, world_size=2, workers=2)
    assert build.host_bytes > 2 * load.parameters
    assert 2 * build.gpu_bytes > 210e9  # TensorRT-LLM issue 1849: "more than 210 GB" for 70B to FP8
    plain = build_memory(load, weights, calibrated=False, world_size=2, workers=2)
    assert weights < plain.gpu_bytes < build.gpu_bytes
    assert build.disk_bytes == 2 * load.parameters + 2 * 2 * weights


SPLITS = st.tuples(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4]))
SHAPES = st.sampled_from([parse_shape(config, where=name) for name, config in PUBLISHED.items()])
PRECISIONS = st.sampled_from(["bfloat16", "fp8", "int4", "nvfp4"])


@given(shape=SHAPES, precision=PRECISIONS, split=SPLITS)
def test_a_rank_of_many_holds_a_share_and_all_ranks_hold_everything(
    shape: ModelShape, precision: Precision, split: tuple[int, int]
) -> None:
    (tp, pp), parameters = split, count_parameters(shape)
    whole = weight_bytes(shape, parameters, runtime="tensorrt", precision=precision)
    rank = weight_bytes(shape, parameters, runtime="tensorrt", precision=precision, tp=tp, pp=pp)
    assert rank <= whole
    assert rank * tp * pp >= whole * 0.999  # embeddings come in 16 bit: halves are rounded


@given(
    shape=SHAPES, precision=PRECISIONS, split=SPLITS, visible=st.integers(0, 1 << 44),
    batches=st.tuples(st.integers(1, 512), st.integers(1, 512)),
    lengths=st.tuples(st.integers(2, 100_000), st.integers(2, 100_000)),
)  # fmt: skip
def test_more_requests_or_longer_ones_never_leave_more_room(
    shape: ModelShape, precision: Precision, split: tuple[int, int], visible: int, batches: tuple[int, int],
    lengths: tuple[int, int],
) -> None:  # fmt: skip
    def room(batch: int, length: int) -> tuple[int, int]:
        limits = PlannedLimits(
            max_batch_size=batch, max_input_len=length - 1, max_output_len=1, max_seq_len=length, max_num_tokens=8192
        )
        memory, tokens = plan_memory(
            a_load(shape, precision=precision, limits=limits, visible=visible), tp=split[0], pp=split[1]
        )
        assert memory.total == memory.weights + memory.activations + memory.overhead + memory.kv
        assert memory.kv == 0 or memory.total <= visible
        return tokens, memory.kv

    assert room(max(batches), max(lengths)) <= room(min(batches), min(lengths))


def test_keys_and_values_of_llama_8b_follow_its_8_kv_heads_not_its_32_heads() -> None:
    assert kv_bytes_per_token_and_rank(LLAMA_8B, "bfloat16") == 2 * 32 * 8 * 128 * 2 == 131_072
    assert kv_bytes_per_token_and_rank(LLAMA_8B, "fp8") == 65_536


def test_more_ranks_than_kv_heads_repeat_them() -> None:
    assert kv_bytes_per_token_and_rank(LLAMA_8B, "fp8", tp=8) == 65_536 // 8
    assert kv_bytes_per_token_and_rank(LLAMA_8B, "fp8", tp=16) == 65_536 // 8
    assert kv_bytes_per_token_and_rank(LLAMA_8B, "fp8", tp=2, pp=4) == 65_536 // 8


def test_quantised_weights_leave_embedding_and_head_in_16_bit() -> None:
    ends = 2 * 2 * 128256 * 4096
    body = count_parameters(LLAMA_8B) - ends // 2
    sizes = {
        precision: weight_bytes(LLAMA_8B, count_parameters(LLAMA_8B), runtime="tensorrt", precision=precision)
        for precision in ("bfloat16", "fp8", "int4")
    }
    assert sizes == {"bfloat16": 2 * body + ends, "fp8": body + ends, "int4": -(-body * 53 // 100) + ends}


def test_cpu_weights_are_one_byte_each_and_a_scale_for_each_row() -> None:
    size = weight_bytes(SMOLLM2, count_parameters(SMOLLM2), runtime="ctranslate2", precision="int8")
    assert 134_515_008 < size < 134_515_008 * 1.01


def test_the_parts_of_a_plan_add_up_and_the_pool_is_a_share_of_what_is_left() -> None:
    memory, tokens = plan_memory(a_load())
    left = memory.visible - memory.weights - memory.activations - memory.overhead
    assert memory.kv == int(left * 0.9)
    assert memory.total == memory.weights + memory.kv + memory.activations + memory.overhead
    assert tokens == memory.kv // (131_072 * 32) * 32


def test_a_model_larger_than_the_card_leaves_no_pool() -> None:
    memory, tokens = plan_memory(a_load(LLAMA_70B))
    assert (memory.kv, tokens) == (0, 0)


def test_the_cpu_pool_is_no_larger_than_the_limits_can_use() -> None:
    memory, tokens = plan_memory(
        a_load(SMOLLM2, runtime="ctranslate2", precision="int8", kv_dtype="float32", visible=1 << 50)
    )
    assert tokens == 64 * 4096
    assert memory.kv == 64 * 4096 * 2 * 30 * 3 * 64 * 4


@given(
    dtypes=st.permutations(sorted(KV_BYTES)),
    visible=st.integers(0, 1 << 44),
    tp=st.sampled_from([1, 2, 4, 8]),
    pp=st.sampled_from([1, 2, 4]),
)
def test_a_larger_kv_type_never_holds_more_tokens(dtypes: list[str], visible: int, tp: int, pp: int) -> None:
    small, large = sorted(dtypes[:2], key=KV_BYTES.__getitem__)
    held = [plan_memory(a_load(kv_dtype=dtype, visible=visible), tp=tp, pp=pp)[1] for dtype in (small, large)]
    assert held[0] >= held[1]
