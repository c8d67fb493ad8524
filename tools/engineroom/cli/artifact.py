"""``publish``, ``pull``, ``verify``, ``list``: artifacts and their stores."""

from pathlib import Path
from typing import Any

import click

from engineroom.artifacts.reference import Reference
from engineroom.cli.console import ConsoleProgress, emit, gib
from engineroom.cli.options import Finite, job, output_option, recipe_options
from engineroom.deploy.work import Work
from engineroom.errors import InputError

_ENVIRONMENT = "Endpoint and credentials come from the standard variables (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, …)."


@click.command("publish", epilog=_ENVIRONMENT)
@recipe_options
@click.argument("tree", required=False, type=click.Path(path_type=Path))
@click.option(
    "--to", "to", metavar="REFERENCE", help="SCHEME://LOCATION/NAME[:TAG]; default: publish.to of the recipe."
)
@click.option("--dry-run", is_flag=True, help="Say what would be sent, and send nothing.")
@click.option("--unsafe-tags", is_flag=True, help="Accept a bucket that ignores conditional writes.")
@output_option
def publish_command(
    recipe_path: Path | None,
    work: Path | None,
    settings: tuple[str, ...],
    tree: Path | None,
    to: str | None,
    dry_run: bool,
    unsafe_tags: bool,
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
    done = publish(
        tree,
        reference,
        store=open_store(reference),
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
        },
        rows=[
            ("reference", str(done.reference)),
            ("would send" if dry_run else "sent", f"{gib(done.uploaded_bytes)} in {done.uploaded_blobs} blobs"),
            ("there already", gib(done.skipped_bytes)),
            ("also tagged", done.key_tag),
        ],
    )


@click.command("pull", epilog=_ENVIRONMENT)
@click.argument("reference")
@click.option("--to", "to", type=click.Path(path_type=Path), required=True, help="Folder that is to hold the tree.")
@click.option("--wait", "wait", type=Finite(min=0), default=0, metavar="SECONDS", help="For a tag to appear.")
@output_option
def pull_command(reference: str, to: Path, wait: float, output: str) -> None:
    """Make a folder hold the artifact REFERENCE; it changes only when every byte is verified.

    Exit code 3 means that the artifact is corrupt, 4 that the store cannot be reached.

    \b
    Example:
      engineroom pull s3://models/llama-3.1-8b@sha256:… --to /srv/models/llama
    """  # noqa: D301
    from engineroom.artifacts.pull import pull
    from engineroom.artifacts.stores import open_store

    parsed = Reference.parse(reference)
    done = pull(parsed, to, store=open_store(parsed), progress=ConsoleProgress(), wait_seconds=wait)
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


@click.command("verify", epilog=_ENVIRONMENT)
@click.argument("place")
@click.option("--digest", metavar="sha256:HEX", help="The artifact that a folder must be.")
@output_option
def verify_command(place: str, digest: str | None, output: str) -> None:
    """Hash every byte of PLACE, a folder or a reference, and compare it with the build record. Exit 3: it differs.

    \b
    Example:
      engineroom verify /srv/models/llama
      engineroom verify s3://models/llama-3.1-8b:v1
    """  # noqa: D301
    from engineroom.artifacts.stores import open_store
    from engineroom.artifacts.verify import verify_artifact, verify_tree

    if "://" in place:
        reference = Reference.parse(place)
        done = verify_artifact(reference, store=open_store(reference), progress=ConsoleProgress())
    else:
        done = verify_tree(Path(place), digest=digest, progress=ConsoleProgress())
    emit(
        output,
        {
            "place": done.place,
            "bytes": done.bytes,
            "files": len(done.record.files),
            "problems": [{"where": problem.where, "found": problem.found} for problem in done.problems],
        },
        rows=[
            ("place", done.place),
            ("files", f"{len(done.record.files)}, {gib(done.bytes)}"),
            *(("problem", str(problem)) for problem in done.problems),
            ("verdict", f"{len(done.problems)} problem(s)" if done.problems else "every byte is right"),
        ],
    )
    done.check()


@click.command("list", epilog=_ENVIRONMENT)
@click.argument("place", required=False)
@output_option
def list_command(place: str | None, output: str) -> None:
    """List the tags below PLACE, a store's root or one name in it; default: the work folder's own store.

    \b
    Example:
      engineroom list s3://models
    """  # noqa: D301
    from engineroom.artifacts.listing import list_artifacts
    from engineroom.deploy.work import WORK

    listed = list_artifacts(place or f"file://{Work(Path(WORK)).store.absolute()}", progress=ConsoleProgress())
    emit(
        output,
        [
            {
                "reference": str(entry.reference),
                "movable": entry.movable,
                "published": entry.published.isoformat(),
                "bytes": entry.bytes,
                "model": entry.model,
                "runtime": entry.runtime,
                "precision": entry.precision,
                "key": entry.key,
                "problem": entry.problem,
            }
            for entry in listed
        ],
        # Two lines each: a reference is for copying, and fills a line.
        rows=[
            line
            for entry in listed
            for line in (
                (f"{entry.published:%Y-%m-%d %H:%M}", str(entry.reference)),
                ("", entry.problem or f"{gib(entry.bytes or 0)}, {entry.model}, {entry.runtime} {entry.precision}"),
            )
        ],
    )
