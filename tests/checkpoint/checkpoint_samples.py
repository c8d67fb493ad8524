"""Small checkpoints of the Llama family, as bytes."""

import json
import random
import struct
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
TOKENIZER: dict[str, Any] = {"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}


def safetensors(tensors: dict[str, int], seed: int = 0) -> bytes:
    """A file of flat U8 tensors, each of the given number of bytes."""
    header, position = {}, 0
    for name, size in tensors.items():
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [position, position + size]}
        position += size
    return with_header(header, random.Random(seed).randbytes(position))


def with_header(header: Any, data: bytes = b"") -> bytes:
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def index(**files: str) -> bytes:
    return json.dumps({"weight_map": files}).encode()


def checkpoint(weight_bytes: int = 4096, **more: bytes) -> dict[str, bytes]:
    """A checkpoint that serves, and what stands in ``more`` (``__`` for a dot)."""
    files = {
        "config.json": json.dumps(CONFIG).encode(),
        "tokenizer.json": json.dumps(TOKENIZER).encode(),
        "tokenizer_config.json": b"{}",
        "model.safetensors": safetensors({"w": weight_bytes}),
    }
    return files | {name.replace("__", "."): content for name, content in more.items()}


def sharded(weight_bytes: int = 4096, parts: int = 3) -> dict[str, bytes]:
    """A checkpoint in several parts with an index."""
    files = checkpoint()
    del files["model.safetensors"]
    names = [f"model-{part + 1:05}-of-{parts:05}.safetensors" for part in range(parts)]
    for part, name in enumerate(names):
        files[name] = safetensors({f"w{part}": weight_bytes}, seed=part)
    files["model.safetensors.index.json"] = index(**{f"w{part}": name for part, name in enumerate(names)})
    return files


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder
