"""What a store is: content-addressed blobs, and small objects that name them.

::

    blobs/sha256/<hex>            a layer, a build record or a manifest; shared by all names
    refs/<NAME>/tags/<TAG>        the descriptor of the manifest that the tag names
    notices/<NAME>                what those who work on the store tell each other (see ``holds``)

One interface here; ``folder`` (``file://``), ``bucket`` (``s3://``, ``gs://``, ``az://``) and ``registry`` (``oci://``,
which has tags and manifests of its own) implement it, and a new kind of store is one new module and one line in
``stores``.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Protocol, runtime_checkable

from engineroom.artifacts.manifest import ARTIFACT_TYPE, MAX_BYTES, MEDIA_TYPE
from engineroom.artifacts.manifest_cache import ManifestCache
from engineroom.documents import canonical
from engineroom.errors import ArtifactCorruptError, ArtifactNotFoundError
from engineroom.repository.record import MEDIA_TYPE as RECORD_TYPE

#: Longest tag object; ours have about 200 bytes.
MAX_TAG_BYTES = 4096

#: ``artifactType`` of a backup: a manifest of another kind, which names artifacts (see ``backup``).
BACKUP_TYPE: Final = "application/vnd.engineroom.backup.v1"
#: What a tag object calls a manifest that others pushed: files, or anything else, without a build record as config.
#: The manifest has a type of its own, which is not repeated: a tag has one spelling.
PLAIN_TYPE: Final = "application/vnd.engineroom.plain.v1"
#: All that a tag object may name.
POINTED_TYPES: Final = (ARTIFACT_TYPE, BACKUP_TYPE, PLAIN_TYPE)


@dataclass(frozen=True)
class Pointer:
    """What a tag names."""

    digest: str
    """Of the manifest: ``sha256:…``."""
    size: int
    """Of the manifest, bytes."""
    artifact_type: str = ARTIFACT_TYPE
    """What the manifest describes: an artifact, a backup, or what others pushed."""

    @classmethod
    def to(cls, manifest: bytes) -> "Pointer":
        """The pointer to a manifest, whose type is what it shows itself."""
        return cls("sha256:" + hashlib.sha256(manifest).hexdigest(), len(manifest), type_of(manifest))

    def to_json(self) -> bytes:
        """The tag object: an OCI descriptor, canonical, so that equal tags are equal objects."""
        return canonical(
            {"artifactType": self.artifact_type, "digest": self.digest, "mediaType": MEDIA_TYPE, "size": self.size}
        )

    @classmethod
    def parse(cls, data: bytes, *, where: str) -> "Pointer":
        """Read a tag object. Raises :class:`ArtifactCorruptError` where it is not exactly what we write."""
        try:
            value = json.loads(data[:MAX_TAG_BYTES])
            pointer = cls(digest=value["digest"], size=value["size"], artifact_type=value["artifactType"])
            # Our own spelling and nothing else: half an object, or somebody else's, cannot pass.
            ours = pointer.artifact_type in POINTED_TYPES and _is_digest(pointer.digest)
            if ours and pointer.to_json() == data and 0 < pointer.size <= MAX_BYTES:
                return pointer
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        raise ArtifactCorruptError("the tag does not hold a descriptor of engineroom", where=where)


def type_of(manifest: bytes) -> str:
    """Which of :data:`POINTED_TYPES` a manifest is."""
    try:
        value = json.loads(manifest)
        if value["config"]["mediaType"] == RECORD_TYPE:
            return ARTIFACT_TYPE
        return BACKUP_TYPE if value.get("artifactType") == BACKUP_TYPE else PLAIN_TYPE
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return PLAIN_TYPE


@dataclass(frozen=True)
class TagState:
    """A tag as it was read: what it names, and what a compare-and-swap compares."""

    pointer: Pointer
    version: str
    """ETag or generation in a bucket; empty in a folder and a registry, which compare the pointer."""
    modified: datetime
    """:data:`NO_TIME` where the store does not say."""


#: When a tag was written, in a store that does not know it: registries.
NO_TIME = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class TagEntry:
    """A tag as a listing shows it, without a look at what it names."""

    tag: str
    modified: datetime
    """By the store's clock; :data:`NO_TIME` where the store does not say."""
    name: str
    """What it is a tag of."""
    version: str = ""
    """Differs where the tag was written again: an ETag, or the file's number and time; empty in registries."""
    md5: str = ""
    """Of the tag object, hexadecimal, as far as the listing says: see ``pointers``. Anything else is possible."""


