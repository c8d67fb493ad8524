"""``backup``, ``restore``: artifacts, folders and the values of a release, in another store."""

from pathlib import Path

import click

from engineroom.artifacts.reference import Reference
from engineroom.cli.console import ConsoleProgress, emit, gib
from engineroom.cli.options import STORE_SETTINGS, cache_folder, output_option, plain_http_option
from engineroom.errors import InputError

_COUNT = click.IntRange(0, 10_000)


@click.command("backup", epilog=STORE_SETTINGS)
@click.argument("references", nargs=-1, metavar="[REFERENCE]...")
@click.option("--to", "to", metavar="STORE/NAME", required=True, help="SCHEME://LOCATION/NAME; the tag is a time.")
@click.option("--folder", "folders", multiple=True, type=click.Path(path_type=Path), help="Back up this folder too.")
@click.option("--values", type=click.Path(path_type=Path), help="The release's values: a file without secrets.")
@click.option("--keep-last", type=_COUNT, default=0, help="Keep the last N backups.")
@click.option("--keep-daily", type=_COUNT, default=0, help="Keep one of each of the last N days that have one.")
@click.option("--keep-weekly", type=_COUNT, default=0, help="Keep one of each of the last N weeks that have one.")
@click.option("--verify/--no-verify", default=True, show_default=True, help="Read the backup back and hash every byte.")
@click.option("--dry-run", is_flag=True, help="Say what would be sent and removed, and change nothing.")
@plain_http_option
@output_option
def backup_command(
    references: tuple[str, ...],
    to: str,
    folders: tuple[Path, ...],
    values: Path | None,
    keep_last: int,
    keep_daily: int,
    keep_weekly: int,
    verify: bool,
    dry_run: bool,
    plain_http: bool,
    output: str,
) -> None:
    """Back up the artifacts REFERENCE..., folders and the values of a release into another store.

    Only content that the store lacks is sent; each backup is whole. Without a --keep rule every backup is kept; with
    one, older backups are removed after this one was verified, and their blobs collected a day later.

    \b
    Example:
      engineroom backup s3://models/llama-3.1-8b:v1 --to s3://backups/llm --folder /checkpoints \\
        --values values.yaml --keep-daily 7 --keep-weekly 4
    """  # noqa: D301
    from engineroom.artifacts.backup import backup
    from engineroom.artifacts.retention import Retention

    done = backup(
        [Reference.parse(text) for text in references],
        Reference.parse(to),
        folders=folders,
        values=values,
        retention=Retention(keep_last, keep_daily, keep_weekly),
        verify=verify,
        plain_http=plain_http,
        dry_run=dry_run,
        progress=ConsoleProgress(),
    )
    record, freed = done.record, done.collected.removed_bytes if done.collected else 0
    emit(
        output,
        {
            "reference": str(done.reference),
            "digest": done.reference.digest,
            "dry_run": dry_run,
            "created": record.created,
            "artifacts": [saved.source for saved in record.artifacts],
            "folders": [{"path": folder.path, "bytes": folder.size} for folder in record.folders],
            "values": record.values is not None,
            "sent_bytes": done.sent_bytes,
            "sent_blobs": done.sent_blobs,
            "skipped_bytes": done.skipped_bytes,
            "verified_bytes": done.verified_bytes,
            "removed": list(done.removed),
            "freed_bytes": freed,
        },
        rows=[
            ("backup", str(done.reference)),
            *(("artifact", saved.source) for saved in record.artifacts),
            *(("folder", f"{folder.path}, {gib(folder.size)}") for folder in record.folders),
            *([("values", gib(record.values.size))] if record.values else []),
            ("would send" if dry_run else "sent", f"{gib(done.sent_bytes)} in {done.sent_blobs} blobs"),
            ("there already", gib(done.skipped_bytes)),
            *([("read back", f"{gib(done.verified_bytes)}, every byte is right")] if done.verified_bytes else []),
            *(("would remove" if dry_run else "removed", tag) for tag in done.removed),
            *([("freed", gib(freed))] if done.collected else []),
        ],
    )


