"""Pulling: every chunk is verified as it lands in a staging folder, which then takes the target's name."""

import errno
import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engineroom.artifacts.cache import Cache
from engineroom.artifacts.landing import clean, download, find_whole, link_whole
from engineroom.artifacts.manifest import StoredFile, with_records
from engineroom.artifacts.pulled_files import PulledFiles, is_pulled
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.resolve import Tree, resolve_tree
from engineroom.artifacts.store import Store
from engineroom.artifacts.swap import (
    check_contents,
    check_target,
    one_pull,
    remove_leftovers,
    staging_folder,
)
from engineroom.artifacts.unpacking import unpack
from engineroom.artifacts.verify import compare_files
from engineroom.documents import write_atomic
from engineroom.errors import ArtifactCorruptError, DocumentError, EngineroomError, StoreError
from engineroom.folders import disk_errors, swap_in, sync_tree
from engineroom.progress import QUIET, Progress
from engineroom.repository.record import FILE as RECORD_FILE
from engineroom.repository.record import BuildRecord

#: Kept free on the target's file system beyond the artifact itself.
_SPARE_BYTES = 16 << 20


@dataclass(frozen=True)
class Pulled:
    """What a pull did."""

    reference: Reference
    """With the digest that was found."""
    digest: str
    """Of the manifest, ``sha256:…``."""
    record: BuildRecord | None
    """None for an artifact that others pushed without one."""
    path: Path
    bytes: int
    """Size of the tree's files."""
    downloaded_bytes: int
    """Of these, what came from the store now; the rest was here, and hashed right."""
    already_there: bool
    """The target held exactly this artifact, every byte of it: nothing was done."""


def pull(
    reference: Reference,
    to: Path | None = None,
    *,
    store: Store,
    cache: Cache | None = None,
    progress: Progress = QUIET,
    wait_seconds: float = 0,
) -> Pulled:
    """Make the folder ``to`` hold the artifact; until all of it is verified, ``to`` stays what it was.

    With a ``cache`` the tree is ``cache.tree(digest)``; exactly one of the two is given. Can be repeated after a
    kill: chunks that are there and right are kept. Files that the old tree or the cache has are verified and linked,
    not downloaded. A second pull into the same folder waits for the first.

    Raises:
        InputError: ``to`` holds something that is no pulled artifact.
        ArtifactNotFoundError: nothing behind the reference (after ``wait_seconds``).
        ArtifactCorruptError: naming the file and the chunk that are not what was published.
        StoreError: the store failed, or the disk is too small.
    """
    if to is not None:
        to = to.absolute()
        with disk_errors(to):
            check_target(to)
    tree = resolve_tree(reference, store=store, wait_seconds=wait_seconds, progress=progress)
    store = store.within(reference.name)
    if cache is None:
        if to is None:
            raise ValueError("a folder or a cache")
        with disk_errors(to), one_pull(to, progress):
            return _pull(tree, to, store, progress, cache=None)
    with disk_errors(cache.folder), cache.using(tree.digest), one_pull(cache.tree(tree.digest), progress):
        return _pull(tree, cache.tree(tree.digest), store, progress, cache=cache)