@dataclass(frozen=True, slots=True)
class BlobEntry:
    """A blob as a listing shows it."""

    hex: str
    size: int
    modified: datetime


@dataclass(frozen=True)
class NoticeEntry:
    """A notice as a listing shows it."""

    name: str
    modified: datetime
    """By the store's clock, as everything that is compared with it."""


class Store(Protocol):
    """Where artifacts lie. Safe to use from many threads.

    Every method raises :class:`StoreError` where the store does not do its work.
    """

    root: str
    """``SCHEME://LOCATION``: for messages, and to open it again."""

    has_conditions: bool
    """Whether the protocol has conditional writes at all. A registry's has not: there :meth:`create_tag` and
    :meth:`move_tag` look before and after, and of two writers in the same instant the second wins unseen."""

    longest_blob: int | None
    """Bytes; None where there is no limit that we know."""

    readers: int
    """Small reads that are worth having on their way at once: each is a round trip and little else."""

    def within(self, name: str) -> "Store":
        """This store as one name sees it: a registry keeps blobs by repository, all others for all names."""

    def blob_size(self, blob: str) -> int | None:
        """Bytes of the blob with this SHA-256 (hexadecimal), None where there is none."""

    def read_blob(self, blob: str, start: int, end: int, *, size: int) -> Iterator[memoryview]:
        """The bytes ``start <= i < end`` of a blob of ``size`` bytes, in pieces; fewer where the answer is cut off.

        A piece may be overwritten once the next one is taken.
        Raises :class:`ArtifactNotFoundError` where there is no such blob, :class:`ArtifactCorruptError` where it is
        seen to have another size.
        """

    def write_blob(self, blob: str, size: int, pieces: Iterable[memoryview]) -> None:
        """Store a blob. It becomes visible at once and whole, after the last piece, or not at all.

        Where ``pieces`` raises, so does this, and nothing becomes visible. A piece is kept only if it is a view of
        ``bytes``, which cannot change; others are copied.
        """

    def add_blob(self, blob: str, data: bytes) -> bool:
        """Store a short blob that is probably not there; False, and nothing changed, where it is.

        A bucket does it in one request, where asking first takes two: only for stores that keep conditions.
        """

    def read_manifest(self, blob: str) -> bytes | None:
        """The manifest with this SHA-256 (at most :data:`MAX_BYTES`, and one more), None where there is none."""

    def write_manifest(self, blob: str, data: bytes) -> None:
        """Store a manifest, after everything that it names."""

    def read_tag(self, name: str, tag: str) -> TagState | None:
        """What a tag names, None where there is no such tag."""

    def create_tag(self, name: str, tag: str, pointer: Pointer) -> bool:
        """Make a tag where there is none. False, and nothing changed, where there is one."""

    def move_tag(self, name: str, tag: str, pointer: Pointer, *, expected: TagState) -> bool:
        """Let a tag name another artifact. False, and nothing changed, where it is not ``expected`` any more."""

    def write_tag(self, name: str, tag: str, pointer: Pointer) -> None:
        """Write a tag whatever it was: only for stores that do not keep conditions."""

    def tags(self, name: str) -> list[str]:
        """Tags of a name, sorted."""

    def list_tags(self, name: str | None = None) -> list[TagEntry]:
        """Tags of a name, or of all, with the time of their last change, sorted by name and tag; no tag is opened."""

    def names(self) -> list[str]:
        """Names that have tags, sorted."""

    def keeps_conditions(self) -> bool:
        """Whether :meth:`create_tag` is a promise: found out by writing an object twice (and removing it)."""


@runtime_checkable
class CollectableStore(Store, Protocol):
    """A store whose blobs are ours to remove: a folder or a bucket. Registries collect their own garbage.

    ``holds`` says how writers and the garbage collection keep out of each other's way.
    """

    def blobs(self) -> Iterator[BlobEntry]:
        """Every blob, in no order."""

    def remove_blobs(self, blobs: Sequence[str]) -> None:
        """Remove these blobs; one that is not there is no error."""

    def remove_tag(self, name: str, tag: str) -> None:
        """Remove a tag, at once for every reader. What it named stays until it is collected."""

    def post(self, notice: str, data: bytes) -> None:
        """Write a notice, or write it again, which makes it young."""

    def notices(self) -> list[NoticeEntry]:
        """Every notice there is now, those just posted included."""

    def read_notice(self, notice: str) -> bytes | None:
        """The bytes of a notice, None where it was withdrawn."""

    def withdraw(self, *notices: str) -> None:
        """Remove notices; one that is not there is no error."""


