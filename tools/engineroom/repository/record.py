"""The build record: what an artifact holds and what it needs. It is the config blob of the OCI artifact.

It also lies in the root of every assembled and pulled tree as :data:`FILE`, for ``serve``, ``values`` and
preflight; there it is the same bytes as the blob, and it is no layer.
"""

from typing import Any

from pydantic import Field

from engineroom.documents import Document, FileRecord, Strict
from engineroom.engines.engine import EngineInputs, Requires

FILE = "build-record.json"
MEDIA_TYPE = "application/vnd.engineroom.build.v1+json"

#: Folders of the tree.
MODEL_REPOSITORY = "model_repository"
ENGINE = "engine"
TOKENIZER = "tokenizer"

#: Where pods mount the tree. TensorRT-LLM's C++ backend wants absolute paths in config.pbtxt, so
#: the place is part of what is assembled.
MOUNT = "/models"


class ServedModel(Strict):
    """What a client of the served model has to know."""

    client_model: str
    """Name of the Triton model that clients call: ``tensorrt_llm`` or ``tensorrt_llm_bls``."""
    max_input_len: int = Field(ge=1)
    max_seq_len: int = Field(ge=2)
    eos_ids: list[int]
    chat_template: str | None = None
    """Jinja source of the checkpoint's chat template; None where it has none."""
    special_tokens: dict[str, str] = Field(default_factory=dict)
    """bos_token, eos_token and others: a chat template refers to them by name."""


class BuildRecord(Document):
    """An assembled model repository, described."""

    name: str
    """Of the model, for people: the last part of the checkpoint's source."""
    key: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Engine key."""
    inputs: EngineInputs
    requires: Requires
    model: ServedModel
    files: list[FileRecord] = Field(min_length=1)
    """Every file of the tree but this one, with chunk digests."""
    provenance: dict[str, Any] = Field(default_factory=dict)