def _pull(tree: Tree, to: Path, store: Store, progress: Progress, *, cache: Cache | None) -> Pulled:
    check_target(to)  # again: another pull may have been at work
    staging = staging_folder(to, tree.digest)
    unpacked = PulledFiles.beside(to, tree.digest) if tree.packed else None
    here = [*tree.files, *(unpacked.stored() if unpacked else [])]
    whole = find_whole(here, lambda file: to / file.record.path, progress) if to.is_dir() else {}
    if len(whole) == len(here) and (unpacked or not tree.packed) and _is_all(to, tree, here, unpacked):
        progress.say(f"{to} already holds {tree.digest}, every byte verified")
        # A pull that was killed between its swap and its last line left the old tree under this name.
        shutil.rmtree(staging, ignore_errors=True)
        return _pulled(tree, to, unpacked, downloaded=0, already_there=True)
    if cache is None:
        check_contents(to, is_pulled)
    else:
        rest = [file for file in tree.files if file.record.path not in whole]
        whole |= find_whole(rest, cache.file, progress)
    clean(staging, tree)
    wanted = {file.record.path for file in tree.files}
    linked = link_whole(staging, {path: place for path, place in whole.items() if path in wanted})
    missing = [file for file in tree.files if file.record.path not in linked]
    packed = sum(layer.size for layer in tree.packed)
    try:
        room = _make_room(staging, missing, cache, progress, packed=packed)
        if tree.packed:
            unpacked = _unpack(tree, staging, store, room, progress)
        downloaded = download(staging, tree, missing, store, progress)
        if tree.record_bytes is not None:
            write_atomic(staging / RECORD_FILE, tree.record_bytes)
        done = _pulled(tree, staging, unpacked, downloaded=downloaded + packed, already_there=False)
        if cache:
            cache.keep(staging, tree.files)
        sync_tree(staging)
        if unpacked or tree.record is None:
            others = [file.record.path for file in tree.files]
            (unpacked or PulledFiles(digest=tree.digest, others=others)).save(to)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            shutil.rmtree(staging, ignore_errors=True)  # what is too long for the disk is of no use half
        raise
    swap_in(staging, to)
    remove_leftovers(to, tree.digest)
    return replace(done, path=to)


def _unpack(tree: Tree, staging: Path, store: Store, room: int, progress: Progress) -> PulledFiles:
    try:
        unpacked = unpack(tree, staging, store=store, room=room, progress=progress)
        if unpacked.record is not None:
            _pulled(tree, staging, unpacked, downloaded=0, already_there=False)  # compares it with the files
    except EngineroomError:
        shutil.rmtree(staging, ignore_errors=True)  # half a packed folder is of no use: the next pull begins anew
        raise
    return unpacked


def _pulled(tree: Tree, place: Path, unpacked: PulledFiles | None, *, downloaded: int, already_there: bool) -> Pulled:
    """The report, after a build record that was in a packed folder, or beside it, was compared with the files."""
    record = tree.record
    if unpacked and (record or unpacked.record):
        where = str(tree.reference)
        try:
            record = record or BuildRecord.parse((place / RECORD_FILE).read_bytes(), where=where)
        except DocumentError as error:
            raise ArtifactCorruptError(f"its build record is malformed: {error.found}", where=where) from None
        with_records([*tree.files, *unpacked.stored()], record, where=where)
    size = tree.size + (unpacked.size if unpacked else 0)
    return Pulled(tree.reference, tree.digest, record, place, size, downloaded, already_there)


def _is_all(target: Path, tree: Tree, files: Sequence[StoredFile], unpacked: PulledFiles | None) -> bool:
    """Whether ``target``, whose files are right, has the build record, and nothing else."""
    packed = unpacked.record.sha256 if unpacked and unpacked.record else None
    wanted = packed if tree.record_bytes is None else hashlib.sha256(tree.record_bytes).hexdigest()
    try:
        if wanted and hashlib.sha256((target / RECORD_FILE).read_bytes()).hexdigest() != wanted:
            return False
    except OSError:
        return False
    return not compare_files(target, [file.record for file in files])


def _make_room(
    staging: Path, missing: list[StoredFile], cache: Cache | None, progress: Progress, *, packed: int = 0
) -> int:
    """Refuse before downloading what cannot be stored. What a killed pull left there counts as stored.

    Returns how many bytes the folders may have whose layers have ``packed`` bytes: nobody knows that beforehand.
    """
    paths = [staging / file.record.path for file in missing]
    there = sum(path.stat().st_blocks * 512 for path in paths if path.is_file())
    needed = sum(file.record.size for file in missing) + packed - there
    if cache:
        cache.make_room(needed, spare=_SPARE_BYTES, progress=progress)
    needed += _SPARE_BYTES
    free = shutil.disk_usage(staging.parent).free
    if needed > free:
        raise StoreError(
            f"{needed / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB are free",
            where=str(staging.parent),
            fix="free some space, or pull into another file system; the old tree is kept until the new one is whole",
        )
    room = free - needed
    if packed and cache and cache.limit is not None:
        room = min(room, cache.limit - cache.used() - needed + _SPARE_BYTES)
    return room + packed
