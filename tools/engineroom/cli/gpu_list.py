"""``gpus``: the catalogue for a person, or for a program."""

import click

from engineroom import gpus
from engineroom.cli.console import emit, gib
from engineroom.cli.options import output_option


@click.command("gpus")
@output_option
def gpus_command(output: str) -> None:
    """List the GPU classes: memory that a process can see, bandwidth, precisions.

    \b
    Example:
      engineroom gpus --output json
    """  # noqa: D301
    classes = list(gpus.catalogue().values())
    emit(
        output,
        [gpu.model_dump(mode="json") for gpu in classes],
        header=("class", "product", "SM", "visible", "bandwidth", "link", "precisions"),
        rows=[
            (
                gpu.name,
                gpu.product or gpu.description,
                gpu.sm or "–",
                gib(gpu.visible_bytes),
                f"{gpu.bandwidth_gbs:,.0f} GB/s" if gpu.bandwidth_gbs else "–",
                gpu.link or "–",
                ", ".join(gpu.precisions),
            )
            for gpu in classes
        ],
    )
