"""Garbage collection: remove the blobs of a store that no tag names, while others publish into it.

``holds`` says why nothing that is being written is lost; here is the collection's side of it.
"""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from engineroom.artifacts import holds
from engineroom.artifacts.closure import closure
from engineroom.artifacts.holds import CONDEMNED, HOLD, NAMED, BlobList, age, boot_time, read_blob_list
from engineroom.artifacts.manifest import ARTIFACT_TYPE
from engineroom.artifacts.parallel import Stop, run_all
from engineroom.artifacts.store import BACKUP_TYPE, BlobEntry, CollectableStore, Pointer, Store, TagEntry
from engineroom.errors import ArtifactCorruptError, ArtifactNotFoundError, EngineroomError, InputError
from engineroom.progress import QUIET, Progress, Task

DAY = 24 * 3600.0

#: Blobs that are condemned at once; with their digests the notice has 1.3 MB.
_CONDEMN = 20_000
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
    store: Store, *, grace_seconds: float = DAY, progress: Progress = QUIET, dry_run: bool = False
) -> Collected:
    """Remove every blob that is older than ``grace_seconds`` and that no tag names, or named within that time.

    Blobs that others are just publishing, copying or backing up are kept whatever their age, so that ``0`` is safe
    too; the grace period keeps what a publication that was cut off had sent, for its next run. Can be killed at any
    time and repeated.

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
    if not store.list_tags() and next(iter(store.blobs()), None) is None:
        raise ArtifactNotFoundError(
            "there is no store here", where=store.root, fix="name a store's root: what stands before /NAME:TAG"
        )
    collection = _Collection(store, grace_seconds, progress)
    if dry_run:
        return collection.judge(datetime.now(UTC)).result()
    return collection.run()


@dataclass(frozen=True)
class _Verdict:
    tags: int
    kept: list[BlobEntry]
    young: list[BlobEntry]
    condemned: list[BlobEntry]

    def result(self) -> Collected:
        kept = self.kept + self.young
        return Collected(
            tags=self.tags,
            kept_blobs=len(kept),
            kept_bytes=sum(entry.size for entry in kept),
            young_blobs=len(self.young),
            removed_blobs=len(self.condemned),
            removed_bytes=sum(entry.size for entry in self.condemned),
            removed=tuple(entry.hex for entry in self.condemned),
        )


class _Collection:
    def __init__(self, store: CollectableStore, grace: float, progress: Progress) -> None:
        self._store = store
        self._grace = grace
        self._progress = progress
        self._notice = CONDEMNED + secrets.token_hex(16)
        #: What a tag of this version named when it was read; manifests never change.
        self._pointers: dict[TagEntry, Pointer | None] = {}
        self._closures: dict[Pointer, frozenset[str]] = {}

    def run(self) -> Collected:
        try:
            now = self._condemn([])
            verdict = self.judge(now)
            removed: list[BlobEntry] = []
            with self._progress.task("remove", len(verdict.condemned), unit="blobs") as task:
                for start in range(0, len(verdict.condemned), _CONDEMN):
                    batch = verdict.condemned[start : start + _CONDEMN]
                    removed += self._remove(batch, task)
            self._forget_old_notices(now)
        finally:
            with suppress(EngineroomError):  # who finds it later sees that it is old
                self._store.withdraw(self._notice)
        gone = {entry.hex for entry in removed}
        spared = [entry for entry in verdict.condemned if entry.hex not in gone]
        return _Verdict(verdict.tags, verdict.kept, verdict.young + spared, removed).result()

    def judge(self, now: datetime) -> _Verdict:
        """Look at everything; ``now`` is the store's time."""
        kept, young, condemned = [], [], []
        tags, needed = self._needed(now)
        for entry in self._store.blobs():
            if entry.hex in needed:
                kept.append(entry)
            elif (now - entry.modified).total_seconds() < self._grace:
                young.append(entry)
            else:
                condemned.append(entry)
        return _Verdict(tags, kept, young, condemned)

    def _remove(self, batch: Sequence[BlobEntry], task: Task) -> Iterator[BlobEntry]:
        """Remove what is still needed by nobody once the others can know of it."""
        left = list(batch)
        while left:
            posted = boot_time()
            now = self._condemn(left)
            _, needed = self._needed(now)
            left = [entry for entry in left if entry.hex not in needed]
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

    def _needed(self, now: datetime) -> tuple[int, set[str]]:
        """Number of tags, and every blob that must stay.

        In this order: holds, tags, what tags named until now. A writer sets its tag before it withdraws its hold,
        and says what a tag named before it moves it.
        """
        needed: set[str] = set()
        for notice in self._store.notices():
            if notice.name.startswith(HOLD) and age(notice, now) < holds.HOLD_SECONDS:
                needed.update(read_blob_list(self._store, notice))
        entries = self._store.list_tags()
        with self._progress.task("read tags", len(entries), unit="tags") as task:

            def mark(entry: TagEntry, stop: Stop) -> None:
                stop.check()
                self._mark(entry, now)
                task.advance(1)

            run_all(mark, entries, workers=8)
        for entry in entries:
            if pointer := self._pointers[entry]:
                needed |= self._closures[pointer]
        for notice in self._store.notices():
            if notice.name.startswith(NAMED) and age(notice, now) < self._grace:
                needed |= self._named(notice.name.removeprefix(NAMED))
        return len(entries), needed

    def _mark(self, entry: TagEntry, now: datetime) -> None:
        # A tag that was written just now may be written again within one tick of a file system's clock.
        old = (now - entry.modified).total_seconds() > _TICK_SECONDS
        if not old or entry not in self._pointers:
            state = self._store.read_tag(entry.name, entry.tag)
            self._pointers[entry] = state.pointer if state else None
        pointer = self._pointers[entry]
        if pointer and pointer not in self._closures:
            where = f"{self._store.root}/{entry.name}:{entry.tag}"
            try:
                found = closure(self._store, pointer, where=where)
            except (ArtifactCorruptError, ArtifactNotFoundError) as error:
                raise ArtifactCorruptError(
                    f"nothing is removed, because what this tag names is unknown: {error.found}",
                    where=where,
                    fix=f"publish it again, or give it up with `engineroom untag {where}`",
                ) from None
            self._closures[pointer] = frozenset(needed.hex for needed in found)

    def _named(self, blob: str) -> frozenset[str]:
        """What a manifest names that no tag needs any more; as much of it as can be read."""
        size = self._store.blob_size(blob)
        for kind in (ARTIFACT_TYPE, BACKUP_TYPE):
            pointer = Pointer(f"sha256:{blob}", size or 1, kind)
            if pointer in self._closures:
                return self._closures[pointer]
            with suppress(ArtifactCorruptError, ArtifactNotFoundError):
                found = closure(self._store, pointer, where=self._store.root)
                return self._closures.setdefault(pointer, frozenset(needed.hex for needed in found))
        return frozenset()

    def _forget_old_notices(self, now: datetime) -> None:
        limits = {HOLD: holds.HOLD_SECONDS, CONDEMNED: holds.HOLD_SECONDS, NAMED: self._grace}
        for entry in self._store.notices():
            for kind, seconds in limits.items():
                if entry.name.startswith(kind) and age(entry, now) > seconds:
                    self._store.withdraw(entry.name)


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
