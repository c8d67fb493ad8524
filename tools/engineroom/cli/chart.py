"""``chart lint`` and ``chart install``: check Helm charts, ours or yours, as ct (helm/chart-testing) does."""

import shutil
import subprocess
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from engineroom.cli.console import ConsoleProgress, emit
from engineroom.cli.options import cache_folder, output_option
from engineroom.errors import CheckFailedError, CommandError

_charts = click.argument("charts", nargs=-1, type=click.Path(path_type=Path))
_tool = click.option(
    "--tool",
    type=click.Choice(["auto", "ct", "own"]),
    default="auto",
    show_default=True,
    help="ct where it is installed, else the same checks of our own; or one of the two.",
)
_branch = click.option(
    "--target-branch", metavar="BRANCH", help="A chart that differs from this Git branch must have a higher version."
)
_helm = click.option("--helm", "helm_program", metavar="PROGRAM", help="Helm 3.19 or newer; default: the one found.")


@click.group("chart")
def chart_command() -> None:
    """Lint and try out Helm charts: each chart with each of its ci/*-values.yaml.

    \b
    Example:
      engineroom chart lint charts/engineroom --target-branch origin/main
    """  # noqa: D301


@chart_command.command("lint")
@_charts
@_tool
@_branch
@_helm
@output_option
def lint_command(
    charts: tuple[Path, ...], tool: str, target_branch: str | None, helm_program: str | None, output: str
) -> None:
    """Check CHARTS (default: the chart engineroom); a folder stands for the charts in it. Exit 3: something was found.

    Chart.yaml against its schema, its version against a branch, YAML by yamllint, `helm lint --strict` and
    `helm template` with every ci/*-values.yaml.

    \b
    Example:
      engineroom chart lint charts/engineroom
      engineroom chart lint charts --target-branch origin/main --output json
    """  # noqa: D301
    from engineroom.deploy.charts import find_charts, lint, values_files
    from engineroom.deploy.helm import chart_folder, find

    found = find_charts(charts or [chart_folder()])
    if (ct := _ct(tool)) is not None:
        _run_ct(ct, "lint", found, target_branch)
        return
    helm = find(helm_program, cache=cache_folder())
    progress, findings = ConsoleProgress(), []
    for chart in found:
        with progress.task(f"lint {chart.name}", None, unit=""):
            findings += list(lint(chart, helm, branch=target_branch))
    emit(
        output,
        {"charts": [str(chart) for chart in found], "findings": [asdict(finding) for finding in findings]},
        header=("chart", "check", "where", "found"),
        rows=[(each.chart, each.check, each.where, each.found) for each in findings]
        or [(chart.name, "all", f"{len(values_files(chart))} scenarios", "nothing") for chart in found],
    )
    if findings:
        raise CheckFailedError(
            f"{len(findings)} problem(s) found", where="chart lint", fix="mend them and run it again"
        )


@chart_command.command("install")
@_charts
@_tool
@_helm
@click.option("--namespace", "-n", default="chart-test", show_default=True, help="Made where it is not there.")
@click.option("--timeout", "seconds", type=click.IntRange(1), default=900, show_default=True, help="Seconds for each.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until all is ready, and run `helm test`.")
def install_command(
    charts: tuple[Path, ...], tool: str, helm_program: str | None, namespace: str, seconds: int, wait: bool
) -> None:
    """Install CHARTS into the current cluster once for each ci/*-values.yaml, run their tests, take them away again.

    \b
    Example:
      engineroom chart install charts/engineroom --namespace trial --timeout 1800
    """  # noqa: D301
    from engineroom.deploy.charts import find_charts, scenarios
    from engineroom.deploy.helm import chart_folder, find

    found = find_charts(charts or [chart_folder()])
    if (ct := _ct(tool)) is not None:
        _run_ct(ct, "install", found, None)
        return
    helm, progress = find(helm_program, cache=cache_folder()), ConsoleProgress()
    for chart in found:
        for values in scenarios(chart):
            release = f"{chart.name[:40]}-{uuid.uuid4().hex[:6]}"
            files = [values] if values else []
            title = f"install {chart.name} with {values.name if values else 'its defaults'} as {release}"
            try:
                with progress.task(title, None, unit=""):
                    helm.install(chart, files, release=release, namespace=namespace, wait=wait, seconds=seconds)
                if wait:
                    click.echo(helm.test(release, namespace=namespace, seconds=seconds), err=True, nl=False)
            finally:
                helm.uninstall(release, namespace=namespace, seconds=seconds)
            click.echo(f"ok  {chart.name}  {values.name if values else 'defaults'}")


def _ct(tool: str) -> str | None:
    if tool == "own":
        return None
    if (program := shutil.which("ct")) is None and tool == "ct":
        raise CommandError(
            "it is not in PATH",
            where="ct",
            fix="install it (https://github.com/helm/chart-testing), or leave --tool out",
        )
    return program


def _run_ct(program: str, verb: str, charts: Sequence[Path], branch: str | None) -> None:
    command = [program, verb, "--charts", ",".join(map(str, charts))]
    if verb == "lint":
        command += ["--target-branch", branch] if branch else ["--check-version-increment=false"]
    click.echo(" ".join(command), err=True)
    try:
        code = subprocess.run(command, check=False).returncode
    except OSError as error:
        raise CommandError(f"cannot run it ({error.strerror})", where=program) from None
    if code != 0:
        raise CheckFailedError(f"it found problems (exit code {code})", where=f"ct {verb}", fix="see its output above")
