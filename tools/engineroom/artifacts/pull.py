"""Pulling: every chunk is verified as it lands in a staging folder, which then takes the target's name.

What is in the staging folder after a kill is not believed but hashed again: no journal that could be wrong, and a
chunk that was half written when the power went is simply one that does not match.
"""

import hashlib
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from engineroom.artifacts.manifest import Chunk, Part, StoredFile, describe_chunk, unique_parts
from engineroom.artifacts.parallel import Stop, run_all
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.resolve import Artifact, resolve
from engineroom.artifacts.store import Store
from engineroom.artifacts.swap import check_target, one_pull, remove_leftovers, staging_folder
from engineroom.artifacts.verify import chunk_is_right, compare_sizes, opened
from engineroom.documents import write_atomic
from engineroom.errors import ArtifactCorruptError, ArtifactNotFoundError, StoreError
from engineroom.folders import disk_errors, swap_in, sync_tree
from engineroom.progress import QUIET, Progress, Task
from engineroom.repository.record import FILE as RECORD_FILE
from engineroom.repository.record import BuildRecord

#: Kept free on the target's file system beyond the artifact itself.
_SPARE_BYTES = 16 << 20
_RETRIES = 2


@dataclass(frozen=True)
class Pulled:
    """What a pull did."""

    reference: Reference
    """With the digest that was found."""
    digest: str
    """Of the manifest, ``sha256:…``."""
    record: BuildRecord
    path: Path
    bytes: int
    """Size of the tree's files."""
    downloaded_bytes: int
    """Of these, what came from the store now; the rest was there from a pull that had been cut off."""
    already_there: bool
    """The target held exactly this artifact: nothing was done."""


def pull(
    reference: Reference, to: Path, *, store: Store, progress: Progress = QUIET, wait_seconds: float = 0
) -> Pulled:
    """Make the folder ``to`` hold the artifact; until all of it is verified, ``to`` stays what it was.

    Can be repeated after a kill: chunks that are there and right are kept. A second pull into the same folder waits
    for the first.

    Raises:
        InputError: ``to`` holds something that is no pulled artifact.
        ArtifactNotFoundError: nothing behind the reference (after ``wait_seconds``).
        ArtifactCorruptError: naming the file and the chunk that are not what was published.
        StoreError: the store failed, or the disk is too small.
    """
    to = to.absolute()
    with disk_errors(to):
        check_target(to)
    artifact = resolve(reference, store=store, wait_seconds=wait_seconds, progress=progress)
    total = sum(file.record.size for file in artifact.files)
    with disk_errors(to), one_pull(to, progress):
        check_target(to)  # again: another pull may have been at work
        if _holds(to, artifact):
            progress.say(f"{to} already holds {artifact.digest}")
            # A pull that was killed between its swap and its last line left the old tree under this name.
            shutil.rmtree(staging_folder(to, artifact.digest), ignore_errors=True)
            return Pulled(artifact.reference, artifact.digest, artifact.record, to, total, 0, True)
        _check_blobs(artifact, store)
        staging = staging_folder(to, artifact.digest)
        _check_space(staging, total)
        downloaded = _fill(staging, artifact, store, progress, total=total)
        write_atomic(staging / RECORD_FILE, artifact.record_bytes)
        sync_tree(staging)
        swap_in(staging, to)
        remove_leftovers(to)
    return Pulled(artifact.reference, artifact.digest, artifact.record, to, total, downloaded, False)


def _holds(target: Path, artifact: Artifact) -> bool:
    """Whether ``target`` has this build record and files of its sizes; `engineroom verify` hashes them."""
    try:
        if (target / RECORD_FILE).read_bytes() != artifact.record_bytes:
            return False
    except OSError:
        return False
    return not compare_sizes(target, artifact.record)


def _check_blobs(artifact: Artifact, store: Store) -> None:
    """Ask for every blob's size first: a truncated artifact is refused before anything is downloaded."""

    def check(item: tuple[StoredFile, Part], stop: Stop) -> None:
        stop.check()
        file, part = item
        size = store.blob_size(part.hex)
        if size == part.size:
            return
        number = _chunk_number(file, part.offset + min(size or 0, max(part.size - 1, 0)))
        found = "its blob is missing" if size is None else f"its blob has {size} bytes instead of {part.size}"
        raise ArtifactCorruptError(
            f"{found} (sha256:{part.hex})",
            where=f"{artifact.reference}: {describe_chunk(file.record, number)}",
            fix="publish it again",
        )

    run_all(check, unique_parts(artifact.files).values(), workers=8)


