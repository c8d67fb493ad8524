"""Copying: from store to store, through memory and never through a disk of ours; every byte hashed on its way."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

from engineroom.artifacts.closure import Needed, closure
from engineroom.artifacts.holds import holding
from engineroom.artifacts.parallel import Stop, again, run_all, run_by_size
from engineroom.artifacts.reference import Reference, is_movable
from engineroom.artifacts.resolve import pin, resolve
from engineroom.artifacts.store import BACKUP_TYPE, PLAIN_TYPE, Pointer, Store, read_manifest, type_of
from engineroom.artifacts.tagging import probe, set_tag, taken
from engineroom.errors import ArtifactCorruptError, ArtifactNotFoundError, BadReferenceError, StoreError
from engineroom.progress import QUIET, Progress, Task

_RETRIES = 2


@dataclass(frozen=True)
class Copied:
    """What a copy did."""

    reference: Reference
    """Where it is now, with its digest."""
    tags: tuple[str, ...]
    """That name it there now."""
    copied_blobs: int
    copied_bytes: int
    """Sent now; in a dry run, what would be sent."""
    skipped_bytes: int
    """Already there."""


def copy(
    source: Reference,
    to: Reference,
    *,
    source_store: Store,
    store: Store,
    progress: Progress = QUIET,
    dry_run: bool = False,
    unsafe_tags: bool = False,
) -> Copied:
    """Store what ``source`` names, an artifact, a backup or what others pushed, under ``to``, with the same digest.

    ``to`` has the source's tag where it has none of its own; its digest, where it has one, must be the source's.
    Can be repeated: blobs that are there are not sent again. The tag ``key-<engine key>`` is made where there is
    none; where there is one it stays, because the artifact there may be a newer one.

    Raises:
        ArtifactNotFoundError: nothing behind ``source``.
        ArtifactCorruptError: bytes of the source are not what was published; nothing names what was sent so far.
        ArtifactExistsError: the immutable tag names something else.
        StoreError: one of the stores failed, or ``to``'s ignores conditional writes.
    """
    pointer, key_tag = _look(source, source_store)
    source_store, store = source_store.within(source.name), store.within(to.name)
    if to.digest and to.digest != pointer.digest:
        raise ArtifactCorruptError(f"it is {pointer.digest}", where=str(source), fix=f"{to.digest} was asked for")
    to = replace(to, tag=to.tag or source.tag, digest=None)
    if to.tag is None and key_tag is None:
        raise BadReferenceError("only an artifact of engineroom needs no tag", where=str(to), fix="add :TAG")
    if to.tag and to.tag.startswith("key-") and to.tag != key_tag:
        raise BadReferenceError(
            "key-… tags are set by the engine key",
            where=str(to),
            fix=f"use :{key_tag} or a tag of your own" if key_tag else "use a tag of your own",
        )
    immutable = to.tag if to.tag and not is_movable(to.tag) else None
    there = store.read_tag(to.name, immutable) if immutable else None
    if there and there.pointer != pointer:
        raise taken(to, there.pointer)
    conditional = dry_run or probe(store, to, immutable, unsafe=unsafe_tags, progress=progress)
    needed = closure(source_store, pointer, where=str(source))
    _check_sizes(needed, store, where=str(source))
    tags = [to.tag] if to.tag else []
    with nullcontext() if dry_run else holding(store, [one.hex for one in needed], progress=progress) as hold:
        sent = send(source_store, store, needed, where=str(source), progress=progress, dry_run=dry_run)
        if hold:
            hold.confirm()
        if not dry_run:
            for tag in tags:
                again(partial(set_tag, store, to, tag, pointer, conditional=conditional), Stop())
        if key_tag and key_tag not in tags and (made := _make(store, to, key_tag, pointer, dry_run=dry_run)):
            tags.append(made)
    total = sum(one.size for one in needed)
    return Copied(to.pinned(pointer.digest), tuple(tags), len(sent), sum(sent), total - sum(sent))


def in_store(root: str, name: str, tag: str | None) -> Reference:
    """Where an artifact of this name goes in the store ``root`` (``SCHEME://LOCATION``).

    In a registry a name is a path; elsewhere it is its last part, so that all lie in the one store.
    Raises :class:`BadReferenceError`.
    """
    name = name if root.startswith("oci://") else name.rpartition("/")[2]
    return Reference.parse(f"{root.rstrip('/')}/{name}{f':{tag}' if tag else ''}")


def _look(source: Reference, store: Store) -> tuple[Pointer, str | None]:
    """What ``source`` names, after a look at its documents, and the engine key's tag where it is one of ours."""
    if source.tag and (state := store.read_tag(source.name, source.tag)):
        pointer = state.pointer
        if pointer.artifact_type == BACKUP_TYPE and source.digest in {None, pointer.digest}:
            return pointer, None
    pinned, data = pin(source, store)
    if type_of(data) == PLAIN_TYPE:
        return Pointer.to(data), None
    artifact = resolve(pinned, store=store)
    return Pointer(artifact.digest, len(artifact.manifest_bytes)), f"key-{artifact.record.key}"


def _check_sizes(needed: Sequence[Needed], store: Store, *, where: str) -> None:
    """Our own layers fit everywhere; those of others need not. Raises :class:`StoreError`."""
    longest = max(needed, key=lambda one: one.size)
    if store.longest_blob is not None and longest.size > store.longest_blob:
        raise StoreError(
            f"{longest.what} has {longest.size / 1e9:.1f} GB, and {store.root} takes {store.longest_blob / 1e9:.1f} GB",
            where=where,
            fix="copy it into a folder or a registry, or push it in shorter files",
        )


def _make(store: Store, to: Reference, key_tag: str, pointer: Pointer, *, dry_run: bool) -> str | None:
    """Make the engine key's tag where there is none: it may name a newer artifact, and then stays."""
    there = store.read_tag(to.name, key_tag)
    if there is None and not dry_run:
        store.create_tag(to.name, key_tag, pointer)
    return key_tag if there is None or there.pointer == pointer else None


def send(
    source: Store, store: Store, needed: Sequence[Needed], *, where: str, progress: Progress, dry_run: bool = False
) -> list[int]:
    """Copy the blobs that ``store`` lacks; their sizes. ``needed`` is in the order of :func:`closure`.

    To be called while the blobs are held, with the stores of the names. ``where`` names the source in errors.
    """
    with progress.task("check" if dry_run else "copy", sum(one.size for one in needed)) as task:

        def one(item: Needed, stop: Stop) -> int | None:
            stop.check()
            if item.kind == "manifest":
                return _send_manifest(source, store, item, where=where, task=task, dry_run=dry_run)
            if store.blob_size(item.hex) == item.size:
                task.advance(item.size)
                return None
            if dry_run:
                task.advance(item.size)
            else:

                def write() -> None:
                    pieces = read_verified(source, item, where=where, task=task, stop=stop)
                    store.write_blob(item.hex, item.size, pieces)

                again(write, stop)
            return item.size

        # What names others goes last, one by one: a store never holds a manifest whose blobs it lacks.
        names = [item for item in needed if item.kind != "file"]
        leaves = sorted((item for item in needed if item.kind == "file"), key=lambda item: -item.size)
        sent = run_by_size(one, leaves, size=lambda item: item.size) + run_all(one, names, workers=1)
    return [size for size in sent if size is not None]


def _send_manifest(source: Store, store: Store, item: Needed, *, where: str, task: Task, dry_run: bool) -> int | None:
    data = read_manifest(source, item.hex, where=where)
    task.advance(item.size)
    if store.read_manifest(item.hex) == data:
        return None
    if not dry_run:
        store.write_manifest(item.hex, data)
    return item.size


def read_verified(store: Store, blob: Needed, *, where: str, task: Task, stop: Stop) -> Iterator[memoryview]:
    """The bytes of a blob in pieces; the last is given on only where all of them hash to the blob's name.

    A connection that breaks is tried again from where it broke. A piece may be overwritten once the next is taken.
    Raises :class:`ArtifactCorruptError`.
    """
    place, found, at, attempt = f"{where}: {blob.what}", hashlib.sha256(), 0, 0
    fix = "publish it again, or take it from where it is right"
    while True:
        try:
            for piece in store.read_blob(blob.hex, at, blob.size, size=blob.size):
                stop.check()
                found.update(piece)
                at += len(piece)
                if at >= blob.size:
                    break
                yield piece
                task.advance(len(piece))
            break
        except ArtifactNotFoundError as error:
            raise ArtifactCorruptError(error.found, where=place, fix=fix) from None
        except StoreError:
            attempt += 1
            if attempt > _RETRIES:
                raise
            time.sleep(0.5 * attempt)
    if at != blob.size:
        raise ArtifactCorruptError(f"{at} bytes came instead of {blob.size} (sha256:{blob.hex})", where=place, fix=fix)
    if found.hexdigest() != blob.hex:
        raise ArtifactCorruptError(
            f"its bytes are not those that were published (sha256:{blob.hex})", where=place, fix=fix
        )
    if blob.size:
        yield piece
        task.advance(len(piece))
