"""``engineroom fetch``: a checkpoint from wherever it is to a folder and a ``checkpoint.json``.

A cache entry is assembled in a folder beside its place and renamed in when it is whole, so a name in the cache means
a complete checkpoint. What a killed run has downloaded stays in that folder for the next.
"""

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from pydantic import Field

from engineroom.checkpoint import demo
from engineroom.checkpoint.disk import disk_errors
from engineroom.checkpoint.files import INDEX, choose_small, choose_weights
from engineroom.checkpoint.hub import Hub, Listing, is_offline, offline
from engineroom.checkpoint.local import check_serving_files, check_small_files, record_folder
from engineroom.checkpoint.record import FILE, CheckpointRecord, record_checkpoint
from engineroom.checkpoint.source import DemoSource, HubSource, LocalSource, parse_source
from engineroom.checkpoint.transfer import download
from engineroom.documents import Document, sync_folder
from engineroom.errors import CheckpointError, DocumentError, HubError
from engineroom.progress import Progress


@dataclass(frozen=True)
class Fetched:
    """A checkpoint that is on this machine."""

    folder: Path
    """Absolute. Read-only for everybody else: cache entries are shared."""

    record: CheckpointRecord
    """For a cache entry also in ``folder/checkpoint.json``; a local folder is left as it is."""

    hit: str | None
    """Why nothing was fetched, None where something was."""


class Resolved(Document):
    """What a revision meant when the Hub was last asked: the answer without a network."""

    name: str = Field(min_length=1)
    commit: str = Field(pattern=r"^[0-9a-f]{40}$")


def fetch(source: str, revision: str | None, *, cache: Path, progress: Progress, token: str | None = None) -> Fetched:
    """Bring the checkpoint ``source`` to this machine, or find it there.

    ``revision`` is the recipe's ``model.revision``; ``token`` overrides the one that the Hub's client finds.
    Raises InputError (of which CheckpointError) where the source or the checkpoint cannot be used, HubError where the
    Hub does not give it, StoreError where the disk is full.
    """
    parsed = parse_source(source, revision)
    cache = cache.expanduser().absolute()
    with disk_errors(cache):
        match parsed:
            case LocalSource(folder):
                record, hit = record_folder(folder, cache=cache, progress=progress)
                fetched = Fetched(folder, record, hit)
            case DemoSource():
                fetched = _fetch_demo(parsed, cache, progress)
            case HubSource():
                fetched = _fetch_hub(parsed, cache, progress, token)
    if fetched.hit:
        progress.say(fetched.hit)
    return fetched


def _fetch_demo(source: DemoSource, cache: Path, progress: Progress) -> Fetched:
    revision = demo.revision(source.name)
    entry = cache / "checkpoints" / f"demo--{source.name}" / revision

    def fill(staging: Path) -> CheckpointRecord:
        for left in staging.iterdir():  # a conversion is not resumed
            _remove(left)
        demo.write_checkpoint(source.name, staging, progress)
        shape = check_serving_files(staging)
        paths = sorted(path.name for path in staging.iterdir())
        return record_checkpoint(
            staging,
            source=str(source),
            revision=revision,
            architecture=shape.architecture,
            paths=paths,
            progress=progress,
        )

    if (found := _whole(entry)) is None:
        found, made_here = _assemble(entry, fill, str(source), progress)
        if made_here:
            return Fetched(entry, found, None)
    return Fetched(entry, found, f"{source} ({revision}) is in the cache: {entry}")


def _fetch_hub(source: HubSource, cache: Path, progress: Progress, token: str | None) -> Fetched:
    known = _known(cache, source)
    if source.is_pinned or is_offline():
        # A commit never changes, so nobody needs to be asked; nobody may be asked when offline.
        commit = source.revision if source.is_pinned else known.commit if known else ""
        for name in (source.name, known.name if known else source.name):
            entry = _entry(cache, name, commit)
            if commit and (record := _whole(entry)):
                when = (
                    "" if source.is_pinned else f"; offline: {source.revision} was {commit} when the Hub was last asked"
                )
                return Fetched(entry, record, f"{source} is in the cache: {entry}{when}")
        if is_offline():
            raise offline(source)
    hub = Hub.from_environment(token)
    try:
        listing = hub.resolve(source)
    except HubError as error:
        if known is None or _whole(_entry(cache, known.name, known.commit)) is None:
            raise
        fix = f"{error.fix}; HF_HUB_OFFLINE=1 uses the cached commit {known.commit[:12]}"
        raise HubError(error.found, where=error.where, fix=fix) from None
    if listing.name != source.name:
        progress.say(f"{source.name} is called {listing.name} on the Hub now; going on with that name")
    entry = _entry(cache, listing.name, listing.commit)
    found = _whole(entry)
    made_here = False
    if found is None:
        small = choose_small(listing.entries, where=str(source))
        found, made_here = _assemble(
            entry, lambda staging: _fill_from_hub(hub, listing, small, staging, progress), str(source), progress
        )
    Resolved(name=listing.name, commit=listing.commit).write(_reference(cache, source))
    return Fetched(entry, found, None if made_here else f"{source} ({listing.commit}) is in the cache: {entry}")


