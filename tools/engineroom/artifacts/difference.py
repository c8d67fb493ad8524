"""Difference: what changed from one artifact to another, and what it costs to bring it where the first one is."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engineroom.artifacts.manifest import Part, StoredFile, chunks_of, make_manifest, unique_parts
from engineroom.artifacts.oras import plain_blobs
from engineroom.artifacts.publish import read_record
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.resolve import resolve_tree
from engineroom.artifacts.source import cut_files
from engineroom.artifacts.store import PLAIN_TYPE, type_of
from engineroom.artifacts.stores import open_store
from engineroom.documents import FileRecord
from engineroom.repository.record import BuildRecord


@dataclass(frozen=True)
class Side:
    """One of the two: an artifact in a store, or an assembled or pulled tree."""

    place: str
    digest: str
    record: BuildRecord | None
    """None for what others pushed without one."""
    files: tuple[StoredFile, ...]
    """A packed folder is one, whose path ends with a slash."""
    documents: dict[str, int]
    """Bytes of the blobs that hold no file: manifest, and build record or config; by their digests."""


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

    Raises what :func:`engineroom.artifacts.resolve.resolve_tree` raises, and for a folder
    :class:`~engineroom.errors.DocumentError`, or :class:`~engineroom.errors.ArtifactCorruptError` where a file of
    several parts is not what its build record says.
    """
    if "://" not in place:
        record, data = read_record(Path(place))
        files = cut_files(Path(place), record.files)
        manifest = make_manifest(data, files).to_json()
        return Side(place, f"sha256:{_sha256(manifest)}", record, tuple(files), _sizes(data, manifest))
    reference = Reference.parse(place)
    tree = resolve_tree(reference, store=open_store(reference, plain_http=plain_http))
    manifest = tree.manifest_bytes
    documents = _sizes(manifest) if tree.record_bytes is None else _sizes(tree.record_bytes, manifest)
    if type_of(manifest) == PLAIN_TYPE:
        config = plain_blobs(manifest, where=place)[-1]
        documents[config.hex] = config.size
    packed = [
        StoredFile(FileRecord(path=f"{one.title}/", size=one.size, sha256=one.hex), (Part(one.hex, 0, one.size),))
        for one in tree.packed
    ]
    return Side(str(tree.reference), tree.digest, tree.record, (*tree.files, *packed), documents)


def _sizes(*documents: bytes) -> dict[str, int]:
    return {_sha256(data): len(data) for data in documents}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def compare(before: Side, after: Side) -> Difference:
    """What changed from ``before`` to ``after``."""
    there = unique_parts(before.files).keys() | before.documents.keys()
    needed = {blob: part.size for blob, (_, part) in unique_parts(after.files).items()} | after.documents
    lacking = [size for blob, size in needed.items() if blob not in there]
    return Difference(
        before=before,
        after=after,
        fields=tuple(_fields(_described(before.record), _described(after.record), "")),
        files=tuple(_files(before.files, after.files)),
        transfer_blobs=len(lacking),
        transfer_bytes=sum(lacking),
    )


def _described(record: BuildRecord | None) -> dict[str, Any]:
    if record is None:
        return {}
    value = record.model_dump(mode="json", by_alias=True)
    del value["files"]
    return value


def _fields(before: Any, after: Any, key: str) -> Iterator[FieldChange]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted(before.keys() | after.keys()):
            yield from _fields(before.get(name), after.get(name), f"{key}.{name}" if key else name)
    elif before != after:
        yield FieldChange(key, before, after)


def _files(before: Sequence[StoredFile], after: Sequence[StoredFile]) -> Iterator[FileChange]:
    old = {file.record.path: file.record for file in before}
    new = {file.record.path: file.record for file in after}
    for path in sorted(old.keys() | new.keys()):
        was, now = old.get(path), new.get(path)
        if was is None and now is not None:
            yield FileChange(path, "added", None, now.size, len(chunks_of(now)))
        elif now is None and was is not None:
            yield FileChange(path, "removed", was.size, None, 0)
        elif was and now and was.sha256 != now.sha256:
            yield FileChange(path, "changed", was.size, now.size, _changed_chunks(was, now))


def _changed_chunks(was: FileRecord, now: FileRecord) -> int:
    old, new = ([chunk.sha256 for chunk in chunks_of(file)] for file in (was, now))
    return sum(number >= len(old) or chunk != old[number] for number, chunk in enumerate(new))
