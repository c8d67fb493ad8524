"""Verifying: is a tree, or an artifact in a store, still what was published? Every byte is hashed."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from engineroom.artifacts.closure import Needed
from engineroom.artifacts.manifest import (
    Chunk,
    Part,
    StoredFile,
    chunks_of,
    describe_chunk,
    make_manifest,
    unique_parts,
)
from engineroom.artifacts.parallel import SMALL_BYTES, Stop, run_all, run_by_size
from engineroom.artifacts.publish import read_record
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.resolve import Artifact, resolve
from engineroom.artifacts.source import cut_files
from engineroom.artifacts.store import Store
from engineroom.documents import FileRecord
from engineroom.errors import ArtifactCorruptError, ArtifactNotFoundError, InputError
from engineroom.folders import disk_errors
from engineroom.progress import QUIET, Progress, Task
from engineroom.repository.record import FILE as RECORD_FILE
from engineroom.repository.record import BuildRecord

_PIECE = 1 << 20


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong."""

    where: str
    """The file, and the chunk where there is one."""
    found: str

    def __str__(self) -> str:
        return f"{self.where}: {self.found}"


@dataclass(frozen=True)
class Verified:
    """What a verification found."""

    place: str
    record: BuildRecord
    bytes: int
    """That were hashed, or should have been."""
    problems: tuple[Problem, ...]

    def check(self) -> None:
        """Raise :class:`ArtifactCorruptError` with the first problem, and the number of the others."""
        if self.problems:
            others = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            raise ArtifactCorruptError(f"{self.problems[0]}{others}", where=self.place, fix="pull or publish it again")


def verify_tree(path: Path, *, digest: str | None = None, progress: Progress = QUIET) -> Verified:
    """Compare every file of a tree with its ``build-record.json``.

    Finds files that are missing, too many, too short or long, links and other things that are no files, and names
    every chunk that differs. The build record itself is believed, unless ``digest`` says which artifact
    (``sha256:…``) the tree must be.

    Raises :class:`InputError` where there is no readable build record.
    """
    with disk_errors(path):
        if not path.is_dir():
            raise InputError("there is no such folder", where=str(path), fix="give the folder of a pulled artifact")
        record, data = read_record(path)
        problems = compare_files(path, record.files)
        bad = {problem.where for problem in problems}
        files = [file for file in record.files if file.path not in bad]
        work = [(file, chunk) for file in files for chunk in chunks_of(file)]
        with progress.task("verify", sum(file.size for file in files)) as task:
            found = run_all(lambda item, stop: _compare(path, *item, task, stop), work)
        problems += [problem for problem in found if problem]
        if digest and not problems:
            stored = cut_files(path, files)
            if (is_digest := make_manifest(data, stored).digest) != digest:
                problems.append(Problem(RECORD_FILE, f"this is the artifact {is_digest}, not {digest}"))
    return Verified(str(path), record, sum(file.size for file in record.files), tuple(problems))


def compare_files(root: Path, files: Sequence[FileRecord]) -> list[Problem]:
    """What a look at names and sizes shows of a tree that should hold ``files``; no file is opened."""
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    for folder, folders, names in os.walk(root):
        place = Path(folder)
        inside = place.relative_to(root).as_posix()
        for name in [*names, *folders]:
            path, relative = place / name, name if inside == "." else f"{inside}/{name}"
            if path.is_symlink():
                problems.append(Problem(relative, "it is a symbolic link"))
                seen[relative] = -1
            elif path.is_file():
                seen[relative] = path.stat().st_size
            elif not path.is_dir():
                problems.append(Problem(relative, "it is no regular file"))
                seen[relative] = -1
    for file in files:
        size = seen.pop(file.path, None)
        if size is None:
            problems.append(Problem(file.path, "it is missing"))
        elif size not in {-1, file.size}:
            problems.append(Problem(file.path, f"it has {size} bytes instead of {file.size}"))
    problems += [
        Problem(path, "the build record does not list it")
        for path, size in seen.items()
        if path != RECORD_FILE and size != -1
    ]
    return sorted(problems, key=lambda problem: problem.where)


def _compare(root: Path, file: FileRecord, chunk: Chunk, task: Task, stop: Stop) -> Problem | None:
    stop.check()
    where = describe_chunk(file, chunk.number)
    try:
        with opened(root / file.path) as handle:
            right = chunk_is_right(handle, chunk, stop)
    except OSError as error:
        return Problem(where, f"cannot read it ({error.strerror or error})")
    task.advance(chunk.size)
    return None if right else Problem(where, "its bytes are not those that were published")


@contextmanager
def opened(path: Path, *, writable: bool = False) -> Iterator[int]:
    """A descriptor of a file that is no link."""
    handle = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)


def chunk_is_right(handle: int, chunk: Chunk, stop: Stop) -> bool:
    """Whether the bytes of a chunk on disk have the digest of the build record."""
    at, end, found = chunk.start, chunk.start + chunk.size, hashlib.sha256()
    buffer = memoryview(bytearray(min(_PIECE, max(chunk.size, 1))))
    while at < end and (count := os.preadv(handle, [buffer[: min(len(buffer), end - at)]], at)):
        stop.check()
        found.update(buffer[:count])
        at += count
    return found.hexdigest() == chunk.sha256


def verify_artifact(
    reference: Reference, *, store: Store, progress: Progress = QUIET, right: set[str] | None = None
) -> Verified:
    """Read every blob of an artifact back from its store and hash it; ``right`` as in :func:`verify_artifacts`.

    Raises what :func:`engineroom.artifacts.resolve.resolve` raises where not even the build record can be read.
    """
    return verify_artifacts([resolve(reference, store=store)], store=store, progress=progress, right=right)[0]


