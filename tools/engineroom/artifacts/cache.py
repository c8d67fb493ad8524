"""A cache of pulled trees that the processes and pods of a node share.

::

    DIR/trees/<digest>          a whole tree, which servers read where it is
    DIR/files/<sha256>          each of its files under its digest, for other trees: hard links, so the file system
                                counts the references, and a file is gone when nothing has it any more
    DIR/leases/<digest>         locked (shared) by whoever uses the tree; its time is the tree's last use

A server keeps its tree by holding a shared lock on the lease, which it inherits through ``exec``::

    exec 9<DIR/leases/<digest>; flock --shared 9; exec tritonserver …

Without it a tree may be removed from under a server an hour after its last pull, if room is needed: open files live on,
but a restart of the container would find nothing. All of it lies in one file system, because a hard link cannot
cross a mount, not even one of the same disk.
"""

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from engineroom.artifacts.manifest import StoredFile
from engineroom.artifacts.swap import listing_file
from engineroom.documents import sync_folder
from engineroom.errors import InputError, StoreError
from engineroom.progress import QUIET, Progress

#: Younger use than this keeps a tree: between a pull and its server's lock, and for servers that take none.
GRACE_SECONDS = 3600.0


class Cache:
    """The folder ``folder``, and how large it may become (bytes; None: as large as its file system)."""

    def __init__(self, folder: Path, *, limit: int | None = None, grace_seconds: float = GRACE_SECONDS) -> None:
        self.folder = folder.absolute()
        self.limit = limit
        self._grace = grace_seconds
        self._trees, self._files, self._leases = (self.folder / name for name in ("trees", "files", "leases"))

    def tree(self, digest: str) -> Path:
        """Where the tree of an artifact (``sha256:…``) lies, or will."""
        return self._trees / digest.removeprefix("sha256:")

    def lease(self, digest: str) -> Path:
        """The file to lock while the tree is used."""
        return self._leases / digest.removeprefix("sha256:")

    def file(self, file: StoredFile) -> Path:
        """Where another tree may have left a file with these bytes."""
        return self._files / file.record.sha256

    @contextmanager
    def using(self, digest: str) -> Iterator[None]:
        """Keep the tree from being removed, and note that it was used.

        Raises :class:`InputError` where the folder is something else.
        """
        self._make()
        lease = self.lease(digest)
        handle = os.open(lease, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH)  # waits for an eviction that is at work, which is short
            os.utime(handle)
            yield
            os.utime(handle)
        finally:
            os.close(handle)

    def keep(self, tree: Path, files: Iterable[StoredFile]) -> None:
        """Give the files of a verified tree their second names. A name that is taken is renewed: it was not good."""
        for file in files:
            source, kept = tree / file.record.path, self.file(file)
            try:
                if kept.exists() and kept.samefile(source):
                    continue
            except FileNotFoundError:
                pass  # evicted meanwhile
            # Beside, under a name of our own, until the rename; pods do not see each other's process numbers.
            beside = self._leases / f".{secrets.token_hex(8)}"
            with suppress(OSError):  # too many links (65,000 on ext4): then other trees do without
                os.link(source, beside)
                beside.replace(kept)
                beside.unlink(missing_ok=True)  # a rename onto another link of the same file does nothing (POSIX)
        sync_folder(self._files)

    def make_room(self, needed: int, *, spare: int = 0, progress: Progress = QUIET) -> int:
        """Remove what was not used for longest until ``needed`` bytes more fit the limit and, with ``spare``, the disk.

        Nothing that is locked, or was used within the grace period, is removed. Returns how many trees were. Raises
        :class:`StoreError` where the limit cannot be kept; whether the disk has room is the caller's question.
        """
        if self._fits(needed, spare):
            return 0
        self._remove_unused()
        removed = 0
        for lease in sorted(self._leases.glob("[!.]*"), key=_last_use):
            if self._fits(needed, spare):
                break
            removed += self._evict(lease)
        if removed:
            progress.say(f"cache: removed {removed} tree(s) that were not used for longest, to make room")
        if self.limit is not None and (used := self.used()) + needed > self.limit:
            raise StoreError(
                f"{used / 1e9:.2f} GB are in use and {needed / 1e9:.2f} GB more do not fit the limit of "
                f"{self.limit / 1e9:.2f} GB",
                where=str(self.folder),
                fix="raise --cache-size, or stop a server that holds its tree",
            )
        return removed

    def used(self) -> int:
        """Bytes on disk of everything, each file once."""
        seen: dict[int, int] = {}
        for folder, _, names in os.walk(self.folder):
            for name in names:
                with suppress(FileNotFoundError):
                    found = Path(folder, name).lstat()
                    seen[found.st_ino] = found.st_blocks * 512
        return sum(seen.values())

    def _make(self) -> None:
        if self.folder.is_dir() and any(self.folder.iterdir()) and not self._trees.is_dir():
            raise InputError(
                "it is not empty and no cache of engineroom", where=str(self.folder), fix="name a folder for it alone"
            )
        # `trees` first: another process may look at this moment whether this is a cache.
        for folder in (self._trees, self._files, self._leases):
            folder.mkdir(parents=True, exist_ok=True)

    def _fits(self, needed: int, spare: int) -> bool:
        if needed + spare > shutil.disk_usage(self.folder).free:
            return False
        return self.limit is None or self.used() + needed <= self.limit

    def _evict(self, lease: Path) -> bool:
        """Remove the tree of a lease that nobody holds, and what a killed pull left of it."""
        paths = [path for path in (self._trees / lease.name, *self._staging(lease.name)) if path.is_dir()]
        if not paths:
            return False
        handle = os.open(lease, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(handle).st_mtime < self._grace:
                return False
            for number, path in enumerate(paths):
                # Out of sight first: nobody may take half a tree for a whole one.
                gone = self._trees / f".{lease.name}.gone-{number}-{secrets.token_hex(4)}"
                path.rename(gone)
                shutil.rmtree(gone, ignore_errors=True)
            listing_file(self._trees / lease.name, lease.name).unlink(missing_ok=True)
            self._remove_unused()
            return True
        except BlockingIOError:
            return False
        finally:
            os.close(handle)

    def _staging(self, name: str) -> Iterator[Path]:
        return self._trees.glob(f".{name}.pull-*")

    def _remove_unused(self) -> None:
        """Remove files that no tree has any more, and what killed evictions left."""
        for path in self._trees.glob(".*.gone-*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self._leases.glob(".*"):  # of a pull that was killed between a link and its rename
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_ctime >= self._grace:
                    path.unlink()
        for entry in os.scandir(self._files):
            with suppress(FileNotFoundError):
                # A pull that is about to link it finds it gone, and downloads.
                if entry.stat(follow_symlinks=False).st_nlink == 1:
                    Path(entry.path).unlink()


def _last_use(lease: Path) -> float:
    try:
        return lease.stat().st_mtime
    except FileNotFoundError:
        return 0.0
