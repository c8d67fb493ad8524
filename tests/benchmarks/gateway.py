"""The gateway against direct gRPC, on the same Triton in the same run; many streams at once; a drain under load.

    ci/bench gateway        # or: python tests/benchmarks/gateway.py [overhead] [streams] [drain] [--streams 1000]

Contestants alternate, so that a machine that is busy for a while is busy for both. ``overhead`` uses the demo model's
engine, and a token source in its place, which costs nothing and so leaves only the path to it; ``streams`` and
``drain`` use the token source alone (``tests/gateway/source_engine.py``), in a real Triton with the real one model.
"""

import argparse
import asyncio
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from engineroom import recipe
from engineroom.bench.arrivals import closed
from engineroom.bench.load import Run, generate
from engineroom.bench.report import Report
from engineroom.bench.targets import OpenAITarget, Shape, Target, TritonTarget
from engineroom.cli.console import ConsoleProgress
from engineroom.cli.options import cache_folder
from engineroom.deploy.pipeline import Pipeline
from engineroom.deploy.work import Work
from engineroom.repository import pbtxt
from engineroom.repository.record import MODEL_REPOSITORY
from engineroom.serving.server import TritonServer
from engineroom.serving.tree import find_program

SOURCE = Path(__file__).resolve().parents[1] / "gateway" / "source_engine.py"
SHAPE = Shape(endpoint="completions")


def demo_tree(work: Path) -> Path:
    """The demo model's tree."""
    made = recipe.parse(
        json.dumps(
            {
                "model": {"source": "demo://smollm2"},
                "gpu": "cpu",
                "runtime": "ctranslate2",
                "precision": "int8",
                "limits": {"max_batch_size": 32, "max_input_len": 512, "max_output_len": 512},
            }
        ),
        where="benchmark",
    )
    stages = Pipeline(made, Work(work), cache_folder(), ConsoleProgress())
    stages.fetch()
    stages.plan()
    stages.build()
    stages.assemble()
    return stages.work.tree


def source_tree(demo: Path, tree: Path, *, step_seconds: float, slots: int) -> Path:
    """The same tree with a token source for an engine."""
    shutil.copytree(demo, tree, ignore=shutil.ignore_patterns("engine"))
    (tree / "engine").mkdir()
    (tree / "engine" / "source.json").write_text(json.dumps({"step_seconds": step_seconds}))
    model = tree / MODEL_REPOSITORY / "tensorrt_llm"
    shutil.copyfile(SOURCE, model / "1" / "source_engine.py")
    config = pbtxt.from_text((model / "config.pbtxt").read_text())
    config.parameters["engine"].string_value = "source_engine"
    config.parameters["max_batch_size"].string_value = str(slots)
    (model / "config.pbtxt").write_text(pbtxt.to_text(config))
    return tree


@dataclass
class Served:
    """A Triton and a gateway before it."""

    grpc: str
    url: str
    gateway: "subprocess.Popen[bytes]"


@contextmanager
def served(tree: Path, *options: str) -> Iterator[Served]:
    """Both, on free ports."""
    program = find_program(cache_folder(), progress=ConsoleProgress())
    with TritonServer.of_tree(tree, program) as server, tempfile.TemporaryFile() as log:
        server.start()
        command = [
            sys.executable, "-m", "engineroom", "gateway", "--tree", str(tree), "--port", "0", "--metrics-port", "0",
            "--upstream", f"127.0.0.1:{server.ports.grpc}", "--accept-seconds", "0", *options,
        ]  # fmt: skip
        gateway = subprocess.Popen(command, stderr=subprocess.PIPE)
        try:
            assert gateway.stderr is not None
            port = json.loads(gateway.stderr.readline())["port"]
            # Its log must not fill the pipe.
            subprocess.Popen(["cat"], stdin=gateway.stderr, stdout=log)
            url = f"http://127.0.0.1:{port}"
            asyncio.run(ready(OpenAITarget(url, SHAPE)))
            yield Served(f"127.0.0.1:{server.ports.grpc}", url, gateway)
        finally:
            gateway.terminate()
            gateway.wait()


async def ready(target: OpenAITarget) -> None:
    """Wait until one request is answered."""
    for _ in range(200):
        run = await generate(target, closed(4, 1, 1), concurrency=1)
        if run.requests[0].error is None:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"not ready: {run.requests[0].error}")


