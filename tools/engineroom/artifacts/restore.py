"""Restore: from a backup into a store, a folder and a values file."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engineroom.artifacts.backup import find_backup
from engineroom.artifacts.backup_record import BackupRecord, SavedFolder
from engineroom.artifacts.closure import read_backup
from engineroom.artifacts.copying import Copied, copy, in_store
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.store import read_small
from engineroom.artifacts.stores import open_store
from engineroom.artifacts.verify import verify_artifact
from engineroom.artifacts.volume import check_place, restore_folder
from engineroom.documents import write_atomic
from engineroom.errors import InputError
from engineroom.folders import disk_errors
from engineroom.progress import QUIET, Progress


@dataclass(frozen=True)
class Restored:
    """What a restoration did."""

    backup: Reference
    """With the digest that was found."""
    record: BackupRecord
    artifacts: tuple[Copied, ...]
    folders: tuple[tuple[Path, int], ...]
    """Each folder, and the bytes that came for it now."""
    values: Path | None
    verified_bytes: int
    """Of artifacts, read back from the store that they were restored to."""


def restore(
    backup: Reference,
    *,
    to: str | None = None,
    folder_to: Path | None = None,
    values_to: Path | None = None,
    verify: bool = True,
    plain_http: bool = False,
    dry_run: bool = False,
    progress: Progress = QUIET,
) -> Restored:
    """Bring back what a backup holds, the newest of its name where ``backup`` has no tag.

    Artifacts go into the store ``to`` (``SCHEME://LOCATION``) under their names and tags, with their digests. The
    only folder of a backup becomes ``folder_to``, several become folders below it; the place must be empty or new.
    What is not given a place is left in the backup. Can be repeated after a kill.

    Raises:
        ArtifactNotFoundError: no such backup.
        InputError: no place given, or one that is not empty; the values file is there already.
        ArtifactExistsError: a tag in the store names another artifact; nothing was restored.
        ArtifactCorruptError: the backup is not what was saved.
        StoreError: a store failed, or the disk is full.
    """
    store = open_store(backup)
    found, pointer = find_backup(backup, store=store)
    _, record = read_backup(store, pointer, where=str(found))
    if not (to or folder_to or values_to):
        raise InputError("there is no place to restore to", where=str(found), fix="give --to, --folder-to, --values-to")
    places = _places(record.folders, folder_to)
    for saved, place in places:
        with disk_errors(place):
            check_place(saved, place, pointer.digest)
    values = b""
    if values_to:
        if record.values is None:
            raise InputError("the backup has no values", where=str(found), fix="leave --values-to away")
        size = record.values.size
        values = read_small(store, record.values.sha256, size, limit=size, where=str(found), what="values file")
        with disk_errors(values_to):
            if values_to.exists() and values_to.read_bytes() != values:
                raise InputError("it is there already", where=str(values_to), fix="choose another --values-to")
    for preview in (True, False):  # every tag is looked at before the first artifact is stored
        if preview or not dry_run:
            artifacts = _artifacts(
                record,
                found,
                to,
                QUIET if preview and not dry_run else progress,
                dry_run=preview,
                plain_http=plain_http,
            )
    verified = 0
    for done in artifacts if verify and not dry_run else ():
        pinned, target = replace(done.reference, tag=None), open_store(done.reference, plain_http=plain_http)
        seen = verify_artifact(pinned, store=target, progress=progress)
        seen.check()
        verified += seen.bytes
    folders = [
        (
            place,
            restore_folder(
                saved, place, store=store, where=str(found), label=pointer.digest, progress=progress, dry_run=dry_run
            ),
        )
        for saved, place in places
    ]
    if values_to and not dry_run:
        with disk_errors(values_to):
            write_atomic(values_to, values)
    return Restored(found, record, tuple(artifacts), tuple(folders), values_to, verified)


def _places(folders: Sequence[SavedFolder], folder_to: Path | None) -> list[tuple[SavedFolder, Path]]:
    if folder_to is None:
        return []
    if not folders:
        raise InputError("the backup has no folder", where=str(folder_to), fix="leave --folder-to away")
    return [(saved, folder_to / saved.name if len(folders) > 1 else folder_to) for saved in folders]


def _artifacts(
    record: BackupRecord, found: Reference, to: str | None, progress: Progress, *, dry_run: bool, plain_http: bool
) -> list[Copied]:
    """Copy every artifact of the backup, in a dry run only look."""
    if to is None:
        return []
    store = open_store(found)
    done = []
    for saved in record.artifacts:
        target = in_store(to, saved.name, saved.tag)
        source = replace(found, name=saved.name.rpartition("/")[2], tag=None, digest=saved.digest)
        done.append(
            copy(
                source,
                target,
                source_store=store,
                store=open_store(target, plain_http=plain_http),
                progress=progress,
                dry_run=dry_run,
            )
        )
    return done
