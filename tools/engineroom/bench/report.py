"""What a run says: percentiles, rates, errors, and whether objectives were met."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from engineroom.bench.load import Run
from engineroom.bench.targets import Sent
from engineroom.serving.answer import percentile

PERCENTILES = (50, 90, 95, 99)

#: Of a request's lateness. A generator that is later than this should be given more processor or less load.
LATE_SECONDS = 0.005


@dataclass(frozen=True)
class Spread:
    """Values of one measure over a run, in seconds or whatever it is measured in."""

    values: tuple[float, ...]
    """In ascending order."""

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of values in any order."""
        return cls(tuple(sorted(values)))

    def at(self, percent: float) -> float | None:
        """A percentile; None of nothing."""
        return percentile(self.values, percent)

    def as_dict(self, scale: float = 1.0) -> dict[str, float | int | None]:
        """Count, mean, percentiles and extremes."""
        found: dict[str, float | int | None] = {"count": len(self.values)}
        if self.values:
            ordered = {"mean": sum(self.values) / len(self.values), "min": self.values[0], "max": self.values[-1]}
            for percent in PERCENTILES:
                ordered[f"p{percent}"] = self.at(percent) or 0.0
            found |= {name: round(value * scale, 3) for name, value in ordered.items()}
        return found


@dataclass(frozen=True)
class Objective:
    """What was promised: a percentile of a measure, in milliseconds."""

    measure: str
    """``ttft``, ``itl`` or ``e2e``."""
    milliseconds: float
    percent: float = 99.0


@dataclass(frozen=True)
class Verdict:
    """One objective, and whether it was met."""

    objective: str
    found: str
    met: bool


class Percentiles(Protocol):
    """Figures of one measure."""

    def at(self, percent: float) -> float | None:
        """A percentile in seconds; None where it is not known."""

    def as_dict(self, scale: float = 1.0) -> dict[str, float | int | None]:
        """Count, mean, percentiles and extremes, in seconds times ``scale``."""


@dataclass(frozen=True)
class Report:
    """The figures of a run. Latencies count from the time at which a request was due."""

    sent: int
    whole: int
    """Requests that were answered whole; others are among the errors."""
    errors: Counter[str]
    seconds: float
    input_tokens: int
    output_tokens: int
    spreads: Mapping[str, Percentiles]
    """Of ``ttft``, ``itl`` and ``e2e``."""
    late: Percentiles | None
    """How late the generator itself was; None where it does not say."""

    @classmethod
    def of(cls, run: Run) -> "Report":
        """Of our own generator's run."""
        whole = [sent for sent in run.requests if sent.error is None]
        return cls(
            sent=len(run.requests),
            whole=len(whole),
            errors=Counter(sent.error for sent in run.requests if sent.error is not None),
            seconds=max(run.ended - run.began, 1e-9),
            input_tokens=sum(sent.input_tokens for sent in whole),
            output_tokens=sum(sent.output_tokens or len(sent.tokens_at) for sent in whole),
            spreads={
                "ttft": Spread.of([sent.tokens_at[0] - sent.due for sent in whole if sent.tokens_at]),
                "itl": Spread.of([gap for sent in whole for gap in _gaps(sent)]),
                "e2e": Spread.of([sent.ended - sent.due for sent in whole]),
            },
            late=Spread.of([sent.sent - sent.due for sent in run.requests]),
        )

    @property
    def is_late(self) -> bool:
        """Whether the generator itself could not keep up, so that the figures are partly its own."""
        return self.late is not None and (self.late.at(99) or 0.0) > LATE_SECONDS

    def verdicts(self, objectives: Sequence[Objective], most_errors: float) -> list[Verdict]:
        """How each objective fared, and the share of errors, which may be at most ``most_errors``."""
        made = []
        for each in objectives:
            found = self.spreads[each.measure].at(each.percent)
            name = f"{each.measure} p{each.percent:g} ≤ {each.milliseconds:g} ms"
            shown = "nothing was measured" if found is None else f"{found * 1000:,.1f} ms"
            made.append(Verdict(name, shown, found is not None and found * 1000 <= each.milliseconds))
        if objectives:
            share = (self.sent - self.whole) / self.sent if self.sent else 1.0
            made.append(Verdict(f"errors ≤ {most_errors:.2%}", f"{share:.2%}", share <= most_errors))
        return made

    def as_dict(self) -> dict[str, Any]:
        """For JSON: milliseconds, and rates per second."""
        return {
            "requests": {"sent": self.sent, "whole": self.whole, "errors": dict(self.errors)},
            "seconds": round(self.seconds, 3),
            "requests_per_second": round(self.whole / self.seconds, 3),
            "output_tokens_per_second": round(self.output_tokens / self.seconds, 3),
            "tokens": {"input": self.input_tokens, "output": self.output_tokens},
            **{f"{name}_ms": spread.as_dict(1000) for name, spread in self.spreads.items()},
            "generator_late_ms": self.late.as_dict(1000) if self.late else None,
        }

    def rows(self) -> list[tuple[str, ...]]:
        """The latencies for a table."""
        names = {"ttft": "TTFT", "itl": "ITL", "e2e": "end to end"}
        return [(f"{names[name]} ms", *_cells(spread)) for name, spread in self.spreads.items()]


HEADER = ("", "mean", *(f"p{percent}" for percent in PERCENTILES), "max")


def _cells(spread: Percentiles) -> list[str]:
    figures = spread.as_dict(1000)
    return [f"{figures[name]:,.1f}" if name in figures else "–" for name in HEADER[1:]]


def _gaps(sent: Sent) -> list[float]:
    return [late - early for early, late in pairwise(sent.tokens_at)]
