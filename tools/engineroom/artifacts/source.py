"""The files of an assembled tree as blobs: read once, hashed in that same read, given on only if they are right.

``assemble`` wrote the digests; between that and the upload a disk may have failed or a person may have edited a file.
What was hashed is what is sent: a file is never read twice, once to check it and once to send it. The digest of the
whole blob decides; the chunks' digests, which were taken in the same read as it, say where a difference is.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from engineroom.artifacts.manifest import Part, StoredFile, chunks_of, describe_chunk, part_spans
from engineroom.artifacts.parallel import Stop, run_all
from engineroom.documents import FileRecord
from engineroom.errors import ArtifactCorruptError, DocumentError
from engineroom.progress import Task

#: A part of a multipart upload, so that the bytes that were hashed are sent without a copy.
PIECE_BYTES = 5 << 20
_AGAIN = "run `engineroom assemble` again"


def cut_files(tree: Path, files: Sequence[FileRecord], task: Task | None = None) -> list[StoredFile]:
    """The blobs of every file, in order of the files; those of more than one part are read side by side."""
    long = [file for file in files if len(part_spans(file.size)) > 1]
    cut = {stored.record.path: stored for stored in run_all(lambda file, stop: cut_file(tree, file, task, stop), long)}
    return [cut.get(file.path) or StoredFile(file, (Part(file.sha256, 0, file.size),)) for file in files]


def cut_file(tree: Path, file: FileRecord, task: Task | None, stop: Stop) -> StoredFile:
    """The blobs that a file becomes.

    A file of one part has its digest in the build record. The parts of a longer one have none yet, so it is read
    here, and checked on the way.
    """
    spans = part_spans(file.size)
    if len(spans) == 1:
        return StoredFile(file, (Part(file.sha256, 0, file.size),))
    parts, whole = [], hashlib.sha256()
    for offset, size in spans:
        found = hashlib.sha256()
        for piece in _read(tree, file, offset, size, task, stop):
            found.update(piece)
            whole.update(piece)
        parts.append(Part(found.hexdigest(), offset, size))
    if whole.hexdigest() != file.sha256:
        raise _difference(tree, file, 0, file.size, stop)
    return StoredFile(file, tuple(parts))


def read_part(tree: Path, file: StoredFile, part: Part, task: Task | None, stop: Stop) -> Iterator[memoryview]:
    """The bytes of one part in pieces, the last of them only if all of them hash to its digest.

    Raises:
        ArtifactCorruptError: naming the file and the chunk that is not what the build record says.
        DocumentError: the file cannot be read.
    """
    whole, left = hashlib.sha256(), part.size
    for piece in _read(tree, file.record, part.offset, part.size, None, stop):
        whole.update(piece)
        left -= len(piece)
        if not left and whole.hexdigest() != part.hex:
            raise _difference(tree, file.record, part.offset, part.size, stop)
        yield memoryview(piece)
        if task:
            task.advance(len(piece))


def read_short(tree: Path, file: StoredFile, part: Part, stop: Stop) -> bytes:
    """All of a short part at once, checked as :func:`read_part` does.

    Of thousands of small files the steps cost more than the bytes, so here are only those that must be.
    """
    stop.check()
    path = f"{tree}/{file.record.path}"
    more = part.offset + part.size == file.record.size  # one byte, to see a file that grew
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.pread(handle, part.size + more, part.offset)
        finally:
            os.close(handle)
    except OSError as error:
        raise DocumentError(f"cannot read it ({error.strerror or error})", where=path, fix=_AGAIN) from None
    if len(data) != part.size or hashlib.sha256(data).hexdigest() != part.hex:
        raise _difference(tree, file.record, part.offset, part.size, stop)
    return data


def _read(tree: Path, file: FileRecord, at: int, size: int, task: Task | None, stop: Stop) -> Iterator[bytes]:
    """A run of a file's bytes; one empty piece where it is empty."""
    end = at + size
    try:
        with (tree / file.path).open("rb", buffering=0) as source:
            found = os.fstat(source.fileno()).st_size
            if found != file.size:
                raise ArtifactCorruptError(
                    f"{found} bytes, but the build record says {file.size}", where=file.path, fix=_AGAIN
                )
            source.seek(at)
            while True:
                stop.check()
                piece = source.read(min(PIECE_BYTES, end - at))
                if at < end and not piece:
                    raise ArtifactCorruptError(f"it ends at byte {at}", where=file.path, fix=_AGAIN)
                at += len(piece)
                yield piece
                if task:
                    task.advance(len(piece))
                if at >= end:
                    return
    except OSError as error:
        raise DocumentError(
            f"cannot read it ({error.strerror or error})", where=str(tree / file.path), fix=_AGAIN
        ) from None


def _difference(tree: Path, file: FileRecord, start: int, size: int, stop: Stop) -> ArtifactCorruptError:
    """Which chunk it is that differs: read again, since nothing is sent any more."""
    for chunk in chunks_of(file):
        if not start <= chunk.start < start + max(size, 1):
            continue
        found = hashlib.sha256()
        for piece in _read(tree, file, chunk.start, chunk.size, None, stop):
            found.update(piece)
        if found.hexdigest() != chunk.sha256:
            return ArtifactCorruptError(
                "its bytes are not those of the build record", where=describe_chunk(file, chunk.number), fix=_AGAIN
            )
    return ArtifactCorruptError(
        "its chunks are those of the build record, but its whole digest is not", where=file.path, fix=_AGAIN
    )
