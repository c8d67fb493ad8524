"""The folder that a pull fills and then swaps in: one at a time, all or nothing.

Beside the target ``NAME`` lie ``.NAME.pull-lock`` and, while a pull runs or after it was killed, the staging folder
``.NAME.pull-<digest>``. The swap is ``renameat2(RENAME_EXCHANGE)``: the target's name always has a whole tree behind
it, the old one or the new one, which two renames cannot promise and a symbolic link would only promise by making
the target something other than a folder. A server that still has the old files open keeps them.
"""

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engineroom.documents import sync_folder
from engineroom.errors import InputError, StoreError
from engineroom.progress import Progress
from engineroom.repository.record import FILE as RECORD_FILE

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h
_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV}


@contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Translate what a file system refuses into :class:`StoreError`."""
    try:
        yield
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        raise StoreError(
            f"{(error.strerror or str(error)).lower()}{f' ({error.filename})' if error.filename else ''}",
            where=str(where),
            fix="free some space; what is there already is kept" if full else "check the folder and its permissions",
        ) from None


def check_target(target: Path) -> None:
    """Refuse to replace anything that is not a pulled tree, or that a rename cannot replace.

    Raises :class:`InputError`.
    """
    if not target.name:
        raise InputError("a folder with a name is wanted", where=str(target))
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise InputError("it is no folder", where=str(target), fix="choose another folder, or remove it")
    if not target.is_dir():
        return
    if target.is_mount():
        raise InputError(
            "it is a mount point, which no rename can replace", where=str(target), fix="pull into a folder below it"
        )
    if not (target / RECORD_FILE).is_file() and any(target.iterdir()):
        raise InputError(
            "it is not empty and holds no pulled artifact", where=str(target), fix="choose another folder, or empty it"
        )


@contextmanager
def locked(target: Path, progress: Progress) -> Iterator[None]:
    """Let one pull at a time work on ``target``. The lock ends with the process, however it ends."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # The lock file stays: removing it would let two pulls hold locks on two files of one name.
    handle = os.open(target.parent / f".{target.name}.pull-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say(f"another pull into {target} is at work: waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def staging_folder(target: Path, digest: str) -> Path:
    """Where the artifact with this digest (``sha256:…``) is put together; the same after a kill."""
    return target.parent / f".{target.name}.pull-{digest.removeprefix('sha256:')[:16]}"


def remove_leftovers(target: Path) -> None:
    """Remove staging folders of killed pulls and old trees. Call it with the lock held."""
    for path in target.parent.glob(f".{_escape(target.name)}.pull-*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def swap_in(staging: Path, target: Path) -> None:
    """Give ``staging`` the name ``target``; what was there goes to the staging name and is removed."""
    if not target.exists():
        staging.rename(target)
    elif not _exchange(staging, target):
        # File systems without exchange (NFS): a moment without a tree, which the next pull repairs after a kill.
        old = staging.with_name(f"{staging.name}-old")
        target.rename(old)
        staging.rename(target)
    sync_folder(target.parent)


def sync_tree(root: Path) -> None:
    """Sync every folder below ``root`` and itself; files were synced when they were finished."""
    for folder, _, _ in os.walk(root, topdown=False):
        sync_folder(Path(folder))


def _exchange(first: Path, second: Path) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):  # a C library without the call
        return False
    if libc.renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    error = ctypes.get_errno()
    if error in _UNSUPPORTED:
        return False
    raise OSError(error, os.strerror(error), str(second))


def _escape(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)
