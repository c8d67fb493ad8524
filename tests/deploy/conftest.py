"""A build record and a plan, small and whole, that tests change in one place."""

from collections.abc import Callable
from typing import Any

import pytest

from engineroom.checkpoint.shape import ModelShape
from engineroom.documents import FileRecord
from engineroom.engines.engine import EngineInputs, Requires
from engineroom.planning.plan import Memory, Plan, PlannedLimits, Pod
from engineroom.repository.record import BuildRecord, ServedModel

GIB = 1 << 30
IMAGE = "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"

MakeRecord = Callable[..., BuildRecord]
MakePlan = Callable[..., Plan]


@pytest.fixture
def make_record() -> MakeRecord:
    """An engine for four H100; keywords replace parts of its inputs, or whole fields of the record."""

    def made(*, inputs: dict[str, Any] | None = None, sizes: tuple[int, ...] = (GIB,), **fields: Any) -> BuildRecord:
        given: dict[str, Any] = {
            "checkpoint": "c" * 64,
            "runtime": "tensorrt",
            "versions": {"trtllm": "1.2.1"},
            "image": IMAGE,
            "precision": "fp8",
            "kv": "fp8",
            "tp": 4,
            "pp": 1,
            "limits": {},
            **(inputs or {}),
        }
        world = given["tp"] * given["pp"]
        whole: dict[str, Any] = {
            "name": "Llama-3.1-70B",
            "key": "d" * 64,
            "inputs": EngineInputs(**given),
            "requires": Requires(sm="90", world_size=world, shm_bytes=GIB),
            "model": ServedModel(
                client_model="tensorrt_llm_bls", max_input_len=3072, max_seq_len=4096, eos_ids=[2], chat_template=None
            ),
            "files": [
                FileRecord(path=f"engine/rank{number}.engine", size=size, sha256="e" * 64)
                for number, size in enumerate(sizes)
            ],
            **fields,
        }
        return BuildRecord(**whole)

    return made


@pytest.fixture
def make_plan() -> MakePlan:
    """The plan of the same engine; keywords replace fields, those of ``pod`` included."""

    def made(**fields: Any) -> Plan:
        pod: dict[str, Any] = {
            "cpu": 20,
            "memory_bytes": 100 * GIB,
            "shm_bytes": 2 * GIB,
            "ephemeral_bytes": 80 * GIB,
            "load_seconds": 240,
            "drain_seconds": None,
        }
        for name in pod:
            if name in fields:
                pod[name] = fields.pop(name)
        whole: dict[str, Any] = {
            "model": SHAPE,
            "parameters": 70_000_000_000,
            "gpu": "h100",
            "runtime": "tensorrt",
            "precision": "fp8",
            "kv_dtype": "fp8",
            "kv_bytes_per_token": 163840,
            "tp": 4,
            "pp": 1,
            "memory": Memory(weights=1, kv=1, activations=1, overhead=1, total=4, visible=8),
            "kv_tokens": 1000,
            "limits": PlannedLimits(
                max_batch_size=64, max_input_len=3072, max_output_len=1024, max_seq_len=4096, max_num_tokens=8192
            ),
            "pod": Pod(**pod),
            **fields,
        }
        return Plan(**whole)

    return made


SHAPE = ModelShape(
    architecture="LlamaForCausalLM",
    family="llama",
    vocab_size=128256,
    hidden_size=8192,
    intermediate_size=28672,
    layers=80,
    heads=64,
    kv_heads=8,
    head_dim=128,
    max_positions=131072,
    tie_embeddings=False,
    dtype="bfloat16",
    norm_epsilon=1e-5,
    rope_theta=500000.0,
)
