"""``engine.json``: an engine and what it was built from. Engines with equal keys are interchangeable."""

from typing import Any

from pydantic import Field

from engineroom.documents import Document, FileRecord, Strict, digest_of
from engineroom.gpus import Precision, Runtime

FILE = "engine.json"


class EngineInputs(Document):
    """Everything that decides what an engine is. Its canonical JSON is hashed into the engine key."""

    checkpoint: str
    """Digest of the checkpoint."""
    runtime: Runtime
    versions: dict[str, str]
    """Of what makes the engine: trtllm, tensorrt, ctranslate2, modelopt, converter; only those that apply."""
    image: str | None = None
    """Image in which the engine is built and must run; None for ctranslate2."""
    precision: Precision
    kv: str
    tp: int = Field(ge=1)
    pp: int = Field(ge=1)
    ep: int = Field(default=1, ge=1)
    limits: dict[str, int]
    """Only those that are compiled in: empty where the runtime takes them at start."""
    plugins: dict[str, str] = Field(default_factory=dict)
    calibration: dict[str, str | int] | None = None
    gpu: dict[str, str] | None = None
    """``{"sm": …, "product": …}``; None for runtimes whose engines run on any GPU."""

    @property
    def key(self) -> str:
        """The engine key: 64 hexadecimal digits."""
        return digest_of(self.model_dump(mode="json", by_alias=True))

    def differences(self, other: "EngineInputs") -> list[str]:
        """What changed from ``other`` to this, as ``name: old → new``, in order of name."""
        old, new = _flatten(other.model_dump(mode="json")), _flatten(self.model_dump(mode="json"))
        return [
            f"{name}: {_short(old.get(name))} → {_short(new.get(name))}"
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name)
        ]


class Requires(Strict):
    """What an engine needs of the place where it runs; preflight compares it before the server starts."""

    sm: str | None = None
    driver_min: str | None = None
    trtllm: str | None = None
    tensorrt: str | None = None
    world_size: int = Field(default=1, ge=1)
    shm_bytes: int = Field(default=0, ge=0)


class Engine(Document):
    """A finished engine folder: written last, so that a folder with this file is whole."""

    key: str = Field(pattern=r"^[0-9a-f]{64}$")
    inputs: EngineInputs
    requires: Requires
    files: list[FileRecord]
    provenance: dict[str, Any] = Field(default_factory=dict)
    """Who built it, when, where and with which commands."""


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flatten(inner, f"{prefix}.{key}" if prefix else key)
    return flat


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
