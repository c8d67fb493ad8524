"""``serve`` and ``ask``: a real Triton on this machine, and a client that times it."""

import sys
from pathlib import Path

import click

from engineroom.cli.console import STDERR, ConsoleProgress, emit
from engineroom.cli.options import Finite, cache_folder, output_option
from engineroom.deploy.work import WORK, Work
from engineroom.errors import DocumentError, InputError
from engineroom.repository import record as build_record
from engineroom.repository.record import BuildRecord
from engineroom.serving.answer import Answer, Summary


@click.command("serve")
@click.argument("tree", required=False, type=click.Path(path_type=Path))
@click.option("--http-port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free one.")
@click.option("--grpc-port", type=click.IntRange(0, 65535), default=8001, show_default=True, help="0: any free one.")
@click.option("--metrics-port", type=click.IntRange(0, 65535), default=8002, show_default=True, help="0: any free one.")
@click.option(
    "--drain",
    type=click.IntRange(1, 86_400),
    default=30,
    show_default=True,
    help="Seconds that running answers have on exit.",
)
@click.option("--quiet", is_flag=True, help="Do not show the server's log.")
def serve_command(
    tree: Path | None, http_port: int, grpc_port: int, metrics_port: int, drain: int, quiet: bool
) -> None:
    """Run the Triton Inference Server on TREE, a pulled or assembled folder, on 127.0.0.1 until Ctrl-C.

    An installed tritonserver is used where there is one; else the one of the nvidia-pytriton wheel, in an
    environment of its own that is made once.

    \b
    Example:
      engineroom serve .engineroom/repository
    """  # noqa: D301
    from engineroom.serving.server import Ports, TritonServer, serve_forever

    def ready(server: TritonServer) -> None:
        ports = server.ports
        STDERR.print(
            f"ready: http 127.0.0.1:{ports.http}, grpc 127.0.0.1:{ports.grpc}, metrics 127.0.0.1:{ports.metrics}"
        )
        STDERR.print(f'try:   engineroom ask --port {ports.grpc} --chat "What is the capital of France?"')

    tree = tree or Work(Path(WORK)).tree
    # Before the server's environment is made, which takes half a minute the first time.
    BuildRecord.read(tree / build_record.FILE, made_by="engineroom assemble")
    sys.exit(
        serve_forever(
            tree,
            cache=cache_folder(),
            ports=Ports(http_port, grpc_port, metrics_port),
            drain_seconds=drain,
            log=None if quiet else lambda line: STDERR.print(line, markup=False, style="dim"),
            ready=ready,
            progress=ConsoleProgress(),
        )
    )


@click.command("ask")
@click.argument("prompt")
@click.option("--port", type=click.IntRange(1, 65535), help="Default: 8001 for gRPC, 8000 for HTTP.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where Triton listens.")
@click.option(
    "--protocol", type=click.Choice(["grpc", "http"]), default="grpc", show_default=True, help="http: /generate_stream."
)
@click.option("--chat", is_flag=True, help="Apply the model's chat template to the prompt.")
@click.option("--tree", type=click.Path(path_type=Path), help="The served folder: its build record has the template.")
@click.option("--model", help="Client model; default: the build record's.")
@click.option("--max-tokens", type=click.IntRange(1, 2**31 - 1), default=128, show_default=True, help="Of the answer.")
@click.option("--temperature", type=Finite(min=0), help="0 or unset: greedy.")
@click.option("--top-k", type=click.IntRange(0, 2**31 - 1), help="Choose among the K most probable; 0: all.")
@click.option("--top-p", type=Finite(0, 1), help="Choose among tokens of this total probability.")
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), help="Of the random choice; not with ctranslate2.")
@click.option("--stop", "stop_words", multiple=True, help="End the answer before this text; can be repeated.")
@click.option("--timeout", type=Finite(min=0.1), default=600, show_default=True, help="Seconds.")
@output_option
def ask_command(
    prompt: str,
    port: int | None,
    host: str,
    protocol: str,
    chat: bool,
    tree: Path | None,
    model: str | None,
    max_tokens: int,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
    stop_words: tuple[str, ...],
    timeout: float,
    output: str,
) -> None:
    """Send PROMPT to a served model, print the answer as it comes, and say how fast it came.

    \b
    Example:
      engineroom ask --chat "What is the capital of France?"
    """  # noqa: D301
    from engineroom.serving.answer import Prompt
    from engineroom.serving.chat import render_chat
    from engineroom.serving.client import ask
    from engineroom.serving.server import Address

    record = _record(tree or Work(Path(WORK)).tree, required=chat or model is None)
    text = render_chat(record, [{"role": "user", "content": prompt}]) if chat and record else prompt
    default = Address()
    address = Address(
        host,
        port if port and protocol == "http" else default.http,
        port if port and protocol == "grpc" else default.grpc,
    )
    answer = ask(
        address,
        model or (record.model.client_model if record else ""),
        Prompt(
            text,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop_words=stop_words,
            # A rendered template holds its special tokens as text already.
            add_special_tokens=False if chat else None,
        ),
        protocol="http" if protocol == "http" else "grpc",
        deadline_seconds=timeout,
    )
    show_answer(answer, output)


def show_answer(answer: Answer, output: str) -> None:
    """Print pieces as they come; the summary goes to standard error, or with the text into JSON."""
    with answer:
        for piece in answer:
            if output == "table":
                click.echo(piece.text, nl=False)
                sys.stdout.flush()
    if output == "table":
        click.echo()
        STDERR.print(words(answer.summary), style="dim")
    else:
        emit(output, {"text": answer.text, **answer.summary.as_dict()}, rows=[])


def words(summary: Summary) -> str:
    """A summary in one line."""

    def shown(value: float | None, scale: float, unit: str) -> str:
        return "–" if value is None else f"{value * scale:,.1f} {unit}"

    return (
        f"TTFT {shown(summary.ttft_seconds, 1000, 'ms')}, "
        f"ITL p50 {shown(summary.itl_p50_seconds, 1000, 'ms')} p99 {shown(summary.itl_p99_seconds, 1000, 'ms')}, "
        f"{shown(summary.tokens_per_second, 1, 'tokens/s')}, {summary.tokens} tokens in {summary.total_seconds:.2f} s"
    )


def _record(tree: Path, *, required: bool) -> BuildRecord | None:
    try:
        return BuildRecord.read(tree / build_record.FILE, made_by="engineroom assemble")
    except DocumentError as error:
        if required:
            raise InputError(
                error.found, where=error.where, fix="name the served folder with --tree, or the model with --model"
            ) from None
        return None
