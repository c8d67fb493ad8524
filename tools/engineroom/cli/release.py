"""``values`` and ``up``: from a model repository to a release, and everything at once."""

import sys
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engineroom.cli.console import emit
from engineroom.cli.front_end import need_gateway
from engineroom.cli.local_server import show_answer
from engineroom.cli.options import cache_folder, job, output_option, recipe_options, traffic_options
from engineroom.cli.stages import pipeline
from engineroom.documents import write_atomic
from engineroom.errors import ArtifactNotFoundError, InputError, StoreError
from engineroom.serving.answer import Answer

if TYPE_CHECKING:
    from engineroom.deploy.up import Up
    from engineroom.gateway.settings import Settings


@click.command("values")
@click.argument("published", required=False, metavar="[REFERENCE]")
@recipe_options
@traffic_options
@click.option("--reference", metavar="REFERENCE", help="The artifact with its digest, as `publish` printed it.")
@click.option("--to", "path", type=click.Path(path_type=Path), help="File to write; default: standard output.")
def values_command(
    published: str | None,
    recipe_path: Path | None,
    work: Path | None,
    settings: tuple[str, ...],
    reference: str | None,
    path: Path | None,
    **flags: Any,
) -> None:
    """Write the Helm values that serve the assembled model, each with its reason.

    Without --reference, the tag of publish.to is looked up in its store and its digest is taken. With a REFERENCE alone
    everything comes from that artifact's build record, and neither recipe nor work folder is read: it is planned anew
    for --gpu, and with --traffic and --slo sized for them.

    \b
    Example:
      engineroom values --reference s3://models/llama@sha256:… --to values.yaml
      engineroom values s3://models/llama@sha256:… --gpu h100 --traffic 5,1000,200 --slo 500,50
      helm install llm charts/engineroom -f values.yaml
    """  # noqa: D301
    from engineroom.artifacts.reference import Reference
    from engineroom.artifacts.resolve import resolve
    from engineroom.artifacts.stores import open_store
    from engineroom.deploy.up import target_reference
    from engineroom.deploy.values import make_values

    if published is not None:
        text = _values_of(published, reference, recipe_path, work, settings, flags)
        _write_values(text, path)
        return
    made = job(recipe_path, work, settings, flags)
    stages = pipeline(made)
    record, plan = stages.assembled()
    if reference is None:
        named = Reference.parse(target_reference(stages, record))
        try:
            reference = str(resolve(named, store=open_store(named)).reference)
        except ArtifactNotFoundError as error:
            raise ArtifactNotFoundError(
                error.found,
                where=error.where,
                fix="run `engineroom publish` first, or give --reference",
            ) from None
    text = make_values(record, plan, made.recipe.gpu_class, reference=reference).to_yaml()
    _write_values(text, path)


def _values_of(
    published: str,
    reference: str | None,
    recipe_path: Path | None,
    work: Path | None,
    settings: tuple[str, ...],
    flags: dict[str, Any],
) -> str:
    """The values of an artifact from its own build record."""
    from engineroom.artifacts.reference import Reference
    from engineroom.artifacts.resolve import resolve
    from engineroom.artifacts.stores import open_store
    from engineroom.deploy.artifact_plan import class_of, plan_artifact
    from engineroom.deploy.values import make_values

    for name, value in (("--reference", reference), ("--recipe", recipe_path), ("--work", work), ("--set", settings)):
        if value:
            raise InputError(
                f"{name} is of a recipe, and the artifact {published[:80]} was named", fix=f"leave {name} or it out"
            )
    named = Reference.parse(published)
    artifact = resolve(named, store=open_store(named))
    gpu = class_of(artifact.record, flags.get("gpu"))
    plan = plan_artifact(artifact.record, gpu=gpu, model=flags.get("model"), flags=flags, cache=cache_folder())
    return make_values(artifact.record, plan, gpu, reference=str(artifact.reference)).to_yaml()


def _write_values(text: str, path: Path | None) -> None:
    if path is None:
        click.echo(text, nl=False)
        return
    try:
        write_atomic(path, text.encode())
    except OSError as error:
        raise StoreError(
            f"cannot write it ({error.strerror or error})", where=str(path), fix="choose another place with --to"
        ) from None
    click.echo(f"wrote {path}; next: helm install llm charts/engineroom -f {path}", err=True)


