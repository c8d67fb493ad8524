"""From a reference to what it names: tag → manifest → build record, each compared with its digest on the way."""

import time
from dataclasses import dataclass

from engineroom.artifacts.manifest import MAX_BYTES, MAX_RECORD_BYTES, Manifest, StoredFile, contents
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.store import BACKUP_TYPE, Store, read_small
from engineroom.errors import ArtifactCorruptError, ArtifactNotFoundError, BadReferenceError, DocumentError
from engineroom.progress import QUIET, Progress
from engineroom.repository.record import BuildRecord

_POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Artifact:
    """What a reference names, down to the blobs of every file."""

    reference: Reference
    """With its digest."""
    manifest: Manifest
    record: BuildRecord
    record_bytes: bytes
    """The config blob: what ``build-record.json`` holds in the tree."""
    files: list[StoredFile]

    @property
    def digest(self) -> str:
        """Of the manifest, ``sha256:…``."""
        assert self.reference.digest
        return self.reference.digest


def resolve(reference: Reference, *, store: Store, wait_seconds: float = 0, progress: Progress = QUIET) -> Artifact:
    """Read what ``reference`` names. A tag that is not there yet is awaited for ``wait_seconds``.

    With tag and digest the digest decides, and the tag must name it.

    Raises:
        BadReferenceError: it has neither tag nor digest.
        ArtifactNotFoundError: no such tag, or no manifest behind the digest.
        ArtifactCorruptError: tag, manifest or build record are not what they should be.
    """
    if reference.tag is None and reference.digest is None:
        raise BadReferenceError(
            "it names neither tag nor digest",
            where=str(reference),
            fix=f"add :TAG; `engineroom list {reference.root}` shows them",
        )
    digest = reference.digest or ""
    if reference.tag is not None:
        named = _read_tag(reference, reference.tag, store, wait_seconds=wait_seconds, progress=progress)
        if reference.digest and named != reference.digest:
            raise ArtifactCorruptError(
                f"the tag names {named}", where=str(reference), fix="drop the tag or the digest, whichever is not meant"
            )
        digest = named
    pinned = reference.pinned(digest)
    where = str(pinned)
    manifest = Manifest.parse(
        read_small(store, digest.removeprefix("sha256:"), limit=MAX_BYTES, where=where, what="manifest"), where=where
    )
    try:
        data = read_small(store, manifest.config.hex, limit=MAX_RECORD_BYTES, where=where, what="build record")
    except ArtifactNotFoundError as error:
        # The manifest is there, so this is no wrong reference: something removed what it names.
        raise ArtifactCorruptError(error.found, where=where, fix="publish it again") from None
    if len(data) != manifest.config.size:
        raise ArtifactCorruptError("the manifest gives its build record another size", where=where)
    try:
        record = BuildRecord.parse(data, where=where)
    except DocumentError as error:
        raise ArtifactCorruptError(f"its build record is malformed: {error.found}", where=where) from None
    return Artifact(pinned, manifest, record, data, contents(manifest, record, where=where))


def _read_tag(reference: Reference, tag: str, store: Store, *, wait_seconds: float, progress: Progress) -> str:
    deadline = time.monotonic() + wait_seconds
    told = False
    while (state := store.read_tag(reference.name, tag)) is None:
        left = deadline - time.monotonic()
        if left <= 0:
            waited = f" after {wait_seconds:g} seconds" if wait_seconds else ""
            raise ArtifactNotFoundError(
                f"there is no such tag{waited}",
                where=str(reference),
                fix=f"`engineroom list {reference.root}` shows what is there",
            )
        if not told:
            progress.say(f"waiting up to {wait_seconds:g} seconds for {reference}")
            told = True
        time.sleep(min(_POLL_SECONDS, left))
    if state.pointer.artifact_type == BACKUP_TYPE:
        raise BadReferenceError(
            "it is a backup, no artifact", where=str(reference), fix="`engineroom restore` brings back what it holds"
        )
    return state.pointer.digest
