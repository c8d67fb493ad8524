"""What a store is: content-addressed blobs, and small objects that name them.

::

    blobs/sha256/<hex>            a layer, a build record or a manifest; shared by all names
    refs/<NAME>/tags/<TAG>        the descriptor of the manifest that the tag names

One interface here; ``folder`` (``file://``) and ``bucket`` (``s3://``) implement it, and a new kind of store is one
new module and one line in ``stores``.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from engineroom.artifacts.manifest import ARTIFACT_TYPE, MAX_BYTES, MEDIA_TYPE
from engineroom.documents import canonical
from engineroom.errors import ArtifactCorruptError, ArtifactNotFoundError

#: Longest tag object; ours have about 200 bytes.
MAX_TAG_BYTES = 4096


@dataclass(frozen=True)
class Pointer:
    """What a tag names."""

    digest: str
    """Of the manifest: ``sha256:…``."""
    size: int
    """Of the manifest, bytes."""

    def to_json(self) -> bytes:
        """The tag object: an OCI descriptor, canonical, so that equal tags are equal objects."""
        return canonical(
            {"artifactType": ARTIFACT_TYPE, "digest": self.digest, "mediaType": MEDIA_TYPE, "size": self.size}
        )

    @classmethod
    def parse(cls, data: bytes, *, where: str) -> "Pointer":
        """Read a tag object. Raises :class:`ArtifactCorruptError` where it is not exactly what we write."""
        try:
            value = json.loads(data[:MAX_TAG_BYTES])
            pointer = cls(digest=value["digest"], size=value["size"])
            # Our own spelling and nothing else: half an object, or somebody else's, cannot pass.
            if pointer.to_json() == data and _is_digest(pointer.digest) and 0 < pointer.size <= MAX_BYTES:
                return pointer
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        raise ArtifactCorruptError("the tag does not hold a descriptor of engineroom", where=where)


@dataclass(frozen=True)
class TagState:
    """A tag as it was read: what it names, and what a compare-and-swap compares."""

    pointer: Pointer
    version: str
    """ETag in a bucket; empty in a folder, which compares the pointer."""
    modified: datetime


class Store(Protocol):
    """Where artifacts lie. Safe to use from many threads.

    Every method raises :class:`StoreError` where the store does not do its work.
    """

    root: str
    """``SCHEME://LOCATION``: for messages, and to open it again."""

    def blob_size(self, blob: str) -> int | None:
        """Bytes of the blob with this SHA-256 (hexadecimal), None where there is none."""

    def read_blob(self, blob: str, start: int, end: int, *, size: int) -> Iterator[memoryview]:
        """The bytes ``start <= i < end`` of a blob of ``size`` bytes, in pieces; fewer where it is shorter after all.

        A piece may be overwritten once the next one is taken.
        Raises :class:`ArtifactNotFoundError` where there is no such blob.
        """

    def write_blob(self, blob: str, size: int, pieces: Iterable[memoryview]) -> None:
        """Store a blob. It becomes visible at once and whole, after the last piece, or not at all.

        Where ``pieces`` raises, so does this, and nothing becomes visible.
        """

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

    def names(self) -> list[str]:
        """Names that have tags, sorted."""

    def keeps_conditions(self) -> bool:
        """Whether :meth:`create_tag` is a promise: found out by writing an object twice (and removing it)."""


def read_small(store: Store, blob: str, *, limit: int, where: str, what: str) -> bytes:
    """A whole blob of at most ``limit`` bytes, compared with its digest.

    Raises:
        ArtifactNotFoundError: there is no such blob.
        ArtifactCorruptError: it is longer than ``limit``, or hashes to something else.
    """
    size = store.blob_size(blob)
    if size is None:
        raise ArtifactNotFoundError(f"there is no {what} sha256:{blob}", where=where)
    if size > limit:
        raise ArtifactCorruptError(f"{size} bytes are too long for a {what}", where=where)
    data = bytearray()
    for piece in store.read_blob(blob, 0, size, size=size):
        data += piece
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
