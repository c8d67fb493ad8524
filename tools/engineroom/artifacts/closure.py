"""What a tag names, down to its last blob: what a copy sends, a verification reads and a collection spares."""

from dataclasses import dataclass
from typing import Literal

from engineroom.artifacts.backup_record import MAX_RECORD_BYTES, BackupManifest, BackupRecord
from engineroom.artifacts.manifest import TITLE, Manifest
from engineroom.artifacts.manifest_cache import ManifestCache
from engineroom.artifacts.oras import plain_blobs
from engineroom.artifacts.store import (
    BACKUP_TYPE,
    PLAIN_TYPE,
    Pointer,
    Store,
    read_manifest,
    read_small,
    type_of,
)
from engineroom.errors import ArtifactCorruptError, ArtifactNotFoundError, DocumentError


@dataclass(frozen=True)
class Needed:
    """One blob of an artifact or a backup."""

    hex: str
    size: int
    what: str
    """A file that it holds, for messages."""
    kind: Literal["file", "record", "manifest"] = "file"
    """Manifests and records are written after what they name, and a registry keeps manifests apart."""


def closure(store: Store, pointer: Pointer, *, where: str, cache: ManifestCache | None = None) -> list[Needed]:
    """Every blob behind a tag, each once; what names others comes after them, the tag's own manifest last.

    ``store`` is that of the tag's name (:meth:`~engineroom.artifacts.store.Store.within`). Manifests that ``cache`` has
    are not asked for, and not missed, there.

    Raises:
        ArtifactNotFoundError: the tag's own manifest is not there.
        ArtifactCorruptError: a manifest, or the record of a backup, is not what its digest promises, or missing.
    """
    read = {BACKUP_TYPE: _backup, PLAIN_TYPE: _plain}.get(pointer.artifact_type, _artifact)
    found = read(store, pointer, where, cache)
    return list({needed.hex: needed for needed in found}.values())


def read_backup(
    store: Store, pointer: Pointer, *, where: str, cache: ManifestCache | None = None
) -> tuple[BackupManifest, BackupRecord]:
    """Manifest and record of a backup, both checked. Raises as :func:`closure` does."""
    data = read_manifest(store, _hex(pointer.digest), where=where, cache=cache)
    if len(data) != pointer.size:
        raise ArtifactCorruptError(f"the tag gives its manifest {pointer.size} bytes; it has {len(data)}", where=where)
    manifest = BackupManifest.parse(data, where=where)
    try:
        first = manifest.layers[0]
        text = read_small(store, first.hex, first.size, limit=MAX_RECORD_BYTES, where=where, what="backup record")
        record = BackupRecord.parse(text, where=where)
    except ArtifactNotFoundError as error:
        raise ArtifactCorruptError(error.found, where=where, fix="restore another backup") from None
    except DocumentError as error:
        raise ArtifactCorruptError(f"its backup record is malformed: {error.found}", where=where) from None
    record.check(where=where)
    if BackupManifest.of(record) != manifest:
        raise ArtifactCorruptError("its manifest and its backup record name different things", where=where)
    return manifest, record


def _artifact(store: Store, pointer: Pointer, where: str, cache: ManifestCache | None) -> list[Needed]:
    blob = _hex(pointer.digest)
    data = read_manifest(store, blob, where=where, cache=cache)
    manifest = Manifest.parse(data, where=where)
    layers = [Needed(layer.hex, layer.size, layer.annotations.get(TITLE, "a layer")) for layer in manifest.layers]
    config = Needed(manifest.config.hex, manifest.config.size, "the build record", "record")
    return [*layers, config, Needed(blob, len(data), "the manifest", "manifest")]


def _plain(store: Store, pointer: Pointer, where: str, cache: ManifestCache | None) -> list[Needed]:
    blob = _hex(pointer.digest)
    data = read_manifest(store, blob, where=where, cache=cache)
    if type_of(data) != PLAIN_TYPE:
        # One of ours names more than its layers, so nothing of it may be taken for all of it.
        raise ArtifactCorruptError("the tag calls it somebody else's, and it is one of engineroom", where=where)
    found = [Needed(one.hex, one.size, one.annotations[TITLE]) for one in plain_blobs(data, where=where)]
    return [*found, Needed(blob, len(data), "the manifest", "manifest")]


def _backup(store: Store, pointer: Pointer, where: str, cache: ManifestCache | None) -> list[Needed]:
    manifest, record = read_backup(store, pointer, where=where, cache=cache)
    found = [Needed(chunk, size, path) for chunk, (size, path) in record.chunks().items()]
    for saved in record.artifacts:
        try:
            found += _artifact(store, Pointer(saved.digest, saved.size), where, cache)
        except ArtifactNotFoundError as error:
            raise ArtifactCorruptError(error.found, where=where, fix="restore another backup") from None
    if record.values:
        found.append(Needed(record.values.sha256, record.values.size, "the release values"))
    found.append(Needed(manifest.layers[0].hex, manifest.layers[0].size, "the backup record", "record"))
    found.append(Needed(manifest.config.hex, manifest.config.size, "the empty config"))
    return [*found, Needed(_hex(pointer.digest), pointer.size, "the backup's manifest", "manifest")]


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")
