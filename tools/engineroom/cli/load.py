"""``bench``: load on a served model, and a verdict."""

import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engineroom.cli.console import STDERR, ConsoleProgress, emit
from engineroom.cli.options import Finite, output_option
from engineroom.errors import CheckFailedError, InputError, ServerError

if TYPE_CHECKING:
    from engineroom.bench.arrivals import Arrival
    from engineroom.bench.report import Report, Verdict
    from engineroom.bench.targets import Target


@click.command("bench")
@click.argument("url")
@click.option("--concurrency", type=click.IntRange(1), help="Closed loop: so many clients, each one request at a time.")
@click.option("--rate", type=Finite(min=0.001), help="Open loop: Poisson arrivals per second.")
@click.option("--trace", type=click.Path(path_type=Path), help="Open loop: times and lengths from a CSV file.")
@click.option("--speed", type=Finite(min=0.001), default=1, show_default=True, help="Play the trace so much faster.")
@click.option("--requests", "count", type=click.IntRange(1), help="Default: 100, or as many as fit --seconds.")
@click.option("--seconds", type=Finite(min=0.1), help="Send new requests for so long.")
@click.option("--input-tokens", type=click.IntRange(1), default=128, show_default=True, help="Of a prompt, about.")
@click.option("--output-tokens", type=click.IntRange(1), default=64, show_default=True, help="Of an answer.")
@click.option("--model", default="", help="Default: the first that the server lists.")
@click.option(
    "--endpoint", type=click.Choice(["chat", "completions"]), default="chat", show_default=True, help="OpenAI."
)
@click.option("--ignore-eos/--no-ignore-eos", default=True, show_default=True, help="Answers of exactly that length.")
@click.option("--temperature", type=Finite(0, 2), default=0, show_default=True, help="0: greedy.")
@click.option("--api-key", envvar="OPENAI_API_KEY", show_envvar=True, help="Sent as a bearer token.")
@click.option(
    "--warmup", type=click.IntRange(0), help="Requests before, not counted. Default: --concurrency; 1 in an open loop."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the arrival times.")
@click.option("--timeout", type=Finite(min=0.1), default=600, show_default=True, help="Seconds for an answer.")
@click.option("--slo-ttft-ms", type=Finite(min=0), help="Time to first token that is promised.")
@click.option("--slo-itl-ms", type=Finite(min=0), help="Inter-token latency that is promised.")
@click.option("--slo-e2e-ms", type=Finite(min=0), help="Time of a whole answer that is promised.")
@click.option("--slo-percentile", type=Finite(0, 100), default=99, show_default=True, help="At which they are held.")
@click.option("--slo-errors", type=Finite(0, 1), default=0, show_default=True, help="Share of errors that is allowed.")
@click.option("--plot", type=click.Path(path_type=Path), help="Also write a plot, as one HTML file.")
@click.option(
    "--tool", type=click.Choice(["engineroom", "aiperf"]), default="engineroom", show_default=True, help="Generator."
)
@click.option("--tokenizer", type=click.Path(path_type=Path), help="Folder of the tokenizer, for aiperf.")
@output_option
def bench_command(
    url: str, concurrency: int | None, rate: float | None, trace: Path | None, output: str, tool: str, **options: Any
) -> None:
    """Put URL under load and say what its clients saw: TTFT, ITL, whole answers, tokens/s, errors.

    URL is an OpenAI endpoint (http://…) or a Triton (grpc://HOST:PORT). In an open loop requests are sent at their
    times, however late answers are, and latencies count from then. Exit code 3: an objective (--slo-…) was missed.

    \b
    Example:
      engineroom bench http://127.0.0.1:9000 --concurrency 8 --requests 200
      engineroom bench http://127.0.0.1:9000 --rate 4 --seconds 60 --slo-ttft-ms 500 --slo-itl-ms 50 --plot run.html
      engineroom bench grpc://127.0.0.1:8001 --trace AzureLLMInferenceTrace_conv.csv --speed 2 --requests 500
    """  # noqa: D301
    if sum(mode is not None for mode in (concurrency, rate, trace)) > 1:
        raise InputError("only one of --concurrency, --rate and --trace can be given", where="bench")
    if concurrency is None and rate is None and trace is None:
        concurrency = 1
    if options["count"] is None and options["seconds"] is None:
        options["count"] = 100
    if options["warmup"] is None:
        # Each client has its connection then. Measured: 32 clients of which one had a connection reached the engine as
        # 1 and, 12 to 26 ms later, 31; with connections open as 32, in 10 to 14 ms like those of one gRPC connection.
        options["warmup"] = concurrency or 1
    from engineroom.bench.report import Objective

    objectives = [
        Objective(measure, options[f"slo_{measure}_ms"], options["slo_percentile"])
        for measure in ("ttft", "itl", "e2e")
        if options[f"slo_{measure}_ms"] is not None
    ]
    load = {"concurrency": concurrency, "rate": rate, "trace": str(trace) if trace else None}
    load |= {name: options[name] for name in ("count", "seconds", "input_tokens", "output_tokens")}
    if tool == "aiperf":
        report = _run_aiperf(url, concurrency, rate, trace, options)
    else:
        report = _run(url, concurrency, rate, trace, options)
    verdicts = report.verdicts(objectives, options["slo_errors"])
    _show(report, verdicts, output, {"url": url, "tool": tool, "load": load})
    missed = [verdict for verdict in verdicts if not verdict.met]
    if missed:
        raise CheckFailedError(
            "; ".join(f"{verdict.objective} was missed: {verdict.found}" for verdict in missed), where=url
        )
    if not report.whole:
        raise ServerError(f"none of {report.sent} requests was answered ({', '.join(report.errors)})", where=url)


def _run(
    url: str, concurrency: int | None, rate: float | None, trace: Path | None, options: dict[str, Any]
) -> "Report":
    import asyncio

    from engineroom.bench.load import generate
    from engineroom.bench.plot import write_plot
    from engineroom.bench.report import Report

    target = _target(url, options)
    arrivals = _arrivals(rate, trace, options)
    with (
        ConsoleProgress().task("requests", options["count"], unit="requests") as task,
        asyncio.Runner(loop_factory=_loop_factory()) as runner,
    ):
        run = runner.run(
            generate(
                target,
                arrivals,
                concurrency=concurrency,
                seconds=options["seconds"],
                warmup=options["warmup"],
                done=lambda: task.advance(1),
            )
        )
    report = Report.of(run)
    if options["plot"]:
        write_plot(options["plot"], run, report, f"engineroom bench {url}")
        STDERR.print(f"  plot: {options['plot']}", markup=False, soft_wrap=True)
    return report


def _run_aiperf(
    url: str, concurrency: int | None, rate: float | None, trace: Path | None, options: dict[str, Any]
) -> "Report":
    from engineroom.bench.aiperf import Load, profile
    from engineroom.bench.report import PERCENTILES
    from engineroom.bench.targets import Shape

    for found, fix in (
        ("aiperf does not read this trace" if trace else None, "use --rate or --concurrency"),
        ("aiperf's records are not read for a plot" if options["plot"] else None, "leave out --plot"),
        ("aiperf asks for a model by name" if not options["model"] else None, "give --model"),
        (
            "aiperf needs a tokenizer" if not options["tokenizer"] else None,
            "give --tokenizer .engineroom/served/tokenizer",
        ),
        ("aiperf has no client for Triton" if not url.startswith("http") else None, "name an OpenAI endpoint"),
        (
            f"aiperf reports no p{options['slo_percentile']:g}"
            if options["slo_percentile"] not in PERCENTILES
            else None,
            f"use one of {', '.join(str(percent) for percent in PERCENTILES)}",
        ),
    ):
        if found:
            raise InputError(found, where="bench --tool aiperf", fix=fix)
    shape = Shape(**{name: options[name] for name in ("model", "endpoint", "ignore_eos", "temperature", "timeout")})
    load = Load(
        concurrency,
        rate,
        options["count"],
        **{name: options[name] for name in ("seconds", "input_tokens", "output_tokens", "warmup", "seed")},
    )
    with ConsoleProgress().task("aiperf", None, unit=""):
        return profile(url, shape, load, options["tokenizer"], api_key=options["api_key"])


def _arrivals(rate: float | None, trace: Path | None, options: dict[str, Any]) -> "Iterator[Arrival]":
    from engineroom.bench import arrivals

    count, seconds = options["count"], options["seconds"]
    lengths = options["input_tokens"], options["output_tokens"]
    if trace is not None:
        return iter(list(arrivals.trace(trace, speed=options["speed"], count=count, seconds=seconds)))
    if rate is not None:
        return arrivals.poisson(rate, *lengths, count, seconds, options["seed"])
    return arrivals.closed(*lengths, count)


def _target(url: str, options: dict[str, Any]) -> "Target":
    try:
        from engineroom.bench.targets import OpenAITarget, Shape, TritonTarget

        shape = Shape(**{name: options[name] for name in ("model", "endpoint", "ignore_eos", "temperature", "timeout")})
        scheme, _, rest = url.partition("://")
        if scheme in ("http", "https") and rest:
            import aiohttp  # noqa: F401 - to say now what is missing

            return OpenAITarget(url, shape, api_key=options["api_key"])
        if scheme == "grpc" and rest:
            return TritonTarget(rest.rstrip("/"), shape)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed", where="engineroom bench", fix="pip install 'engineroom[bench]'"
        ) from None
    raise InputError(f"{url!r} is no address", where="URL", fix="write http://HOST:PORT or grpc://HOST:PORT")


