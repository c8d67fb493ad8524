"""In-flight batching in its steady state: what a replica reaches with steps of a known length.

A finished answer leaves the batch and a waiting prompt takes its place, so with ``D`` running answers of ``osl`` tokens
there come ``D / osl`` prompts to a step. A step therefore is not the same each time: only some carry a prompt. The
model averages over both kinds. Prompts go in whole where the step's token budget (``max_num_tokens``) has room, else
in chunks; where the budget cannot take prompts as fast as answers finish, fewer answers run than the batch allows.
"""

import math
from dataclasses import dataclass

from engineroom.planning.estimator import Deployment, Estimator, Step


@dataclass(frozen=True)
class Workload:
    """Requests, all alike: mean lengths stand for their distribution."""

    input_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Running:
    """A replica in its steady state."""

    batch: float
    """Requests in the batch: their prompt is being read, or their answer grows."""
    tokens_per_second: float
    """Of answers, over the whole replica."""
    itl_ms: float
    """Mean time between two tokens of an answer."""
    ttft_ms: float
    """Mean time to the first token, once there is a free slot: the rest of the running step, then the prompt."""
    decode_ms: float
    """A step without prompts."""

    @property
    def requests_per_second(self) -> float:
        """Answers finished, given their length; set by whoever knows it."""
        return 1000.0 * self.batch / self.itl_ms if self.itl_ms else 0.0


def run(estimator: Estimator, deployment: Deployment, work: Workload, *, batch: float, max_num_tokens: int) -> Running:
    """The steady state with ``batch`` requests in the batch and more waiting."""
    prompt, answer = work.input_tokens, work.output_tokens
    # Requests that start in one step: as many as end, and no more than the budget holds beside the running answers.
    starts = batch / answer
    if starts * (prompt + answer - 1) > max_num_tokens:
        starts = max_num_tokens / (prompt + answer - 1)
    running = starts * (answer - 1)
    return _average(estimator, deployment, work, starts, running, max_num_tokens)


def at_rate(
    estimator: Estimator, deployment: Deployment, work: Workload, *, rate: float, most: float, max_num_tokens: int
) -> Running | None:
    """The steady state at ``rate`` requests a second; None where more than ``most`` would have to run at once.

    Little's law: running answers = rate × time in the batch. The step's length depends on both, so the fixed point is
    searched; it is unique because a step grows more slowly than the batch.
    """
    low, high = 0.0, most

    def needed(batch: float) -> float:
        """Requests in the batch that arrive during the time that ``batch`` of them take."""
        state = _average(estimator, deployment, work, *_at(work, batch), max_num_tokens)
        return rate * (state.itl_ms * work.output_tokens) / 1000

    if needed(most) > most:
        return None
    for _ in range(40):
        middle = (low + high) / 2
        if needed(middle) > middle:
            low = middle
        else:
            high = middle
        if high - low < 1e-3 * high:
            break
    return _average(estimator, deployment, work, *_at(work, high), max_num_tokens)


def _at(work: Workload, batch: float) -> tuple[float, float]:
    starts = batch / work.output_tokens
    return starts, starts * (work.output_tokens - 1)


def _average(
    estimator: Estimator, deployment: Deployment, work: Workload, starts: float, running: float, max_num_tokens: int
) -> Running:
    prompt, answer = work.input_tokens, work.output_tokens
    context = prompt + answer / 2
    room = max(1.0, max_num_tokens - running)
    chunk = min(float(prompt), room)
    chunks = starts * prompt / chunk
    plain = estimator.step_ms(deployment, Step(running, context)) if running > 0 else 0.0
    beside = max(1.0, chunks)
    mixed = estimator.step_ms(deployment, Step(running, context, beside, chunk, prompt))
    share = min(1.0, chunks)
    mean = share * mixed + (1 - share) * plain
    # A prompt arrives in the middle of a step, more likely of a long one.
    busy = min(1.0, starts + running)
    square = share * mixed**2 + (1 - share) * plain**2
    wait = busy * square / (2 * mean) if mean else 0.0
    ttft = wait + math.ceil(prompt / chunk) * mixed
    batch = starts + running
    return Running(
        batch=batch,
        tokens_per_second=1000.0 * starts * answer / mean,
        itl_ms=mean,
        ttft_ms=ttft,
        decode_ms=plain or mixed,
    )
