"""Run the tests tier by tier, say what was left out and why, and end with one line of totals.

``run.py [--required] [--serial] [TIER...]``. Without names, every tier that this machine can run.

* A tier is *left out* when the machine lacks what it needs, when no test belongs to it, or when every test of it
  skipped itself: a tier of skipped tests has proved nothing.
* ``--required``: also fail when a tier listed in ``ci/required-tiers`` was left out. CI asks for this.
* ``build/tests/tiers.json`` tells afterwards what became of each tier; ``build/tests/<tier>.xml`` is its JUnit report.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

NO_TESTS_COLLECTED = 5
"""pytest's exit code where the expression picked no test."""


@dataclass(frozen=True)
class Tier:
    """Tests that need the same things of the machine."""

    name: str
    expression: str
    """What pytest's ``-m`` picks them by."""
    minutes: int
    """After so long the tier is ended and has failed: CI itself must not hang."""
    lacks: Callable[[], str | None]
    """What this machine lacks for the tier; None where it has all."""
    options: tuple[str, ...] = ()


@dataclass
class Outcome:
    """What became of a tier."""

    tier: str
    left_out: str | None = None
    """The reason; None where the tier ran."""
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    exit_code: int = 0
    seconds: float = 0
    broken: str | None = field(default=None)
    """Why the run itself failed, where no single test did."""


def no_control_plane() -> str | None:
    """A Kubernetes API server and what belongs to it, from KUBEBUILDER_ASSETS or built on this machine."""
    find = [sys.executable, str(Path(__file__).resolve().parents[2] / "ci" / "cluster-tools"), "--find"]
    done = subprocess.run(find, capture_output=True, text=True, check=False, timeout=60)
    return None if done.returncode == 0 else done.stderr.strip()


def no_gpu() -> str | None:
    """An NVIDIA GPU counts as there when its driver answers."""
    if shutil.which("nvidia-smi") is None:
        return "no nvidia-smi"
    done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False, timeout=60)
    return None if done.returncode == 0 and done.stdout.strip() else "nvidia-smi finds no GPU"


#: Two workers even on one core: many tests wait for a child process. Tests of one file stay together, since
#: fixtures of a module are costly.
IN_PARALLEL = ("-n", "2", "--dist", "loadfile")

TIERS = (
    # Tests marked `images` are in no tier: ci/test-images builds what they need.
    Tier("unit", "not local and not cluster and not gpu and not images", 10, lambda: None, IN_PARALLEL),
    # One after the other: these start servers and measure time.
    Tier("local", "local", 15, lambda: None),
    Tier("cluster", "cluster", 20, no_control_plane),
    Tier("gpu", "gpu", 20, no_gpu),
)


def main() -> int:
    """Run the tiers named, or all; the exit code is 0 only where nothing failed and nothing required was left out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tier", nargs="*", help=f"one of {', '.join(tier.name for tier in TIERS)}")
    parser.add_argument("--required", action="store_true", help="fail when a tier of ci/required-tiers was left out")
    parser.add_argument("--serial", action="store_true", help="one test at a time, as for a debugger")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[2], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.tier) - {tier.name for tier in TIERS}:
        parser.error(f"no tier {', '.join(sorted(unknown))}")
    reports = arguments.root / "build" / "tests"
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir(parents=True)

    outcomes = []
    for tier in TIERS:
        if arguments.tier and tier.name not in arguments.tier:
            outcomes.append(Outcome(tier.name, left_out="not asked for"))
        elif lacking := tier.lacks():
            outcomes.append(Outcome(tier.name, left_out=lacking))
        else:
            print(f"== tier {tier.name}", flush=True)
            outcomes.append(run(tier, arguments.root, reports, options=() if arguments.serial else tier.options))
    (reports / "tiers.json").write_text(json.dumps([vars(outcome) for outcome in outcomes], indent=2) + "\n")

    missing = required(arguments.root) if arguments.required else set()
    missing &= {outcome.tier for outcome in outcomes if outcome.left_out}
    summarise(outcomes, missing)
    return 1 if missing or any(outcome.exit_code for outcome in outcomes) else 0


def required(root: Path) -> set[str]:
    """The tiers that CI may not leave out. An unknown name there is an error, not a promise nobody keeps."""
    names = set((root / "ci" / "required-tiers").read_text(encoding="utf-8").split())
    if unknown := names - {tier.name for tier in TIERS}:
        sys.exit(f"ci/required-tiers: no tier {', '.join(sorted(unknown))}")
    return names


def run(tier: Tier, root: Path, reports: Path, *, options: tuple[str, ...]) -> Outcome:
    """Run one tier in a pytest of its own, so that what one leaves behind cannot help the next."""
    report = reports / f"{tier.name}.xml"
    command = [sys.executable, "-m", "pytest", "-m", tier.expression, "-rs", "--durations=5", "--durations-min=1"]
    command += [f"--junit-xml={report}", *options]
    began = time.monotonic()
    # A session of its own, so that an end by time takes the servers that tests started with it.
    process = subprocess.Popen(command, cwd=root, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        code = process.wait(timeout=tier.minutes * 60)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        return Outcome(tier.name, exit_code=1, seconds=tier.minutes * 60, broken=f"ended after {tier.minutes} minutes")
    outcome = Outcome(tier.name, exit_code=code, seconds=round(time.monotonic() - began, 1))
    if code == NO_TESTS_COLLECTED:
        outcome.exit_code = 0
        outcome.left_out = "no test belongs to it"
        return outcome
    if not report.is_file():
        outcome.broken = f"pytest ended with {code} before any test"
        return outcome
    for suite in ElementTree.parse(report).iter("testsuite"):
        count = {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")}
        outcome.failed += count["failures"] + count["errors"]
        outcome.skipped += count["skipped"]
        outcome.passed += max(0, count["tests"] - count["failures"] - count["errors"] - count["skipped"])
    if code and not outcome.failed:
        outcome.broken = f"pytest ended with {code} though no test failed"
    if not code and not outcome.passed:
        outcome.left_out = f"all {outcome.skipped} tests of it skipped themselves"
    return outcome


def summarise(outcomes: list[Outcome], missing: set[str]) -> None:
    """One line per tier, then the totals alone on the last line, which CI reads."""
    print("== summary")
    for outcome in outcomes:
        if outcome.left_out:
            verdict = "left out, but required" if outcome.tier in missing else "left out"
            print(f"{outcome.tier:8} {verdict}: {outcome.left_out}")
        else:
            counts = f"{outcome.passed} passed, {outcome.failed} failed, {outcome.skipped} skipped"
            print(
                f"{outcome.tier:8} {counts} in {outcome.seconds:.0f} s" + (f"; {outcome.broken}" * bool(outcome.broken))
            )
    # A tier that broke, or was left out though required, is one failure more: totals never look better than the run.
    failed = sum(outcome.failed + bool(outcome.broken) for outcome in outcomes) + len(missing)
    passed, skipped = (sum(getattr(outcome, name) for outcome in outcomes) for name in ("passed", "skipped"))
    print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)


if __name__ == "__main__":
    sys.exit(main())
