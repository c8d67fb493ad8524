"""Inspection: everything that is known of one artifact, without reading its files."""

from dataclasses import dataclass

from engineroom.artifacts.closure import Needed, closure
from engineroom.artifacts.manifest import unique_parts
from engineroom.artifacts.parallel import Stop, run_all
from engineroom.artifacts.pointers import tags_naming
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.resolve import Tree, resolve_tree
from engineroom.artifacts.store import Pointer, Store


@dataclass(frozen=True)
class Inspected:
    """An artifact and its place in a store."""

    tree: Tree
    tags: tuple[str, ...]
    """Of its name, that name it now."""
    blobs: int
    stored_bytes: int
    """Of its blobs, equal files once; build record, config and manifest included."""
    missing: tuple[str, ...]
    """Files whose blobs the store lacks, or has in another size."""


def inspect(reference: Reference, *, store: Store) -> Inspected:
    """Read the manifest, and the build record where there is one, and ask for the size of every blob.

    Raises what :func:`engineroom.artifacts.resolve.resolve_tree` raises.
    """
    tree = resolve_tree(reference, store=store)
    store = store.within(reference.name)
    pointer = Pointer.to(tree.manifest_bytes)
    needed = closure(store, pointer, where=str(tree.reference))
    paths = {blob: file.record.path for blob, (file, _) in unique_parts(tree.files).items()}

    def lacking(item: Needed, stop: Stop) -> str | None:
        stop.check()
        return None if store.blob_size(item.hex) == item.size else paths.get(item.hex, item.what)

    blobs = [item for item in needed if item.kind == "file"]
    return Inspected(
        tree=tree,
        tags=tuple(tags_naming(store, reference.name, pointer)),
        blobs=len(needed),
        stored_bytes=sum(item.size for item in needed),
        missing=tuple(sorted({path for path in run_all(lacking, blobs, workers=store.readers) if path})),
    )
