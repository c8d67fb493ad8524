"""Unpacking: a folder that `oras push` packed, laid down as its bytes arrive; nothing of it is believed before the end.

The layer is a tar, compressed by gzip, whose members all lie below the layer's title. Whoever made it may mean harm, so
a member is a file or a folder, inside, once, and as long as there is room; the blob's digest and that of the tar are
compared when all of it has passed, and until then it lies in a staging folder that nobody takes for a whole tree.

Python's ``tarfile`` reads the headers. Its own reader of streams is not used: it reads a header of any length that the
tar asks for into memory, and :class:`_Bytes` has a limit.
"""

import hashlib
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, cast

from engineroom.artifacts.closure import Needed
from engineroom.artifacts.copying import read_verified
from engineroom.artifacts.disk import sync_files
from engineroom.artifacts.manifest import MAX_RECORD_BYTES, folders_of, path_problem
from engineroom.artifacts.oras import Packed
from engineroom.artifacts.parallel import Stop
from engineroom.artifacts.pulled_files import PulledFiles
from engineroom.artifacts.resolve import Tree
from engineroom.artifacts.store import Store
from engineroom.documents import FileRecord
from engineroom.errors import ArtifactCorruptError, StoreError
from engineroom.progress import QUIET, Progress
from engineroom.repository.record import FILE as RECORD_FILE

#: Files and folders of one packed folder.
MAX_MEMBERS = 200_000
#: What one header of the tar may have: the longest path of Linux is 4 KiB.
_MAX_HEADER = 64 << 10
#: gzip's best is 1 : 1032, of zeros; weights have 1 : 1.3, text 1 : 10. What is short may have any ratio.
_MAX_RATIO, _ANY_RATIO_BYTES = 100, 64 << 20
_PIECE = 1 << 20
_CORRUPT = "push it again"


def unpack(tree: Tree, to: Path, *, store: Store, room: int, progress: Progress = QUIET) -> PulledFiles:
    """Write the packed folders of an artifact below ``to``, where nothing of them lies yet, and sync their files.

    ``room`` bytes may be written.

    Raises:
        ArtifactCorruptError: it is no packed folder, one with members that are refused, or its digests are not right.
        StoreError: there is no room, or the store failed.
    """
    taken = {file.record.path for file in tree.files}
    files: list[FileRecord] = []
    record: FileRecord | None = None
    with progress.task("unpack", sum(layer.size for layer in tree.packed)) as task:
        for layer in tree.packed:
            place = f"{tree.reference}: {layer.title}"
            needed = Needed(layer.hex, layer.size, layer.title)
            # These end by raising where they do not have the layer's digest.
            pieces = read_verified(store, needed, where=str(tree.reference), task=task, stop=Stop())
            stream, writer = _Bytes(pieces, layer, room, place), _Writer(layer, to, taken, place)
            _unpack(stream, writer, place)
            files += writer.files
            room -= sum(file.size for file in writer.files)
            if writer.record and (record or tree.record_bytes is not None):
                raise ArtifactCorruptError(f"it holds {RECORD_FILE} twice", where=place, fix=_CORRUPT)
            record = record or writer.record
    sync_files(to / file.path for file in [*files, *([record] if record else [])])
    others = sorted(file.record.path for file in tree.files)
    files.sort(key=lambda file: file.path)
    return PulledFiles(digest=tree.digest, unpacked=files, record=record, others=others)


def _unpack(stream: "_Bytes", writer: "_Writer", place: str) -> None:
    try:
        # Not an iterator over the file, which would hold every member: here each goes when the next is read.
        with tarfile.TarFile(fileobj=cast("IO[bytes]", stream), mode="r", encoding="utf-8", errors="strict") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]
                writer.write(member, stream)
                stream.next_header()
            # tarfile takes a header that it cannot read for the end; the end is empty blocks, or nothing.
            if stream.last.strip(b"\0"):
                raise tarfile.ReadError("a header is broken")
        stream.finish()
    except (tarfile.TarError, zlib.error, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise ArtifactCorruptError(f"it is no folder that oras packed ({error})", where=place, fix=_CORRUPT) from None


class _Bytes:
    """The tar's bytes as a file that is read forward only; what :mod:`tarfile` needs of one, and no more."""

    def __init__(self, pieces: Iterator[memoryview], layer: Packed, room: int, place: str) -> None:
        self._pieces, self._layer, self._room, self._place = pieces, layer, room, place
        self._most = max(_ANY_RATIO_BYTES, _MAX_RATIO * layer.size)
        self._inflate = zlib.decompressobj(wbits=31)  # gzip
        self._packed = b""
        self._ready = memoryview(b"")
        self._whole = hashlib.sha256()
        self._at = self._header = 0
        self.last = b""
        """What was read last of a header."""

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int) -> int:
        """Forward, by reading."""
        if offset < self._at:
            raise tarfile.ReadError("a header that leads back")
        while self._at < offset:
            if not self.take(offset - self._at):
                raise tarfile.ReadError("unexpected end of data")
        return self._at

    def read(self, size: int) -> bytes:
        """``size`` bytes of a header, fewer at the end."""
        self._header += size
        if not 0 <= size <= self._header <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {max(size, self._header)} bytes")
        found = bytearray()
        while len(found) < size and (piece := self.take(size - len(found))):
            found += piece
        self.last = bytes(found)
        return self.last

    def next_header(self) -> None:
        """What is read from here on belongs to the next member's header."""
        self._header = 0

    def take(self, size: int) -> memoryview:
        """Up to ``size`` bytes, none at the end; the digest of the blob was compared by then."""
        while not self._ready:
            if not (data := self._next()):
                return self._ready
            self._ready = memoryview(data)
        piece, self._ready = self._ready[:size], self._ready[size:]
        self._whole.update(piece)
        self._at += len(piece)
        self.check(0)
        return piece

    def check(self, size: int) -> None:
        """Refuse ``size`` bytes more than are allowed, before they are read."""
        if self._at + size > self._most:
            raise ArtifactCorruptError(
                f"its {self._layer.size} bytes unpack to more than {self._most}",
                where=self._place,
                fix=f"what packs better than {_MAX_RATIO} : 1 is not unpacked; push its files one by one",
            )
        if self._at + size > self._room:
            raise StoreError(
                f"it unpacks to more than the {self._room / 1e6:,.0f} MB that may be written",
                where=self._place,
                fix="free some space, or pull into another file system",
            )

    def _next(self) -> bytes:
        """Some bytes that were unpacked, none at the end."""
        while True:
            if self._inflate.eof:
                packed = self._inflate.unused_data or self._more()
                if not packed:
                    return b""
                self._inflate = zlib.decompressobj(wbits=31)  # gzip files may follow each other
            else:
                packed = self._packed or self._more()
            data = self._inflate.decompress(packed, _PIECE)
            self._packed = self._inflate.unconsumed_tail
            if data:
                return data
            if not packed and not self._inflate.eof:
                raise EOFError("its gzip ends too early")

    def _more(self) -> bytes:
        # A copy: a piece may be overwritten once the next is taken, and what is not unpacked yet is kept.
        return bytes(next(self._pieces, b""))

    def finish(self) -> None:
        """Read what follows the last member, and compare the digest of the tar."""
        while self.take(_PIECE):
            pass
        if self._layer.tar_hex and self._whole.hexdigest() != self._layer.tar_hex:
            raise ArtifactCorruptError(
                f"its tar hashes to {self._whole.hexdigest()}, not to {self._layer.tar_hex}",
                where=self._place,
                fix=_CORRUPT,
            )


