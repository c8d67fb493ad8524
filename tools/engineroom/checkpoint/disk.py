"""Room on the disk: asked for before gigabytes are written, and put into words when it runs out."""

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from engineroom.errors import StoreError


@contextmanager
def disk_errors(folder: Path, missing: Callable[[], int] | None = None) -> Iterator[None]:
    """Turn a full or unwritable disk below ``folder`` into a StoreError; ``missing``: bytes still to be written."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(folder, missing() if missing else None) from None
        raise StoreError(
            f"cannot read or write it ({error.strerror or error})",
            where=str(error.filename or folder),
            fix="set ENGINEROOM_CACHE to a folder that you may write",
        ) from None


def readable(size: int) -> str:
    """``size`` in bytes, as a person reads it: 1.5 GB."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def check_space(folder: Path, needed: int) -> None:
    """Raise StoreError where the disk of ``folder`` has no room for ``needed`` more bytes."""
    with disk_errors(folder):
        free = shutil.disk_usage(folder).free
    if needed > free:
        raise _full(folder, needed)


def _full(folder: Path, needed: int | None) -> StoreError:
    free = readable(shutil.disk_usage(folder).free)
    return StoreError(
        f"the disk is too full: {free} are free" + ("" if needed is None else f" and {readable(needed)} are needed"),
        where=str(folder),
        fix="free some space (what has arrived is kept), or set ENGINEROOM_CACHE to a folder on a larger disk",
    )
