"""A store in a folder (``file://``).

obstore's LocalStore is not used: it renames without fsync (seen with strace, obstore 0.12.1), so that a power cut can
leave an empty file under a blob's final name; and it has no compare-and-swap (``NotImplementedError``).
"""

import fcntl
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from engineroom.artifacts.store import (
    MAX_TAG_BYTES,
    BlobEntry,
    ManifestsAsBlobs,
    NoticeEntry,
    Pointer,
    TagEntry,
    TagState,
    check_size,
)
from engineroom.documents import sync_folder
from engineroom.errors import ArtifactNotFoundError, StoreError

_PIECE = 1 << 20


class FolderStore(ManifestsAsBlobs):
    """Blobs and tags as plain files, each written beside, synced and renamed."""

    def __init__(self, folder: str) -> None:
        self.root = f"file://{folder}"
        self._folder = Path(folder)
        self._blobs = self._folder / "blobs" / "sha256"
        self._incoming = self._folder / "incoming"
        self._refs = self._folder / "refs"
        self._notices = self._folder / "notices"

    def blob_size(self, blob: str) -> int | None:
        """Bytes of a blob, or None."""
        with self._translated():
            try:
                return (self._blobs / blob).stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

    def read_blob(self, blob: str, start: int, end: int, *, size: int) -> Iterator[memoryview]:
        """Bytes of a blob in pieces of 1 MiB; a piece is valid until the next one is taken."""
        end = min(end, size)
        buffer = memoryview(bytearray(min(_PIECE, max(end - start, 1))))
        with self._translated(), self._open_blob(blob) as file:
            check_size(blob, os.fstat(file).st_size, size, where=self.root)
            while start < end and (count := os.preadv(file, [buffer[: min(len(buffer), end - start)]], start)):
                start += count
                yield buffer[:count]

    def write_blob(self, blob: str, size: int, pieces: Iterable[memoryview]) -> None:
        """Write into ``incoming/``, sync, rename to the final name, sync the folder."""
        with self._translated():
            _make_folder(self._blobs)
            with self._temporary() as (handle, path):
                written = 0
                for piece in pieces:
                    view = memoryview(piece)
                    while view:
                        count = os.write(handle, view)
                        view = view[count:]
                        written += count
                if written != size:
                    raise StoreError(f"{written} bytes came for a blob of {size}", where=f"{self.root}: {blob}")
                os.fsync(handle)
                path.rename(self._blobs / blob)
            sync_folder(self._blobs)

    def read_tag(self, name: str, tag: str) -> TagState | None:
        """What a tag names, or None."""
        path = self._tag(name, tag)
        with self._translated():
            try:
                with path.open("rb") as file:
                    data = file.read(MAX_TAG_BYTES + 1)
                    modified = datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, UTC)
            except (FileNotFoundError, NotADirectoryError):
                return None
        return TagState(Pointer.parse(data, where=f"{self.root}/{name}:{tag}"), "", modified)

    def create_tag(self, name: str, tag: str, pointer: Pointer) -> bool:
        """``link`` fails where the name exists: the one atomic create that takes a finished file."""
        path = self._tag(name, tag)
        with self._translated(), self._locked(path.parent):
            with self._tag_file(pointer) as temporary:
                try:
                    os.link(temporary, path)
                except FileExistsError:
                    return False
            sync_folder(path.parent)
        return True

    def move_tag(self, name: str, tag: str, pointer: Pointer, *, expected: TagState) -> bool:
        """Compare and rename under the lock that all writers of the name's tags take."""
        path = self._tag(name, tag)
        with self._translated(), self._locked(path.parent):
            current = self.read_tag(name, tag)
            if current is None or current.pointer != expected.pointer:
                return False
            with self._tag_file(pointer) as temporary:
                temporary.rename(path)
            sync_folder(path.parent)
        return True

    def write_tag(self, name: str, tag: str, pointer: Pointer) -> None:
        """Rename over whatever was there."""
        path = self._tag(name, tag)
        with self._translated(), self._locked(path.parent):
            with self._tag_file(pointer) as temporary:
                temporary.rename(path)
            sync_folder(path.parent)

    def tags(self, name: str) -> list[str]:
        """Files of the name's folder of tags."""
        return [entry.tag for entry in self.list_tags(name)]

    def names(self) -> list[str]:
        """Folders below ``refs`` that have tags."""
        with self._translated():
            if not self._folder.is_dir():
                raise ArtifactNotFoundError("there is no such folder", where=self.root)
            names = [path.name for path in _entries(self._refs) if not path.name.startswith(".")]
        return sorted(name for name in names if self.tags(name))

    def list_tags(self, name: str | None = None) -> list[TagEntry]:
        """Files of one name's folder of tags, or of every name's."""
        with self._translated():
            names = [name] if name else sorted(path.name for path in _entries(self._refs) if path.name[0] != ".")
            return [
                TagEntry(tag, _time(status), each, f"{status.st_ino}-{status.st_mtime_ns}")
                for each in names
                for tag, status in _files(self._refs / each / "tags")
            ]

    def blobs(self) -> Iterator[BlobEntry]:
        """Files of the folder of blobs."""
        with self._translated():
            found = _files(self._blobs)
        return (BlobEntry(blob, status.st_size, _time(status)) for blob, status in found)

    def remove_blobs(self, blobs: Sequence[str]) -> None:
        """Unlink each, and sync the folder."""
        with self._translated():
            for blob in blobs:
                (self._blobs / blob).unlink(missing_ok=True)
            if blobs and self._blobs.is_dir():
                sync_folder(self._blobs)

    def remove_tag(self, name: str, tag: str) -> None:
        """Unlink it under the lock that all writers of the name's tags take."""
        path = self._tag(name, tag)
        with self._translated():
            if path.parent.is_dir():
                with self._locked(path.parent):
                    path.unlink(missing_ok=True)
                    sync_folder(path.parent)

    def post(self, notice: str, data: bytes) -> None:
        """A file, renamed over what was there."""
        with self._translated():
            _make_folder(self._notices)
            with self._temporary() as (handle, path):
                view = memoryview(data)
                while view:
                    view = view[os.write(handle, view) :]
                os.fsync(handle)
                # Its age counts from here: writing may have taken a while.
                os.utime(handle)
                path.rename(self._notices / notice)
            sync_folder(self._notices)

    def notices(self) -> list[NoticeEntry]:
        """Files of the folder of notices."""
        with self._translated():
            return [NoticeEntry(name, _time(status)) for name, status in _files(self._notices)]

    def read_notice(self, notice: str) -> bytes | None:
        """The file's bytes."""
        with self._translated():
            try:
                return (self._notices / notice).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def withdraw(self, *notices: str) -> None:
        """Unlink each."""
        with self._translated():
            for notice in notices:
                (self._notices / notice).unlink(missing_ok=True)

    def keeps_conditions(self) -> bool:
        """Whether this file system refuses a second ``link`` to a name: some network mounts have no links."""
        with self._translated():
            _make_folder(self._refs)
            with self._tag_file(Pointer("sha256:" + "0" * 64, 1)) as temporary:
                probe = self._refs / f".probe-{temporary.name}"
                try:
                    os.link(temporary, probe)
                    try:
                        os.link(temporary, probe)
                    except FileExistsError:
                        return True
                    return False
                finally:
                    probe.unlink(missing_ok=True)

    def _tag(self, name: str, tag: str) -> Path:
        return self._refs / name / "tags" / tag

    @contextmanager
    def _open_blob(self, blob: str) -> Iterator[int]:
        try:
            handle = os.open(self._blobs / blob, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise ArtifactNotFoundError(f"there is no blob sha256:{blob}", where=self.root) from None
        try:
            yield handle
        finally:
            os.close(handle)

    @contextmanager
    def _temporary(self) -> Iterator[tuple[int, Path]]:
        """A locked file below ``incoming/``, gone afterwards unless it was renamed.

        A writer that was killed leaves its file; the next writer sees that nobody locks it and removes it.
        """
        _make_folder(self._incoming)
        self._sweep()
        while True:
            handle, name = tempfile.mkstemp(dir=self._incoming)
            fcntl.flock(handle, fcntl.LOCK_EX)
            if os.fstat(handle).st_nlink:
                break
            os.close(handle)  # swept by another writer between creation and lock
        try:
            os.fchmod(handle, 0o644)
            yield handle, Path(name)
        finally:
            # A renamed file is no longer there under this name, and the name is random.
            Path(name).unlink(missing_ok=True)
            os.close(handle)

    def _sweep(self) -> None:
        for path in _entries(self._incoming):
            with suppress(OSError):
                handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                finally:
                    os.close(handle)

    @contextmanager
    def _tag_file(self, pointer: Pointer) -> Iterator[Path]:
        with self._temporary() as (handle, path):
            os.write(handle, pointer.to_json())
            os.fsync(handle)
            yield path

    @contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        _make_folder(folder)
        handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            named = f" ({error.filename})" if error.filename else ""
            raise StoreError(
                f"{(error.strerror or str(error)).lower()}{named}",
                where=self.root,
                fix="check that the folder is there, writable, and not full",
            ) from None


def _make_folder(folder: Path) -> None:
    """``mkdir -p`` whose new folders survive a power cut."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def _files(folder: Path) -> list[tuple[str, os.stat_result]]:
    """Names and state of the regular files in a folder, sorted; hidden ones are not ours."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                with suppress(FileNotFoundError):  # removed since
                    if entry.is_file(follow_symlinks=False):
                        found.append((entry.name, entry.stat(follow_symlinks=False)))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found)


def _time(status: os.stat_result) -> datetime:
    return datetime.fromtimestamp(status.st_mtime, UTC)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
