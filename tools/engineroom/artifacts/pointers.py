"""What thousands of tags name, without opening each: a listing says it where it gives the MD5 of a tag object.

A tag object is the one spelling of a :class:`Pointer`, so whoever knows which manifests a tag may name knows which MD5
each tag object would have. S3 gives the MD5 of an object as its ETag, unless it came in several parts or is encrypted
with a key of the user's (https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html); Azure and folders do not.
There no MD5 matches, and the tag is read as ever. A listing is as new as a read: stores show what was written before.
"""

import hashlib
from collections.abc import Iterable
from functools import lru_cache

from engineroom.artifacts.manifest import MAX_BYTES
from engineroom.artifacts.parallel import Stop, run_all
from engineroom.artifacts.store import POINTED_TYPES, BlobEntry, CollectableStore, Pointer, Store, TagEntry
from engineroom.errors import ArtifactCorruptError

#: From so many tags on, a listing of the blobs costs fewer requests than the tags, which name a few blobs each.
_MANY = 1000
_ZEROS = "0" * 64


def by_md5(entries: Iterable[TagEntry], blobs: Iterable[BlobEntry]) -> dict[str, Pointer]:
    """Of the pointers to ``blobs``, those that the listing shows to be behind one of ``entries``, by ``md5``."""
    wanted = {entry.md5 for entry in entries} - {""}
    found: dict[str, Pointer] = {}
    for blob in blobs if wanted else ():
        if not 0 < blob.size <= MAX_BYTES:
            continue
        for kind in POINTED_TYPES:
            head, tail = _spelling(blob.size, kind)
            md5 = hashlib.md5(head + blob.hex.encode() + tail, usedforsecurity=False).hexdigest()
            if md5 in wanted:
                found[md5] = Pointer(f"sha256:{blob.hex}", blob.size, kind)
    return found


@lru_cache(maxsize=1 << 14)
def _spelling(size: int, kind: str) -> tuple[bytes, bytes]:
    """What a tag object has before and after the digest."""
    head, _, tail = Pointer(f"sha256:{_ZEROS}", size, kind).to_json().partition(_ZEROS.encode())
    return head, tail


def tags_naming(store: Store, name: str, pointer: Pointer) -> list[str]:
    """The tags of a name that name ``pointer`` now. Tags that cannot be read name nothing."""
    entries = store.list_tags(name)
    seen: dict[str, Pointer] = {}
    if len(entries) > _MANY and isinstance(store, CollectableStore) and any(entry.md5 for entry in entries):
        seen = by_md5(entries, store.blobs())

    def names(entry: TagEntry, stop: Stop) -> bool:
        stop.check()
        if entry.md5 in seen:
            return seen[entry.md5] == pointer
        try:
            state = store.read_tag(entry.name, entry.tag)
        except ArtifactCorruptError:
            return False
        return state is not None and state.pointer == pointer

    found = run_all(names, entries, workers=store.readers)
    return [entry.tag for entry, yes in zip(entries, found, strict=True) if yes]
