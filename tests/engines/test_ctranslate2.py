"""Our conversions compute what transformers computes, and hold the weights that the stock converter writes."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from model_bin import weights_digest

from engineroom.checkpoint.shape import parse_shape, read_shape
from engineroom.checkpoint.weights import read_weights
from engineroom.engines.ctranslate2_convert import FAMILIES, check_convertible, convert
from engineroom.errors import CheckpointError
from engineroom.progress import QUIET

REFERENCE = Path(__file__).parent / "reference"
SMOLLM2: dict[str, Any] = json.loads((REFERENCE / "smollm2.json").read_text(encoding="utf-8"))
TINY: dict[str, Any] = json.loads((REFERENCE / "families.json").read_text(encoding="utf-8"))
PUBLISHED: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent.parent / "planning" / "reference" / "configs.json").read_text(encoding="utf-8")
)

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


def converted(checkpoint: Path, output: Path, *, quantization: str = "float32") -> Path:
    output.mkdir(exist_ok=True)
    weights = read_weights(checkpoint)
    convert(checkpoint, read_shape(checkpoint), weights, output, quantization=quantization, progress=QUIET)
    return output


@pytest.fixture(scope="module")
def demo_engine(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The demo model, converted once for each quantisation."""
    return cache(
        lambda quantization: converted(
            demo_checkpoint, tmp_path_factory.mktemp("demo") / quantization, quantization=quantization
        )
    )


@pytest.mark.parametrize("quantization", ["int8", "float32"])
def test_the_weights_are_those_of_the_stock_converter(quantization: str, demo_checkpoint: Path, tmp_path: Path) -> None:
    ours = converted(demo_checkpoint, tmp_path / "engine", quantization=quantization)
    assert weights_digest(ours / "model.bin") == SMOLLM2["weights"][quantization]


def test_greedy_ids_equal_those_of_the_stock_converter(
    demo_checkpoint: Path, demo_engine: Callable[[str], Path]
) -> None:
    cases = SMOLLM2["cases"]["float32"]
    job = {
        "tokenizer": str(demo_checkpoint / "tokenizer.json"),
        "model": str(demo_engine("float32")),
        "type": "float32",
        "template": "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
        "tokens": SMOLLM2["tokens"],
        "prompts": [case["prompt"] for case in cases],
    }
    run = subprocess.run(
        [sys.executable, "-c", GENERATE],
        input=json.dumps(job),
        env={"CT2_FORCE_CPU_ISA": SMOLLM2["isa"]},
        capture_output=True,
        text=True,
        check=True,
    )
    ids = [json.loads(line) for line in run.stdout.splitlines()]

    assert ids == [case["ids"] for case in cases]


def logits_of(engine: Path, lengths: list[int], *, kind: str = "float32") -> Any:
    """Logits of the token after each of the first ``lengths`` tokens of the prompt."""
    import ctranslate2
    import numpy as np

    generator = ctranslate2.Generator(str(engine), device="cpu", compute_type=kind, intra_threads=1)
    tokens = [f"t{number}" for number in TINY["prompt"]]
    answers = [
        generator.generate_batch(
            [tokens[:length]], max_length=1, include_prompt_in_result=False, end_token=[], return_logits_vocab=True
        )
        for length in lengths
    ]
    return np.array([np.array(answer[0].logits[0][0]) for answer in answers])


def greedy_of(engine: Path, count: int) -> list[int]:
    import ctranslate2

    generator = ctranslate2.Generator(str(engine), device="cpu", compute_type="float32", intra_threads=1)
    tokens = [f"t{number}" for number in TINY["prompt"]]
    answer = generator.generate_batch([tokens], max_length=count, include_prompt_in_result=False, end_token=[])
    return list(answer[0].sequences_ids[0])


def within_window(name: str) -> int:
    """How many of the reference's positions CTranslate2 is exact for: all, or those that the window shows whole."""
    window = tiny_models.config(name).get("sliding_window")
    return sum(window is None or position < window for position in TINY["positions"])


