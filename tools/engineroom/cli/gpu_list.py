"""``gpus``: the catalogue for a person, or for a program."""

import click

from engineroom import gpus
from engineroom.cli.console import emit, gib
from engineroom.cli.options import output_option


@click.command("gpus")
@output_option
def gpus_command(output: str) -> None:
    """List the GPU classes: memory that a process can see, bandwidth, links, MIG profiles, precisions.

    --output json adds arithmetic, cloud instance types, prices, and the source of each figure. A MIG instance is a
    class too: h100-3g.40gb. Prices and cards of your own come from the file that ENGINEROOM_GPUS names, else from
    ~/.config/engineroom/gpus.yaml; what it says of a class replaces what is shipped.

    \b
    Example:
      engineroom gpus --output json
      echo 'classes: {h100: {price: {on_demand: 2.5, source: our contract, date: "2026-11-01"}}}' > gpus.yaml
      ENGINEROOM_GPUS=gpus.yaml engineroom gpus
    """  # noqa: D301
    classes = list(gpus.catalogue().values())
    emit(
        output,
        [gpu.model_dump(mode="json") for gpu in classes],
        header=("class", "product", "SM", "visible", "bandwidth", "link", "MIG", "price", "precisions"),
        rows=[
            (
                gpu.name,
                gpu.product or gpu.description,
                gpu.sm or "–",
                gib(gpu.visible_bytes),
                f"{gpu.bandwidth_gbs:,.0f} GB/s" if gpu.bandwidth_gbs else "–",
                _link(gpu),
                ", ".join(gpu.mig) or "–",
                f"${gpu.price.on_demand:,.2f}/h" if gpu.price and gpu.price.on_demand else "–",
                ", ".join(gpu.precisions),
            )
            for gpu in classes
        ],
    )


def _link(gpu: gpus.GpuClass) -> str:
    if not gpu.link:
        return "–"
    joins = f" ({gpu.link_gpus} of {gpu.gpus_per_node})" if gpu.link_gpus else f" ({gpu.gpus_per_node})"
    return f"{gpu.link} {gpu.link_gbs:g} GB/s{joins}"
