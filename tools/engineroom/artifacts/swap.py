"""The place of a pull: what may be replaced, and what lies beside it meanwhile.

Beside the target ``NAME`` lie ``.NAME.pull-lock`` and, while a pull runs or after it was killed, the staging folder
``.NAME.pull-<digest>``, which ``folders.swap_in`` exchanges with the target; and ``.NAME.pulled-<digest>.json`` where
the tree has no build record (see ``pulled_files``).
"""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from engineroom.errors import InputError
from engineroom.folders import locked
from engineroom.progress import Progress
from engineroom.repository.record import FILE as RECORD_FILE


def check_target(target: Path) -> None:
    """Refuse a target that a rename cannot replace. Raises :class:`InputError`."""
    if not target.name:
        raise InputError("a folder with a name is wanted", where=str(target))
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise InputError("it is no folder", where=str(target), fix="choose another folder, or remove it")
    if target.is_mount():
        raise InputError(
            "it is a mount point, which no rename can replace", where=str(target), fix="pull into a folder below it"
        )


def check_contents(target: Path, is_pulled: Callable[[Path], bool]) -> None:
    """Refuse to replace what is not a pulled tree: has no build record, and ``is_pulled`` does not know it.

    Raises :class:`InputError`.
    """
    if not target.is_dir() or (target / RECORD_FILE).is_file():
        return
    if any(target.iterdir()) and not is_pulled(target):
        raise InputError(
            "it is not empty and holds no pulled artifact", where=str(target), fix="choose another folder, or empty it"
        )


def one_pull(target: Path, progress: Progress) -> AbstractContextManager[None]:
    """Let one pull at a time work on ``target``."""
    return locked(
        target.parent / f".{target.name}.pull-lock",
        lambda: progress.say(f"another pull into {target} is at work: waiting for it"),
    )


def staging_folder(target: Path, digest: str) -> Path:
    """Where the artifact with this digest (``sha256:…``) is put together; the same after a kill."""
    return target.parent / f".{target.name}.pull-{digest.removeprefix('sha256:')[:16]}"


def listing_file(target: Path, digest: str) -> Path:
    """Where it is written down which files the artifact with this digest (``sha256:…``) has in ``target``."""
    return target.parent / f".{target.name}.pulled-{digest.removeprefix('sha256:')[:16]}.json"


def listing_files(target: Path) -> list[Path]:
    """All of these that there are."""
    return list(target.parent.glob(f".{_escape(target.name)}.pulled-*.json"))


def remove_leftovers(target: Path, digest: str) -> None:
    """Remove what killed pulls and old trees left where ``digest`` is now. Call it with the lock held."""
    for path in listing_files(target):
        if path != listing_file(target, digest):
            path.unlink(missing_ok=True)
    for path in target.parent.glob(f".{_escape(target.name)}.pull-*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def _escape(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)
