"""All configurations of a model: GPU classes × precisions × splits, sized for a traffic, ranked; the rest with why."""

import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engineroom import gpus
from engineroom.checkpoint.shape import ModelShape
from engineroom.errors import EngineroomError
from engineroom.gpus import GpuClass, Precision
from engineroom.planning.batching import Workload
from engineroom.planning.cost import Cost, cost
from engineroom.planning.estimator import Deployment, Estimator
from engineroom.planning.kv_cache import kv_dtype
from engineroom.planning.memory import WEIGHT_BYTES, Load, plan_memory
from engineroom.planning.parallelism import choose_experts, fills_nodes, fits, legal_splits
from engineroom.planning.plan import Memory
from engineroom.planning.replica import plan_limits
from engineroom.planning.sizing import Profile, Sizing, Verdict, profile, size
from engineroom.recipe import Recipe

#: Types that differ in nothing that matters here are searched once: float16 is bfloat16, int4 is int4_awq.
_SAME: dict[Precision, Precision] = {"float16": "bfloat16", "int4": "int4_awq"}

#: Splits larger than the smallest that fits are tried up to this many times its GPUs: beyond, replicas win.
MOST_GROWTH = 8


@dataclass(frozen=True)
class Candidate:
    """One configuration that fits, and what it does."""

    deployment: Deployment
    memory: Memory
    slots: int
    """Requests that fit into the batch of one replica."""
    verdict: Verdict
    reason: str
    """Why it is not feasible; empty where it is."""
    replicas: int
    """The spare one included; 0 where no number keeps the promise."""
    batch: float
    """Requests in the batch of one replica: the mean at the traffic; without one, where it gives most."""
    ttft_ms: float
    itl_ms: float
    tokens_per_second: float
    """Of answers: the traffic's, else the most that the replica gives."""
    band: tuple[float, float]
    source: str
    cost: Cost | None

    @property
    def gpus(self) -> int:
        """Of all replicas."""
        return self.replicas * self.deployment.world_size

    @property
    def tokens_per_second_and_gpu(self) -> float:
        """What it does with each GPU."""
        return self.tokens_per_second / max(1, self.gpus)

    @property
    def tokens_per_second_and_user(self) -> float:
        """How fast one answer grows."""
        return 1000.0 / self.itl_ms if self.itl_ms else 0.0


@dataclass(frozen=True)
class Failure:
    """A configuration, or all of a class and precision, that cannot be, and the one reason."""

    gpu: str
    precision: str
    split: str
    """``tensor × pipeline``; empty where none of them fits."""
    reason: str


@dataclass(frozen=True)
class Found:
    """All of a search, the best first."""

    candidates: list[Candidate]
    failures: list[Failure]
    ranked_by: str
    """``dollars`` where every candidate that counts has a price, else ``GPUs``."""


@dataclass(frozen=True)
class Question:
    """What is searched for."""

    shape: ModelShape
    parameters: int
    recipe: Recipe
    """Limits, traffic, promise and KV cache; its class, runtime and precision are placeholders."""
    classes: Sequence[GpuClass]
    precisions: Sequence[Precision] | None
    """None: all of each class."""


def search(question: Question, available: Sequence[Estimator]) -> Found:
    """Try everything. Raises RecipeError where limits contradict the model.

    Where measurements have to be read for the first time, which takes most of a first search, a second process reads
    half of them meanwhile.
    """
    plan_limits(question.recipe.limits, question.shape)
    theirs = _half(question.classes, available)
    if not theirs or not _is_alone():
        return _ranked(*_all_outcomes(question, question.classes, available))
    helper = multiprocessing.get_context("fork").Process(target=_read_ahead, args=(question, theirs, available))
    helper.start()
    candidates, failures = _all_outcomes(question, [gpu for gpu in question.classes if gpu not in theirs], available)
    helper.join()
    rest = _all_outcomes(question, theirs, available)
    return _ranked(candidates + rest[0], failures + rest[1])


