"""Scrubbing: is every byte of a whole store, or of a bundle, still what was published?"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from engineroom.artifacts.backup import verify_backup
from engineroom.artifacts.bundle import BundleStore
from engineroom.artifacts.exporting import check_sum
from engineroom.artifacts.reference import Reference, parse_root
from engineroom.artifacts.store import BACKUP_TYPE, Store
from engineroom.artifacts.stores import open_store
from engineroom.artifacts.verify import Problem, verify_artifact
from engineroom.errors import ArtifactCorruptError, ArtifactNotFoundError
from engineroom.progress import QUIET, Progress


@dataclass(frozen=True)
class Scrubbed:
    """What a scrub found."""

    place: str
    tags: int
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


def scrub_store(root: str, *, progress: Progress = QUIET) -> Scrubbed:
    """Verify what every tag of a store names, artifacts and backups.

    Raises :class:`ArtifactNotFoundError` where the store has no tags, :class:`StoreError` where it failed.
    """
    store, (scheme, location) = open_store(root), parse_root(root)
    entries = store.list_tags()
    if not entries:
        raise ArtifactNotFoundError("there are no artifacts", where=root, fix="`engineroom publish` makes them")
    references = [Reference(scheme, location, entry.name, entry.tag) for entry in entries]
    return _scrub(root, references, store, progress)


def scrub_bundle(path: Path, *, progress: Progress = QUIET) -> Scrubbed:
    """Verify a bundle: the checksum beside it, where there is one, and every artifact in it.

    Raises as :class:`engineroom.artifacts.bundle.BundleStore`.
    """
    check_sum(path, None, progress)
    bundle = BundleStore(path)
    return _scrub(str(path), [bundle.reference(entry) for entry in bundle.entries_found], bundle, progress)


def _scrub(place: str, references: Iterable[Reference], store: Store, progress: Progress) -> Scrubbed:
    right: set[str] = set()
    hashed, problems, count = 0, [], 0
    for reference in references:
        count += 1
        try:
            state = store.read_tag(reference.name, reference.tag) if reference.tag else None
            if state and state.pointer.artifact_type == BACKUP_TYPE:
                backup = verify_backup(reference, store=store, progress=progress)
                found, size = backup.problems, backup.bytes
            else:
                artifact = verify_artifact(reference, store=store, progress=progress, right=right)
                found, size = artifact.problems, artifact.bytes
        except (ArtifactCorruptError, ArtifactNotFoundError) as error:
            problems.append(Problem(str(reference), error.found))
            continue
        hashed += size
        problems += [Problem(f"{reference}: {problem.where}", problem.found) for problem in found]
    return Scrubbed(place, count, hashed, tuple(problems))
