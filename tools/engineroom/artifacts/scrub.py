"""Scrubbing: is every byte of a whole store, or of a bundle, still what was published?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engineroom.artifacts.backup import verify_backup
from engineroom.artifacts.bundle import BundleStore
from engineroom.artifacts.exporting import check_sum
from engineroom.artifacts.listing import find_tags
from engineroom.artifacts.reference import Reference, has_tag_or_digest
from engineroom.artifacts.store import BACKUP_TYPE, Store
from engineroom.artifacts.verify import Problem, verify_artifact
from engineroom.errors import ArtifactCorruptError, ArtifactNotFoundError
from engineroom.progress import QUIET, Progress


@dataclass(frozen=True)
class Scrubbed:
    """What a scrub found."""

    place: str
    tags: int
    files: int
    bytes: int
    """That were hashed: a blob that several tags share, once."""
    problems: tuple[Problem, ...]
    """``where`` names the tag and the file."""

    def check(self) -> None:
        """Raise :class:`ArtifactCorruptError` with the first problem, and the number of the others."""
        if self.problems:
            others = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            raise ArtifactCorruptError(
                f"{self.problems[0]}{others}",
                where=self.place,
                fix="publish it again, or copy it from where it is right",
            )


def scrub_store(place: str, *, plain_http: bool = False, progress: Progress = QUIET) -> Scrubbed:
    """Verify what a reference names, or every tag of a name or of a whole store: artifacts and backups.

    Raises what :func:`engineroom.artifacts.listing.find_tags` raises, and, for a single reference, what ``resolve``
    raises.
    """
    store, found = find_tags(place, plain_http=plain_http)
    references = [reference for reference, _ in found]
    return _scrub(place, references, store, progress, alone=has_tag_or_digest(place))


def scrub_bundle(path: Path, *, progress: Progress = QUIET) -> Scrubbed:
    """Verify a bundle: the checksum beside it, where there is one, and every artifact in it.

    Raises as :class:`engineroom.artifacts.bundle.BundleStore`.
    """
    check_sum(path, None, progress)
    bundle = BundleStore(path)
    return _scrub(str(path), [bundle.reference(entry) for entry in bundle.entries_found], bundle, progress)


def _scrub(
    place: str, references: Sequence[Reference], store: Store, progress: Progress, *, alone: bool = False
) -> Scrubbed:
    right: set[str] = set()
    hashed, files, problems = 0, 0, []
    for reference in references:
        try:
            found, count, size = _verify(reference, store, right, progress)
        except (ArtifactCorruptError, ArtifactNotFoundError) as error:
            if alone:
                raise
            problems.append(Problem(str(reference), error.found))
            continue
        hashed += size
        files += count
        problems += found if alone else [Problem(f"{reference}: {one.where}", one.found) for one in found]
    return Scrubbed(place, len(references), files, hashed, tuple(problems))


def _verify(
    reference: Reference, store: Store, right: set[str], progress: Progress
) -> tuple[Sequence[Problem], int, int]:
    """Problems, files and bytes of one tag."""
    state = store.read_tag(reference.name, reference.tag) if reference.tag else None
    if state and state.pointer.artifact_type == BACKUP_TYPE:
        backup = verify_backup(reference, store=store, progress=progress)
        return backup.problems, backup.blobs, backup.bytes
    artifact = verify_artifact(reference, store=store, progress=progress, right=right)
    return artifact.problems, len(artifact.record.files), artifact.bytes
