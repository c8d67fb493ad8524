"""The pytest plugin makes a test of every chart with every values file."""

import os
import shutil
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

CHART = "apiVersion: v2\nname: demo\nversion: 1.0.0\ndescription: A chart for tests.\n"
TEMPLATE = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: demo}
data: {name: '{{ required "give a name" .Values.name }}'}
"""


def find_helm() -> str | None:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    place = Path(os.environ.get("ENGINEROOM_CACHE") or Path(cache) / "engineroom") / "tools" / "bin" / "helm4"
    return shutil.which("helm4") or (str(place) if place.is_file() else None)


#: Looked for when this file is read: pytester gives its tests another home.
HELM = find_helm()


@pytest.fixture
def helm() -> str:
    if HELM is None and os.environ.get("CI"):
        pytest.fail("no helm4 on this machine: run ci/install-helm")
    if HELM is None:
        pytest.skip("no helm4 on this machine: run ci/install-helm")
    return HELM


@pytest.fixture
def charts(pytester: pytest.Pytester) -> pytest.Pytester:
    for path, text in {
        "Chart.yaml": CHART,
        "values.yaml": 'name: ""\n',
        "templates/configmap.yaml": TEMPLATE,
        "ci/good-values.yaml": "name: a\n",
        "ci/bad-values.yaml": 'name: ""\n',
    }.items():
        file = pytester.path / "charts" / "demo" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return pytester


def run(pytester: pytest.Pytester, *options: str) -> pytest.RunResult:
    return pytester.runpytest_subprocess("-p", "engineroom.testing.helm_chart_linter", "-p", "no:xdist", *options)


def test_each_values_file_is_a_test_and_a_failure_shows_the_chart_s_sentence(
    charts: pytest.Pytester, helm: str
) -> None:
    result = run(charts, "--helm-charts", "--helm-program", helm, "-v", "charts")

    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*bad-values.yaml: helm template: *give a name*"])
    assert "Traceback" not in result.stdout.str()


def test_a_fault_of_the_chart_s_own_files_is_a_test_of_its_own(charts: pytest.Pytester, helm: str) -> None:
    (charts.path / "charts" / "demo" / "ci" / "bad-values.yaml").unlink()
    (charts.path / "charts" / "demo" / "values.yaml").write_text('name: ""  \n', encoding="utf-8")

    result = run(charts, "--helm-charts", "--helm-program", helm, "charts")

    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*values.yaml:1: yamllint: trailing spaces*"])


def test_without_its_option_the_plugin_collects_nothing(charts: pytest.Pytester) -> None:
    assert run(charts, "charts").ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_without_a_helm_the_tests_fail(charts: pytest.Pytester) -> None:
    result = run(charts, "--helm-charts", "--helm-program", "/nowhere/helm", "charts")

    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["*/nowhere/helm is no program*"])
