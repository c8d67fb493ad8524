"""Bundles: artifacts in one file, or in a folder, for a place without a network. Both are OCI image layouts.

A bundle is read as a store that cannot be written to, so what reads stores reads bundles: ``import`` is a copy.
https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from engineroom.artifacts import archive
from engineroom.artifacts.archive import INDEX_FILE, LAYOUT_FILE, MAX_INDEX_BYTES, MAX_LAYOUT_BYTES
from engineroom.artifacts.manifest import ARTIFACT_TYPE, MEDIA_TYPE
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.store import ManifestsAsBlobs, Pointer, TagEntry, TagState, check_size
from engineroom.documents import canonical
from engineroom.errors import (
    ArtifactCorruptError,
    ArtifactNotFoundError,
    BadReferenceError,
    InputError,
    StoreError,
)
from engineroom.folders import disk_errors
from engineroom.progress import Task

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
#: The tag, as skopeo and oras read and write it; NAME:TAG where a bundle has one tag of several names.
REF_NAME = "org.opencontainers.image.ref.name"
#: The artifact's name, which a layout has no standard place for.
NAME = "dev.engineroom.name"
_PIECE = 1 << 20


@dataclass(frozen=True)
class Entry:
    """An artifact in a bundle."""

    name: str | None
    """None where other programs made the layout."""
    tag: str | None
    pointer: Pointer


class BundleStore(ManifestsAsBlobs):
    """A bundle as a store: blobs are read where they lie in the file or folder. Not written to."""

    def __init__(self, path: Path) -> None:
        """Open the bundle at ``path`` and read its index.

        Raises :class:`InputError` where there is none, :class:`ArtifactCorruptError` where it is broken.
        """
        self.path = path.absolute()
        self.root = f"file://{self.path}"
        with disk_errors(path):
            if not path.exists():
                raise InputError("there is no such bundle", where=str(path), fix="give what `engineroom export` wrote")
            self._folder = path if path.is_dir() else None
            self._file = None if self._folder else path.open("rb")
            self._members = {} if self._file is None else archive.scan(self._file, path)
            self._modified = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        self._read(LAYOUT_FILE, MAX_LAYOUT_BYTES)
        self.entries_found = _parse_index(self._read(INDEX_FILE, MAX_INDEX_BYTES), str(path))

    def reference(self, entry: Entry) -> Reference:
        """What names an artifact of this bundle to ``resolve`` and in messages."""
        return Reference("file", str(self.path), entry.name or "bundle", None, entry.pointer.digest)

    def blob_size(self, blob: str) -> int | None:
        """Bytes of the member."""
        found = self._members.get(f"blobs/sha256/{blob}")
        if found:
            return found[1]
        if self._folder is None:
            return None
        with disk_errors(self.path):
            path = self._folder / "blobs" / "sha256" / blob
            return path.stat().st_size if path.is_file() and not path.is_symlink() else None

    def read_blob(self, blob: str, start: int, end: int, *, size: int) -> Iterator[memoryview]:
        """Pieces of 1 MiB; a piece is valid until the next one is taken."""
        with disk_errors(self.path), self._opened(blob) as (handle, offset, length):
            check_size(blob, length, size, where=self.root)
            at, end = offset + start, offset + min(end, size)
            buffer = memoryview(bytearray(min(_PIECE, max(end - at, 1))))
            while at < end and (count := os.preadv(handle, [buffer[: min(len(buffer), end - at)]], at)):
                at += count
                yield buffer[:count]

    def read_tag(self, name: str, tag: str) -> TagState | None:
        """What the index says."""
        for entry in self.entries_found:
            if (entry.name or "bundle", entry.tag) == (name, tag):
                return TagState(entry.pointer, "", self._modified)
        return None

    def tags(self, name: str) -> list[str]:
        """Tags in the index."""
        return sorted(entry.tag for entry in self.entries_found if entry.tag and (entry.name or "bundle") == name)

    def names(self) -> list[str]:
        """Names in the index."""
        return sorted({entry.name or "bundle" for entry in self.entries_found})

    def list_tags(self, name: str | None = None) -> list[TagEntry]:
        """Tags in the index."""
        return [
            TagEntry(tag, self._modified, each)
            for each in self.names()
            for tag in self.tags(each)
            if name in {None, each}
        ]

    def keeps_conditions(self) -> bool:
        """Nothing is written."""
        return True

    def write_blob(self, blob: str, size: int, pieces: Iterable[memoryview]) -> None:
        """Refused."""
        self._refuse()

    def create_tag(self, name: str, tag: str, pointer: Pointer) -> bool:
        """Refused."""
        self._refuse()

    def move_tag(self, name: str, tag: str, pointer: Pointer, *, expected: TagState) -> bool:
        """Refused."""
        self._refuse()

    def write_tag(self, name: str, tag: str, pointer: Pointer) -> None:
        """Refused."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise StoreError("a bundle is written by `engineroom export` only", where=self.root)

    @contextmanager
    def _opened(self, blob: str) -> Iterator[tuple[int, int, int]]:
        """Descriptor, offset and length."""
        name = f"blobs/sha256/{blob}"
        if self._file and name in self._members:
            yield self._file.fileno(), *self._members[name]
            return
        if self._folder is None or (length := self.blob_size(blob)) is None:
            raise ArtifactNotFoundError(f"there is no blob sha256:{blob}", where=self.root)
        handle = os.open(self._folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            yield handle, 0, length
        finally:
            os.close(handle)

    def _read(self, name: str, limit: int) -> bytes:
        """A small file of the layout."""
        fix = "give what `engineroom export` wrote"
        if self._file:
            if name not in self._members:
                raise InputError(f"it has no {name}", where=str(self.path), fix=fix)
            offset, size = self._members[name]
            data = os.pread(self._file.fileno(), min(size, limit + 1), offset)
        else:
            assert self._folder
            if not (self._folder / name).is_file():
                raise InputError(f"it has no {name}", where=str(self.path), fix=fix)
            with disk_errors(self.path), (self._folder / name).open("rb") as file:
                data = file.read(limit + 1)
        if len(data) > limit:
            raise ArtifactCorruptError(f"its {name} is longer than {limit} bytes", where=str(self.path), fix=fix)
        return data


def make_index(entries: Iterable[Entry]) -> bytes:
    """``index.json`` of these artifacts."""
    listed = list(entries)
    tags = [entry.tag for entry in listed]
    manifests = []
    for entry in sorted(listed, key=lambda entry: (entry.name or "", entry.tag or "", entry.pointer.digest)):
        annotations = {NAME: entry.name} if entry.name else {}
        if entry.tag:
            shared = entry.name and tags.count(entry.tag) > 1
            annotations[REF_NAME] = f"{entry.name}:{entry.tag}" if shared else entry.tag
        manifests.append(
            {"artifactType": ARTIFACT_TYPE, "mediaType": MEDIA_TYPE}
            | {"digest": entry.pointer.digest, "size": entry.pointer.size}
            | ({"annotations": annotations} if annotations else {})
        )
    return canonical({"manifests": manifests, "mediaType": INDEX_TYPE, "schemaVersion": 2})


def _parse_index(data: bytes, where: str) -> list[Entry]:
    try:
        value = json.loads(data)
        listed = [one for one in value["manifests"] if one["mediaType"] == MEDIA_TYPE]
        entries = [_parse_entry(one, where) for one in listed]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ArtifactCorruptError(
            "its index.json is no OCI index", where=where, fix="give what `engineroom export` wrote"
        ) from None
    if not entries:
        raise InputError("its index.json names no artifact", where=where, fix="give what `engineroom export` wrote")
    return entries


def _parse_entry(value: dict[str, object], where: str) -> Entry:
    annotations = value.get("annotations") or {}
    assert isinstance(annotations, dict)
    name, ref_name = annotations.get(NAME), annotations.get(REF_NAME)
    tag = ref_name.rpartition(":")[2] if isinstance(ref_name, str) else None
    # The same grammar as of any reference: a name from a bundle becomes a path in a store.
    digest, size = value["digest"], value["size"]
    try:
        shape = Reference.parse(f"oci://host/{name or 'bundle'}{f':{tag}' if tag else ''}@{digest}")
    except BadReferenceError as error:
        if name is None and tag is not None:  # made by others: their tag is not one of ours
            return _parse_entry({**value, "annotations": {}}, where)
        raise ArtifactCorruptError(f"its index.json: {error.found}", where=where) from None
    if not isinstance(size, int) or size <= 0 or shape.digest is None:
        raise ValueError("size")
    return Entry(name if isinstance(name, str) else None, shape.tag, Pointer(shape.digest, size))


def checksum_file(path: Path) -> Path:
    """Where the checksum of a bundle lies: beside it, as ``sha256sum --check`` reads it."""
    return path.with_name(f"{path.name}.sha256")


def hash_file(path: Path, task: Task) -> str:
    """SHA-256 (hexadecimal) of a whole file."""
    found = hashlib.sha256()
    with disk_errors(path), path.open("rb", buffering=0) as file:
        buffer = memoryview(bytearray(_PIECE))
        while count := file.readinto(buffer):
            found.update(buffer[:count])
            task.advance(count)
    return found.hexdigest()
