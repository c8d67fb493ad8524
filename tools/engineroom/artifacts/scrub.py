"""Scrubbing: is every byte of a whole store, or of a bundle, still what was published?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engineroom.artifacts.bundle import BundleStore
from engineroom.artifacts.closure import Needed, closure
from engineroom.artifacts.exporting import check_sum
from engineroom.artifacts.listing import find_tags
from engineroom.artifacts.parallel import Stop, run_all
from engineroom.artifacts.reference import Reference, has_tag_or_digest
from engineroom.artifacts.resolve import Artifact, pin, resolve
from engineroom.artifacts.store import BACKUP_TYPE, PLAIN_TYPE, Pointer, Store, type_of
from engineroom.artifacts.verify import Problem, verify_artifacts, verify_blobs
from engineroom.errors import ArtifactCorruptError, ArtifactNotFoundError
from engineroom.progress import QUIET, Progress

#: Artifacts that are looked at together. Their build records are in memory: 2 MB each, where they have 2,000 files.
_BATCH = 32


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
    for start in range(0, len(references), _BATCH):
        batch = references[start : start + _BATCH]
        seen = run_all(lambda one, stop: _open(one, store, stop, alone=alone), batch, workers=store.readers)
        artifacts = [found for found in seen if isinstance(found, Artifact)]
        verified = iter(verify_artifacts(artifacts, store=store, progress=progress, right=right))
        for reference, found in zip(batch, seen, strict=True):
            if isinstance(found, Artifact):
                artifact = next(verified)
                wrong, count, size = artifact.problems, len(artifact.record.files), artifact.bytes
            elif isinstance(found, Problem):
                problems.append(found)
                continue
            else:
                new = [one for one in found if one.hex not in right]
                wrong = tuple(verify_blobs(store.within(reference.name), new, progress=progress, right=right))
                count, size = len(found), sum(one.size for one in new)
            hashed += size
            files += count
            problems += wrong if alone else [Problem(f"{reference}: {one.where}", one.found) for one in wrong]
    return Scrubbed(place, len(references), files, hashed, tuple(problems))


def _open(reference: Reference, store: Store, stop: Stop, *, alone: bool) -> Artifact | list[Needed] | Problem:
    """What a tag names, as its blobs where it is no artifact of ours, or what is wrong with it."""
    stop.check()
    try:
        state = store.read_tag(reference.name, reference.tag) if reference.tag else None
        if state and state.pointer.artifact_type == BACKUP_TYPE and reference.digest in {None, state.pointer.digest}:
            return closure(store, state.pointer, where=str(reference))
        if state is None or alone:
            pinned, data = pin(reference, store)
            if type_of(data) == PLAIN_TYPE:
                return _plain(pinned, Pointer.to(data), store)
            return resolve(pinned, store=store)
        if state.pointer.artifact_type == PLAIN_TYPE:
            return _plain(reference, state.pointer, store)
        digest = state.pointer.digest
        artifact = resolve(replace(reference, tag=None, digest=digest), store=store)  # the tag was read just now
        if len(artifact.manifest_bytes) != state.pointer.size:
            raise ArtifactCorruptError(f"the tag gives its manifest {state.pointer.size} bytes")
        return replace(artifact, reference=reference.pinned(digest))
    except (ArtifactCorruptError, ArtifactNotFoundError) as error:
        if alone:
            raise
        return Problem(str(reference), error.found)


def _plain(reference: Reference, pointer: Pointer, store: Store) -> list[Needed]:
    """The blobs of what others pushed. The manifest was compared with its digest just now; registries keep it apart."""
    found = closure(store.within(reference.name), pointer, where=str(reference))
    return [one for one in found if one.kind != "manifest"]
