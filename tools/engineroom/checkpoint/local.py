"""A checkpoint folder on this machine: checked and hashed where it lies, never copied."""

from pathlib import Path

from engineroom.checkpoint.files import TOKENIZER, serving_files
from engineroom.checkpoint.record import CheckpointRecord, record_checkpoint
from engineroom.checkpoint.shape import ModelShape, read_json, read_shape
from engineroom.checkpoint.weights import read_weights
from engineroom.documents import Document, digest_of
from engineroom.errors import CheckpointError, DocumentError
from engineroom.progress import Progress

REVISION = "local"


class Remembered(Document):
    """What a folder hashed to when its files looked like ``fingerprint``: 140 GB need not be read again."""

    fingerprint: str
    """Digest of name, size, inode and both times of every file. ctime is among them because no tool sets it back."""
    record: CheckpointRecord


def record_folder(folder: Path, *, cache: Path, progress: Progress) -> tuple[CheckpointRecord, str | None]:
    """The record of the checkpoint in ``folder``, and why it was not hashed again, if it was not.

    Links are followed, also out of the folder: a snapshot in Hugging Face's cache is made of links to blobs.
    Raises CheckpointError where the folder holds no checkpoint that serves.
    """
    shape = check_serving_files(folder)
    names = serving_files(folder)
    fingerprint = _fingerprint(folder, names)
    memory = cache / "checkpoints" / "local" / f"{digest_of(str(folder))}.json"
    try:
        remembered = Remembered.read(memory, made_by="engineroom fetch")
    except DocumentError:  # never hashed, or a file of another version
        remembered = None
    if remembered is not None and remembered.fingerprint == fingerprint:
        return remembered.record, f"{folder} was hashed before and has not changed since"
    try:
        record = record_checkpoint(
            folder,
            source=str(folder),
            revision=REVISION,
            architecture=shape.architecture,
            paths=names,
            progress=progress,
        )
    except OSError as error:
        raise CheckpointError(
            f"cannot read it ({error.strerror or error})", where=str(error.filename or folder)
        ) from None
    if _fingerprint(folder, names) != fingerprint:
        raise CheckpointError(
            "its files changed while they were hashed", where=str(folder), fix="try again when they rest"
        )
    Remembered(fingerprint=fingerprint, record=record).write(memory)
    return record, None


def check_serving_files(folder: Path) -> ModelShape:
    """Check that config, tokenizer and the headers of all weights parse, and return the model's shape.

    Raises CheckpointError, one sentence for the first problem.
    """
    serving_files(folder)
    shape = check_small_files(folder)
    if not read_weights(folder).tensors:
        raise CheckpointError("its safetensors files hold no tensors", where=str(folder))
    return shape


def check_small_files(folder: Path) -> ModelShape:
    """The part of :func:`check_serving_files` that needs no weights: known before gigabytes are fetched."""
    path = folder / TOKENIZER
    if not isinstance(read_json(path).get("model"), dict):
        raise CheckpointError("it has no `model`, so it is no tokenizer of the tokenizers library", where=str(path))
    return read_shape(folder)


def _fingerprint(folder: Path, names: list[str]) -> str:
    states = []
    for name in names:
        try:
            state = (folder / name).stat()
        except OSError as error:
            raise CheckpointError(f"cannot read it ({error.strerror or error})", where=str(folder / name)) from None
        # As text: canonical JSON has no integers above 2^53, and nanoseconds are.
        states.append([name, str(state.st_size), str(state.st_ino), str(state.st_mtime_ns), str(state.st_ctime_ns)])
    return digest_of(states)
