"""The interface of estimators: how long one engine step takes, how sure that is, and who says so."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from engineroom.checkpoint.shape import ModelShape
from engineroom.gpus import GpuClass, Precision
from engineroom.planning.operators import AllReduce, Attention, RankWork, TokenOperator, rank_work


@dataclass(frozen=True, eq=False)
class Deployment:
    """One replica: a model in a precision, split over GPUs of a class. Equal to itself only."""

    shape: ModelShape
    gpu: GpuClass
    precision: Precision
    kv_dtype: str
    """Key of :data:`~engineroom.planning.memory.KV_BYTES`."""
    tp: int = 1
    pp: int = 1
    ep: int = 1
    """Of the ``tp`` ranks, those that share out whole experts rather than split each."""

    @property
    def world_size(self) -> int:
        """GPUs of the replica."""
        return self.tp * self.pp

    @cached_property
    def work(self) -> RankWork:
        """The operators of one of its ranks."""
        sm = int(self.gpu.sm or 0)
        return rank_work(self.shape, self.precision, self.kv_dtype, sm, tp=self.tp, pp=self.pp, ep=self.ep)


@dataclass(frozen=True)
class Step:
    """What one engine step of a replica takes in."""

    sequences: float
    """Answers that grow by one token."""
    context: float
    """Their mean length, prompt included."""
    prompts: float = 0
    """Prompts, or chunks of one, that are read beside them."""
    prompt: float = 0
    """Tokens of each."""
    whole_prompt: float = 0
    """Tokens of the prompt that the chunk is a part of; 0: it is whole."""

    @property
    def tokens(self) -> float:
        """All tokens that pass through the layers."""
        return self.sequences + self.prompts * self.prompt


@dataclass(frozen=True)
class Band:
    """How far off an estimate may be: the truth lies between ``low`` × and ``high`` × the estimated speed."""

    low: float
    high: float
    why: str
    """What the width was taken from."""

    def wider(self, other: "Band") -> "Band":
        """What holds both, with the reason of the one that widened it last."""
        if other.low < self.low or other.high > self.high:
            return Band(min(self.low, other.low), max(self.high, other.high), other.why)
        return self


class OperatorTimes(Protocol):
    """How long operators take on one class of GPUs, milliseconds."""

    def token_ms(self, operator: TokenOperator, tokens: float) -> float:
        """An operator on ``tokens`` tokens."""

    def prefill_ms(self, attention: Attention, prompts: float, length: float) -> float:
        """Attention over whole prompts."""

    def decode_ms(self, attention: Attention, sequences: float, context: float) -> float:
        """Attention of one token of each sequence over its context."""

    def all_reduce_ms(self, operator: AllReduce, tokens: float) -> float:
        """The sum over ranks."""


class Estimator(Protocol):
    """Says how long one engine step of a deployment takes."""

    name: str

    def problem(self, deployment: Deployment) -> str | None:
        """Why it cannot say anything about this deployment; None where it can."""

    def step_ms(self, deployment: Deployment, step: Step) -> float:
        """Milliseconds from the start of a step to the start of the next."""

    def band(self, deployment: Deployment) -> Band:
        """How far off its speeds may be."""

    def source(self, deployment: Deployment) -> str:
        """Where its numbers come from, in a few words."""

    def unread(self, gpu: GpuClass) -> str | None:
        """What has to be read, slowly, for this class, and after a :meth:`save` never again; None: nothing."""

    def save(self) -> None:
        """Keep between runs what was expensive to find, where there is a cache."""


#: One message between neighbouring stages takes this long before its first byte, milliseconds (aiconfigurator 0.12.0,
#: systems/*.yaml, p2p_latency: 10 microseconds).
HOP_MS = 0.010


def step_ms(times: OperatorTimes, deployment: Deployment, step: Step) -> float:
    """Milliseconds of a step, from those of its operators, which run one after the other.

    With ``pp`` stages the batch is cut into as many parts, each a step of its own that passes through all stages:
    while one stage works on one part, the others work on the others.
    """
    work, parts = deployment.work, deployment.pp
    sequences, prompts = step.sequences / parts, step.prompts / parts
    tokens = max(1.0, step.tokens / parts)
    total = sum(times.token_ms(operator, tokens) for operator in work.tokens)
    total += times.token_ms(work.logits, max(1.0, sequences + prompts))
    whole = step.whole_prompt or step.prompt
    for attention in work.attention:
        if sequences > 0:
            total += times.decode_ms(attention, max(1.0, sequences), step.context)
        if prompts > 0 and step.prompt > 0:
            # A chunk costs its share of the whole prompt's attention.
            share = step.prompt / whole
            total += share * times.prefill_ms(attention, max(1.0, prompts), whole) * min(1.0, prompts)
    if work.all_reduce:
        total += times.all_reduce_ms(work.all_reduce, tokens)
    if work.hop_values:
        total += HOP_MS + tokens * 2 * work.hop_values / (_hop_gbs(deployment) * 1e6)
    return total * parts


def _hop_gbs(deployment: Deployment) -> float:
    """GB/s from one stage to the next: the node's link, or the network where the stages fill more than one node."""
    gpu = deployment.gpu
    inside = deployment.world_size <= gpu.gpus_per_node
    return (gpu.link_between(deployment.world_size)[1] if inside else gpu.node_gbs) or 1.0
