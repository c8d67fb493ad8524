"""Which files of a checkpoint serve: the same answer for a repository on the Hub and for a folder.

The same bytes give the same digest wherever they come from only if everybody leaves out the same rest: model
cards, pickles, copies of the weights in other formats, ``original/``, ``onnx/``. All that serves lies at the top.
"""

import re
from collections.abc import Collection
from pathlib import Path

from engineroom.checkpoint.shape import read_json
from engineroom.errors import CheckpointError

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

#: Everything but weights that a runtime or the gateway reads.
SMALL_FILES = frozenset(
    {
        CONFIG,
        "generation_config.json",
        TOKENIZER,
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "tokenizer.model",
        "chat_template.jinja",
        "chat_template.json",
    }
)
# transformers names the parts of a model so; without an index they are still one model.
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
# Weights of something else: Mistral's own layout, and adapters.
_NOT_THE_MODEL = re.compile(r"(consolidated|adapter_).*")
# A name becomes part of a URL, of a path and of an artifact.
_SANE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_PICKLED = re.compile(r".+\.(bin|pt|pth|ckpt)")


def choose_small(names: Collection[str], *, where: str) -> list[str]:
    """Configuration, tokenizer and weights index among ``names``. Raises CheckpointError where one is missing."""
    if CONFIG not in names:
        raise CheckpointError(
            f"there is no {CONFIG}", where=where, fix="is this a checkpoint in Hugging Face's transformers format?"
        )
    if TOKENIZER not in names:
        raise CheckpointError(
            f"there is no {TOKENIZER}",
            where=where,
            fix="write one with transformers: `AutoTokenizer.from_pretrained(SOURCE).save_pretrained(FOLDER)`",
        )
    return sorted(name for name in names if name in SMALL_FILES or name == INDEX)


def choose_weights(names: Collection[str], index: Path | None, *, where: str) -> list[str]:
    """The safetensors files among ``names`` that make up the model; ``index`` is the file :data:`INDEX`, if any.

    Raises CheckpointError where there are none, where some are missing, or where it is unclear which belong together.
    """
    tensors = sorted(name for name in names if name.endswith(".safetensors") and _SANE.fullmatch(name))
    if index is not None:
        return _listed(index, tensors, where)
    candidates = [name for name in tensors if not _NOT_THE_MODEL.fullmatch(name)]
    if SINGLE in candidates:
        return [SINGLE]
    shards = [name for name in candidates if _SHARD.fullmatch(name)]
    if shards:
        expected = int(shards[0].rsplit("-", 1)[1].removesuffix(".safetensors"))
        if len(shards) != expected:
            raise CheckpointError(f"{len(shards)} of {expected} safetensors parts are there", where=where)
        return shards
    if len(candidates) == 1:
        return candidates
    if candidates:
        raise CheckpointError(
            f"there are {len(candidates)} safetensors files and no {INDEX} that says which belong together", where=where
        )
    pickled = sorted(name for name in names if _PICKLED.fullmatch(name) and "/" not in name)
    if pickled:
        raise CheckpointError(
            f"its weights are pickles ({pickled[0][:60]}), and reading a pickle runs whatever code is in it",
            where=where,
            fix="convert them where you trust them: "
            "`AutoModelForCausalLM.from_pretrained(SOURCE).save_pretrained(FOLDER, safe_serialization=True)`",
        )
    raise CheckpointError(
        "there are no safetensors weights", where=where, fix="use the original checkpoint, not a conversion of it"
    )


def serving_files(folder: Path) -> list[str]:
    """Names of the files of ``folder`` that serve, sorted. Raises CheckpointError."""
    try:
        names = {path.name for path in folder.iterdir() if path.is_file()}
    except OSError as error:
        raise CheckpointError(f"cannot read it ({error.strerror or error})", where=str(folder)) from None
    small = choose_small(names, where=str(folder))
    index = folder / INDEX if INDEX in names else None
    return sorted(small + choose_weights(names, index, where=str(folder)))


def _listed(index: Path, tensors: list[str], where: str) -> list[str]:
    mapping = read_json(index).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise CheckpointError("weight_map is missing or no mapping", where=f"{where}: {INDEX}")
    listed = {name for name in mapping.values() if isinstance(name, str)}
    if len(listed) != len({str(name) for name in mapping.values()}) or not listed <= set(tensors):
        stray = next((str(name) for name in mapping.values() if name not in tensors), "")
        raise CheckpointError(f"it names the file {stray[:80]!r}, which is not there", where=f"{where}: {INDEX}")
    return sorted(listed)
