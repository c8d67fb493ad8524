"""A prompt, the answer's pieces as they arrive, and what their times say."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True)
class Prompt:
    """What the client model is asked. Everything but text and length is optional, and left out where unset."""

    text: str
    max_tokens: int = 128
    stream: bool = True
    """Whether pieces are sent as they are made; otherwise the answer comes whole."""
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop_words: tuple[str, ...] = ()
    add_special_tokens: bool | None = None
    """False for a rendered chat template, which holds its special tokens already."""
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    min_tokens: int | None = None
    end_id: int | None = None
    """The only token that ends the answer; a negative one: none does, it goes on to max_tokens."""
    count_tokens: bool | None = None
    """Whether responses also carry the number of the answer's tokens so far."""
    count_prompt_tokens: bool | None = None
    """Whether responses also carry the number of the prompt's tokens: one more tensor in each."""

    finish_reason: bool | None = None
    """Whether the last response says why the answer ended."""
    log_probs: bool | None = None
    """Whether responses also carry the answer's token ids and the log probability of each."""
    top_log_probs: int | None = None
    """How many of the most probable tokens are told with each token, their ids and log probabilities."""

    def tensors(self) -> list[tuple[str, str, list[Any]]]:
        """Name, Triton datatype and values of each input that is set."""
        every: list[tuple[str, str, object]] = [
            ("text_input", "BYTES", self.text),
            ("max_tokens", "INT32", self.max_tokens),
            ("stream", "BOOL", self.stream),
            ("temperature", "FP32", self.temperature),
            ("top_k", "INT32", self.top_k),
            ("top_p", "FP32", self.top_p),
            ("seed", "UINT64", self.seed),
            ("stop_words", "BYTES", list(self.stop_words) or None),
            ("add_special_tokens", "BOOL", self.add_special_tokens),
            ("repetition_penalty", "FP32", self.repetition_penalty),
            ("presence_penalty", "FP32", self.presence_penalty),
            ("frequency_penalty", "FP32", self.frequency_penalty),
            ("min_tokens", "INT32", self.min_tokens),
            ("end_id", "INT32", self.end_id),
            ("return_num_input_tokens", "BOOL", self.count_prompt_tokens),
            ("return_num_output_tokens", "BOOL", self.count_tokens),
            ("return_finish_reason", "BOOL", self.finish_reason),
            ("return_log_probs", "BOOL", self.log_probs),
            ("top_log_probs", "INT32", self.top_log_probs),
        ]
        return [
            (name, datatype, value if isinstance(value, list) else [value])
            for name, datatype, value in every
            if value is not None
        ]


@dataclass(frozen=True)
class Piece:
    """Text that arrived at once: usually one token."""

    text: str
    seconds: float
    """Since the request was sent."""


@dataclass(frozen=True)
class Summary:
    """What a client saw. Times are None where too few pieces came to have them.

    A piece is a response with text. The model sends one per token, but tokens that end within a character
    wait for the rest of it, and tokens that wait may come together: ``tokens`` is then a little low.
    """

    tokens: int
    """Pieces of text."""
    ttft_seconds: float | None
    """Time to first token: from sending the request to the first piece."""
    itl_mean_seconds: float | None
    """Inter-token latency: between one piece and the next."""
    itl_p50_seconds: float | None
    itl_p99_seconds: float | None
    tokens_per_second: float | None
    """While the answer flows: pieces after the first by the time from the first to the last."""
    total_seconds: float
    """From sending the request to the end of the answer."""

    def as_dict(self) -> dict[str, float | int | None]:
        """For ``--output json``."""
        return asdict(self)


def summarise(pieces: Sequence[Piece], total_seconds: float) -> Summary:
    """The summary of an answer that took ``total_seconds`` in all."""
    gaps = sorted(late.seconds - early.seconds for early, late in pairwise(pieces))
    flow = pieces[-1].seconds - pieces[0].seconds if pieces else 0.0
    return Summary(
        tokens=len(pieces),
        ttft_seconds=pieces[0].seconds if pieces else None,
        itl_mean_seconds=sum(gaps) / len(gaps) if gaps else None,
        itl_p50_seconds=percentile(gaps, 50),
        itl_p99_seconds=percentile(gaps, 99),
        tokens_per_second=len(gaps) / flow if flow > 0 else None,
        total_seconds=total_seconds,
    )


def percentile(ordered: Sequence[float], percent: float) -> float | None:
    """Of values in ascending order, by linear interpolation between the two nearest ranks; None of nothing."""
    if not ordered:
        return None
    rank = (len(ordered) - 1) * percent / 100
    below = int(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (rank - below)


class Answer:
    """The pieces of an answer, to be iterated while they arrive; afterwards its text and summary.

    Leaving it early (break, Ctrl-C, :meth:`close`, the end of a ``with``) cancels the request in Triton.
    """

    def __init__(self, texts: Iterator[str], started: float) -> None:
        self._texts = texts
        self._started = started
        self._ended: float | None = None
        self.pieces: list[Piece] = []

    def __iter__(self) -> Iterator[Piece]:
        try:
            for text in self._texts:
                if text:
                    self.pieces.append(Piece(text, time.perf_counter() - self._started))
                    yield self.pieces[-1]
        finally:
            self.close()

    @property
    def text(self) -> str:
        """What has arrived so far."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def summary(self) -> Summary:
        """Of what has arrived so far."""
        return summarise(self.pieces, (self._ended or time.perf_counter()) - self._started)

    def close(self) -> None:
        """Cancel what has not arrived yet."""
        if self._ended is None:
            self._ended = time.perf_counter()
        close = getattr(self._texts, "close", None)
        if close:
            close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
