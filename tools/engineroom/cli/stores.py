"""``inspect``, ``diff``, ``copy``, ``untag``, ``gc``: what is in stores, and moving and removing it."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from engineroom.artifacts.reference import Reference
from engineroom.cli.console import ConsoleProgress, emit, gib
from engineroom.cli.options import STORE_SETTINGS, Duration, cache_folder, output_option, plain_http_option
from engineroom.errors import ArtifactCorruptError, ArtifactNotFoundError, CheckFailedError

if TYPE_CHECKING:
    from engineroom.artifacts.store import Store
    from engineroom.repository.record import BuildRecord


@click.command("inspect", epilog=STORE_SETTINGS)
@click.argument("reference")
@click.option("--files", is_flag=True, help="List every file with its size and digest.")
@plain_http_option
@output_option
def inspect_command(reference: str, files: bool, plain_http: bool, output: str) -> None:
    """Show everything that is known of the artifact REFERENCE without bringing it here.

    Engine key and its inputs, what the machine must have, sizes, tags, provenance, and whether every blob is there
    in its size; exit code 3 where one is not. Of what others pushed, the files. `engineroom verify` reads every byte.

    \b
    Example:
      engineroom inspect s3://models/llama-3.1-8b:v1 --files
    """  # noqa: D301
    from engineroom.artifacts.inspection import inspect
    from engineroom.artifacts.stores import open_store

    parsed = Reference.parse(reference)
    seen = inspect(parsed, store=open_store(parsed, plain_http=plain_http))
    tree, record = seen.tree, seen.tree.record
    listed = [file.record for file in tree.files]
    size = tree.size + sum(folder.size for folder in tree.packed)
    folders = f" and {len(tree.packed)} packed folder(s)" if tree.packed else ""
    emit(
        output,
        {
            "reference": str(tree.reference),
            "digest": tree.digest,
            "tags": list(seen.tags),
            "bytes": size,
            "stored_bytes": seen.stored_bytes,
            "blobs": seen.blobs,
            "missing": list(seen.missing),
            "files": [
                {"path": file.record.path, "bytes": file.record.size, "sha256": file.record.sha256}
                | {"blobs": [part.hex for part in file.parts]}
                for file in tree.files
            ],
            "packed": [{"path": one.title, "bytes": one.size, "blob": one.hex} for one in tree.packed],
            "record": record.model_dump(mode="json", by_alias=True, exclude={"files"}) if record else None,
        },
        rows=[
            ("reference", str(tree.reference)),
            ("tags", ", ".join(seen.tags) or "none: only the digest names it"),
            ("size", f"{gib(size)} in {len(listed)} files{folders}; {gib(seen.stored_bytes)} in {seen.blobs} blobs"),
            *(_described(record) if record else [("pushed", "by others: it has no build record")]),
            *(("packed folder", f"{one.title}  {gib(one.size)}") for one in tree.packed),
            *((("file", f"{one.path}  {gib(one.size)}  {one.sha256}") for one in listed) if files else ()),
            *(("problem", f"{path}: its blob is missing, or has another size") for path in seen.missing),
        ],
    )
    if seen.missing:
        raise ArtifactCorruptError(
            f"the store lacks blobs of {len(seen.missing)} file(s)", where=str(parsed), fix="publish it again"
        )


def _described(record: "BuildRecord") -> list[tuple[str, str]]:
    requires = {name: value for name, value in record.requires.model_dump(mode="json").items() if value}
    return [
        ("model", f"{record.name}, clients call {record.model.client_model}"),
        ("engine key", record.key),
        ("runtime", f"{record.inputs.runtime} {record.inputs.precision}, KV cache {record.inputs.kv}"),
        ("parallelism", f"tensor {record.inputs.tp} × pipeline {record.inputs.pp}"),
        ("limits", f"prompt {record.model.max_input_len:,}, sequence {record.model.max_seq_len:,} tokens"),
        ("requires", _words(requires) or "nothing of the machine"),
        ("provenance", _words(record.provenance) or "not recorded"),
    ]


def _words(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


@click.command("diff", epilog=STORE_SETTINGS)
@click.argument("before")
@click.argument("after")
@click.option("--exit-code", is_flag=True, help="Exit with 3 where they differ.")
@plain_http_option
@output_option
def diff_command(before: str, after: str, exit_code: bool, plain_http: bool, output: str) -> None:
    """Show what changed from BEFORE to AFTER, and what would travel to where BEFORE is already.

    Each is a reference, or the folder of an assembled or pulled tree.

    \b
    Example:
      engineroom diff s3://models/llama-3.1-8b:v1 s3://models/llama-3.1-8b:v2
      engineroom diff s3://models/llama-3.1-8b:v2 .engineroom/repository
    """  # noqa: D301
    from engineroom.artifacts.difference import compare, read_side

    found = compare(read_side(before, plain_http=plain_http), read_side(after, plain_http=plain_http))
    emit(
        output,
        {
            "before": {"place": found.before.place, "digest": found.before.digest},
            "after": {"place": found.after.place, "digest": found.after.digest},
            "same": found.same,
            "fields": [{"key": one.key, "before": one.before, "after": one.after} for one in found.fields],
            "files": [
                {"path": one.path, "kind": one.kind, "before": one.before, "after": one.after, "chunks": one.chunks}
                for one in found.files
            ],
            "transfer_blobs": found.transfer_blobs,
            "transfer_bytes": found.transfer_bytes,
        },
        rows=[
            ("before", f"{found.before.place} ({found.before.digest})"),
            ("after", f"{found.after.place} ({found.after.digest})"),
            *((one.key, f"{_short(one.before)} → {_short(one.after)}") for one in found.fields),
            *((one.kind, f"{one.path}  {_sizes(one.before, one.after)}") for one in found.files),
            ("would travel", f"{gib(found.transfer_bytes)} in {found.transfer_blobs} blobs"),
            ("verdict", "the same artifact" if found.same else "they differ"),
        ],
    )
    if exit_code and not found.same:
        raise CheckFailedError("they differ", where=f"{before} and {after}")


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _sizes(before: int | None, after: int | None) -> str:
    return " → ".join(gib(size) for size in (before, after) if size is not None)


@click.command("copy", epilog=STORE_SETTINGS)
@click.argument("source")
@click.argument("target")
@click.option("--dry-run", is_flag=True, help="Say what would be copied, and copy nothing.")
@click.option("--unsafe-tags", is_flag=True, help="Accept a bucket that ignores conditional writes.")
@plain_http_option
@output_option
def copy_command(source: str, target: str, dry_run: bool, unsafe_tags: bool, plain_http: bool, output: str) -> None:
    """Copy the artifact or backup SOURCE, also one that others pushed, to TARGET, with the same digest.

    Nothing is written to a disk here; every byte is hashed on its way. What TARGET's store has is not sent again, so a
    copy that was cut off goes on where it was. TARGET without a tag gets SOURCE's.

    \b
    Example:
      engineroom copy s3://models/llama-3.1-8b:v1 oci://registry.example/models/llama-3.1-8b:v1
      engineroom copy s3://models/llama-3.1-8b:v1 s3://models/llama-3.1-8b:stable-2026-11 --dry-run
    """  # noqa: D301
    from engineroom.artifacts.copying import copy
    from engineroom.artifacts.stores import open_store

    here, there = Reference.parse(source), Reference.parse(target)
    done = copy(
        here,
        there,
        source_store=open_store(here, plain_http=plain_http),
        store=open_store(there, plain_http=plain_http),
        progress=ConsoleProgress(),
        dry_run=dry_run,
        unsafe_tags=unsafe_tags,
    )
    emit(
        output,
        {
            "reference": str(done.reference),
            "digest": done.reference.digest,
            "tags": list(done.tags),
            "dry_run": dry_run,
            "copied_bytes": done.copied_bytes,
            "copied_blobs": done.copied_blobs,
            "skipped_bytes": done.skipped_bytes,
        },
        rows=[
            ("reference", str(done.reference)),
            ("would copy" if dry_run else "copied", f"{gib(done.copied_bytes)} in {done.copied_blobs} blobs"),
            ("there already", gib(done.skipped_bytes)),
            ("tags", ", ".join(done.tags)),
        ],
    )


@click.command("untag", epilog=STORE_SETTINGS)
@click.argument("references", nargs=-1, required=True, metavar="REFERENCE...")
@click.option("--all-names", is_flag=True, help="Also the other tags of the same artifact, such as key-….")
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@output_option
def untag_command(references: tuple[str, ...], all_names: bool, dry_run: bool, output: str) -> None:
    """Remove the tags of REFERENCE...; what they named stays until `engineroom gc`, and a day longer.

    Releases that pin the digest go on working until then. An artifact that another tag names is kept; `publish` sets
    key-<engine key> too.

    \b
    Example:
      engineroom untag s3://models/llama-3.1-8b:v1
    """  # noqa: D301
    from engineroom.artifacts.garbage import untag
    from engineroom.artifacts.stores import open_store
    from engineroom.errors import BadReferenceError

    wanted: dict[Reference, None] = {}
    others: dict[Reference, None] = {}
    for one in map(Reference.parse, references):
        if not one.tag or one.digest:
            raise BadReferenceError("a tag is wanted, and no digest", where=str(one), fix="write NAME:TAG")
        if one.tag not in open_store(one).tags(one.name):
            raise ArtifactNotFoundError(
                "there is no such tag", where=str(one), fix=f"`engineroom list {one.root}` shows what is there"
            )
        wanted[one] = None
        for tag in _beside(open_store(one), one.name, one.tag):
            (wanted if all_names else others)[replace(one, tag=tag)] = None
    for one in {} if dry_run else wanted:
        untag(open_store(one), one.name, one.tag or "")
    left = [str(one) for one in others if one not in wanted]
    emit(
        output,
        {"dry_run": dry_run, "removed": [str(one) for one in wanted], "still_named_by": left},
        rows=[
            *(("would remove" if dry_run else "removed", str(one)) for one in wanted),
            *(("still named by", text) for text in left),
        ],
    )


def _beside(store: "Store", name: str, tag: str) -> list[str]:
    """The other tags of the same artifact; none where the tag is broken, which is what removing it is good for."""
    from engineroom.artifacts.pointers import tags_naming

    try:
        state = store.read_tag(name, tag)
    except ArtifactCorruptError:
        return []
    return [other for other in tags_naming(store, name, state.pointer) if other != tag] if state else []


@click.command("gc", epilog=STORE_SETTINGS)
@click.argument("store")
@click.option(
    "--grace",
    type=Duration(),
    default="24h",
    show_default=True,
    metavar="TIME",
    help="Keep what is younger, or was named by a tag within this time: 90m, 24h, 7d.",
)
@click.option(
    "--cache/--no-cache", "use_cache", default=True, help="Keep manifests in the cache folder for the next run."
)
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@output_option
def gc_command(store: str, grace: float, use_cache: bool, dry_run: bool, output: str) -> None:
    """Remove the blobs of STORE, a store's root, that no tag names.

    Safe beside publications, copies and backups at any grace: what they are about to name is kept. Can be killed and
    run again. Registries collect their own garbage, and are refused. Manifests never change, so those that were read
    before come from $ENGINEROOM_CACHE/manifests, checked; tags are always the store's.

    \b
    Example:
      engineroom gc s3://models --dry-run
      engineroom gc file:///srv/models --grace 7d
    """  # noqa: D301
    from engineroom.artifacts.garbage import collect
    from engineroom.artifacts.manifest_cache import ManifestCache
    from engineroom.artifacts.stores import open_store

    cache = ManifestCache(cache_folder() / "manifests") if use_cache else None
    done = collect(open_store(store), grace_seconds=grace, cache=cache, progress=ConsoleProgress(), dry_run=dry_run)
    emit(
        output,
        {
            "store": store,
            "dry_run": dry_run,
            "tags": done.tags,
            "kept_blobs": done.kept_blobs,
            "kept_bytes": done.kept_bytes,
            "young_blobs": done.young_blobs,
            "removed_blobs": done.removed_blobs,
            "removed_bytes": done.removed_bytes,
            "removed": list(done.removed),
        },
        rows=[
            ("tags", str(done.tags)),
            ("kept", f"{gib(done.kept_bytes)} in {done.kept_blobs} blobs, {done.young_blobs} of them for their age"),
            ("would remove" if dry_run else "removed", f"{gib(done.removed_bytes)} in {done.removed_blobs} blobs"),
        ],
    )
