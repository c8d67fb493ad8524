"""Which files a pull laid down, where no build record in the tree says it: artifacts of others.

``.NAME.pulled-<digest>.json`` beside the target ``NAME``, written before the tree takes that name, one for each
artifact: so after a kill there is one for the tree that is there, whether it is the old one or the new one.
"""

from pathlib import Path

from pydantic import Field

from engineroom.artifacts.manifest import StoredFile
from engineroom.artifacts.swap import listing_file, listing_files
from engineroom.artifacts.verify import compare_files
from engineroom.documents import Document, FileRecord
from engineroom.errors import DocumentError

_MADE_BY = "engineroom pull"


class PulledFiles(Document):
    """The files of an artifact that has no build record as its config."""

    digest: str
    """Of its manifest, ``sha256:…``."""
    unpacked: list[FileRecord] = Field(default_factory=list)
    """What was in packed folders, each file as it was written, without the build record."""
    record: FileRecord | None = None
    """``build-record.json``, where an assembled tree was packed as a whole."""
    others: list[str] = Field(default_factory=list)
    """Paths of the files that are layers of their own."""

    @property
    def size(self) -> int:
        """Bytes of what was unpacked."""
        return sum(file.size for file in self.unpacked)

    def stored(self) -> list[StoredFile]:
        """What was unpacked, as files that no blobs of their own hold."""
        return [StoredFile(file, ()) for file in self.unpacked]

    def save(self, target: Path) -> None:
        """Write it beside ``target``."""
        self.write(listing_file(target, self.digest))

    @classmethod
    def beside(cls, target: Path, digest: str) -> "PulledFiles | None":
        """What the last pull of ``digest`` into ``target`` laid down, where it is known."""
        try:
            found = cls.read(listing_file(target, digest), made_by=_MADE_BY)
        except DocumentError:
            return None
        return found if found.digest == digest else None


def is_pulled(target: Path) -> bool:
    """Whether every file below ``target`` is one that a pull laid down there; links are none."""
    there = {problem.where for problem in compare_files(target, [])}
    for path in listing_files(target):
        try:
            found = PulledFiles.read(path, made_by=_MADE_BY)
        except DocumentError:
            continue
        if there <= {*found.others, *(file.path for file in found.unpacked)}:
            return True
    return False
