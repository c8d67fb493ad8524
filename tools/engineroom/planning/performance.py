"""The part of a plan that an estimator fills: speed, replicas for the traffic, the time to drain, the price."""

import math
from pathlib import Path

from engineroom.planning.batching import Workload, run
from engineroom.planning.cost import cost
from engineroom.planning.estimator import Deployment, Estimator, Step
from engineroom.planning.plan import Performance, Plan
from engineroom.planning.sizing import FRONT_MS, Sizing, profile, size
from engineroom.recipe import Recipe

#: Batches and contexts of the decode table; those beyond the limits are left out, and the limits themselves added.
BATCHES = (1, 4, 16, 64, 256, 1024)
CONTEXTS = (512, 2048, 8192, 32768)

#: Nobody waits longer for a pod to end: Kubernetes' own tools give up, and spot machines are gone by then.
MOST_DRAIN_SECONDS = 1800


def estimators(cache: Path | None) -> list[Estimator]:
    """All estimators, the best first. ``cache`` is the user's cache folder; None: keep nothing."""
    from engineroom.planning.aiconfigurator_estimator import MeasuredEstimator
    from engineroom.planning.roofline import RooflineEstimator

    return [MeasuredEstimator(cache), RooflineEstimator()]


def with_performance(plan: Plan, recipe: Recipe, available: list[Estimator]) -> Plan:
    """``plan`` with what the first estimator that can says; unchanged where none can (the class ``cpu``)."""
    gpu = recipe.gpu_class
    deployment = Deployment(plan.model, gpu, plan.precision, plan.kv_dtype, plan.tp, plan.pp, plan.ep)
    estimator = next((one for one in available if one.problem(deployment) is None), None)
    if estimator is None:
        return plan
    limits, traffic, band = plan.limits, recipe.traffic, estimator.band(deployment)
    work = Workload(limits.max_input_len, limits.max_output_len)
    if traffic:
        work = Workload(traffic.input_tokens, traffic.output_tokens)
    slots = max(1, min(limits.max_batch_size, plan.kv_tokens // (work.input_tokens + work.output_tokens)))
    found = profile(estimator, deployment, work, slots=slots, max_num_tokens=limits.max_num_tokens)
    full = run(estimator, deployment, work, batch=slots, max_num_tokens=limits.max_num_tokens)
    sizing: Sizing | None = None
    ttft, itl = FRONT_MS + full.ttft_ms, full.itl_ms
    if traffic and recipe.slo:
        sizing = size(
            found,
            rate=traffic.requests_per_second,
            ttft_ms=recipe.slo.ttft_ms,
            itl_ms=recipe.slo.itl_ms,
            low=band.low,
            high=band.high,
        )
        ttft, itl = sizing.ttft_ms, sizing.itl_ms
    prompts = max(1, limits.max_num_tokens // limits.max_input_len)
    prefill = estimator.step_ms(deployment, Step(0, 0, prompts, limits.max_input_len))
    price = cost(gpu, gpus=plan.world_size, tokens_per_second=None)
    performance = Performance(
        prefill_tokens_per_second=round(1000.0 * prompts * limits.max_input_len / prefill, 1),
        decode_ms=_decode_table(estimator, deployment, plan),
        ttft_ms=round(ttft, 2),
        itl_ms=round(itl, 3),
        tokens_per_second=round(full.tokens_per_second, 1),
        band=(band.low, band.high),
        source=f"{estimator.source(deployment)}; {band.why}",
        at=_load(recipe, sizing, slots),
        traffic=traffic,
        slo=recipe.slo,
        verdict=sizing.verdict if sizing else None,
        reason=sizing.reason if sizing else "",
    )
    drain = drain_seconds(estimator, deployment, plan, band.low)
    return plan.model_copy(
        update={
            "performance": performance,
            "replicas": sizing.replicas if sizing and sizing.replicas else plan.replicas,
            "pod": plan.pod.model_copy(update={"drain_seconds": drain}),
            "price": None if price is None else round(price.hour, 4),
        }
    )


def without_performance(plan: Plan) -> Plan:
    """``plan`` as it is before an estimator has seen it: what must be the same when it is made again."""
    pod = plan.pod.model_copy(update={"drain_seconds": None})
    return plan.model_copy(update={"performance": None, "price": None, "replicas": 1, "pod": pod})


def _load(recipe: Recipe, sizing: Sizing | None, slots: int) -> str:
    if sizing is None or recipe.traffic is None:
        return f"mean, with a full batch of {slots}"
    if not sizing.replicas:
        return "95th percentile of one request alone"
    rate = recipe.traffic.requests_per_second / max(1, sizing.replicas - 1)
    return f"95th percentile, {rate:g} requests/s a replica"


def drain_seconds(estimator: Estimator, deployment: Deployment, plan: Plan, low: float) -> int:
    """The longest answer at worst: TTFT and max_output_len tokens with a full batch, at the low end of the band.

    Full batch: as many requests of the full length as the KV cache holds; all of them are answered before a pod ends.
    """
    limits = plan.limits
    work = Workload(limits.max_input_len, limits.max_output_len)
    batch = max(1, min(limits.max_batch_size, plan.kv_tokens // limits.max_seq_len))
    state = run(estimator, deployment, work, batch=batch, max_num_tokens=limits.max_num_tokens)
    seconds = (FRONT_MS + state.ttft_ms + limits.max_output_len * state.itl_ms) / low / 1000
    return min(MOST_DRAIN_SECONDS, math.ceil(seconds))


def _decode_table(estimator: Estimator, deployment: Deployment, plan: Plan) -> list[tuple[int, int, float]]:
    limits = plan.limits
    batches = sorted({size for size in BATCHES if size < limits.max_batch_size} | {limits.max_batch_size})
    contexts = sorted({length for length in CONTEXTS if length < limits.max_seq_len} | {limits.max_seq_len})
    return [
        (batch, context, round(estimator.step_ms(deployment, Step(batch, context)), 4))
        for batch in batches
        for context in contexts
    ]