def _half(classes: Sequence[GpuClass], available: Sequence[Estimator]) -> list[GpuClass]:
    """The classes that need every other one of the things to be read; none where there is little to read."""
    unread = {gpu.name: next(filter(None, (one.unread(gpu) for one in available)), None) for gpu in classes}
    things = list(dict.fromkeys(thing for thing in unread.values() if thing))
    return [gpu for gpu in classes if unread[gpu.name] in things[1::2]] if len(things) > 2 else []


def _is_alone() -> bool:
    """Whether this process has one thread: only such a one can be forked safely."""
    try:
        return sum(1 for _ in Path("/proc/self/task").iterdir()) == 1
    except OSError:
        return False


def _read_ahead(question: Question, classes: Sequence[GpuClass], available: Sequence[Estimator]) -> None:
    _all_outcomes(question, classes, available)
    for estimator in available:
        estimator.save()


def _all_outcomes(
    question: Question, classes: Sequence[GpuClass], available: Sequence[Estimator]
) -> tuple[list[Candidate], list[Failure]]:
    candidates: list[Candidate] = []
    failures: list[Failure] = []
    for gpu in classes:
        for precision in _precisions(gpu, question.precisions):
            try:
                for outcome in _outcomes(question, gpu, precision, available):
                    if isinstance(outcome, Candidate):
                        candidates.append(outcome)
                    else:
                        failures.append(outcome)
            except EngineroomError as error:
                failures.append(Failure(gpu.name, precision, "", str(error)))
    return candidates, failures


def _ranked(candidates: list[Candidate], failures: list[Failure]) -> Found:
    usable = [one for one in candidates if one.verdict != "missed"]
    by_price = bool(usable) and all(one.cost is not None for one in usable)
    candidates.sort(key=lambda one: _rank(one, by_price=by_price))
    return Found(candidates, failures, "dollars" if by_price else "GPUs")


def refused_classes() -> list[Failure]:
    """Classes that no runtime supports any more, with the reason."""
    return [Failure(name, "", "", reason) for name, reason in gpus.refused().items()]


