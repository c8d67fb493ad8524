"""Charts are checked as ct checks them: each fault is found, and the chart without it passes."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from engineroom.cli import chart as commands
from engineroom.cli.main import cli
from engineroom.deploy.charts import Finding, check_version, find_charts, lint
from engineroom.deploy.helm import Helm, chart_folder
from engineroom.errors import CheckFailedError, CommandError, InputError

CHART = """\
apiVersion: v2
name: demo
version: 1.2.3
description: A chart for tests.
"""
TEMPLATE = """\
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ .Release.Name }}
data:
  word: {{ required "give a word" .Values.word | quote }}
"""


def helm() -> Helm:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    place = Path(os.environ.get("ENGINEROOM_CACHE") or Path(cache) / "engineroom") / "tools" / "bin" / "helm4"
    found = shutil.which("helm4") or (place if place.is_file() else None)
    if found is None and os.environ.get("CI"):
        pytest.fail("no helm4 on this machine: run ci/install-helm")
    if found is None:
        pytest.skip("no helm4 on this machine: run ci/install-helm")
    return Helm(Path(found))


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """A chart that passes, in a Git repository whose branch main has it."""
    chart = tmp_path / "demo"
    for path, text in {
        "Chart.yaml": CHART,
        "values.yaml": 'word: ""\n',
        "templates/configmap.yaml": TEMPLATE,
        "ci/one-values.yaml": "word: hello\n",
    }.items():
        (chart / path).parent.mkdir(parents=True, exist_ok=True)
        (chart / path).write_text(text, encoding="utf-8")
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "--quiet", "--message", "A chart")
    return chart


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=Test", "-c", "user.email=test@example.com"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


def edit(chart: Path, path: str, change: Callable[[str], str]) -> None:
    file = chart / path
    file.write_text(change(file.read_text(encoding="utf-8") if file.exists() else ""), encoding="utf-8")


def test_a_chart_without_faults_passes(demo: Path) -> None:
    assert list(lint(demo, helm(), branch="main")) == []


def test_our_own_charts_pass() -> None:
    # nim uses helpers of common, so it is linted inside of engineroom, with the scenario nim-values.yaml.
    ours = find_charts([chart_folder(), chart_folder() / "charts" / "common"])

    assert [found for chart in ours for found in lint(chart, helm())] == []


@pytest.mark.parametrize(
    ("path", "change", "check", "words"),
    [
        ("Chart.yaml", lambda text: text + "colour: blue\n", "schema", "colour: unknown key"),
        ("Chart.yaml", lambda text: text.replace("version: 1.2.3\n", ""), "schema", "version: missing"),
        ("Chart.yaml", lambda text: text.replace("1.2.3", "v1"), "schema", "version: found 'v1'"),
        (
            "Chart.yaml",
            lambda text: text.replace("name: demo", "name: other"),
            "schema",
            "is not the name of its folder",
        ),
        ("Chart.yaml", lambda text: text + "\tx", "schema", "found character"),
        (
            "Chart.yaml",
            lambda text: f"{text}dependencies:\n  - {{name: a, version: 1.0.0, repository: file://charts/a}}\n",
            "schema",
            "no chart at file://charts/a",
        ),
        ("values.yaml", lambda text: text + text, "yamllint", "duplication of key"),
        ("ci/one-values.yaml", lambda _: 'word: ""\n', "helm template", "give a word"),
        ("ci/two-values.yaml", lambda _: 'word: ""\n', "helm template", "give a word"),
        ("templates/configmap.yaml", lambda text: text + "{{ end }}", "helm lint", "unexpected {{end}}"),
    ],
)
def test_a_fault_is_found_and_named(
    path: str, change: Callable[[str], str], check: str, words: str, demo: Path
) -> None:
    edit(demo, path, change)

    found = [each for each in lint(demo, helm()) if each.check == check]

    assert found
    assert any(words in each.found for each in found), found
    assert path.partition("/")[0] in found[0].where or check.startswith("helm")


@pytest.mark.parametrize(
    ("before", "now", "accepted"),
    [
        ("1.2.3", "1.2.3", False),
        ("1.2.3", "1.2.4", True),
        ("1.2.3", "1.10.0", True),
        ("1.10.0", "1.9.0", False),
        ("1.2.3-rc.1", "1.2.3", True),
        ("1.2.3", "1.2.3-rc.1", False),
        ("1.2.3-rc.2", "1.2.3-rc.10", True),
        ("1.2.3-rc.10", "1.2.3-rc.x", True),
    ],
)
def test_a_chart_that_changed_needs_a_higher_version(before: str, now: str, accepted: bool, demo: Path) -> None:
    edit(demo, "Chart.yaml", lambda text: text.replace("1.2.3", before))
    git(demo, "commit", "--quiet", "--all", "--allow-empty", "--message", "Before")
    assert list(check_version(demo, "main")) == [], "nothing changed"

    edit(demo, "values.yaml", lambda text: text + "more: 1\n")
    edit(demo, "Chart.yaml", lambda text: text.replace(before, now))

    assert [each.check for each in check_version(demo, "main")] == ([] if accepted else ["version"])


def test_a_new_file_is_a_change_and_a_new_chart_needs_no_higher_version(demo: Path) -> None:
    (demo / "templates" / "new.yaml").write_text("", encoding="utf-8")
    assert [each.check for each in check_version(demo, "main")] == ["version"]

    other = shutil.copytree(demo, demo.parent / "other")
    assert list(check_version(other, "main")) == []


def test_a_branch_that_is_not_there_is_refused(demo: Path) -> None:
    with pytest.raises(CommandError) as refusal:
        list(check_version(demo, "nowhere"))
    assert "name a branch" in refusal.value.fix


def test_a_folder_stands_for_its_charts_and_one_without_any_is_refused(demo: Path, tmp_path: Path) -> None:
    assert find_charts([demo]) == find_charts([tmp_path]) == [demo]
    with pytest.raises(InputError, match=r"no Chart\.yaml"):
        find_charts([demo / "templates"])


# The commands.


def call(*arguments: str) -> tuple[object, str]:
    result = CliRunner().invoke(cli, ["chart", *arguments])
    return result.exception, result.stdout


def test_the_command_lists_findings_and_fails(demo: Path) -> None:
    problem, output = call("lint", str(demo), "--tool", "own", "--helm", str(helm().program), "--output", "json")
    assert problem is None
    assert '"findings": []' in output

    edit(demo, "values.yaml", lambda text: text + text)
    problem, output = call("lint", str(demo), "--tool", "own", "--helm", str(helm().program))
    assert isinstance(problem, CheckFailedError)
    assert "duplication of key" in output


def test_ct_is_used_where_it_is_installed(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "ct").write_text('#!/bin/sh\necho "ct got $*"\nexit ${CT_CODE:-0}\n', encoding="utf-8")
    (tools / "ct").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")

    commands._run_ct(str(tools / "ct"), "lint", [demo], "main")
    assert f"ct got lint --charts {demo} --target-branch main" in capfd.readouterr().out
    monkeypatch.setenv("CT_CODE", "1")
    problem, _ = call("lint", str(demo))
    assert isinstance(problem, CheckFailedError)
    assert f"ct got lint --charts {demo} --check-version-increment=false" in capfd.readouterr().out


def test_ct_that_is_wanted_and_not_there_is_refused(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    problem, _ = call("lint", str(demo), "--tool", "ct")
    assert isinstance(problem, CommandError)
    assert "chart-testing" in problem.fix


HELM = """#!/bin/sh
echo "$*" >> {log}
case "$1" in $FAIL) echo "Error: it is broken" >&2; exit 1 ;; esac
"""


@pytest.fixture
def recorder(tmp_path: Path) -> tuple[Path, Path]:
    """A program that notes how it was called, in place of a Helm with a cluster; and its notes."""
    program, log = tmp_path / "helm", tmp_path / "log"
    program.write_text(HELM.format(log=log), encoding="utf-8")
    program.chmod(0o755)
    return program, log


def test_install_tries_every_scenario_tests_it_and_takes_it_away(demo: Path, recorder: tuple[Path, Path]) -> None:
    edit(demo, "ci/two-values.yaml", lambda _: "word: two\n")

    problem, output = call("install", str(demo), "--tool", "own", "--helm", str(recorder[0]), "-n", "trial")

    assert problem is None
    assert output == "ok  demo  one-values.yaml\nok  demo  two-values.yaml\n"
    lines = [line.split() for line in recorder[1].read_text().splitlines()]
    assert [line[0] for line in lines] == ["install", "test", "uninstall"] * 2
    assert len({line[1] for line in lines}) == 2, "each scenario is a release of its own"
    assert all("trial" in line for line in lines)


@pytest.mark.parametrize("fail", ["install", "test"])
def test_what_fails_is_taken_away_too(
    fail: str, demo: Path, recorder: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIL", fail)

    problem, _ = call("install", str(demo), "--tool", "own", "--helm", str(recorder[0]))

    assert isinstance(problem, CommandError)
    assert problem.found == "it is broken"
    assert recorder[1].read_text().splitlines()[-1].startswith("uninstall ")


def test_a_finding_says_where(demo: Path) -> None:
    edit(demo, "Chart.yaml", lambda text: text + "colour: blue\n")

    assert next(lint(demo, helm())) == Finding("demo", "schema", str(demo / "Chart.yaml"), "colour: unknown key")
