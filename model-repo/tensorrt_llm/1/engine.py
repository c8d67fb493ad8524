"""What the model asks of an engine: token ids in, token ids out, as many requests at once as it can hold.

An engine is a module beside this one with a class ``Engine``; the parameter ``engine`` of config.pbtxt names it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


class RefusedError(Exception):
    """A request that this engine cannot run, in one sentence for the client."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The defaults are greedy: the most probable token."""

    temperature: float = 1.0
    top_k: int = 1
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None


@dataclass(frozen=True)
class Score:
    """How probable a token was: natural logarithms, after penalties, before temperature and top_p."""

    log_prob: float
    top: tuple[tuple[int, float], ...] = ()
    """Id and log probability of the most probable tokens in its place, the most probable first."""


class Emit(Protocol):
    """Takes what an engine has generated. Quick and from any thread; not called again after the last."""

    def __call__(self, generation: "Generation", ids: Sequence[int], last: bool, scores: Sequence[Score] = ()) -> None:
        """New ids, whether they are the last, and the score of each where ``log_probs`` asks for them."""


@dataclass(eq=False)
class Generation:
    """One request on its way through an engine."""

    prompt: list[int]
    max_tokens: int
    sampling: Sampling
    end_ids: frozenset[int]
    """Generation ends at one of these; the id itself is not handed on."""

    emit: Emit
    min_tokens: int = 0
    log_probs: bool = False
    """Whether scores are wanted."""
    top_log_probs: int = 0
    """How many of the most probable tokens each score names; only with engines whose model has this input."""
    cancelled: bool = False
    """Set from outside when nobody wants more tokens; the engine ends the request at its next step."""
    error: str | None = None
    """Set by the engine before the last ``emit`` when it failed."""
    generated: int = field(default=0)
    """Tokens handed on so far; the engine counts."""


@dataclass(frozen=True)
class Load:
    """What an engine has to do, for the gauges that autoscaling reads (design: Signals)."""

    waiting: int
    running: int
    slots: int
    queued_prompt_tokens: int
    kv_used_ratio: float


class Engine(Protocol):
    """Runs generations. Made with the engine's folder and the parameters of config.pbtxt."""

    def __init__(self, folder: str, parameters: dict[str, str]) -> None:
        """Load the engine in ``folder``."""

    def submit(self, generation: Generation) -> None:
        """Queue one request. Raises :class:`RefusedError` where this engine lacks an option that it asks for."""

    def load(self) -> Load:
        """How much waits and runs now; cheap."""

    def close(self) -> None:
        """End all requests and give back memory."""