def _fill_from_hub(hub: Hub, listing: Listing, small: list[str], staging: Path, progress: Progress) -> CheckpointRecord:
    if INDEX not in listing.entries:  # a model without usable weights is refused before anything is fetched
        choose_weights(listing.entries, None, where=str(listing.source))
    download(hub, listing, small, staging, title="download configuration", progress=progress)
    check_small_files(staging)
    index = staging / INDEX if INDEX in small else None
    weights = choose_weights(listing.entries, index, where=str(listing.source))
    download(hub, listing, weights, staging, title=f"download {listing.name}", progress=progress)
    paths = sorted(small + weights)
    for stray in staging.iterdir():
        if stray.name not in paths:
            _remove(stray)
    shape = check_serving_files(staging)
    record = record_checkpoint(
        staging,
        source=f"hf://{listing.name}",
        revision=listing.commit,
        architecture=shape.architecture,
        paths=paths,
        progress=progress,
    )
    for file in record.files:
        expected = hub.describe(listing, file.path).sha256
        if expected not in (None, file.sha256):  # a disk that does not give back what was written
            (staging / file.path).unlink()
            raise HubError(
                "it reads back differently from what arrived", where=str(staging / file.path), fix="check the disk"
            )
    return record


def _assemble(
    entry: Path, fill: Callable[[Path], CheckpointRecord], source: str, progress: Progress
) -> tuple[CheckpointRecord, bool]:
    """Let ``fill`` make the cache entry, unless another process has done it meanwhile (then False)."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    staging = entry.with_name(f".{entry.name}.staging")
    with _locked(entry.with_name(f".{entry.name}.lock"), source, progress):
        if (record := _whole(entry)) is not None:
            return record, False
        if entry.exists():
            # Somebody has changed the entry. Its files are as good as those of a run that was cut off: checked again.
            progress.say(f"{entry} is not whole any more; it is repaired")
            shutil.rmtree(staging, ignore_errors=True)
            entry.rename(staging)
        staging.mkdir(exist_ok=True)
        (staging / FILE).unlink(missing_ok=True)
        try:
            record = fill(staging)
        except CheckpointError as error:
            # It will not become usable by trying again, so nothing of it stays; and it is the source that is wrong.
            shutil.rmtree(staging, ignore_errors=True)
            where = error.where.replace(f"{staging}/", f"{source}: ").replace(str(staging), source)
            raise CheckpointError(error.found, where=where, fix=error.fix) from None
        record.write(staging / FILE)
        sync_folder(staging)
        staging.rename(entry)
        sync_folder(entry.parent)
    return record, True


def _whole(entry: Path) -> CheckpointRecord | None:
    """The record of a cache entry whose files are all there, in the sizes that it says."""
    try:
        record = CheckpointRecord.read(entry / FILE, made_by="engineroom fetch")
        whole = all((entry / file.path).stat().st_size == file.size for file in record.files)
    except (DocumentError, OSError):
        return None
    return record if whole else None


@contextmanager
def _locked(path: Path, source: str, progress: Progress) -> Iterator[None]:
    """One process at a time. The kernel drops the lock with the process, also after kill -9."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say(f"another process is fetching {source}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _entry(cache: Path, name: str, commit: str) -> Path:
    return cache / "checkpoints" / name.replace("/", "--") / commit


def _reference(cache: Path, source: HubSource) -> Path:
    folder = source.name.replace("/", "--")
    return cache / "checkpoints" / folder / "revisions" / f"{quote(source.revision, safe='')}.json"


def _known(cache: Path, source: HubSource) -> Resolved | None:
    try:
        return Resolved.read(_reference(cache, source), made_by="engineroom fetch")
    except DocumentError:
        return None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
