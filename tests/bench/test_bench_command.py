"""`engineroom bench` as a user types it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def bench(*arguments: str, path: str | None = None) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "engineroom", "bench", *arguments]
    environment = None if path is None else {"PATH": path, "HOME": "/nonexistent"}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100, env=environment)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ftp://x"], "write http://HOST:PORT or grpc://HOST:PORT"),
        (["http://x", "--rate", "1", "--concurrency", "1"], "only one of --concurrency, --rate and --trace"),
        (["http://x", "--trace", "nowhere.csv"], "nowhere.csv: cannot read it"),
        (["http://x", "--tool", "aiperf"], "give --model"),
        (["http://x", "--tool", "aiperf", "--model", "m"], "give --tokenizer"),
        (["http://x", "--tool", "aiperf", "--model", "m", "--tokenizer", "t"], "pip install aiperf"),
        (["http://x", "--tool", "aiperf", "--model", "m", "--tokenizer", "t", "--plot", "p"], "leave out --plot"),
    ],
)
def test_what_cannot_be_run_is_refused_with_what_to_do(arguments: list[str], words: str) -> None:
    done = bench(*arguments, path="/usr/bin:/bin")

    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_place_where_nothing_answers_is_exit_code_4() -> None:
    for url in ("http://127.0.0.1:9", "grpc://127.0.0.1:9"):
        done = bench(url, "--requests", "1")
        assert done.returncode == 4
        assert done.stderr.count("\n") == 1, done.stderr


@pytest.mark.local
def test_a_run_is_reported_plotted_and_judged(tmp_path: Path, demo_gateway: str) -> None:
    plot = tmp_path / "plot.html"
    shape = ["--requests", "6", "--concurrency", "3", "--input-tokens", "16", "--output-tokens", "5"]

    good = bench(demo_gateway, *shape, "--slo-e2e-ms", "600000", "--plot", str(plot), "--output", "json")
    bad = bench(demo_gateway, *shape, "--slo-ttft-ms", "0.001")

    assert good.returncode == 0, good.stderr
    report = json.loads(good.stdout)
    assert report["requests"] == {"sent": 6, "whole": 6, "errors": {}}
    assert report["tokens"]["output"] == 30
    assert report["slo"]["met"] is True
    assert {"p50", "p90", "p95", "p99"} <= report["itl_ms"].keys()
    assert report["itl_ms"]["count"] <= 24
    assert "Plotly.newPlot" in plot.read_text()
    assert bad.returncode == 3
    assert "ttft p99 ≤ 0.001 ms was missed" in bad.stderr
    assert "MISSED" in bad.stdout
