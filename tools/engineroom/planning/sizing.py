"""How many replicas a traffic needs: not for the mean, but for 19 of 20 moments of random arrivals, and one to lose.

Requests arrive at random (a Poisson process) and are spread over replicas at random, so the number that a replica has
in its batch is a Poisson number too: with a mean of 16 it is above 23 in one moment of twenty. What is promised at the
95th percentile has to hold at that number. One replica more than the traffic needs is planned: one may be lost.
"""

import math
from dataclasses import dataclass
from typing import Literal

from engineroom.planning.batching import Workload
from engineroom.planning.estimator import Deployment, Estimator, Step

#: Share of moments and requests for which a promise holds.
PERCENTILE = 0.95

#: What Triton with its tokenising models adds to the first token, milliseconds: measured by this project on 2 cores
#: without a GPU, 5 to 6 with the BLS model in front of the engine, 3 to 4 with the one-process models.
FRONT_MS = 5.5

#: Replicas that may be lost at any time.
SPARE = 1

Verdict = Literal["feasible", "uncertain", "missed"]


@dataclass(frozen=True)
class Profile:
    """Steps of a replica at some batch sizes; between them it is read off straight lines."""

    work: Workload
    slots: int
    """Requests that fit into the batch."""
    sizes: tuple[int, ...]
    plain_ms: tuple[float, ...]
    """A step without a prompt."""
    mixed_ms: tuple[float, ...]
    """A step that also reads one prompt."""
    chunks: int
    """Steps that one prompt takes."""

    def plain(self, batch: float) -> float:
        """Milliseconds of a step without a prompt."""
        return _between(self.sizes, self.plain_ms, batch)

    def mixed(self, batch: float) -> float:
        """Milliseconds of a step with (a chunk of) a prompt."""
        return _between(self.sizes, self.mixed_ms, batch)

    def itl_ms(self, batch: float, speed: float = 1.0) -> float:
        """Mean time between tokens with ``batch`` answers growing and as many prompts coming as answers end."""
        plain = self.plain(batch)
        prompts = batch / self.work.output_tokens * self.chunks
        return (plain + prompts * (self.mixed(batch) - plain)) / speed

    def rate(self, batch: float, speed: float = 1.0) -> float:
        """Requests a second that keep ``batch`` of them in the batch (Little's law)."""
        return 1000.0 * batch / (self.itl_ms(batch, speed) * self.work.output_tokens)

    def ttft_ms(self, batch: float, prompts: float, speed: float = 1.0) -> float:
        """Time to the first token: all of the running step at worst, then ``prompts`` prompts, the own among them."""
        plain, mixed = self.plain(batch), self.mixed(batch)
        wait = mixed if prompts > 1 else plain
        return FRONT_MS + (wait + plain + prompts * self.chunks * (mixed - plain)) / speed


@dataclass(frozen=True)
class Sizing:
    """Replicas for a traffic, and what each then does."""

    verdict: Verdict
    reason: str
    """Why it is not feasible; empty where it is."""
    replicas: int
    """The spare ones included; 0 where no number would do."""
    batch: float
    """Mean number of requests in the batch of one replica."""
    rate: float
    """Requests a second that one replica may be given."""
    ttft_ms: float
    """95th percentile, at the estimated speed."""
    itl_ms: float


def profile(
    estimator: Estimator, deployment: Deployment, work: Workload, *, slots: int, max_num_tokens: int
) -> Profile:
    """Ask for the steps of a replica with ``slots`` requests at most."""
    sizes = tuple(sorted({size for size in (1, 8, 32, 128, 512) if size < slots} | {slots}))
    context = work.input_tokens + work.output_tokens / 2
    chunk = min(work.input_tokens, max(1, max_num_tokens - slots))
    plain = tuple(estimator.step_ms(deployment, Step(size, context)) for size in sizes)
    mixed = tuple(estimator.step_ms(deployment, Step(size, context, 1, chunk, work.input_tokens)) for size in sizes)
    return Profile(work, slots, sizes, plain, mixed, math.ceil(work.input_tokens / chunk))


