"""Backup: artifacts, folders and the values of a release, in another store, each byte there once.

The parts: artifacts are copied blob by blob as ``copy`` does; folders go in pieces of 64 MiB; what the store has is not
sent again, so every backup is whole and costs what changed. The tag, a time, is set last.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from engineroom.artifacts.backup_record import (
    EMPTY,
    MAX_RECORD_BYTES,
    BackupManifest,
    BackupRecord,
    SavedArtifact,
    SavedFolder,
    SavedValues,
)
from engineroom.artifacts.closure import Needed, closure
from engineroom.artifacts.copying import send
from engineroom.artifacts.garbage import DAY, Collected, collect, untag
from engineroom.artifacts.holds import holding
from engineroom.artifacts.manifest import MAX_BYTES
from engineroom.artifacts.parallel import Stop, again, run_by_size
from engineroom.artifacts.reference import Reference
from engineroom.artifacts.release_values import read_values
from engineroom.artifacts.resolve import resolve
from engineroom.artifacts.retention import Retention
from engineroom.artifacts.store import BACKUP_TYPE, CollectableStore, Pointer, Store
from engineroom.artifacts.stores import open_store
from engineroom.artifacts.tagging import probe
from engineroom.artifacts.verify import Problem, verify_blobs
from engineroom.artifacts.volume import Piece, read_piece, save_folder
from engineroom.errors import ArtifactCorruptError, ArtifactNotFoundError, InputError
from engineroom.progress import QUIET, Progress

_TAG = re.compile(r"\d{8}T\d{6}Z")
_FORMAT = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True)
class BackedUp:
    """What a backup did."""

    reference: Reference
    """Of the backup, with tag and digest."""
    record: BackupRecord
    sent_blobs: int
    sent_bytes: int
    """In a dry run, what would be sent."""
    skipped_bytes: int
    """In the store already."""
    verified_bytes: int
    """Read back and hashed; 0 where that was not asked for."""
    removed: tuple[str, ...]
    """Tags of older backups that the retention let go."""
    collected: Collected | None
    """What that freed; None where nothing was removed."""


@dataclass
class _Sources:
    """All that goes into one backup, looked at."""

    record: BackupRecord
    pieces: list[Piece] = field(default_factory=list)
    values: bytes = b""
    artifacts: list[tuple[Store, str, list[Needed]]] = field(default_factory=list)

    def documents(self) -> list[bytes]:
        """Small blobs, in the order in which they are written."""
        return [EMPTY, *([self.values] if self.record.values else []), self.record.to_json()]


def backup(
    references: Sequence[Reference],
    to: Reference,
    *,
    folders: Sequence[Path] = (),
    values: Path | None = None,
    retention: Retention = Retention(),  # noqa: B008 - frozen
    verify: bool = True,
    plain_http: bool = False,
    dry_run: bool = False,
    progress: Progress = QUIET,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> BackedUp:
    """Make a backup of artifacts, folders and a values file in the store of ``to``, named ``to`` and tagged by time.

    Without a rule in ``retention`` every backup is kept; older ones are removed only after this one is whole, and
    with ``verify`` read back. Their blobs are then collected, with a day of grace.

    Raises:
        InputError: nothing to back up, something that cannot be read or is being written to, a secret in the values,
            two artifacts of one name and tag.
        ArtifactCorruptError: a source, or the backup when it was read back, is not what it should be.
        StoreError: a store failed, or ``to``'s ignores conditional writes.
    """
    if to.tag or to.digest:
        raise InputError("backups are tagged by their time", where=str(to), fix="leave tag and digest away")
    if not references and not folders and values is None:
        raise InputError("there is nothing to back up", where="backup", fix="give references, --folder or --values")
    store = open_store(to)
    if not isinstance(store, CollectableStore):
        raise InputError("a registry takes no backups", where=str(to), fix="back up to a bucket or a folder")
    now = clock().astimezone(UTC).replace(microsecond=0)
    sources = _look(references, folders, values, now, progress, plain_http=plain_http)
    manifest = BackupManifest.of(sources.record).to_json()
    if len(manifest) > MAX_BYTES or len(sources.record.to_json()) > MAX_RECORD_BYTES:
        raise InputError(
            "the list of files is longer than a backup can hold",
            where=", ".join(folder.path for folder in sources.record.folders),
            fix="pack small files together, or back up fewer folders at once",
        )
    pointer = Pointer("sha256:" + _sha256(manifest), len(manifest), BACKUP_TYPE)
    small = [*sources.documents(), manifest]
    needed = {one.hex: one.size for _, _, artifact in sources.artifacts for one in artifact}
    needed |= {piece.hex: piece.size for piece in sources.pieces}
    needed |= {_sha256(data): len(data) for data in small}
    if not dry_run:
        probe(store, to, "TIME", unsafe=False, progress=progress)
    with nullcontext() if dry_run else holding(store, needed, progress=progress) as hold:
        sent = _send(sources, store, progress, dry_run=dry_run)
        for data in small:
            if store.blob_size(_sha256(data)) != len(data):
                sent.append(len(data))
                if not dry_run:
                    store.write_blob(_sha256(data), len(data), [memoryview(data)])
        if hold:
            hold.confirm()
        tag = _set_tag(store, to, pointer, now, dry_run=dry_run)
    verified = 0
    if verify and not dry_run:
        done = verify_backup(replace(to, tag=tag), store=store, progress=progress)
        verified = done.bytes
        if done.problems:
            raise ArtifactCorruptError(
                f"the backup that was just made is not what was sent: {done.problems[0]}",
                where=f"{to}:{tag}",
                fix="no older backup was removed; check the store",
            )
    removed = _retain(store, to, retention, tag, dry_run=dry_run)
    return BackedUp(
        reference=replace(to, tag=tag, digest=pointer.digest),
        record=sources.record,
        sent_blobs=len(sent),
        sent_bytes=sum(sent),
        skipped_bytes=sum(needed.values()) - sum(sent),
        verified_bytes=verified,
        removed=removed,
        collected=collect(store, grace_seconds=DAY, progress=progress) if removed and not dry_run else None,
    )


def _look(
    references: Sequence[Reference],
    folders: Sequence[Path],
    values: Path | None,
    now: datetime,
    progress: Progress,
    *,
    plain_http: bool,
) -> _Sources:
    """Read everything but the blobs of artifacts. What cannot be backed up is refused before anything is sent."""
    data = read_values(values) if values else b""
    sources = _Sources(BackupRecord(created=now.isoformat()), values=data)
    saved: dict[tuple[str, str | None], SavedArtifact] = {}
    for reference in references:
        store = open_store(reference, plain_http=plain_http).within(reference.name)
        artifact = resolve(reference, store=store)
        size = len(artifact.manifest_bytes)
        where = str(artifact.reference)
        one = SavedArtifact(source=where, name=reference.name, tag=reference.tag, digest=artifact.digest, size=size)
        other = saved.setdefault((one.name, one.tag), one)
        if other.digest != one.digest:
            raise InputError(
                f"{other.source} has the same name and tag", where=where, fix="make two backups, of two names"
            )
        sources.artifacts.append((store, where, closure(store, Pointer(artifact.digest, size), where=where)))
    kept: list[SavedFolder] = []
    for folder in folders:
        entry, pieces = save_folder(folder, progress)
        if any(entry.name == other.name for other in kept):
            raise InputError("another folder has the same last name", where=entry.path, fix="make two backups")
        kept.append(entry)
        sources.pieces += pieces
    sources.record = BackupRecord(
        created=now.isoformat(),
        artifacts=list(saved.values()),
        folders=kept,
        values=SavedValues(sha256=_sha256(data), size=len(data)) if values else None,
    )
    sources.record.check(where="the backup")
    return sources


def _send(sources: _Sources, store: Store, progress: Progress, *, dry_run: bool) -> list[int]:
    """Send what the store lacks; the sizes of what was sent."""
    sent: list[int] = []
    seen: set[str] = set()
    for source, where, needed in sources.artifacts:
        new = [one for one in needed if one.hex not in seen]
        seen.update(one.hex for one in new)
        sent += send(source, store, new, where=where, progress=progress, dry_run=dry_run)
    different = {piece.hex: piece for piece in sources.pieces if piece.hex not in seen}
    pieces = sorted(different.values(), key=lambda piece: -piece.size)
    with (progress if pieces else QUIET).task("back up folders", sum(piece.size for piece in pieces)) as task:

        def one(piece: Piece, stop: Stop) -> int | None:
            stop.check()
            if store.blob_size(piece.hex) == piece.size:
                task.advance(piece.size)
                return None
            if not dry_run:
                again(lambda: store.write_blob(piece.hex, piece.size, read_piece(piece, task, stop)), stop)
            return piece.size

        return sent + [size for size in run_by_size(one, pieces, size=lambda piece: piece.size) if size is not None]


def _set_tag(store: Store, to: Reference, pointer: Pointer, now: datetime, *, dry_run: bool) -> str:
    """Tag it with its time, or, where another backup has that second, with the next free one."""
    while True:
        tag = now.strftime(_FORMAT)
        if dry_run or again(partial(store.create_tag, to.name, tag, pointer), Stop()):
            return tag
        there = store.read_tag(to.name, tag)
        if there and there.pointer == pointer:  # the answer to our own create was lost
            return tag
        now += timedelta(seconds=1)


def _retain(store: Store, to: Reference, retention: Retention, newest: str, *, dry_run: bool) -> tuple[str, ...]:
    """Remove the tags of backups that no rule keeps; which these are."""
    tags = {tag for tag in store.tags(to.name) if _time(tag)} | {newest}
    times = {time: tag for tag in tags if (time := _time(tag))}
    kept = retention.kept(times)
    removed = tuple(sorted(tag for time, tag in times.items() if time not in kept and tag != newest))
    for tag in () if dry_run else removed:
        untag(store, to.name, tag)
    return removed


def _time(tag: str) -> datetime | None:
    """The time in a backup's tag; None for tags that somebody else made."""
    try:
        return datetime.strptime(tag, _FORMAT).replace(tzinfo=UTC) if _TAG.fullmatch(tag) else None
    except ValueError:
        return None


