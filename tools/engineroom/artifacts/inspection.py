"""Inspection: everything that is known of one artifact, without reading its files."""

from dataclasses import dataclass

from engineroom.artifacts.manifest import Part, StoredFile, unique_parts
from engineroom.artifacts.parallel import Stop, run_all
from engineroom.artifacts.pointers import tags_naming
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.resolve import Artifact, resolve
from engineroom.artifacts.store import Pointer, Store


@dataclass(frozen=True)
class Inspected:
    """An artifact and its place in a store."""

    artifact: Artifact
    tags: tuple[str, ...]
    """Of its name, that name it now."""
    blobs: int
    stored_bytes: int
    """Of its blobs, equal files once; build record and manifest included."""
    missing: tuple[str, ...]
    """Files whose blobs the store lacks, or has in another size."""


def inspect(reference: Reference, *, store: Store) -> Inspected:
    """Read manifest and build record, and ask for the size of every blob.

    Raises what :func:`engineroom.artifacts.resolve.resolve` raises.
    """
    artifact = resolve(reference, store=store)
    store = store.within(reference.name)
    parts = unique_parts(artifact.files)

    def lacking(item: tuple[StoredFile, Part], stop: Stop) -> str | None:
        stop.check()
        return None if store.blob_size(item[1].hex) == item[1].size else item[0].record.path

    missing = sorted({path for path in run_all(lacking, parts.values(), workers=store.readers) if path})
    small = len(artifact.record_bytes) + len(artifact.manifest_bytes)
    return Inspected(
        artifact=artifact,
        tags=tuple(tags_naming(store, reference.name, Pointer(artifact.digest, len(artifact.manifest_bytes)))),
        blobs=len(parts) + 2,
        stored_bytes=sum(part.size for _, part in parts.values()) + small,
        missing=tuple(missing),
    )
