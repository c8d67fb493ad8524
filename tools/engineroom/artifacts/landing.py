"""Filling a staging folder: from files that are here already and hash right, from the store what is not.

What is in the staging folder after a kill is not believed but hashed again: no journal that could be wrong, and a
chunk that was half written when the power went is simply one that does not match.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from engineroom.artifacts.disk import allocate, has_data, start_writeback, sync_files
from engineroom.artifacts.manifest import Chunk, StoredFile, describe_chunk
from engineroom.artifacts.parallel import PATIENCE, RETRIES, SMALL_BYTES, SMALL_WORKERS, Stop, run_all
from engineroom.artifacts.resolve import Tree
from engineroom.artifacts.store import Store
from engineroom.artifacts.verify import chunk_is_right, opened
from engineroom.errors import ArtifactCorruptError, ArtifactNotFoundError, StoreError
from engineroom.progress import Progress, Task

#: Where a file may be already: the path, None where it cannot be there.
Place = Callable[[StoredFile], Path | None]


def find_whole(files: Iterable[StoredFile], place: Place, progress: Progress) -> dict[str, Path]:
    """Of ``files``, by path in the tree, those that lie at ``place`` and whose every chunk hashes right."""
    found = {}
    for file in files:
        path = place(file)
        if path and not path.is_symlink() and path.is_file() and path.stat().st_size == file.record.size:
            found[file.record.path] = (file, path)
    with progress.task("check", sum(file.record.size for file, _ in found.values())) as task:

        def check(item: tuple[StoredFile, Path, Chunk], stop: Stop) -> str | None:
            file, path, chunk = item
            stop.check()
            try:
                with opened(path) as handle:
                    right = chunk_is_right(handle, chunk, stop)
            except OSError:
                right = False  # gone meanwhile, or a disk that fails: the store has it
            task.advance(chunk.size)
            return None if right else file.record.path

        work = [(file, path, chunk) for file, path in found.values() for chunk in file.chunks()]
        bad = set(run_all(check, work))
    return {name: path for name, (_, path) in found.items() if name not in bad}


def clean(staging: Path, tree: Tree) -> None:
    """Make the staging folder, without what is not of this artifact; links are never followed.

    A file with a second name is not ours to write into either: it is a link to a file that a killed pull found here.
    """
    if staging.is_symlink():
        staging.unlink()
    staging.mkdir(parents=True, exist_ok=True)
    wanted = {file.record.path for file in tree.files}
    for folder, folders, names in os.walk(staging, topdown=False):
        for name in [*names, *folders]:
            path = Path(folder, name)
            relative = path.relative_to(staging).as_posix()
            if path.is_symlink():
                path.unlink()
            elif path.is_dir():
                if relative in wanted:
                    shutil.rmtree(path)
                else:
                    with suppress(OSError):  # it is not empty
                        path.rmdir()
            elif relative not in wanted or path.stat().st_nlink > 1:
                path.unlink()


def link_whole(staging: Path, whole: dict[str, Path]) -> set[str]:
    """Give files that are here a second name in the staging folder; those for which that worked.

    Another file system, too many links, or a file that is gone by now: these come from the store.
    """
    done = set()
    for name, source in whole.items():
        path = staging / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        try:
            os.link(source, path, follow_symlinks=False)
        except OSError:
            continue
        done.add(name)
    return done


def download(staging: Path, tree: Tree, files: list[StoredFile], store: Store, progress: Progress) -> int:
    """Bring ``files`` from the store, each chunk compared as it lands, and sync them; the bytes that came."""
    for folder in {(staging / file.record.path).parent for file in files}:
        folder.mkdir(parents=True, exist_ok=True)
    long = [file for file in files if file.record.size > SMALL_BYTES]
    short = [file for file in files if file.record.size <= SMALL_BYTES]
    with progress.task("pull", sum(file.record.size for file in files)) as task:
        source = _Source(store, tree, task)
        fresh = {file.record.path for file in long if _reserve(staging / file.record.path, file.record.size)}

        def land(item: tuple[StoredFile, Chunk], stop: Stop) -> int:
            file, chunk = item
            stop.check()
            with opened(staging / file.record.path, writable=True) as handle:
                empty = file.record.path in fresh or not has_data(handle, chunk.start, chunk.size)
                if not empty and chunk_is_right(handle, chunk, stop):
                    task.advance(chunk.size)
                    return 0
                source.bring(handle, file, chunk, stop)
                start_writeback(handle, chunk.start, chunk.size)
            return chunk.size

        def land_short(file: StoredFile, stop: Stop) -> int:
            stop.check()
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            handle = os.open(staging / file.record.path, flags, 0o644)
            came = 0
            try:
                chunks = file.chunks()
                found = os.fstat(handle).st_size
                if found > file.record.size:
                    os.truncate(handle, file.record.size)
                for chunk in chunks:
                    if (found or not chunk.size) and chunk_is_right(handle, chunk, stop):
                        task.advance(chunk.size)
                    else:
                        source.bring(handle, file, chunk, stop)
                        came += chunk.size
                os.fsync(handle)
            finally:
                os.close(handle)
            return came

        work = [(file, chunk) for file in long for chunk in file.chunks()]
        came = sum(run_all(land, work)) + sum(run_all(land_short, short, workers=SMALL_WORKERS))
        sync_files(staging / file.record.path for file in long)
    return came


def _reserve(path: Path, size: int) -> bool:
    """Make the file, of its length, or take what a killed pull left of it; whether nothing was there."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        found = os.fstat(handle).st_size
        if found > size:
            os.truncate(handle, size)
        elif found < size:
            allocate(handle, size)
        return found == 0
    finally:
        os.close(handle)


@dataclass(frozen=True)
class _Source:
    store: Store
    tree: Tree
    task: Task

    def bring(self, handle: int, file: StoredFile, chunk: Chunk, stop: Stop) -> None:
        """One chunk. A connection that breaks is tried again; bytes that are wrong twice are not: they stay wrong."""
        part = file.part_at(chunk.start)
        begin = chunk.start - part.offset
        where = f"{self.tree.reference}: {describe_chunk(file.record, chunk.number)}"
        wrong = ""
        for attempt in range(RETRIES + 1):
            found, at = hashlib.sha256(), chunk.start
            try:
                for piece in self.store.read_blob(part.hex, begin, begin + chunk.size, size=part.size):
                    stop.check()
                    found.update(piece)
                    _write(handle, piece, at)
                    at += len(piece)
                    self.task.advance(len(piece))
            except ArtifactNotFoundError as error:
                raise ArtifactCorruptError(error.found, where=where, fix="publish it again") from None
            except ArtifactCorruptError as error:
                ending = error.found
            except StoreError:
                self.task.advance(chunk.start - at)
                if attempt == RETRIES:
                    raise
                stop.wait(PATIENCE * 2**attempt)
                continue
            else:
                if found.hexdigest() == chunk.sha256:
                    return
                came = at - chunk.start
                ending = (
                    "its bytes are not those that were published"
                    if came == chunk.size
                    else f"{came} bytes came instead of {chunk.size}"
                )
            self.task.advance(chunk.start - at)
            # Once more: a proxy that cut the answer, or a wire that flipped a bit, do not do it twice alike.
            if wrong or attempt == RETRIES:
                raise ArtifactCorruptError(
                    f"{ending} (sha256:{part.hex})",
                    where=where,
                    fix=f"delete blobs/sha256/{part.hex} in the store and publish again",
                )
            wrong = ending


def _write(handle: int, piece: memoryview, at: int) -> None:
    while piece:
        count = os.pwrite(handle, piece, at)
        piece, at = piece[count:], at + count
