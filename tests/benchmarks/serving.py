"""Serving through Triton against CTranslate2 called directly, on the demo model, in one run.

    make bench        # or: python tests/benchmarks/serving.py [--clients 32] [--rounds 3]

Prints ratios, because absolute figures are this machine's. Raw and served rounds alternate, so that a machine that
is busy for a while is busy for both.
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engineroom import gpus, recipe
from engineroom.cli.console import ConsoleProgress
from engineroom.cli.options import cache_folder
from engineroom.cli.recipe_file import recipe_text
from engineroom.deploy.pipeline import Pipeline
from engineroom.deploy.work import Work
from engineroom.serving.answer import percentile
from engineroom.serving.server import TritonServer
from engineroom.serving.tree import find_program

TOKENS = 64
TEXT = (
    "the cat sat on a mat and looked at seven red stars while an old king wrote letters to his distant "
    "brother about rivers mountains trade bread music history science"
)


def prompts(count: int, seed: int = 7) -> list[str]:
    """Chat prompts of 30 to 115 tokens, all different."""
    chance = random.Random(seed)
    return [
        "<|im_start|>user\nContinue this story at length: "
        + " ".join(chance.choice(TEXT.split()) for _ in range(chance.randint(10, 100)))
        + "<|im_end|>\n<|im_start|>assistant\n"
        for _ in range(count)
    ]


@dataclass
class Stream:
    """What one client saw."""

    ttft: float = 0.0
    tokens: int = 0
    gaps: list[float] = field(default_factory=list)


class Raw:
    """CTranslate2 without a server."""

    def __init__(self, tree: Path, *, inter: int, intra: int) -> None:
        import ctranslate2
        import tokenizers

        self._tokenizer = tokenizers.Tokenizer.from_file(str(tree / "tokenizer" / "tokenizer.json"))
        self._generator = ctranslate2.Generator(
            str(tree / "engine"), device="cpu", compute_type="int8", inter_threads=inter, intra_threads=intra
        )
        self.batch(prompts(2), tokens=4)

    def batch(self, texts: list[str], tokens: int = TOKENS) -> tuple[float, float]:
        """tokens/s of one ``generate_batch``, and seconds until its first token."""
        batch = [self._tokenizer.encode(text, add_special_tokens=False).tokens for text in texts]
        first: list[float] = []

        def step(_: Any) -> bool:
            if not first:
                first.append(time.perf_counter())
            return False

        start = time.perf_counter()
        results = self._generator.generate_batch(
            batch, max_length=tokens, min_length=tokens, include_prompt_in_result=False, callback=step
        )
        seconds = time.perf_counter() - start
        return sum(len(result.sequences_ids[0]) for result in results) / seconds, first[0] - start


async def stream(client: Any, text: str, tokens: int = TOKENS) -> Stream:
    """One streamed request."""
    import numpy as np
    from tritonclient.grpc.aio import InferInput

    inputs = []
    for name, datatype, value, kind in (
        ("text_input", "BYTES", text.encode(), np.object_),
        ("max_tokens", "INT32", tokens, np.int32),
        ("min_tokens", "INT32", tokens, np.int32),
        ("stream", "BOOL", True, np.bool_),
        ("add_special_tokens", "BOOL", False, np.bool_),
        ("return_num_output_tokens", "BOOL", True, np.bool_),
    ):
        inputs.append(InferInput(name, [1, 1], datatype).set_data_from_numpy(np.array([[value]], dtype=kind)))

    async def requests() -> Any:
        yield {"model_name": "tensorrt_llm", "inputs": inputs, "enable_empty_final_response": True}

    seen = Stream()
    start = last = time.perf_counter()
    async for result, error in client.stream_infer(requests()):
        if error:
            raise error
        now = time.perf_counter()
        count = result.as_numpy("num_output_tokens")
        if count is not None:
            seen.ttft = seen.ttft or now - start
            if seen.tokens:
                seen.gaps.append(now - last)
            seen.tokens, last = int(count.reshape(-1)[0]), now
        if result.get_response().parameters["triton_final_response"].bool_param:
            break
    return seen


async def closed_loop(address: str, texts: list[str]) -> tuple[float, list[Stream]]:
    """All prompts at once; tokens/s over all of them."""
    from tritonclient.grpc.aio import InferenceServerClient

    async with InferenceServerClient(address) as client:
        start = time.perf_counter()
        streams = await asyncio.gather(*(stream(client, text) for text in texts))
        seconds = time.perf_counter() - start
    return sum(seen.tokens for seen in streams) / seconds, streams


async def poisson(address: str, texts: list[str], rate: float, tokens: int) -> list[Stream]:
    """Requests that arrive at random at ``rate`` per second, whether or not the ones before are done."""
    from tritonclient.grpc.aio import InferenceServerClient

    chance, arrival, start = random.Random(11), 0.0, time.perf_counter()
    async with InferenceServerClient(address) as client:

        async def one(text: str, at: float) -> Stream:
            await asyncio.sleep(max(0.0, at - (time.perf_counter() - start)))
            return await stream(client, text, tokens)

        jobs = []
        for text in texts:
            arrival += chance.expovariate(rate)
            jobs.append(one(text, arrival))
        return list(await asyncio.gather(*jobs))


def assembled(work: Path) -> Path:
    """The demo model's tree."""
    text = recipe_text("demo://smollm2", gpus.find("cpu"), None)
    stages = Pipeline(recipe.parse(text, where="benchmark"), Work(work), cache_folder(), ConsoleProgress())
    stages.fetch()
    stages.plan()
    stages.build()
    stages.assemble()
    return stages.work.tree


