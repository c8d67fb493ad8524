"""Our converter gives the engine that CTranslate2's stock converter gives: the same greedy token ids."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engineroom.checkpoint.shape import read_shape
from engineroom.checkpoint.weights import read_weights
from engineroom.engines import ctranslate2_llama
from engineroom.progress import QUIET

REFERENCE = Path(__file__).parent / "reference"

# CT2_FORCE_CPU_ISA is read when the library loads, so the ids come from a process of their own.
GENERATE = """
import ctranslate2, json, sys, tokenizers
job = json.load(sys.stdin)
tokenizer = tokenizers.Tokenizer.from_file(job["tokenizer"])
generator = ctranslate2.Generator(job["model"], device="cpu", compute_type=job["type"], intra_threads=1)
for prompt in job["prompts"]:
    tokens = tokenizer.encode(job["template"].format(prompt), add_special_tokens=False).tokens
    answer = generator.generate_batch([tokens], max_length=job["tokens"], include_prompt_in_result=False,
                                      sampling_topk=1, return_end_token=True)
    print(json.dumps(answer[0].sequences_ids[0]))
"""


@pytest.mark.parametrize("quantization", ["int8", "float32"])
def test_greedy_ids_equal_those_of_the_stock_converter(
    quantization: str, demo_checkpoint: Path, tmp_path: Path
) -> None:
    reference: dict[str, Any] = json.loads((REFERENCE / "smollm2.json").read_text(encoding="utf-8"))
    shape = read_shape(demo_checkpoint)
    ctranslate2_llama.convert(
        demo_checkpoint, shape, read_weights(demo_checkpoint), tmp_path, quantization=quantization, progress=QUIET
    )
    cases = reference["cases"][quantization]
    job = {
        "tokenizer": str(demo_checkpoint / "tokenizer.json"),
        "model": str(tmp_path),
        "type": quantization,
        "template": "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
        "tokens": reference["tokens"],
        "prompts": [case["prompt"] for case in cases],
    }
    run = subprocess.run(
        [sys.executable, "-c", GENERATE],
        input=json.dumps(job),
        env={"CT2_FORCE_CPU_ISA": reference["isa"]},
        capture_output=True,
        text=True,
        check=True,
    )
    ids = [json.loads(line) for line in run.stdout.splitlines()]

    assert ids == [case["ids"] for case in cases]
