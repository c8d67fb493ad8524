"""``estimate``: what configurations of a table should reach, row by row."""

from pathlib import Path

import click

from engineroom.cli.console import emit
from engineroom.cli.options import cache_folder


@click.command("estimate")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--output",
    "-o",
    type=click.Choice(["table", "csv", "json", "yaml"]),
    default="table",
    show_default=True,
    help="Format.",
)
def estimate_command(file: Path, output: str) -> None:
    """Predict the throughput of the configurations in a CSV file, offline.

    The file needs the columns model, gpu, precision, tp, isl, osl, and may have pp (1 where it is missing). A model is
    a known name in any usual spelling, or the path of a config.json. Every row comes back with
    predicted_output_tok_s_total (tokens of answers a second of the whole replica, at the best batch size that fits),
    the estimator, a band (low..high) that should hold the truth, and a note. With a column qps_offered (requests a
    second; INF: unlimited) also predicted_ttft_ms and predicted_itl_ms. A row that cannot be estimated says why in its
    note.

    \b
    Example:
      engineroom estimate configurations.csv --output csv > predicted.csv
    """  # noqa: D301
    from engineroom.planning.aiconfigurator_estimator import MeasuredEstimator
    from engineroom.planning.estimate_rows import ADDED, ADDED_ONLINE, estimate_table, read_table, write_csv
    from engineroom.planning.roofline import RooflineEstimator

    columns, rows = read_table(file)
    measured = MeasuredEstimator(cache_folder())
    table = estimate_table(columns, rows, [measured, RooflineEstimator()])
    measured.save()
    if output == "csv":
        click.echo(write_csv(table), nl=False)
    else:
        known = {"model", "gpu", "precision", "tp", "pp", "isl", "osl", "qps_offered", *ADDED, *ADDED_ONLINE}
        shown = [name for name in table.columns if name.strip().lower() in known]
        emit(output, table.rows, header=shown, rows=[[row.get(name, "") for name in shown] for row in table.rows])
    if table.skipped:
        click.echo(f"{table.skipped} of {len(table.rows)} rows have no estimate; their notes say why", err=True)
