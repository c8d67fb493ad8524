"""Garbage collection: remove the blobs of a store that no tag names, while others publish into it.

``holds`` says why nothing that is being written is lost; here is the collection's side of it.
"""

import re
import secrets
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from engineroom.artifacts import holds
from engineroom.artifacts.closure import closure
from engineroom.artifacts.holds import CONDEMNED, HOLD, NAMED, BlobList, age, boot_time, read_blob_list
from engineroom.artifacts.manifest_cache import ManifestCache
from engineroom.artifacts.parallel import Stop, run_all
from engineroom.artifacts.pointers import by_md5
from engineroom.artifacts.store import POINTED_TYPES, BlobEntry, CollectableStore, Pointer, Store, TagEntry
from engineroom.errors import ArtifactCorruptError, ArtifactNotFoundError, EngineroomError, InputError
from engineroom.progress import QUIET, Progress, Task

DAY = 24 * 3600.0

_BLOB = re.compile(r"[0-9a-f]{64}")

#: Blobs that are condemned at once; with their digests the notice has 1.3 MB.
_CONDEMN = 20_000
#: Blobs between two words of progress.
_PAGE = 1000
#: Blobs that are removed between two looks at the clock.
_REMOVE = 500
#: More than any file system's times are rounded by (FAT: 2 s).
_TICK_SECONDS = 10.0


@dataclass(frozen=True)
class Collected:
    """What a collection did, or in a dry run would do."""

    tags: int
    """That were found; everything that they name is kept."""
    kept_blobs: int
    kept_bytes: int
    young_blobs: int
    """Of the kept: named by nothing, but younger than the grace period, or in use."""
    removed_blobs: int
    removed_bytes: int
    removed: tuple[str, ...]
    """Their digests, hexadecimal."""


def collect(
    store: Store,
    *,
    grace_seconds: float = DAY,
    cache: ManifestCache | None = None,
    progress: Progress = QUIET,
    dry_run: bool = False,
) -> Collected:
    """Remove every blob that is older than ``grace_seconds`` and that no tag names, or named within that time.

    Blobs that others are just publishing, copying or backing up are kept whatever their age, so that ``0`` is safe
    too; the grace period keeps what a publication that was cut off had sent, for its next run. Can be killed at any
    time and repeated. Manifests that ``cache`` has, and the store's listing shows, are not read again.

    Raises:
        InputError: the store is a registry.
        ArtifactNotFoundError: there is neither tag nor blob.
        ArtifactCorruptError: a tag, or a manifest, cannot be read, so that what it names is unknown; nothing was
            removed since.
        StoreError: the store failed.
    """
    if not isinstance(store, CollectableStore):
        raise InputError(
            "a registry removes its garbage itself",
            where=store.root,
            fix="delete the tag there and run the registry's own garbage collection",
        )
    if next(iter(store.blobs()), None) is None and not store.list_tags():
        raise ArtifactNotFoundError(
            "there is no store here", where=store.root, fix="name a store's root: what stands before /NAME:TAG"
        )
    collection = _Collection(store, grace_seconds, cache, progress)
    done = collection.result(*collection.judge(datetime.now(UTC))) if dry_run else collection.run()
    if cache:
        cache.trim()
    return done


