"""Difference: what changed from one artifact to another, and what it costs to bring it where the first one is."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engineroom.artifacts.manifest import StoredFile, make_manifest, unique_parts
from engineroom.artifacts.publish import read_record
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.resolve import resolve
from engineroom.artifacts.source import cut_files
from engineroom.artifacts.stores import open_store
from engineroom.documents import FileRecord
from engineroom.repository.record import BuildRecord


@dataclass(frozen=True)
class Side:
    """One of the two: an artifact in a store, or an assembled or pulled tree."""

    place: str
    digest: str
    record: BuildRecord
    files: tuple[StoredFile, ...]
    record_bytes: bytes


@dataclass(frozen=True)
class FileChange:
    """A file that is not the same on both sides."""

    path: str
    kind: str
    """``added``, ``removed`` or ``changed``."""
    before: int | None
    """Bytes."""
    after: int | None
    chunks: int
    """Pieces of 64 MiB of the new file that the old one does not have at that place."""


@dataclass(frozen=True)
class FieldChange:
    """A key of the build record that is not the same."""

    key: str
    before: Any
    after: Any


@dataclass(frozen=True)
class Difference:
    """What changed."""

    before: Side
    after: Side
    fields: tuple[FieldChange, ...]
    """Inputs, requirements, model, provenance."""
    files: tuple[FileChange, ...]
    transfer_blobs: int
    transfer_bytes: int
    """What a store, or a node, that holds ``before`` still lacks of ``after``; build record and manifest included."""

    @property
    def same(self) -> bool:
        """Whether both are one artifact."""
        return self.before.digest == self.after.digest


def read_side(place: str, *, plain_http: bool = False) -> Side:
    """An artifact by its reference, or a tree by its folder.

    Raises what :func:`engineroom.artifacts.resolve.resolve` raises, and for a folder
    :class:`~engineroom.errors.DocumentError`, or :class:`~engineroom.errors.ArtifactCorruptError` where a file of
    several parts is not what its build record says.
    """
    if "://" in place:
        reference = Reference.parse(place)
        artifact = resolve(reference, store=open_store(reference, plain_http=plain_http))
        pinned = str(artifact.reference)
        return Side(pinned, artifact.digest, artifact.record, tuple(artifact.files), artifact.record_bytes)
    tree = Path(place)
    record, data = read_record(tree)
    files = cut_files(tree, record.files)
    return Side(place, make_manifest(data, files).digest, record, tuple(files), data)


def compare(before: Side, after: Side) -> Difference:
    """What changed from ``before`` to ``after``."""
    there = unique_parts(before.files).keys()
    lacking = [part.size for blob, (_, part) in unique_parts(after.files).items() if blob not in there]
    if before.digest != after.digest:
        lacking.append(len(make_manifest(after.record_bytes, after.files).to_json()))
        if before.record_bytes != after.record_bytes:
            lacking.append(len(after.record_bytes))
    return Difference(
        before=before,
        after=after,
        fields=tuple(_fields(_described(before.record), _described(after.record), "")),
        files=tuple(_files(before.record, after.record)),
        transfer_blobs=len(lacking),
        transfer_bytes=sum(lacking),
    )


def _described(record: BuildRecord) -> dict[str, Any]:
    value = record.model_dump(mode="json", by_alias=True)
    del value["files"]
    return value


def _fields(before: Any, after: Any, key: str) -> Iterator[FieldChange]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted(before.keys() | after.keys()):
            yield from _fields(before.get(name), after.get(name), f"{key}.{name}" if key else name)
    elif before != after:
        yield FieldChange(key, before, after)


def _files(before: BuildRecord, after: BuildRecord) -> Iterator[FileChange]:
    old = {file.path: file for file in before.files}
    new = {file.path: file for file in after.files}
    for path in sorted(old.keys() | new.keys()):
        was, now = old.get(path), new.get(path)
        if was is None and now is not None:
            yield FileChange(path, "added", None, now.size, len(now.chunks))
        elif now is None and was is not None:
            yield FileChange(path, "removed", was.size, None, 0)
        elif was and now and was.sha256 != now.sha256:
            yield FileChange(path, "changed", was.size, now.size, _changed_chunks(was, now))


def _changed_chunks(was: FileRecord, now: FileRecord) -> int:
    return sum(number >= len(was.chunks) or chunk != was.chunks[number] for number, chunk in enumerate(now.chunks))
