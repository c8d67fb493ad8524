"""``mpi-secret``: keys for an engine over several nodes."""

import click


@click.command("mpi-secret")
@click.argument("name")
@click.option("--namespace", "-n", metavar="NAMESPACE", help="Namespace of the release; default: what kubectl uses.")
def mpi_secret_command(name: str, namespace: str | None) -> None:
    """Print the Secret NAME with new ssh keys, for triton.mpi.secret of the chart.

    The leader of a LeaderWorkerSet starts the ranks on the other nodes with it. The keys are in the output and nowhere
    else: hand it to kubectl, not to a file. New keys take effect when the pods are made anew.

    \b
    Example:
      engineroom mpi-secret llm-mpi --namespace models | kubectl apply -f -
    """  # noqa: D301
    from engineroom.deploy.mpi_keys import make_secret

    click.echo(make_secret(name, namespace=namespace), nl=False)
