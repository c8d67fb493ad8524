"""Models known by name, for estimates without a checkpoint at hand."""

import difflib
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from engineroom.checkpoint.shape import ModelShape, parse_shape, read_json
from engineroom.errors import InputError

#: What people append to a model's name without changing its sizes.
_ENDINGS = re.compile(r"(instruct|chat|base|hf|it|fp8|fp4|nvfp4|bf16|fp16|awq|gptq|int4|int8|kv|v\d+(\.\d+)?|\d{4})")


def find_shape(name: str) -> ModelShape:
    """The sizes of a model: known by name, or read from a ``config.json`` (or a folder with one).

    Raises InputError for an unknown name, CheckpointError for a config that cannot be used.
    """
    path = Path(name)
    if "/" in name or name.endswith(".json"):
        file = path / "config.json" if path.is_dir() else path
        if file.is_file():
            return parse_shape(read_json(file), where=str(file))
    known = _known()
    if found := known.get(_plain(name)):
        return _shape(found)
    near = difflib.get_close_matches(_plain(name), known, n=1, cutoff=0.6)
    raise InputError(
        f"unknown model {name[:80]!r}",
        where="model",
        fix=(f"did you mean {known[near[0]]}? " if near else "") + "give a known name, or the path of a config.json",
    )


def known_names() -> list[str]:
    """The names, as they are usually written."""
    return list(_file())


@cache
def _shape(name: str) -> ModelShape:
    config = dict(_file()[name]["config"])
    config["architectures"] = [config["architectures"]]
    return parse_shape(config, where=f"known_models.yaml: {name}")


@cache
def _known() -> dict[str, str]:
    found: dict[str, str] = {}
    for name, model in _file().items():
        for spelling in (name, model["of"], *model.get("also", [])):
            found[_plain(spelling)] = name
    return found


@cache
def _file() -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = Path(__file__).with_name("known_models.yaml").read_text(encoding="utf-8")
    return yaml.load(text, Loader=loader)  # type: ignore[no-any-return]  # noqa: S506  (a safe loader)


def _plain(name: str) -> str:
    """``meta-llama/Meta-Llama-3.1-8B-Instruct`` and ``llama 3.1 8b`` are one name: ``llama318b``."""
    words = re.split(r"[\s_\-]+", name.rsplit("/", 1)[-1].strip().lower())
    while len(words) > 2 and _ENDINGS.fullmatch(words[-1]):
        words.pop()
    plain = re.sub(r"[^a-z0-9]", "", "".join(words))
    return plain.removeprefix("meta")
