"""What a gateway is told, and what it reads from the tree of the model that it stands before."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engineroom.errors import DocumentError, InputError
from engineroom.repository import pbtxt
from engineroom.repository.record import FILE, MODEL_REPOSITORY, TOKENIZER, BuildRecord

#: OpenAI's documented defaults; a checkpoint's generation_config.json comes before them.
DEFAULT_TEMPERATURE, DEFAULT_TOP_P = 1.0, 1.0


@dataclass(frozen=True)
class Settings:
    """Options of ``engineroom gateway``."""

    tree: Path
    """The pulled artifact: build record, tokenizer, configurations."""
    upstream: str = "127.0.0.1:8001"
    """HOST:PORT of Triton's gRPC."""
    host: str = "127.0.0.1"
    port: int = 9000
    """0: any free one."""
    metrics_port: int = 9002
    model_name: str | None = None
    """What clients call the model; None: the build record's name."""
    api_keys_file: Path | None = None
    slots: int | None = None
    """Requests that are forwarded at the same time; None: as many as the engine runs at once."""
    max_queued_requests: int | None = None
    """None: four times the slots, so that who waits longest waits for about four answers."""
    max_queued_tokens: int | None = None
    """Prompt tokens; None: as many as fill the slots with the longest prompts."""
    max_body_bytes: int = 4 << 20
    deadline_seconds: float = 600
    """For a whole answer, waiting included."""
    drain_seconds: float = 30
    accept_seconds: float = 5
    """After SIGTERM new requests are still taken for so long: a cluster needs some seconds to send them elsewhere."""
    send_seconds: float = 30
    """A client that takes nothing for so long is gone."""


@dataclass(frozen=True)
class Served:
    """What the gateway knows of the model from its tree."""

    record: BuildRecord
    name: str
    slots: int
    max_queued_requests: int
    max_queued_tokens: int
    temperature: float
    top_p: float
    top_k: int
    """Of requests that do not say; 0: all."""
    tokenizer_file: Path


def read_tree(settings: Settings) -> Served:
    """Everything from the tree. Raises DocumentError or InputError where it is not one that can be served."""
    tree = settings.tree
    record = BuildRecord.read(tree / FILE, made_by="engineroom pull")
    slots = settings.slots or _slots(tree)
    sampling = _sampling(tree / TOKENIZER / "generation_config.json")
    tokenizer = tree / TOKENIZER / "tokenizer.json"
    if not tokenizer.is_file():
        raise DocumentError("there is no such file", where=str(tokenizer), fix="pull the artifact again")
    return Served(
        record=record,
        name=settings.model_name or record.name,
        slots=slots,
        max_queued_requests=_given(settings.max_queued_requests, 4 * slots),
        max_queued_tokens=_given(settings.max_queued_tokens, slots * record.model.max_input_len),
        temperature=sampling.get("temperature", DEFAULT_TEMPERATURE),
        top_p=sampling.get("top_p", DEFAULT_TOP_P),
        top_k=int(sampling.get("top_k", 0)),
        tokenizer_file=tokenizer,
    )


def _given(value: int | None, default: int) -> int:
    return default if value is None else value


def _slots(tree: Path) -> int:
    """Requests that the engine runs at once, from the configuration of the model that generates."""
    path = tree / MODEL_REPOSITORY / pbtxt.CORE / "config.pbtxt"
    fix = "give --slots"
    try:
        config = pbtxt.from_text(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read it ({error.strerror})", where=str(path), fix=fix) from None
    except ValueError as error:
        raise InputError(f"it is no model configuration ({error})", where=str(path), fix=fix) from None
    # The one model batches itself, so its limit is a parameter; the C++ backend's is Triton's own field.
    slots = config.parameters["max_batch_size"].string_value or str(config.max_batch_size)
    if not slots.isdecimal() or int(slots) < 1:
        raise InputError(f"max_batch_size is {slots}", where=str(path), fix=fix)
    return int(slots)


def _sampling(path: Path) -> dict[str, float]:
    """Temperature, top_p and top_k that the checkpoint's makers recommend; empty where they do not."""
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(config, dict) or config.get("do_sample") is False:
        return {}
    ranges = {"temperature": (0.0, 2.0), "top_p": (0.0, 1.0), "top_k": (0.0, 2.0**31 - 1)}
    found = {name: config.get(name) for name in ranges}
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and math.isfinite(value) and ranges[name][0] <= value <= ranges[name][1]
    }
