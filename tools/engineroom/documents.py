"""The JSON files between the stages: strict when read, canonical when written, never half there.

Every stage leaves one :class:`Document` for the next. What is here is only what all of them share:
the strict model, RFC 8785 bytes (so that equal documents are equal files and have equal digests), and
a write that a kill cannot cut in two.
"""

import hashlib
import json
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import rfc8785
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engineroom.errors import DocumentError

#: Size of the pieces of a file that carry a digest of their own (design, section 4): a reader can
#: verify and resume a file of 100 GB piece by piece.
CHUNK_BYTES = 64 * 1024 * 1024


class Strict(BaseModel):
    """A value that refuses unknown keys and wrong types, and does not change once made."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


class Document(Strict):
    """A JSON file with ``"schema": 1``."""

    schema_version: Literal[1] = Field(default=1, alias="schema")

    def to_json(self) -> bytes:
        """The document as canonical JSON (RFC 8785): sorted keys, no blanks, one spelling per number."""
        return canonical(self.model_dump(mode="json", by_alias=True))

    def write(self, path: Path) -> None:
        """Write the document to ``path`` so that a reader sees the old file or the new one."""
        write_atomic(path, self.to_json() + b"\n")

    @classmethod
    def parse(cls, data: bytes, *, where: str) -> Self:
        """Read a document from bytes that came from ``where``. Raises :class:`DocumentError`."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            path, found = first_problem(error)
            raise DocumentError(f"{path + ': ' if path else ''}{found}", where=where) from None
        except RecursionError:
            raise DocumentError("the JSON is nested too deeply", where=where) from None

    @classmethod
    def read(cls, path: Path, *, made_by: str) -> Self:
        """Read a document from a file; ``made_by`` is the command that writes it.

        Raises :class:`DocumentError` where the file is missing or malformed.
        """
        return cls.read_with_bytes(path, made_by=made_by)[0]

    @classmethod
    def read_with_bytes(cls, path: Path, *, made_by: str) -> tuple[Self, bytes]:
        """As :meth:`read`, and the very bytes that were read."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DocumentError(
                f"cannot read it ({error.strerror or error})", where=str(path), fix=f"run `{made_by}` first"
            ) from None
        try:
            return cls.parse(data, where=str(path)), data
        except DocumentError as error:
            raise DocumentError(error.found, where=error.where, fix=f"run `{made_by}` again") from None


AnyDocument = TypeVar("AnyDocument", bound=Document)


class FileRecord(Strict):
    """One file of a folder: where it is, how long it is, and what it must hash to."""

    path: str = Field(min_length=1)
    """Relative to the folder, with forward slashes."""

    size: int = Field(ge=0)
    """Bytes."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the whole file, hexadecimal."""

    chunks: list[str] = Field(default_factory=list)
    """SHA-256 of each piece of :data:`CHUNK_BYTES`, in order. Empty where pieces are not recorded."""


def first_problem(error: ValidationError) -> tuple[str, str]:
    """The key path and the words of the first problem that pydantic found."""
    problem = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return path, "unknown key"
    if problem["type"] == "missing":
        return path, "missing"
    found = problem["input"]
    shown = repr(found) if not isinstance(found, (dict, list, bytes)) else f"a {type(found).__name__}"
    if found is None:
        shown = "nothing"
    if len(shown) > 80:
        shown = shown[:77] + "..."
    words = _WORDS.get(problem["type"]) or re.sub("^(Input|String|List|Value) should", "it should", problem["msg"])
    words = words.removeprefix("Value error, ")
    words = words[0].lower() + words[1:]
    return path, words if problem["type"] == "json_invalid" else f"found {shown}, but {words}"


#: pydantic's words speak of classes and dictionaries; these speak to who wrote the file.
_WORDS = {
    "model_type": "it should be a mapping of keys",
    "dict_type": "it should be a mapping of keys",
    "list_type": "it should be a list",
    "string_type": "it should be text",
    "string_unicode": "it should be text in UTF-8",
    "int_type": "it should be a whole number",
    "float_type": "it should be a number",
}


def canonical(value: Any) -> bytes:
    """``value`` as RFC 8785 canonical JSON."""
    if _is_simple(value):
        # The same bytes 6 times as fast: 3 ms instead of 18 for a manifest of 2,000 files.
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    return rfc8785.dumps(value)


def _is_simple(value: Any) -> bool:
    """Whether Python's own writer and RFC 8785 agree on ``value``.

    They do not on floats, on the order of keys beyond ASCII, and on what RFC 8785 refuses: integers that a double
    cannot hold and halves of surrogate pairs (looked for by not taking any text beyond ASCII).
    """
    kind = type(value)
    if kind is str:
        return bool(value.isascii())
    if kind is int:
        return bool(-(2**53) < value < 2**53)
    if kind is dict:
        return all(type(key) is str and key.isascii() for key in value) and all(map(_is_simple, value.values()))
    return all(map(_is_simple, value)) if kind is list else value is None or kind is bool


def digest_of(value: Any) -> str:
    """SHA-256 (hexadecimal) of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical(value)).hexdigest()


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write beside ``path``, sync, rename: after a kill or a power cut the old file or the new one is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` survive a power cut (POSIX: a rename is an entry of the folder)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def record_file(root: Path, path: str) -> FileRecord:
    """Hash ``root/path`` once, whole and by chunk, in constant memory.

    Up to the end of the first chunk both digests are one: a file of one chunk is hashed once, not twice.
    """
    whole: Any = None
    chunk = hashlib.sha256()
    chunks: list[str] = []
    size, left = 0, CHUNK_BYTES
    with (root / path).open("rb", buffering=0) as file:
        block = memoryview(bytearray(1 << 20))
        while count := file.readinto(block[: min(len(block), left or CHUNK_BYTES)]):
            if left == 0:
                whole = whole or chunk.copy()
                chunks.append(chunk.hexdigest())
                chunk, left = hashlib.sha256(), CHUNK_BYTES
            piece = block[:count]
            if whole:
                whole.update(piece)
            chunk.update(piece)
            size += count
            left -= count
    chunks.append(chunk.hexdigest())
    return FileRecord(path=path, size=size, sha256=whole.hexdigest() if whole else chunks[0], chunks=chunks)


def list_files(root: Path) -> list[str]:
    """Relative paths (forward slashes, sorted) of all regular files below ``root``, links followed."""
    found, folders = [], [""]
    while folders:
        prefix = folders.pop()
        with suppress(OSError), os.scandir(f"{root}/{prefix}") as entries:
            for entry in entries:  # which know what they are: thousands of files are not looked at one by one
                if entry.is_dir():
                    folders.append(f"{prefix}{entry.name}/")
                elif entry.is_file():
                    found.append(f"{prefix}{entry.name}")
    return sorted(found)
