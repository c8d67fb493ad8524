"""``export``, ``import``: artifacts in one file, for a place without a network."""

from pathlib import Path

import click

from engineroom.artifacts.reference import Reference
from engineroom.cli.console import ConsoleProgress, emit, gib
from engineroom.cli.options import STORE_SETTINGS, output_option, plain_http_option


@click.command("export", epilog=STORE_SETTINGS)
@click.argument("references", nargs=-1, required=True, metavar="REFERENCE...")
@click.option("--to", "to", type=click.Path(path_type=Path), required=True, help="File to write, or folder.")
@click.option("--layout", is_flag=True, help="Write an OCI image layout as a folder; what is in it stays.")
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
@plain_http_option
@output_option
def export_command(
    references: tuple[str, ...], to: Path, layout: bool, dry_run: bool, plain_http: bool, output: str
) -> None:
    """Write the artifacts REFERENCE... into one file that needs no network, and its checksum beside it.

    The file is a tar of an OCI image layout: `engineroom import`, `skopeo copy oci-archive:FILE:TAG …` and
    `oras copy --from-oci-layout` read it. Equal artifacts give equal files. An export that was cut off goes on after
    the last whole blob.

    \b
    Example:
      engineroom export s3://models/llama-3.1-8b:v1 --to llama.tar
      sha256sum --check llama.tar.sha256
    """  # noqa: D301
    from engineroom.artifacts.exporting import export

    parsed = [Reference.parse(text) for text in references]
    done = export(parsed, to, layout=layout, plain_http=plain_http, progress=ConsoleProgress(), dry_run=dry_run)
    emit(
        output,
        {
            "path": str(done.path),
            "dry_run": dry_run,
            "bytes": done.bytes,
            "blobs": done.blobs,
            "sha256": done.sha256,
            "artifacts": [
                {"name": entry.name, "tag": entry.tag, "digest": entry.pointer.digest} for entry in done.entries
            ],
        },
        rows=[
            ("would write" if dry_run else "wrote", f"{done.path}, {gib(done.bytes)}, {done.blobs} blobs"),
            *(("holds", f"{one.name}{f':{one.tag}' if one.tag else ''}@{one.pointer.digest}") for one in done.entries),
            *([("sha256", done.sha256)] if done.sha256 else []),
        ],
    )


@click.command("import", epilog=STORE_SETTINGS)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--to", "to", metavar="STORE", required=True, help="Root of the store: SCHEME://LOCATION.")
@click.option("--as", "called", metavar="NAME[:TAG]", help="Another name and tag, where the bundle has one artifact.")
@click.option("--sha256", metavar="HEX", help="What the file must hash to; default: the .sha256 file beside it.")
@click.option("--dry-run", is_flag=True, help="Check the bundle and say what would be stored, and store nothing.")
@click.option("--unsafe-tags", is_flag=True, help="Accept a bucket that ignores conditional writes.")
@plain_http_option
@output_option
def import_command(
    bundle: Path,
    to: str,
    called: str | None,
    sha256: str | None,
    dry_run: bool,
    unsafe_tags: bool,
    plain_http: bool,
    output: str,
) -> None:
    """Store the artifacts of BUNDLE, a file or folder that `engineroom export` or skopeo wrote.

    The file is compared with its checksum first, and every blob with its digest as it goes in; tags are set last.
    Nothing in a bundle decides where anything is written.

    \b
    Example:
      engineroom import llama.tar --to s3://models
    """  # noqa: D301
    from engineroom.artifacts.exporting import import_bundle

    name, _, tag = (called or "").partition(":")
    if called:
        Reference.parse(f"{to.rstrip('/')}/{called}")
    done = import_bundle(
        bundle,
        to,
        name=name or None,
        tag=tag or None,
        sha256=sha256,
        plain_http=plain_http,
        progress=ConsoleProgress(),
        dry_run=dry_run,
        unsafe_tags=unsafe_tags,
    )
    emit(
        output,
        [
            {
                "reference": str(one.reference),
                "digest": one.reference.digest,
                "tags": list(one.tags),
                "dry_run": dry_run,
                "stored_bytes": one.copied_bytes,
                "stored_blobs": one.copied_blobs,
                "skipped_bytes": one.skipped_bytes,
            }
            for one in done
        ],
        rows=[
            line
            for one in done
            for line in (
                ("reference", str(one.reference)),
                ("would store" if dry_run else "stored", f"{gib(one.copied_bytes)} in {one.copied_blobs} blobs"),
                ("there already", gib(one.skipped_bytes)),
            )
        ],
    )
