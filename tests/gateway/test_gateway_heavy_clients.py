"""Clients that many people use and that are too heavy for every run: `make test-clients` installs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gateway_process import GatewayProcess

CLIENTS = os.environ.get("ENGINEROOM_TEST_CLIENTS")

pytestmark = [
    pytest.mark.local,
    pytest.mark.skipif(CLIENTS is None, reason="`make test-clients` runs these, with litellm and aiperf"),
]

LITELLM = """
import asyncio, json, sys
import litellm

asked = {
    "model": "openai/smollm2", "api_base": sys.argv[1], "api_key": "none", "temperature": 0,
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
}
whole = litellm.completion(**asked)
streamed = "".join(chunk.choices[0].delta.content or "" for chunk in litellm.completion(stream=True, **asked))

async def ask():
    stream = await litellm.acompletion(stream=True, stream_options={"include_usage": True}, **asked)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

text = litellm.text_completion(
    model="text-completion-openai/smollm2", api_base=sys.argv[1], api_key="none",
    prompt="The capital of France is", max_tokens=3, temperature=0,
)
print(json.dumps([whole.choices[0].message.content, streamed, asyncio.run(ask()), text.choices[0].text]))
"""


def test_litellm_asks_whole_and_streamed(demo: GatewayProcess) -> None:
    done = subprocess.run(
        [f"{CLIENTS}/python", "-c", LITELLM, f"{demo.url}/v1"],
        env=os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    *chats, text = json.loads(done.stdout.splitlines()[-1])
    assert chats == ["The capital of France is Paris."] * 3
    assert "Paris" in text


@pytest.mark.parametrize("load", [["--concurrency", "2"], ["--rate", "4"]])
def test_aiperf_makes_the_load_of_a_benchmark(demo: GatewayProcess, demo_tree: Path, load: list[str]) -> None:
    command = [
        sys.executable, "-m", "engineroom", "bench", demo.url, "--tool", "aiperf", "--model", "smollm2",
        "--tokenizer", str(demo_tree / "tokenizer"), "--requests", "6", "--input-tokens", "32", "--output-tokens", "8",
        "--slo-ttft-ms", "60000", "--output", "json", *load,
    ]  # fmt: skip
    done = subprocess.run(
        command, env=os.environ | {"PATH": f"{CLIENTS}:{os.environ['PATH']}"},
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["requests"] == {"sent": 6, "whole": 6, "errors": {}}
    assert report["tokens"]["output"] == 48
    assert report["ttft_ms"]["p99"] > 0
    assert report["slo"]["met"] is True