def size(found: Profile, *, rate: float, ttft_ms: float, itl_ms: float, low: float, high: float) -> Sizing:
    """Replicas for ``rate`` requests a second under a promise; ``low`` and ``high`` are the band of the speed.

    Feasible: the promise is kept at the low end of the band. Uncertain: only at a faster one.
    """
    careful = _most(found, ttft_ms, itl_ms, low)
    if careful > 0:
        return _sized("feasible", "", found, careful, rate, low)
    expected = _most(found, ttft_ms, itl_ms, 1.0)
    if expected > 0:
        reason = (
            f"only if it is as fast as estimated: {_broken(found, ttft_ms, itl_ms, low)} at the low end of the band"
        )
        return _sized("uncertain", reason, found, expected, rate, 1.0)
    best = _most(found, ttft_ms, itl_ms, high)
    if best > 0:
        reason = f"only at the high end of the band: {_broken(found, ttft_ms, itl_ms, 1.0)} as estimated"
        return _sized("uncertain", reason, found, best, rate, high)
    return Sizing("missed", _broken(found, ttft_ms, itl_ms, high), 0, 0, 0, *_latency(found, 1e-9, 1.0))


def poisson_quantile(mean: float, share: float = PERCENTILE) -> int:
    """The smallest number that a Poisson number of this mean does not exceed with probability ``share``."""
    if mean > 500:  # the normal distribution, half a unit off at most
        return math.ceil(mean + 1.6449 * math.sqrt(mean))
    term = total = math.exp(-mean)
    number = 0
    while total < share and number < 10_000:
        number += 1
        term *= mean / number
        total += term
    return number


def _latency(found: Profile, batch: float, speed: float) -> tuple[float, float]:
    """TTFT and ITL at the 95th percentile with a mean of ``batch`` requests."""
    crowd = max(1, poisson_quantile(batch))
    step = found.itl_ms(batch, speed)
    others = poisson_quantile(found.rate(batch, speed) * step / 1000) if batch > 1e-6 else 0
    return found.ttft_ms(crowd, 1 + others, speed), found.itl_ms(crowd, speed)


def _keeps(found: Profile, batch: float, ttft_ms: float, itl_ms: float, speed: float) -> bool:
    if poisson_quantile(batch) > found.slots:
        return False
    ttft, itl = _latency(found, batch, speed)
    return ttft <= ttft_ms and itl <= itl_ms


def _most(found: Profile, ttft_ms: float, itl_ms: float, speed: float) -> float:
    """The largest mean number of requests in the batch that keeps the promise; 0 where none does."""
    low, high = 1e-3, float(found.slots)
    if not _keeps(found, low, ttft_ms, itl_ms, speed):
        return 0.0
    for _ in range(24):
        middle = (low + high) / 2
        if _keeps(found, middle, ttft_ms, itl_ms, speed):
            low = middle
        else:
            high = middle
        if high - low < 0.01 * low:
            break
    return low


def _broken(found: Profile, ttft_ms: float, itl_ms: float, speed: float) -> str:
    """What is not kept, with one request alone in the batch."""
    ttft, itl = _latency(found, 1e-9, speed)
    if itl > itl_ms:
        return f"ITL is {itl:,.1f} ms, over {itl_ms:g}"
    if ttft > ttft_ms:
        return f"TTFT is {ttft:,.0f} ms, over {ttft_ms:g}"
    return "two requests at once break the promise"


def _sized(verdict: Verdict, reason: str, found: Profile, batch: float, rate: float, speed: float) -> Sizing:
    each = found.rate(batch, speed)
    needed = max(1, math.ceil(rate / each))
    # Spread over the replicas that are needed, at the estimated speed.
    share = rate / needed
    mean = _batch_at(found, share)
    return Sizing(verdict, reason, needed + SPARE, mean, each, *_latency(found, mean, 1.0))


def _batch_at(found: Profile, rate: float) -> float:
    """The mean number of requests in the batch at ``rate`` requests a second."""
    low, high = 1e-6, float(found.slots)
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if found.rate(middle) < rate else (low, middle)
    return high


def _between(sizes: tuple[int, ...], values: tuple[float, ...], batch: float) -> float:
    if batch <= sizes[0] or len(sizes) == 1:
        return values[0]
    for index in range(1, len(sizes)):
        if batch <= sizes[index] or index == len(sizes) - 1:
            low, high = sizes[index - 1], sizes[index]
            return values[index - 1] + (values[index] - values[index - 1]) * (batch - low) / (high - low)
    raise AssertionError("unreachable")