def milliseconds(values: list[float]) -> str:
    """p50 and p99 of seconds."""
    ordered = sorted(values)
    p50, p99 = percentile(ordered, 50), percentile(ordered, 99)
    return f"p50 {(p50 or 0) * 1000:7.1f} ms   p99 {(p99 or 0) * 1000:7.1f} ms"


def main() -> None:
    """Run all three measurements."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--clients", type=int, default=32)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--rate", type=float, default=1.0, help="Poisson arrivals per second")
    options = arguments.parse_args()
    import os

    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        tree = assembled(Path(folder))
        program = find_program(cache_folder(), progress=ConsoleProgress())
        raw = Raw(tree, inter=1, intra=cores)
        texts = prompts(options.clients)
        with TritonServer.of_tree(tree, program) as server:
            server.start()
            address = f"127.0.0.1:{server.address.grpc}"
            asyncio.run(closed_loop(address, texts[:2]))  # warm
            raws, served, streams = [], [], []
            for _ in range(options.rounds):
                raws.append(raw.batch(texts)[0])
                rate, seen = asyncio.run(closed_loop(address, texts))
                served.append(rate)
                streams += seen
                assert all(each.tokens == TOKENS for each in seen), "a stream lost tokens"
            print(f"\n{options.clients} clients, different prompts, streamed, {TOKENS} tokens each, {cores} cores")
            print(f"  raw generate_batch  {statistics.median(raws):7.1f} tokens/s")
            print(f"  through Triton      {statistics.median(served):7.1f} tokens/s")
            print(f"  ratio               {statistics.median(served) / statistics.median(raws):7.2f}   (asked: ≥ 0.90)")
            print(f"  TTFT                {milliseconds([each.ttft for each in streams])}")
            print(f"  ITL                 {milliseconds([gap for each in streams for gap in each.gaps])}")

            alone, through, one = [], [], texts[0]
            same = Raw(tree, inter=4, intra=max(1, cores // 4))  # as the server's engine is made
            for _ in range(max(10, options.rounds * 5)):
                alone.append(same.batch([one], tokens=4)[1])
                through.append(asyncio.run(closed_loop(address, [one]))[1][0].ttft)
            print("\none client: time to first token")
            print(f"  raw                 {milliseconds(alone)}")
            print(f"  through Triton      {milliseconds(through)}")
            overhead = statistics.median(through) - statistics.median(alone)
            print(f"  added (medians)     {overhead * 1000:7.1f} ms   (asked: < 10 ms)")

            arrivals = asyncio.run(poisson(address, prompts(30, seed=3), options.rate, tokens=32))
            print(f"\nPoisson arrivals, {options.rate:g}/s, 30 requests of 32 tokens")
            print(f"  TTFT                {milliseconds([each.ttft for each in arrivals])}")
            print(f"  ITL                 {milliseconds([gap for each in arrivals for gap in each.gaps])}")


if __name__ == "__main__":
    main()
