"""The tensors of every Triton model that we lay out, from ``tensors.csv``.

Its interfaces:

- ``client``: what clients call where one Python model does everything, for the runtime ctranslate2.
- ``client_pytorch``: the same tensors, and ``top_log_probs`` with its outputs: the log probabilities of the most
  probable tokens, which CTranslate2 and TensorRT-LLM's C++ backend do not tell.
- ``client_tensorrt``: the same tensors, and those options that only TensorRT-LLM honours: ``tensorrt_llm_bls``.
- ``preprocessing``, ``postprocessing``, ``ensemble``: the rest of NVIDIA's layout of five models.
- ``tensorrt_llm_cpp``: the C++ backend's own, complete, for its model ``tensorrt_llm``.

Names and types are NVIDIA's, of TensorRT-LLM 1.2.1, so that clients written for its templates work here. Of the
Python models only what they honour is declared: over gRPC Triton then refuses the rest by name. ``seed`` is declared
everywhere although CTranslate2 has none, for an undeclared JSON key would be dropped by ``/generate`` without a word,
and an answer that cannot be repeated is worse than a refusal. ``add_special_tokens`` (ADD_SPECIAL_TOKENS in
preprocessing) is ours; so are ``output_ids`` for clients, [1, tokens] beside ``output_log_probs`` ([beams, tokens] in
NVIDIA's templates), and ``top_ids`` and ``top_log_probs``, [tokens, as many as the input asks for]. ``finish_reason``
is the LLM API model's.

**One spelling.** Up to 0.19 the options ``min_tokens`` and ``seed`` were called ``min_length`` and ``random_seed``
(:data:`RENAMED`). The C++ backend of 1.2.1 reads only the new names, an input that it does not read would be ignored
silently, and a model with both would have to say which one wins; so the old names are not accepted.

**One shape.** Every model batches (``max_batch_size`` ≥ 1), because the C++ backend and NVIDIA's templates do:
clients put a batch dimension in front, ``text_input`` is [1, 1], for every runtime alike. The models for clients take
batches of one: a batch would be answered when its slowest member is done, and the engine batches by itself.
"""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

Interface = Literal[
    "client", "client_pytorch", "client_tensorrt", "preprocessing", "postprocessing", "ensemble", "tensorrt_llm_cpp"
]

#: Name in 1.x → name up to 0.19 (TensorRT-LLM's triton_backend, utils.h InputFieldsNames, and the templates of both).
RENAMED = {"min_tokens": "min_length", "seed": "random_seed"}


@dataclass(frozen=True)
class Tensor:
    """One input or output of a model, without its batch dimension."""

    name: str
    datatype: str
    """Triton's name without ``TYPE_``: STRING, INT32, FP32, BOOL, UINT64, …"""
    dims: tuple[int, ...]
    optional: bool = False
    ragged: bool = False
    """Requests of one batch may differ in length."""
    scalar: bool = False
    """The backend sees no dimension besides the batch: config.pbtxt says ``reshape { shape: [] }``."""


@dataclass(frozen=True)
class Tensors:
    """All inputs and outputs of one model, in the order of the file."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@cache
def tensors(interface: Interface) -> Tensors:
    """What ``interface`` consists of."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    with Path(__file__).with_name("tensors.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["interface"] == interface:
                (inputs if row["direction"] == "input" else outputs).append(_tensor(row))
    return Tensors(tuple(inputs), tuple(outputs))


def _tensor(row: dict[str, str]) -> Tensor:
    return Tensor(
        name=row["name"],
        datatype=row["datatype"],
        dims=tuple(int(size) for size in row["dims"].split()),
        optional=row["optional"] == "1",
        ragged=row["ragged"] == "1",
        scalar=row["scalar"] == "1",
    )
