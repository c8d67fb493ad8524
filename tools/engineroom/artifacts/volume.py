"""A folder, such as a mounted volume, in pieces that are blobs: how backups keep what is no artifact.

Read twice: once to know what has to be sent, and once more to send the pieces that the store lacks. A piece that
changed in between is found out, as is a file that changes while it is read: a backup is of a folder at rest.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from engineroom import documents
from engineroom.artifacts.backup_record import SavedEntry, SavedFolder, link_problem
from engineroom.artifacts.closure import Needed
from engineroom.artifacts.copying import read_verified
from engineroom.artifacts.manifest import path_problem
from engineroom.artifacts.parallel import Stop, run_all
from engineroom.artifacts.store import Store
from engineroom.documents import sync_folder, write_atomic
from engineroom.errors import ArtifactCorruptError, InputError
from engineroom.folders import disk_errors
from engineroom.progress import QUIET, Progress, Task

_PIECE = 1 << 20
#: What a file system keeps for itself in the root of a volume.
_OF_THE_FILE_SYSTEM = {"lost+found"}
_AT_REST = "back up a folder that nobody writes to, or a snapshot of it"
#: Lies in a folder while it is being restored, and says what.
MARK = ".engineroom-restoring"


@dataclass(frozen=True)
class Piece:
    """A piece of a file that is one blob."""

    path: Path
    start: int
    size: int
    hex: str


def save_folder(folder: Path, progress: Progress) -> tuple[SavedFolder, list[Piece]]:
    """Read a folder: what is in it, and the pieces of its files.

    Sockets, pipes and devices are left out, and said so. Raises :class:`InputError` where something cannot be
    read, or changes meanwhile, or is a link that leads out of the folder.
    """
    folder = folder.absolute()
    if not folder.is_dir():
        raise InputError("there is no such folder", where=str(folder), fix="give --folder a folder that is there")
    try:
        found = list(_walk(folder, progress))
        total = sum(status.st_size for _, status in found if stat.S_ISREG(status.st_mode))
        with progress.task(f"read {folder.name}", total) as task:
            saved = run_all(lambda item, stop: _save(folder, *item, task, stop), found)
    except OSError as error:
        raise InputError(
            f"cannot read it ({error.strerror or error})",
            where=str(error.filename or folder),
            fix=_AT_REST if error.errno == errno.ENOENT else "check its permissions",
        ) from None
    pieces = [
        Piece(folder / entry.path, number * step, min(step, entry.size - number * step), chunk)
        for step in [documents.CHUNK_BYTES]
        for entry in saved
        for number, chunk in enumerate(entry.chunks)
    ]
    return SavedFolder(path=str(folder), name=folder.name or "root", entries=saved), pieces


def _walk(folder: Path, progress: Progress) -> Iterator[tuple[str, os.stat_result]]:
    def fail(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, onerror=fail):
        if Path(parent) == folder:
            folders[:] = [name for name in folders if name not in _OF_THE_FILE_SYSTEM]
        for name in sorted([*folders, *names]):
            path = Path(parent, name)
            relative = path.relative_to(folder).as_posix()
            status = path.lstat()
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode)):
                progress.say(f"left out, no file, link or folder: {path}")
                continue
            problem = "is not UTF-8" if _odd(relative) else path_problem(relative)
            if problem and not problem.startswith("is the build record"):
                raise InputError(f"its name {problem}", where=ascii(str(path)), fix="rename it")
            yield relative, status


def _odd(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return True
    return False


def _save(folder: Path, path: str, status: os.stat_result, task: Task, stop: Stop) -> SavedEntry:
    mode, modified = stat.S_IMODE(status.st_mode), status.st_mtime_ns // 1000
    if stat.S_ISDIR(status.st_mode):
        return SavedEntry(path=path, kind="folder", mode=mode, modified=modified)
    if stat.S_ISLNK(status.st_mode):
        target = (folder / path).readlink().as_posix()
        if problem := link_problem(path, target):
            raise InputError(
                f"the link to {target!r} {problem}", where=str(folder / path), fix="replace it with what it names"
            )
        return SavedEntry(path=path, kind="link", mode=mode, modified=modified, target=target)
    chunks = []
    handle = os.open(folder / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for start in range(0, status.st_size, documents.CHUNK_BYTES):
            found = hashlib.sha256()
            for piece in _pieces(handle, start, min(documents.CHUNK_BYTES, status.st_size - start), stop):
                found.update(piece)
                task.advance(len(piece))
            chunks.append(found.hexdigest())
        after = os.fstat(handle)
    finally:
        os.close(handle)
    if (after.st_size, after.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
        raise InputError("it changed while it was read", where=str(folder / path), fix=_AT_REST)
    return SavedEntry(path=path, kind="file", mode=mode, modified=modified, size=status.st_size, chunks=chunks)


def _pieces(handle: int, start: int, size: int, stop: Stop) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(_PIECE, max(size, 1))))
    at, end = start, start + size
    while at < end and (count := os.preadv(handle, [buffer[: min(len(buffer), end - at)]], at)):
        stop.check()
        at += count
        yield buffer[:count]


def read_piece(piece: Piece, task: Task, stop: Stop) -> Iterator[memoryview]:
    """The bytes of a piece, the last given on only where it is still what was read before.

    Raises :class:`InputError`.
    """
    changed = InputError("it changed while it was backed up", where=str(piece.path), fix=_AT_REST)
    found, at = hashlib.sha256(), 0
    try:
        handle = os.open(piece.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        raise changed from None
    try:
        for data in _pieces(handle, piece.start, piece.size, stop):
            found.update(data)
            at += len(data)
            if at == piece.size and found.hexdigest() != piece.hex:
                raise changed
            yield data
            task.advance(len(data))
    finally:
        os.close(handle)
    if at != piece.size:
        raise changed


def check_place(saved: SavedFolder, to: Path, label: str) -> bool:
    """Whether there is anything to do: False where ``to`` holds exactly what was saved.

    Raises :class:`InputError` where it holds anything else but an unfinished restoration of ``label``.
    """
    if not to.exists():
        return True
    if not to.is_dir():
        raise InputError("it is no folder", where=str(to), fix="choose another folder")
    # A restoration may be killed while it writes its mark, under a name beside it.
    there = {path.name for path in to.iterdir() if not path.name.startswith(f".{MARK}.")} - _OF_THE_FILE_SYSTEM
    if not there:
        return True
    with suppress(OSError):
        if MARK in there and (to / MARK).read_text(encoding="utf-8") == label:
            return True
    if there <= {entry.path.partition("/")[0] for entry in saved.entries}:
        with suppress(InputError):
            found, _ = save_folder(to, QUIET)
            if {_contents(entry) for entry in found.entries} == {_contents(entry) for entry in saved.entries}:
                return False
    raise InputError("it is not empty", where=str(to), fix="restore into an empty folder")


def _contents(entry: SavedEntry) -> tuple[str, str, int, tuple[str, ...], str]:
    return entry.path, entry.kind, entry.size, tuple(entry.chunks), entry.target


def restore_folder(
    saved: SavedFolder, to: Path, *, store: Store, where: str, label: str, progress: Progress, dry_run: bool = False
) -> int:
    """Make ``to``, which must be empty or absent, hold what was saved; the bytes that came from the store.

    Nothing is done where it holds just that already. A restoration that was killed goes on: pieces that are there and
    right are kept. Until it is done, the file :data:`MARK` lies in the folder. Nothing is written through a link.

    Raises:
        InputError: the folder holds something else.
        ArtifactCorruptError: a piece is not what was saved.
        StoreError: the store failed, or the disk is full.
    """
    with disk_errors(to):
        if not check_place(saved, to, label):
            return 0
        if dry_run:
            return saved.size
        to.mkdir(parents=True, exist_ok=True)
        for left in to.glob(f".{MARK}.*"):
            left.unlink()
        write_atomic(to / MARK, label.encode())
        for entry in saved.entries:
            if entry.kind == "folder":
                (to / entry.path).mkdir(exist_ok=True)
                (to / entry.path).chmod(0o700)
        work = []
        for entry in (entry for entry in saved.entries if entry.kind == "file"):
            handle = os.open(to / entry.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.fchmod(handle, 0o600)
                fresh = os.fstat(handle).st_size == 0
                os.ftruncate(handle, entry.size)
            finally:
                os.close(handle)
            work += [(entry, number, fresh) for number in range(len(entry.chunks))]
        with progress.task(f"restore {saved.name}", saved.size) as task:
            came = run_all(lambda item, stop: _land(to, *item, store, where, task, stop), work)
        _finish(saved, to)
        (to / MARK).unlink()
        sync_folder(to)
    return sum(came)


def _land(
    to: Path, entry: SavedEntry, number: int, fresh: bool, store: Store, where: str, task: Task, stop: Stop
) -> int:
    stop.check()
    start = number * documents.CHUNK_BYTES
    needed = Needed(entry.chunks[number], min(documents.CHUNK_BYTES, entry.size - start), entry.path)
    handle = os.open(to / entry.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not fresh:
            found = hashlib.sha256()
            for data in _pieces(handle, start, needed.size, stop):
                found.update(data)
            if found.hexdigest() == needed.hex:
                task.advance(needed.size)
                return 0
        at = start
        for data in read_verified(store, needed, where=where, task=task, stop=stop):
            view = data
            while view:
                count = os.pwrite(handle, view, at)
                view, at = view[count:], at + count
        os.fsync(handle)
    finally:
        os.close(handle)
    return needed.size


def _finish(saved: SavedFolder, to: Path) -> None:
    """Links, modes and times; the deepest first, since a folder's time changes with what is made in it."""
    for entry in saved.entries:
        if entry.kind == "link":
            path = to / entry.path
            if path.is_symlink():
                path.unlink()
            path.symlink_to(entry.target)
    for entry in sorted(saved.entries, key=lambda entry: -entry.path.count("/")):
        path, times = to / entry.path, (entry.modified * 1000, entry.modified * 1000)
        if entry.kind == "file" and path.lstat().st_size != entry.size:
            raise ArtifactCorruptError("somebody else writes into it", where=str(path), fix="restore it again")
        if entry.kind != "link":
            path.chmod(entry.mode)
        os.utime(path, ns=times, follow_symlinks=False)
        if entry.kind == "folder":
            with suppress(PermissionError):  # a folder that may not be read; its parent knows of it
                sync_folder(path)
