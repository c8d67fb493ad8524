"""``bundle``: a whole release in one folder."""

from pathlib import Path

import click

from engineroom.cli.console import ConsoleProgress, emit, gib
from engineroom.cli.options import STORE_SETTINGS, cache_folder, output_option, plain_http_option


@click.command("bundle", epilog=STORE_SETTINGS)
@click.option(
    "--values",
    "-f",
    "values",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="Values of the release, as for `helm install`; may be repeated, and a later file wins.",
)
@click.option("--to", "to", type=click.Path(path_type=Path), required=True, help="Folder to make.")
@click.option("--release", default="llm", show_default=True, help="Name of the Helm release.")
@click.option("--image", "images", metavar="IMAGE", multiple=True, help="One more image; may be repeated.")
@click.option("--with-images", is_flag=True, help="Carry the images too (needs skopeo), not only the list of them.")
@click.option("--chart", type=click.Path(path_type=Path), help="Chart folder; default: the one of this engineroom.")
@click.option("--helm", "helm_program", metavar="PROGRAM", help="Helm 3.19 or newer; default: the one that is found.")
@plain_http_option
@output_option
def bundle_command(
    values: tuple[Path, ...],
    to: Path,
    release: str,
    images: tuple[str, ...],
    with_images: bool,
    chart: Path | None,
    helm_program: str | None,
    plain_http: bool,
    output: str,
) -> None:
    """Put all that a release needs into one folder: chart, values, images by digest, artifact, checksums, load.sh.

    The artifact is the one that the values name (artifact.ref). On the other side, `./load.sh REGISTRY STORE` checks
    and loads it all and prints the command that installs it. docs/air-gapped.md tells the whole way.

    \b
    Example:
      engineroom bundle -f .engineroom/values.yaml --with-images --to llm-bundle
    """  # noqa: D301
    from engineroom.deploy import helm
    from engineroom.deploy.offline import bundle

    done = bundle(
        values,
        to,
        helm=helm.find(helm_program, cache=cache_folder()),
        chart=chart or helm.chart_folder(),
        release=release,
        more_images=images,
        carry_images=with_images,
        plain_http=plain_http,
        progress=ConsoleProgress(),
    )
    emit(
        output,
        {
            "path": str(done.path),
            "artifact": done.reference,
            "images": list(done.images),
            "carries_images": done.carried,
            "files": done.files,
            "bytes": done.bytes,
        },
        rows=[
            ("wrote", f"{done.path}, {done.files} files, {gib(done.bytes)}"),
            ("artifact", done.reference),
            *(("image" if done.carried else "image, to be mirrored", image) for image in done.images),
            ("next", f"{done.path}/load.sh REGISTRY STORE, on the other side"),
        ],
    )