@pytest.mark.parametrize("name", tiny_models.CONFIGS)
def test_a_model_of_each_family_computes_what_transformers_computes(name: str, tmp_path: Path) -> None:
    import numpy as np

    engine = converted(tiny_models.write(name, tmp_path / "checkpoint"), tmp_path / "engine")
    count, expected = within_window(name), TINY["models"][name]
    assert count >= 2
    lengths = [position + 1 for position in TINY["positions"][:count]]
    np.testing.assert_allclose(logits_of(engine, lengths), expected["logits"][:count], rtol=0, atol=1e-4)
    if count == len(TINY["positions"]):
        assert greedy_of(engine, len(expected["greedy"])) == expected["greedy"]


@pytest.mark.parametrize("name", tiny_models.CONFIGS)
def test_int8_computes_nearly_the_same(name: str, tmp_path: Path) -> None:
    import numpy as np

    engine = converted(tiny_models.write(name, tmp_path / "checkpoint"), tmp_path / "engine", quantization="int8")
    count, expected = within_window(name), np.array(TINY["models"][name]["logits"])
    found = logits_of(engine, [position + 1 for position in TINY["positions"][:count]], kind="int8")
    for ours, theirs in zip(found, expected[:count], strict=True):
        assert np.corrcoef(ours, theirs)[0, 1] > 0.98


def test_the_reference_has_a_model_of_each_family() -> None:
    assert {tiny_models.config(name)["model_type"].removesuffix("_text") for name in TINY["models"]} == set(FAMILIES)
    assert set(TINY["models"]) == set(tiny_models.CONFIGS)


def test_equal_tensors_of_a_layer_do_no_harm(tmp_path: Path) -> None:
    """Norms of ones, as fresh models have them: an alias inside a layer would name a tensor that is not there."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    checkpoint = tiny_models.write("qwen3", tmp_path / "checkpoint")
    tensors = load_file(checkpoint / "model.safetensors")
    tensors |= {name: np.ones_like(value) for name, value in tensors.items() if "norm" in name}
    save_file(tensors, checkpoint / "model.safetensors")
    for kind in ("float32", "int8"):
        engine = converted(checkpoint, tmp_path / kind, quantization=kind)
        assert np.isfinite(logits_of(engine, [5], kind=kind)).all()


@pytest.mark.parametrize(
    ("name", "lacks"),
    [
        ("mistralai/Mixtral-8x7B-v0.1", "no routed experts"),
        ("Qwen/Qwen3-30B-A3B", "no routed experts"),
        ("deepseek-ai/DeepSeek-V3", "no routed experts"),
        ("google/gemma-2-9b-it", "no cap on attention scores (attn_logit_softcapping: 50)"),
    ],
)
def test_what_ctranslate2_has_no_counterpart_of_is_refused_by_name(name: str, lacks: str) -> None:
    shape = parse_shape(PUBLISHED[name], where="config.json")
    with pytest.raises(CheckpointError) as refused:
        check_convertible(shape)
    assert shape.architecture in refused.value.found
    assert lacks in refused.value.found
    assert "use a GPU class" in refused.value.fix
    check_convertible(
        shape.model_copy(update={"experts": None, "latent": None, "attention_softcap": None, "family": "llama"})
    )


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("llama", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rotary scaling of type yarn has no CPU engine"),
        ("llama", {"hidden_act": "mish"}, "the activation mish has no counterpart"),
        ("phi3-longrope", {"original_max_position_embeddings": 1024}, "long factors from the start"),
        ("phi3-longrope", {"partial_rotary_factor": 0.5}, "4 factors for 2 rotary frequencies"),
        ("llama", {"hidden_size": 64}, "its shape is [32], but config.json says [64]"),
    ],
)
def test_what_cannot_be_converted_is_one_sentence(
    name: str, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    checkpoint = tiny_models.write(name, tmp_path / "checkpoint")
    (checkpoint / "config.json").write_text(json.dumps(tiny_models.config(name) | {"head_dim": 8} | changes))
    with pytest.raises(CheckpointError) as refused:
        converted(checkpoint, tmp_path / "engine")
    assert said in str(refused.value)
    assert not (tmp_path / "engine" / "model.bin").exists()
