"""One-file bundles: a plain tar of an OCI image layout, read without believing it and written to the byte the same.

Read: only what a layout has is accepted, so nothing in the file decides where anything is written, and nothing is
unpacked: blobs are read where they lie. Written: files in one order with one owner, mode and time, so that equal
artifacts are equal bundles, and a bundle that was cut off can be gone on with.
"""

import os
import re
import tarfile
from pathlib import Path
from typing import BinaryIO

from engineroom.errors import ArtifactCorruptError, InputError

LAYOUT_FILE, INDEX_FILE = "oci-layout", "index.json"
#: https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
MAX_LAYOUT_BYTES = 4096
MAX_INDEX_BYTES = 4 * 1024 * 1024

#: Members of a bundle: twice what a manifest of 4 MiB can name, for some artifacts.
MAX_MEMBERS = 200_000
#: Longest header that tarfile may want to read at once: extended headers hold names and times.
_MAX_HEADER_BYTES = 64 * 1024
_BLOB = re.compile(r"blobs/sha256/([0-9a-f]{64})")
_FOLDERS = {".", "blobs", "blobs/sha256"}


class _Headers:
    """What tarfile reads from: nothing long, since only headers are read through it."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self.tell, self.close = file.tell, file.close

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise _bad(self._path, f"a header of {size} bytes")
        return self._file.read(size)

    def seek(self, at: int, whence: int = 0) -> int:
        return self._file.seek(at, whence)


def scan(file: BinaryIO, path: Path) -> dict[str, tuple[int, int]]:
    """Offset and size of every file of a bundle, by its name; contents are not read.

    Raises :class:`ArtifactCorruptError` for anything that no layout has: other names, links, devices, sparse files,
    a name twice, more than :data:`MAX_MEMBERS` members, a file that ends too early; :class:`InputError` for no tar.
    """
    found: dict[str, tuple[int, int]] = {}
    end, count = os.fstat(file.fileno()).st_size, 0
    try:
        with tarfile.open(fileobj=_Headers(file, path), mode="r:") as archive:  # type: ignore[call-overload]  # all it needs
            while member := archive.next():
                archive.members = []  # it would keep all of them
                count += 1
                if count > MAX_MEMBERS:
                    raise _bad(path, f"more than {MAX_MEMBERS} members")
                name = member.name.removeprefix("./").rstrip("/") or "."
                if member.isdir() and name in _FOLDERS:
                    continue
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
                    raise _bad(path, f"{member.name!r}, which is no plain file")
                if name not in {LAYOUT_FILE, INDEX_FILE} and not _BLOB.fullmatch(name):
                    raise _bad(path, f"{member.name!r}")
                if name in found:
                    raise _bad(path, f"{member.name!r} twice")
                if member.size < 0 or member.offset_data + member.size > end:
                    raise ArtifactCorruptError(f"it ends within {name}", where=str(path), fix="copy the bundle again")
                found[name] = (member.offset_data, member.size)
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, tarfile.ReadError) and not found:
            raise InputError(
                "it is no plain tar of an OCI layout",
                where=str(path),
                fix="give the file that `engineroom export` wrote; compressed bundles have to be unpacked first",
            ) from None
        raise ArtifactCorruptError(f"it is a broken tar ({error})", where=str(path), fix="copy it again") from None
    return found


def _bad(path: Path, what: str) -> ArtifactCorruptError:
    return ArtifactCorruptError(
        f"it holds {what}: no OCI layout does", where=str(path), fix="use bundles from `engineroom export` only"
    )


def blob_of(name: str) -> str | None:
    """The digest (hexadecimal) in a member's name, None for ``index.json`` and ``oci-layout``."""
    match = _BLOB.fullmatch(name)
    return match[1] if match else None


def header(name: str, size: int) -> bytes:
    """The header of one file: no owner, no time."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member.tobuf(tarfile.GNU_FORMAT)


def padding(size: int) -> bytes:
    """What follows ``size`` bytes up to the next block."""
    return bytes(-size % tarfile.BLOCKSIZE)


def trailer(size: int) -> bytes:
    """What ends a tar of ``size`` bytes: two empty blocks, and up to the next record."""
    end = 2 * tarfile.BLOCKSIZE
    return bytes(end + -(size + end) % tarfile.RECORDSIZE)
