"""CTranslate2's ``model.bin``, read for comparing (its format: ctranslate2/specs/model_spec.py, ``_serialize``)."""

import hashlib
import struct
from pathlib import Path
from typing import BinaryIO


def weights_digest(path: Path) -> str:
    """SHA-256 over the names, sizes and bytes of all weights and their scales; norms and flags are left out."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        _number(file, "<I")
        _text(file)
        _number(file, "<I")
        for _ in range(_number(file, "<I")):
            name = _text(file)
            dimensions = [_number(file, "<I") for _ in range(_number(file, "<B"))]
            kind, length = _number(file, "<B"), _number(file, "<I")
            data = file.read(length)
            if name.endswith(("/weight", "/weight_scale")):
                digest.update(f"{name} {dimensions} {kind}\n".encode() + data)
    return digest.hexdigest()


def _number(file: BinaryIO, form: str) -> int:
    (value,) = struct.unpack(form, file.read(struct.calcsize(form)))
    return int(value)


def _text(file: BinaryIO) -> str:
    return file.read(_number(file, "<H")).rstrip(b"\0").decode()
