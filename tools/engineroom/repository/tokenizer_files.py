"""What a checkpoint's tokenizer files say: where answers end, how chats are written, which tokens are special.

They come from strangers, so every value is checked before it goes into a build record.
"""

import json
from pathlib import Path
from typing import Any

from engineroom.checkpoint.shape import read_json
from engineroom.errors import CheckpointError

#: Copied into a tree where a checkpoint has them; the first one it must have.
REQUIRED = "tokenizer.json"
OPTIONAL = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "chat_template.jinja")

_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")


def find_tokenizer_files(checkpoint: Path) -> list[str]:
    """Names of the files to copy. Raises CheckpointError where there is no tokenizer.json."""
    if not (checkpoint / REQUIRED).is_file():
        raise CheckpointError(
            f"there is no {REQUIRED}",
            where=str(checkpoint),
            fix="load the tokenizer with transformers.AutoTokenizer and save_pretrained it there, which writes one",
        )
    return [REQUIRED, *(name for name in OPTIONAL if (checkpoint / name).is_file())]


def eos_ids(checkpoint: Path) -> list[int]:
    """Ids that end an answer: of generation_config.json, else of config.json; empty where neither says.

    Raises CheckpointError for anything but an id or a list of ids.
    """
    for name in ("generation_config.json", "config.json"):
        value = _read(checkpoint / name).get("eos_token_id")
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(type(id) is int and 0 <= id < 1 << 31 for id in ids):
            raise CheckpointError(
                f"eos_token_id is {json.dumps(value)[:80]}, not an id or a list of ids", where=str(checkpoint / name)
            )
        return list(dict.fromkeys(ids))
    return []


def chat_template(checkpoint: Path) -> str | None:
    """The Jinja source of the chat template, None where the checkpoint has none. Raises CheckpointError."""
    file = checkpoint / "chat_template.jinja"
    if file.is_file():
        return _text(file)
    where = checkpoint / "tokenizer_config.json"
    value = _read(where).get("chat_template")
    if isinstance(value, list) and value:
        # Several, by name: the one called default is meant for plain chats.
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = named.get("default", next(iter(named.values()), None))
        if value is None:
            raise CheckpointError("chat_template is a list, but not one of names and templates", where=str(where))
    if value is None or value == []:
        return None
    if not isinstance(value, str):
        raise CheckpointError(f"chat_template is a {type(value).__name__}, not a text", where=str(where))
    return value


def special_tokens(checkpoint: Path) -> dict[str, str]:
    """bos_token, eos_token and others, as chat templates name them. Raises CheckpointError."""
    found: dict[str, str] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        values = _read(checkpoint / name)
        for token in _SPECIAL:
            value = values.get(token)
            if isinstance(value, dict):
                value = value.get("content")
            if value is None or token in found:
                continue
            if not isinstance(value, str):
                raise CheckpointError(f"{token} is a {type(value).__name__}, not a text", where=str(checkpoint / name))
            found[token] = value
    return found


def _read(path: Path) -> dict[str, Any]:
    """A JSON file that need not be there."""
    return read_json(path) if path.is_file() else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise CheckpointError("it is not UTF-8 text", where=str(path)) from None
    except OSError as error:
        raise CheckpointError(f"cannot read it ({error.strerror or error})", where=str(path)) from None
