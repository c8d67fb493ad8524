"""``checkpoint.json``: which files make up a checkpoint, where they came from, and what they hash to."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import Field

from engineroom.documents import Document, FileRecord, digest_of, list_files, record_file
from engineroom.progress import QUIET, Progress

FILE = "checkpoint.json"


class CheckpointRecord(Document):
    """A checkpoint as it was fetched. Equal ``digest``: equal bytes in equal files, wherever they came from."""

    source: str
    """``hf://org/name``, ``demo://name`` or the absolute path of a local folder."""

    revision: str
    """What pins the source: a commit on the Hub, a package version, or ``local``."""

    architecture: str
    """First entry of ``architectures`` in config.json, such as ``LlamaForCausalLM``."""

    files: list[FileRecord] = Field(min_length=1)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the canonical JSON of the pairs (path, sha256) in order of path."""


def record_checkpoint(
    folder: Path,
    *,
    source: str,
    revision: str,
    architecture: str,
    paths: list[str] | None = None,
    progress: Progress = QUIET,
) -> CheckpointRecord:
    """Hash the files ``paths`` of ``folder`` (all of them where it is None) and describe them."""
    if paths is None:
        paths = [path for path in list_files(folder) if path != FILE and not path.startswith(".")]
    paths = sorted(paths)
    total = sum((folder / path).stat().st_size for path in paths)
    with progress.task("hash checkpoint", total) as task, ThreadPoolExecutor(max_workers=4) as pool:

        def record(path: str) -> FileRecord:
            made = record_file(folder, path)
            task.advance(made.size)
            return made.model_copy(update={"chunks": []})

        files = list(pool.map(record, paths))
    digest = digest_of([[file.path, file.sha256] for file in files])
    return CheckpointRecord(source=source, revision=revision, architecture=architecture, files=files, digest=digest)
