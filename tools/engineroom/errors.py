"""The one tree of errors. Library code raises facts; only :mod:`engineroom.cli` words them.

::

    EngineroomError               where, found, fix
    ├─ InputError                 exit 2   what the user gave cannot be used
    │   ├─ RecipeError                     a key of ``engineroom.yaml``, or a flag over it
    │   ├─ CheckpointError                 config.json, tokenizer.json, safetensors headers
    │   ├─ DocumentError                   a JSON file of ours that is missing or malformed
    │   └─ BadReferenceError               an artifact reference that cannot be parsed
    ├─ CheckFailedError           exit 3   a check found a problem
    │   ├─ DoesNotFitError                 the model does not fit the GPU class
    │   ├─ IncompatibleError               an engine and the place where it should run differ
    │   ├─ ArtifactCorruptError            bytes that are not the bytes that were promised
    │   └─ ArtifactExistsError             an immutable tag that names something else
    └─ OutsideError               exit 4   something that is not ours failed
        ├─ HubError                        the Hugging Face Hub
        ├─ StoreError                      an object store or file system
        │   └─ ArtifactNotFoundError
        └─ CommandError                    a program that we ran: command, exit code, last lines
            └─ ServerError                 the Triton server

Any other exception is a bug and leaves the program with its traceback.
"""

from typing import ClassVar


class EngineroomError(Exception):
    """A problem in three facts, which together make one sentence.

    ``where`` names the place (file, key path, URL), ``found`` what was found there,
    ``fix`` what to do about it. ``where`` and ``fix`` may be empty.
    """

    exit_code: ClassVar[int] = 4

    def __init__(self, found: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(found)
        self.where = where
        self.found = found
        self.fix = fix

    def __str__(self) -> str:
        return "; ".join(part for part in (self.where, self.found, self.fix) if part)


class InputError(EngineroomError):
    """What the user gave cannot be used: bad values, bad files, bad usage."""

    exit_code = 2


class RecipeError(InputError):
    """A key of the recipe, or a flag that overrides it. ``where`` is ``file: key.path``."""


class CheckpointError(InputError):
    """A checkpoint's own files are malformed, missing or of an unsupported kind."""


class DocumentError(InputError):
    """One of our JSON files is missing or does not follow its schema."""


class BadReferenceError(InputError):
    """An artifact reference that does not follow SCHEME://LOCATION/NAME[:TAG][@sha256:HEX]."""


class CheckFailedError(EngineroomError):
    """A check did its work and found a problem."""

    exit_code = 3


class DoesNotFitError(CheckFailedError):
    """The model does not fit the GPU class in any supported parallelism."""


class IncompatibleError(CheckFailedError):
    """An engine and the machine or image that should run it differ."""


class ArtifactCorruptError(CheckFailedError):
    """Bytes differ from what a digest promised. ``where`` names the file and the chunk."""


class ArtifactExistsError(CheckFailedError):
    """An immutable tag already names another artifact."""


class OutsideError(EngineroomError):
    """An outside system failed; the same call may work later or with other settings."""

    exit_code = 4


class HubError(OutsideError):
    """The Hugging Face Hub, or a mirror of it, did not give what was asked for."""


class StoreError(OutsideError):
    """An object store or file system did not answer as it should."""


class ArtifactNotFoundError(StoreError):
    """No artifact behind this reference."""


class CommandError(OutsideError):
    """A program that we ran failed. ``tail`` holds its last lines of output."""

    def __init__(self, found: str, *, where: str = "", fix: str = "", tail: tuple[str, ...] = ()) -> None:
        super().__init__(found, where=where, fix=fix)
        self.tail = tail


class ServerError(CommandError):
    """The Triton server did not start, died, or answered an error."""
