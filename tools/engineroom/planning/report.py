"""The search as one HTML file without anything beside it: Pareto plot, a memory bar for each candidate, the rest."""

from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from engineroom.planning.search import Candidate, Found, Question, pareto

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 900, 420, 70, 50, 20, 20

#: Colours of GPU classes in the plot, told apart by people who see no red or green (Okabe and Ito), then repeated with
#: another shape.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c6d1f", "#555555")

PARTS = (("weights", "#0072b2"), ("activations", "#e69f00"), ("overhead", "#999999"), ("kv", "#009e73"))


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        """Where ``value`` stands, pixels."""
        from math import log

        share = log(max(value, self.low) / self.low) / log(self.high / self.low)
        return self.start + (self.end - self.start) * share

    def ticks(self) -> list[float]:
        """1, 2 and 5 times the powers of ten within."""
        marks, power = [], 10.0**-3
        while power <= self.high:
            marks += [step * power for step in (1, 2, 5) if self.low <= step * power <= self.high]
            power *= 10
        return marks


def report(question: Question, found: Found) -> str:
    """The page."""
    from jinja2 import Environment, StrictUndefined

    template = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["gib"] = lambda size: f"{size / (1 << 30):,.1f}"
    front = pareto([one for one in found.candidates if one.verdict != "missed"])
    classes = list(dict.fromkeys(one.deployment.gpu.name for one in found.candidates if one.verdict != "missed"))
    return environment.from_string(template).render(
        question=question,
        recipe=question.recipe,
        found=found,
        plot=_plot([one for one in found.candidates if one.verdict != "missed"], front, classes),
        classes=[(name, COLOURS[index % len(COLOURS)], index // len(COLOURS)) for index, name in enumerate(classes)],
        front={id(one) for one in front},
        most=max((one.memory.visible for one in found.candidates), default=1),
        parts=PARTS,
        identity=id,
        sources=list(dict.fromkeys((one.source, one.band) for one in found.candidates)),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=version("engineroom"),
    )


def _plot(candidates: list[Candidate], front: list[Candidate], classes: list[str]) -> dict[str, Any]:
    if not candidates:
        return {}
    xs = [one.tokens_per_second_and_user for one in candidates]
    ys = [one.tokens_per_second_and_gpu for one in candidates]
    x = Axis(min(xs) / 1.3, max(xs) * 1.3, LEFT, WIDTH - RIGHT)
    y = Axis(min(ys) / 1.5, max(ys) * 1.5, HEIGHT - BOTTOM, TOP)

    def at(one: Candidate) -> tuple[float, float]:
        return (
            round(x.place(one.tokens_per_second_and_user), 1),
            round(y.place(one.tokens_per_second_and_gpu), 1),
        )

    points = [
        {
            "x": at(one)[0],
            "y": at(one)[1],
            "colour": COLOURS[classes.index(one.deployment.gpu.name) % len(COLOURS)],
            "square": classes.index(one.deployment.gpu.name) >= len(COLOURS),
            "verdict": one.verdict,
            "title": title(one),
        }
        for one in candidates
    ]
    labels: list[tuple[float, float, str]] = []
    for one in front:
        left, top = at(one)
        if all(abs(left - x0) > 90 or abs(top - y0) > 16 for x0, y0, _ in labels):
            labels.append(
                (left, top, f"{one.deployment.gpu.name} {one.deployment.precision} ×{one.deployment.world_size}")
            )
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "bottom": HEIGHT - BOTTOM,
        "top": TOP,
        "points": points,
        "front": " ".join(f"{left},{top}" for left, top in map(at, front)),
        "labels": labels,
        "x_ticks": [(round(x.place(tick), 1), f"{tick:,g}") for tick in x.ticks()],
        "y_ticks": [(round(y.place(tick), 1), f"{tick:,g}") for tick in y.ticks()],
    }


def title(one: Candidate) -> str:
    """One candidate in a line."""
    deployment = one.deployment
    return (
        f"{deployment.gpu.name} {deployment.precision}, tensor {deployment.tp} × pipeline {deployment.pp},"
        f" {one.replicas} replica(s): {one.tokens_per_second_and_user:,.0f} tokens/s and user,"
        f" {one.tokens_per_second_and_gpu:,.0f} tokens/s and GPU; {one.verdict}"
    )
