"""A pytest plugin: every Helm chart, with every values file, is a test.

::

    pytest -p engineroom.testing.helm_chart_linter --helm-charts charts/

collects, for each ``Chart.yaml`` below the paths that pytest is given, the checks of ``engineroom chart lint``: one
test for the chart's own files and one for each ``ci/*-values.yaml``. A failed test shows the chart's own sentence.
``--helm-program`` names the Helm; without any, the tests fail rather than being left out.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from engineroom.deploy import charts
from engineroom.deploy.helm import Helm, find
from engineroom.errors import EngineroomError


def pytest_addoption(parser: pytest.Parser) -> None:
    """The plugin's options."""
    group = parser.getgroup("helm charts")
    group.addoption("--helm-charts", action="store_true", help="collect Helm charts as tests")
    group.addoption("--helm-program", metavar="PROGRAM", help="Helm 3.19 or newer; default: the one that is found")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """A chart, where one is."""
    if file_path.name == "Chart.yaml" and parent.config.getoption("--helm-charts"):
        chart: pytest.Collector = ChartFile.from_parent(parent, path=file_path)
        return chart
    return None


class ChartFile(pytest.File):
    """The tests of one chart."""

    def collect(self) -> Iterator[pytest.Item]:
        """Its own files, then each scenario."""
        yield ChartItem.from_parent(self, name="files", values=None)
        for values in charts.values_files(self.path.parent):
            yield ChartItem.from_parent(self, name=values.stem, values=values)


class ChartItem(pytest.Item):
    """One chart with one values file; without one, what is said of the chart's own files."""

    def __init__(self, *, values: Path | None, **arguments: object) -> None:
        super().__init__(**arguments)  # type: ignore[arg-type]  # pytest's own protocol
        self._values = values

    def runtest(self) -> None:
        """Raises :class:`ChartLintError` with all that was found."""
        chart = self.path.parent
        if self._values is None:
            found = [*charts.check_chart_file(chart), *charts.check_yaml(chart)]
        else:
            found = list(charts.check_values(chart, self._values, self._helm()))
        if found:
            raise ChartLintError(found)

    def _helm(self) -> Helm:
        cache = self.config.rootpath / ".pytest_cache"
        return find(self.config.getoption("--helm-program"), cache=cache)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: object = None) -> str:
        """The findings, one a line, without Python's stack."""
        if isinstance(excinfo.value, ChartLintError):
            return "\n".join(f"{each.where}: {each.check}: {each.found}" for each in excinfo.value.findings)
        if isinstance(excinfo.value, EngineroomError):
            return str(excinfo.value)
        return str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[Path, int, str]:
        """Where and what."""
        return self.path, 0, f"{self.path.parent.name}: {self.name}"


class ChartLintError(Exception):
    """A chart did not pass."""

    def __init__(self, findings: list[charts.Finding]) -> None:
        super().__init__(f"{len(findings)} problem(s)")
        self.findings = findings
