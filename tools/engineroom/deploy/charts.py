"""Checks of Helm charts, as ``ct lint`` (helm/chart-testing) does them, where that program is not installed.

For each chart: ``Chart.yaml`` follows Helm's schema and is a version further than on the branch that it is to be merged
into, its YAML is tidy, and ``helm lint --strict`` and ``helm template`` accept it with every ``ci/*-values.yaml``.
"""

import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engineroom.deploy.helm import Helm
from engineroom.documents import first_problem
from engineroom.errors import CommandError, InputError

#: SemVer 2, as semver.org gives it.
_VERSION = r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(?:-([0-9A-Za-z.-]+))?(?:\+[0-9A-Za-z.-]+)?"

#: ct's own lintconf.yaml, where it differs from yamllint's default: comments close behind a value, no document start.
YAMLLINT = """
extends: default
rules:
  braces: {max-spaces-inside: 1}
  comments: {min-spaces-from-content: 1}
  document-start: disable
  line-length: disable
  truthy: {check-keys: false}
"""


@dataclass(frozen=True)
class Finding:
    """One thing that a check did not accept."""

    chart: str
    check: str
    where: str
    found: str


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Maintainer(_Strict):
    name: str
    email: str | None = None
    url: str | None = None


class _Dependency(_Strict):
    name: str
    version: str = Field(min_length=1)
    repository: str = ""
    condition: str | None = None
    tags: list[str] | None = None
    alias: str | None = None
    import_values: list[Any] | None = Field(default=None, alias="import-values")


class ChartFile(_Strict):
    """``Chart.yaml``, as helm.sh/docs/topics/charts describes it."""

    api_version: Literal["v2"] = Field(alias="apiVersion")
    name: str = Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    version: str = Field(pattern=f"^{_VERSION}$")
    description: str = Field(min_length=1)
    type: Literal["application", "library"] = "application"
    kube_version: str | None = Field(default=None, alias="kubeVersion")
    app_version: str | None = Field(default=None, alias="appVersion")
    keywords: list[str] | None = None
    home: str | None = None
    sources: list[str] | None = None
    icon: str | None = None
    deprecated: bool | None = None
    annotations: dict[str, str] | None = None
    maintainers: list[_Maintainer] | None = None
    dependencies: list[_Dependency] = []


def values_files(chart: Path) -> list[Path]:
    """The scenarios of a chart: its ``ci/*-values.yaml``."""
    return sorted(chart.glob("ci/*-values.yaml"))


def scenarios(chart: Path) -> list[Path | None]:
    """The same; without any, the chart's defaults alone (None)."""
    return [*values_files(chart)] or [None]


def find_charts(paths: Sequence[Path]) -> list[Path]:
    """The charts among ``paths``: a chart itself, or those directly in a folder. Raises InputError without any."""
    found = []
    for path in paths:
        charts = (
            [path] if (path / "Chart.yaml").is_file() else sorted(file.parent for file in path.glob("*/Chart.yaml"))
        )
        if not charts:
            raise InputError("no Chart.yaml in it, nor in a folder of it", where=str(path), fix="name a chart")
        found += charts
    return found


def lint(chart: Path, helm: Helm, *, branch: str | None = None) -> Iterator[Finding]:
    """Everything that the checks do not accept. ``branch`` is the Git branch to compare the version with."""
    yield from check_chart_file(chart)
    yield from check_yaml(chart)
    if branch is not None:
        yield from check_version(chart, branch)
    for values in scenarios(chart):
        yield from check_values(chart, values, helm)


