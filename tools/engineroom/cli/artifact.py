"""``publish``, ``pull``, ``verify``, ``list``: artifacts and their stores."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engineroom.artifacts.reference import Reference
from engineroom.cli.console import ConsoleProgress, emit, gib
from engineroom.cli.options import STORE_SETTINGS, Finite, Size, job, output_option, plain_http_option, recipe_options
from engineroom.deploy.work import Work
from engineroom.errors import InputError

if TYPE_CHECKING:
    from engineroom.artifacts.listing import Listed


@click.command("publish", epilog=STORE_SETTINGS)
@recipe_options
@click.argument("tree", required=False, type=click.Path(path_type=Path))
@click.option(
    "--to", "to", metavar="REFERENCE", help="SCHEME://LOCATION/NAME[:TAG]; default: publish.to of the recipe."
)
@click.option("--tag", "tag", metavar="TAG", help="Another tag than the one of --to; `key-…` is set in any case.")
@click.option("--dry-run", is_flag=True, help="Say what would be sent, and send nothing.")
@click.option("--unsafe-tags", is_flag=True, help="Accept a bucket that ignores conditional writes.")
@plain_http_option
@output_option
def publish_command(
    recipe_path: Path | None,
    work: Path | None,
    settings: tuple[str, ...],
    tree: Path | None,
    to: str | None,
    tag: str | None,
    dry_run: bool,
    unsafe_tags: bool,
    plain_http: bool,
    output: str,
    **flags: Any,
) -> None:
    """Store the assembled model repository TREE under an immutable tag; prints the reference that releases pin.

    Blobs that the store has are not sent again, so that a publication that was cut off goes on where it was.
    TREE defaults to the work folder's; then the recipe is read for publish.to.

    \b
    Example:
      engineroom publish --to s3://models/llama-3.1-8b:v1
      engineroom publish ./repository --to file:///srv/models/llama-3.1-8b:v1 --dry-run
      engineroom publish --to oci://ghcr.io/acme/llama-3.1-8b --tag "$(git describe)"
    """  # noqa: D301
    from engineroom.artifacts.publish import publish
    from engineroom.artifacts.stores import open_store

    if tree is None or to is None:
        made = job(recipe_path, work, settings, flags)
        tree = tree or made.work.tree
        to = to or (made.recipe.publish.to if made.recipe.publish else None)
    if to is None:
        raise InputError("no place to publish to", where="publish", fix="give --to SCHEME://LOCATION/NAME:TAG")
    reference = Reference.parse(to)
    if tag is not None:
        reference = Reference.parse(f"{reference.root}/{reference.name}:{tag}")
    done = publish(
        tree,
        reference,
        store=open_store(reference, plain_http=plain_http),
        progress=ConsoleProgress(),
        dry_run=dry_run,
        unsafe_tags=unsafe_tags,
    )
    emit(
        output,
        {
            "reference": str(done.reference),
            "digest": done.digest,
            "key_tag": done.key_tag,
            "dry_run": dry_run,
            "uploaded_bytes": done.uploaded_bytes,
            "uploaded_blobs": done.uploaded_blobs,
            "skipped_bytes": done.skipped_bytes,
            "read_twice_bytes": done.read_twice_bytes,
        },
        rows=[
            ("reference", str(done.reference)),
            ("would send" if dry_run else "sent", f"{gib(done.uploaded_bytes)} in {done.uploaded_blobs} blobs"),
            ("there already", gib(done.skipped_bytes)),
            *([("read twice", f"{gib(done.read_twice_bytes)}, to hash parts")] if done.read_twice_bytes else []),
            ("also tagged", done.key_tag),
        ],
    )


@click.command("pull", epilog=STORE_SETTINGS)
@click.argument("reference")
@click.option("--to", "to", type=click.Path(path_type=Path), help="Folder that is to hold the tree.")
@click.option(
    "--cache", "cache", type=click.Path(path_type=Path), metavar="DIR", help="Keep the tree in DIR/trees/<digest>."
)
@click.option(
    "--cache-size", type=Size(), metavar="SIZE", help="Remove the longest unused trees beyond (200GB, 64GiB)."
)
@click.option("--wait", "wait", type=Finite(min=0), default=0, metavar="SECONDS", help="For a tag to appear.")
@plain_http_option
@output_option
def pull_command(
    reference: str,
    to: Path | None,
    cache: Path | None,
    cache_size: int | None,
    wait: float,
    plain_http: bool,
    output: str,
) -> None:
    """Make a folder hold the artifact REFERENCE; it changes only when every byte is verified.

    What the folder, or the cache, has already is verified and kept; the rest is downloaded. Processes and pods of a
    node share a cache: each file lies in it once, and `exec 9<DIR/leases/<digest>; flock --shared 9` before a server
    keeps its tree there. Exit code 3 means that the artifact is corrupt, 4 that the store cannot be reached.

    \b
    Example:
      engineroom pull s3://models/llama-3.1-8b@sha256:… --to /srv/models/llama
      engineroom pull oci://ghcr.io/acme/llama:v1 --cache /var/cache/engineroom --cache-size 500GB
    """  # noqa: D301
    from engineroom.artifacts.cache import Cache
    from engineroom.artifacts.pull import pull
    from engineroom.artifacts.stores import open_store

    if (to is None) == (cache is None):
        raise InputError("one of --to and --cache is wanted", where="pull", fix="with --cache the tree lies in it")
    if cache_size is not None and cache is None:
        raise InputError("--cache-size is for --cache", where="pull", fix="give --cache DIR too")
    parsed = Reference.parse(reference)
    done = pull(
        parsed,
        to,
        store=open_store(parsed, plain_http=plain_http),
        cache=Cache(cache, limit=cache_size) if cache else None,
        progress=ConsoleProgress(),
        wait_seconds=wait,
    )
    emit(
        output,
        {
            "reference": str(done.reference),
            "digest": done.digest,
            "path": str(done.path),
            "bytes": done.bytes,
            "downloaded_bytes": done.downloaded_bytes,
            "already_there": done.already_there,
        },
        rows=[
            ("reference", str(done.reference)),
            ("folder", str(done.path)),
            ("size", f"{gib(done.bytes)}, of which {gib(done.downloaded_bytes)} came now"),
        ],
    )


@click.command("verify", epilog=STORE_SETTINGS)
@click.argument("place")
@click.option("--digest", metavar="sha256:HEX", help="The artifact that a folder must be.")
@plain_http_option
@output_option
def verify_command(place: str, digest: str | None, plain_http: bool, output: str) -> None:
    """Hash every byte of PLACE and compare it with what was published. Exit 3: something differs.

    PLACE is a folder with a pulled or assembled tree, a reference (also of a backup), a store's root or a name in it
    (every tag; shared blobs are read once), or a bundle.

    \b
    Example:
      engineroom verify /srv/models/llama
      engineroom verify s3://models/llama-3.1-8b:v1
      engineroom verify s3://models
      engineroom verify llama.tar
    """  # noqa: D301
    from engineroom.artifacts.scrub import Scrubbed, scrub_bundle, scrub_store
    from engineroom.artifacts.verify import verify_tree

    progress = ConsoleProgress()
    if "://" in place:
        found = scrub_store(place, plain_http=plain_http, progress=progress)
    elif Path(place).is_file() or (Path(place) / "oci-layout").is_file():
        found = scrub_bundle(Path(place), progress=progress)
    else:
        tree = verify_tree(Path(place), digest=digest, progress=progress)
        found, digest = Scrubbed(tree.place, 0, len(tree.record.files), tree.bytes, tree.problems), None
    if digest:
        raise InputError("--digest is for folders", where=place, fix="write NAME@sha256:HEX")
    emit(
        output,
        {
            "place": found.place,
            "tags": found.tags,
            "files": found.files,
            "bytes": found.bytes,
            "problems": [{"where": problem.where, "found": problem.found} for problem in found.problems],
        },
        rows=[
            ("place", found.place),
            *([("tags", str(found.tags))] if found.tags > 1 else []),
            ("files", f"{found.files}, {gib(found.bytes)}"),
            *(("problem", str(problem)) for problem in found.problems),
            ("verdict", f"{len(found.problems)} problem(s)" if found.problems else "every byte is right"),
        ],
    )
    found.check()


@click.command("list", epilog=STORE_SETTINGS)
@click.argument("place", required=False)
@click.option("--details/--no-details", default=None, help="Open every tag, or none; default: up to 100 tags.")
@plain_http_option
@output_option
def list_command(place: str | None, details: bool | None, plain_http: bool, output: str) -> None:
    """List the tags below PLACE, a store's root or one name in it; default: the work folder's own store.

    \b
    Example:
      engineroom list s3://models
    """  # noqa: D301
    from engineroom.artifacts.listing import list_artifacts
    from engineroom.artifacts.store import NO_TIME
    from engineroom.deploy.work import WORK

    place = place or f"file://{Work(Path(WORK)).store.absolute()}"
    listed = list_artifacts(place, details=details, plain_http=plain_http, progress=ConsoleProgress())
    emit(
        output,
        [
            {
                "reference": str(entry.reference),
                "movable": entry.movable,
                "published": entry.published.isoformat() if entry.published != NO_TIME else None,
                "bytes": entry.bytes,
                "model": entry.model,
                "runtime": entry.runtime,
                "precision": entry.precision,
                "key": entry.key,
                "backup": entry.backup,
                "plain": entry.plain,
                "problem": entry.problem,
            }
            for entry in listed
        ],
        rows=[line for entry in listed for line in _lines(entry)],
    )


def _lines(entry: "Listed") -> list[tuple[str, str]]:
    """A reference, which is for copying and fills a line, and what it is, where it was opened."""
    from engineroom.artifacts.store import NO_TIME

    first = (f"{entry.published:%Y-%m-%d %H:%M}" if entry.published != NO_TIME else "-", str(entry.reference))
    if entry.problem:
        return [first, ("", entry.problem)]
    if entry.bytes is None:
        return [first]
    if entry.backup:
        return [first, ("", entry.backup)]
    if entry.plain:
        return [first, ("", f"{gib(entry.bytes)}, {entry.plain}")]
    return [first, ("", f"{gib(entry.bytes)}, {entry.model}, {entry.runtime} {entry.precision}")]
