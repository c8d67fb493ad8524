"""Replicas for random arrivals."""

import random
import statistics

import pytest
from estimates import Straight, deployment
from hypothesis import given
from hypothesis import strategies as st

from engineroom.planning.batching import Workload
from engineroom.planning.sizing import FRONT_MS, Profile, poisson_quantile, profile, size

WORK = Workload(500, 100)


def profiled(slots: int = 64, base: float = 10.0, token: float = 0.01) -> Profile:
    return profile(Straight(base, token), deployment(), WORK, slots=slots, max_num_tokens=8192)


@given(mean=st.floats(1e-6, 2000))
def test_the_quantile_is_the_one_of_the_distribution(mean: float) -> None:
    scipy = pytest.importorskip("scipy.stats")

    assert abs(poisson_quantile(mean) - scipy.poisson.ppf(0.95, mean)) <= (0 if mean <= 500 else 2)


@given(rate=st.floats(0.1, 500), more=st.floats(1, 500))
def test_more_traffic_never_needs_fewer_replicas(rate: float, more: float) -> None:
    few, many = (size(profiled(), rate=each, ttft_ms=500, itl_ms=30, low=0.8, high=1.2) for each in (rate, rate + more))

    assert few.replicas <= many.replicas
    assert few.verdict == many.verdict == "feasible"


def test_one_replica_more_than_the_traffic_needs() -> None:
    assert size(profiled(), rate=0.01, ttft_ms=500, itl_ms=30, low=0.8, high=1.2).replicas == 2


def test_a_promise_kept_only_at_the_estimated_speed_is_uncertain() -> None:
    # Alone in the batch a step takes 10 ms; at 0.8 of the speed 12.5.
    certain = size(profiled(), rate=1, ttft_ms=500, itl_ms=13.5, low=0.8, high=1.2)
    uncertain = size(profiled(), rate=1, ttft_ms=500, itl_ms=11.5, low=0.8, high=1.2)
    missed = size(profiled(), rate=1, ttft_ms=500, itl_ms=8, low=0.8, high=1.2)

    assert [each.verdict for each in (certain, uncertain, missed)] == ["feasible", "uncertain", "missed"]
    assert "ITL" in uncertain.reason
    assert missed.replicas == 0


def test_a_long_prompt_breaks_the_first_token_s_promise_and_says_so() -> None:
    found = size(profiled(token=1.0), rate=1, ttft_ms=400, itl_ms=1000, low=0.8, high=1.2)

    assert found.verdict == "missed"
    assert "TTFT" in found.reason


@pytest.mark.parametrize("rate", [2.0, 8.0, 20.0])
def test_a_simulated_replica_keeps_the_promise_that_it_was_sized_for(rate: float) -> None:
    """Poisson arrivals through a step-by-step engine, at the load of one replica of the sizing."""
    promise = {"ttft_ms": 120.0, "itl_ms": 40.0}
    found = size(profiled(), rate=rate, low=1.0, high=1.0, **promise)
    assert found.verdict == "feasible"

    ttft, itl = simulate(rate / (found.replicas - 1), base=10.0, token=0.01, slots=64, requests=1500)

    assert quantile(ttft, 0.95) + FRONT_MS <= promise["ttft_ms"]
    assert quantile(itl, 0.95) <= promise["itl_ms"]


def simulate(rate: float, *, base: float, token: float, slots: int, requests: int) -> tuple[list[float], list[float]]:
    chance = random.Random(7)
    arrivals, now = [], 0.0
    for _ in range(requests):
        now += chance.expovariate(rate) * 1000
        arrivals.append(now)
    waiting, running, clock = list(reversed(arrivals)), [], 0.0
    ttft, itl = [], []
    while waiting or running:
        if not running and waiting[-1] > clock:
            clock = waiting[-1]
        joined = []
        while waiting and waiting[-1] <= clock and len(running) + len(joined) < slots:
            joined.append(waiting.pop())
        clock += base + token * (len(running) + WORK.input_tokens * len(joined))
        for request in running:
            request[2] -= 1
        for request in running:
            if request[2] == 0:
                itl.append((clock - request[1]) / (WORK.output_tokens - 1))
        running = [request for request in running if request[2] > 0]
        for arrival in joined:
            ttft.append(clock - arrival)
            running.append([arrival, clock, WORK.output_tokens - 1])
    return ttft, itl


def quantile(values: list[float], share: float) -> float:
    return statistics.quantiles(values, n=100)[round(share * 100) - 1]