def verify_artifacts(
    artifacts: Sequence[Artifact], *, store: Store, progress: Progress = QUIET, right: set[str] | None = None
) -> list[Verified]:
    """Read every blob of artifacts of one store back, side by side, a blob that several have once, and hash it.

    ``right`` are blobs (hexadecimal digests) that were found right already and are not read again; those found now
    are added.
    """
    right = set() if right is None else right
    mine = [
        [(file, part) for blob, (file, part) in unique_parts(artifact.files).items() if blob not in right]
        for artifact in artifacts
    ]
    within = {artifact.reference.name: store.within(artifact.reference.name) for artifact in artifacts}
    first = {
        part.hex: (within[artifact.reference.name], file, part)
        for artifact, items in zip(artifacts, mine, strict=True)
        for file, part in items
    }
    work = sorted(first.values(), key=lambda item: -item[2].size)
    with progress.task("verify", sum(part.size for _, _, part in work)) as task:

        def compare(item: tuple[Store, StoredFile, Part], stop: Stop) -> list[Problem]:
            return _compare_blob(*item, task, stop)

        found = run_by_size(compare, work, size=lambda item: item[2].size)
    right.update(part.hex for (_, _, part), some in zip(work, found, strict=True) if not some)
    bad = {part.hex: (file, some) for (_, file, part), some in zip(work, found, strict=True) if some}
    verified, counted = [], set[str]()
    for artifact, items in zip(artifacts, mine, strict=True):
        problems = [
            Problem(one.where.replace(bad[part.hex][0].record.path, file.record.path, 1), one.found)
            for file, part in items
            if part.hex in bad
            for one in bad[part.hex][1]
        ]
        size = sum(part.size for _, part in items if part.hex not in counted)
        counted.update(part.hex for _, part in items)
        problems.sort(key=lambda problem: problem.where)
        verified.append(Verified(str(artifact.reference), artifact.record, size, tuple(problems)))
    return verified


def _compare_blob(store: Store, file: StoredFile, part: Part, task: Task, stop: Stop) -> list[Problem]:
    if problem := _size_problem(store, file.record.path, part.hex, part.size):
        return [problem]
    problems: list[Problem] = []
    whole = hashlib.sha256()
    for chunk in file.chunks():
        if not part.offset <= chunk.start < part.offset + max(part.size, 1):
            continue
        found = hashlib.sha256()
        begin = chunk.start - part.offset
        try:
            for piece in store.read_blob(part.hex, begin, begin + chunk.size, size=part.size):
                stop.check()
                found.update(piece)
                whole.update(piece)
                task.advance(len(piece))
        except (ArtifactNotFoundError, ArtifactCorruptError) as error:
            return [_unreadable(file.record.path, part.hex, error)]
        if found.hexdigest() != chunk.sha256:
            problems.append(
                Problem(describe_chunk(file.record, chunk.number), f"its bytes differ (blob sha256:{part.hex})")
            )
    if not problems and whole.hexdigest() != part.hex:
        problems.append(Problem(file.record.path, f"its blob does not hash to sha256:{part.hex}"))
    return problems


def verify_blobs(
    store: Store, blobs: Sequence[Needed], *, progress: Progress = QUIET, right: set[str] | None = None
) -> list[Problem]:
    """Read blobs back from a store and compare each with its name; what is wrong, sorted.

    ``right`` as in :func:`verify_artifacts`.
    """
    right = set() if right is None else right
    work = sorted((blob for blob in blobs if blob.hex not in right), key=lambda blob: -blob.size)
    with progress.task("verify", sum(blob.size for blob in work)) as task:

        def compare(blob: Needed, stop: Stop) -> Problem | None:
            return _hash_blob(store, blob, task, stop)

        found = run_by_size(compare, work, size=lambda blob: blob.size)
    right.update(blob.hex for blob, problem in zip(work, found, strict=True) if not problem)
    return sorted((problem for problem in found if problem), key=lambda problem: problem.where)


def _hash_blob(store: Store, blob: Needed, task: Task, stop: Stop) -> Problem | None:
    if problem := _size_problem(store, blob.what, blob.hex, blob.size):
        return problem
    found = hashlib.sha256()
    try:
        for piece in store.read_blob(blob.hex, 0, blob.size, size=blob.size):
            stop.check()
            found.update(piece)
            task.advance(len(piece))
    except (ArtifactNotFoundError, ArtifactCorruptError) as error:
        return _unreadable(blob.what, blob.hex, error)
    return None if found.hexdigest() == blob.hex else Problem(blob.what, f"its bytes differ (blob sha256:{blob.hex})")


def _size_problem(store: Store, where: str, blob: str, size: int) -> Problem | None:
    """What is wrong with a blob's size. A short one is not asked for it: its bytes come in one answer with it."""
    if 0 < size <= SMALL_BYTES:
        return None
    found = store.blob_size(blob)
    if found is None:
        return Problem(where, f"its blob sha256:{blob} is missing")
    return None if found == size else Problem(where, f"its blob has {found} bytes instead of {size} (sha256:{blob})")


def _unreadable(where: str, blob: str, error: ArtifactNotFoundError | ArtifactCorruptError) -> Problem:
    if isinstance(error, ArtifactNotFoundError):
        return Problem(where, f"its blob sha256:{blob} is missing")
    return Problem(where, f"{error.found} (sha256:{blob})")
