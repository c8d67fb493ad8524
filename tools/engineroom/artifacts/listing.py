"""Listing: which artifacts a store holds, and what they are."""

import json
from dataclasses import dataclass, replace
from datetime import datetime

from engineroom.artifacts.closure import read_backup
from engineroom.artifacts.oras import plain_blobs
from engineroom.artifacts.parallel import Stop, run_all
from engineroom.artifacts.reference import Reference, has_tag_or_digest, is_movable, is_tag, parse_root
from engineroom.artifacts.resolve import Artifact, resolve
from engineroom.artifacts.store import BACKUP_TYPE, NO_TIME, PLAIN_TYPE, Store, TagEntry, TagState, read_manifest
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
    """When the tag was written, by the store's clock (UTC); :data:`NO_TIME` where it does not say."""
    bytes: int | None
    """Size of the tree; None, as all below, where the artifact was not opened, or cannot be read: ``problem``."""
    model: str | None
    runtime: str | None
    precision: str | None
    key: str | None
    created: str | None
    """``created`` of the build record's provenance, where it has one."""
    problem: str = ""
    backup: str | None = None
    """What a backup holds; None for an artifact."""
    plain: str | None = None
    """What an artifact holds that others pushed; None for one of engineroom."""


#: Up to so many tags are opened without being asked: it takes three requests for each.
MAX_OPENED = 100


def list_artifacts(
    place: str, *, details: bool | None = None, plain_http: bool = False, progress: Progress = QUIET
) -> list[Listed]:
    """Every tag below ``place``, sorted by name and tag.

    ``place`` is a store's root, ``SCHEME://LOCATION``, or one name in it, with or without a tag. With ``details``
    each tag is opened to say what it names; None opens up to :data:`MAX_OPENED` tags, so that a store with thousands
    of versions is listed at once. An artifact that cannot be read is listed with its problem.

    Raises:
        BadReferenceError: ``place`` is neither.
        ArtifactNotFoundError: there is no such store, name or tag.
        StoreError: the store failed.
    """
    store, wanted = find_tags(place, plain_http=plain_http)
    if details is None:
        details = len(wanted) <= MAX_OPENED
        if not details:
            progress.say(f"{len(wanted)} tags: what they name is not shown; name one, or ask for --details")
    if not details:
        return [_listed(reference, published, None, "") for reference, published in wanted]
    with progress.task("list", len(wanted), unit="tags") as task:

        def describe(item: tuple[Reference, datetime], stop: Stop) -> Listed | None:
            stop.check()
            listed = _describe(item[0], store.within(item[0].name))
            task.advance(1)
            return listed

        return [listed for listed in run_all(describe, wanted, workers=store.readers) if listed]


def find_tags(place: str, *, plain_http: bool = False) -> tuple[Store, list[tuple[Reference, datetime]]]:
    """A store, and the tags below ``place`` with their times. Raises as :func:`list_artifacts` does."""
    if has_tag_or_digest(place):
        reference = Reference.parse(place)
        return open_store(reference, plain_http=plain_http), [(reference, NO_TIME)]
    if place.startswith("oci://") and "/" in place.removeprefix("oci://").rstrip("/"):
        one: Reference | None = Reference.parse(place)  # a root is a host alone
    else:
        scheme, location = parse_root(place)
        store = open_store(place, plain_http=plain_http)
        if entries := store.list_tags():  # of all names at once: one request for each 1,000
            return store, _references(scheme, location, entries)
        try:
            one = Reference.parse(place)
        except BadReferenceError:
            one = None
    if one:
        store = open_store(one, plain_http=plain_http)
        if found := _references(one.scheme, one.location, store.list_tags(one.name)):
            return store, found
    raise ArtifactNotFoundError("there are no artifacts", where=place, fix="`engineroom publish` makes them")


def _references(scheme: str, location: str, entries: list[TagEntry]) -> list[tuple[Reference, datetime]]:
    # Somebody else's objects below refs/ may have names that no tag has.
    return [
        (Reference(scheme, location, entry.name, entry.tag), entry.modified) for entry in entries if is_tag(entry.tag)
    ]


def _describe(reference: Reference, store: Store) -> Listed | None:
    tag = reference.tag or ""
    try:
        state = store.read_tag(reference.name, tag)
        if state is None:
            return None  # removed since it was listed
        pinned = reference.pinned(state.pointer.digest)
        if state.pointer.artifact_type == BACKUP_TYPE:
            return _backup(pinned, state, store)
        if state.pointer.artifact_type == PLAIN_TYPE:
            return _plain(pinned, state, store)
        artifact, problem = None, ""
        try:
            artifact = resolve(Reference(pinned.scheme, pinned.location, pinned.name, None, pinned.digest), store=store)
        except (CheckFailedError, ArtifactNotFoundError) as error:
            problem = error.found
    except CheckFailedError as error:
        return _listed(reference, NO_TIME, None, error.found)
    return _listed(pinned, state.modified, artifact, problem)


def _backup(reference: Reference, state: TagState, store: Store) -> Listed:
    _, record = read_backup(store, state.pointer, where=str(reference))
    parts = [f"artifact {saved.source.partition('@')[0]}" for saved in record.artifacts]
    parts += [f"folder {folder.path}" for folder in record.folders] + (["values"] if record.values else [])
    size = sum(folder.size for folder in record.folders)
    listed = _listed(reference, state.modified, None, "")
    return replace(listed, bytes=size, created=record.created, backup=f"backup of {', '.join(parts)}")


def _plain(reference: Reference, state: TagState, store: Store) -> Listed:
    data = read_manifest(store, state.pointer.digest.removeprefix("sha256:"), where=str(reference))
    *layers, _ = plain_blobs(data, where=str(reference))
    kind = json.loads(data).get("artifactType") or json.loads(data)["config"].get("mediaType")
    listed = _listed(reference, state.modified, None, "")
    blobs = f"{len(layers)} blob{'' if len(layers) == 1 else 's'}"
    return replace(listed, bytes=sum(layer.size for layer in layers), plain=f"{blobs} of type {kind}")


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
