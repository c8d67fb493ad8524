"""In-flight batching in its steady state, against arithmetic by hand."""

import pytest
from estimates import Straight, deployment
from hypothesis import given
from hypothesis import strategies as st

from engineroom.planning.batching import Workload, at_rate, run

H100 = deployment()


def test_answers_and_prompts_in_balance() -> None:
    # 100 requests of 200 tokens out: half a prompt of 1,000 tokens comes to each step.
    state = run(Straight(10, 0.01), H100, Workload(1000, 200), batch=100, max_num_tokens=8192)

    step = 10 + 0.01 * (0.5 * 199 + 0.5 * 1000)
    assert state.itl_ms == pytest.approx(step)
    assert state.tokens_per_second == pytest.approx(1000 * 0.5 * 200 / step)


def test_a_full_step_budget_limits_the_answers_that_run() -> None:
    state = run(Straight(), H100, Workload(1000, 100), batch=2000, max_num_tokens=8192)

    # Each request costs 1,099 tokens of steps over its life, and a step takes 8,192 of them.
    assert state.batch == pytest.approx(8192 / 1099 * 100, rel=1e-6)


def test_a_prompt_longer_than_a_step_goes_in_chunks() -> None:
    work = Workload(20_000, 100)

    state = run(Straight(), H100, work, batch=1, max_num_tokens=2048)

    assert state.ttft_ms == pytest.approx(10 * (10 + 0.01 * 2048), rel=0.1)


@given(low=st.integers(1, 500), more=st.integers(1, 500), prompt=st.integers(1, 4000), answer=st.integers(2, 2000))
def test_a_larger_batch_is_never_slower_in_all_nor_faster_for_one(
    low: int, more: int, prompt: int, answer: int
) -> None:
    small, large = (
        run(Straight(), H100, Workload(prompt, answer), batch=batch, max_num_tokens=8192) for batch in (low, low + more)
    )

    assert large.tokens_per_second >= small.tokens_per_second * 0.999999
    assert large.itl_ms >= small.itl_ms * 0.999999


@given(rate=st.floats(0.01, 50), prompt=st.integers(1, 3000), answer=st.integers(2, 1000))
def test_little_s_law_holds_at_a_rate(rate: float, prompt: int, answer: int) -> None:
    work = Workload(prompt, answer)
    state = at_rate(Straight(), H100, work, rate=rate, most=512, max_num_tokens=8192)

    if state is None:  # then even a full batch is too slow for the rate
        full = run(Straight(), H100, work, batch=512, max_num_tokens=10**9)
        assert full.tokens_per_second <= rate * answer * 1.01 + 1e-9
    else:
        assert state.batch == pytest.approx(rate * state.itl_ms * answer / 1000, rel=0.01)
