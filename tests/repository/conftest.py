"""Everything that `assemble` is given, small: a checkpoint's files, a plan, a finished engine folder."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from engineroom.checkpoint.record import CheckpointRecord, record_checkpoint
from engineroom.documents import record_file
from engineroom.engines.engine import Engine, EngineInputs, Requires
from engineroom.gpus import Runtime
from engineroom.planning.plan import Plan
from engineroom.progress import QUIET
from engineroom.recipe import Recipe
from engineroom.repository.assemble import assemble
from engineroom.repository.record import BuildRecord


@dataclass
class Inputs:
    recipe: Recipe
    plan: Plan
    engine: Engine
    engine_folder: Path
    record: CheckpointRecord
    checkpoint: Path

    def assemble(self, output: Path) -> BuildRecord:
        return assemble(
            self.recipe, self.plan, self.engine, self.engine_folder, self.record, self.checkpoint, output, QUIET
        )


MakeInputs = Callable[..., Inputs]


@pytest.fixture
def make_inputs(tmp_path: Path) -> MakeInputs:
    def make(runtime: Runtime = "ctranslate2", **changes: Any) -> Inputs:
        checkpoint, folder = tmp_path / "checkpoint", tmp_path / "engine"
        for each in (checkpoint, folder):
            each.mkdir(exist_ok=True)
        write_checkpoint(checkpoint)
        recipe = Recipe.model_validate(recipe_of(runtime) | changes)
        files = {"config.json": b"{}", "model.bin": b"weights" * 1000, "deep/part.bin": b"x"}
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        inputs = EngineInputs(
            checkpoint="0" * 64,
            runtime=runtime,
            versions={"ctranslate2": "4.8.5"},
            precision=recipe.precision,
            kv="float16",
            tp=1,
            pp=1,
            limits={},
        )
        engine = Engine(
            key=inputs.key,
            inputs=inputs,
            requires=Requires(),
            files=[record_file(folder, name) for name in files],
            provenance={"built_at": "2026-11-23T00:00:00Z"},
        )
        engine.write(folder / "engine.json")
        record = record_checkpoint(
            checkpoint, source="hf://org/tiny", revision="c0ffee", architecture="LlamaForCausalLM"
        )
        return Inputs(recipe, plan_of(recipe), engine, folder, record, checkpoint)

    return make


def recipe_of(runtime: Runtime) -> dict[str, Any]:
    cpu = runtime == "ctranslate2"
    return {
        "model": {"source": "hf://org/tiny"},
        "gpu": "cpu" if cpu else "h100",
        "runtime": runtime,
        "precision": "int8" if cpu else "bfloat16",
        "limits": {"max_batch_size": 40, "max_input_len": 100, "max_output_len": 28},
    }


def plan_of(recipe: Recipe) -> Plan:
    limits = recipe.limits
    return Plan.model_validate(
        {
            "model": {
                "architecture": "LlamaForCausalLM",
                "family": "llama",
                "vocab_size": 300,
                "hidden_size": 8,
                "intermediate_size": 16,
                "layers": 1,
                "heads": 2,
                "kv_heads": 1,
                "head_dim": 4,
                "max_positions": 2048,
                "tie_embeddings": True,
                "dtype": "bfloat16",
                "norm_epsilon": 1e-5,
                "rope_theta": 10000.0,
            },
            "parameters": 1000,
            "gpu": recipe.gpu,
            "runtime": recipe.runtime,
            "precision": recipe.precision,
            "kv_dtype": "float16",
            "kv_bytes_per_token": 16,
            "tp": 1,
            "pp": 1,
            "memory": {"weights": 1, "kv": 1, "activations": 1, "overhead": 1, "total": 4, "visible": 10},
            "kv_tokens": 5000,
            "limits": limits.model_dump() | {"max_seq_len": limits.max_seq_len},
            "pod": {
                "cpu": 2,
                "memory_bytes": 1,
                "shm_bytes": 1,
                "ephemeral_bytes": 1,
                "load_seconds": 60,
                "drain_seconds": None,
            },
        }
    )


def write_checkpoint(folder: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(["</s>", *alphabet])}, merges=[]))
    made.decoder = decoders.ByteLevel()
    made.save(str(folder / "tokenizer.json"))
    for name, content in {
        "config.json": {"eos_token_id": 7},
        "generation_config.json": {"eos_token_id": [0, 5]},
        "tokenizer_config.json": {
            "eos_token": {"content": "</s>"},
            "bos_token": "<s>",
            "chat_template": "{{ messages }}",
        },
    }.items():
        (folder / name).write_text(json.dumps(content))
