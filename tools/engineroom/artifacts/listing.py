"""Listing: which artifacts a store holds, and what they are."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from engineroom.artifacts.parallel import Stop, run_all
from engineroom.artifacts.reference import Reference, has_tag_or_digest, is_movable, parse_root
from engineroom.artifacts.resolve import Artifact, resolve
from engineroom.artifacts.store import Store
from engineroom.artifacts.stores import open_store
from engineroom.errors import ArtifactNotFoundError, BadReferenceError, CheckFailedError
from engineroom.progress import QUIET, Progress


@dataclass(frozen=True)
class Listed:
    """One tag of one name."""

    reference: Reference
    """With tag and digest."""
    movable: bool
    published: datetime
    """When the tag was written, by the store's clock (UTC)."""
    bytes: int | None
    """Size of the tree; None, as all below, where the artifact cannot be read: ``problem`` says why."""
    model: str | None
    runtime: str | None
    precision: str | None
    key: str | None
    created: str | None
    """``created`` of the build record's provenance, where it has one."""
    problem: str = ""


def list_artifacts(place: str, *, progress: Progress = QUIET) -> list[Listed]:
    """Every tag below ``place``, sorted by name and tag.

    ``place`` is a store's root, ``SCHEME://LOCATION``, or one name in it, with or without a tag. An artifact that
    cannot be read is listed with its problem.

    Raises:
        BadReferenceError: ``place`` is neither.
        ArtifactNotFoundError: there is no such store, name or tag.
        StoreError: the store failed.
    """
    store, wanted = _find(place)
    with progress.task("list", len(wanted), unit="tags") as task:

        def describe(reference: Reference, stop: Stop) -> Listed | None:
            stop.check()
            listed = _describe(reference, store)
            task.advance(1)
            return listed

        return [listed for listed in run_all(describe, wanted, workers=8) if listed]


def _find(place: str) -> tuple[Store, list[Reference]]:
    if has_tag_or_digest(place):
        reference = Reference.parse(place)
        return open_store(reference), [reference]
    store = open_store(place)
    try:
        names = store.names()
    except ArtifactNotFoundError:
        names = []
    if names:
        scheme, location = parse_root(place)
        return store, list(_tags(store, scheme, location, names))
    try:
        one = Reference.parse(place)
    except BadReferenceError:
        one = None
    if one and (tags := open_store(one).tags(one.name)):
        return open_store(one), [Reference(one.scheme, one.location, one.name, tag) for tag in tags]
    raise ArtifactNotFoundError("there are no artifacts", where=place, fix="`engineroom publish` makes them")


def _tags(store: Store, scheme: str, location: str, names: list[str]) -> Iterator[Reference]:
    for name in names:
        for tag in store.tags(name):
            try:
                yield Reference.parse(f"{scheme}://{location}/{name}:{tag}")
            except BadReferenceError:
                continue  # somebody else's object below refs/


def _describe(reference: Reference, store: Store) -> Listed | None:
    tag = reference.tag or ""
    try:
        state = store.read_tag(reference.name, tag)
        if state is None:
            return None  # removed since it was listed
        pinned = reference.pinned(state.pointer.digest)
        artifact, problem = None, ""
        try:
            artifact = resolve(Reference(pinned.scheme, pinned.location, pinned.name, None, pinned.digest), store=store)
        except (CheckFailedError, ArtifactNotFoundError) as error:
            problem = error.found
    except CheckFailedError as error:
        return _listed(reference, datetime.min, None, error.found)
    return _listed(pinned, state.modified, artifact, problem)


def _listed(reference: Reference, published: datetime, artifact: Artifact | None, problem: str) -> Listed:
    record = artifact.record if artifact else None
    created = record.provenance.get("created") if record else None
    return Listed(
        reference=reference,
        movable=is_movable(reference.tag or ""),
        published=published,
        bytes=sum(file.size for file in record.files) if record else None,
        model=record.name if record else None,
        runtime=record.inputs.runtime if record else None,
        precision=record.inputs.precision if record else None,
        key=record.key if record else None,
        created=created if isinstance(created, str) else None,
        problem=problem,
    )
