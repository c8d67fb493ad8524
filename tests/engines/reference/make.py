"""Make ``smollm2.json``: what CTranslate2's stock converter makes of the demo model. Run once, by hand.

A digest of the weights that it writes, and for float32 the greedy token ids that they give. No ids for int8: its
kernels round differently from processor to processor (two builds of one model differed between Intel and AMD).

It needs torch and transformers, which engineroom does not:

    python -m venv ref && ref/bin/pip install torch==2.13.0 transformers==5.23.0 ctranslate2==4.8.5
    engineroom fetch --set model.source=demo://smollm2 --work /tmp/smollm2
    ref/bin/python tests/engines/reference/make.py /tmp/smollm2/checkpoint
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from model_bin import weights_digest

# Chooses the kernels, and so the rounding; pinned in the test too. Every x86-64 of the last ten years has it.
ISA = "AVX2"
PROMPTS = [
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "List three prime numbers and explain why 9 is not one.",
    "Übersetze: The weather is nice today. 🌞",
    "def fibonacci(n):",
]
TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
TOKENS = 48


def main() -> None:
    os.environ["CT2_FORCE_CPU_ISA"] = ISA
    checkpoint = Path(sys.argv[1])
    result: dict[str, Any] = {"isa": ISA, "tokens": TOKENS, "weights": {}, "cases": {}}
    for quantization in ("int8", "float32"):
        with tempfile.TemporaryDirectory() as folder:
            converter = Path(sys.executable).with_name("ct2-transformers-converter")
            command = [
                converter,
                "--model",
                checkpoint,
                "--output_dir",
                folder,
                "--quantization",
                quantization,
                "--force",
            ]
            subprocess.run(command, check=True)
            result["weights"][quantization] = weights_digest(Path(folder) / "model.bin")
            if quantization == "float32":
                result["cases"][quantization] = generate(Path(folder), checkpoint, quantization)
    Path(__file__).with_name("smollm2.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def generate(model: Path, checkpoint: Path, compute_type: str) -> list[dict[str, object]]:
    """Greedy ids at batch 1 on one thread for every prompt."""
    import ctranslate2
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    generator = ctranslate2.Generator(str(model), device="cpu", compute_type=compute_type, intra_threads=1)
    cases = []
    for prompt in PROMPTS:
        tokens = tokenizer.encode(TEMPLATE.format(prompt), add_special_tokens=False).tokens
        answer = generator.generate_batch(
            [tokens], max_length=TOKENS, include_prompt_in_result=False, sampling_topk=1, return_end_token=True
        )
        cases.append({"prompt": prompt, "ids": answer[0].sequences_ids[0]})
    return cases


if __name__ == "__main__":
    main()
