"""What a step computes adds up to the model."""

import pytest
from estimates import deployment
from hypothesis import given
from hypothesis import strategies as st

from engineroom.planning.known_models import find_shape, known_names
from engineroom.planning.operators import Experts, Gemm, rank_work
from engineroom.planning.parallelism import tensor_problem
from engineroom.planning.parameters import active_parameters, count_parameters, embedding_parameters


@pytest.mark.parametrize("name", known_names())
def test_the_operators_of_a_token_hold_the_weights_that_it_passes_through(name: str) -> None:
    shape = find_shape(name)
    work = rank_work(shape, "bfloat16", "bfloat16", 90)

    # Two operations for each weight and token; the embedding is looked up, the head is computed.
    flops = sum(operator.flops(1) for operator in (*work.tokens, work.logits))
    ends = embedding_parameters(shape) * (1 if shape.tie_embeddings else 2)
    expected = 2 * (active_parameters(shape) - ends + embedding_parameters(shape))

    assert flops == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "Mixtral-8x7B", "Qwen3-30B-A3B", "Phi-4"])
def test_a_full_step_reads_every_weight_once(name: str) -> None:
    shape = find_shape(name)
    work = rank_work(shape, "bfloat16", "bfloat16", 90)

    read = sum(
        operator.traffic(1e5) - (operator.traffic(2e5) - operator.traffic(1e5))
        for operator in (*work.tokens, work.logits)
        if isinstance(operator, (Gemm, Experts))
    )

    ends = embedding_parameters(shape) * (1 if shape.tie_embeddings else 2)
    assert read == pytest.approx(2 * (count_parameters(shape) - ends + embedding_parameters(shape)), rel=0.02)


@given(name=st.sampled_from(known_names()), tp=st.sampled_from([2, 4, 8]), tokens=st.integers(1, 8192))
def test_ranks_share_the_arithmetic(name: str, tp: int, tokens: int) -> None:
    shape = find_shape(name)
    if tensor_problem(shape, tp):
        return
    whole, split = (rank_work(shape, "bfloat16", "bfloat16", 90, tp=ranks) for ranks in (1, tp))

    one = sum(operator.flops(tokens) for operator in whole.tokens)
    each = sum(operator.flops(tokens) for operator in split.tokens)

    assert one / tp * 0.999 <= each <= one


def test_sliding_windows_bound_what_is_read() -> None:
    gemma = rank_work(find_shape("gemma-2-9b"), "bfloat16", "bfloat16", 90)
    windowed = next(attention for attention in gemma.attention if attention.window)
    whole = next(attention for attention in gemma.attention if not attention.window)

    assert windowed.decode_traffic(1, 8000) == windowed.decode_traffic(1, 4096)
    assert whole.decode_traffic(1, 8000) > 1.9 * whole.decode_traffic(1, 4096)


def test_latent_attention_reads_one_vector_for_all_heads() -> None:
    [attention] = deployment("deepseek-v3", "h200", tp=8).work.attention

    per_token = (attention.decode_traffic(1, 2000) - attention.decode_traffic(1, 1000)) / 1000

    assert per_token == 61 * (512 + 64)  # layers × (kv_lora_rank + qk_rope_head_dim) × one byte of fp8
