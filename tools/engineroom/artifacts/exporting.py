"""Export and import: artifacts into a bundle, and from a bundle into a store."""

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage

from engineroom.artifacts import archive
from engineroom.artifacts.archive import INDEX_FILE, LAYOUT, LAYOUT_FILE
from engineroom.artifacts.bundle import BundleStore, Entry, checksum_file, hash_file, make_index
from engineroom.artifacts.closure import Needed, closure
from engineroom.artifacts.copying import Copied, copy, in_store, read_verified, send
from engineroom.artifacts.folder import FolderStore
from engineroom.artifacts.parallel import Stop
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.resolve import resolve
from engineroom.artifacts.store import Pointer, Store, read_manifest
from engineroom.artifacts.stores import open_store
from engineroom.documents import sync_folder, write_atomic
from engineroom.errors import ArtifactCorruptError, InputError, StoreError
from engineroom.folders import disk_errors, locked
from engineroom.progress import QUIET, Progress, Task

_PIECE = 1 << 20
_SPARE_BYTES = 16 << 20


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    path: Path
    entries: tuple[Entry, ...]
    blobs: int
    bytes: int
    """Of the file, or of the blobs of a folder; in a dry run, what it would have."""
    sha256: str | None
    """Of the file; None for a folder, and in a dry run."""


@dataclass(frozen=True)
class _Blob:
    """A blob and the store that has it."""

    store: Store
    where: str
    needed: Needed


def export(
    references: Sequence[Reference],
    to: Path,
    *,
    layout: bool = False,
    plain_http: bool = False,
    progress: Progress = QUIET,
    dry_run: bool = False,
) -> Exported:
    """Write artifacts into the one file ``to``, with its checksum beside it, or with ``layout`` into a folder.

    Equal artifacts give equal files. An export that was cut off goes on after the last whole blob. Until all is
    written and hashed, nothing has the name ``to``.

    Raises:
        InputError: ``to`` cannot be written to.
        ArtifactNotFoundError, ArtifactCorruptError: as :func:`engineroom.artifacts.resolve.resolve`, and where the
            bytes of a store are not what was published.
        StoreError: a store failed, or the disk is full.
    """
    entries, blobs = _look(references, plain_http=plain_http)
    to = to.absolute()
    if to.is_dir() != layout and to.exists():
        what = "a folder; --layout writes into one" if to.is_dir() else "no folder"
        raise InputError(f"it is {what}", where=str(to), fix="choose another name with --to")
    if layout:
        if not dry_run:
            _write_folder(to, entries, blobs, progress)
        return Exported(to, tuple(entries), len(blobs), sum(blob.needed.size for blob in blobs), None)
    documents = [(LAYOUT_FILE, LAYOUT), (INDEX_FILE, make_index(entries))]
    sizes = [*(len(data) for _, data in documents), *(blob.needed.size for blob in blobs)]
    end = sum(len(archive.header("x", size)) + size + len(archive.padding(size)) for size in sizes)
    total = end + len(archive.trailer(end))
    if dry_run:
        return Exported(to, tuple(entries), len(blobs), total, None)
    with disk_errors(to):
        if not to.parent.is_dir():
            raise InputError("there is no such folder", where=str(to.parent), fix="make it, or choose another --to")
        with _staging(to, progress) as (handle, staging):
            free, there = disk_usage(to.parent).free, os.fstat(handle).st_blocks * 512
            if total - there + _SPARE_BYTES > free:
                raise StoreError(
                    f"{total / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free",
                    where=str(to.parent),
                    fix="free some space, or export to another file system",
                )
            with progress.task("export", total) as task:
                try:
                    digest = _Writer(handle, task).write(documents, blobs)
                except OSError as error:
                    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                        staging.unlink(missing_ok=True)  # what is there would keep the disk full
                    raise
            os.fsync(handle)
            checksum = checksum_file(to)
            # A name of its own for both, so that the next export overwrites what a killed one left.
            staged = checksum.with_name(f".{checksum.name}.exporting")
            staged.unlink(missing_ok=True)
            with staged.open("xb") as file:
                file.write(f"{digest}  {to.name}\n".encode())
                file.flush()
                os.fsync(file.fileno())
            # The old checksum goes first: it would contradict the new file.
            checksum.unlink(missing_ok=True)
            staging.rename(to)
            staged.rename(checksum)
        sync_folder(to.parent)
    return Exported(to, tuple(entries), len(blobs), total, digest)