def find_backup(reference: Reference, *, store: Store) -> tuple[Reference, Pointer]:
    """The backup that a reference names, the newest where it has no tag; with its digest.

    Raises :class:`ArtifactNotFoundError` where there is none, :class:`InputError` where it is no backup.
    """
    tag = reference.tag
    if tag is None:
        tags = [tag for tag in store.tags(reference.name) if _time(tag)]
        if not tags:
            raise ArtifactNotFoundError("there is no backup", where=str(reference), fix="`engineroom backup` makes one")
        tag = max(tags)
    state = store.read_tag(reference.name, tag)
    if state is None:
        raise ArtifactNotFoundError(
            "there is no such tag",
            where=str(replace(reference, tag=tag)),
            fix=f"`engineroom list {reference.root}` shows what is there",
        )
    found = replace(reference, tag=tag, digest=state.pointer.digest)
    if state.pointer.artifact_type != BACKUP_TYPE:
        raise InputError("it is an artifact, no backup", where=str(found), fix="`engineroom pull` brings it here")
    if reference.digest not in {None, state.pointer.digest}:
        raise ArtifactCorruptError(
            f"the tag names {state.pointer.digest}", where=str(reference), fix="drop the tag or the digest"
        )
    return found, state.pointer


@dataclass(frozen=True)
class VerifiedBackup:
    """What a verification of a backup found."""

    reference: Reference
    blobs: int
    bytes: int
    problems: tuple[Problem, ...]


def verify_backup(reference: Reference, *, store: Store, progress: Progress = QUIET) -> VerifiedBackup:
    """Read every blob of a backup and hash it. Raises what :func:`find_backup` and ``closure`` raise."""
    found, pointer = find_backup(reference, store=store)
    needed = closure(store, pointer, where=str(found))
    problems = verify_blobs(store, needed, progress=progress)
    return VerifiedBackup(found, len(needed), sum(one.size for one in needed), tuple(problems))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
