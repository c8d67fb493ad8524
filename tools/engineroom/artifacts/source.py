"""The files of an assembled tree as blobs: read once, hashed in that same read, given on only if they are right.

``assemble`` wrote the digests; between that and the upload a disk may have failed or a person may have edited a file.
What was hashed is what is sent: a file is never read twice, once to check it and once to send it.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from engineroom import documents
from engineroom.artifacts.manifest import Part, StoredFile, describe_chunk, part_spans
from engineroom.artifacts.parallel import Stop
from engineroom.documents import FileRecord
from engineroom.errors import ArtifactCorruptError, DocumentError
from engineroom.progress import Task

_PIECE = 1 << 20
_AGAIN = "run `engineroom assemble` again"


def cut_file(tree: Path, file: FileRecord, task: Task | None, stop: Stop) -> StoredFile:
    """The blobs that a file becomes.

    A file of one part has its digest in the build record. The parts of a longer one have none yet, so it is read
    here, and checked on the way.
    """
    spans = part_spans(file.size)
    if len(spans) == 1:
        return StoredFile(file, (Part(file.sha256, 0, file.size),))
    parts = []
    for offset, size in spans:
        whole = hashlib.sha256()
        for piece in read_part(tree, StoredFile(file, ()), Part("", offset, size), task, stop):
            whole.update(piece)
        parts.append(Part(whole.hexdigest(), offset, size))
    return StoredFile(file, tuple(parts))


def read_part(tree: Path, file: StoredFile, part: Part, task: Task | None, stop: Stop) -> Iterator[memoryview]:
    """The bytes of one part in pieces, every chunk checked before its last piece is given on.

    A piece may be overwritten once the next one is taken.

    Raises:
        ArtifactCorruptError: naming the file and the chunk that is not what the build record says.
        DocumentError: the file cannot be read.
    """
    record, step = file.record, documents.CHUNK_BYTES
    buffer = memoryview(bytearray(min(_PIECE, max(part.size, 1))))
    # A part of one chunk has one digest; checking a longer one as a whole too is what makes its name true.
    whole = hashlib.sha256() if part.hex and part.size > step else None
    try:
        with (tree / record.path).open("rb", buffering=0) as source:
            found = os.fstat(source.fileno()).st_size
            if found != record.size:
                raise ArtifactCorruptError(
                    f"{found} bytes, but the build record says {record.size}", where=record.path, fix=_AGAIN
                )
            source.seek(part.offset)
            at, end = part.offset, part.offset + part.size
            chunk = hashlib.sha256()
            while True:
                boundary = min((at // step + 1) * step, end)
                count = source.readinto(buffer[: min(len(buffer), boundary - at)]) if at < end else 0
                if at < end and not count:
                    raise ArtifactCorruptError(f"it ends at byte {at}", where=record.path, fix=_AGAIN)
                piece = buffer[:count]
                at += count or 0
                chunk.update(piece)
                if whole:
                    whole.update(piece)
                if at == boundary:
                    number = max(at - 1, 0) // step
                    if chunk.hexdigest() != record.chunks[number]:
                        raise ArtifactCorruptError(
                            "its bytes are not those of the build record",
                            where=describe_chunk(record, number),
                            fix=_AGAIN,
                        )
                    chunk = hashlib.sha256()
                if at == end and whole and whole.hexdigest() != part.hex:
                    raise ArtifactCorruptError(
                        "its chunks are those of the build record, but its whole digest is not",
                        where=record.path,
                        fix=_AGAIN,
                    )
                stop.check()
                if count:
                    yield piece
                    if task:
                        task.advance(count)
                if at >= end:
                    return
    except OSError as error:
        raise DocumentError(
            f"cannot read it ({error.strerror or error})", where=str(tree / record.path), fix=_AGAIN
        ) from None