class _Collection:
    def __init__(self, store: CollectableStore, grace: float, cache: ManifestCache | None, progress: Progress) -> None:
        self._store = store
        self._grace = grace
        self._cache = cache
        self._progress = progress
        self._notice = CONDEMNED + secrets.token_hex(16)
        self._lock = threading.Lock()
        #: Blobs that nothing was found to need so far. What leaves it never comes back: what is needed at any moment
        #: of a collection is for the next one to judge.
        self._unneeded: dict[str, BlobEntry] = {}
        self._kept_blobs = self._kept_bytes = 0
        #: Manifests whose blobs have left ``_unneeded``: they never change.
        self._known: set[str] = set()
        self._listed: dict[str, Pointer] = {}
        """What a tag names, by the MD5 of its object."""
        self._read: dict[TagEntry, Pointer | None] = {}
        """What a tag of this version named when it was read."""

    def run(self) -> Collected:
        try:
            now = self._condemn([])
            tags, condemned = self.judge(now)
            removed: list[BlobEntry] = []
            with self._progress.task("remove", len(condemned), unit="blobs") as task:
                for start in range(0, len(condemned), _CONDEMN):
                    removed += self._remove(condemned[start : start + _CONDEMN], task)
            self._forget_old_notices(now)
        finally:
            with suppress(EngineroomError):  # who finds it later sees that it is old
                self._store.withdraw(self._notice)
        return self.result(tags, removed)

    def result(self, tags: int, removed: Sequence[BlobEntry]) -> Collected:
        """The report, where ``removed`` are gone, or would be."""
        young = self._unneeded.keys() - {entry.hex for entry in removed}
        return Collected(
            tags=tags,
            kept_blobs=self._kept_blobs + len(young),
            kept_bytes=self._kept_bytes + sum(self._unneeded[blob].size for blob in young),
            young_blobs=len(young),
            removed_blobs=len(removed),
            removed_bytes=sum(entry.size for entry in removed),
            removed=tuple(entry.hex for entry in removed),
        )

    def judge(self, now: datetime) -> tuple[int, list[BlobEntry]]:
        """Look at everything: number of tags, and what may go; ``now`` is the store's time.

        The blobs are listed first, so what is written from here on is in no danger.
        """
        with self._progress.task("list blobs", None, unit="blobs") as task:
            for number, entry in enumerate(self._store.blobs(), start=1):
                if _BLOB.fullmatch(entry.hex):  # else somebody else's object
                    self._unneeded[entry.hex] = entry
                if number % _PAGE == 0:
                    task.advance(_PAGE)
        tags = self._look(now)
        old = (entry for entry in self._unneeded.values() if (now - entry.modified).total_seconds() >= self._grace)
        return tags, list(old)

    def _remove(self, batch: Sequence[BlobEntry], task: Task) -> Iterator[BlobEntry]:
        """Remove what is still needed by nobody once the others can know of it."""
        left = list(batch)
        while left:
            posted = boot_time()
            now = self._condemn(left)
            self._look(now)
            left = [entry for entry in left if entry.hex in self._unneeded]
            # Half of the time is for requests that are on their way when the other half is over.
            while left and boot_time() - posted < holds.CONDEMNED_SECONDS / 2:
                part, left = left[:_REMOVE], left[_REMOVE:]
                self._store.remove_blobs([entry.hex for entry in part])
                task.advance(len(part))
                yield from part

    def _condemn(self, blobs: Sequence[BlobEntry]) -> datetime:
        """Post what is about to be removed; the store's time then."""
        self._store.post(self._notice, BlobList(blobs=sorted(entry.hex for entry in blobs)).to_json())
        for entry in self._store.notices():
            if entry.name == self._notice:
                return entry.modified
        raise ArtifactCorruptError(
            "a notice that was just written is not listed",
            where=f"{self._store.root}/notices/{self._notice}",
            fix="collect garbage only in stores whose listings are up to date",
        )

    def _look(self, now: datetime) -> int:
        """Find out what must stay now; the number of tags.

        In this order: holds, tags, what tags named until now. A writer sets its tag before it withdraws its hold,
        and says what a tag named before it moves it.
        """
        for notice in self._store.notices():
            if notice.name.startswith(HOLD) and age(notice, now) < holds.HOLD_SECONDS:
                self._keep(read_blob_list(self._store, notice))
        entries = self._store.list_tags()
        self._keep_tagged(self._pointers(entries, now))
        named = [
            notice.name.removeprefix(NAMED)
            for notice in self._store.notices()
            if notice.name.startswith(NAMED) and age(notice, now) < self._grace
        ]
        run_all(self._keep_named, [blob for blob in named if blob not in self._known], workers=self._store.readers)
        return len(entries)

    def _pointers(self, entries: Sequence[TagEntry], now: datetime) -> dict[Pointer, TagEntry]:
        """What tags name now, each once, with a tag that names it."""
        new = (entry for entry in entries if entry.md5 not in self._listed)
        self._listed |= by_md5(new, self._unneeded.values())

        def is_read(entry: TagEntry) -> bool:
            # A tag that was written just now may be written again within one tick of a file system's clock.
            return entry in self._read and (now - entry.modified).total_seconds() > _TICK_SECONDS

        unread = [entry for entry in entries if entry.md5 not in self._listed and not is_read(entry)]
        with (self._progress if unread else QUIET).task("read tags", len(unread), unit="tags") as task:

            def read(entry: TagEntry, stop: Stop) -> None:
                stop.check()
                state = self._store.read_tag(entry.name, entry.tag)
                self._read[entry] = state.pointer if state else None
                task.advance(1)

            run_all(read, unread, workers=self._store.readers)
        found: dict[Pointer, TagEntry] = {}
        for entry in entries:
            if pointer := self._listed.get(entry.md5) or self._read.get(entry):
                found.setdefault(pointer, entry)
        return found

    def _keep_tagged(self, tagged: dict[Pointer, TagEntry]) -> None:
        """Keep everything behind these pointers; manifests that were read before are not read again."""
        new = [item for item in tagged.items() if _hex(item[0]) not in self._known]
        with (self._progress if new else QUIET).task("read manifests", len(new), unit="manifests") as task:

            def keep(item: tuple[Pointer, TagEntry], stop: Stop) -> None:
                stop.check()
                pointer, entry = item
                where = f"{self._store.root}/{entry.name}:{entry.tag}"
                try:
                    self._keep_closure(pointer, where)
                except (ArtifactCorruptError, ArtifactNotFoundError) as error:
                    raise ArtifactCorruptError(
                        f"nothing is removed, because what this tag names is unknown: {error.found}",
                        where=where,
                        fix=f"publish it again, or give it up with `engineroom untag {where}`",
                    ) from None
                task.advance(1)

            run_all(keep, new, workers=self._store.readers)

    def _keep_named(self, blob: str, stop: Stop) -> None:
        """Keep what a manifest names that no tag names any more; as much of it as can be read."""
        stop.check()
        size = self._store.blob_size(blob)
        for kind in POINTED_TYPES if size else ():
            with suppress(ArtifactCorruptError, ArtifactNotFoundError):
                return self._keep_closure(Pointer(f"sha256:{blob}", size or 1, kind), self._store.root)
        return None

    def _keep_closure(self, pointer: Pointer, where: str) -> None:
        # A manifest that is not in the store, or not all of it, is one to stumble over, whoever else has it.
        entry = self._unneeded.get(_hex(pointer))
        cache = self._cache if entry and entry.size == pointer.size else None
        self._keep(needed.hex for needed in closure(self._store, pointer, where=where, cache=cache))
        self._known.add(_hex(pointer))

    def _keep(self, blobs: Iterable[str]) -> None:
        with self._lock:
            for blob in blobs:
                if entry := self._unneeded.pop(blob, None):
                    self._kept_blobs += 1
                    self._kept_bytes += entry.size

    def _forget_old_notices(self, now: datetime) -> None:
        limits = {HOLD: holds.HOLD_SECONDS, CONDEMNED: holds.HOLD_SECONDS, NAMED: self._grace}
        old = [
            entry.name
            for entry in self._store.notices()
            for kind, seconds in limits.items()
            if entry.name.startswith(kind) and age(entry, now) > seconds
        ]
        for start in range(0, len(old), _REMOVE):
            self._store.withdraw(*old[start : start + _REMOVE])


def _hex(pointer: Pointer) -> str:
    return pointer.digest.removeprefix("sha256:")


def untag(store: Store, name: str, tag: str) -> Pointer | None:
    """Remove a tag; what it named, None where that is not known. Its blobs go with a later collection.

    Raises :class:`InputError` where the store is a registry.
    """
    if not isinstance(store, CollectableStore):
        raise InputError("a registry's tags are the registry's to delete", where=store.root, fix="delete it there")
    try:
        state = store.read_tag(name, tag)
    except ArtifactCorruptError:
        store.remove_tag(name, tag)  # a tag that names nothing is what this is for
        return None
    if state is None:
        return None
    holds.keep_named(store, state.pointer.digest)
    store.remove_tag(name, tag)
    return state.pointer