def _chunk_number(file: StoredFile, offset: int) -> int:
    return next((chunk.number for chunk in file.chunks() if chunk.start <= offset < chunk.start + chunk.size), 0)


def _check_space(staging: Path, total: int) -> None:
    """Refuse before downloading what cannot be stored. What a killed pull left there counts as stored."""
    there = sum(path.stat().st_blocks * 512 for path in staging.rglob("*") if path.is_file())
    free = shutil.disk_usage(staging.parent).free
    if (needed := total - there + _SPARE_BYTES) > free:
        raise StoreError(
            f"{needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free",
            where=str(staging.parent),
            fix="free some space, or pull into another file system; the old tree is kept until the new one is whole",
        )


def _fill(staging: Path, artifact: Artifact, store: Store, progress: Progress, *, total: int) -> int:
    """Download what the staging folder lacks; the bytes that came."""
    _clean(staging, artifact)
    fresh = set()
    for file in artifact.files:
        path = staging / file.record.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            fresh.add(file.record.path)
        with path.open("ab") as made:
            made.truncate(file.record.size)
    work = [(file, chunk) for file in artifact.files for chunk in file.chunks()]
    with progress.task("pull", total) as task:
        source = _Source(store, artifact.reference, task)

        def land(item: tuple[StoredFile, Chunk], stop: Stop) -> int:
            file, chunk = item
            stop.check()
            with opened(staging / file.record.path, writable=True) as handle:
                if file.record.path not in fresh and chunk_is_right(handle, file.record, chunk, stop):
                    task.advance(chunk.size)
                    return 0
                _download(handle, file, chunk, source, stop)
                os.fsync(handle)
            return chunk.size

        return sum(run_all(land, work))


def _clean(staging: Path, artifact: Artifact) -> None:
    """Remove from a staging folder what is not of this artifact; links are never followed."""
    if staging.is_symlink():
        staging.unlink()
    staging.mkdir(exist_ok=True)
    wanted = {file.record.path for file in artifact.files}
    for folder, folders, names in os.walk(staging, topdown=False):
        for name in [*names, *folders]:
            path = Path(folder, name)
            if path.is_symlink() or (path.is_file() and path.relative_to(staging).as_posix() not in wanted):
                path.unlink()
            elif path.is_dir() and path.relative_to(staging).as_posix() in wanted:
                shutil.rmtree(path)


@dataclass(frozen=True)
class _Source:
    store: Store
    reference: Reference
    task: Task


def _download(handle: int, file: StoredFile, chunk: Chunk, source: _Source, stop: Stop) -> None:
    """Bring one chunk. A connection that breaks is tried again; bytes that are wrong are not: they stay wrong."""
    part = file.part_at(chunk.start)
    begin = chunk.start - part.offset
    where = f"{source.reference}: {describe_chunk(file.record, chunk.number)}"
    for attempt in range(_RETRIES + 1):
        found, at = hashlib.sha256(), chunk.start
        try:
            for piece in source.store.read_blob(part.hex, begin, begin + chunk.size, size=part.size):
                stop.check()
                found.update(piece)
                _write(handle, piece, at)
                at += len(piece)
                source.task.advance(len(piece))
            break
        except ArtifactNotFoundError as error:
            raise ArtifactCorruptError(error.found, where=where, fix="publish it again") from None
        except StoreError:
            source.task.advance(chunk.start - at)
            if attempt == _RETRIES:
                raise
            time.sleep(0.5 * (attempt + 1))
    if at - chunk.start != chunk.size:
        raise ArtifactCorruptError(
            f"{at - chunk.start} bytes came instead of {chunk.size} (sha256:{part.hex})",
            where=where,
            fix="publish it again",
        )
    if found.hexdigest() != file.record.chunks[chunk.number]:
        raise ArtifactCorruptError(
            f"its bytes are not those that were published (sha256:{part.hex})",
            where=where,
            fix=f"delete blobs/sha256/{part.hex} in the store and publish again",
        )


def _write(handle: int, piece: memoryview, at: int) -> None:
    while piece:
        count = os.pwrite(handle, piece, at)
        piece, at = piece[count:], at + count
