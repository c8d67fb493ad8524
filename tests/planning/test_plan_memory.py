"""The memory formulas against logged numbers, against published sizes, and against themselves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineroom.checkpoint.shape import ModelShape
from engineroom.gpus import GIB
from engineroom.planning.memory import (
    KV_BYTES,
    Load,
    kv_bytes_per_token_and_rank,
    kv_pool_tokens,
    plan_memory,
    weight_bytes,
)
from engineroom.planning.parameters import count_parameters
from engineroom.planning.plan import PlannedLimits


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