def _look(references: Sequence[Reference], *, plain_http: bool) -> tuple[list[Entry], list[_Blob]]:
    """What goes into the bundle: manifests and build records first, so that a reader knows early what it is."""
    entries: dict[Entry, None] = {}
    blobs: dict[str, _Blob] = {}
    for reference in references:
        store = open_store(reference, plain_http=plain_http).within(reference.name)
        artifact = resolve(reference, store=store)
        pointer = Pointer(artifact.digest, len(artifact.manifest_bytes))
        entries[Entry(reference.name, reference.tag, pointer)] = None
        for needed in closure(store, pointer, where=str(artifact.reference)):
            blobs.setdefault(needed.hex, _Blob(store, str(artifact.reference), needed))
    ordered = sorted(blobs.values(), key=lambda blob: (blob.needed.kind == "file", blob.needed.hex))
    return sorted(entries, key=lambda entry: (entry.name or "", entry.tag or "")), ordered


def _read(blob: _Blob) -> Iterator[bytes | memoryview]:
    if blob.needed.kind == "manifest":
        yield read_manifest(blob.store, blob.needed.hex, where=blob.where)
    else:
        yield from read_verified(blob.store, blob.needed, where=blob.where, task=_UNSEEN, stop=Stop())


def _write_folder(to: Path, entries: list[Entry], blobs: list[_Blob], progress: Progress) -> None:
    """The blobs, then the index, to which what is there already still belongs."""
    with disk_errors(to), locked(to / ".exporting"):
        store = FolderStore(str(to))
        for source, where in {(blob.store, blob.where): None for blob in blobs}:
            mine = [blob.needed for blob in blobs if blob.where == where]
            send(source, store, mine, where=where, progress=progress)
        if (to / INDEX_FILE).exists():
            named = {(entry.name, entry.tag) for entry in entries}
            older = BundleStore(to).entries_found
            entries = [*entries, *(one for one in older if (one.name, one.tag) not in named)]
        write_atomic(to / LAYOUT_FILE, LAYOUT)
        write_atomic(to / INDEX_FILE, make_index(entries))
        with suppress(OSError):
            (to / "incoming").rmdir()
    (to / ".exporting").unlink(missing_ok=True)


@contextmanager
def _staging(to: Path, progress: Progress) -> Iterator[tuple[int, Path]]:
    """The file that becomes ``to``, locked: what an export that was killed left of it is gone on with."""
    path = to.with_name(f".{to.name}.exporting")
    told = False
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not told:
                    progress.say(f"another export to {to} is at work: waiting for it")
                    told = True
                fcntl.flock(handle, fcntl.LOCK_EX)
            if _is(path, handle):  # the other export may have renamed this very file meanwhile
                yield handle, path
                return
        finally:
            os.close(handle)


def _is(path: Path, handle: int) -> bool:
    try:
        return path.lstat().st_ino == os.fstat(handle).st_ino
    except FileNotFoundError:
        return False


class _Writer:
    """Writes a tar from its start, keeping what of it is there already and right."""

    def __init__(self, handle: int, task: Task) -> None:
        self._handle, self._task = handle, task
        self._whole = hashlib.sha256()
        self._at = 0
        self._there = os.fstat(handle).st_size

    def write(self, documents: Sequence[tuple[str, bytes]], blobs: Sequence[_Blob]) -> str:
        """All of it; SHA-256 (hexadecimal) of the file."""
        for name, data in documents:
            text = archive.header(name, len(data)) + data + archive.padding(len(data))
            if self._there < len(text) or os.pread(self._handle, len(text), self._at) != text:
                self._put(text)
            else:
                self._whole.update(text)
                self._at += len(text)
        for blob in blobs:
            needed = blob.needed
            head = archive.header(f"blobs/sha256/{needed.hex}", needed.size)
            if not self._keep(head, needed):
                self._put(head)
                for piece in _read(blob):
                    self._put(piece)
                self._put(archive.padding(needed.size))
        self._put(archive.trailer(self._at))
        os.ftruncate(self._handle, self._at)
        return self._whole.hexdigest()

    def _put(self, data: bytes | memoryview) -> None:
        self._there = 0  # what follows is of another try
        view = memoryview(data)
        while view:
            count = os.pwrite(self._handle, view, self._at)
            self._whole.update(view[:count])
            self._at += count
            self._task.advance(count)
            view = view[count:]

    def _keep(self, head: bytes, needed: Needed) -> bool:
        """Whether this member is there, whole and right; then it counts as written."""
        length = len(head) + needed.size + len(archive.padding(needed.size))
        if self._there < self._at + length:
            return False
        whole, found, at = self._whole.copy(), hashlib.sha256(), self._at
        if os.pread(self._handle, len(head), at) != head:
            return False
        whole.update(head)
        at += len(head)
        buffer = memoryview(bytearray(min(_PIECE, max(needed.size, 1))))
        while at < self._at + len(head) + needed.size:
            count = os.preadv(self._handle, [buffer[: self._at + len(head) + needed.size - at]], at)
            if not count:
                return False
            whole.update(buffer[:count])
            found.update(buffer[:count])
            at += count
        tail = os.pread(self._handle, length - len(head) - needed.size, at)
        if found.hexdigest() != needed.hex or tail != archive.padding(needed.size):
            return False
        whole.update(tail)
        self._whole, self._at = whole, self._at + length
        self._task.advance(length)
        return True


