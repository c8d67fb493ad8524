"""The runner of the tiers, run on small projects of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RUNNER = Path(__file__).with_name("run.py")

PASSING = "def test_passes(): assert True\n"
FAILING = "def test_fails(): assert False\n"
LOCAL = "import pytest\n@pytest.mark.local\ndef test_local(): pass\n"
SKIPPED = "import pytest\n@pytest.mark.local\ndef test_local(): pytest.skip('nothing to serve with')\n"


class Project:
    """A project with a test file and a list of required tiers."""

    def __init__(self, root: Path) -> None:
        self.root = root
        markers = "\n".join(f"    {name}: x" for name in ("local", "cluster", "gpu", "images"))
        (root / "pytest.ini").write_text(
            f"[pytest]\naddopts = --strict-markers -p no:cacheprovider\nmarkers =\n{markers}\n"
        )
        (root / "ci").mkdir()
        (root / "ci" / "required-tiers").write_text("unit\nlocal\n")

    def run(self, *arguments: str, **tests: str) -> tuple[int, list[str], dict[str, Any]]:
        """Exit code, lines of output, and the outcome of each tier."""
        for name, text in tests.items():
            (self.root / f"test_{name}.py").write_text(text)
        command = [sys.executable, str(RUNNER), "--serial", "--root", str(self.root), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert "Traceback" not in done.stderr, done.stderr
        report = json.loads((self.root / "build" / "tests" / "tiers.json").read_text())
        return done.returncode, done.stdout.splitlines(), {outcome["tier"]: outcome for outcome in report}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_the_last_line_adds_up_all_tiers_and_the_exit_code_is_0(project: Project) -> None:
    code, lines, outcomes = project.run("--required", unit=PASSING, local=LOCAL)

    assert (code, lines[-1]) == (0, "2 passed, 0 failed, 0 skipped")
    assert outcomes["unit"]["passed"] == outcomes["local"]["passed"] == 1
    assert outcomes["cluster"]["left_out"]
    assert outcomes["gpu"]["left_out"]


def test_a_failing_test_fails_the_run_and_later_tiers_run_all_the_same(project: Project) -> None:
    code, lines, _ = project.run(unit=FAILING, local=LOCAL)

    assert (code, lines[-1]) == (1, "1 passed, 1 failed, 0 skipped")


def test_a_file_that_cannot_be_imported_fails_the_run(project: Project) -> None:
    code, lines, _ = project.run("unit", unit=PASSING, broken="import no_such_module\n")

    assert code == 1
    assert ", 0 failed" not in lines[-1]


def test_a_required_tier_without_tests_fails_the_run(project: Project) -> None:
    code, lines, outcomes = project.run("--required", unit=PASSING)

    assert (code, lines[-1]) == (1, "1 passed, 1 failed, 0 skipped")
    assert outcomes["local"]["left_out"] == "no test belongs to it"
    assert "local    left out, but required: no test belongs to it" in lines


def test_a_tier_may_be_left_out_where_nothing_requires_it(project: Project) -> None:
    code, lines, outcomes = project.run(unit=PASSING)

    assert (code, lines[-1]) == (0, "1 passed, 0 failed, 0 skipped")
    assert outcomes["local"]["left_out"] == "no test belongs to it"


def test_a_tier_whose_tests_all_skipped_themselves_counts_as_left_out(project: Project) -> None:
    code, lines, _ = project.run("--required", "local", local=SKIPPED)

    assert (code, lines[-1]) == (1, "0 passed, 2 failed, 1 skipped")


def test_a_test_run_that_dies_fails_the_run(project: Project) -> None:
    code, lines, _ = project.run("local", local=LOCAL + "    import os; os._exit(0)\n")

    assert (code, lines[-1]) == (1, "0 passed, 1 failed, 0 skipped")
