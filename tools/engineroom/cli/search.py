"""``plan --gpu all``: every configuration, ranked; the helper of ``plan`` that looks at more than one class."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engineroom import gpus
from engineroom.cli.console import emit
from engineroom.cli.options import Job, job
from engineroom.errors import InputError
from engineroom.gpus import Precision

if TYPE_CHECKING:
    from engineroom.checkpoint.shape import ModelShape
    from engineroom.planning.search import Candidate, Found, Question

#: What stands in the recipe while all classes are searched: any class that has these will do.
PLACEHOLDERS = {"gpu": "h100", "runtime": "tensorrt", "precision": "bfloat16"}

HEADER = (
    "#", "GPU", "weights", "split", "replicas", "GPUs", "batch", "tok/s/GPU", "TTFT p95", "ITL p95", "$/h",
    "$/1M tokens", "verdict",
)  # fmt: skip


def search_classes(
    recipe_path: Path | None,
    work: Path | None,
    settings: tuple[str, ...],
    flags: dict[str, Any],
    *,
    output: str,
    report: Path | None,
    most: int = 20,
) -> None:
    """Search, print, and write the report. Raises InputError, RecipeError, CheckpointError."""
    asked, precision = str(flags["gpu"]), flags.get("precision")
    classes = [] if asked == "all" else [name.strip() for name in asked.split(",") if name.strip()]
    made = job(recipe_path, work, settings, flags | PLACEHOLDERS)
    from engineroom.planning.performance import estimators
    from engineroom.planning.search import Question, refused_classes, search

    shape, parameters = _model(made)
    chosen: list[Precision] | None = None if precision is None else [precision]
    names = classes or [name for name, gpu in gpus.catalogue().items() if not gpu.is_cpu]
    question = Question(shape, parameters, made.recipe, [gpus.find(name) for name in names], chosen)
    available = estimators(made.cache)
    found = search(question, available)
    for estimator in available:
        estimator.save()
    if not classes:
        found.failures.extend(refused_classes())
    if report is not None:
        from engineroom.planning.report import report as render

        made.work.save_text(report, render(question, found))
        made.progress.say(f"wrote {report}")
    shown = found.candidates[:most] if output == "table" else found.candidates
    emit(
        output,
        _as_data(question, found),
        header=HEADER,
        rows=[_row(number, one) for number, one in enumerate(shown, 1)],
    )
    if output == "table":
        _say_the_rest(made, found, len(shown))


def _model(made: Job) -> "tuple[ModelShape, int]":
    """Shape and number of weights, without the network: fetched already, a local folder or file, or known by name."""
    from engineroom.checkpoint.shape import read_shape
    from engineroom.checkpoint.source import HubSource, LocalSource, parse_source
    from engineroom.checkpoint.weights import read_weights
    from engineroom.errors import EngineroomError
    from engineroom.planning.known_models import find_shape
    from engineroom.planning.parameters import count_parameters

    text = made.recipe.model.source
    try:
        shape = find_shape(text.removeprefix("hf://").partition("@")[0])
        return shape, count_parameters(shape)
    except InputError as error:
        unknown = error
    try:
        source = parse_source(text, made.recipe.model.revision)
        if isinstance(source, LocalSource):
            return (shape := read_shape(source.folder)), count_parameters(shape)
        if made.work.requested() == str(source):
            folder = made.work.checkpoint
            return read_shape(folder), read_weights(folder).parameters
    except EngineroomError:
        raise unknown from None
    fix = "run `engineroom fetch` first" if isinstance(source, HubSource) else unknown.fix
    raise InputError(f"the sizes of {text[:80]} are not known here", where="model.source", fix=fix)


def _row(number: int, one: "Candidate") -> list[str]:
    deployment, cost = one.deployment, one.cost
    return [
        str(number),
        deployment.gpu.name,
        deployment.precision,
        f"{deployment.tp} × {deployment.pp}",
        str(one.replicas or "-"),
        str(one.gpus or "-"),
        f"{one.batch:,.0f}" if one.replicas else "-",
        f"{one.tokens_per_second_and_gpu:,.0f}" if one.replicas else "-",
        f"{one.ttft_ms:,.0f} ms",
        f"{one.itl_ms:,.1f} ms",
        f"{cost.hour:,.2f}" if cost else "-",
        f"{cost.million_tokens:,.2f}" if cost and cost.million_tokens else "-",
        one.verdict,
    ]


def _say_the_rest(made: Job, found: "Found", shown: int) -> None:
    if len(found.candidates) > shown:
        click.echo(f"… and {len(found.candidates) - shown} more: --output json, or --report FILE.html", err=True)
    by = "dollars a million tokens" if found.ranked_by == "dollars" else "GPUs, as not every class has a price"
    if made.recipe.traffic is None:
        by = "tokens a second and GPU of one full replica; give --traffic and --slo to size it"
    click.echo(f"ranked by {by}", err=True)
    told: set[tuple[str, str]] = set()
    for one in found.candidates:  # of a class and type the best split: the first
        which = one.deployment.gpu.name, str(one.deployment.precision)
        if one.verdict == "missed" and which not in told:
            click.echo(f"not {' '.join(which)} {one.deployment.tp} × {one.deployment.pp}: {one.reason}", err=True)
        told.add(which)
    for failure in found.failures:
        what = " ".join(part for part in (failure.gpu, failure.precision, failure.split) if part)
        click.echo(f"not {what}: {failure.reason}", err=True)


def _as_data(question: "Question", found: "Found") -> dict[str, Any]:
    from engineroom.planning.search import pareto

    front = {id(one) for one in pareto([one for one in found.candidates if one.verdict != "missed"])}
    recipe = question.recipe
    return {
        "model": question.shape.architecture,
        "parameters": question.parameters,
        "limits": recipe.limits.model_dump(),
        "traffic": recipe.traffic.model_dump() if recipe.traffic else None,
        "slo": recipe.slo.model_dump() if recipe.slo else None,
        "ranked_by": found.ranked_by,
        "configurations": [
            {
                "gpu": one.deployment.gpu.name,
                "precision": one.deployment.precision,
                "kv_dtype": one.deployment.kv_dtype,
                "tp": one.deployment.tp,
                "pp": one.deployment.pp,
                "replicas": one.replicas,
                "gpus": one.gpus,
                "slots": one.slots,
                "batch": round(one.batch, 1),
                "tokens_per_second": round(one.tokens_per_second, 1),
                "tokens_per_second_per_gpu": round(one.tokens_per_second_and_gpu, 1),
                "ttft_ms": round(one.ttft_ms, 1),
                "itl_ms": round(one.itl_ms, 2),
                "band": list(one.band),
                "source": one.source,
                "memory": one.memory.model_dump(),
                "cost": asdict(one.cost) if one.cost else None,
                "verdict": one.verdict,
                "reason": one.reason,
                "pareto": id(one) in front,
            }
            for one in found.candidates
        ],
        "failures": [asdict(one) for one in found.failures],
    }
