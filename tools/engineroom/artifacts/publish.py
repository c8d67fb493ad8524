"""Publishing: blobs first, then the manifest, the tag last. A reader sees all of an artifact or nothing of it."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from engineroom.artifacts.holds import holding
from engineroom.artifacts.manifest import (
    MAX_BYTES,
    MAX_RECORD_BYTES,
    Part,
    StoredFile,
    check_record,
    make_manifest,
    part_spans,
    unique_parts,
)
from engineroom.artifacts.parallel import SMALL_BYTES, SMALL_WORKERS, Stop, again, run_all, run_beside
from engineroom.artifacts.reference import Reference, is_movable
from engineroom.artifacts.source import cut_files, read_part, read_short
from engineroom.artifacts.store import Pointer, Store, TagState
from engineroom.artifacts.tagging import probe, set_tag, taken
from engineroom.documents import list_files
from engineroom.errors import ArtifactCorruptError, BadReferenceError, InputError
from engineroom.progress import QUIET, Progress, Task
from engineroom.repository.record import FILE as RECORD_FILE
from engineroom.repository.record import BuildRecord

#: Short blobs, spread over all, whose answers decide whether the others are worth asking for.
_SAMPLE = 16


@dataclass(frozen=True)
class Published:
    """What a publication did."""

    reference: Reference
    """With its digest: what releases pin."""
    digest: str
    """Of the manifest, ``sha256:…``."""
    key_tag: str
    """The movable tag that names this artifact too, ``key-<engine key>``."""
    files: int
    uploaded_blobs: int
    uploaded_bytes: int
    """Sent now; in a dry run, what would be sent."""
    skipped_bytes: int
    """Already in the store."""
    read_twice_bytes: int
    """Of files that are too long for one blob: the build record has no digest of their parts, so these were read once
    to hash them and once to send them."""
    already_published: bool
    """Nothing was sent and no tag was new."""


def publish(
    tree: Path,
    reference: Reference,
    *,
    store: Store,
    progress: Progress = QUIET,
    dry_run: bool = False,
    unsafe_tags: bool = False,
) -> Published:
    """Store the assembled tree and let ``reference``'s tag, and ``key-<engine key>``, name it.

    Can be repeated: a blob that is there is not sent again. Without a tag in ``reference`` only the key tag is set.
    ``dry_run`` writes nothing. ``unsafe_tags`` accepts a bucket that ignores conditional writes, where two
    publishers at the same instant can both believe that they made a tag.

    Raises:
        InputError: no build record in the tree, files that it does not list, a tag that cannot be used.
        ArtifactCorruptError: a file is not what the build record says; nothing names what was sent so far.
        ArtifactExistsError: the immutable tag names another artifact.
        StoreError: the store failed, or ignores conditional writes.
    """
    record, data = read_record(tree)
    key_tag = f"key-{record.key}"
    _check_tag(reference, key_tag)
    _check_tree(tree, record)
    total = sum(file.size for file in record.files)
    immutable = reference.tag if reference.tag and not is_movable(reference.tag) else None
    long = sum(file.size for file in record.files if len(part_spans(file.size)) > 1)

    def look() -> tuple[TagState | None, bool]:
        found = store.read_tag(reference.name, immutable) if immutable else None
        return found, dry_run or probe(store, reference, immutable, unsafe=unsafe_tags, progress=progress)

    # Asked before gigabytes are read or travel: is the tag free, and can it be set safely? The manifest, which takes
    # as long where there are thousands of files, is made meanwhile.
    with ThreadPoolExecutor(1) as beside:
        looked = beside.submit(look)
        if long:
            looked.result()
        with (progress if long else QUIET).task("hash parts", long) as task:
            files = cut_files(tree, record.files, task)
        manifest = make_manifest(data, files)
        manifest_data = manifest.to_json()
        there, conditional = looked.result()
    if len(manifest_data) > MAX_BYTES:
        raise InputError(
            f"{len(files)} files make a manifest of {len(manifest_data)} bytes; registries take {MAX_BYTES}",
            where=str(tree),
            fix="pack small files together",
        )
    pointer = Pointer("sha256:" + hashlib.sha256(manifest_data).hexdigest(), len(manifest_data))
    if there and there.pointer != pointer:
        raise taken(reference, there.pointer)

    manifest_blob = pointer.digest.removeprefix("sha256:")
    needed = [*unique_parts(files), manifest.config.hex, manifest_blob]
    moved = False
    with nullcontext() if dry_run else holding(store, needed, progress=progress) as hold:
        config = manifest.config.hex
        with progress.task("check" if dry_run else "publish", total) as task:
            sent = _send_blobs(
                tree, files, (config, data), store, progress, task, dry_run=dry_run, conditional=conditional
            )
        # In this order: a manifest never names what is not there.
        if store.read_manifest(manifest_blob) != manifest_data:
            sent.append(len(manifest_data))
            if not dry_run:
                again(lambda: store.write_manifest(manifest_blob, manifest_data), Stop())
        if hold:
            hold.confirm()
        if not dry_run:
            # The immutable one first: where it is taken, the other does not move.
            for tag in dict.fromkeys([immutable or key_tag, key_tag, reference.tag or key_tag]):
                moved |= again(partial(set_tag, store, reference, tag, pointer, conditional=conditional), Stop())
    unique = sum(part.size for _, part in unique_parts(files).values()) + len(data) + len(manifest_data)
    done = Published(
        reference=reference.pinned(pointer.digest),
        digest=pointer.digest,
        key_tag=key_tag,
        files=len(files),
        uploaded_blobs=len(sent),
        uploaded_bytes=sum(sent),
        skipped_bytes=unique - sum(sent),
        read_twice_bytes=long,
        already_published=not sent and not moved and not dry_run,
    )
    if done.already_published:
        progress.say(f"already published: {done.reference}")
    return done


def read_record(tree: Path) -> tuple[BuildRecord, bytes]:
    """The build record of a tree, checked, and its bytes, which are the artifact's config blob.

    Raises :class:`DocumentError` where it is missing or malformed, :class:`ArtifactCorruptError` where it cannot
    describe a tree.
    """
    path = tree / RECORD_FILE
    record, data = BuildRecord.read_with_bytes(path, made_by="engineroom assemble")
    if len(data) > MAX_RECORD_BYTES:
        raise ArtifactCorruptError(f"{len(data)} bytes are too long for a build record", where=str(path))
    check_record(record, where=str(path))
    return record, data


def _check_tag(reference: Reference, key_tag: str) -> None:
    if reference.digest:
        raise BadReferenceError(
            "a digest is what publishing finds out", where=str(reference), fix="leave @sha256:… away"
        )
    if reference.tag and reference.tag.startswith("key-") and reference.tag != key_tag:
        raise BadReferenceError(
            "key-… tags are set by the engine key", where=str(reference), fix=f"use :{key_tag} or a tag of your own"
        )


def _check_tree(tree: Path, record: BuildRecord) -> None:
    """Every listed file is there and no other is: a file that is forgotten would be missed only when served."""
    listed = {file.path for file in record.files} | {RECORD_FILE}
    # Python writes its own caches beside the models when the assembled tree is served in place.
    present = {path for path in list_files(tree) if "__pycache__" not in path.split("/")}
    again = "run `engineroom assemble` again"
    if missing := sorted(listed - present):
        raise ArtifactCorruptError("the build record lists it, but it is not there", where=missing[0], fix=again)
    if extra := sorted(present - listed):
        raise InputError("the build record does not list it", where=str(tree / extra[0]), fix=again)


def _send_blobs(
    tree: Path,
    files: list[StoredFile],
    config: tuple[str, bytes],
    store: Store,
    progress: Progress,
    task: Task,
    *,
    dry_run: bool,
    conditional: bool,
) -> list[int]:
    """Send what the store lacks of the files and of the build record; the sizes of the blobs that were sent."""
    # Long ones first, so that no thread is left alone with the longest, and short ones beside them: none waits for
    # others to end.
    blobs = sorted(unique_parts(files).values(), key=lambda item: -item[1].size)
    long = [item for item in blobs if item[1].size > SMALL_BYTES]
    # In order of their names, which SeaweedFS takes with 10 % less processor time.
    short = sorted(blobs[len(long) :], key=lambda item: item[1].hex)
    # The same ones whenever it is tried again, and sent first: so a publication that was cut off is noticed.
    step = max(1, len(short) // _SAMPLE)
    sample = short[::step][:_SAMPLE]
    others = [item for number, item in enumerate(short) if number % step or number >= step * _SAMPLE]
    asked: list[bool] = []  # of each short blob that was asked for: was it there?

    def send(item: tuple[StoredFile, Part], stop: Stop) -> int | None:
        file, part = item
        stop.check()
        found = store.blob_size(part.hex)
        if found == part.size:
            task.advance(part.size)
            return None
        if found is not None:
            progress.say(f"sha256:{part.hex} has {found} bytes in the store instead of {part.size}: sent again")
        if dry_run:
            task.advance(part.size)
        else:
            again(lambda: store.write_blob(part.hex, part.size, read_part(tree, file, part, task, stop)), stop)
        return part.size

    def send_short(item: tuple[StoredFile, Part], stop: Stop) -> int | None:
        # Counted before it is looked whether one was there: others append to it meanwhile.
        unsure = len(asked) < len(sample)
        if dry_run or True in asked or (unsure and not conditional):
            sent = send(item, stop)
            asked.append(sent is None)
            return sent
        file, part = item
        data = read_short(tree, file, part, stop)
        if unsure:
            new = again(lambda: store.add_blob(part.hex, data), stop)
            asked.append(not new)
        else:
            # None of the sample was there, so the others are not asked for: writing a blob again changes nothing.
            new = True
            again(lambda: store.write_blob(part.hex, part.size, [memoryview(data)]), stop)
        task.advance(part.size)
        return part.size if new else None

    def send_config(stop: Stop) -> list[int | None]:
        blob, data = config
        if store.blob_size(blob) == len(data):
            return [None]
        if not dry_run:
            again(lambda: store.write_blob(blob, len(data), [memoryview(data)]), stop)
        return [len(data)]

    sent = run_beside(
        lambda stop: run_all(send, long, stop=stop),
        send_config,
        lambda stop: run_all(send_short, [*sample, *others], workers=SMALL_WORKERS, stop=stop),
    )
    return [size for sizes in sent for size in sizes if size is not None]
