"""The values of a release in a backup: kept as they are, after a look for what must not be in it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from engineroom.errors import InputError

MAX_BYTES = 4 * 1024 * 1024

#: Last words of keys that hold a secret themselves; `tokenSecretName` and `existingSecret` name a Kubernetes object,
#: and a tokenizer's own tokens are none.
_SECRET_KEY = re.compile(
    r"(?<!eos)(?<!bos)(?<!pad)(?<!unk)(?<!eos_)(?<!bos_)(?<!pad_)(?<!unk_)(?:password|passwd|token|api_?key|secret_?key|access_?key|secret_?access_?key|private_?key)$",
    re.IGNORECASE,
)
#: Values that are a credential whatever their key: of the Hugging Face Hub, AWS, GitHub, and PEM.
_SECRET_VALUE = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{30,}|-----BEGIN [A-Z ]*PRIVATE KEY"
)
_FIX = "keep secrets in a Kubernetes Secret that the values name, and back that up with your own tools"


def read_values(path: Path) -> bytes:
    """The bytes of a values file. Raises :class:`InputError` where it is no YAML, or holds a secret."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise InputError(f"it is longer than {MAX_BYTES} bytes", where=str(path), fix="give a values file")
        parsed = list(yaml.safe_load_all(data))
    except OSError as error:
        raise InputError(
            f"cannot read it ({error.strerror or error})", where=str(path), fix="give --values the release's values"
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InputError("it is no YAML", where=str(path), fix="give --values the release's values") from None
    for key, value in (pair for document in parsed for pair in _scalars(document, "", set())):
        last = key.rpartition(".")[2]
        if last == "kind" and value == "Secret":
            raise InputError("it holds a Kubernetes Secret", where=f"{path}: {key}", fix=_FIX)
        if isinstance(value, str) and value and (_SECRET_KEY.search(last) or _SECRET_VALUE.search(value)):
            raise InputError("it looks like a secret", where=f"{path}: {key}", fix=_FIX)
    return data


def _scalars(value: Any, key: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Every scalar with its key path; what YAML's aliases repeat, once."""
    if not isinstance(value, (dict, list)):
        yield key, value
    elif id(value) not in seen:
        seen.add(id(value))
        for name, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _scalars(child, f"{key}.{name}" if key else str(name), seen)
