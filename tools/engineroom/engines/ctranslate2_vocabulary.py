"""Token strings and special tokens of a checkpoint, as CTranslate2 wants them."""

import json
from pathlib import Path

from engineroom.errors import CheckpointError


def vocabulary(checkpoint: Path, size: int) -> list[str]:
    """Token strings in order of id, padded with ``<extra_id_N>`` to ``size`` as the stock converter does."""
    path = checkpoint / "tokenizer.json"
    try:
        tokenizer = json.loads(path.read_text(encoding="utf-8"))
        entries: dict[str, int] = dict(tokenizer["model"]["vocab"])
        entries.update({entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens") or []})
        ids = {id: token for token, id in entries.items()}
        if not all(isinstance(id, int) and id >= 0 for id in ids):
            raise ValueError("ids that are no numbers")
    except OSError as error:
        raise CheckpointError(f"cannot read it ({error.strerror or error})", where=str(path)) from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"not a tokenizer that can be converted ({str(error)[:80]})", where=str(path)) from None
    spare = (f"<extra_id_{number}>" for number in range(size))
    # A gap among the ids would shift every later token: fill it as the padding is filled.
    return [ids[id] if id in ids else next(spare) for id in range(size)]


def special_tokens(checkpoint: Path) -> tuple[str, str, str]:
    """bos, eos and unk of ``tokenizer_config.json``; empty where there is none."""
    path = checkpoint / "tokenizer_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"not valid JSON ({str(error)[:80]})", where=str(path)) from None

    def token(name: str) -> str:
        value = config.get(name) or ""
        return str(value.get("content", "") if isinstance(value, dict) else value)

    return token("bos_token"), token("eos_token"), token("unk_token")
