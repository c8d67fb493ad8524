"""What a deployment reaches at best, and at an offered rate: the batch sizes that fit, tried one after another."""

from dataclasses import dataclass, replace

from engineroom.planning.batching import Running, Workload, at_rate, run
from engineroom.planning.capacity import SMALL_TOKENS, most_requests
from engineroom.planning.estimator import Band, Deployment, Estimator, Step
from engineroom.planning.memory import Load
from engineroom.planning.sizing import FRONT_MS

#: Batch sizes that are tried, besides the largest that fits: smaller ones never do more.
BATCHES = (16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536)


@dataclass(frozen=True)
class Peak:
    """The most that a deployment gives: every slot taken, and always a prompt waiting."""

    batch: int
    """Requests in the batch at which it is reached."""
    max_num_tokens: int
    """Tokens in a step that the engine is built for."""
    state: Running
    band: Band
    source: str

    @property
    def tokens_per_second(self) -> float:
        """Of answers, over the whole replica."""
        return self.state.tokens_per_second


def peak(estimator: Estimator, deployment: Deployment, load: Load, work: Workload) -> Peak | None:
    """The maximum over batch sizes that fit, up to the limit of ``load``; None where not one request fits.

    Budgets of tokens in a step are tried too: that of ``load``, and smaller ones that leave more memory to the cache.
    """
    found: tuple[float, int, int, Running] | None = None
    fits = 0
    budget = load.limits.max_num_tokens
    for tokens in dict.fromkeys((budget, *(min(budget, small) for small in SMALL_TOKENS))):
        most = fitting(deployment, load, work, tokens)
        if found is not None and most <= fits * 1.02:
            continue  # a smaller step gains no room
        fits = max(fits, most)
        for batch in [size for size in BATCHES if size < most] + [most] * (most > 0):
            state = run(estimator, deployment, work, batch=batch, max_num_tokens=tokens)
            if found is None or state.tokens_per_second > found[0]:
                found = (state.tokens_per_second, batch, tokens, state)
    if found is None:
        return None
    _, batch, tokens, state = found
    return Peak(batch, tokens, state, estimator.band(deployment), estimator.source(deployment))


def fitting(deployment: Deployment, load: Load, work: Workload, max_num_tokens: int) -> int:
    """How many requests of this length fit at once, at most one a token of the step."""
    limits = load.limits.model_copy(update={"max_num_tokens": max_num_tokens})
    return most_requests(
        replace(load, limits=limits),
        tp=deployment.tp,
        pp=deployment.pp,
        tokens_each=work.input_tokens + work.output_tokens,
        most=min(load.limits.max_batch_size, max_num_tokens),
    )


@dataclass(frozen=True)
class Offered:
    """Latency at an offered rate."""

    ttft_ms: float
    itl_ms: float
    saturated: bool
    """More is offered than can be served: latency is that of a batch that arrives at once."""


def offered(estimator: Estimator, deployment: Deployment, work: Workload, peak: Peak, rate: float | None) -> Offered:
    """Mean TTFT and ITL at ``rate`` requests a second; None: unlimited.

    Without a limit, or beyond what can be served, latency depends on how many requests wait. What is given then is that
    of as many requests as the batch holds, all at once: prompts are read one after another while the answers before
    them already grow, and then all grow together.
    """
    if rate is not None:
        state = at_rate(estimator, deployment, work, rate=rate, most=peak.batch, max_num_tokens=peak.max_num_tokens)
        if state is not None:
            return Offered(FRONT_MS + state.ttft_ms, state.itl_ms, saturated=False)
    alone = estimator.step_ms(deployment, Step(0, 0, 1, work.input_tokens))
    together = max(1, peak.max_num_tokens // work.input_tokens)
    each = estimator.step_ms(deployment, Step(0, 0, together, work.input_tokens)) / together
    others = each * (peak.batch - 1) / 2
    context = work.input_tokens + work.output_tokens / 2
    together_ms = estimator.step_ms(deployment, Step(peak.batch, context))
    return Offered(FRONT_MS + alone + others, together_ms + others / max(1, work.output_tokens - 1), saturated=True)
