"""``fetch``, ``plan``, ``build``, ``assemble``: the stages that work on the recipe's work folder."""

from pathlib import Path
from typing import Any

import click

from engineroom.cli.console import emit, gib
from engineroom.cli.options import Job, job, output_option, recipe_options
from engineroom.deploy.pipeline import Pipeline, builder_for
from engineroom.engines import retired_flags
from engineroom.planning.plan import Plan
from engineroom.planning.replica import parameters_source
from engineroom.repository.record import MOUNT


def pipeline(made: Job) -> Pipeline:
    """The stages of a job."""
    return Pipeline(made.recipe, made.work, made.cache, made.progress)


@click.command("fetch")
@recipe_options
@output_option
def fetch_command(
    recipe_path: Path | None, work: Path | None, settings: tuple[str, ...], output: str, **flags: Any
) -> None:
    """Bring the recipe's checkpoint here and write checkpoint.json.

    A branch or tag is resolved to a commit; only files that serve are fetched, in parallel, and a download that was
    cut off goes on where it was. HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are honoured.

    \b
    Example:
      engineroom fetch --model hf://meta-llama/Llama-3.1-8B-Instruct --gpu h100 --runtime tensorrt --precision fp8
    """  # noqa: D301
    fetched = pipeline(job(recipe_path, work, settings, flags)).fetch()
    record = fetched.record
    emit(
        output,
        record.model_dump(mode="json", by_alias=True) | {"folder": str(fetched.folder)},
        rows=[
            ("checkpoint", record.source),
            ("revision", record.revision),
            ("architecture", record.architecture),
            ("files", f"{len(record.files)}, {gib(sum(file.size for file in record.files))}"),
            ("digest", record.digest),
            ("folder", str(fetched.folder)),
        ],
    )


@click.command("plan")
@recipe_options
@output_option
def plan_command(
    recipe_path: Path | None, work: Path | None, settings: tuple[str, ...], output: str, **flags: Any
) -> None:
    """Plan one replica for the recipe's GPU class and write plan.json. Needs no GPU.

    \b
    Example:
      engineroom plan --gpu l40s --output json
    """  # noqa: D301
    stages = pipeline(job(recipe_path, work, settings, flags))
    plan = stages.plan()
    source = parameters_source(stages.work.checkpoint_record())
    emit(output, plan.model_dump(mode="json", by_alias=True), rows=plan_rows(plan, source))


def plan_rows(plan: Plan, parameters: str) -> list[tuple[str, str]]:
    """A plan for a person; ``parameters`` says where their number comes from."""
    memory, limits = plan.memory, plan.limits
    return [
        ("model", f"{plan.model.architecture}, {plan.parameters / 1e9:,.2f} B parameters from {parameters}"),
        ("on", f"{plan.gpu}, runtime {plan.runtime}, weights {plan.precision}, KV cache {plan.kv_dtype}"),
        ("parallelism", f"tensor {plan.tp} × pipeline {plan.pp} = {plan.world_size} GPU(s) a replica"),
        (
            "memory",
            f"{gib(memory.weights)} weights + {gib(memory.activations)} activations + {gib(memory.overhead)} overhead "
            f"+ {gib(memory.kv)} KV cache = {gib(memory.total)} of {gib(memory.visible)} visible",
        ),
        (
            "KV cache",
            f"{plan.kv_tokens:,} tokens ({plan.kv_bytes_per_token:,} bytes each): "
            f"{plan.kv_tokens // limits.max_seq_len:,} sequences of the full {limits.max_seq_len:,}",
        ),
        (
            "limits",
            f"batch {limits.max_batch_size}, prompt {limits.max_input_len:,}, answer {limits.max_output_len:,}, "
            f"step {limits.max_num_tokens:,} tokens",
        ),
        ("pod", f"{plan.pod.cpu} CPU, {gib(plan.pod.memory_bytes)} memory, {gib(plan.pod.ephemeral_bytes)} disk"),
    ]


@click.command("build", context_settings={"ignore_unknown_options": True})
@recipe_options
@click.option("--dry-run", is_flag=True, help="Print the commands as a script; a bare config.json is enough.")
@click.option(
    "--published", metavar="STORE/NAME", help="Take the engine from here where one with its key was published."
)
@output_option
@click.argument("extra", nargs=-1, type=click.UNPROCESSED)
def build_command(
    recipe_path: Path | None,
    work: Path | None,
    settings: tuple[str, ...],
    dry_run: bool,
    published: str | None,
    output: str,
    extra: tuple[str, ...],
    **flags: Any,
) -> None:
    """Build the engine of the plan, or find it in the cache by its engine key.

    When something is built, the reason says which input changed. Spellings of old TensorRT-LLM guides
    (build.py --use_gpt_attention_plugin …) are answered with today's.

    \b
    Example:
      engineroom build
      engineroom build --runtime tensorrt --gpu h100 --precision fp8 --model ./Llama-3.1-8B --dry-run > build.sh
    """  # noqa: D301
    retired_flags.refuse(extra)
    stages = pipeline(job(recipe_path, work, settings, flags))
    if dry_run:
        request = stages.sketch()
        click.echo(builder_for(request.recipe.runtime).script(request, output=Path(MOUNT) / "engine"), nl=False)
        return
    built = stages.build(published)
    stages.progress.say(f"engine {'found in the cache' if built.hit else 'built'}: {built.reason}")
    emit(
        output,
        {"key": built.engine.key, "folder": str(built.folder), "cached": built.hit, "reason": built.reason}
        | {"inputs": built.engine.inputs.model_dump(mode="json", by_alias=True)},
        rows=[
            ("engine key", built.engine.key),
            ("runtime", f"{built.engine.inputs.runtime} {built.engine.inputs.precision}"),
            ("size", gib(sum(file.size for file in built.engine.files))),
            ("cached", "yes" if built.hit else "no"),
            ("why", built.reason),
            ("folder", str(built.folder)),
        ],
    )


@click.command("assemble")
@recipe_options
@output_option
def assemble_command(
    recipe_path: Path | None, work: Path | None, settings: tuple[str, ...], output: str, **flags: Any
) -> None:
    """Lay out the Triton model repository with engine, tokenizer, preflight and build record.

    \b
    Example:
      engineroom assemble && ls .engineroom/repository/model_repository
    """  # noqa: D301
    stages = pipeline(job(recipe_path, work, settings, flags))
    record = stages.assemble()
    emit(
        output,
        record.model_dump(mode="json", by_alias=True),
        rows=[
            ("model repository", str(stages.work.tree)),
            ("client model", record.model.client_model),
            ("files", f"{len(record.files)}, {gib(sum(file.size for file in record.files))}"),
            ("engine key", record.key),
        ],
    )