def check_chart_file(chart: Path) -> Iterator[Finding]:
    """Whether ``Chart.yaml`` follows its schema, and its local dependencies lie where it says."""
    where = str(chart / "Chart.yaml")
    try:
        facts = ChartFile.model_validate(yaml.safe_load((chart / "Chart.yaml").read_text(encoding="utf-8")))
    except ValidationError as error:
        path, found = first_problem(error)
        yield Finding(chart.name, "schema", where, f"{path}: {found}")
        return
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        yield Finding(chart.name, "schema", where, " ".join(str(error).split())[:200])
        return
    if facts.name != chart.resolve().name:
        yield Finding(chart.name, "schema", where, f"name: {facts.name} is not the name of its folder")
    for dependency in facts.dependencies:
        folder = dependency.repository.removeprefix("file://")
        if folder != dependency.repository and not (chart / folder / "Chart.yaml").is_file():
            yield Finding(chart.name, "schema", where, f"dependencies: no chart at {dependency.repository}")


def check_yaml(chart: Path) -> Iterator[Finding]:
    """The style of ``Chart.yaml``, ``values.yaml`` and the scenarios, by yamllint. Raises InputError without it."""
    try:
        from yamllint import linter
        from yamllint.config import YamlLintConfig
    except ImportError:
        raise InputError(
            "the package yamllint is not installed", where="chart lint", fix="pip install 'engineroom[chart]'"
        ) from None
    rules = YamlLintConfig(YAMLLINT)
    for path in [chart / "Chart.yaml", chart / "values.yaml", *values_files(chart)]:
        if path.is_file():
            for problem in linter.run(path.read_text(encoding="utf-8", errors="replace"), rules):
                yield Finding(chart.name, "yamllint", f"{path}:{problem.line}", f"{problem.desc} ({problem.rule})")


def check_values(chart: Path, values: Path | None, helm: Helm) -> Iterator[Finding]:
    """Whether ``helm lint --strict`` and ``helm template`` accept the chart with one values file (None: its own)."""
    files = [values] if values else []
    where = str(values or chart / "values.yaml")
    try:
        helm.lint(chart, files)
    except CommandError as error:
        yield Finding(chart.name, "helm lint", where, error.found)
        return
    if _is_library(chart):
        return
    try:
        helm.template(chart, files, release="test")
    except CommandError as error:
        yield Finding(chart.name, "helm template", where, error.found)


def check_version(chart: Path, branch: str) -> Iterator[Finding]:
    """Whether a chart that differs from ``branch`` has a higher version than there. Raises InputError, CommandError."""
    base = _git(chart, "merge-base", branch, "HEAD")
    prefix = _git(chart, "rev-parse", "--show-prefix")
    # The work tree counts: what is not committed yet is going to be.
    changed = _git(chart, "diff", "--name-only", base, "--", ".") or _git(
        chart, "ls-files", "--others", "--exclude-standard", "--", "."
    )
    if not changed:
        return
    try:
        before = yaml.safe_load(_git(chart, "show", f"{base}:{prefix}Chart.yaml"))["version"]
    except CommandError:
        return  # a new chart
    now = yaml.safe_load((chart / "Chart.yaml").read_text(encoding="utf-8"))["version"]
    if _order(now) <= _order(before):
        where = str(chart / "Chart.yaml")
        yield Finding(
            chart.name, "version", where, f"version: {now} is not above {before} of {branch}, and the chart changed"
        )


def _is_library(chart: Path) -> bool:
    return bool(yaml.safe_load((chart / "Chart.yaml").read_text(encoding="utf-8")).get("type") == "library")


def _order(version: str) -> tuple[Any, ...]:
    """SemVer's precedence: a pre-release is below its release, numbers below words."""
    match = re.fullmatch(_VERSION, str(version))
    if match is None:
        raise InputError(f"{version!r} is no version", where="Chart.yaml: version", fix="write one such as 1.2.3")
    *numbers, extra = match.groups()
    parts = [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in (extra or "").split(".") if part]
    return (*map(int, numbers), extra is None, parts)


def _git(chart: Path, *arguments: str) -> str:
    where = f"git {arguments[0]}"
    try:
        done = subprocess.run(
            ["git", "-C", str(chart), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CommandError(f"cannot run it ({error})", where=where, fix="leave --target-branch out") from None
    if done.returncode != 0:
        found = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise CommandError(found[0], where=where, fix="name a branch of this repository, or leave --target-branch out")
    return done.stdout.strip()