class _Writer:
    def __init__(self, layer: Packed, to: Path, taken: set[str], place: str) -> None:
        self._title, self._to, self._taken, self._place = layer.title, to, taken, place
        self._above = folders_of(taken)
        self._folders: set[str] = set()
        self.files: list[FileRecord] = []
        self.record: FileRecord | None = None
        self._members = 0

    def write(self, member: tarfile.TarInfo, stream: _Bytes) -> None:
        """Lay one member down."""
        self._members += 1
        if self._members > MAX_MEMBERS:
            raise self._bad(f"more than {MAX_MEMBERS} files and folders", "push fewer at once")
        path = self._inside(member)
        if member.isdir():
            self._make_folder(path)
        elif member.type in {tarfile.REGTYPE, tarfile.AREGTYPE} and not member.issparse() and path:
            self._make_folder(str(PurePosixPath(path).parent).removeprefix("."))
            if path in self._taken or path in self._folders or path in self._above:
                raise self._bad(f"{path} twice", _CORRUPT)
            if member.size < 0 or (path == RECORD_FILE and member.size > MAX_RECORD_BYTES):
                raise self._bad(f"{path} of {member.size} bytes", _CORRUPT)
            stream.check(member.size)
            self._write_file(path, member, stream)
        else:
            link = member.issym() or member.islnk()
            raise self._bad(
                f"{member.name!r}, which is {'a link' if link else 'no plain file'}",
                "push what it leads to in its place" if link else "push the folder without it",
            )

    def _inside(self, member: tarfile.TarInfo) -> str:
        """The member's path below the folder of the pull, empty for that folder itself."""
        name = member.name.removesuffix("/") if member.isdir() else member.name
        if self._title == ".":
            if name == ".":
                return ""
            inside, name = True, name.removeprefix("./")
        else:
            inside = name == self._title or name.startswith(f"{self._title}/")
        problem = path_problem(name)
        if problem.startswith("is the build record") and name == RECORD_FILE and not member.isdir():
            problem = ""
        if problem or not inside:
            raise self._bad(f"{member.name!r}, which {problem or 'lies outside of it'}", _CORRUPT)
        return name

    def _make_folder(self, path: str) -> None:
        """With those above it; what others made is no folder of ours unless it is one."""
        parts = path.split("/") if path else []
        for end in range(1, len(parts) + 1):
            folder = "/".join(parts[:end])
            if folder in self._folders:
                continue
            if folder in self._taken or folder == RECORD_FILE:
                raise self._bad(f"{folder} as a file and as a folder", _CORRUPT)
            (self._to / folder).mkdir(exist_ok=True)
            self._folders.add(folder)

    def _write_file(self, path: str, member: tarfile.TarInfo, stream: _Bytes) -> None:
        mode = 0o755 if member.mode & 0o100 else 0o644
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        whole, left = hashlib.sha256(), member.size
        handle = os.open(self._to / path, flags, mode)
        try:
            os.fchmod(handle, mode)
            while left:
                piece = stream.take(min(left, _PIECE))
                if not piece:
                    raise EOFError(f"{path} ends too early")
                left -= len(piece)
                whole.update(piece)
                while piece:
                    piece = piece[os.write(handle, piece) :]
        finally:
            os.close(handle)
        self._taken.add(path)
        found = FileRecord(path=path, size=member.size, sha256=whole.hexdigest())
        if path == RECORD_FILE:
            self.record = found
        else:
            self.files.append(found)

    def _bad(self, what: str, fix: str) -> ArtifactCorruptError:
        return ArtifactCorruptError(f"its tar holds {what}", where=self._place, fix=fix)