def as_bytes(piece: memoryview) -> bytes:
    """A piece that may be kept: copied only if it is not all of some ``bytes`` already."""
    if isinstance(piece.obj, bytes) and piece.nbytes == len(piece.obj):
        return piece.obj
    return bytes(piece)


def check_size(blob: str, found: int, size: int, *, where: str) -> None:
    """Raise :class:`ArtifactCorruptError` where a blob has another size than what names it says."""
    if found != size:
        raise ArtifactCorruptError(
            f"its blob has {found} bytes instead of {size}", where=f"{where}: sha256:{blob}", fix="publish it again"
        )


def read_manifest(store: Store, blob: str, *, where: str, cache: ManifestCache | None = None) -> bytes:
    """A manifest, compared with its digest; from ``cache`` where it is there.

    Raises :class:`ArtifactNotFoundError`, :class:`ArtifactCorruptError`.
    """
    if cache and (known := cache.get(blob)):
        return known
    data = store.read_manifest(blob)
    if data is None:
        raise ArtifactNotFoundError(f"there is no manifest sha256:{blob}", where=where)
    if len(data) > MAX_BYTES:
        raise ArtifactCorruptError(f"more than {MAX_BYTES} bytes are too long for a manifest", where=where)
    if hashlib.sha256(data).hexdigest() != blob:
        raise ArtifactCorruptError(
            f"the manifest of {len(data)} bytes does not hash to {blob}",
            where=where,
            fix=f"delete blobs/sha256/{blob} in the store and publish again",
        )
    if cache:
        cache.put(blob, data)
    return data


class ManifestsAsBlobs(Store, Protocol):
    """What every store but a registry has in common: manifests lie among the blobs, which all names share."""

    has_conditions: bool = True
    longest_blob: int | None = None
    # Of local files: what the page cache has takes no time but Python's, and a disk likes some company.
    readers: int = 4

    def within(self, name: str) -> Store:
        """The store itself."""
        return self

    def add_blob(self, blob: str, data: bytes) -> bool:
        """Look, then write."""
        if self.blob_size(blob) == len(data):
            return False
        self.write_blob(blob, len(data), [memoryview(data)])
        return True

    def read_manifest(self, blob: str) -> bytes | None:
        """The blob, or its beginning where it is too long."""
        size = self.blob_size(blob)
        if size is None:
            return None
        return b"".join(bytes(piece) for piece in self.read_blob(blob, 0, min(size, MAX_BYTES + 1), size=size))

    def write_manifest(self, blob: str, data: bytes) -> None:
        """A blob."""
        self.write_blob(blob, len(data), [memoryview(data)])


def read_small(store: Store, blob: str, size: int, *, limit: int, where: str, what: str) -> bytes:
    """A whole blob of ``size`` bytes, at most ``limit``, compared with its digest.

    Raises:
        ArtifactNotFoundError: there is no such blob.
        ArtifactCorruptError: it has another size, is longer than ``limit``, or hashes to something else.
    """
    if size > limit:
        raise ArtifactCorruptError(f"{size} bytes are too long for a {what}", where=where)
    data = bytearray()
    try:
        for piece in store.read_blob(blob, 0, size, size=size):
            data += piece
    except ArtifactNotFoundError:
        raise ArtifactNotFoundError(f"there is no {what} sha256:{blob}", where=where) from None
    if hashlib.sha256(data).hexdigest() != blob:
        raise ArtifactCorruptError(
            f"the {what} of {len(data)} bytes does not hash to {blob}",
            where=where,
            fix=f"delete blobs/sha256/{blob} in the store and publish again",
        )
    return bytes(data)


def _is_digest(text: object) -> bool:
    return (
        isinstance(text, str)
        and len(text) == 71
        and text.startswith("sha256:")
        and all(character in "0123456789abcdef" for character in text[7:])
    )