def _loop_factory() -> Any:
    try:
        import uvloop
    except ModuleNotFoundError:
        return None
    return uvloop.new_event_loop


def _show(report: "Report", verdicts: "list[Verdict]", output: str, about: dict[str, Any]) -> None:
    from engineroom.bench.report import HEADER

    figures = report.as_dict()
    met = all(verdict.met for verdict in verdicts) if verdicts else None
    slo = {"met": met, "objectives": [asdict(verdict) for verdict in verdicts]}
    after = [
        ("requests", f"{report.whole} of {report.sent} answered whole in {report.seconds:.1f} s"),
        ("throughput", f"{figures['output_tokens_per_second']:,.1f} tokens/s, "
         f"{figures['requests_per_second']:,.2f} requests/s"),
        *(("errors", f"{count} × {error}") for error, count in report.errors.items()),
        *((("met  " if verdict.met else "MISSED"), f"{verdict.objective}: {verdict.found}") for verdict in verdicts),
    ]  # fmt: skip
    if report.late and report.is_late:
        late = report.late.as_dict(1000)
        after.append(("warning", f"the generator itself was late (p99 {late['p99']:.0f} ms): give it less load"))
    emit(output, about | figures | {"slo": slo}, header=HEADER, rows=report.rows(), after=after)
    sys.stdout.flush()
