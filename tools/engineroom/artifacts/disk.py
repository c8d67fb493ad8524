"""What Linux offers to whoever writes gigabytes, and Python does not wrap."""

import ctypes
import errno
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from engineroom.artifacts.parallel import Stop, run_all
from engineroom.documents import sync_folder

_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h
_UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
#: Waiting for a disk costs no processor: many waiting at once let a journal commit once for all of them.
_SYNC_WORKERS = 16


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def allocate(handle: int, size: int) -> None:
    """Reserve ``size`` bytes on disk: a full disk is found out now, and the file is laid down in one piece.

    Not ``os.posix_fallocate``, which writes every block where a file system cannot reserve (NFS 3).
    """
    if size and hasattr(_libc(), "fallocate"):
        if _libc().fallocate(handle, 0, ctypes.c_int64(0), ctypes.c_int64(size)) == 0:
            return
        error = ctypes.get_errno()
        if error not in _UNSUPPORTED:
            raise OSError(error, os.strerror(error))
    os.truncate(handle, size)


def start_writeback(handle: int, start: int, size: int) -> None:
    """Let the disk begin now with what an fsync at the end waits for. A hint: nothing depends on it."""
    if hasattr(_libc(), "sync_file_range"):
        _libc().sync_file_range(handle, ctypes.c_int64(start), ctypes.c_int64(size), _SYNC_FILE_RANGE_WRITE)


def has_data(handle: int, start: int, size: int) -> bool:
    """Whether anything was ever written there; reserved or skipped bytes need not be read to be known as zeros."""
    try:
        return os.lseek(handle, start, os.SEEK_DATA) < start + size
    except OSError as error:
        return error.errno != errno.ENXIO  # no data up to the end; other errors: not known here


def sync_files(paths: Iterable[Path]) -> None:
    """``fsync`` of many files, side by side."""

    def sync(path: Path, stop: Stop) -> None:
        stop.check()
        sync_folder(path)  # the call is the same for a file and for a folder

    run_all(sync, paths, workers=_SYNC_WORKERS)
