"""What answers prompts, seen from here: one Triton beside this process today, a choice among many later."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from engineroom.serving.answer import Prompt


@dataclass(frozen=True, slots=True)
class Scored:
    """A token of the answer, and how probable it was (natural logarithm)."""

    id: int
    log_prob: float
    top: tuple[tuple[int, float], ...] = ()
    """Id and log probability of the most probable tokens in its place, where they were asked for."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One response on the way to the whole answer."""

    text: str
    """May be empty, in the last one or where a token ends within a character."""
    output_tokens: int | None
    """Tokens of the answer so far; None where this response does not say."""
    input_tokens: int | None
    scored: tuple[Scored, ...] = ()
    """The tokens since the last response, where log probabilities were asked for."""
    finish: str | None = None
    """Why the answer ended, ``stop`` or ``length``, in the last one of models that know."""


class Upstream(Protocol):
    """Answers prompts. Not for use from two event loops."""

    @property
    def inputs(self) -> frozenset[str]:
        """Names of the tensors that the served model takes; empty until it has answered once."""

    @property
    def trouble(self) -> str | None:
        """Why it would not answer now, in a few words; None where it lately said that it would."""

    async def watch(self) -> None:
        """Keep ``inputs`` and ``trouble`` true until cancelled."""

    def generate(self, prompt: Prompt, request_id: str) -> AsyncGenerator[Reply]:
        """The answer, response by response. Closing the iterator (``aclose``) cancels the request upstream.

        Raises :class:`~engineroom.gateway.refusals.Refusal`, at first or in the middle.
        """

    async def close(self) -> None:
        """End all connections."""
