"""``init``: a commented recipe, with the runtime and precision that suit the GPU class."""

import json
from pathlib import Path

import click

from engineroom import gpus, recipe
from engineroom.artifacts.reference import Reference
from engineroom.checkpoint.source import parse_source
from engineroom.cli.options import complete_gpu
from engineroom.documents import write_atomic
from engineroom.errors import InputError, RecipeError, StoreError
from engineroom.gpus import GpuClass, Precision, Runtime

TEMPLATE = """\
# What to serve, on what, and for which traffic. `engineroom plan` checks it; `engineroom up` runs it.
# A flag overrides its key: engineroom plan --gpu l40s, or --set limits.max_batch_size=8.
schema: 1

model:
  source: {source}  # hf://org/name, demo://smollm2, or a folder with a Hugging Face checkpoint
{revision}
gpu: {gpu}  # `engineroom gpus` lists the classes

# {runtime_reason}
runtime: {runtime}  # {runtimes}
precision: {precision}  # of the weights: {precisions}

kv_cache:
  dtype: auto  # auto: fp8 with fp8 weights, else the type of the activations
  free_gpu_memory_fraction: 0.9  # of what is left after weights and buffers

parallelism:  # GPUs of one replica; auto: as few as fit
  tensor: auto
  pipeline: auto

limits:  # what one replica accepts; more of any of them takes memory from the KV cache
  max_batch_size: {batch}  # requests that generate at the same time
  max_input_len: {input_len}  # tokens of a prompt; a longer one is refused
  max_output_len: {output_len}  # tokens of an answer; prompt + answer must fit the model
  max_num_tokens: 8192  # packed tokens in one engine step

# What is expected and promised; read by the planner's estimates.
# traffic: {{requests_per_second: 5, input_tokens: 1000, output_tokens: 200}}
# slo: {{ttft_ms: 500, itl_ms: 50}}

{publish}
serve:
  threads: 0  # CPU threads of the engine (class cpu); 0: all
  max_queue_size: 256  # requests that may wait; one more is refused at once
"""


@click.command("init")
@click.option("--model", "source", required=True, help="hf://org/name[@revision], demo://smollm2 or a folder.")
@click.option("--gpu", required=True, shell_complete=complete_gpu, help="GPU class; `engineroom gpus` lists them.")
@click.option(
    "--runtime", type=click.Choice(["tensorrt", "pytorch", "ctranslate2"]), help="Default: what suits the class."
)
@click.option("--publish", "publish_to", metavar="REFERENCE", help="Where the artifact will go: s3://bucket/name:tag.")
@click.option(
    "--to",
    "path",
    type=click.Path(path_type=Path),
    default=recipe.DEFAULT_PATH,
    show_default=True,
    help="File to write.",
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def init_command(
    source: str, gpu: str, runtime: Runtime | None, publish_to: str | None, path: Path, force: bool
) -> None:
    """Write a commented recipe for a model and a GPU class, runtime and precision included.

    \b
    Example:
      engineroom init --model hf://meta-llama/Llama-3.1-8B-Instruct --gpu h100
    """  # noqa: D301
    parse_source(source)
    if publish_to:
        Reference.parse(publish_to)
    text = recipe_text(source, gpus.find(gpu), runtime, publish_to)
    recipe.parse(text, where=str(path))
    if path.exists() and not force:
        raise InputError("it is there already", where=str(path), fix="choose another place with --to, or give --force")
    try:
        write_atomic(path, text.encode())
    except OSError as error:
        raise StoreError(
            f"cannot write it ({error.strerror or error})", where=str(path), fix="choose another place with --to"
        ) from None
    click.echo(f"wrote {path}; next: engineroom up --local (on this machine), or fetch, plan, build, …", err=True)


def recipe_text(source: str, gpu: GpuClass, runtime: Runtime | None, publish_to: str | None = None) -> str:
    """The recipe as text."""
    chosen: Runtime = runtime or gpu.runtimes[0]
    reasons = {
        "tensorrt": "TensorRT-LLM 1.2.1's C++ backend on a built engine: the last stable release with engines.",
        "pytorch": "TensorRT-LLM's PyTorch backend: no engine, portable; experimental here until run in its image.",
        "ctranslate2": "CTranslate2: the CPU engine for laptops, CI and demos.",
    }
    small = gpu.is_cpu
    name, at, revision = source.partition("@") if source.startswith("hf://") else (source, "", "")
    # TensorRT-LLM's LLM API takes weights as they are stored.
    stored: list[Precision] = [each for each in gpu.precisions if each in ("bfloat16", "float16")]
    precisions = stored if chosen == "pytorch" else gpu.precisions
    return TEMPLATE.format(
        source=_scalar(name),
        revision=(
            f"  revision: {_scalar(revision)}  # a commit never changes; a branch is resolved when fetched\n"
            if at
            else "  # revision: main  # branch, tag or commit; resolved to a commit when fetched\n"
        ),
        gpu=gpu.name,
        runtime=chosen,
        runtime_reason=reasons[chosen],
        runtimes=" or ".join(gpu.runtimes),
        precision=best_precision(precisions),
        precisions=", ".join(precisions),
        batch=32 if small else 64,
        input_len=1024 if small else 3072,
        output_len=512 if small else 1024,
        publish=f"publish:\n  to: {_scalar(publish_to)}\n"
        if publish_to
        else "# publish:\n#   to: s3://models/NAME:v1  # tags never change; releases pin the digest\n",
    )


#: Types that checkpoints come in.
_STORED: tuple[Precision, ...] = ("bfloat16", "float16")


def best_precision(precisions: list[Precision]) -> Precision:
    """FP8 where it is offered: half the memory of bfloat16 and twice its arithmetic; int8 on a CPU."""
    order: tuple[Precision, ...] = ("fp8", "bfloat16", "float16", "int8")
    return next(precision for precision in order if precision in precisions)


def _scalar(text: str) -> str:
    """``text`` as YAML before a comment: plain where that means the same, else in quotes."""
    try:
        plain = recipe.read_yaml(f"key: {text}  # comment", where="") == {"key": text}
    except RecipeError:
        plain = False
    return text if plain else json.dumps(text, ensure_ascii=False)