def load(target: Target, clients: int, count: int, *, input_tokens: int, output_tokens: int) -> Run:
    """A closed loop, after one answer for each client: their connections are open then."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        arrivals = closed(input_tokens, output_tokens, count)
        return runner.run(generate(target, arrivals, concurrency=clients, warmup=clients))


def overhead(work: Path, demo: Path, rounds: int) -> None:
    """Added TTFT of one client, and throughput of several, as ratios."""
    trees = {
        "demo model, CTranslate2 int8": (demo, 32, 96, 64),
        "token source, 20 ms a token, 32 slots": (
            source_tree(demo, work / "paced", step_seconds=0.02, slots=32), 32, 96, 64
        ),
    }  # fmt: skip
    for name, (tree, clients, count, tokens) in trees.items():
        with served(tree) as both:
            targets = {
                "direct gRPC": lambda: TritonTarget(both.grpc, SHAPE),
                "gateway": lambda: OpenAITarget(both.url, SHAPE),
            }
            ttft: dict[str, list[float]] = {which: [] for which in targets}
            rates: dict[str, list[float]] = {which: [] for which in targets}
            for _ in range(rounds):
                for which, make in targets.items():
                    alone = load(make(), 1, 12, input_tokens=32, output_tokens=2)
                    ttft[which] += [sent.tokens_at[0] - sent.due for sent in alone.requests]
                    report = Report.of(load(make(), clients, count, input_tokens=32, output_tokens=tokens))
                    assert not report.errors, report.errors
                    assert report.output_tokens == count * tokens, "tokens were lost"
                    rates[which].append(report.output_tokens / report.seconds)
        print(f"\n{name}: {clients} clients, {tokens} tokens each; {rounds} rounds, contestants alternate")
        for which in targets:
            print(
                f"  {which:12} TTFT of one client p50 {statistics.median(ttft[which]) * 1000:7.2f} ms   "
                f"throughput {statistics.median(rates[which]):8.1f} tokens/s"
            )
        added = (statistics.median(ttft["gateway"]) - statistics.median(ttft["direct gRPC"])) * 1000
        ratio = statistics.median(rates["gateway"]) / statistics.median(rates["direct gRPC"])
        print(f"  added TTFT {added:.2f} ms (asked: < 5)   throughput ratio {ratio:.3f} (asked: ≥ 0.95)")


def streams(work: Path, demo: Path, count: int) -> None:
    """Many streams at once, each a token a second, and what one costs in memory while it idles."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    tree = source_tree(demo, work / "slow", step_seconds=1.0, slots=count)
    with served(tree, "--deadline-seconds", "600") as both:
        process = psutil.Process(both.gateway.pid)
        before, busy = process.memory_info().rss, process.cpu_times()
        peak = [0]

        async def run() -> Run:
            async def watch() -> None:
                while True:
                    peak[0] = max(peak[0], process.memory_info().rss)
                    await asyncio.sleep(0.5)

            watching = asyncio.create_task(watch())
            made = await generate(OpenAITarget(both.url, SHAPE), closed(32, 20, count), concurrency=count)
            watching.cancel()
            return made

        made = asyncio.run(run())
        report = Report.of(made)
        spent = sum(process.cpu_times()[:2]) - sum(busy[:2])
        tokens = report.output_tokens
        print(f"\n{count} streams at once, token source at 1 token/s each, {len(os.sched_getaffinity(0))} cores")
        print(f"  answered whole {report.whole} of {report.sent}, errors {dict(report.errors)}")
        print(f"  {tokens / report.seconds:,.0f} tokens/s; the gateway used {spent / tokens * 1e6:.0f} µs a token")
        print(f"  memory of the gateway {before >> 20} → {peak[0] >> 20} MiB: "
              f"{(peak[0] - before) / count / 1024:.1f} KiB a stream")  # fmt: skip
        for row in report.rows():
            print("  " + "  ".join(row))
        assert report.whole == count, report.errors
        assert tokens == count * 20, "tokens were lost"
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def drain(work: Path, demo: Path, clients: int) -> None:
    """SIGTERM in the middle of a load."""
    tree = source_tree(demo, work / "drain", step_seconds=0.02, slots=clients // 2)
    with served(tree, "--drain-seconds", "60", "--max-queued-requests", str(clients)) as both:

        async def run() -> tuple[Run, int, float]:
            async def stop() -> float:
                await asyncio.sleep(2)
                both.gateway.send_signal(signal.SIGTERM)
                return time.perf_counter()

            stopping = asyncio.create_task(stop())
            made = await generate(OpenAITarget(both.url, SHAPE), closed(32, 60, None), concurrency=clients, seconds=2.3)
            code = await asyncio.to_thread(both.gateway.wait)
            return made, code, await stopping

        made, code, told = asyncio.run(run())
        began: Counter[str] = Counter()
        for sent in made.requests:
            when = "taken before SIGTERM" if sent.sent < told else "sent after it"
            streaming = "streaming then" if sent.tokens_at and sent.tokens_at[0] < told < sent.ended else "waiting then"
            if sent.ended < told:
                streaming = "over by then"
            elif sent.sent >= told:
                streaming = ""
            began[f"{when}, {streaming}: {sent.error or 'answered whole'}"] += 1
        print(f"\nSIGTERM under load: {clients} clients, {clients // 2} slots, 60 tokens an answer; exit code {code}")
        for what, number in sorted(began.items()):
            print(f"  {number:5}  {what}")
        lost = [sent.error for sent in made.requests if sent.sent < told - 0.1 and sent.error]
        assert not lost, lost
        assert code == 0


def main() -> None:
    """Run what is asked for, by default all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="*", choices=["overhead", "streams", "drain", []], help="default: all")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    options: Any = parser.parse_args()
    wanted = options.what or ["overhead", "streams", "drain"]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        demo = demo_tree(work / "demo")
        if "overhead" in wanted:
            overhead(work, demo, options.rounds)
        if "streams" in wanted:
            streams(work, demo, options.streams)
        if "drain" in wanted:
            drain(work, demo, 64)


if __name__ == "__main__":
    main()