@click.command("restore", epilog=STORE_SETTINGS)
@click.argument("backup")
@click.option("--to", "to", metavar="STORE", help="Store for the artifacts: SCHEME://LOCATION.")
@click.option(
    "--folder-to", type=click.Path(path_type=Path), help="Place for the folder, empty or new; several: below it."
)
@click.option("--values-to", type=click.Path(path_type=Path), help="File for the release's values.")
@click.option("--drill", "drilled", is_flag=True, help="Restore aside, serve with a real Triton, ask for one token.")
@click.option("--scratch", type=click.Path(path_type=Path), help="Where a drill works; default: the temporary folder.")
@click.option("--verify/--no-verify", default=True, show_default=True, help="Read artifacts back and hash every byte.")
@click.option("--dry-run", is_flag=True, help="Say what would be restored, and write nothing.")
@plain_http_option
@output_option
def restore_command(
    backup: str,
    to: str | None,
    folder_to: Path | None,
    values_to: Path | None,
    drilled: bool,
    scratch: Path | None,
    verify: bool,
    dry_run: bool,
    plain_http: bool,
    output: str,
) -> None:
    """Bring back BACKUP, STORE/NAME[:TAG]; without a tag the newest.

    Artifacts keep their names, tags and digests. A restoration that was cut off goes on where it was. --drill proves
    a backup: everything is restored into a folder of its own, Triton loads every model, and each gives a token.

    \b
    Example:
      engineroom restore s3://backups/llm --to s3://models --folder-to /checkpoints --values-to values.yaml
      engineroom restore s3://backups/llm --drill
    """  # noqa: D301
    reference = Reference.parse(backup)
    if drilled:
        if folder_to or values_to or dry_run:
            raise InputError(
                "a drill restores aside", where="restore --drill", fix="leave --folder-to, --values-to, --dry-run away"
            )
        _drill(reference, to, scratch, output)
        return
    from engineroom.artifacts.restore import restore

    done = restore(
        reference,
        to=to,
        folder_to=folder_to,
        values_to=values_to,
        verify=verify,
        plain_http=plain_http,
        dry_run=dry_run,
        progress=ConsoleProgress(),
    )
    verb = "would restore" if dry_run else "restored"
    emit(
        output,
        {
            "backup": str(done.backup),
            "created": done.record.created,
            "dry_run": dry_run,
            "artifacts": [
                {"reference": str(one.reference), "tags": list(one.tags), "copied_bytes": one.copied_bytes}
                for one in done.artifacts
            ],
            "folders": [{"path": str(path), "bytes": size} for path, size in done.folders],
            "values": str(done.values) if done.values else None,
            "verified_bytes": done.verified_bytes,
        },
        rows=[
            ("backup", f"{done.backup}, made {done.record.created}"),
            *((verb, f"{one.reference}, {gib(one.copied_bytes)} copied") for one in done.artifacts),
            *((verb, f"{path}, {gib(size)} written") for path, size in done.folders),
            *([(verb, str(done.values))] if done.values else []),
            *([("read back", f"{gib(done.verified_bytes)}, every byte is right")] if done.verified_bytes else []),
        ],
    )


def _drill(reference: Reference, to: str | None, scratch: Path | None, output: str) -> None:
    from engineroom.deploy.drill import drill

    done = drill(reference, cache=cache_folder(), scratch=scratch, to=to, progress=ConsoleProgress())
    emit(
        output,
        {
            "backup": str(done.restored.backup),
            "created": done.restored.record.created,
            "restore_seconds": round(done.restore_seconds, 3),
            "verified_bytes": done.restored.verified_bytes,
            "served": [
                {"source": str(one.reference), "load_seconds": round(one.load_seconds, 3), "text": one.text}
                for one in done.served
            ],
        },
        rows=[
            ("backup", f"{done.restored.backup}, made {done.restored.record.created}"),
            ("restored", f"in {done.restore_seconds:.1f} s, {gib(done.restored.verified_bytes)} read back and right"),
            *(
                ("served", f"{one.reference}: loaded in {one.load_seconds:.1f} s, its first token is {one.text!r}")
                for one in done.served
            ),
            ("verdict", "this backup can be restored and served"),
        ],
    )