_UNSEEN = QUIET.task("", None).__enter__()


def import_bundle(
    path: Path,
    root: str,
    *,
    name: str | None = None,
    tag: str | None = None,
    sha256: str | None = None,
    plain_http: bool = False,
    progress: Progress = QUIET,
    dry_run: bool = False,
    unsafe_tags: bool = False,
) -> list[Copied]:
    """Store every artifact of a bundle in the store ``root`` (``SCHEME://LOCATION``), under its names there.

    ``name`` and ``tag`` rename the only artifact of a bundle. The whole file is compared with ``sha256``, or with
    the checksum beside it where there is one, before anything is stored; each blob is hashed as it goes in.

    Raises:
        InputError: there is no bundle; it has several artifacts and ``name`` was given, or none of a name.
        ArtifactCorruptError: the bundle is not what was exported.
        ArtifactExistsError, StoreError: as :func:`engineroom.artifacts.copying.copy`.
    """
    check_sum(path, sha256, progress)
    bundle = BundleStore(path)
    entries = bundle.entries_found
    if (name or tag) and len(entries) > 1:
        raise InputError(f"the bundle has {len(entries)} artifacts", where=str(path), fix="import them without --as")
    targets = []
    for entry in entries:
        called = name or entry.name
        if called is None:
            raise InputError("the bundle does not say its name", where=str(path), fix="give --as NAME[:TAG]")
        chosen = tag or entry.tag
        targets.append(in_store(root, called, chosen))
        for needed in closure(bundle, entry.pointer, where=str(path)):
            if (found := bundle.blob_size(needed.hex)) != needed.size:
                raise ArtifactCorruptError(
                    f"its blob sha256:{needed.hex} {'is missing' if found is None else f'has {found} bytes'}",
                    where=f"{path}: {needed.what}",
                    fix="export it again",
                )
    # All are looked at before the first is stored.
    for preview in (True, False):
        if preview or not dry_run:
            done = [
                copy(
                    bundle.reference(entry),
                    target,
                    source_store=bundle,
                    store=open_store(target, plain_http=plain_http),
                    progress=QUIET if preview and not dry_run else progress,
                    dry_run=preview,
                    unsafe_tags=unsafe_tags,
                )
                for entry, target in zip(entries, targets, strict=True)
            ]
    return done


def check_sum(path: Path, sha256: str | None, progress: Progress) -> bool:
    """Compare a bundle with ``sha256``, or with the checksum beside it; whether there was one to compare with.

    Raises :class:`ArtifactCorruptError` where it differs.
    """
    if not path.is_file():
        return False
    beside = checksum_file(path)
    if sha256 is None:
        if not beside.is_file():
            return False
        with disk_errors(beside), beside.open("rb") as file:
            words = file.read(1024).decode(errors="replace").split()
        sha256 = words[0] if words else ""
    with progress.task("checksum", path.stat().st_size) as task:
        found = hash_file(path, task)
    if found != sha256.removeprefix("sha256:").lower():
        raise ArtifactCorruptError(
            f"it hashes to {found}", where=str(path), fix=f"{sha256} was promised: copy it again"
        )
    return True