@click.command("up")
@click.argument("recipe_file", required=False, metavar="[RECIPE]", type=click.Path(path_type=Path))
@recipe_options
@click.option("--local", is_flag=True, help="Also serve here with a real Triton, ask, and stop.")
@click.option("--ask", "question", default="What is the capital of France?", show_default=True, help="What to ask.")
@click.option("--max-tokens", type=click.IntRange(1, 2**31 - 1), default=128, show_default=True, help="Of the answer.")
@click.option("--serve", is_flag=True, help="With --local: go on serving OpenAI's API until Ctrl-C.")
@click.option("--port", type=click.IntRange(0, 65535), default=9000, show_default=True, help="Of --serve; 0: any.")
@click.option("--metrics-port", type=click.IntRange(0, 65535), default=9002, show_default=True, help="Of --serve.")
@click.option("--helm", "helm_program", metavar="PROGRAM", help="Helm 3.19 or newer; default: the one that is found.")
@output_option
def up_command(
    recipe_file: Path | None,
    recipe_path: Path | None,
    work: Path | None,
    settings: tuple[str, ...],
    local: bool,
    question: str,
    max_tokens: int,
    serve: bool,
    port: int,
    metrics_port: int,
    helm_program: str | None,
    output: str,
    **flags: Any,
) -> None:
    """Run every stage: fetch, plan, build, assemble, publish, values, manifests.

    With --local the artifact is also pulled, served by a real Triton on this machine, and asked; then publish.to
    may be missing. With --serve it then goes on serving OpenAI's API, and says how to ask it. What is there already is
    not done again, and each stage says so.

    \b
    Example:
      engineroom up engineroom.yaml
      engineroom up --local --ask "What is the capital of France?"
      engineroom up --local --serve
    """  # noqa: D301
    from engineroom.deploy.up import Question, Up

    if serve and not local:
        raise InputError("a cluster serves by itself", where="up --serve", fix="give --local too")
    if recipe_file is not None and recipe_path is not None:
        raise InputError("two recipes are named", where="up", fix=f"leave out {recipe_file} or --recipe {recipe_path}")
    made = job(recipe_file or recipe_path, work, settings, flags)
    run = Up(pipeline(made))
    if serve:
        need_gateway("up --serve")
        from engineroom.gateway.server import check_ports
        from engineroom.gateway.settings import Settings

        endpoint = Settings(run.stages.work.served, port=port, metrics_port=metrics_port)
        check_ports(endpoint)
    if local:
        run.question = Question(question, max_tokens)
        if output == "table":

            def show(answer: Answer) -> None:
                click.echo(f"> {question}", err=True)
                show_answer(answer, "table")

            run.question.show = show
    with ExitStack() as kept:
        run.run(helm_program, keep=kept if serve else None)
        _show(run, output)
        if serve:
            sys.exit(_serve(run, endpoint, question))


def _show(run: "Up", output: str) -> None:
    emit(
        output,
        {"answer": run.answer or None, "reference": run.reference, "stages": [asdict(step) for step in run.steps]},
        header=("stage", "seconds", "cache", "result"),
        rows=[(step.stage, f"{step.seconds:.1f}", "hit" if step.cached else "", step.result) for step in run.steps],
        after=[("reference", run.reference)],
    )


def _serve(run: "Up", endpoint: "Settings", question: str) -> int:
    """OpenAI's API before the server that ``run`` kept, until SIGINT or SIGTERM; the exit code."""
    from engineroom.gateway import logs, server, snippets
    from engineroom.repository.record import FILE, BuildRecord

    triton = run.server
    assert triton is not None, "run was asked to keep it"
    record = BuildRecord.read(endpoint.tree / FILE, made_by="engineroom up --local")
    chat = record.model.chat_template is not None

    def ready(port: int, metrics_port: int) -> None:
        url = f"http://{endpoint.host}:{port}"
        click.echo(
            f"\nready: {url}/v1, metrics http://{endpoint.host}:{metrics_port}/metrics; Ctrl-C ends it", err=True
        )
        click.echo(f"\nWith curl:\n\n{snippets.curl(url, record.name, question, chat=chat)}", err=True)
        click.echo("\nWith Python (pip install openai):\n", err=True)
        click.echo(snippets.python(url, record.name, question, chat=chat), err=True)

    logs.set_up("warning")
    return server.run(
        replace(endpoint, upstream=f"{endpoint.host}:{triton.ports.grpc}"),
        ready=ready,
        trouble=lambda: None if triton.exit_code is None else triton.failure(),
    )