def pareto(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that no other beats both in tokens a second and user and in tokens a second and GPU, the fastest first."""
    best, front = 0.0, []
    for one in sorted(candidates, key=lambda one: (-one.tokens_per_second_and_user, -one.tokens_per_second_and_gpu)):
        if one.tokens_per_second_and_gpu > best:
            best = one.tokens_per_second_and_gpu
            front.append(one)
    return front


def _precisions(gpu: GpuClass, asked: Sequence[Precision] | None) -> list[Precision]:
    offered = [one for one in gpu.precisions if asked is None or one in asked]
    if asked is not None:
        return offered
    return [one for one in offered if _SAME.get(one) not in offered]


def _outcomes(
    question: Question, gpu: GpuClass, precision: Precision, available: Sequence[Estimator]
) -> Iterator[Candidate | Failure]:
    recipe, shape = question.recipe, question.shape
    asked = recipe.model_copy(update={"gpu": gpu.name, "precision": precision, "runtime": gpu.runtimes[0]})
    if gpu.is_cpu:
        yield Failure(gpu.name, precision, "", "there is no estimate for processors; measure with `make bench`")
        return
    limits = plan_limits(recipe.limits, shape)
    load = Load(
        shape=shape,
        parameters=question.parameters,
        runtime=asked.runtime,
        precision=precision,
        kv_dtype=kv_dtype(asked, shape, gpu),
        limits=limits,
        fraction=recipe.kv_cache.free_gpu_memory_fraction,
        visible=gpu.visible_bytes,
    )
    smallest = 0
    for tp, pp in legal_splits(shape, gpu, runtime=load.runtime):
        if not fills_nodes((tp, pp), gpu) or (smallest and (tp * pp > smallest * MOST_GROWTH or pp > 1)):
            continue
        memory, kv_tokens = plan_memory(load, tp=tp, pp=pp)
        if not fits(load, memory, kv_tokens):
            last = (tp, pp, memory, kv_tokens)
            continue
        smallest = smallest or tp * pp
        deployment = Deployment(
            shape, gpu, precision, load.kv_dtype, tp, pp, choose_experts(shape, recipe.parallelism.expert, tp)
        )
        yield _judge(question, deployment, memory, kv_tokens, available)
    if not smallest:
        tp, pp, memory, kv_tokens = last
        yield Failure(gpu.name, precision, "", _too_small(load, tp * pp, memory, kv_tokens))


def _judge(
    question: Question, deployment: Deployment, memory: Memory, kv_tokens: int, available: Sequence[Estimator]
) -> Candidate | Failure:
    recipe = question.recipe
    limits, traffic = recipe.limits, recipe.traffic
    work = Workload(limits.max_input_len, limits.max_output_len)
    if traffic:
        work = Workload(traffic.input_tokens, traffic.output_tokens)
    slots = max(1, min(limits.max_batch_size, kv_tokens // (work.input_tokens + work.output_tokens)))
    problems = []
    for estimator in available:
        problem = estimator.problem(deployment)
        if problem is None:
            break
        problems.append(f"{estimator.name}: {problem}")
    else:
        split = f"{deployment.tp} × {deployment.pp}"
        return Failure(deployment.gpu.name, deployment.precision, split, "; ".join(problems))
    band = estimator.band(deployment)
    found = profile(estimator, deployment, work, slots=slots, max_num_tokens=limits.max_num_tokens)
    sizing, served = _size(recipe, found, band.low, band.high)
    gpu_count = sizing.replicas * deployment.world_size
    return Candidate(
        deployment=deployment,
        memory=memory,
        slots=slots,
        verdict=sizing.verdict,
        reason=sizing.reason,
        replicas=sizing.replicas,
        batch=sizing.batch,
        ttft_ms=sizing.ttft_ms,
        itl_ms=sizing.itl_ms,
        tokens_per_second=served,
        band=(band.low, band.high),
        source=estimator.source(deployment),
        cost=cost(deployment.gpu, gpus=gpu_count, tokens_per_second=served) if gpu_count else None,
    )


def _size(recipe: Recipe, found: Profile, low: float, high: float) -> tuple[Sizing, float]:
    """Sizing for traffic and promise, and the answers' tokens a second; without them one replica with a full batch."""
    traffic, slo = recipe.traffic, recipe.slo
    if traffic is None:
        rate = found.rate(found.slots)
        full = Sizing("feasible", "", 1, found.slots, rate, found.ttft_ms(found.slots, 1), found.itl_ms(found.slots))
        return full, rate * found.work.output_tokens
    sizing = size(
        found,
        rate=traffic.requests_per_second,
        ttft_ms=slo.ttft_ms if slo else float("inf"),
        itl_ms=slo.itl_ms if slo else float("inf"),
        low=low,
        high=high,
    )
    return sizing, traffic.requests_per_second * traffic.output_tokens if sizing.replicas else 0.0


def _rank(one: Candidate, *, by_price: bool) -> tuple[float, ...]:
    order = {"feasible": 0, "uncertain": 1, "missed": 2}[one.verdict]
    dollars = one.cost.hour / max(one.tokens_per_second, 1e-9) if by_price and one.cost else 0.0
    # Without a price: GPUs for the traffic; without a traffic that is one replica, so what each GPU gives.
    # Of equals the one that leaves the weights as they are, or nearly.
    kept = WEIGHT_BYTES[one.deployment.precision]
    return (order, dollars, -one.tokens_per_second_and_gpu, one.gpus, -kept, one.itl_ms)


def _too_small(load: Load, count: int, memory: Memory, kv_tokens: int) -> str:
    gib = 1 << 30
    fixed = memory.total - memory.kv
    if fixed >= memory.visible:
        return (
            f"weights and buffers need {fixed / gib:,.1f} GiB a GPU, and {memory.visible / gib:,.1f} are there, even"
            f" over {count} GPUs"
        )
    return (
        f"the KV cache over {count} GPUs holds {kv_tokens:,} tokens, fewer than one request of"
        f" {load.limits.max_seq_len:,}"
    )
