"""``values`` and ``up``: from a model repository to a release, and everything at once."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from engineroom.cli.console import emit
from engineroom.cli.local_server import show_answer
from engineroom.cli.options import job, output_option, recipe_options
from engineroom.cli.stages import pipeline
from engineroom.errors import InputError


@click.command("values")
@recipe_options
@click.option("--reference", metavar="REFERENCE", help="The artifact with its digest, as `publish` printed it.")
@click.option("--to", "path", type=click.Path(path_type=Path), help="File to write; default: standard output.")
def values_command(
    recipe_path: Path | None,
    work: Path | None,
    settings: tuple[str, ...],
    reference: str | None,
    path: Path | None,
    **flags: Any,
) -> None:
    """Write the Helm values that serve the assembled model, each with its reason.

    Without --reference, the tag of publish.to is looked up in its store and its digest is taken.

    \b
    Example:
      engineroom values --reference s3://models/llama@sha256:… --to values.yaml
      helm install llm charts/engineroom -f values.yaml
    """  # noqa: D301
    from engineroom.artifacts.reference import Reference
    from engineroom.artifacts.resolve import resolve
    from engineroom.artifacts.store import open_store
    from engineroom.deploy.local import local_reference
    from engineroom.deploy.values import make_values

    made = job(recipe_path, work, settings, flags)
    record = made.work.build_record()
    if reference is None:
        named = Reference.parse(local_reference(pipeline(made), record))
        reference = str(resolve(named, store=open_store(named)).reference)
    text = make_values(record, made.work.plan(), made.recipe.gpu_class, reference=reference).to_yaml()
    if path is None:
        click.echo(text, nl=False)
    else:
        made.work.save_text(path, text)
        click.echo(f"wrote {path}; next: helm install llm charts/engineroom -f {path}", err=True)


@click.command("up")
@recipe_options
@click.option("--local", is_flag=True, help="Serve on this machine with a real Triton, ask, stop.")
@click.option("--ask", "question", default="What is the capital of France?", show_default=True, help="What to ask.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--helm", "helm_program", metavar="PROGRAM", help="Helm 3.19 or newer; default: the one that is found.")
@output_option
def up_command(
    recipe_path: Path | None,
    work: Path | None,
    settings: tuple[str, ...],
    local: bool,
    question: str,
    max_tokens: int,
    helm_program: str | None,
    output: str,
    **flags: Any,
) -> None:
    """Run every stage: fetch, plan, build, assemble, publish, pull, serve, ask, values, manifests.

    What is there already is not done again, and each stage says so.

    \b
    Example:
      engineroom up --local --ask "What is the capital of France?"
    """  # noqa: D301
    from engineroom.deploy.local import LocalRun

    if not local:
        raise InputError("only the local run is here yet", where="up", fix="give --local")
    made = job(recipe_path, work, settings, flags)
    run = LocalRun(pipeline(made), question, max_tokens)
    if output == "table":
        click.echo(f"> {question}", err=True)
        run.show = lambda answer: show_answer(answer, "table")
    run.run(helm_program)
    emit(
        output,
        {"answer": run.answer, "reference": run.reference, "stages": [asdict(step) for step in run.steps]},
        header=("stage", "seconds", "cache", "result"),
        rows=[(step.stage, f"{step.seconds:.1f}", "hit" if step.cached else "", step.result) for step in run.steps],
    )
