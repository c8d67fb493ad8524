"""Folders that appear whole: filled beside their place, synced, and swapped in by one rename.

The mechanism of every stage that writes a folder for others to read: the engine cache, assembled trees, pulled trees.
"""

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from engineroom.documents import sync_folder
from engineroom.errors import StoreError

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


@contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock file ``path``, one process at a time; ``waiting`` is called before waiting for another.

    The lock ends with the process, however it ends. The file stays: removing it would let two processes hold locks
    on two files of one name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def swap_in(staging: Path, target: Path) -> None:
    """Give the folder ``staging`` the name ``target``; what had that name has the name ``staging`` then.

    By ``renameat2(RENAME_EXCHANGE)``: the target's name always has a whole folder behind it, the old one or the new
    one, which two renames cannot promise. A server that still has the old files open keeps them.
    """
    if not target.exists():
        staging.rename(target)
    elif not _exchange(staging, target):
        # File systems without exchange (NFS): a moment without the folder, which the next run repairs after a kill.
        old = staging.with_name(f"{staging.name}-old")
        target.rename(old)
        staging.rename(target)
        old.rename(staging)
    sync_folder(target.parent)


def sync_tree(root: Path, *, files: bool = False) -> None:
    """Sync every folder below ``root`` and itself; with ``files`` also what lies in them."""
    for folder, _, names in os.walk(root, topdown=False):
        for name in names if files else ():
            # The call is the same for a file and for a folder.
            sync_folder(Path(folder, name))
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
