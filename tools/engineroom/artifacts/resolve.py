"""From a reference to what it names: tag → manifest → build record, each compared with its digest on the way."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from engineroom.artifacts.manifest import ARTIFACT_TYPE, MAX_RECORD_BYTES, Manifest, StoredFile, contents, with_records
from engineroom.artifacts.oras import Packed, plain_layers
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.store import BACKUP_TYPE, Pointer, Store, read_manifest, read_small, type_of
from engineroom.errors import ArtifactCorruptError, ArtifactNotFoundError, BadReferenceError, DocumentError
from engineroom.progress import QUIET, Progress
from engineroom.repository.record import BuildRecord

_POLL_SECONDS = 2.0

Result = TypeVar("Result")


@dataclass(frozen=True)
class Artifact:
    """What a reference names, down to the blobs of every file."""

    reference: Reference
    """With its digest."""
    manifest: Manifest
    manifest_bytes: bytes
    """As they lie in the store: others may spell a manifest in another way than we do."""
    record: BuildRecord
    record_bytes: bytes
    """The config blob: what ``build-record.json`` holds in the tree."""
    files: list[StoredFile]

    @property
    def digest(self) -> str:
        """Of the manifest, ``sha256:…``."""
        assert self.reference.digest
        return self.reference.digest


@dataclass(frozen=True)
class Tree:
    """What a reference names, as files to lay down: an artifact of ours, or of `oras push`."""

    reference: Reference
    """With its digest."""
    manifest_bytes: bytes
    files: list[StoredFile]
    record: BuildRecord | None
    """None for an artifact of others that brings none."""
    record_bytes: bytes | None
    packed: tuple[Packed, ...] = ()
    """Folders of `oras push`, whose files are known when they are unpacked."""

    @property
    def digest(self) -> str:
        """Of the manifest, ``sha256:…``."""
        assert self.reference.digest
        return self.reference.digest

    @property
    def size(self) -> int:
        """Bytes of all files but the build record and those of packed folders."""
        return sum(file.record.size for file in self.files)


def resolve(reference: Reference, *, store: Store, wait_seconds: float = 0, progress: Progress = QUIET) -> Artifact:
    """Read what ``reference`` names. A tag that is not there yet is awaited for ``wait_seconds``.

    With tag and digest the digest decides, and the tag must name it.

    Raises:
        BadReferenceError: it has neither tag nor digest.
        ArtifactNotFoundError: no such tag, or no manifest behind the digest.
        ArtifactCorruptError: tag, manifest or build record are not what they should be.
    """

    def read() -> Artifact:
        pinned, data = pin(reference, store, wait_seconds=wait_seconds, progress=progress)
        return _artifact(pinned, data, store.within(reference.name))

    return _twice(read)


def resolve_tree(reference: Reference, *, store: Store, wait_seconds: float = 0, progress: Progress = QUIET) -> Tree:
    """As :func:`resolve`, also where others pushed the files, in the convention of ORAS. Raises the same."""
    return _twice(lambda: _tree(reference, store, wait_seconds=wait_seconds, progress=progress))


def _tree(reference: Reference, store: Store, *, wait_seconds: float, progress: Progress) -> Tree:
    pinned, data = pin(reference, store, wait_seconds=wait_seconds, progress=progress)
    store = store.within(reference.name)
    if type_of(data) == ARTIFACT_TYPE:
        artifact = _artifact(pinned, data, store)
        return Tree(pinned, data, artifact.files, artifact.record, artifact.record_bytes)
    where = str(pinned)
    layers = plain_layers(data, where=where)
    if layers.record is None:
        return Tree(pinned, data, layers.files, None, None, tuple(layers.packed))
    record, record_bytes = _read_record(store, layers.record.hex, layers.record.size, where=where)
    # What is packed is compared with the record when it is unpacked.
    files = layers.files if layers.packed else with_records(layers.files, record, where=where)
    return Tree(pinned, data, files, record, record_bytes, tuple(layers.packed))


def _twice(read: Callable[[], Result]) -> Result:
    """A proxy that cut an answer short does not do it twice alike; what is wrong in the store stays wrong."""
    try:
        return read()
    except ArtifactCorruptError:
        return read()


def pin(
    reference: Reference, store: Store, *, wait_seconds: float = 0, progress: Progress = QUIET
) -> tuple[Reference, bytes]:
    """The reference with its digest, and the manifest behind it, which hashes to it. Raises as :func:`resolve`."""
    if reference.tag is None and reference.digest is None:
        raise BadReferenceError(
            "it names neither tag nor digest",
            where=str(reference),
            fix=f"add :TAG; `engineroom list {_listed(reference)}` shows them",
        )
    digest, size = reference.digest or "", None
    if reference.tag is not None:
        named = _read_tag(reference, reference.tag, store, wait_seconds=wait_seconds, progress=progress)
        if reference.digest and named.digest != reference.digest:
            raise ArtifactCorruptError(
                f"the tag names {named.digest}",
                where=str(reference),
                fix="drop the tag or the digest, whichever is not meant",
            )
        digest, size = named.digest, named.size
    pinned = reference.pinned(digest)
    try:
        data = read_manifest(store.within(reference.name), digest.removeprefix("sha256:"), where=str(pinned))
    except ArtifactNotFoundError as error:
        if reference.tag is None:
            raise
        # A tag is written after its manifest: one of the two was damaged or removed.
        raise ArtifactCorruptError(
            f"the tag is there, but {error.found}", where=str(reference), fix="publish it again under another tag"
        ) from None
    if size not in {None, len(data)}:
        raise ArtifactCorruptError(
            f"the tag gives its manifest {size} bytes, and it has {len(data)}",
            where=str(reference),
            fix="publish it again under another tag",
        )
    return pinned, data


def _artifact(pinned: Reference, data: bytes, store: Store) -> Artifact:
    where = str(pinned)
    manifest = Manifest.parse(data, where=where)
    record, record_bytes = _read_record(store, manifest.config.hex, manifest.config.size, where=where)
    return Artifact(pinned, manifest, data, record, record_bytes, contents(manifest, record, where=where))


def _read_record(store: Store, blob: str, size: int, *, where: str) -> tuple[BuildRecord, bytes]:
    try:
        data = read_small(store, blob, size, limit=MAX_RECORD_BYTES, where=where, what="build record")
    except ArtifactNotFoundError as error:
        # The manifest is there, so this is no wrong reference: something removed what it names.
        raise ArtifactCorruptError(error.found, where=where, fix="publish it again") from None
    try:
        return BuildRecord.parse(data, where=where), data
    except DocumentError as error:
        raise ArtifactCorruptError(f"its build record is malformed: {error.found}", where=where) from None


def _read_tag(reference: Reference, tag: str, store: Store, *, wait_seconds: float, progress: Progress) -> Pointer:
    deadline = time.monotonic() + wait_seconds
    told = False
    while (state := store.read_tag(reference.name, tag)) is None:
        left = deadline - time.monotonic()
        if left <= 0:
            waited = f" after {wait_seconds:g} seconds" if wait_seconds else ""
            raise ArtifactNotFoundError(
                f"there is no such tag{waited}",
                where=str(reference),
                fix=f"`engineroom list {_listed(reference)}` shows what is there",
            )
        if not told:
            progress.say(f"waiting up to {wait_seconds:g} seconds for {reference}")
            told = True
        time.sleep(min(_POLL_SECONDS, left))
    if state.pointer.artifact_type == BACKUP_TYPE:
        raise BadReferenceError(
            "it is a backup, no artifact", where=str(reference), fix="`engineroom restore` brings back what it holds"
        )
    return state.pointer


def _listed(reference: Reference) -> str:
    """What to list to see other tags: many registries do not say which repositories they have."""
    return f"{reference.root}/{reference.name}" if reference.scheme == "oci" else reference.root
